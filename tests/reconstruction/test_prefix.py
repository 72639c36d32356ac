from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.reconstruction.prefix import Place, Prefix
from mattecompress.reconstruction.store import Store
from mattecompress.reconstruction.units import cut_units
from mattecompress.running.feed import Feed
from tests.reconstruction.nets import FedBack, MobileNetV2, ResNet, TwoInputs, captured, clips_for

NETS = [ResNet, MobileNetV2, TwoInputs, FedBack]


def quantized(kind: type[nn.Module]) -> tuple[Program, Feed]:
    text = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=4 activations=4}"
    fed = clips_for(kind)
    program = parse_pipeline(text).run(captured(kind), Context(clips=fed))
    return program, Feed(program, fed)


class Recorder(fx.Interpreter):
    """Runs a program frame by frame and keeps every value."""

    def __init__(self, program: Program, feed: Feed) -> None:
        super().__init__(program.graph_module)
        self.seen: dict[tuple[str, Place], object] = {}
        states: dict[str, Tensor] = {}
        for clip, frame in feed.places:
            states = feed.zeros(clip) if frame == 0 else states
            inputs = {**feed.frame(clip, frame), **states}
            self.place = (clip, frame)
            with torch.no_grad():
                values = self.run(*(inputs[name] for name in program.input_names))
            outputs = dict(zip(program.output_names, values, strict=True))
            states = {pair.input: outputs[pair.output] for pair in program.states}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        self.seen[n.name, self.place] = value
        return value


@pytest.mark.parametrize("kind", NETS)
def test_units_cover_the_program_in_order(kind: type[nn.Module]) -> None:
    program, _ = quantized(kind)
    units = cut_units(program)
    nodes = [node for unit in units for node in unit.nodes]
    assert len(nodes) == len(set(nodes)) and set(nodes) == set(program.operations())
    done: set[fx.Node] = set(program.inputs)
    for unit in units:
        assert set(unit.inputs) <= done
        done |= set(unit.nodes)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("threads", [1, 2])
def test_yields_what_the_program_yields(
    kind: type[nn.Module], limit: int, threads: int, set_threads: Callable[[int], None], tmp_path: Path
) -> None:
    """States carried, also one that an earlier unit reads than makes; values in memory or in files; clips in turn or not."""
    program, feed = quantized(kind)
    seen = Recorder(program, feed).seen
    set_threads(threads)
    store = Store(limit, tmp_path)
    prefix = Prefix(program, "quantized", feed, store)
    for position, unit in enumerate(prefix.units):
        prefix.run(unit)
        for place in feed.places:
            for node, value in zip(unit.outputs, prefix.outputs(unit, place), strict=True):
                expected = seen[node.name, place]
                assert torch.equal(value, expected) if isinstance(value, Tensor) else value == expected
        prefix.forget(position)
    assert len(store) == 0 and store.used == 0 and not list(tmp_path.iterdir())


def test_forms_leave_quantizers_out(tmp_path: Path) -> None:
    program, feed = quantized(MobileNetV2)
    last = {}
    for form in ("float", "weights", "quantized"):
        prefix = Prefix(program, form, feed, Store(1 << 30, tmp_path))
        for unit in prefix.units:
            prefix.run(unit)
        (last[form],) = prefix.outputs(prefix.units[-1], (0, 0))
    expected = captured(MobileNetV2).run(x=clips_for(MobileNetV2)[0][:1])["classes"]
    torch.testing.assert_close(last["float"], expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(last["weights"], last["float"])
    assert not torch.equal(last["weights"], last["quantized"])


def test_store_goes_to_files_beyond_its_limit(tmp_path: Path) -> None:
    store = Store(40, tmp_path)
    values = [torch.full((8,), float(number)) for number in range(3)]
    for number, value in enumerate(values):
        store.put(number, value)
    store.put("size", 7)
    assert store.used == 32 and len(list(tmp_path.iterdir())) == 2
    assert store.get("size") == 7
    assert all(torch.equal(store.get(number), value) for number, value in enumerate(values))
    store.put(1, values[2])
    assert torch.equal(store.get(1), values[2]) and len(list(tmp_path.iterdir())) == 2
    for key in (0, 1, 2, "size", "absent"):
        store.drop(key)
    assert len(store) == 0 and store.used == 0 and not list(tmp_path.iterdir())
