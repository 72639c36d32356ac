import json
import re
import time
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from mattecompress import api
from mattecompress.capturing.tracing import capture
from mattecompress.inspection.description import short_kind
from mattecompress.inspection.difference import Difference, diff, distance
from mattecompress.models import build_model
from mattecompress.models.signatures import model_signature
from mattecompress.named_pipelines import PIPELINES
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program


def run(pipeline: str, program: Program) -> Program:
    height, width = program.facts(program.inputs[0]).shape[2:]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else (64, 96)
    clip = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    return parse_pipeline(pipeline).run(program, Context(clips=[clip]))


def summary(difference: Difference) -> str:
    """What was done, how often, and in which regions how much."""
    kinds = Counter(
        f"{each.status} by {each.maker or '-'}: {', '.join(each.kinds_before)} -> {', '.join(each.kinds_after)} "
        f"[{', '.join(dict.fromkeys(change.what for change in each.changes))}]"
        for each in difference.nodes
    )
    lines = [*difference.passes, f"kept {difference.kept}", *(f"{n} {kind}" for kind, n in kinds.items())]
    for each in difference.regions:
        counts = (each.kept, each.changed, each.replaced, each.added, each.removed)
        weights = (cost["weight_bits"] / 8 if cost else "?" for cost in (each.before, each.after))
        lines.append(f"{each.region or '-'}: {counts}, bytes of weights {' -> '.join(map(str, weights))}")
    return "\n".join([*lines, ""])


QUICK = ("mse", "rvm-react", "set-resolution{height=64 width=96}", "lower")
SLOW = (
    "mse,lower",
    "brecq{iterations=1 equalize=false}",
    "qdrop{iterations=1 equalize=false}",
    "ptq4vm{weights=3 iterations=1 epochs=8 equalize=false}",
    "rvm-bnn",
    "rvm-dorefa",
    "rvm-recu",
    "bimatting",
    "bivm",
    "rvm-react,lower",
    "bivm,lower",
)
"""Of what is learned, the golden has where and in how many bytes; the numbers would depend on how floats are summed."""
ROUTED = ("sdpa", "mematte", "tome", "dynamicvit", "evit")


def label(pipeline: str) -> str:
    return re.sub(r"{.*}", "", pipeline).replace(",", "-")


def test_each_named_pipeline_has_a_golden() -> None:
    kept = {
        name
        for pipeline in (*QUICK, *SLOW, *ROUTED)
        for name in re.findall(r"[\w-]+", re.sub(r"{.*}", "", pipeline))
    }
    assert kept >= PIPELINES.keys()


def check(golden: Callable[[str], None], rvm_open: Program, rvm: Program, pipeline: str) -> None:
    before = rvm_open if pipeline.startswith("set-resolution") else rvm
    golden(summary(diff(before, run(pipeline, before))))


@pytest.mark.parametrize("pipeline", QUICK, ids=label)
def test_golden(golden: Callable[[str], None], rvm_open: Program, rvm: Program, pipeline: str) -> None:
    check(golden, rvm_open, rvm, pipeline)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", SLOW, ids=label)
def test_golden_of_the_others(
    golden: Callable[[str], None], rvm_open: Program, rvm: Program, pipeline: str
) -> None:
    check(golden, rvm_open, rvm, pipeline)


@pytest.mark.parametrize("pipeline", ROUTED)
def test_golden_of_vitmatte(golden: Callable[[str], None], pipeline: str) -> None:
    pytest.importorskip("transformers")
    from tests.models.vit import tiny_program

    before = tiny_program()
    golden(summary(diff(before, parse_pipeline(pipeline).run(before))))


@pytest.mark.parametrize("pipeline", ROUTED)
def test_a_network_without_attention_stays_as_it_is(rvm: Program, pipeline: str) -> None:
    found = diff(rvm, run(pipeline, rvm))
    assert not found.nodes and found.passes == tuple(map(str, parse_pipeline(pipeline).passes))


def test_a_copy_differs_in_nothing(rvm: Program) -> None:
    found = diff(rvm, rvm.clone())
    assert not found.nodes and found.passes == () and found.kept == len(found.alignment.kept)
    assert all(each.before == each.after for each in found.regions)


def test_a_pass_that_ran_again_is_named_again(tiny: Program) -> None:
    once, thrice = run("canonicalize", tiny), run("canonicalize,canonicalize,canonicalize", tiny)
    assert diff(once, thrice).passes == ("canonicalize", "canonicalize")
    assert diff(once, run("fold-batch-norm,canonicalize", tiny)).passes == ("fold-batch-norm",)
    assert diff(thrice, once).passes == ()


def test_weights_that_moved_are_measured(tiny: Program) -> None:
    after = tiny.clone()
    after.graph_module.get_parameter("head.weight").data *= 1.25
    (found,) = diff(tiny, after).nodes
    (change,) = found.changes
    assert (found.status, found.before, change.what) == ("changed", ("conv2d_2",), "weight")
    assert change.distance == pytest.approx(0.25) and change.before != change.after


def test_arguments_and_operands_that_changed_are_named(tiny: Program) -> None:
    after = tiny.clone()
    (sigmoid,) = after.find(torch.ops.aten.sigmoid.default)
    sigmoid.args = (after.find(torch.ops.aten.relu.default)[0],)
    clamp = after.find(torch.ops.aten.clamp.default)[1]
    clamp.args = (clamp.args[0], 0, 0.5)
    found = {each.before[0]: [change.what for change in each.changes] for each in diff(tiny, after).nodes}
    assert found == {"sigmoid": ["self"], "clamp_1": ["max"]}


def test_json_is_plain(tiny: Program) -> None:
    document = json.loads(json.dumps(api.diff(tiny, run("mse", tiny)).as_json()))
    assert {each["status"] for each in document["nodes"]} == {"replaced", "changed", "added"}
    assert document["totals_after"]["size_mib"] < document["totals_before"]["size_mib"]
    assert document["passes"][-1] == "quantize"


def test_regions_add_up(tiny: Program) -> None:
    found = diff(tiny, run("mse", tiny))
    for key in ("macs", "weight_bits"):
        sums = [sum(cost[key] for each in found.regions if (cost := getattr(each, side))) for side in SIDES]
        totals = [found.totals_before, found.totals_after]
        name = {"macs": "macs", "weight_bits": "size_mib"}[key]
        factor = {"macs": 1, "weight_bits": 8 * 2**20}[key]
        assert sums == pytest.approx([total[name] * factor for total in totals if total])


SIDES = ("before", "after")


def test_distance() -> None:
    assert distance(torch.zeros(2), torch.ones(2)) == pytest.approx(2**0.5)
    assert distance(torch.zeros(2), torch.ones(3)) is None


def test_kinds_are_short() -> None:
    kinds = ("aten.conv2d.default", "matte.quantize.default", "FakeQuantize", "operator.mul")
    assert [short_kind(kind) for kind in kinds] == [
        "conv2d",
        "matte.quantize",
        "FakeQuantize",
        "operator.mul",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["mematte", "sdpa{rows=64}"], ids=label)
def test_vitmatte_takes_seconds(pipeline: str) -> None:
    pytest.importorskip("transformers")
    network = build_model("vitmatte-small", untrained=True).eval()
    before = capture(network, model_signature("vitmatte-small", (1072, 752)), "vitmatte-small")
    after = parse_pipeline(pipeline).run(before)
    assert sum(1 for _ in before.operations()) > 900
    start = time.process_time()
    assert diff(before, after).nodes
    assert time.process_time() - start < 5
