"""From a clip to a matte on disk, one frame in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice, repeat
from pathlib import Path

from torch import Tensor

from mattecompress.data.colours import parse_colour
from mattecompress.data.frames import MediaError, composite
from mattecompress.data.sources import load_clips, procedural_seed
from mattecompress.data.trimaps import TrimapError, make_trimap, read_trimaps
from mattecompress.data.video import open_writer, read_frames, read_info
from mattecompress.interface import alpha_name, frame_size, takes_trimap
from mattecompress.preparation import require_fixed_size
from mattecompress.program import Program
from mattecompress.running.stream import Runner, Stream

PROCEDURAL_FRAMES = 48
FPS = Fraction(25)


def composite_path(alpha_path: Path) -> Path:
    """Where the composite of a matte goes: beside it, as `NAME-composite`."""
    return alpha_path.with_name(f"{alpha_path.stem}-composite{alpha_path.suffix}")


def matte_clip(
    program: Program,
    run: Runner,
    source: str,
    alpha_path: Path,
    colour: str | None = None,
    frames: int | None = None,
    trimap: str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[Path]:
    """Write the alpha of a clip and, given a colour such as `#00b140`, the foreground composed over it.

    run: computes the program, such as an artifact's `over_clips()`.
    source: a video, a picture, a folder of pictures, or `procedural[:SEED]`.
    trimap: the same of trimaps, of a program that takes them; procedural clips come with theirs.

    The composite goes to `composite_path`. Returns the paths written.

    Raises:
        MediaError: the source cannot be read, or the paths cannot be written. ColourError: no such colour.
        UnwritableError: a folder holds something, or a file cannot be written.
        ResolutionError: the program's size is open.
        TrimapError: the program takes a trimap and there is none, it takes none, or a procedural clip is given one.
    """
    require_fixed_size(program)
    background = parse_colour(colour) if colour else None
    beside = composite_path(alpha_path)
    written = [alpha_path] if background is None else [alpha_path, beside]
    _require_apart(written, {"input": source, "trimap": trimap})
    total, fps, pictures, trimaps = _open_source(program, source, trimap, frames)
    matte = alpha_name(program)
    with ExitStack() as stack:
        alphas = stack.enter_context(open_writer(alpha_path, fps))
        composites = stack.enter_context(open_writer(beside, fps)) if background is not None else None
        stream = Stream(program, run)
        for number, (picture, known) in enumerate(zip(pictures, trimaps, strict=False), start=1):
            outputs = stream(picture[None], None if known is None else known[None])
            alpha = outputs[matte][0]
            alphas.write(alpha)
            if composites is not None and background is not None:
                composites.write(composite(alpha, outputs.get("fgr", picture[None])[0], background))
            progress(number, total, "frames")
    return written


def _require_apart(written: Iterable[Path], given: Mapping[str, str | None]) -> None:
    """Raise `MediaError` where what is written would replace what was given under a name."""
    places = [path.resolve() for path in written]
    for name, source in given.items():
        if source and Path(source).exists() and Path(source).resolve() in places:
            raise MediaError(
                f"{source}: the matte would overwrite the {name}: name another file with --alpha"
            )


def _open_source(
    program: Program, source: str, trimap: str | None, frames: int | None
) -> tuple[int, Fraction, Iterator[Tensor], Iterator[Tensor | None]]:
    size = frame_size(program)
    if procedural_seed(source) is not None:
        if trimap:
            raise TrimapError("procedural clips come with their trimap: leave --trimap out")
        (clip,) = load_clips(source, size, clips=1, frames=frames or PROCEDURAL_FRAMES)
        assert clip.alpha is not None
        made = make_trimap(clip.alpha) if takes_trimap(program) else repeat(None)
        return len(clip.frames), FPS, iter(clip.frames), iter(made)
    path = Path(source)
    info = read_info(path)
    pictures = islice(read_frames(path, size=size), frames)
    trimaps = read_trimaps(trimap, path, size, frames) if trimap else repeat(None)
    return min(info.frames, frames or info.frames), info.fps or FPS, pictures, trimaps
