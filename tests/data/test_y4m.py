from fractions import Fraction

import pytest
import torch

from mattecompress.data import y4m
from mattecompress.data.frames import MediaError, from_bytes, to_bytes
from mattecompress.data.video import Y4mWriter, read_frames, read_info


def write(path, frames, fps=25):
    with Y4mWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def random_frames(count, channels, height, width):
    generator = torch.Generator().manual_seed(0)
    return from_bytes(torch.randint(0, 256, (count, channels, height, width), generator=generator))


def test_grey_survives_exactly(tmp_path):
    frames = random_frames(3, 1, 5, 7)
    path = write(tmp_path / "alpha.y4m", frames)
    assert torch.equal(torch.stack(list(read_frames(path))), frames.expand(-1, 3, -1, -1))


def test_grey_stored_as_colour_survives_exactly(tmp_path):
    grey = from_bytes(torch.arange(256, dtype=torch.uint8)).view(1, 16, 16).expand(3, -1, -1)
    (back,) = read_frames(write(tmp_path / "grey.y4m", [grey]))
    assert torch.equal(back, grey)


def test_colours_survive_within_two_of_255(tmp_path):
    frames = random_frames(2, 3, 64, 64)
    back = torch.stack(list(read_frames(write(tmp_path / "colour.y4m", frames))))
    error = (to_bytes(back).int() - to_bytes(frames).int()).abs()
    assert error.max() <= 2


def test_header_and_info(tmp_path):
    path = write(tmp_path / "a.y4m", random_frames(2, 3, 5, 7), fps=30000 / 1001)
    header = path.read_bytes().split(b"\n")[0]
    assert header == b"YUV4MPEG2 W7 H5 F30000:1001 Ip A1:1 C444 XCOLORRANGE=FULL"
    info = read_info(path)
    assert (info.height, info.width, info.frames, info.fps) == (5, 7, 2, Fraction(30000, 1001))


def test_limited_range_and_repeated_chroma_are_read(tmp_path):
    luma = bytes([16, 235] * 6)
    path = tmp_path / "small.y4m"
    path.write_bytes(b"YUV4MPEG2 W4 H3 F25:1\nFRAME Ip\n" + luma + bytes([128] * 8))
    (frame,) = read_frames(path)
    assert torch.equal(frame, torch.tensor([0.0, 1.0]).repeat(6).view(1, 3, 4).expand(3, -1, -1))
    assert y4m.read_header(path).plane_sizes == ((3, 4), (2, 2), (2, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin with YUV4MPEG2"),
        (b"\x89PNG\r\n", "does not begin with YUV4MPEG2"),
        (b"YUV4MPEG2 W4 H4 C420p10\nFRAME\n", "C420p10 is not supported"),
        (b"YUV4MPEG2 W4\nFRAME\n", "lacks a valid size"),
        (b"YUV4MPEG2 W4 Hfour\n", "lacks a valid size"),
        (b"YUV4MPEG2 W4 H4 F25:0\n", "lacks a valid size or frame rate"),
        (b"YUV4MPEG2 W0 H4\n", "the size 4x0"),
        (b"YUV4MPEG2 W2 H2 Cmono\n", "holds no frames"),
        (b"YUV4MPEG2 W2 H2 Cmono\nFRAME\n\0\0\0\0FRAME\n\0", "cut off in frame 1"),
        (b"YUV4MPEG2 W1000000000000 H1000000 Cmono\nFRAME\n\0", "cut off in frame 0"),
        (b"YUV4MPEG2 W30000000000 H1 Cmono\nFRAME\n\0", "cut off in frame 0"),
        (b"YUV4MPEG2 W2 H2 Cmono\nPICTURE\n\0\0\0\0", "damaged or cut off in frame 0"),
    ],
)
def test_damaged_files_are_named(tmp_path, data, message):
    path = tmp_path / "bad.y4m"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=f"bad.y4m.*{message}"):
        list(read_frames(path))
