"""RVM in the training loop computes RVM, and its clamp lets gradients lead inward."""

from pathlib import Path

import pytest
import torch

from mattecompress.api import capture
from mattecompress.models.bimatting import bivm
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.loop import train
from mattecompress.training.network import (
    BiMattingNetwork,
    InwardClamp,
    ProgramNetwork,
    RVMNetwork,
    UnsupportedPassError,
)
from mattecompress.training.recipes import Rates, Recipe, Stage


@pytest.mark.parametrize("ratio", [1, 0.5])
@torch.no_grad()
def test_gives_the_values_of_rvm(ratio: float) -> None:
    module = RVM().eval()
    frames = torch.rand(2, 3, 3, 64, 96)
    fgr, pha = RVMNetwork(module).matte(frames, ratio)
    expected = module(frames, downsample_ratio=ratio)
    assert torch.equal(fgr, expected[0])
    assert torch.equal(pha, expected[1])
    logits = RVMNetwork(module).segment(frames)
    assert torch.equal(logits, module(frames, segmentation_pass=True)[0])


@pytest.mark.parametrize("ratio", [1, 0.5])
@torch.no_grad()
def test_bimatting_shows_what_a_loss_may_weigh(ratio: float) -> None:
    torch.manual_seed(0)
    module = bivm().eval()
    frames = torch.rand(2, 2, 3, 64, 96)
    answer = BiMattingNetwork(module).answer(frames, ratio)
    expected = module(frames, downsample_ratio=ratio)
    assert torch.equal(answer.foreground, expected[0]) and torch.equal(answer.alpha, expected[1])
    if ratio == 1:
        assert torch.equal(answer.coarse[0], expected[2]) and torch.equal(answer.coarse[1], expected[3])
        features = module.backbone(frames.flatten(0, 1))
        assert all(torch.equal(*pair) for pair in zip(answer.features, features, strict=True))
        assert all(
            torch.equal(*pair)
            for pair in zip(BiMattingNetwork(module).features(frames), features, strict=True)
        )
    assert answer.mask.shape == (4, 1, int(64 * ratio) // 16, int(96 * ratio) // 16)


@torch.no_grad()
def test_a_program_shows_its_taps() -> None:
    torch.manual_seed(0)
    module = bivm().eval()
    tapped = parse_pipeline("attach-mimicking").run(
        capture("bivm", checkpoint=None, untrained=True, size=(32, 48))
    )
    module.load_state_dict(tapped.state_dict(), strict=False)
    frames = torch.rand(1, 2, 3, 32, 48)
    theirs, ours = BiMattingNetwork(module).answer(frames), ProgramNetwork(tapped).answer(frames)
    assert len(ours.features) == 4
    seen = [(*answer.coarse, *answer.features, answer.mask) for answer in (ours, theirs)]
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_clamp_lets_gradients_lead_inward_only() -> None:
    x = torch.tensor([-1.0, -1.0, 0.5, 0.5, 2.0, 2.0], requires_grad=True)
    downhill = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    y = InwardClamp.apply(x)
    y.backward(-downhill)
    assert y.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert x.grad.tolist() == [-1, 0, -1, 1, 0, 1]


@pytest.fixture(scope="module")
def module() -> RVM:
    return RVM().eval()


@pytest.fixture(scope="module")
def program(module: RVM) -> Program:
    return capture(module, rvm_signature("rvm-mobilenetv3"))


@torch.no_grad()
def test_program_carries_its_states_over_a_clip(module: RVM, program: Program) -> None:
    frames = torch.rand(2, 3, 3, 64, 96)
    program.graph_module.eval()
    fgr, pha = ProgramNetwork(program).matte(frames)
    expected = module(frames)
    torch.testing.assert_close(fgr, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(pha, expected[1], rtol=0, atol=1e-5)


def test_a_program_learns_from_alphas_below_0(program: Program) -> None:
    dark = program.clone()
    bias = dark.graph_module.get_parameter("project_mat.conv.bias")
    bias.data.fill_(-100)
    _, pha = ProgramNetwork(dark).matte(torch.rand(1, 1, 3, 64, 64))
    (-pha.sum()).backward()
    assert pha.max() == 0 and bias.grad[3] < 0


def test_program_says_what_it_cannot_do(module: RVM, program: Program) -> None:
    frames = torch.rand(1, 1, 3, 64, 64)
    with pytest.raises(UnsupportedPassError, match="downsample ratio is fixed"):
        ProgramNetwork(program).matte(frames, 0.5)
    with pytest.raises(UnsupportedPassError, match="no segmentation pass"):
        ProgramNetwork(program).segment(frames)
    fixed = capture(module, rvm_signature("rvm-mobilenetv3", (96, 64)))
    with pytest.raises(UnsupportedPassError, match="takes frames 1x3x96x64, but is given 1x3x64x64"):
        ProgramNetwork(fixed).matte(frames)


def test_held_out_clips_of_another_size_are_refused_before_training(module: RVM, tmp_path: Path) -> None:
    recipe = Recipe("fixed", (Stage(1, 1, 2, 64, 64, Rates(1e-3, 1e-3, 1e-3)),))
    fixed = ProgramNetwork(capture(module, rvm_signature("rvm-mobilenetv3", (64, 64))))
    with pytest.raises(UnsupportedPassError, match="takes frames 1x3x64x64, but is given 1x3x144x256"):
        train(recipe, tmp_path / "run", network=fixed, quiet=True)
    assert not (tmp_path / "run").exists()


def test_program_trains_in_place(program: Program, tmp_path: Path) -> None:
    recipe = Recipe(program.name, (Stage(2, 2, 2, 64, 64, Rates(1e-3, 1e-3, 1e-3)),), average=0.5)
    trained = program.clone()
    few = HeldOut(clips=1, frames=2, height=64, width=64)
    train(recipe, tmp_path, network=ProgramNetwork(trained), held_out=few, quiet=True)
    before, after = program.state_dict(), trained.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert {name.partition(".")[0] for name in moved} >= {"backbone", "aspp", "decoder", "project_mat"}
