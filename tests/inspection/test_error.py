import math

import pytest
import torch

from mattecompress.inspection.alignment import align
from mattecompress.inspection.error import NoReferenceError, measure_errors, without_quantizers
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program, StatePair
from mattecompress.running.stream import Stream

CLIP = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(2))


def run(pipeline: str, program: Program) -> Program:
    return parse_pipeline(pipeline).run(program, Context(clips=[CLIP]))


def test_a_copy_has_no_error(soft: Program) -> None:
    found = measure_errors(soft.clone(), soft, [CLIP])
    assert list(found) == [node.name for node in soft.operations()]
    assert all(error.error == error.own_error == 0 and error.sqnr is None for error in found.values())


def test_own_error_stands_only_where_it_is_made(soft: Program) -> None:
    spoilt = soft.clone()
    spoilt.graph_module.get_parameter("middle.0.weight").data += 0.05
    found = measure_errors(spoilt, soft, [CLIP])
    assert [name for name, error in found.items() if error.own_error] == ["conv2d_1"]
    assert found["conv2d_1"].error == pytest.approx(found["conv2d_1"].own_error)
    assert found["conv2d_2"].error > 0 == found["conv2d_2"].own_error
    assert found["conv2d"].error == 0


def test_accumulated_error_is_that_of_the_outputs_with_states_carried(soft: Program) -> None:
    quantized = run("mse{weights=3 activations=3},lower", soft)
    found = measure_errors(quantized, soft, [CLIP])
    ours, theirs = (
        torch.cat([values["pha"] for values in Stream(program).over(CLIP)]).double()
        for program in (quantized, soft)
    )
    ratio = float((ours - theirs).square().sum() / theirs.square().sum())
    name = quantized.outputs["pha"].name
    assert found[name].sqnr == pytest.approx(-10 * math.log10(ratio))
    assert found[name].reference == soft.outputs["pha"].name


@pytest.mark.parametrize("pipeline", ["mse", "mse,lower", "canonicalize,binarize{method=react},lower"])
def test_every_layer_is_compared(soft: Program, pipeline: str) -> None:
    after = run(pipeline, soft)
    found = measure_errors(after, soft, [CLIP])
    names = {error.reference for error in found.values()}
    convolutions = [node.name for node in soft.find(torch.ops.aten.conv2d.default)]
    assert {"stem_1", *convolutions[1:]} <= names


def test_lowering_adds_no_error(soft: Program) -> None:
    quantized = run("mse", soft)
    lowered = run("lower", quantized)
    found = measure_errors(lowered, quantized, [CLIP], align(quantized, lowered))
    assert all(error.own_error < 1e-5 for error in found.values())


def test_without_quantizers_is_the_float_program(soft: Program) -> None:
    quantized = run("mse", soft)
    exact = without_quantizers(quantized)
    inputs = {"src": CLIP[:1], "r1i": torch.rand(1, 4, 6, 8)}
    assert torch.allclose(exact.run(**inputs)["pha"], soft.run(**inputs)["pha"], atol=1e-6)
    with pytest.raises(NoReferenceError, match="name the program it came from with --reference"):
        without_quantizers(run("lower", quantized))


def test_refuses_a_reference_that_takes_something_else(soft: Program) -> None:
    narrow, renamed, forgetful = (soft.clone() for _ in range(3))
    state = narrow.inputs[1]
    state.meta["facts"] = narrow.facts(state).but(shape=(1, 2, 6, 8))
    with pytest.raises(
        NoReferenceError,
        match=r"input r1i is state f32\[1,4,6,8\] in tiny and state f32\[1,2,6,8\] in its reference tiny",
    ):
        measure_errors(soft, narrow, [CLIP])
    renamed.inputs[1].target = "memory"
    renamed.states = (StatePair("memory", "r1o"),)
    with pytest.raises(
        NoReferenceError, match="r1i is .* in tiny and absent .*: name the program it came from"
    ):
        measure_errors(soft, renamed, [CLIP])
    forgetful.states = ()
    with pytest.raises(
        NoReferenceError, match=r"r1i is state f32.* in tiny and f32\[1,4,6,8\] in its reference"
    ):
        measure_errors(soft, forgetful, [CLIP])
