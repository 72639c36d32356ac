"""The main job from end to end in one folder: networks in 32, 8 and 1 bit, mattes, ARM programs, a report."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mattecompress import api, container
from mattecompress.analysis.cost import cost
from mattecompress.backends.tvm.backend import Freestanding, Tvm
from mattecompress.backends.tvm.freestanding.executable import ExecutableArtifact
from mattecompress.backends.tvm.freestanding.link import available
from mattecompress.data.sources import SourceClip, load_clips
from mattecompress.data.video import read_info, write_frames
from mattecompress.interface import alpha_name
from mattecompress.measuring.evaluation import predict
from mattecompress.measuring.metrics import evaluate_clip
from mattecompress.modules.spatial_mask import SpatialMask
from mattecompress.preparation import compile_program, lower
from mattecompress.program import Program
from mattecompress.report import VariantReport, frame_errors, over_green, write_report
from mattecompress.running.stream import Stream

ARM = "cortex-a76"
ARM_FRAMES = 2
MODEL = "rvm-mobilenetv3"
ONE_BIT = "bivm"
PIPELINE = "mse{weights=8 activations=8}"
CALIBRATION_SEED = 1000
LONG_SIDE = 512
MASK = "mask"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Variant:
    """A program, what it made of the clip, how long a frame took, and where it looked closely if it has a mask."""

    name: str
    program: Program
    alpha: Tensor
    green: Tensor
    frame_ms: float
    metrics: dict[str, float]
    mask: Tensor | None


@dataclass(frozen=True)
class ArmCheck:
    """Largest difference of alpha between the emulated ARM program and the host; None where nothing emulates."""

    variant: str
    difference: float | None


def run_demo(
    folder: Path,
    checkpoint: Path | None,
    video: Path | None,
    size: tuple[int, int] | None,
    frames: int,
    seed: int,
    say: Say,
) -> Iterator[str]:
    """Fill `folder`; yields the closing lines that say what was made and what to try next.

    size: (height, width); default 144x256, or the video's shape with 512 on the long side.

    Raises:
        UserError: whatever stands in the way, in one line.
    """
    started = time.perf_counter()
    size = size or (_size_of(video) if video else (144, 256))
    say(f"1/6 clip at {size[0]}x{size[1]}")
    (clip,) = load_clips(str(video) if video else f"procedural:{seed}", size, 1, frames)
    write_frames(folder / "clip.mp4", clip.frames)
    say("2/6 capture the float network")
    network = api.capture(MODEL, checkpoint=checkpoint, size=size)
    say(f"3/6 quantize it: {PIPELINE}")
    source = str(video) if video else f"procedural:{CALIBRATION_SEED}"
    calibration = [piece.frames for piece in load_clips(source, size, 4, 4)]
    programs = {
        "float": network,
        "w8a8": api.opt(network, PIPELINE, calibration, seed),
        ONE_BIT: api.capture(ONE_BIT, size=size),
    }
    for name, program in programs.items():
        container.save(program, folder / f"{name}.mcg")
    say("4/6 compile for this machine and matte the clip")
    truth, truth_name = _truth(network, clip)
    variants = [_matte(folder, name, program, clip, truth) for name, program in programs.items()]
    say(f"5/6 build programs for this machine and for {ARM}")
    built = [_build(folder / "dist", name, program) for name, program in programs.items()]
    say(f"6/6 run the {ARM} programs on {ARM_FRAMES} frames")
    checks = [
        _run_arm(folder, variant, made[-1], clip) for variant, made in zip(variants, built, strict=True)
    ]
    notes = _notes(variants, checkpoint)
    _report(folder / "report.html", clip, truth, truth_name, variants, checks, notes)
    yield from _summary(folder, variants, checks, truth_name, notes, time.perf_counter() - started)


def _size_of(video: Path) -> tuple[int, int]:
    info = read_info(video)
    scale = min(1.0, LONG_SIDE / max(info.height, info.width))
    height, width = (max(32, round(side * scale / 16) * 16) for side in (info.height, info.width))
    return height, width


def _truth(network: Program, clip: SourceClip) -> tuple[Tensor, str]:
    if clip.alpha is not None:
        return clip.alpha, "the exact alpha"
    return predict(network, network.run, clip)[0], "the float network in torch"


def _matte(folder: Path, name: str, program: Program, clip: SourceClip, truth: Tensor) -> Variant:
    shown = _with_mask(program)
    stream = Stream(shown, compile_program(shown, "tvm").over_clips())
    stream(clip.frames[:1])
    start = time.perf_counter()
    outputs = list(stream.over(clip.frames))
    frame_ms = (time.perf_counter() - start) / len(outputs) * 1e3
    alpha = torch.cat([output[alpha_name(program)] for output in outputs])
    green = over_green(alpha, torch.cat([output["fgr"] for output in outputs]))
    write_frames(folder / f"{name}-alpha.mp4", alpha)
    write_frames(folder / f"{name}-green.mp4", green)
    mask = torch.cat([output[MASK] for output in outputs]) if MASK in shown.output_names else None
    return Variant(name, program, alpha, green, frame_ms, evaluate_clip(alpha, truth), mask)


def _with_mask(program: Program) -> Program:
    """The program with its spatial mask, where it has one, as an output."""
    shown = program.clone()
    for mask in shown.called_modules(SpatialMask):
        shown.add_output(MASK, mask)
    shown.graph_module.recompile()
    return shown


def _build(folder: Path, name: str, program: Program) -> list[ExecutableArtifact]:
    """Write the shared object and both programs; return the programs, this machine's first."""
    lowered = lower(program)
    lowered.name = name
    Tvm().compile(lowered).save(folder)
    return [Freestanding.of(lowered, target).link(folder) for target in ("host", ARM)]


def _run_arm(folder: Path, variant: Variant, program: ExecutableArtifact, clip: SourceClip) -> ArmCheck:
    """Alpha of the first frames by the ARM program, where something runs it."""
    if not available(program.target).runs:
        return ArmCheck(variant.name, None)
    alpha = program.run_clip(clip.frames[:ARM_FRAMES])
    pictures = folder / f"{variant.name}-alpha-{ARM}"
    shutil.rmtree(pictures, ignore_errors=True)
    write_frames(pictures, alpha)
    return ArmCheck(variant.name, float((alpha - variant.alpha[:ARM_FRAMES]).abs().max()))


def _report(
    path: Path,
    clip: SourceClip,
    truth: Tensor,
    truth_name: str,
    variants: Sequence[Variant],
    checks: Sequence[ArmCheck],
    notes: Sequence[str],
) -> None:
    rows = [
        VariantReport(
            variant.name,
            variant.alpha,
            variant.green,
            frame_errors(variant.alpha, truth),
            _facts(variant, check),
            variant.mask,
        )
        for variant, check in zip(variants, checks, strict=True)
    ]
    write_report(path, "mattecompress demo", clip.frames, truth, truth_name, rows, notes)


def _notes(variants: Sequence[Variant], checkpoint: Path | None) -> list[str]:
    """Whose weights the columns have, and what the mask is."""
    ours = "trained from scratch on procedural clips"
    rvm = f"the weights of {checkpoint.name}" if checkpoint else f"the weights of our RVM, {ours}"
    notes = [f"float and w8a8 have {rvm}."]
    for variant in variants:
        if variant.mask is not None:
            notes += [
                f"{variant.name} is another network with weights of its own, ours, {ours}.",
                f"{variant.name}'s mask is drawn over the picture; 3x3 convolutions behind it are computed there alone.",
            ]
    return notes


def _facts(variant: Variant, check: ArmCheck) -> list[tuple[str, str]]:
    totals = cost(variant.program).totals
    arm = "not run: no emulator" if check.difference is None else f"{check.difference:.1e}"
    masked = "no mask" if variant.mask is None else f"{variant.mask.mean().item():.0%}"
    return [
        ("alpha MAD x 1000", f"{variant.metrics['mad']:.2f}"),
        ("alpha MSE x 1000", f"{variant.metrics['mse']:.2f}"),
        ("gradient error", f"{variant.metrics['grad']:.2f}"),
        ("connectivity error", f"{variant.metrics['conn']:.2f}"),
        ("dtSSD x 100", f"{variant.metrics['dtssd']:.2f}"),
        ("weights, MiB", f"{totals.size_mib:.2f}"),
        ("ms a frame, one thread", f"{variant.frame_ms:.1f}"),
        ("positions under the mask", masked),
        (f"{ARM} against host, largest alpha difference", arm),
    ]


def _summary(
    folder: Path,
    variants: Sequence[Variant],
    checks: Sequence[ArmCheck],
    truth_name: str,
    notes: Sequence[str],
    seconds: float,
) -> Iterator[str]:
    yield f"\nDone in {seconds:.0f} s. Alpha error is against {truth_name}."
    for variant, check in zip(variants, checks, strict=True):
        facts = dict(_facts(variant, check))
        yield (
            f"  {variant.name:6} MAD {facts['alpha MAD x 1000']}e-3, {facts['weights, MiB']} MiB, "
            f"{facts['ms a frame, one thread']} ms a frame; {ARM} against host: "
            f"{facts[f'{ARM} against host, largest alpha difference']}"
        )
    yield from (f"  {note}" for note in notes)
    yield f"\nMade in {folder}/:"
    yield "  report.html            pictures and the table: open it first"
    yield "  clip.mp4               what was matted;  *-alpha.mp4, *-green.mp4: what came out"
    yield f"  {', '.join(f'{variant.name}.mcg' for variant in variants)}  the programs"
    yield f"  dist/                  {', '.join(sorted(path.name for path in (folder / 'dist').iterdir()))}"
    yield "\nTry next:"
    yield f"  .venv/bin/mattecompress inspect {folder}/w8a8.mcg"
    yield f"  .venv/bin/mattecompress opt {folder}/float.mcg -p rvm-react -o react.mcg"
    yield f"  .venv/bin/mattecompress build {folder}/w8a8.mcg --target cortex-a55 -o dist/"
    yield "  .venv/bin/mattecompress demo --input YOUR_VIDEO.mp4 --checkpoint rvm_mobilenetv3.pth -o mine/"
