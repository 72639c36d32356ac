"""Packed one-bit weights: the same network comes back, in a small file, and damage is told."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mattecompress.models import build_model
from mattecompress.models.checkpoints import CheckpointError, read_checkpoint
from mattecompress.models.packed import METHODS, SCALE, SIGNS, pack, unpack
from mattecompress.modules.binary import BinaryConv2d, BinaryConvConfig
from mattecompress.training.state import save_weights

MOST_BYTES = 800_000
LAYER = "backbone.feature.1.binary_3x3.weight"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """BiVM as if trained: nothing is 0 or 1 any more, statistics least of all."""
    torch.manual_seed(0)
    model = build_model("bivm", untrained=True)
    model.train()(torch.rand(1, 2, 3, 64, 64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.std(correction=0).clamp_min(0.1)
    return model.eval()


@pytest.fixture(scope="module")
def packed(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "bivm.safetensors"
    save_weights(network, path, packed=True, without=frozenset({"refiner", "project_seg"}))
    return path


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.integers(1, 20),
    st.sampled_from([(1, 1), (3, 1), (5, 3), (1024, 1), (256, 3)]),
    st.floats(-1, 1),
    st.floats(1e-4, 100),
    st.integers(0, 1000),
)
def test_signs_stay_and_scales_round(
    method: str, outputs: int, shape: tuple[int, int], shift: float, spread: float, seed: int
) -> None:
    inputs, side = shape
    layer = BinaryConv2d(BinaryConvConfig(inputs, outputs, (side, side), method=method))
    generator = torch.Generator().manual_seed(seed)
    layer.weight.data = spread * (torch.randn(layer.weight.shape, generator=generator) + shift)
    signs, scale = layer.binary_weight(), layer.output_scale()
    layer.weight.data = unpack(pack(layer))["weight"]
    assert torch.equal(layer.binary_weight(), signs)
    assert torch.equal(layer.output_scale(), scale.half().float().clamp_min(1e-20))


@torch.no_grad()
def test_the_network_is_the_same_to_the_bit(network: nn.Module, packed: Path, tmp_path: Path) -> None:
    before = build_model("bivm", packed)
    for name, value in before.state_dict().items():
        if name.endswith(".weight") and value.ndim == 4 and name in one_bit(before):
            value += torch.randn(len(value)).sign()[:, None, None, None] / 64
    save_weights(before, tmp_path / "again.safetensors", packed=True)
    after = build_model("bivm", tmp_path / "again.safetensors")
    assert not torch.equal(before.state_dict()[LAYER], after.state_dict()[LAYER])
    clip = torch.rand(1, 3, 3, 64, 96)
    for one, other in zip(before(clip), after(clip), strict=True):
        assert torch.equal(one, other)


def test_what_is_packed_again_is_the_same_file(network: nn.Module, packed: Path, tmp_path: Path) -> None:
    save_weights(build_model("bivm", packed), tmp_path / "again.safetensors", packed=True)
    assert (tmp_path / "again.safetensors").read_bytes() == packed.read_bytes()


def test_is_small(network: nn.Module, packed: Path) -> None:
    assert packed.stat().st_size <= MOST_BYTES
    names = safetensors.torch.load_file(packed).keys()
    assert {name.removesuffix(SIGNS) for name in names if name.endswith(SIGNS)} == {
        name for name in one_bit(network) if not name.startswith("refiner.")
    }


def test_what_float16_cannot_hold_stays_float32() -> None:
    norm = nn.BatchNorm2d(2)
    norm.running_var.copy_(torch.tensor([1.0, 1e6]))
    stored = pack(norm)
    assert stored["running_var"].dtype == torch.float32
    assert stored["running_mean"].dtype == torch.float16
    assert "num_batches_tracked" not in stored


def without_scale(tensors: dict[str, Tensor]) -> None:
    del tensors[LAYER + SCALE]


def with_short_scale(tensors: dict[str, Tensor]) -> None:
    tensors[LAYER + SCALE] = tensors[LAYER + SCALE][:8].clone()


def with_flat_signs(tensors: dict[str, Tensor]) -> None:
    tensors[LAYER + SIGNS] = tensors[LAYER + SIGNS].flatten()


def with_float_signs(tensors: dict[str, Tensor]) -> None:
    tensors[LAYER + SIGNS] = tensors[LAYER + SIGNS].float()


def with_negative_scale(tensors: dict[str, Tensor]) -> None:
    tensors[LAYER + SCALE] *= -1


def with_endless_scale(tensors: dict[str, Tensor]) -> None:
    tensors[LAYER + SCALE][0] = torch.inf


def without_signs(tensors: dict[str, Tensor]) -> None:
    del tensors[LAYER + SIGNS]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_scale, "has signs and no scale"),
        (with_short_scale, r"has signs torch.uint8 \(2, 16, 3, 3\) for 8 filters"),
        (with_flat_signs, r"has signs torch.uint8 \(288,\) for 16 filters"),
        (with_float_signs, r"has signs torch.float32"),
        (with_negative_scale, "has scales that are no finite float16 from 0"),
        (with_endless_scale, "has scales that are no finite float16 from 0"),
    ],
)
def test_names_damage(packed: Path, tmp_path: Path, damage, message: str) -> None:
    tensors = safetensors.torch.load_file(packed)
    damage(tensors)
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(
        CheckpointError, match=f"damaged one-bit weights: '{LAYER}' {message}.*; copy it again"
    ):
        read_checkpoint(path)


def test_a_scale_alone_is_a_stranger(packed: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(packed)
    without_signs(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=f"1 of .* bivm tensors are missing, first '{LAYER}'"):
        build_model("bivm", tmp_path / "odd.safetensors")


def test_says_that_weights_are_of_another_network(packed: Path) -> None:
    with pytest.raises(CheckpointError, match="holds bivm weights, not rvm-mobilenetv3"):
        build_model("rvm-mobilenetv3", packed)


def one_bit(model: nn.Module) -> set[str]:
    return {f"{name}.weight" for name, part in model.named_modules() if isinstance(part, BinaryConv2d)}
