"""Verbs that look at programs: inspect, diff."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mattecompress.cli.clip_runs import ClipFrames, Masks, decisions_of, errors_against, errors_of, fit_all
from mattecompress.cli.options import (
    ArgumentError,
    Json,
    Size,
    given_options,
    print_json,
    refuse,
    refuse_others,
    require_writable,
    say,
)
from mattecompress.cli.recordings import show_recording
from mattecompress.cli.running import fit_to, load_at

if TYPE_CHECKING:
    from mattecompress.inspection.decisions import Decisions
    from mattecompress.inspection.page import Version
    from mattecompress.program import Program

WHOLE = ("--html", "--dot", "--model-explorer")
LISTING = ("--nodes", "--where", "--sort", "--memory")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command."""
    app.command()(inspect)
    app.command()(diff)


def inspect(
    context: typer.Context,
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
    masks: Masks = None,
    times: Annotated[
        Path | None, typer.Option(help="What `bench --times` wrote: time by node.", metavar="FILE")
    ] = None,
    frames: ClipFrames = 4,
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

    mattecompress inspect bivm.mcg --masks clip.mp4

    mattecompress inspect w8a8.mcg --times times.json --where 'of_limit<0.5' --sort time_ms

    mattecompress inspect rvm.mcg --html rvm.html

    mattecompress inspect history/ --html history.html

    mattecompress inspect rvm.mcg --dot rvm.svg --model-explorer explorer/

    mattecompress inspect rvm.mcg --text | less
    """
    from mattecompress.analysis.cost import cost
    from mattecompress.inspection.exports import write_drawing, write_model_explorer
    from mattecompress.inspection.rows import node_rows, select
    from mattecompress.inspection.times import read_times
    from mattecompress.preparation import require_fixed_size

    if reference and error is None:
        raise ArgumentError("--reference is what errors are measured against: add --error with a clip")
    select([], where, sort)
    if program.is_dir():
        why = f"is about one program and {program} is a folder: give --html or --json with it"
        refuse_others(context, ("--html", "--json"), why)
        show_recording(program, html, json)
        return
    if text:
        why = "does not go with --text, which prints the program alone: leave one of them out"
        refuse_others(context, ("--text", "--size"), why)
    _require_read(context)
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
    if clip := error or masks:
        shown = fit_to(shown, clip)
    require_fixed_size(shown)
    known = cost(shown)
    taken = read_times(times, shown) if times else None
    errors = errors_of(shown, error, reference, frames) if error else None
    decisions = decisions_of(shown, masks, frames) if masks else None
    rows = node_rows(shown, errors, known, decisions.densities if decisions else None, taken)
    chosen = select(rows, where, sort)
    peak = max(rows, key=lambda row: row["live_bytes"], default=None)
    peak_bytes = peak["live_bytes"] if peak else 0
    if drawing:
        write_drawing(shown, drawing)
        say(str(drawing))
    if model_explorer:
        for path in write_model_explorer(shown, rows, model_explorer):
            say(str(path))
    if html:
        from mattecompress.inspection.page import Version, write_page

        write_page(html, [Version(program.name, shown, rows, decisions)])
        say(str(html))
    if json:
        memory_peak = {"node": peak["name"], "bytes": peak_bytes} if peak else None
        made = {"masks": _choices(decisions)} if decisions else {}
        print_json({**known.as_json(), "nodes": chosen, "peak": memory_peak, **made})
        return
    from mattecompress.cli import tables

    if drawing or model_explorer or html:
        return
    if memory:
        tables.print_memory(shown, chosen, peak_bytes)
    elif nodes or where or sort or times or errors is not None:
        tables.print_rows(shown, chosen)
    elif decisions:
        tables.print_decisions(shown, decisions)
    else:
        tables.print_cost(shown, known)


def diff(
    context: typer.Context,
    programs: Annotated[list[Path], typer.Argument(help="Two programs or more, .mcg.", metavar="PROGRAM...")],
    nodes: Annotated[bool, typer.Option("--nodes", help="List every node that differs.")] = False,
    where: Annotated[
        str | None, typer.Option(help="List only such nodes: 'status=replaced and region~decoder'.")
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(help="A page for a browser: the programs side by side, whole.", metavar="FILE"),
    ] = None,
    error: Annotated[
        str | None,
        typer.Option(
            help="Run this clip and show the nodes with most error against the first.", metavar="CLIP"
        ),
    ] = None,
    masks: Masks = None,
    frames: ClipFrames = 4,
    size: Size = None,
    json: Json = False,
) -> None:
    """Show what differs between programs, each beside the one before it: nodes, regions, costs.

    mattecompress diff rvm.mcg w4a8.mcg

    mattecompress diff rvm.mcg w4a8.mcg lowered.mcg --nodes

    mattecompress diff rvm.mcg w4a8.mcg --where 'maker=quantize and region~decoder'

    mattecompress diff rvm.mcg w4a4.mcg --error clip.mp4 --html difference.html

    mattecompress diff rvm.mcg w4a8.mcg --json
    """
    from mattecompress.inspection.difference import DIFFERENCE_FIELDS, row_of
    from mattecompress.inspection.difference import diff as compare
    from mattecompress.inspection.query import parse_query

    wanted = parse_query(where, DIFFERENCE_FIELDS) if where else None
    if len(programs) < 2:
        raise ArgumentError(f"{programs[0]} is one program: name another to compare it with")
    _require_read(context)
    if html:
        require_writable(html)
    loaded = [load_at(path, size) for path in programs]
    if clip := error or masks:
        loaded = fit_all(loaded, clip)
    found = [compare(*pair) for pair in pairwise(loaded)]
    versions = _versions(programs, loaded, error, masks, frames)
    if masks and not any(version.decisions for version in versions):
        raise ArgumentError("--masks: none of these programs has masks or routers: leave it out")
    if html:
        from mattecompress.inspection.page import write_page

        write_page(html, versions, found)
        say(str(html))
    if wanted:
        kept = [tuple(node for node in each.nodes if wanted(row_of(node))) for each in found]
        found = [replace(each, nodes=some) for each, some in zip(found, kept, strict=True)]
    if json:
        document: dict[str, Any] = {"programs": [str(path) for path in programs]}
        document["differences"] = [each.as_json() for each in found]
        if clip:
            document["nodes"] = [[*version.rows] for version in versions]
        if masks:
            document["masks"] = [_choices(version.decisions) for version in versions]
        print_json(document)
        return
    if html:
        return
    from mattecompress.cli import tables
    from mattecompress.cli.difference_tables import print_difference, print_worst

    for (before, after), each in zip(pairwise(versions), found, strict=True):
        print_difference(before.label, after.label, each, nodes or where is not None)
        if error:
            print_worst(after.label, after.rows, each)
        if after.decisions:
            tables.print_decisions(after.program, after.decisions)


def _require_read(context: typer.Context) -> None:
    """Raise `ArgumentError` for an option that nothing of what is asked for reads."""
    given = given_options(context)
    if "--error" not in given and "--masks" not in given:
        refuse(context, ("--frames",), "is about a clip: add --error or --masks with one")
    whole = next((option for option in WHOLE if option in given), None)
    if whole and "--json" not in given:
        refuse(context, LISTING, f"does not go with {whole}, which shows every node: leave one of them out")


def _versions(
    files: list[Path], programs: "list[Program]", error: str | None, masks: str | None, frames: int
) -> "list[Version]":
    """Programs with all that is known of their nodes."""
    from mattecompress.analysis.propagation import program_symbols
    from mattecompress.inspection.page import Version
    from mattecompress.inspection.rows import node_rows

    versions = []
    for number, (file, program) in enumerate(zip(files, programs, strict=True)):
        errors = errors_against(program, programs[0], error, frames) if error and number else None
        decisions = _decisions(program, masks, frames) if masks else None
        densities = decisions.densities if decisions else None
        rows = [] if program_symbols(program) else node_rows(program, errors, densities=densities)
        versions.append(Version(file.name, program, rows, decisions))
    return versions


def _decisions(program: "Program", masks: str, frames: int) -> "Decisions | None":
    """None of a program that has neither masks nor routers."""
    from mattecompress.inspection.decisions import NoDecisionError

    try:
        return decisions_of(program, masks, frames)
    except NoDecisionError:
        return None


def _choices(decisions: "Decisions | None") -> list[dict[str, Any]]:
    """What masks and routers choose, frame by frame; nothing of a program without."""
    return [each.as_json() for each in decisions.decisions] if decisions else []
