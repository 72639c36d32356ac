"""Test clips from foregrounds and backgrounds, by the rules of RVM's evaluation sets (docs/datasets.md).

Clip i takes foreground i, i + 1 ... in turn, mirrored in every second round, and the i-th of the shuffled backgrounds.
A video begins at a random frame and is resized; a picture is fitted into the frame and moves. A background is cut to
the frame; a video begins at its first frame, a picture stands still. Everything is rounded to 8 bits, then

    com = floor((fgr pha + bgr (255 - pha)) / 255).

Written: OUT/0000/com, pha, fgr and bgr, each with 0000.png, 0001.png ..., and OUT/composition.json, which says what
each clip was made of. OUT appears, whole, in the end; until then OUT.partial holds the clips that are done, and the
same call goes on from them.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mattecompress.data.datasets.footage import DatasetError, Footage, fingerprint
from mattecompress.data.datasets.layouts import Dataset
from mattecompress.data.datasets.placement import cover, fit_inside, sample_motion
from mattecompress.data.frames import Size, from_bytes
from mattecompress.data.video import PictureWriter
from mattecompress.files import UnwritableError, atomic_path

VIDEO_SIZE = (288, 512)
PICTURE_SIZE = (512, 512)
ORDER, START, MOTION = range(3)
RECORD = "composition.json"
SUFFIXES = {"png": ".png", "jpg": ".jpg"}
Planes = tuple[Tensor, Tensor]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Rules:
    """What the published rules leave open.

    clips, frames: how many clips, and frames of each.
    size: (height, width); None is 288x512 for foregrounds from videos, 512x512 for pictures.
    seed: of start frames, motions and the order of backgrounds.
    suffix: of the pictures, `.png` or `.jpg`.
    """

    clips: int = 20
    frames: int = 100
    size: Size | None = None
    seed: int = 10
    suffix: str = ".png"


@dataclass(frozen=True)
class Scene:
    """What one clip is made of."""

    number: int
    foreground: Footage
    start: int
    mirrored: bool
    background: Footage


def compose(
    dataset: Dataset,
    backgrounds: tuple[Footage, ...],
    out: Path,
    rules: Rules,
    progress: Progress = lambda done, total, what: None,
) -> Size:
    """Write test clips by the rules at the top of this module; returns their size.

    The same arguments give the same bytes, however often the work was broken off.

    Raises:
        DatasetError: the data set has no foregrounds, footage is too short, or `out` or `out`.partial is something else.
        MediaError: footage cannot be read. UnwritableError: `out` cannot be written.
    """
    scenes = list(plan(dataset.foregrounds, backgrounds, rules))
    size = rules.size or (PICTURE_SIZE if scenes[0].foreground.length == 1 else VIDEO_SIZE)
    record = _describe(dataset, scenes, rules, size)
    if _made_alike(out, record):
        return size
    whole = out if out.name else out.absolute()
    partial = whole.with_name(f"{whole.name}.partial")
    if not _made_alike(partial, record):
        with atomic_path(partial / RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    _sweep(partial)
    for scene in scenes:
        _write_scene(partial / f"{scene.number:04d}", scene, rules, size, progress)
    try:
        partial.replace(out)
    except OSError as error:
        raise UnwritableError(f"cannot write {out}: {error.strerror}; choose another place") from error
    return size


def plan(foregrounds: tuple[Footage, ...], backgrounds: tuple[Footage, ...], rules: Rules) -> Iterator[Scene]:
    """What each clip is made of.

    Raises:
        DatasetError: footage has too few frames. MediaError: it cannot be read.
    """
    order = _random(rules, ORDER).permutation(len(backgrounds))
    for number in range(rules.clips):
        turn, place = divmod(number, len(foregrounds))
        foreground = foregrounds[place]
        background = backgrounds[order[number % len(order)]]
        for footage in (foreground, background):
            if 1 < footage.length < rules.frames:
                path = next(iter(footage.streams.values()))
                raise DatasetError(
                    f"{path} has {footage.length} frames, {rules.frames} are wanted: ask for fewer "
                    "with --frames"
                )
        spare = max(foreground.length - rules.frames, 0)
        start = int(_random(rules, START, number).integers(spare + 1))
        yield Scene(number, foreground, start, turn % 2 == 1, background)


def _random(rules: Rules, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([rules.seed, *purpose])


def _describe(dataset: Dataset, scenes: list[Scene], rules: Rules, size: Size) -> dict[str, Any]:
    """What tells one composition from another, as JSON gives it back."""
    clips = [
        {
            "clip": f"{scene.number:04d}",
            "foreground": scene.foreground.name,
            "start": scene.start,
            "mirrored": scene.mirrored,
            "background": scene.background.name,
        }
        for scene in scenes
    ]
    footage = {
        "foregrounds": _fingerprint(scene.foreground for scene in scenes),
        "backgrounds": _fingerprint(scene.background for scene in scenes),
    }
    layout = dataset.layout.name
    return {**asdict(rules), "size": list(size), "layout": layout, "scenes": clips, **footage}


def _fingerprint(footage: Iterable[Footage]) -> str:
    """Of each clip once, in the order of their names."""
    by_name = {each.name: each for each in footage}
    return fingerprint(by_name[name] for name in sorted(by_name))


def _made_alike(folder: Path, record: dict[str, Any]) -> bool:
    """Whether the same composition is there; False where nothing is.

    Raises:
        DatasetError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and all(map(_is_unfinished_record, folder.iterdir()))):
        return False
    try:
        theirs = json.loads((folder / RECORD).read_text())
        different = sorted(key for key in record if theirs.get(key) != record[key])
    except (OSError, ValueError, AttributeError):
        raise DatasetError(f"{folder}: holds something else; choose another folder") from None
    if different:
        raise DatasetError(
            f"{folder}: was made with other {', '.join(different)}; remove it, or choose another folder"
        )
    return True


def _is_unfinished_record(path: Path) -> bool:
    return path.name.startswith(".composition.")


def _sweep(folder: Path) -> None:
    """Remove what a broken-off write left behind."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_scene(target: Path, scene: Scene, rules: Rules, size: Size, progress: Progress) -> None:
    total, done = rules.clips * rules.frames, scene.number * rules.frames
    if target.exists():
        progress(done + rules.frames, total, "compose")
        return
    with atomic_path(target) as temporary:
        pairs = zip(_foreground(scene, rules, size), _background(scene, rules, size), strict=True)
        for number, ((colour, alpha), behind) in enumerate(pairs):
            pictures = {"com": blend(colour, alpha, behind), "pha": alpha, "fgr": colour, "bgr": behind}
            for role, picture in pictures.items():
                with PictureWriter(temporary / role / f"{number:04d}{rules.suffix}") as writer:
                    writer.write(from_bytes(picture))
            progress(done + number + 1, total, "compose")


def blend(foreground: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """uint8 floor((F a + B (255 - a)) / 255), exact; of uint8 (3, H, W), alpha (1, H, W)."""
    a = alpha.int()
    return ((foreground.int() * a + background.int() * (255 - a)) // 255).to(torch.uint8)


def _foreground(scene: Scene, rules: Rules, size: Size) -> Iterator[Planes]:
    """Colour and alpha of each frame, uint8."""
    pairs = _moving if scene.foreground.length == 1 else _running
    for colour, alpha in pairs(scene, rules, size):
        planes = [plane.flip(-1) if scene.mirrored else plane for plane in (colour, alpha)]
        yield _bytes(planes[0]), _bytes(planes[1])


def _running(scene: Scene, rules: Rules, size: Size) -> Iterator[Planes]:
    colours, alphas = (
        scene.foreground.stream(role, scene.start, rules.frames, size) for role in ("foreground", "alpha")
    )
    return zip(colours, alphas, strict=True)


def _moving(scene: Scene, rules: Rules, size: Size) -> Iterator[Planes]:
    motion = sample_motion(_random(rules, MOTION, scene.number))
    colour, alpha = (
        fit_inside(next(scene.foreground.stream(role)), size).double() for role in ("foreground", "alpha")
    )
    for number in range(rules.frames):
        progress = number / max(rules.frames - 1, 1)
        yield motion.move(colour, progress), motion.move(alpha, progress)


def _background(scene: Scene, rules: Rules, size: Size) -> Iterator[Tensor]:
    if scene.background.length == 1:
        yield from repeat(_bytes(cover(next(scene.background.stream("frames")), size)), rules.frames)
    else:
        for frame in scene.background.stream("frames", count=rules.frames):
            yield _bytes(cover(frame, size))


def _bytes(plane: Tensor) -> Tensor:
    """Rounded to uint8, as picture libraries resize."""
    return (plane * 255).round().to(torch.uint8)
