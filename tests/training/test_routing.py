"""A routed student that learns from its ViTMatte in the training loop."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.models import build_model
from mattecompress.models.signatures import trimap_signature
from mattecompress.modules.routed_attention import TokenChoice
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.signature import Signature
from mattecompress.training.beginning import build_network, build_teacher
from mattecompress.training.evaluation import HeldOut
from mattecompress.training.loop import Run, train
from mattecompress.training.network import UnsupportedPassError
from mattecompress.training.rates import LayerRates, parameter_groups
from mattecompress.training.recipe import Recipe, Routing, Stage
from mattecompress.training.recipes import find_recipe
from mattecompress.training.state import TrainingError, save_weights
from mattecompress.training.trimap_losses import compression_loss, distillation_loss, trimap_matting_loss
from mattecompress.training.trimap_network import TrimapProgramNetwork
from mattecompress.training.trimap_objective import TrimapObjective
from mattecompress.training.world import World
from tests.processes import kill_at, start

FIRST = Stage(3, 2, 1, 64, 64, LayerRates(1e-3, 0.9, 12), bfloat16=False, routing=Routing())
TINY = Recipe("mematte-tiny", (FIRST,), weight_decay=0.1, teacher="vitmatte-tiny", erosion=4)
FEW = HeldOut(clips=1, frames=2, height=64, width=64)
ALONE = World(0, 1, "cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_weights(build_model("vitmatte-tiny", untrained=True), path)
    return path


@pytest.fixture(scope="module")
def whole_run(teacher: Path, tmp_path_factory: pytest.TempPathFactory):
    return train(TINY, tmp_path_factory.mktemp("whole"), seed=3, teacher=teacher, held_out=FEW, quiet=True)


def test_goes_on_exactly_where_it_stopped(whole_run, teacher: Path, tmp_path: Path) -> None:
    for steps in (1, 2):
        torch.manual_seed(steps)
        assert train(TINY, tmp_path, seed=3, teacher=teacher, stop_after=steps, quiet=True) is None
    resumed = train(TINY, tmp_path, seed=3, teacher=teacher, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses
    assert resumed.weights.read_bytes() == whole_run.weights.read_bytes()


@pytest.mark.slow
def test_goes_on_after_kill(whole_run, teacher: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from tests.training.test_routing import TINY, FEW; "
        "from mattecompress.training.loop import train; "
        f"train(TINY, Path({str(tmp_path)!r}), seed=3, teacher=Path({str(teacher)!r}), save_every=1, "
        "held_out=FEW, quiet=True)"
    )
    kill_at("checkpoint-*", tmp_path, start("-c", script))
    resumed = train(TINY, tmp_path, seed=3, teacher=teacher, held_out=FEW, quiet=True)
    assert resumed.losses == whole_run.losses


def test_result_is_a_checkpoint_with_its_share(whole_run) -> None:
    alpha = build_model("mematte-tiny", whole_run.weights)(
        torch.rand(1, 3, 64, 64), torch.full((1, 1, 64, 64), 0.5)
    )
    assert alpha.shape == (1, 1, 64, 64) and alpha.isfinite().all()
    record = json.loads(whole_run.record.read_text())
    assert all(0 <= record["held_out"][f"{kind}_share"] <= 1 for kind in ("routed", "drawn"))
    assert set(record["held_out"]["trimap"]) == {"mad", "mse", "dtssd"}
    assert record["taught_by"]["file"] == "weights.safetensors"


def test_begins_as_its_teacher(teacher: Path) -> None:
    guide = build_network("vitmatte-tiny", 0, teacher)
    student, given = (
        build_network("mematte-tiny", 0, None, guide).module.state_dict(),
        guide.module.state_dict(),
    )
    assert all(torch.equal(student[name], value) for name, value in given.items() if name in student)
    assert {name for name in given if name not in student} == {
        f"backbone.encoder.layer.{block}.attention.rel_pos_{axis}" for block in (2, 5, 8, 11) for axis in "hw"
    }


def test_the_loss_is_the_sum_of_its_terms(teacher: Path) -> None:
    guide = build_network("vitmatte-tiny", 0, teacher)
    run = Run(TINY, 3, ALONE, build_network("mematte-tiny", 0, None, guide), teacher=guide)
    objective = run.objective
    assert isinstance(objective, TrimapObjective)
    run.state.model.train()
    frames, true, trimap = objective._pictures("matting", FIRST, 0)
    with objective._seeded(0):
        answer = objective.network.answer(frames, trimap)
    taught = guide.answer(frames, trimap).features
    expected = (
        trimap_matting_loss(answer.alpha, true, trimap)["total"]
        + distillation_loss(answer.features, taught)
        + compression_loss(answer.share, 0.25)
    )
    (loss,) = objective.losses(FIRST, 0)
    torch.testing.assert_close(loss, expected)
    assert answer.share.requires_grad


def test_draws_depend_on_the_step_and_disturb_nobody(teacher: Path) -> None:
    guide = build_network("vitmatte-tiny", 0, teacher)
    run = Run(TINY, 3, ALONE, build_network("mematte-tiny", 0, None, guide), teacher=guide)
    run.state.model.train()
    before = torch.get_rng_state()
    losses = [next(run.objective.losses(FIRST, step)).item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(torch.get_rng_state(), before)


class Matter(nn.Module):
    """A matte, and what attach-distillation adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 1, 1)

    def forward(self, image: Tensor, trimap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.layer(torch.cat([image, trimap], 1))
        return features.sigmoid(), features, features * 2


def test_a_program_needs_no_teacher_but_its_own(teacher: Path, tmp_path: Path) -> None:
    inputs = trimap_signature((64, 64), "n").inputs
    program = capture(Matter(), Signature(inputs, ("alpha", "features", "taught")), "matter")
    network = TrimapProgramNetwork(program)
    assert build_teacher(find_recipe("mematte-small"), "mematte-small", None, network) is None
    with pytest.raises(TrainingError, match="the network brings its own teacher"):
        train(TINY, tmp_path, network=network, teacher=teacher, quiet=True)
    with pytest.raises(UnsupportedPassError, match="takes frames nx3x64x64, but is given 2x3x80x64"):
        network.answer(torch.rand(2, 3, 80, 64), torch.rand(2, 1, 80, 64))
    program.keep_outputs("alpha")
    with pytest.raises(TrainingError, match="recipe tiny learns from a teacher"):
        train(TINY, tmp_path, name="tiny", network=TrimapProgramNetwork(program), quiet=True)


@pytest.mark.slow
def test_a_program_learns_from_the_teacher_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = build_model("vitmatte-tiny", untrained=True)
    program = parse_pipeline("mematte,attach-distillation").run(
        capture(vit, trimap_signature((64, 64), "n"), "vitmatte-tiny")
    )
    before = program.clone().state_dict()
    recipe = replace(TINY, stages=(replace(FIRST, steps=2),))
    record = train(recipe, tmp_path, network=TrimapProgramNetwork(program), held_out=FEW, quiet=True)
    assert 0 <= record.held_out["routed_share"] <= 1
    moved = {name for name, value in program.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".router." in name for name in moved) and any(".refinement." in name for name in moved)
    assert not any(name.startswith("teacher.") for name in moved)


def test_says_what_a_network_lacks(teacher: Path) -> None:
    with pytest.raises(TrainingError, match="routes no tokens or shows no features"):
        Run(TINY, 3, ALONE, build_network("vitmatte-tiny", 0, teacher)).advance()
    with pytest.raises(TrainingError, match="attach one with attach-distillation"):
        Run(TINY, 3, ALONE, build_network("mematte-tiny", 0, None)).advance()


def test_rates_fall_layer_by_layer() -> None:
    module = build_model("mematte-tiny", untrained=True)
    rates = LayerRates(1.0, 0.5, 12)
    named = {
        "backbone.embeddings.position_embeddings": (2**-13, False),
        "backbone.embeddings.projection.weight": (2**-13, True),
        "backbone.encoder.layer.0.attention.qkv.weight": (2**-12, True),
        "backbone.encoder.layer.11.norm1.weight": (0.5, False),
        "backbone.encoder.layer.11.refinement.fc1.weight": (0.5, True),
        "backbone.encoder.layer.11.residual.conv1.weight": (1.0, True),
        "backbone.encoder.layer.11.residual.norm1.weight": (1.0, False),
        "backbone.encoder.layer.2.router.out_conv.0.weight": (1.0, True),
        "backbone.encoder.layer.2.router.in_conv.0.weight": (1.0, False),
        "decoder.convstream.convs.0.batch_norm.weight": (1.0, False),
        "decoder.matting_head.matting_convs.0.weight": (1.0, True),
    }
    found = {
        id(parameter): (rates.of(group["part"]), group["weight_decay"] == 0.1)
        for group in parameter_groups(module, rates, 0.1)
        for parameter in group["params"]
    }
    assert len(found) == len(list(module.parameters()))
    assert {name: found[id(module.get_parameter(name))] for name in named} == named


def test_paper_lengths() -> None:
    steps = {name: [stage.steps for stage in find_recipe(name).stages] for name in ("vitmatte", "mematte")}
    per_epoch = 43100 / 16 / 2
    assert steps == {
        "vitmatte": [
            int(per_epoch * 30),
            int(per_epoch * 90) - int(per_epoch * 30),
            int(per_epoch * 100) - int(per_epoch * 90),
        ],
        "mematte": [
            int(per_epoch * 6),
            int(per_epoch * 26) - int(per_epoch * 6),
            int(per_epoch * 30) - int(per_epoch * 26),
        ],
    }


def test_noise_falls_in_the_last_part_of_a_stage() -> None:
    falling = Routing(noisy=0.5)
    assert [falling.noise(done) for done in (0.0, 0.5, 0.75)] == [1.0, 1.0, 0.5]
    assert 0 < falling.noise(399 / 400) < 0.01
    assert {Routing().noise(done) for done in (0.0, 0.5, 0.999)} == {1.0}


def test_without_noise_the_draw_is_what_inference_decides() -> None:
    choice, scores = TokenChoice(), torch.randn(2, 7, 9, 2).log_softmax(-1).requires_grad_()
    choice.noise = 1e-3
    drawn = choice(scores)
    sure = (scores[..., 0] - scores[..., 1]).abs() > 0.05
    assert torch.equal(drawn[..., 0][sure], (scores[..., 0] > scores[..., 1]).float()[sure])
    (gradient,) = torch.autograd.grad(drawn.sum(), scores)
    soft = scores.detach().exp()[..., 0]
    torch.testing.assert_close(gradient[..., 0], soft * (1 - soft), atol=1e-2, rtol=0)


@pytest.mark.slow
def test_the_drawn_share_goes_to_its_target_while_the_loss_falls() -> None:
    """`mematte-small` on smaller pictures, with a teacher of random weights and all of the noise to the end."""
    recipe = find_recipe("mematte-small")
    routing = Routing(distillation=10.0, compression=60.0)
    stage = replace(recipe.stages[0], steps=80, height=64, width=64, routing=routing)
    guide = build_network("vitmatte-tiny", 1, None)
    short = replace(recipe, stages=(stage,), warmup=10)
    run = Run(short, 3, ALONE, build_network("mematte-tiny", 0, None, guide), teacher=guide)
    shares: list[float] = []
    for part in run.state.model.modules():
        if isinstance(part, TokenChoice):
            part.register_forward_hook(lambda module, inputs, drawn: shares.append(drawn.mean().item()))
    for _ in range(stage.steps):
        run.advance()
    routers, last = len(shares) // stage.steps, 20
    assert mean(shares[: 2 * routers]) > 0.4
    assert abs(mean(shares[-last * routers :]) - 0.25) < 0.05
    assert mean(run.state.losses[-last:]) < 0.7 * mean(run.state.losses[:last])
