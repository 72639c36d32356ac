"""Verbs that make programs: capture, opt."""

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mattecompress.cli.options import (
    ArgumentError,
    Output,
    ProgramPath,
    Seed,
    Size,
    parse_size,
    progress_bar,
    refuse,
    require_known,
    require_writable,
    say,
)

if TYPE_CHECKING:
    from mattecompress.data.sources import SourceClip
    from mattecompress.pipeline import Announcement, Hook, Pass, Pipeline, Step
    from mattecompress.program import Program, StatePair


class _Weights(NamedTuple):
    """A file, or the seed of random ones, or neither for those that are shipped."""

    checkpoint: Path | None
    seed: int | None


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(capture)
    app.command()(opt)


def capture(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model's name, or package.module:function that builds one.")],
    output: Output = Path("program.mcg"),
    checkpoint: Annotated[Path | None, typer.Option(help="Weights, .pth or .safetensors.")] = None,
    size: Size = None,
    ratio: Annotated[float, typer.Option(help="Downsample ratio of a named model.")] = 1.0,
    refiner: Annotated[str | None, typer.Option(help="deep_guided_filter or fast_guided_filter.")] = None,
    preprocessing: Annotated[
        str | None, typer.Option(help="official or huggingface, of models with a trimap.")
    ] = None,
    keep_known: Annotated[
        bool, typer.Option("--keep-known", help="Set alpha to what the trimap is certain of.")
    ] = False,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Random weights, drawn from --seed.")
    ] = False,
    seed: Seed = 0,
    inputs: Annotated[
        list[str] | None, typer.Option(help="[NAME=]SHAPE of each input, such as 1x3x288x512.")
    ] = None,
    outputs: Annotated[str | None, typer.Option(help="Names of the outputs, separated by commas.")] = None,
    state: Annotated[list[str] | None, typer.Option(help="INPUT=OUTPUT of each recurrent state.")] = None,
) -> None:
    """Capture a network into a float program.

    mattecompress capture rvm-mobilenetv3 --checkpoint w.safetensors --size 288x512 -o rvm.mcg

    mattecompress capture bivm --untrained -o bivm.mcg

    mattecompress capture vitmatte-small --checkpoint w.pth --size 1024x768 -o vitmatte.mcg

    mattecompress capture mypackage.net:build --inputs 1x3x288x512 --outputs pha -o mine.mcg
    """
    from mattecompress import container
    from mattecompress.analysis.cost import cost
    from mattecompress.analysis.propagation import program_symbols

    require_writable(output)
    if ":" in model:
        given = {"checkpoint": checkpoint, "size": size, "untrained": untrained, "refiner": refiner}
        given |= {"preprocessing": preprocessing, "keep-known": keep_known, "ratio": ratio != 1}
        _refuse(model, "a function builds it", **given)
        program = _capture_function(model, inputs or [], outputs, state or [], seed)
    else:
        _refuse(model, "its signature is known", inputs=inputs, outputs=outputs, state=state)
        if untrained:
            _refuse(model, "untrained weights are random", checkpoint=checkpoint)
        else:
            refuse(context, ("--seed",), "is what untrained weights are drawn from: add --untrained")
        weights = _Weights(checkpoint, seed if untrained else None)
        if preprocessing:
            require_known("--preprocessing", preprocessing, ("official", "huggingface"))
        options = {"refiner": refiner, "preprocessing": preprocessing, "keep_known": keep_known}
        program = _capture_named(model, weights, parse_size(size), ratio, options)
    container.save(program, output, _hash_of(checkpoint))
    open_sizes = program_symbols(program)
    what = (
        f"sizes {', '.join(open_sizes)} open"
        if open_sizes
        else f"{cost(program).totals.macs / 1e9:.2f} G MACs a frame"
    )
    say(f"{output}: {len(list(program.operations()))} nodes, {what}")


def _refuse(model: str, reason: str, **options: object) -> None:
    for name, value in options.items():
        if value:
            raise ArgumentError(f"--{name} does not apply to {model}: {reason}; leave it out")


def _capture_named(
    model: str,
    weights: _Weights,
    size: tuple[int, int] | None,
    ratio: float,
    given: Mapping[str, object],
) -> "Program":
    import torch

    from mattecompress import api

    if not 0 < ratio <= 1:
        raise ArgumentError(f"--ratio {ratio:g}: expected more than 0 and at most 1")
    options: dict[str, Any] = {name: value for name, value in given.items() if value}
    if weights.seed is not None:
        torch.manual_seed(weights.seed)
        options["untrained"] = True
    return api.capture(model, checkpoint=weights.checkpoint, size=size, ratio=ratio, **options)


def _capture_function(
    model: str, inputs: list[str], outputs: str | None, state: list[str], seed: int
) -> "Program":
    import torch
    from torch import nn

    from mattecompress.capturing.tracing import capture as capture_module
    from mattecompress.signature import Signature

    if not inputs:
        raise ArgumentError(f"{model} needs the shape of each input: add --inputs 1x3x288x512")
    signature = Signature(
        tuple(_parse_input(text, number) for number, text in enumerate(inputs)),
        tuple((outputs or "alpha").split(",")),
        tuple(_parse_state(text) for text in state),
    )
    module_name, _, function = model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    torch.manual_seed(seed)
    try:
        network = getattr(importlib.import_module(module_name), function)()
    except Exception as error:
        raise ArgumentError(f"cannot build {model}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(network, nn.Module):
        raise ArgumentError(f"{model} gave a {type(network).__name__}: it has to return a torch.nn.Module")
    return capture_module(network, signature, function)


def _parse_input(text: str, number: int) -> tuple[str, tuple[int, ...]]:
    name, equals, shape = text.rpartition("=")
    sizes = shape.split("x")
    if not all(re.fullmatch(r"[1-9][0-9]{0,5}", size) for size in sizes):
        raise ArgumentError(f"--inputs '{text}': expected [NAME=]SHAPE, such as src=1x3x288x512")
    return name if equals else ("src" if number == 0 else f"input{number}"), tuple(map(int, sizes))


def _parse_state(text: str) -> "StatePair":
    from mattecompress.program import StatePair

    name, _, output = text.partition("=")
    if not name or not output:
        raise ArgumentError(f"--state '{text}': expected INPUT=OUTPUT, such as r1i=r1o")
    return StatePair(name, output)


def _hash_of(path: Path | None) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def opt(
    call: typer.Context,
    program: ProgramPath,
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="Passes, separated by commas.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write; default: nowhere.")
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="A data set, a video, a folder, or procedural[:SEED].")
    ] = None,
    clips: Annotated[int, typer.Option(help="Calibration clips to take.", min=1)] = 4,
    frames: Annotated[int, typer.Option(help="Frames of each.", min=1)] = 8,
    seed: Seed = 0,
    resume: Annotated[
        Path | None, typer.Option(help="Folder where long passes keep what they did, and go on from it.")
    ] = None,
    print_before: Annotated[
        str | None, typer.Option(help="Print the program before this pass, or `all`.")
    ] = None,
    print_after: Annotated[
        str | None, typer.Option(help="Print the program after this pass, or `all`.")
    ] = None,
    timing: Annotated[bool, typer.Option(help="Print each pass's time and what it did.")] = False,
    stop_after: Annotated[str | None, typer.Option(help="Run no pass behind this one.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="Folder for text, difference and cost after each pass.")
    ] = None,
) -> None:
    """Run passes over a program.

    mattecompress opt rvm.mcg -p 'mse{weights=8 activations=8}' --calibration clips/ -o w8a8.mcg

    mattecompress opt rvm.mcg -p 'qdrop{weights=4}' --calibration clip.mp4 --resume work/ -o w4a8.mcg

    mattecompress opt rvm.mcg -p canonicalize,fold-batch-norm --print-after all

    mattecompress opt rvm.mcg -p 'rvm-react,lower' --record history/ -o lowered.mcg
    """
    from mattecompress import container
    from mattecompress.data.sources import clip_inputs
    from mattecompress.inspection.recording import Recorder
    from mattecompress.pipeline import Context
    from mattecompress.pipeline_text import parse_pipeline
    from mattecompress.reproducer import run_with_reproducer

    if not calibration:
        refuse(call, ("--clips", "--frames"), "is about calibration: add --calibration with clips")
    wanted = _until(parse_pipeline(pipeline), stop_after)
    names = [step.name for step in wanted.passes]
    announcements, hooks = _announcements(print_before, names), _hooks(print_after, timing, names)
    if output:
        require_writable(output)
    if record:
        require_writable(record, folder=True)
    given = container.load(program)
    captured_from = str(container.load_manifest(program).get("input_sha256", ""))
    counts, repeated = (clips, frames), []
    recorder = Recorder(record, given, wanted) if record else None
    if recorder:
        hooks.append(recorder)
    with progress_bar() as report:
        context = Context(seed=seed, progress=report, folder=resume)
        if calibration:
            loaded = calibration_clips(calibration, given, wanted, *counts)
            context.clips = [clip_inputs(given, clip) for clip in loaded]
            context.alphas = [clip.alpha for clip in loaded]
            repeated = calibration_options(calibration, *counts)
        result = run_with_reproducer(wanted, given, context, hooks, announcements, repeated)
    if recorder:
        recorder.finish()
    if output:
        container.save(result, output, captured_from)
        say(f"{output}: {result.level.value}, {len(list(result.operations()))} nodes")


def calibration_clips(
    source: str, program: "Program", pipeline: "Pipeline", clips: int, frames: int
) -> "list[SourceClip]":
    """Clips at the program's size, or at that which the pipeline gives it."""
    from mattecompress.data.sources import load_clips
    from mattecompress.interface import frame_size
    from mattecompress.passes.set_resolution import SetResolution

    fixed = [step for step in pipeline.passes if isinstance(step, SetResolution)]
    size = (fixed[0].height, fixed[0].width) if fixed else frame_size(program)
    return list(load_clips(source, size, clips, frames))


def calibration_options(source: str, clips: int, frames: int) -> list[str]:
    """The options again, for another working folder."""
    from mattecompress.data.sources import absolute_source

    return ["--calibration", absolute_source(source), "--clips", str(clips), "--frames", str(frames)]


def _until(pipeline: "Pipeline", stop_after: str | None) -> "Pipeline":
    if stop_after is None:
        return pipeline
    names = [step.name for step in pipeline.passes]
    _check_pass(stop_after, names)
    return type(pipeline)(pipeline.passes[: names.index(stop_after) + 1])


def _check_pass(name: str | None, names: list[str]) -> None:
    from mattecompress.options import nearest

    if name is not None and name not in names:
        raise ArgumentError(f"no pass '{name}' in the pipeline{nearest(name, names)}")


def _announcements(before: str | None, names: list[str]) -> "list[Announcement]":
    from mattecompress.text import print_program

    _check_pass(before, [*names, "all"])

    def dump(step: "Pass", program: "Program") -> None:
        if before in (step.name, "all"):
            sys.stdout.write(f"// before {step}\n{print_program(program)}")

    return [dump]


def _hooks(after: str | None, timing: bool, names: list[str]) -> "list[Hook]":
    from mattecompress.text import print_program

    _check_pass(after, [*names, "all"])

    def dump(step: "Step") -> None:
        if after in (step.step.name, "all"):
            sys.stdout.write(f"// after {step.step}\n{print_program(step.result.program)}")

    def time(step: "Step") -> None:
        say(f"{step.number:3d} {step.seconds:8.3f} s  {step.step}: {step.result.did}")

    return [dump, time] if timing else [dump]
