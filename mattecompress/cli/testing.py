"""Verbs that measure: eval, bench."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.clip_runs import clip_for
from mattecompress.cli.options import (
    ArgumentError,
    Json,
    ProgramPath,
    Size,
    Threads,
    given_options,
    print_json,
    refuse_others,
    require_known,
    require_writable,
    say,
)
from mattecompress.cli.running import fit_to, load_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mattecompress.program import Program

MODES = {
    "--nodes": ("--runs", "--input", "--times"),
    "--emulate": ("--input",),
    "--rpc": ("--rpc-key", "--target", "--reference", "--runs"),
}
"""What each way of measuring reads besides `--size` and `--json`."""
TIMED_HERE = ("--reference", "--runs", "--input")
"""Which of these the time beside a peer on this machine reads, too."""
ReferencePath = Annotated[Path | None, typer.Option(help="The program to compare with.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command("eval")(evaluate)
    app.command()(bench)


def two_frames(program: "Program", source: str) -> "Tensor":
    """The first two frames of what a program is to be measured on, (2,3,H,W); of a picture, the picture twice."""
    return clip_for(program, source, 2).frames[[0, -1]]


def frame_to_time(program: "Program", source: str | None) -> "list[Tensor]":
    """What a stream of the program takes: the last frame of two of a source, or noise, (1,3,H,W), and its trimap if any.

    Raises:
        TrimapError: the program takes a trimap, and there is no alpha that it could be made from.
    """
    import torch

    from mattecompress.data.sources import SourceClip, clip_inputs
    from mattecompress.interface import frame_size

    if source:
        clip = clip_for(program, source, 2)
    else:
        height, width = frame_size(program) or (0, 0)
        noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        clip = SourceClip("noise", noise, alpha=noise[:, :1])
    inputs = clip_inputs(program, clip)
    return [each[-1:] for each in ([inputs] if isinstance(inputs, torch.Tensor) else inputs.values())]


def count(program: "Program", target: str, source: str | None, json: bool) -> None:
    """Print the instructions that a frame takes on a target, by kernel."""
    from mattecompress.measuring.emulation import count_frame

    cost = count_frame(program, target, two_frames(program, source) if source else None)
    if json:
        print_json(cost.as_json())
    else:
        from mattecompress.cli.tables import print_frame_cost

        print_frame_cost(program, cost)


def time_nodes(program: "Program", source: str | None, runs: int, file: Path | None, json: bool) -> None:
    """Print what each kernel of a frame takes on this machine, and write it."""
    import torch

    from mattecompress.data.sources import clip_inputs
    from mattecompress.inspection.times import time_kernels, write_times

    torch.set_num_threads(1)
    clip = clip_inputs(program, clip_for(program, source, 2)) if source else None
    times = time_kernels(program, clip, runs)
    if file:
        write_times(file, times)
        say(str(file))
    if json:
        print_json(times.as_json())
    else:
        from mattecompress.cli.tables import print_frame_times

        print_frame_times(times)


def time_on_device(
    programs: "Sequence[Program]", target: str, address: str, key: str | None, runs: int, json: bool
) -> None:
    """Print the time of a frame on a device, of one program or of one beside another."""
    from mattecompress.measuring.device import time_remotely

    timing = time_remotely(programs, target, address, key, runs)
    if json:
        print_json(timing.as_json())
    else:
        beside = "" if timing.reference_ms is None else f", the reference {timing.reference_ms:.1f} ms"
        typer.echo(
            f"{timing.ours_ms:.1f} ms{beside} on {target} at {address} (medians of {runs} runs in turn)"
        )


def evaluate(
    program: ProgramPath,
    data: Annotated[
        str, typer.Option(help="A data set, a video, a folder, or procedural[:SEED].")
    ] = "procedural",
    reference: ReferencePath = None,
    backend: Annotated[str, typer.Option(help="reference, onnx or tvm.")] = "reference",
    clips: Annotated[
        int | None, typer.Option(help="Clips to take; default: all of a data set, else 1.", min=1)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of each; default: all of a data set, else 24.", min=1)
    ] = None,
    size: Size = None,
    high_resolution: Annotated[
        bool,
        typer.Option(
            "--high-resolution", help="As for sets of 1920x1080 and more: Grad without stretching, no Conn."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Measure accuracy: the clip's own alpha, or what a reference program yields, is the truth.

    A program that takes a trimap is also measured as pictures are, by Composition-1K's SAD, MSE, Grad and Conn over what
    the trimap leaves unknown.

    mattecompress eval w8a8.mcg --reference rvm.mcg --data clip.mp4 --json

    mattecompress eval rvm.mcg --size 144x256 --data procedural:7

    mattecompress eval rvm.mcg --data videomatte_512x288/videomatte_static

    mattecompress eval rvm.mcg --data videomatte_1920x1080/videomatte_static --high-resolution
    """
    from mattecompress.data.datasets.layouts import find_dataset
    from mattecompress.data.sources import DEFAULT_FRAMES, load_clips
    from mattecompress.interface import frame_size
    from mattecompress.measuring import evaluation
    from mattecompress.preparation import compile_program, fix_size

    measured = load_at(program, size)
    truth = load_at(reference, size) if reference else None
    known = frame_size(measured) or (truth and frame_size(truth))
    measured = fix_size(measured, known) if known else fit_to(measured, data)
    artifact = compile_program(measured, backend)
    longest = None if find_dataset(data) else DEFAULT_FRAMES
    loaded = load_clips(data, frame_size(measured), clips, frames or longest)
    result = evaluation.evaluate(measured, artifact.over_clips(), loaded, truth, high_resolution)
    if json:
        print_json(result.as_json())
    else:
        from mattecompress.cli.tables import print_table

        unknown = {f"{name}, unknown region": value for name, value in result.unknown.items()}
        rows = [(name, f"{value:.4f}") for name, value in (result.metrics | unknown).items()]
        print_table(f"{program}: {result.frames} frames", ("metric", "mean"), rows, 1)


def require_fitting(context: typer.Context) -> None:
    """Raise `ArgumentError` for an option of `bench` that its way of measuring does not read."""
    given = given_options(context)
    if mode := next((mode for mode in MODES if mode in given), None):
        read = (mode, *MODES[mode], "--size", "--json")
        refuse_others(context, read, f"does not go with {mode}: leave one of them out")
        return
    for mode, options in MODES.items():
        for option in options:
            if option in given and option not in TIMED_HERE:
                raise ArgumentError(f"{option} goes with {mode}: add {mode}, or leave {option} out")


def bench(
    context: typer.Context,
    program: ProgramPath,
    against: Annotated[str, typer.Option(help="The peer: onnxruntime or torch.")] = "onnxruntime",
    reference: ReferencePath = None,
    runs: Annotated[int, typer.Option(help="Runs of each, in turn.", min=1)] = 20,
    size: Size = None,
    threads: Threads = 1,
    emulate: Annotated[
        str | None,
        typer.Option(help="Count instructions on this target under qemu instead.", metavar="TARGET"),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option("--rpc", help="Time on the device whose TVM server listens there.", metavar="HOST:PORT"),
    ] = None,
    rpc_key: Annotated[
        str | None, typer.Option(help="With --rpc: a tracker listens there and lends devices of this key.")
    ] = None,
    nodes: Annotated[
        bool,
        typer.Option("--nodes", help="Time kernel by kernel instead, each beside its nodes and its limit."),
    ] = False,
    times: Annotated[
        Path | None,
        typer.Option(help="With --nodes: write that as JSON, for `inspect --times`.", metavar="FILE"),
    ] = None,
    target: Annotated[str, typer.Option(help="With --rpc: what processor the device has.")] = "host",
    source: Annotated[
        str | None,
        typer.Option(
            "--input", help="A video, a picture or procedural[:SEED] to take a frame from; default: noise."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Time the compiled program on this machine beside a peer, run in turn; or kernel by kernel; or on a device; or
    count instructions.

    With --nodes one thread computes one frame. A kernel's limit is the longer of two times: that of its products at the
    rate of their arithmetic, that of the bytes it reads and writes at the rate of a copy; both rates are measured
    between the runs. Winograd's kernels, which compute fewer products than their layers ask for, and one-bit kernels
    that look up what the limit counts may pass it. What a mask leaves out is left out of the limit only with --input.

    mattecompress bench w8a8.mcg --against onnxruntime --reference rvm.mcg --threads 1 --json

    mattecompress bench bivm.mcg --emulate cortex-a76 --input clip.mp4

    mattecompress bench w8a8.mcg --nodes --input clip.mp4 --times times.json

    mattecompress bench w8a8.mcg --rpc 192.168.0.7:9090 --target cortex-a76 --reference rvm.mcg
    """
    require_fitting(context)
    if nodes:
        if times:
            require_writable(times)
        time_nodes(load_at(program, size), source, runs, times, json)
        return
    if emulate is not None:
        count(load_at(program, size), emulate, source, json)
        return
    if remote is not None:
        paths = [program, *([reference] if reference else [])]
        time_on_device([load_at(path, size) for path in paths], target, remote, rpc_key, runs, json)
        return
    import torch

    from mattecompress.interface import frame_size
    from mattecompress.measuring.benchmark import compare
    from mattecompress.preparation import compile_program, fix_size, require_fixed_size
    from mattecompress.running.stream import Stream

    peers = {"onnxruntime": "onnx", "torch": "reference"}
    require_known("--against", against, peers)
    torch.set_num_threads(threads)
    ours = load_at(program, size)
    require_fixed_size(ours)
    peer = fix_size(load_at(reference, size), frame_size(ours) or (0, 0)) if reference else ours
    frames = [frame_to_time(each, source) for each in (ours, peer)]
    streams = [
        Stream(ours, compile_program(ours, "tvm", threads=threads).over_clips()),
        Stream(peer, compile_program(peer, peers[against], threads=threads, exact=False).over_clips()),
    ]
    result = compare(lambda: streams[0](*frames[0]), lambda: streams[1](*frames[1]), against, threads, runs)
    if json:
        print_json(result.as_json())
    else:
        typer.echo(
            f"ours {result.ours_ms:.1f} ms, {against} {result.peer_ms:.1f} ms, {result.as_json()['speedup']:.2f}x "
            f"(medians of {runs} runs in turn, {threads} threads)"
        )
