"""The folders that matting data sets come in, found by the names they use or named before the path.

    rvm               clips composed for evaluation:  CLIP/com  CLIP/pha  CLIP/fgr
    videomatte240k    foregrounds of videos:          fgr/CLIP  pha/CLIP
    distinctions-646  foregrounds of pictures:        FG/CLIP   GT/CLIP
    aim               foregrounds of pictures:        fg/CLIP   alpha/CLIP
    composition-1k    composed pictures:              merged/CLIP  alpha_copy/CLIP

CLIP is a video, a picture or a folder of pictures, in `rvm` a folder. The folders may lie up to three levels deep, but
not below pictures or videos, unless the layout is named.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mattecompress.data.datasets.footage import DatasetError, Footage, Role, find_footage, is_media
from mattecompress.data.video import natural_order

DEPTH = 3
SPLITS = ("train", "test", "valid", "validation", "training_set", "test_set")


@dataclass(frozen=True)
class Layout:
    """The folder of each role, and of those that may be absent; `by_clip` when each clip has its own of them."""

    name: str
    folders: Mapping[Role, str]
    optional: Mapping[Role, str]
    by_clip: bool = False

    @property
    def form(self) -> str:
        """What a folder of this layout holds, for people."""
        places = self.folders.values()
        return " and ".join(f"CLIP/{place}" if self.by_clip else f"{place}/CLIP" for place in places)

    def fits(self, names: set[str]) -> bool:
        """Whether folders of these names are all that it needs."""
        return names.issuperset(self.folders.values())


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("rvm", {"frames": "com", "alpha": "pha"}, {"foreground": "fgr"}, by_clip=True),
        Layout("videomatte240k", {"foreground": "fgr", "alpha": "pha"}, {}),
        Layout("distinctions-646", {"foreground": "FG", "alpha": "GT"}, {}),
        Layout("aim", {"foreground": "fg", "alpha": "alpha"}, {}),
        Layout("composition-1k", {"frames": "merged", "alpha": "alpha_copy"}, {}),
    )
}


@dataclass(frozen=True)
class Dataset:
    """The clips of a folder, in natural order of their names."""

    layout: Layout
    folder: Path
    clips: tuple[Footage, ...]

    @property
    def composed(self) -> tuple[Footage, ...]:
        """The clips, with their frames; raises DatasetError where they have none."""
        if "frames" not in self.layout.folders:
            raise DatasetError(
                f"{self.folder}: {self.layout.name} holds foregrounds without backgrounds: make clips of them with "
                f"`mattecompress compose {self.folder} --backgrounds FOLDER -o clips`"
            )
        return self.clips

    @property
    def foregrounds(self) -> tuple[Footage, ...]:
        """The clips, to be put before backgrounds; raises DatasetError where they have been."""
        if "frames" in self.layout.folders:
            raise DatasetError(f"{self.folder}: {self.layout.name} holds composed clips, no foregrounds")
        return self.clips


def open_dataset(source: str) -> Dataset:
    """The data set that `source` names: a folder, or `LAYOUT:FOLDER`.

    Raises:
        DatasetError: there is none; clips lack a part; the folder holds several splits, of which one is to be named.
    """
    found = find_dataset(source)
    if found is None:
        forms = "; ".join(f"{layout.name}: {layout.form}" for layout in LAYOUTS.values())
        reason = "holds no data set" if Path(source).is_dir() else "no such folder"
        raise DatasetError(f"{source}: {reason}; expected one of {forms}")
    return found


def find_dataset(source: str) -> Dataset | None:
    """As `open_dataset`, but None where no layout is named and none is found.

    Raises:
        DatasetError: as `open_dataset`; a layout is named and not found; there is half a data set.
    """
    named, folder = split_source(source)
    shallow = named is None and folder.is_dir() and any(map(is_media, folder.iterdir()))
    rooms = dict(_rooms(folder, 0 if shallow else DEPTH)) if folder.is_dir() else {}
    for layout in [named] if named else LAYOUTS.values():
        if homes := [room for room, names in rooms.items() if layout.fits(names)]:
            _require_one_split(folder, homes)
            clips = _clips_by_folder if layout.by_clip else _clips_by_file
            return Dataset(layout, folder, tuple(clips(layout, folder, homes)))
    if named:
        reason = f"holds no {named.form}" if folder.is_dir() else "no such folder"
        raise DatasetError(f"{folder}: {reason}, the layout of {named.name}")
    if not shallow:
        _require_no_half(rooms)
    return None


def split_source(source: str) -> tuple[Layout | None, Path]:
    """The layout that is named before a colon, if any, and the folder."""
    name, colon, folder = source.partition(":")
    return (LAYOUTS[name], Path(folder)) if colon and name in LAYOUTS else (None, Path(source))


def _rooms(folder: Path, depth: int) -> Iterator[tuple[Path, set[str]]]:
    """Folders from `folder` down, each with the names of those in it; not into those that fit a layout."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror})") from error
    yield folder, names
    if depth and not any(layout.fits(names) for layout in LAYOUTS.values()):
        for name in sorted(names, key=natural_order):
            yield from _rooms(folder / name, depth - 1)


def _clips_by_folder(layout: Layout, folder: Path, homes: list[Path]) -> Iterator[Footage]:
    places = {**layout.folders, **layout.optional}
    for home in homes:
        streams = {role: home / place for role, place in places.items() if (home / place).is_dir()}
        yield Footage(_name(folder, home), streams)


def _clips_by_file(layout: Layout, folder: Path, homes: list[Path]) -> Iterator[Footage]:
    for home in homes:
        found = {role: find_footage(home / place) for role, place in layout.folders.items()}
        known = {name for footage in found.values() for name in footage}
        if not known:
            raise DatasetError(f"{home}: holds no clips: {layout.name} has {layout.form}")
        for role, place in layout.folders.items():
            if lacking := sorted(known - found[role].keys(), key=natural_order):
                others = " and ".join(other for other in layout.folders.values() if other != place)
                raise DatasetError(
                    f"{home / place}: holds no {lacking[0]}, which is in {others} beside it "
                    f"({len(lacking)} of {len(known)} clips are incomplete); {layout.name} has {layout.form}"
                )
        for name in sorted(known, key=natural_order):
            yield Footage(_name(folder, home / name), {role: paths[name] for role, paths in found.items()})


def _name(folder: Path, place: Path) -> str:
    return folder.name if place == folder else place.relative_to(folder).as_posix()


def _require_one_split(folder: Path, homes: list[Path]) -> None:
    inside = dict.fromkeys(home.relative_to(folder).parts[0] for home in homes if home != folder)
    splits = [name for name in inside if name.lower() in SPLITS]
    if len(splits) > 1:
        raise DatasetError(f"{folder}: holds {' and '.join(splits)}: name one, such as {folder / splits[0]}")


def _require_no_half(rooms: Mapping[Path, set[str]]) -> None:
    for layout in LAYOUTS.values():
        wanted = list(layout.folders.values())
        for room, names in rooms.items():
            if there := [place for place in wanted if place in names]:
                lacking = " and ".join(place for place in wanted if place not in names)
                raise DatasetError(
                    f"{room}: holds {' and '.join(there)} but no {lacking} beside it; "
                    f"{layout.name} has {layout.form}"
                )
