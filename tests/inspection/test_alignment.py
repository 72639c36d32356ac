import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.inspection.alignment import align
from mattecompress.inspection.difference import diff
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.signature import Signature


def run(pipeline: str, program: Program) -> Program:
    return parse_pipeline(pipeline).run(program, Context(clips=[torch.rand(1, 3, 12, 16)]))


def renamed(program: Program, seed: int) -> tuple[Program, dict[str, str]]:
    """A copy whose operations have each other's names, and which name became which."""
    copy = program.clone()
    nodes = list(copy.operations())
    order = torch.randperm(len(nodes), generator=torch.Generator().manual_seed(seed)).tolist()
    names = [node.name for node in nodes]
    for node, place in zip(nodes, order, strict=True):
        node.name = names[place]
    return copy, {name: names[place] for name, place in zip(names, order, strict=True)}


def operations(kept: dict[str, str], program: Program) -> dict[str, str]:
    return {old: new for old, new in kept.items() if old not in program.input_names}


def test_a_copy_is_kept(rvm: Program) -> None:
    found = align(rvm, rvm.clone())
    assert found.kept == {node.name: node.name for node in (*rvm.inputs, *rvm.operations())}
    assert (found.replaced, found.removed, found.added) == ((), (), ())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_names_do_not_matter(tiny: Program, seed: int) -> None:
    copy, names = renamed(tiny, seed)
    assert operations(align(tiny, copy).kept, tiny) == names


def test_names_do_not_matter_in_a_large_network(rvm: Program) -> None:
    copy, names = renamed(rvm, 3)
    assert operations(align(rvm, copy).kept, rvm) == names
    assert not diff(rvm, copy).nodes


def test_a_retrained_and_renamed_copy_is_kept(rvm: Program) -> None:
    copy, names = renamed(rvm, 4)
    for parameter in copy.graph_module.parameters():
        parameter.data += 0.1
    assert operations(align(rvm, copy).kept, rvm) == names


def test_another_resolution_is_kept(rvm_open: Program, rvm: Program) -> None:
    found = align(rvm_open, rvm)
    assert not found.added and not found.replaced
    assert {old for old in found.kept if found.kept[old] != old} == set()


class Net(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(layers))
        self.more: nn.Module = nn.Identity()
        for parameter in self.parameters():
            parameter.data = torch.rand(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if number == 1:
                x = self.more(x)
        return x


def test_a_layer_put_into_the_source_shifts_nothing() -> None:
    signature = Signature((("x", (1, 4, 8, 8)),), ("y",))
    net = Net(5)
    before = capture(net, signature, "net")
    net.more = nn.Conv2d(4, 4, 3, padding=1)
    after = capture(net, signature, "net")
    assert [node.name for node in after.operations()].index("conv2d_2") == 4
    found = align(before, after)
    assert found.kept["conv2d_2"] == "conv2d_3" and found.kept["relu_4"] == "relu_4"
    assert (found.added, found.removed, found.replaced) == (("conv2d_2",), (), ())


def test_what_passes_made_takes_the_place_of_its_origins(tiny: Program) -> None:
    found = align(tiny, run("fold-batch-norm", tiny))
    (replaced,) = found.replaced
    assert (replaced.before, replaced.maker) == (("conv2d", "stem_1"), "fold-batch-norm")
    assert found.counterparts[replaced.after[0]] == "stem_1"
    assert not found.added and not found.removed


def test_one_value_stands_for_a_layer_that_was_lowered(tiny: Program) -> None:
    quantized = run("mse", tiny)
    lowered = run("lower", quantized)
    for before in (tiny, quantized):
        found = align(before, lowered)
        layers = [each for each in found.replaced if len(each.after) == 3]
        assert len(layers) == 3
        for each in layers:
            assert [found.counterparts.get(name) for name in each.after] == [None, None, each.before[-1]]


@pytest.mark.parametrize("pipeline", ["mse", "rvm-react", "mse,lower", "fold-batch-norm,cast-half"])
def test_every_node_stands_in_one_place(tiny: Program, pipeline: str) -> None:
    after = run(pipeline.replace("rvm-react", "canonicalize,binarize{method=react}"), tiny)
    found = align(tiny, after)
    old = [*found.kept, *found.removed, *(name for each in found.replaced for name in each.before)]
    new = [*found.kept.values(), *found.added, *(name for each in found.replaced for name in each.after)]
    for program, names in ((tiny, old), (after, new)):
        assert sorted(names) == sorted(node.name for node in (*program.inputs, *program.operations()))
    assert set(found.kept.values()) <= found.counterparts.keys()


def test_is_fast(rvm: Program) -> None:
    after = run("rvm-react", rvm)
    start = time.process_time()
    align(rvm, after)
    assert time.process_time() - start < 2
