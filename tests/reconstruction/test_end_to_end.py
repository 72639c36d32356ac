import itertools
from collections.abc import Callable

import pytest
import torch

from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.passes.reconstruct_blocks import own_weights
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.reconstruction.checkpoints import Checkpoints
from mattecompress.reconstruction.end_to_end import EndToEnd, Learned, Outcome, Schedule
from mattecompress.reconstruction.unrolled import FlowTerm, Piece
from mattecompress.running.feed import Feed
from tests.reconstruction.nets import FedBack, captured, clips_for

RATE = 1e-2


@pytest.fixture(scope="module")
def quantized() -> Program:
    text = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=4 activations=8 first=none}"
    program = parse_pipeline(text).run(captured(FedBack), Context(clips=clips_for(FedBack)))
    own_weights(program)
    return program


def pieces(program: Program) -> list[Piece]:
    feed = Feed(program, clips_for(FedBack))
    truth = torch.rand(4, 1, 16, 24, generator=torch.Generator().manual_seed(1))
    return [Piece([feed.frame(clip, t) for t in range(4)], feed.zeros(clip), truth) for clip in range(2)]


@pytest.mark.parametrize("apply_to", ["output", "weights"])
def test_no_step_is_too_large_for_what_it_changes(quantized: Program, apply_to: str) -> None:
    """Scales of 8-bit activations are far below 1: a step of the rate itself would throw them away."""
    learned = Learned(quantized, apply_to)
    before = {name: value.detach().clone() for name, value in learned.parameters.items()}
    assert min(float(value) for name, value in before.items() if name.endswith(".scale")) < RATE
    work = EndToEnd(
        learned, pieces(quantized), Schedule(1, 2, RATE, FlowTerm(0.0), 0), Checkpoints(None, "", "")
    )
    work.learn(lambda done, total, what: None)
    changes = {
        name: float((value.detach() - before[name]).abs()) for name, value in learned.parameters.items()
    }
    for name, change in changes.items():
        assert 0 < change <= 1.001 * RATE * (float(before[name]) or 1.0)
    if apply_to == "weights":
        for call in quantized.called_modules(FakeQuantize):
            if (beta := changes.get(f"{call.target}.beta")) is not None:
                assert beta < RATE * float(quantized.tensor(call.all_input_nodes[0]).detach().abs().mean())


def test_goes_back_to_the_best_epoch(quantized: Program) -> None:
    """Steps this long leave every good place again."""
    schedule = Schedule(5, 1, 0.3, FlowTerm(0.0), 0)
    work = EndToEnd(Learned(quantized, "output"), pieces(quantized), schedule, Checkpoints(None, "", ""))
    work.learn(lambda done, total, what: None)
    assert len(work.losses) == 6 and min(work.losses) == work.loss(work.pieces) < work.losses[-1]


def looking(*means: float) -> Callable[[list[Piece]], torch.Tensor]:
    """Losses of two pieces, alike, for one look after another."""
    left = iter(means)
    return lambda pieces: torch.full((2,), next(left))


@pytest.mark.parametrize(("after", "certain"), [((0.7, 0.95, 0.8), False), ((0.7, 0.85, 0.8), True)])
def test_what_is_better_by_chance_is_not_certain(
    quantized: Program, monkeypatch: pytest.MonkeyPatch, after: tuple[float, ...], certain: bool
) -> None:
    schedule = Schedule(2, 2, RATE, FlowTerm(0.0), 0)
    work = EndToEnd(Learned(quantized, "output"), pieces(quantized), schedule, Checkpoints(None, "", ""))
    seen: list[list[Piece]] = []
    losses = looking(1.0, 0.6, 0.7, 1.0, 0.9, 1.1, *after)

    def look(pieces: list[Piece]) -> torch.Tensor:
        seen.append(pieces)
        return losses(pieces)

    monkeypatch.setattr(work, "losses_of", look)
    outcome = work.learn(lambda done, total, what: None)
    assert outcome == Outcome(pytest.approx(1.0), pytest.approx(sum(after) / 3), certain)
    frames = [looked[0].frames[0]["src"] for looked in seen]
    assert torch.equal(frames[0], frames[2])
    for one, other in itertools.combinations(frames[2:], 2):
        assert 0 < (one - other).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("before", "after", "certain"),
    [
        ((1.0, 1.0, 9.0), (1.1, 1.1, 2.0), False),
        ((1.0, 1.0, 9.0), (1.0, 1.1, 2.0), True),
        ((1.0, 1.0, 9.0), (0.9, 1.1, 2.0), True),
    ],
)
def test_what_few_pieces_gain_and_more_lose_is_not_certain(
    quantized: Program,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[float, ...],
    after: tuple[float, ...],
    certain: bool,
) -> None:
    schedule = Schedule(1, 2, RATE, FlowTerm(0.0), 0)
    work = EndToEnd(Learned(quantized, "output"), pieces(quantized), schedule, Checkpoints(None, "", ""))
    losses = iter([before, after, *[before] * 3, *[after] * 3])
    monkeypatch.setattr(work, "losses_of", lambda pieces: torch.tensor(next(losses)))
    assert work.learn(lambda done, total, what: None).certain is certain


def test_where_no_epoch_is_better_nothing_is_compared(
    quantized: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule(2, 2, RATE, FlowTerm(0.0), 0)
    work = EndToEnd(Learned(quantized, "output"), pieces(quantized), schedule, Checkpoints(None, "", ""))
    before = {name: value.detach().clone() for name, value in work.parameters.items()}
    monkeypatch.setattr(work, "losses_of", looking(1.0, 1.1, 1.2))
    assert work.learn(lambda done, total, what: None) == Outcome(1.0, 1.0, certain=False)
    assert all(torch.equal(before[name], value) for name, value in work.parameters.items())


def test_learns_the_same_with_any_number_of_threads(
    quantized: Program, set_threads: Callable[[int], None]
) -> None:
    found = []
    for count in (1, 2):
        set_threads(count)
        learned = Learned(quantized, "output")
        schedule = Schedule(1, 2, RATE, FlowTerm(0.0), 0)
        EndToEnd(learned, pieces(quantized), schedule, Checkpoints(None, "", "")).learn(lambda *_: None)
        found.append(learned.parameters)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
