from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.data.video import read_frames
from mattecompress.models.checkpoints import load_checkpoint
from mattecompress.models.rvm import RVM
from mattecompress.models.signatures import rvm_signature
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.options import OptionError
from mattecompress.passes.lower_quantized import LowerQuantized
from mattecompress.passes.reconstruct_blocks import ReconstructBlocks
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.reconstruction.checkpoints import CheckpointError
from mattecompress.running.feed import CalibrationError, Feed
from mattecompress.running.stream import Stream
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.processes import resumed_and_whole
from tests.reconstruction.nets import FedBack, MobileNetV2, ResNet, TwoInputs, captured, clips_for

PREPARE = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=3 activations=6 first=none}"
NETS = [ResNet, MobileNetV2, TwoInputs, FedBack]
QUICK = {"batch": 4, "rounding_rate": 0.1, "scale_rate": 1e-3}


def clips() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(4, 3, 12, 16, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def quantized(tiny: Program) -> Program:
    return parse_pipeline(PREPARE).run(tiny, Context(clips=clips()))


def same(one: Program, other: Program) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def distance(program: Program, reference: Program, fed: list) -> float:
    """Mean squared difference of all outputs over the clips, states carried."""
    feed, total, count = Feed(program, fed), 0.0, 0
    for clip in range(len(feed)):
        states = [feed.zeros(clip), feed.zeros(clip)]
        for frame in range(feed.length(clip)):
            inputs = feed.frame(clip, frame)
            with torch.no_grad():
                runs = [
                    p.run(**inputs, **state) for p, state in zip((program, reference), states, strict=True)
                ]
            states = [{pair.input: run[pair.output] for pair in program.states} for run in runs]
            total += sum(float((runs[0][name] - runs[1][name]).square().mean()) for name in runs[0])
            count += len(runs[0])
    return total / count


@pytest.mark.parametrize(
    ("kind", "method"), [*((kind, "qdrop") for kind in NETS), (TwoInputs, "brecq"), (FedBack, "brecq")]
)
def test_brings_other_networks_nearer(kind: type[nn.Module], method: str) -> None:
    """Residual, depthwise, several inputs and outputs, a state that goes from the last layer to the first."""
    net, fed = captured(kind), clips_for(kind)
    program = parse_pipeline(PREPARE).run(net, Context(clips=fed))
    result = ReconstructBlocks(method, iterations=100, **QUICK)(program, Context(clips=fed))
    assert result.modified and " blocks, " in result.notes
    assert distance(result.program, net, fed) < distance(program, net, fed)


def test_weights_are_rounded_and_the_rest_is_untouched(quantized: Program) -> None:
    result = ReconstructBlocks("qdrop", iterations=400, **QUICK)(quantized, Context(clips=clips()))
    assert "3 blocks, 0 undone" in result.notes
    before, after = quantized.state_dict(), result.program.state_dict()
    assert list(before) == list(after)
    for call in result.program.called_modules(FakeQuantize):
        source, quantizer = call.all_input_nodes[0], result.program.module(call)
        assert isinstance(quantizer, FakeQuantize)
        if source.op == "get_attr":
            weight = result.program.tensor(source)
            assert torch.equal(quantizer(weight), weight)
            scale = quantizer.affine(weight.ndim)[0]
            given = before[str(source.target)]
            inside = (given / scale).ge(quantizer.config.low) & (given / scale).le(quantizer.config.high)
            assert ((weight - given).abs() <= scale * (1 + 1e-5))[inside].all(), "up or down"
            assert torch.equal(before[f"{call.target}.scale"], after[f"{call.target}.scale"])
        else:
            assert not torch.equal(before[f"{call.target}.scale"], after[f"{call.target}.scale"])
    unchanged = [name for name in before if name.endswith(("bias", "zero_point"))]
    assert all(torch.equal(before[name], after[name]) for name in unchanged)


def test_the_seed_decides_everything(quantized: Program) -> None:
    step = ReconstructBlocks("qdrop", iterations=50, **QUICK)
    one, two, other = (step(quantized, Context(clips=clips(), seed=seed)).program for seed in (1, 1, 2))
    assert same(one, two) and not same(one, other)


def test_patience_ends_a_block_that_no_longer_gains(quantized: Program) -> None:
    told: list[str] = []
    context = Context(clips=clips(), progress=lambda done, total, what: told.append(what))
    result = ReconstructBlocks("qdrop", iterations=2000, patience=100, **QUICK)(quantized, context)
    assert "3 blocks, 0 undone" in result.notes
    assert 3 * 50 <= len([what for what in told if "dB" not in what]) < 3 * 150, "of 3 * 200"


def test_memory_changes_nothing(quantized: Program, tmp_path: Path) -> None:
    runs = [
        ReconstructBlocks("qdrop", iterations=20, memory=memory, **QUICK)(quantized, Context(clips=clips()))
        for memory in (0, 64)
    ]
    assert same(runs[0].program, runs[1].program) and runs[0].notes == runs[1].notes


def test_a_block_that_got_worse_is_undone(quantized: Program) -> None:
    """A rate of 1e6 throws every scale far away."""
    step = ReconstructBlocks("qdrop", iterations=2, batch=2, scale_rate=1e6)
    result = step(quantized, Context(clips=clips()))
    assert result.notes.startswith("qdrop: 3 blocks, 3 undone,") and "(not kept)" in result.notes
    for call in quantized.called_modules(FakeQuantize):
        quantizer, source = quantized.module(call), call.all_input_nodes[0]
        assert isinstance(quantizer, FakeQuantize)
        after = result.program.state_dict()
        assert torch.equal(after[f"{call.target}.scale"], quantizer.scale)
        if source.op == "get_attr":
            assert torch.equal(after[str(source.target)], quantizer(quantized.tensor(source)))


def test_open_sizes_take_clips_of_two_sizes(tiny_open: Program) -> None:
    generator = torch.Generator().manual_seed(5)
    fed = [
        torch.rand(frames, 3, *size, generator=generator) for frames, size in ((3, (12, 16)), (1, (16, 24)))
    ]
    program = parse_pipeline(PREPARE).run(tiny_open, Context(clips=fed))
    result = ReconstructBlocks("qdrop", iterations=5, **QUICK)(program, Context(clips=fed))
    assert "3 blocks" in result.notes


def test_one_frame_is_enough(quantized: Program) -> None:
    assert ReconstructBlocks("brecq", iterations=4, batch=2)(
        quantized, Context(clips=[clips()[0][:1]])
    ).modified


def test_nothing_left_to_do_is_no_change(quantized: Program) -> None:
    once = ReconstructBlocks("brecq", iterations=4, batch=2)(quantized, Context(clips=clips())).program
    again = ReconstructBlocks("qdrop", iterations=4)(once, Context())
    assert not again.modified and again.program is once


def test_lowers_and_prints_and_parses(tiny: Program) -> None:
    text = f"{PREPARE},reconstruct-blocks{{method=qdrop iterations=3 batch=2}}"
    program = parse_pipeline(text).run(tiny, Context(clips=clips()))
    assert "pass reconstruct-blocks{method=qdrop iterations=3 batch=2} seed=0" in print_program(program)
    assert parse_program(print_program(program), program.state_dict()) == program
    assert LowerQuantized(strict=True)(program).notes.startswith("3 convolutions in integers")


def test_tells_its_progress(quantized: Program) -> None:
    told: list[tuple[int, int, str]] = []
    context = Context(clips=clips(), progress=lambda *step: told.append(step))
    ReconstructBlocks("qdrop", iterations=20, **QUICK)(quantized, context)
    assert [done for done, total, _ in told] == [10, 20, 20, 30, 40, 40, 50, 60, 60]
    assert {total for _, total, _ in told} == {60}
    assert [what for _, _, what in told][:2] == ["qdrop block.0"] * 2 and " dB" in told[2][2]


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("method", ["brecq", "qdrop"])
def test_goes_on_with_identical_weights(quantized: Program, tmp_path: Path, method: str) -> None:
    step = ReconstructBlocks(method, iterations=150, **QUICK)
    whole = step(quantized, Context(clips=clips()))
    assert "3 blocks, 3 undone" not in whole.notes.partition(";")[0]

    def stop(done: int, total: int, what: str) -> None:
        if done == 320:
            raise _Stopped

    with pytest.raises(_Stopped):
        step(quantized, Context(clips=clips(), folder=tmp_path, progress=stop))
    assert len(list(tmp_path.rglob("*-000?.safetensors"))) >= 2
    done: list[int] = []
    resumed = replace(step, memory=0)(
        quantized, Context(clips=clips(), folder=tmp_path, progress=lambda *told: done.append(told[0]))
    )
    assert same(resumed.program, whole.program) and resumed.notes == whole.notes
    assert done[:2] == [150, 300]
    other = ReconstructBlocks(method, iterations=11, **QUICK)
    assert same(
        other(quantized, Context(clips=clips(), folder=tmp_path)).program,
        other(quantized, Context(clips=clips())).program,
    )


def test_refuses_a_damaged_checkpoint(quantized: Program, tmp_path: Path) -> None:
    step, context = ReconstructBlocks("qdrop", iterations=2, batch=1), Context(clips=clips(), folder=tmp_path)
    step(quantized, context)
    (path,) = tmp_path.rglob("qdrop-0000.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="remove it to learn that part again"):
        step(quantized, context)


KILLED = """
import sys, torch
from pathlib import Path
from mattecompress import container
from mattecompress.passes.reconstruct_blocks import ReconstructBlocks
from mattecompress.pipeline import Context
torch.set_num_threads(1)
given, out, folder = map(Path, sys.argv[1:])
clips = [torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(5))]
step = ReconstructBlocks("qdrop", iterations=200, batch=4, rounding_rate=0.02)
container.save(step(container.load(given), Context(clips=clips, folder=folder)).program, out)
"""


@pytest.mark.slow
def test_survives_kill_9(quantized: Program, tmp_path: Path) -> None:
    """Killed as soon as the first block is on disk, in the middle of the second."""
    assert same(*resumed_and_whole(KILLED, quantized, "**/qdrop-0000.safetensors", tmp_path))


def test_refuses_what_is_not_ready(tiny: Program, quantized: Program) -> None:
    with pytest.raises(PreconditionError, match="run quantize before reconstruct-blocks"):
        ReconstructBlocks("qdrop")(tiny)
    bare = parse_pipeline("canonicalize,fold-batch-norm,quantize").run(tiny, Context(clips=clips()))
    with pytest.raises(PreconditionError, match="run partition-blocks before quantize"):
        ReconstructBlocks("qdrop")(bare)
    with pytest.raises(CalibrationError, match="add --calibration"):
        ReconstructBlocks("qdrop")(quantized)


def test_names_where_a_value_is_not_finite(quantized: Program) -> None:
    bad = clips()
    bad[1][2, 0, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="not finite on frame 3 of clip 2"):
        ReconstructBlocks("qdrop", iterations=1)(quantized, Context(clips=bad))


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"batch": 0},
        {"keep": 1.5},
        {"patience": 0},
        {"warm_up": -0.1},
        {"rounding_rate": 0.0},
        {"rounding_rate": float("nan")},
        {"scale_rate": 0.0},
    ],
)
def test_refuses_impossible_options(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        ReconstructBlocks("qdrop", **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_real_rvm_comes_nearer_than_by_ranges_alone(shared_data: Path) -> None:
    """Mean absolute error of alpha in W4A8 on frames that calibration did not see."""
    frames = torch.stack(list(read_frames(shared_data / "clips/dancers.mp4", limit=60, size=(96, 160))))
    net = RVM().eval()
    load_checkpoint(net, shared_data / "rvm_mobilenetv3.safetensors", "rvm-mobilenetv3")
    given = capture(net, rvm_signature("rvm-mobilenetv3", (96, 160)), "rvm-mobilenetv3")
    context = Context(clips=[frames[0:8:2], frames[24:32:2]])
    quantized = parse_pipeline("mse{weights=4 activations=8}").run(given, context)
    step = ReconstructBlocks("qdrop", iterations=40, batch=4, rounding_rate=0.1, scale_rate=4e-4)
    programs = (given, quantized, step(quantized, context).program)
    expected, ranges, learned = (
        torch.cat([outputs["pha"] for outputs in Stream(program).over(frames[48:])]) for program in programs
    )
    assert expected.mean() > 0.05
    assert (learned - expected).abs().mean() < 0.8 * (ranges - expected).abs().mean()


@pytest.mark.parametrize("lacks", ["tensors", "record"])
def test_refuses_a_checkpoint_of_another_form(lacks: str, quantized: Program, tmp_path: Path) -> None:
    step, context = ReconstructBlocks("qdrop", iterations=2, batch=1), Context(clips=clips(), folder=tmp_path)
    step(quantized, context)
    (path,) = tmp_path.rglob("qdrop-0000.safetensors")
    with safe_open(path, "pt") as file:
        record = file.metadata()
    tensors = load_file(path)
    if lacks == "tensors":
        save_file(dict([tensors.popitem()]), path, record)
    else:
        save_file(tensors, path, {"record": '{"stage": "qdrop"}'})
    with pytest.raises(CheckpointError, match="of another form.*remove it to learn that part again"):
        step(quantized, context)
