from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mattecompress.analysis.propagation import propagate
from mattecompress.errors import UserError
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.options import OptionError
from mattecompress.passes.calibrate_affine import CalibrateAffine
from mattecompress.passes.lower_quantized import LowerQuantized
from mattecompress.passes.reconstruct_blocks import own_weights
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.reconstruction.affine import absorb, insert, layers_of
from mattecompress.reconstruction.checkpoints import CheckpointError
from mattecompress.running.feed import CalibrationError
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.processes import resumed_and_whole
from tests.reconstruction.nets import FedBack, MobileNetV2, SideBySide, TwoInputs, captured, clips_for

PREPARE = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=3 activations=6 first=none}"
ALL = [("output", "layer"), ("output", "channel"), ("weights", "layer")]


@pytest.fixture(scope="module")
def network() -> Program:
    """It has a state, and a layer that is used twice."""
    return captured(FedBack)


def clips() -> list[Tensor]:
    return clips_for(FedBack, frames=5)


@pytest.fixture(scope="module")
def quantized(network: Program) -> Program:
    return parse_pipeline(PREPARE).run(network, Context(clips=clips()))


@pytest.fixture(scope="module")
def context(network: Program) -> Context:
    return Context(clips=clips(), teacher=network)


def weight_codes(program: Program) -> dict[str, Tensor]:
    codes = {}
    for call in program.called_modules(FakeQuantize):
        quantizer, source = program.module(call), call.all_input_nodes[0]
        assert isinstance(quantizer, FakeQuantize)
        if source.op == "get_attr":
            codes[str(call.target)] = quantizer.codes(program.tensor(source))
    return codes


@pytest.mark.parametrize(("apply_to", "numbers"), ALL)
@pytest.mark.parametrize("kind", [MobileNetV2, TwoInputs, FedBack, SideBySide])
def test_absorbs_exactly(kind: type[nn.Module], apply_to: str, numbers: str) -> None:
    """The numbers as nodes of their own, against the program that absorbed them: grouped and shared layers too."""
    fed = clips_for(kind)
    program = parse_pipeline(PREPARE).run(captured(kind), Context(clips=fed))
    own_weights(program)
    explicit, absorbed = program.clone(), program.clone()
    generator = torch.Generator().manual_seed(0)
    for before, after in zip(layers_of(explicit), layers_of(absorbed), strict=True):
        held = insert(explicit, before, apply_to, numbers)
        gamma = torch.rand(held[0].shape, generator=generator) + 0.5
        beta = (torch.rand(held[1].shape, generator=generator) - 0.5) * 0.1
        with torch.no_grad():
            held[0].copy_(gamma)
            held[1].copy_(beta)
        absorb(absorbed, after, gamma, beta, apply_to)
    for changed in (explicit, absorbed):
        changed.graph.lint()
        changed.graph_module.recompile()
        propagate(changed)
    inputs = {
        str(node.target): torch.rand(absorbed.facts(node).sizes, generator=generator)
        for node in absorbed.inputs
    }
    expected, found, plain = (p.run(**inputs) for p in (explicit, absorbed, program))
    for name, value in expected.items():
        step = 2e-2 * float(value.detach().abs().max())
        assert (found[name] - value).abs().max() <= step, (
            "float32 rounding, and a neighbouring code here and there"
        )
        assert (found[name] - value).abs().mean() <= 1e-3 * step / 2e-2
        assert not torch.equal(value, plain[name])


@pytest.mark.parametrize(("apply_to", "numbers"), ALL)
def test_lowers_the_loss_and_keeps_codes(
    quantized: Program, context: Context, apply_to: str, numbers: str
) -> None:
    result = CalibrateAffine(apply_to, numbers, epochs=6, rate=3e-3)(quantized, context)
    assert result.modified and result.notes.startswith(
        "3 layers and 4 activation scales over 4 sequences, loss"
    )
    before, after = result.notes.rpartition(": ")[2].split(" -> ")
    assert float(after) < float(before)
    codes = weight_codes(result.program)
    assert all(torch.equal(codes[name], value) for name, value in weight_codes(quantized).items())
    assert parse_program(print_program(result.program), result.program.state_dict()) == result.program
    LowerQuantized(strict=True)(result.program)


def test_constant_weights_have_codes_of_one(quantized: Program, context: Context) -> None:
    program = CalibrateAffine("weights", epochs=2, rate=3e-3)(quantized, context).program
    added = {name: codes for name, codes in weight_codes(program).items() if ".constant" in name}
    assert len(added) == 4 and all((codes.abs() == 1).all() for codes in added.values())


def test_aims_at_true_alpha_where_it_is_known(quantized: Program) -> None:
    alphas = [torch.rand(5, 1, 16, 24, generator=torch.Generator().manual_seed(1)), None]
    with pytest.raises(CalibrationError, match="no float program to stand in"):
        CalibrateAffine()(quantized, Context(clips=clips(), alphas=alphas))
    known = Context(clips=clips(), alphas=[alphas[0], alphas[0]])
    assert CalibrateAffine(epochs=4, rate=3e-3)(quantized, known).modified
    with pytest.raises(CalibrationError, match="2 clips have 1 alphas"):
        CalibrateAffine()(quantized, Context(clips=clips(), alphas=alphas[:1]))


def test_aims_at_the_float_program_on_request(quantized: Program, context: Context) -> None:
    step, known = CalibrateAffine(target="float", epochs=1), [torch.rand(5, 1, 16, 24)] * 2
    with_truth = step(quantized, replace(context, alphas=known))
    assert with_truth.program == step(quantized, context).program
    assert with_truth.notes != CalibrateAffine(epochs=1)(quantized, replace(context, alphas=known)).notes


@pytest.mark.parametrize("options", [{}, {"flow": "dis"}])
def test_refuses_single_frames(quantized: Program, context: Context, options: dict[str, str]) -> None:
    what = "motion" if options else "states"
    with pytest.raises(CalibrationError, match=f"one frame, which says nothing of {what} over time"):
        CalibrateAffine(**options)(quantized, replace(context, clips=[clip[:1] for clip in clips()]))
    with pytest.raises(CalibrationError, match=what):
        CalibrateAffine(frames=1, **options)(quantized, context)


def test_refuses_alphas_that_do_not_fit(quantized: Program, context: Context) -> None:
    fits, bad = torch.zeros(5, 1, 16, 24), torch.zeros(5, 1, 16, 24)
    bad[3, 0, 2, 2] = float("nan")
    for alpha, message in (
        (fits[:4], r"the alpha of clip 2 is \[4, 1, 16, 24\], the program yields \[5, 1, 16, 24\]"),
        (fits[..., :8], r"the alpha of clip 2 is \[5, 1, 16, 8\]"),
        (bad, "not finite on frame 4 of the alpha of clip 2"),
    ):
        with pytest.raises(CalibrationError, match=message):
            CalibrateAffine()(quantized, replace(context, alphas=[fits, alpha]))


def test_what_does_not_help_is_no_change(quantized: Program, context: Context) -> None:
    result = CalibrateAffine(epochs=1, rate=1e6)(quantized, context)
    assert not result.modified and result.program is quantized
    assert result.did.startswith("changed nothing: no epoch is better beyond chance, loss x 1000: ")


def test_the_seed_decides_everything(quantized: Program) -> None:
    alphas = [torch.rand(5, 1, 16, 24, generator=torch.Generator().manual_seed(1))] * 2
    texts = [
        print_program(
            CalibrateAffine(epochs=3, batch=1, rate=3e-3)(
                quantized, Context(clips=clips(), alphas=alphas, seed=seed)
            ).program
        )
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


class _Stopped(Exception):
    pass


def test_goes_on_with_identical_weights(quantized: Program, context: Context, tmp_path: Path) -> None:
    """Stopped in the middle of the third epoch, it begins that one again."""
    step = CalibrateAffine(epochs=4, batch=3, rate=3e-3)
    whole = step(quantized, context)

    def stop(done: int, total: int, what: str) -> None:
        if (done, total) == (5, 14):
            raise _Stopped

    with pytest.raises(_Stopped):
        step(quantized, replace(context, folder=tmp_path, progress=stop))
    told: list[int] = []
    again = replace(context, folder=tmp_path, progress=lambda done, total, what: told.append(done))
    resumed = step(quantized, again)
    assert told == list(range(5, 15))
    assert resumed.program == whole.program and resumed.notes == whole.notes
    alphas = [torch.full((5, 1, 16, 24), 0.5)] * 2
    for other in (replace(again, seed=1), replace(again, alphas=alphas)):
        told.clear()
        step(quantized, other)
        assert told[0] == 1, "other work begins anew"


def test_refuses_a_damaged_checkpoint(quantized: Program, context: Context, tmp_path: Path) -> None:
    step, kept = CalibrateAffine(epochs=1), replace(context, folder=tmp_path)
    step(quantized, kept)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="remove it to learn that part again"):
        step(quantized, kept)


KILLED = """
import sys, torch
from pathlib import Path
from mattecompress import container
from mattecompress.passes.calibrate_affine import CalibrateAffine
from mattecompress.pipeline import Context
torch.set_num_threads(1)
given, out, folder = map(Path, sys.argv[1:])
clips = [torch.rand(8, 3, 16, 24, generator=torch.Generator().manual_seed(5))]
alphas = [clips[0].mean(1, keepdim=True)]
step = CalibrateAffine(epochs=40, rate=3e-3)
container.save(step(container.load(given), Context(clips=clips, alphas=alphas, folder=folder)).program, out)
"""


@pytest.mark.slow
def test_survives_kill_9(quantized: Program, tmp_path: Path) -> None:
    """Killed as soon as there is a checkpoint, in the middle of some later epoch."""
    assert same(*resumed_and_whole(KILLED, quantized, "**/epochs.safetensors", tmp_path))


def same(one: Program, other: Program) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_whole_pipeline(network: Program) -> None:
    """A pipeline that begins with a float program aims at what that yields."""
    text = "ptq4vm{weights=4 activations=6 iterations=20 epochs=3}"
    program = parse_pipeline(text).run(network, Context(clips=clips()))
    assert [record.text.partition("{")[0] for record in program.history][-3:] == [
        "quantize",
        "reconstruct-blocks",
        "calibrate-affine",
    ]
    LowerQuantized(strict=True)(program)


def test_follows_motion(quantized: Program, context: Context) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    step = CalibrateAffine(flow="dis", epochs=3, rate=3e-3)
    result = step(quantized, context)
    assert result.modified
    assert result.notes != replace(step, flow_of="error")(quantized, context).notes


def test_follows_motion_by_raft(quantized: Program, context: Context, raft_weights: Path) -> None:
    step = CalibrateAffine(flow="raft", flow_checkpoint=str(raft_weights), epochs=3, rate=3e-3)
    assert str(step).startswith(f"calibrate-affine{{flow=raft flow-checkpoint={raft_weights} ")
    result = step(quantized, context)
    assert result.modified
    assert result.notes != replace(step, flow="none", flow_checkpoint=None)(quantized, context).notes


def test_the_pipeline_hands_on_the_weights_of_raft(tmp_path: Path) -> None:
    path = tmp_path / "of raft.pth"
    path.touch()
    *_, last = parse_pipeline(f"ptq4vm{{flow=raft flow-checkpoint='{path}'}}").passes
    assert (last.flow, last.flow_checkpoint) == ("raft", str(path))


def test_refuses_raft_without_its_weights(quantized: Program, context: Context, tmp_path: Path) -> None:
    for text in ("flow=raft", "flow=dis flow-checkpoint=raft.pth", "flow-checkpoint=raft.pth"):
        with pytest.raises(OptionError, match="flow=raft and flow-checkpoint=FILE"):
            parse_pipeline(f"calibrate-affine{{{text}}}")
    with pytest.raises(OptionError, match=r"flow-checkpoint=absent\.pth: no such file"):
        parse_pipeline("ptq4vm{flow=raft flow-checkpoint=absent.pth}")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    step = CalibrateAffine(flow="raft", flow_checkpoint=str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match=r"other\.pth: holds no RAFT weights"):
        step(quantized, context)


def test_refuses(network: Program) -> None:
    with pytest.raises(PreconditionError, match="run quantize before calibrate-affine"):
        CalibrateAffine()(network)
    text = PREPARE.replace("first=none", "first=none weight-scales=tensor")
    whole = parse_pipeline(text).run(network, Context(clips=clips()))
    with pytest.raises(PreconditionError, match="first, twice, last has one scale for all channels"):
        CalibrateAffine(numbers="channel")(whole)
    with pytest.raises(OptionError, match="use apply-to=output"):
        CalibrateAffine("weights", "channel")
    for options in ({"epochs": 0}, {"batch": 0}, {"frames": 0}, {"rate": 0.0}, {"flow_weight": -1.0}):
        with pytest.raises(OptionError):
            CalibrateAffine(**options)
    for name in ("rate", "flow_weight"):
        with pytest.raises(OptionError, match="finite"):
            CalibrateAffine(**{name: float("nan")})


@pytest.mark.parametrize("lacks", ["tensors", "record"])
def test_refuses_a_checkpoint_of_another_form(
    lacks: str, quantized: Program, context: Context, tmp_path: Path
) -> None:
    step, kept = CalibrateAffine(epochs=1), replace(context, folder=tmp_path)
    step(quantized, kept)
    (path,) = tmp_path.rglob("*.safetensors")
    tensors = {name: value for name, value in load_file(path).items() if not name.endswith("/best")}
    save_file(tensors if lacks == "tensors" else load_file(path), path, {"record": '{"done": 1}'})
    with pytest.raises(CheckpointError, match="of another form.*remove it to learn that part again"):
        step(quantized, kept)
