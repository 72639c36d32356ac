from dataclasses import dataclass
from typing import ClassVar

import torch
from hypothesis import given
from hypothesis import strategies as st

from mattecompress.facts import Provenance
from mattecompress.pipeline import Context, Pass
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

names = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)


def made(program: Program, kind: str) -> list[str]:
    return [
        str(program.facts(node).made)
        for node in program.operations()
        if kind in str(node.target) and program.facts(node).made
    ]


def run(pipeline: str, program: Program) -> Program:
    return parse_pipeline(pipeline).run(program, Context(clips=[torch.rand(2, 3, 12, 16)]))


@given(names, st.lists(names))
def test_text_round_trips(maker: str, origins: list[str]) -> None:
    made = Provenance(maker, tuple(origins))
    assert Provenance.parse(str(made)) == made


def test_captured_nodes_have_none(tiny: Program) -> None:
    assert all(tiny.facts(node).made is None for node in tiny.operations())


def test_a_node_comes_from_all_whose_place_it_takes(tiny: Program) -> None:
    folded = run("fold-batch-norm", tiny)
    assert made(folded, "conv2d") == ["fold-batch-norm(conv2d,stem_1)"]


def test_origins_reach_through_passes(tiny: Program) -> None:
    lowered = run("mse,lower", tiny)
    assert made(lowered, "quantized_conv2d")[0] == "lower-quantized(conv2d,stem_1)"
    assert made(lowered, "add.Tensor")[0] == "lower-quantized(conv2d,stem_1)"
    assert made(lowered, "sigmoid") == ["lower-functions(sigmoid)"]


def test_what_is_only_added_has_no_origins(tiny: Program) -> None:
    quantized = run("mse", tiny)
    assert set(made(quantized, "quantizer")) == {"quantize()"}
    assert made(quantized, "hardswish") == []


def test_stays_in_the_text(tiny: Program) -> None:
    folded = run("fold-batch-norm", tiny)
    assert " made=fold-batch-norm(conv2d,stem_1)\n" in print_program(folded)
    assert parse_program(print_program(folded), folded.state_dict()) == folded


def test_what_a_pass_was_given_keeps_its_facts(tiny: Program) -> None:
    before = print_program(tiny)
    run("fold-batch-norm", tiny)
    assert print_program(tiny) == before


@dataclass(frozen=True)
class Copy(Pass):
    """Change a copy, then the program."""

    name: ClassVar[str] = "copy"

    def apply(self, program: Program, context: Context) -> str | None:
        other = program.clone()
        for one in (other, program):
            (node,) = one.find(torch.ops.aten.sigmoid.default)
            with one.graph.inserting_after(node):
                new = one.graph.call_function(torch.ops.matte.sigmoid.default, node.args)
            one.replace(node, new)
        assert one.graph_module._replace_hooks and not other.graph_module._replace_hooks
        return "both"


def test_passes_may_copy_the_program(tiny: Program) -> None:
    result = Copy()(tiny).program
    assert made(result, "sigmoid") == ["copy(sigmoid)"]
    assert not result.graph_module._replace_hooks
