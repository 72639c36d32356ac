"""What verbs that look at programs measure on a clip: errors by node, and what masks and routers choose."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mattecompress.cli.running import fit_to, load_at

if TYPE_CHECKING:
    from mattecompress.data.sources import SourceClip
    from mattecompress.inspection.decisions import Decisions
    from mattecompress.inspection.error import NodeError
    from mattecompress.program import Program

Masks = Annotated[
    str | None,
    typer.Option(help="Run this clip and show what masks and routers choose.", metavar="CLIP"),
]
ClipFrames = Annotated[int, typer.Option(help="With --error and --masks: frames of the clip.", min=1)]


def fit_all(programs: "Sequence[Program]", source: str) -> "list[Program]":
    """Programs at one size: that of the first whose size is fixed, or the clip's.

    Raises:
        ResolutionError: another is fixed at another size. MediaError: the clip cannot be read.
    """
    from mattecompress.interface import frame_size
    from mattecompress.preparation import fix_size

    size = next(filter(None, map(frame_size, programs)), None)
    return [fix_size(program, size) if size else fit_to(program, source) for program in programs]


def errors_of(program: "Program", source: str, reference: Path | None, frames: int) -> "dict[str, NodeError]":
    """Against the program in a file, or against the same without quantizers."""
    from mattecompress.inspection.error import without_quantizers
    from mattecompress.interface import frame_size
    from mattecompress.preparation import fix_size

    size = frame_size(program)
    exact = without_quantizers(program) if reference is None else load_at(reference, None)
    return errors_against(program, fix_size(exact, size) if size else exact, source, frames)


def errors_against(program: "Program", exact: "Program", source: str, frames: int) -> "dict[str, NodeError]":
    """Of a program's nodes against their counterparts in another of its size."""
    from mattecompress.data.sources import clip_inputs
    from mattecompress.inspection.error import measure_errors

    return measure_errors(program, exact, [clip_inputs(program, clip_for(program, source, frames))])


def decisions_of(program: "Program", source: str, frames: int) -> "Decisions":
    """What the program's masks and routers choose."""
    from mattecompress.data.sources import clip_inputs
    from mattecompress.inspection.decisions import record_decisions

    return record_decisions(program, clip_inputs(program, clip_for(program, source, frames)))


def clip_for(program: "Program", source: str, frames: int | None) -> "SourceClip":
    """The first clip of a source, at the program's size.

    Raises:
        FrameInputError: the program takes no single frame. DatasetError, MediaError: the clip cannot be read.
    """
    from mattecompress.data.sources import load_clips
    from mattecompress.interface import frame_size

    return next(iter(load_clips(source, frame_size(program), 1, frames)))
