"""Verbs that look at programs: inspect, diff, bisect."""

import shlex
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.options import (
    ArgumentError,
    Json,
    ProgramPath,
    Seed,
    Size,
    print_json,
    progress_bar,
    require_writable,
    say,
)
from mattecompress.cli.recordings import show_recording
from mattecompress.cli.running import fit_to, load_at
from mattecompress.cli.transforming import calibration_clips, calibration_options

if TYPE_CHECKING:
    from mattecompress.inspection.bisection import Bisection, StepError
    from mattecompress.inspection.difference import Difference
    from mattecompress.inspection.error import NodeError
    from mattecompress.program import Program


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(inspect)
    app.command()(diff)
    app.command()(bisect)


def inspect(
    program: Annotated[
        Path, typer.Argument(help="A program, .mcg, or a folder of `opt --record`.", metavar="PROGRAM")
    ],
    text: Annotated[bool, typer.Option("--text", help="Print the program's text form.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="A table of nodes rather than regions.")] = False,
    where: Annotated[
        str | None, typer.Option(help="Only such nodes: 'op=conv2d and region~decoder and bits<8'.")
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Nodes by this field, the worst first.")] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Draw the activations alive over time.")] = False,
    error: Annotated[
        str | None,
        typer.Option(help="Run this clip and measure each node's error.", metavar="CLIP"),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="With --error: against this program, rather than without quantizers.")
    ] = None,
    frames: Annotated[int, typer.Option(help="With --error: frames of the clip.", min=1)] = 4,
    drawing: Annotated[
        Path | None, typer.Option("--dot", help="Draw the graph: .dot, or with Graphviz .svg, .png, .pdf.")
    ] = None,
    model_explorer: Annotated[
        Path | None, typer.Option(help="Folder for Model Explorer's graph and node data.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="A page for a browser: regions, nodes, graph, costs.", metavar="FILE")
    ] = None,
    json: Json = False,
    size: Size = None,
) -> None:
    """Show a program: costs by region or node, activations over time, errors, its text, or everything as JSON;
    of a folder that `opt --record` wrote, what each pass did.

    mattecompress inspect rvm.mcg

    mattecompress inspect w4a4.mcg --where 'op=conv2d and (region~decoder or bits<8)' --sort macs

    mattecompress inspect w4a4.mcg --error clip.mp4 --reference rvm.mcg --sort own_sqnr

    mattecompress inspect rvm.mcg --html rvm.html

    mattecompress inspect history/ --html history.html

    mattecompress inspect rvm.mcg --dot rvm.svg --model-explorer explorer/

    mattecompress inspect rvm.mcg --text | less
    """
    from mattecompress.cost import cost
    from mattecompress.inspection.exports import write_drawing, write_model_explorer
    from mattecompress.inspection.rows import node_rows, select
    from mattecompress.preparation import require_fixed_size

    if text and json:
        raise ArgumentError("--text and --json are two forms of the same: choose one")
    if reference and error is None:
        raise ArgumentError("--reference is what errors are measured against: add --error with a clip")
    select([], where, sort)
    if program.is_dir():
        about_one: dict[str, object] = {"text": text, "nodes": nodes, "where": where, "sort": sort}
        about_one |= {"memory": memory, "error": error, "dot": drawing, "model-explorer": model_explorer}
        show_recording(program, html, json, {**about_one, "size": size})
        return
    for file in (drawing, html):
        if file:
            require_writable(file)
    if model_explorer:
        require_writable(model_explorer, folder=True)
    shown = load_at(program, size)
    if text:
        from mattecompress.text import print_program

        sys.stdout.write(print_program(shown))
        return
    if error is not None:
        shown = fit_to(shown, error)
    require_fixed_size(shown)
    known = cost(shown)
    errors = _errors(shown, error, reference, frames) if error is not None else None
    rows = node_rows(shown, errors, known)
    chosen = select(rows, where, sort)
    if drawing:
        write_drawing(shown, drawing)
        say(str(drawing))
    if model_explorer:
        for path in write_model_explorer(shown, rows, model_explorer):
            say(str(path))
    if html:
        from mattecompress.inspection.page import Version, write_page

        write_page(html, [Version(program.name, shown, rows)])
        say(str(html))
    if json:
        peak = max(rows, key=lambda row: row["live_bytes"], default=None)
        memory_peak = {"node": peak["name"], "bytes": peak["live_bytes"]} if peak else None
        print_json({**known.as_json(), "nodes": chosen, "peak": memory_peak})
        return
    from mattecompress.cli import tables

    if drawing or model_explorer or html:
        return
    if memory:
        tables.print_memory(shown, chosen)
    elif nodes or where or sort or errors is not None:
        tables.print_rows(shown, chosen)
    else:
        tables.print_cost(shown, known)


def _errors(program: "Program", source: str, reference: Path | None, frames: int) -> "dict[str, NodeError]":
    from mattecompress.data.sources import clip_inputs, frame_size, load_clips
    from mattecompress.inspection.error import measure_errors, without_quantizers
    from mattecompress.preparation import fix_size

    size = frame_size(program)
    exact = without_quantizers(program) if reference is None else load_at(reference, None)
    exact = fix_size(exact, size) if size else exact
    clips = [clip_inputs(program, clip) for clip in load_clips(source, size, 1, frames)]
    return measure_errors(program, exact, clips)


def diff(
    programs: Annotated[list[Path], typer.Argument(help="Two programs or more, .mcg.", metavar="PROGRAM...")],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node that differs.")] = False,
    where: Annotated[
        str | None, typer.Option(help="List only such nodes: 'status=replaced and region~decoder'.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="A page for a browser: the programs side by side, whole.", metavar="FILE"),
    ] = None,
    size: Size = None,
    json: Json = False,
) -> None:
    """Show what differs between programs, each beside the one before it: nodes, regions, costs.

    mattecompress diff rvm.mcg w4a8.mcg

    mattecompress diff rvm.mcg w4a8.mcg lowered.mcg --nodes

    mattecompress diff rvm.mcg w4a8.mcg --where 'maker=quantize and region~decoder'

    mattecompress diff rvm.mcg w4a8.mcg --html difference.html

    mattecompress diff rvm.mcg w4a8.mcg --json
    """
    from mattecompress.inspection.difference import DIFFERENCE_FIELDS, row_of
    from mattecompress.inspection.difference import diff as compare
    from mattecompress.inspection.query import parse_query

    wanted = parse_query(where, DIFFERENCE_FIELDS) if where else None
    if len(programs) < 2:
        raise ArgumentError(f"{programs[0]} is one program: name another to compare it with")
    if html:
        require_writable(html)
    loaded = [load_at(path, size) for path in programs]
    found = [compare(*pair) for pair in pairwise(loaded)]
    if html:
        _write_page(html, programs, loaded, found)
    if wanted:
        kept = [tuple(node for node in each.nodes if wanted(row_of(node))) for each in found]
        found = [replace(each, nodes=some) for each, some in zip(found, kept, strict=True)]
    if json:
        files = [str(path) for path in programs]
        print_json({"programs": files, "differences": [each.as_json() for each in found]})
        return
    if html:
        return
    from mattecompress.cli.difference_tables import print_difference

    for (before, after), each in zip(pairwise(programs), found, strict=True):
        print_difference(str(before), str(after), each, nodes or where is not None)


def _write_page(
    path: Path, files: list[Path], programs: "list[Program]", differences: "list[Difference]"
) -> None:
    from mattecompress.inspection.page import Version, write_page
    from mattecompress.inspection.rows import node_rows
    from mattecompress.propagation import program_symbols

    rows = [[] if program_symbols(program) else node_rows(program) for program in programs]
    labels = [file.name for file in files]
    write_page(path, [Version(*each) for each in zip(labels, programs, rows, strict=True)], differences)
    say(str(path))


def bisect(
    program: ProgramPath,
    pipeline: Annotated[str, typer.Option("-p", "--pipeline", help="Passes, separated by commas.")],
    input: Annotated[str, typer.Option(help="The clip to measure with.", metavar="CLIP")],
    max_error: Annotated[
        float,
        typer.Option(help="Allowed mean absolute difference of an output, from the program given.", min=0),
    ] = 0.05,
    calibration: Annotated[str | None, typer.Option(help="Clips for the passes; default: the same.")] = None,
    clips: Annotated[int, typer.Option(help="Calibration clips to take.", min=1)] = 1,
    frames: Annotated[int, typer.Option(help="Frames of each clip.", min=1)] = 4,
    seed: Seed = 0,
    json: Json = False,
) -> int:
    """Find the first pass whose program leaves the allowed error, and the first node that does. Exit code 1 if found.

    mattecompress bisect rvm.mcg -p 'ptq4vm{weights=2},lower' --input clip.mp4 --max-error 0.05

    mattecompress bisect rvm.mcg -p 'mse{weights=2}' --input procedural:3 --frames 2 --json
    """
    from mattecompress import container
    from mattecompress.data.sources import absolute_source, clip_inputs
    from mattecompress.inspection.bisection import bisect as find
    from mattecompress.pipeline import Context
    from mattecompress.pipeline_text import parse_pipeline

    passes = parse_pipeline(pipeline)
    given = container.load(program)
    source = calibration or input
    (clip,) = calibration_clips(input, given, passes, 1, frames)
    learned = calibration_clips(source, given, passes, clips, frames)
    with progress_bar() as report:
        context = Context(
            [clip_inputs(given, each) for each in learned], [each.alpha for each in learned], seed=seed
        )
        context.progress = report
        found = find(given, passes, clip_inputs(given, clip), max_error, context, _say_step)
    again = None
    if found.number is not None:
        prefix = type(passes)(passes.passes[: found.number])
        counts = calibration_options(source, clips, frames)
        words = ["opt", str(program), "-p", str(prefix), *counts, "--seed", str(seed), "-o", "left.mcg"]
        look = ["inspect", "left.mcg", "--error", absolute_source(input), "--frames", str(frames)]
        look += ["--reference", str(program)]
        look += ["--where", f"name={found.culprit.after[-1]}"] if found.culprit else ["--sort", "own_sqnr"]
        again = f"mattecompress {shlex.join(words)} && mattecompress {shlex.join(look)}"
    if json:
        print_json({**found.as_json(), "reproduce": again})
    else:
        _print_bisection(found, max_error, again)
    return int(found.number is not None)


def _say_step(step: "StepError") -> None:
    say(f"{step.seconds:8.3f} s  error {step.error:.3g}  {step.text}")


def _print_bisection(found: "Bisection", max_error: float, again: str | None) -> None:
    if found.number is None:
        typer.echo(f"no pass leaves an error of {max_error:g}")
        return
    step, culprit = found.steps[-1], found.culprit
    typer.echo(f"pass {found.number}, {step.text}, leaves an error of {max_error:g}: {step.error:.3g}")
    if culprit:
        where = f" in {culprit.region}" if culprit.region else ""
        typer.echo(
            f"first at %{culprit.before}{where}: {culprit.without:.3g} before it, {culprit.error:.3g} with it; it became"
        )
        for line in culprit.lines:
            typer.echo(f"  {line}")
    typer.echo(f"to see it again: {again}")
