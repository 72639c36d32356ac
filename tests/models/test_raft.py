from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from mattecompress.models.checkpoints import CheckpointError
from mattecompress.models.raft import STRIDE, Correlation, Raft, convex_upsample, large, load_raft, small
from mattecompress.models.rvm import mobilenetv3


@pytest.fixture(scope="module")
def network(raft_weights: Path) -> Raft:
    return load_raft(raft_weights)


def texture(cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    grid = torch.rand(1, 3, *cells, generator=torch.Generator().manual_seed(1))
    return F.interpolate(grid, size, mode="bicubic").clamp(0, 1)


def shifted(x: int, y: int, height: int = 192, width: int = 240) -> tuple[Tensor, Tensor]:
    """Two pictures; what is at a place in the first is (x, y) pixels further in the second."""
    whole = texture((20, 24), (height + 48, width + 48))
    first = whole[..., 24 : 24 + height, 24 : 24 + width]
    return first, whole[..., 24 - y : 24 - y + height, 24 - x : 24 - x + width]


@pytest.mark.parametrize(("build", "parameters"), [(small, 990_162), (large, 5_257_536)])
def test_has_the_published_parameters(build: Callable[[], Raft], parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build().parameters()) == parameters


def test_names_and_shapes_are_those_of_the_checkpoint(raft_weights: Path) -> None:
    held = torch.load(raft_weights, map_location="cpu", weights_only=True)
    shapes = {name.removeprefix("module."): value.shape for name, value in held.items()}
    assert shapes == {name: value.shape for name, value in small().state_dict().items()}


def test_the_large_one_names_its_parts_alike() -> None:
    names = set(large().state_dict())
    shared = {name for name in small().state_dict() if ".gru." not in name and ".conv3." not in name}
    assert shared < names
    assert {
        "cnet.layer2.0.norm3.running_var",
        "cnet.layer2.0.downsample.1.running_var",
        "update_block.encoder.convc2.weight",
        "update_block.gru.convq2.weight",
        "update_block.mask.2.bias",
    } < names
    assert not any("norm" in name for name in names if name.startswith("fnet"))


@pytest.mark.parametrize(("x", "y"), [(5, 0), (0, 5), (-6, 3), (2, -9), (0, 0)])
def test_finds_a_known_shift(network: Raft, x: int, y: int) -> None:
    flow = network(*shifted(x, y))
    assert flow.shape == (1, 2, 192, 240)
    error = (flow - torch.tensor([x, y]).view(1, 2, 1, 1)).norm(dim=1)
    assert error[:, 24:-24, 24:-24].mean() < 0.25


def test_takes_any_size_and_batch(network: Raft) -> None:
    pairs = [shifted(3, -2, 101, 131), shifted(-3, 2, 101, 131)]
    both = network(*(torch.cat(pictures) for pictures in zip(*pairs, strict=True)))
    assert both.shape == (2, 2, 101, 131)
    for flow, pair, sign in zip(both, pairs, (1, -1), strict=True):
        torch.testing.assert_close(flow[None], network(*pair), rtol=0, atol=1e-2)
        inner = flow[:, 24:-24, 24:-24].mean((1, 2))
        torch.testing.assert_close(inner, sign * torch.tensor([3.0, -2.0]), rtol=0, atol=0.5)
    assert network(torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24)).isfinite().all()


def test_looks_up_by_the_definition() -> None:
    """Each value against its dot product; places outside count 0, and columns of the window go slowest."""
    first, second = torch.randn(2, 1, 5, 8, 9, generator=torch.Generator().manual_seed(0)).unbind()
    radius, x, y = 1, 2, 6
    places = torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(1, 2, 8, 9)
    found = Correlation(first, second, radius).look_up(places).view(4, 3, 3, 8, 9)
    finest = torch.einsum("chw,cyx->hwyx", first[0], F.pad(second[0], (1, 1, 1, 1))) / 5**0.5
    expected = finest[..., y : y + 3, x : x + 3].permute(3, 2, 0, 1)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)
    halved = torch.einsum("chw,cyx->hwyx", first[0], F.avg_pool2d(second[0], 2)) / 5**0.5
    torch.testing.assert_close(found[1, 1, 1], halved[..., y // 2, x // 2], rtol=0, atol=1e-5)


def test_upsampling_picks_neighbours() -> None:
    flow = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    logits = torch.full((1, 9, STRIDE, STRIDE, 4, 5), -1e4)
    logits[:, 4] = 0
    logits[:, 4, 2, 7] = -1e4
    logits[:, 5, 2, 7] = 0
    fine = convex_upsample(flow, logits.flatten(1, 3)).view(1, 2, 4, STRIDE, 5, STRIDE)
    torch.testing.assert_close(fine[:, :, :, 0, :, 0], flow)
    torch.testing.assert_close(fine[:, :, :, 7, :, 2], flow)
    torch.testing.assert_close(fine[:, :, :, 2, :, 7], F.pad(flow, (0, 1))[..., 1:])


def test_the_large_one_computes_and_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = large().eval()
    pictures = torch.rand(2, 1, 3, 70, 90).unbind()
    held = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    torch.save(held, tmp_path / "large.pth")
    safetensors.torch.save_file(held, tmp_path / "large.safetensors")
    flow = model(*pictures)
    assert flow.shape == (1, 2, 70, 90) and flow.isfinite().all()
    for name in ("large.pth", "large.safetensors"):
        assert torch.equal(load_raft(tmp_path / name)(*pictures), flow)


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    def saved(tensors: dict[str, Tensor]) -> Path:
        torch.save(tensors, tmp_path / "given.pth")
        return tmp_path / "given.pth"

    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_raft(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"given\.pth: holds no RAFT weights under the authors' names"):
        load_raft(saved(mobilenetv3().state_dict()))
    whole = small().state_dict()
    with pytest.raises(CheckpointError, match=r"1 of 106 raft-small tensors are missing.*fnet\.conv2\.bias"):
        load_raft(saved({name: value for name, value in whole.items() if name != "fnet.conv2.bias"}))
    with pytest.raises(CheckpointError, match="1 tensors are not part of raft-small, first 'more'"):
        load_raft(saved({**whole, "more": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"'fnet\.conv2\.bias' has shape \(1,\)"):
        load_raft(saved({**whole, "fnet.conv2.bias": torch.zeros(1)}))
