"""Small folders in the layouts of data sets."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mattecompress.data.video import write_frames


def picture(path: Path, seed: int, height: int = 12, width: int = 16, grey: bool = False) -> Path:
    """A picture with noise from `seed`."""
    shape = (height, width) if grey else (height, width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)
    return path


def pictures(
    folder: Path, seed: int, count: int, grey: bool = False, size: tuple[int, int] = (12, 16)
) -> Path:
    """A folder of `count` pictures."""
    for number in range(count):
        picture(folder / f"{number:05d}.png", 1000 * seed + number, *size, grey)
    return folder


def videomatte(folder: Path, frames: tuple[int, ...] = (6, 8)) -> Path:
    """Foregrounds of videos, one with each number of frames."""
    for number, count in enumerate(frames):
        pictures(folder / "fgr" / f"{number:04d}", number, count)
        pictures(folder / "pha" / f"{number:04d}", 50 + number, count, grey=True)
    return folder


def distinctions(folder: Path, count: int = 3) -> Path:
    """Foregrounds of pictures, higher than wide."""
    for number in range(count):
        picture(folder / "FG" / f"boy-{number}.jpg", number, 20, 10)
        picture(folder / "GT" / f"boy-{number}.png", 50 + number, 20, 10, grey=True)
    return folder


def composed(folder: Path, clips: int = 2, frames: int = 3) -> Path:
    """Clips in the layout of RVM's evaluation sets."""
    for number in range(clips):
        for seed, (role, grey) in enumerate({"com": False, "pha": True, "fgr": False, "bgr": False}.items()):
            pictures(folder / f"{number:04d}" / role, 10 * number + seed, frames, grey)
    return folder


def backgrounds(folder: Path, stills: int = 2, videos: int = 0) -> Path:
    """Pictures `still-N` and videos `film-N` of 8 frames."""
    for number in range(stills):
        picture(folder / f"still-{number}.png", 90 + number, 30, 20)
    for number in range(videos):
        generator = torch.Generator().manual_seed(number)
        write_frames(folder / f"film-{number}.y4m", torch.rand(8, 3, 10, 24, generator=generator))
    return folder
