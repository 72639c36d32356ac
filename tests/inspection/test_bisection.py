import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mattecompress import api
from mattecompress.data.clips import procedural_clip
from mattecompress.inspection.bisection import bisect, output_error, run_clip
from mattecompress.pipeline import Context, Pass, Pipeline
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program

CLIP = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(2))
conv2d = torch.ops.aten.conv2d.default


@dataclass(frozen=True)
class Spoil(Pass):
    """Rewrite every convolution, some of them wrongly."""

    wrong: tuple[int, ...] = (1,)
    name: ClassVar[str] = "spoil"

    def apply(self, program: Program, context: Context) -> str | None:
        for number, node in enumerate(program.find(conv2d)):
            with program.graph.inserting_after(node):
                new = program.graph.call_function(conv2d, node.args, node.kwargs)
            program.replace(node, new)
            if number in self.wrong:
                with program.graph.inserting_after(new):
                    doubled = program.graph.call_function(torch.ops.aten.add.Tensor, (new, new))
                new.replace_all_uses_with(doubled, delete_user_cb=lambda user, own=doubled: user is not own)
                doubled.meta["facts"] = new.meta["facts"]
        return "all"


def planted(wrong: tuple[int, ...]) -> Pipeline:
    before, after = parse_pipeline("canonicalize,partition-blocks"), parse_pipeline("fold-batch-norm")
    return Pipeline((*before.passes, Spoil(wrong), *after.passes))


@pytest.mark.parametrize(("wrong", "name"), [((1,), "conv2d_1"), ((2,), "conv2d_2"), ((1, 2), "conv2d_1")])
def test_finds_the_pass_and_the_node(soft: Program, wrong: tuple[int, ...], name: str) -> None:
    seen = []
    found = bisect(soft, planted(wrong), CLIP, 1e-4, report=lambda step: seen.append(step.text))
    assert found.number == 3 == len(found.steps) and found.steps[-1].text == str(Spoil(wrong))
    assert [step.text for step in found.steps] == seen
    assert found.culprit is not None
    assert found.culprit.without <= 1e-4 < found.culprit.error
    line, _ = found.culprit.lines
    assert "aten.add" in line and f"made=spoil({name})" in line


def test_finds_nothing_where_all_is_well(soft: Program) -> None:
    found = bisect(soft, planted(()), CLIP, 1e-4)
    assert (found.number, found.culprit, len(found.steps)) == (None, None, 4)
    assert all(step.error < 1e-5 for step in found.steps)


def test_an_open_program_is_measured_at_the_clips_size(soft_open: Program) -> None:
    found = bisect(soft_open, planted((1,)), CLIP, 1e-4)
    assert found.culprit is not None and "made=spoil(conv2d_1)" in found.culprit.lines[0]


def test_json_has_no_infinity(soft: Program) -> None:
    spoilt = soft.clone()
    spoilt.graph_module.get_parameter("head.weight").data[:] = torch.nan
    assert output_error(run_clip(spoilt, CLIP), run_clip(soft, CLIP)) == float("inf")


@pytest.fixture(scope="module")
def shipped() -> Program:
    """RVM with the weights that come along: with random ones, next to nothing of a layer reaches the outputs."""
    return api.opt(api.capture("rvm-mobilenetv3", size=(64, 96)), "canonicalize")


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 40, 77])
def test_finds_a_planted_error_in_rvm_within_two_minutes(shipped: Program, number: int) -> None:
    clip = procedural_clip(7, 0, 2, 64, 96).frames
    start = time.perf_counter()
    found = bisect(shipped, planted((number,)), clip, 1e-3)
    assert time.perf_counter() - start < 120
    assert found.number == 3
    assert found.culprit is not None
    assert f"made=spoil({shipped.find(conv2d)[number].name})" in found.culprit.lines[0]
