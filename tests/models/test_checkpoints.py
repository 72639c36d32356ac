"""Checkpoint files: what loads, and what is said about those that do not."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mattecompress.models import build_model
from mattecompress.models.checkpoints import AbsentPart, CheckpointError, find_model, read_checkpoint
from mattecompress.models.rvm import RVM


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return RVM().state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_loads_half_precision_as_float32(tmp_path: Path, weights: dict[str, Tensor], suffix: str) -> None:
    half = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    path = save(half, tmp_path / f"half{suffix}")
    loaded = build_model("rvm-mobilenetv3", path).state_dict()
    assert loaded.keys() == weights.keys()
    for key, value in loaded.items():
        assert value.dtype == weights[key].dtype
        torch.testing.assert_close(value, half[key].to(value.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_takes_off_what_training_loops_leave(
    tmp_path: Path, weights: dict[str, Tensor], wrapper: str
) -> None:
    torch.save({wrapper: {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "run.pth")
    assert read_checkpoint(tmp_path / "run.pth").keys() == weights.keys()


@torch.no_grad()
def test_absent_parts_only_matter_when_used(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    kept = {key: value for key, value in weights.items() if not key.startswith(("refiner.", "project_seg."))}
    model = build_model("rvm-mobilenetv3", save(kept, tmp_path / "matting.pth"))
    src = torch.rand(1, 3, 64, 64)
    assert len(model(src)) == 6
    assert model.state_dict().keys() == kept.keys()
    with pytest.raises(CheckpointError, match="matting.pth: no weights for refiner.*downsample ratio 1"):
        model(src, downsample_ratio=0.5)
    with pytest.raises(CheckpointError, match="no weights for project_seg"):
        model(src, segmentation_pass=True)


def test_fast_guided_filter_skips_refiner_weights(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save(weights, tmp_path / "deep.safetensors")
    model = build_model("rvm-mobilenetv3", path, refiner="fast_guided_filter")
    assert not isinstance(model.refiner, AbsentPart)
    assert not any(key.startswith("refiner.") for key in model.state_dict())


def test_real_checkpoint(shared_data: Path) -> None:
    path = shared_data / "rvm_mobilenetv3.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    model = build_model("rvm-mobilenetv3", path)
    assert isinstance(model.refiner, AbsentPart)
    assert find_model(read_checkpoint(path)) == "rvm-mobilenetv3"


def test_finds_the_model_from_the_keys() -> None:
    assert find_model(RVM("resnet50").state_dict()) == "rvm-resnet50"
    assert find_model(["conv.weight"]) is None


def test_names_the_other_model(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = save(weights, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match="holds rvm-mobilenetv3 weights, not rvm-resnet50"):
        build_model("rvm-resnet50", path)


def without_aspp(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith("aspp.")}


def with_stranger(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "extra.weight": torch.zeros(1)}


def with_wide_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "project_mat.conv.weight": torch.zeros(5, 16, 1, 1)}


def with_nan(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "project_mat.conv.bias": torch.full((4,), torch.nan)}


def of_another_network(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"fc.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_aspp, r"6 of 380 rvm-mobilenetv3 tensors are missing, first 'aspp.aspp1.0.weight'"),
        (with_stranger, r"1 tensors are not part of rvm-mobilenetv3, first 'extra.weight'"),
        (with_wide_head, r"'project_mat.conv.weight' has shape \(5, 16, 1, 1\), .*\(4, 16, 1, 1\)"),
        (with_nan, r"'project_mat.conv.bias' holds values that are not finite"),
        (of_another_network, r"holds no rvm-mobilenetv3 weights; its first tensor is 'fc.weight'"),
    ],
)
def test_says_what_does_not_fit(tmp_path: Path, weights: dict[str, Tensor], damage, message: str) -> None:
    path = save(damage(weights), tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build_model("rvm-mobilenetv3", path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_damaged_files(tmp_path: Path, weights: dict[str, Tensor], suffix: str, share: float) -> None:
    path = save(weights, tmp_path / f"cut{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_pickle_that_ends_in_a_text(tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(b"\x80\x02}q\x00X")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_a_zip_in_many_parts(tmp_path: Path) -> None:
    path = tmp_path / "parts.pth"
    torch.save({"x": torch.zeros(1)}, path)
    content = bytearray(path.read_bytes())
    locator = content.rindex(b"PK\x06\x07")
    content[locator + 16] = 9
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


def test_runs_no_code_in_a_file(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    torch.save({"weight": Payload()}, tmp_path / "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"weight": Payload()}))
    for name in ("new.pth", "old.pth"):
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_refuses_other_files(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "script.pth")
    (tmp_path / "net.onnx").write_bytes(b"")
    for name, message in (
        ("absent.pth", "no such checkpoint file"),
        ("net.onnx", "suffix '.onnx' is unknown"),
        ("list.pth", "not a table of named tensors"),
        ("script.pth", "TorchScript"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


def save(weights: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        torch.save(weights, path)
    return path
