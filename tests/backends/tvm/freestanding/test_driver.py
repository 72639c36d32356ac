"""The C that reads and writes pictures, built with sanitizers around a program that copies the red plane."""

import json
import random
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mattecompress.backends.tvm.freestanding.library import Ports, write_driver, write_library
from mattecompress.backends.tvm.freestanding.plan import Place, Plan, Step, TensorSpec
from mattecompress.backends.tvm.targets import find_target
from mattecompress.data.frames import to_bytes
from mattecompress.data.y4m import frame_bytes

HEIGHT, WIDTH = 9, 14
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
pytestmark = pytest.mark.needs("gcc")


@pytest.fixture(scope="module")
def copy_red(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    frame, alpha = (
        TensorSpec("src", (1, 3, HEIGHT, WIDTH), "float32"),
        TensorSpec("pha", (1, 1, HEIGHT, WIDTH), "float32"),
    )
    copy = Step("", (Place("input", 0), Place("output", 0)), alpha.bytes)
    plan = Plan((frame,), (alpha,), (copy,), (), (0,), b"", alpha.bytes)
    sources = write_library(folder, "red", find_target("host"), plan, {})
    sources += write_driver(folder, "red", "red", Ports(0, 0))
    flags = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", *SANITIZERS]
    subprocess.run(["gcc", *flags, *(s.name for s in sources), "-o", "red"], cwd=folder, check=True)
    return folder / "red"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


def done(program: Path, *words: object) -> str:
    result = run(program, *words)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return result.stdout


def refused(program: Path, *words: object) -> str:
    result = run(program, *words)
    assert result.returncode == 2, result.stderr
    assert "Sanitizer" not in result.stderr
    assert "runtime error" not in result.stderr
    return result.stderr


def picture(seed: int = 0) -> np.ndarray:
    smooth = np.linspace(0, 255, HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3)
    noise = np.random.default_rng(seed).integers(-20, 21, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def raw(frames: np.ndarray, path: Path) -> Path:
    frames.astype("<f4").tofile(path)
    return path


def y4m(planes: bytes, path: Path, header: str = "C444") -> Path:
    path.write_bytes(
        f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F30000:1001 Ip A1:1 {header}\n".encode() + b"FRAME\n" + planes
    )
    return path


def read_alpha(path: Path) -> np.ndarray:
    return np.fromfile(path, "<f4").reshape(-1, HEIGHT, WIDTH)


def test_raw_frames_pass_unchanged(copy_red, tmp_path):
    frames = np.random.default_rng(0).random((3, 3, HEIGHT, WIDTH), dtype=np.float32)
    done(copy_red, raw(frames, tmp_path / "in.f32"), tmp_path / "out.f32")
    assert np.array_equal(read_alpha(tmp_path / "out.f32"), frames[:, 0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_input_is_the_picture(copy_red, tmp_path, mode, level):
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "in.png", compress_level=level)
    done(copy_red, tmp_path / "in.png", tmp_path / "out.f32")
    expected = np.asarray(image.convert("RGB"))[:, :, 0].astype(np.float32) / np.float32(255)
    assert np.array_equal(read_alpha(tmp_path / "out.f32")[0], expected)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(packed: bytes, depth: int = 8, kind: int = 2, interlaced: int = 0, width: int = WIDTH) -> bytes:
    header = struct.pack(">IIBBBBB", width, HEIGHT, depth, kind, 0, 0, interlaced)
    body = (
        chunk(b"IHDR", header)
        + chunk(b"tEXt", b"a\0b")
        + chunk(b"IDAT", packed[:7])
        + chunk(b"IDAT", packed[7:])
    )
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def paeth(left: int, up: int, corner: int) -> int:
    distance = (abs(up - corner), abs(left - corner), abs(left + up - 2 * corner))
    return (left, up, corner)[distance.index(min(distance))]


def filtered(pixels: np.ndarray, kind: int) -> bytes:
    """Lines of 8-bit RGB under one PNG filter, written from its definition."""
    lines, above = [], np.zeros(WIDTH * 3 + 3, int)
    for row in pixels.reshape(HEIGHT, -1).astype(int):
        line = np.concatenate([np.zeros(3, int), row])
        left, up, corner = line[:-3], above[3:], above[:-3]
        nearest = [paeth(*three) for three in zip(left, up, corner, strict=True)]
        guess = (0, left, up, (left + up) // 2, np.array(nearest))[kind]
        lines.append(bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes())
        above = line
    return b"".join(lines)


@pytest.mark.parametrize("kind", range(5))
def test_every_png_filter_is_undone(copy_red, tmp_path, kind):
    (tmp_path / "in.png").write_bytes(png(zlib.compress(filtered(picture(), kind))))
    done(copy_red, tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), picture()[:, :, 0])


@pytest.mark.parametrize(
    ("kind", "level", "strategy"), [(0, 0, 0), (1, 9, zlib.Z_FIXED), (2, 9, zlib.Z_HUFFMAN_ONLY)]
)
def test_every_kind_of_deflate_block_is_read(copy_red, tmp_path, kind, level, strategy):
    coarse = picture() & 0xC0
    packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
    packed = packer.compress(filtered(coarse, 0)) + packer.flush()
    assert packed[2] >> 1 & 3 == kind
    (tmp_path / "in.png").write_bytes(png(packed))
    done(copy_red, tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), coarse[:, :, 0])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5, None])
def test_mattes_are_the_bytes_that_python_stores(copy_red, tmp_path, value):
    rng = np.random.default_rng(1)
    frame = (
        rng.random((3, HEIGHT, WIDTH), dtype=np.float32)
        if value is None
        else np.full((3, HEIGHT, WIDTH), value)
    )
    source, alpha = raw(frame, tmp_path / "in.f32"), torch.from_numpy(frame[:1].astype(np.float32))
    done(copy_red, source, tmp_path / "out.png")
    image = Image.open(tmp_path / "out.png")
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), to_bytes(alpha[0]))
    done(copy_red, source, tmp_path / "out.y4m")
    assert (tmp_path / "out.y4m").read_bytes().endswith(b"\n" + frame_bytes(alpha))


def test_values_outside_the_unit_range_and_nan_are_clamped(copy_red, tmp_path):
    frame = np.zeros((3, HEIGHT, WIDTH), np.float32)
    frame[0, 0, :5] = (-3, 7, np.nan, np.inf, -np.inf)
    done(copy_red, raw(frame, tmp_path / "in.f32"), tmp_path / "out.y4m")
    assert list((tmp_path / "out.y4m").read_bytes()[-HEIGHT * WIDTH :][:5]) == [0, 255, 0, 255, 0]


@pytest.mark.parametrize(
    ("matrix", "y", "cb", "cr", "red"),
    [
        ("bt601", 81, 90, 240, 1.0),
        ("bt601", 145, 54, 34, 0.0),
        ("bt709", 63, 102, 240, 1.0),
        ("bt601", 16, 128, 128, 0.0),
        ("bt601", 235, 128, 128, 1.0),
    ],
)
def test_video_range_colours(copy_red, tmp_path, matrix, y, cb, cr, red):
    planes = b"".join(bytes([value]) * (HEIGHT * WIDTH) for value in (y, cb, cr))
    done(copy_red, y4m(planes, tmp_path / "in.y4m"), tmp_path / "out.f32", "--matrix", matrix)
    assert read_alpha(tmp_path / "out.f32") == pytest.approx(red, abs=4e-3)


def test_grey_in_the_full_range_is_exact(copy_red, tmp_path):
    grey = picture()[:, :, 0]
    done(copy_red, y4m(grey.tobytes(), tmp_path / "in.y4m", "Cmono XCOLORRANGE=FULL"), tmp_path / "out.y4m")
    header, frame = (tmp_path / "out.y4m").read_bytes().split(b"\nFRAME\n", 1)
    assert header == f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F30000:1001 Ip A1:1 Cmono XCOLORRANGE=FULL".encode()
    assert frame == grey.tobytes()


def test_chroma_of_420_covers_two_by_two_pixels(copy_red, tmp_path):
    rows, columns = (HEIGHT + 1) // 2, (WIDTH + 1) // 2
    red = np.random.default_rng(2).integers(16, 241, (rows, columns), dtype=np.uint8)
    planes = bytes([100]) * (HEIGHT * WIDTH) + bytes([128]) * (rows * columns) + red.tobytes()
    done(copy_red, y4m(planes, tmp_path / "in.y4m", "C420jpeg"), tmp_path / "out.f32")
    wide = red.repeat(2, 0).repeat(2, 1)[:HEIGHT, :WIDTH].astype(float)
    expected = np.clip(84 / 219 + (wide - 128) / 224 * 1.402, 0, 1)
    assert read_alpha(tmp_path / "out.f32")[0] == pytest.approx(expected, abs=1e-6)


def test_frames_repeat_and_time(copy_red, tmp_path):
    frames = np.random.default_rng(0).random((4, 3, HEIGHT, WIDTH), dtype=np.float32)
    source = raw(frames, tmp_path / "in.f32")
    report = json.loads(done(copy_red, source, tmp_path / "out.f32", "--frames", 2, "--repeat", 3, "--time"))
    assert report["frames"] == 6
    assert 0 <= report["best_ms"] <= report["mean_ms"]
    assert report["memory_bytes"] >= HEIGHT * WIDTH * 4
    assert np.array_equal(read_alpha(tmp_path / "out.f32"), frames[:2, 0])


def test_help_is_no_error(copy_red):
    assert done(copy_red, "--help").startswith("usage: red INPUT OUTPUT")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "usage: red"),
        (("in.f32",), "usage: red"),
        (("in.f32", "out.f32", "more"), "one word too many"),
        (("in.f32", "out.f32", "--fast"), "--fast: no such option"),
        (("in.f32", "out.f32", "--frames"), "give a number from 1"),
        (("in.f32", "out.f32", "--frames", "0"), "give a number from 1"),
        (("in.f32", "out.f32", "--repeat", "-3"), "give a number from 1"),
        (("in.f32", "out.f32", "--threads", "two"), "give a number from 1"),
        (("in.f32", "out.f32", "--frames", "99999999999999999999999"), "give a number from 1"),
        (("in.f32", "out.f32", "--matrix", "xyz"), "give bt601 or bt709"),
        (("in.mp4", "out.f32"), "must end in .y4m, .png or .f32"),
        (("absent.f32", "out.f32"), "cannot read it: No such file"),
    ],
)
def test_wrong_words(copy_red, words, message):
    assert message in refused(copy_red, *words)


def test_unwritable_output(copy_red, tmp_path):
    source = raw(np.zeros((3, HEIGHT, WIDTH)), tmp_path / "in.f32")
    assert "cannot write there: No such file" in refused(copy_red, source, tmp_path / "absent" / "out.f32")


BROKEN = {
    "another size.png": (
        png(zlib.compress(filtered(picture(), 0)), width=WIDTH + 1),
        "it is 9x15 (height x width)",
    ),
    "16 bits.png": (png(b"", depth=16), "only 8-bit grey and RGB"),
    "palette.png": (png(b"", kind=3), "only 8-bit grey and RGB"),
    "interlaced.png": (png(b"", interlaced=1), "interlaced"),
    "no image.png": (png(b""), "cut off"),
    "too little.png": (png(zlib.compress(b"abc")), "less data than pixels"),
    "too much.png": (png(zlib.compress(bytes(10**6))), "more data than pixels"),
    "filter.png": (png(zlib.compress(b"\5" + filtered(picture(), 0)[1:])), "a filter is unknown"),
    "not.png": (b"GIF89a", "no PNG file"),
    "empty.png": (b"", "no PNG file"),
    "empty.f32": (b"", "frame 0 is cut off"),
    "half.f32": (bytes(HEIGHT * WIDTH * 3 * 4 + 8), "frame 1 is cut off"),
    "empty.y4m": (b"", "no Y4M file"),
    "other.y4m": (b"RIFF....AVI LIST\n", "no Y4M file"),
    "endless.y4m": (b"YUV4MPEG2 " + b"X" * 5000, "broken Y4M header"),
    "no frame.y4m": (f"YUV4MPEG2 W{WIDTH} H{HEIGHT} C444\n".encode(), "no frame in it"),
    "large.y4m": (b"YUV4MPEG2 W99999999999 H99999999999\nFRAME\n", "this program takes 9x14"),
    "ten bits.y4m": (f"YUV4MPEG2 W{WIDTH} H{HEIGHT} C420p10\n".encode(), "C420p10"),
    "interlaced.y4m": (f"YUV4MPEG2 W{WIDTH} H{HEIGHT} It C444\n".encode(), "deinterlace"),
    "cut.y4m": (f"YUV4MPEG2 W{WIDTH} H{HEIGHT} C444\nFRAME\nabc".encode(), "frame 0 is cut off"),
    "lost.y4m": (f"YUV4MPEG2 W{WIDTH} H{HEIGHT} C444\nFRAMES\n".encode(), "does not start with FRAME"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_refused_and_nothing_is_written(copy_red, tmp_path, name):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "out.f32").write_bytes(b"kept")
    assert message in refused(copy_red, tmp_path / name, tmp_path / "out.f32")
    assert (tmp_path / "out.f32").read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.f32"])


def test_a_png_holds_one_frame(copy_red, tmp_path):
    source = raw(np.zeros((2, 3, HEIGHT, WIDTH)), tmp_path / "in.f32")
    assert "a PNG holds one frame" in refused(copy_red, source, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    done(copy_red, source, tmp_path / "out.png", "--frames", 1)


def hostile(seed: int) -> bytes:
    """A PNG whose compressed data is damaged under checksums that are right."""
    rng = random.Random(seed)
    packed = bytearray(zlib.compress(filtered(picture(seed), rng.randrange(5)), rng.choice((1, 6, 9))))
    for _ in range(rng.randrange(1, 6)):
        packed[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    return png(bytes(packed[: rng.randrange(len(packed) // 2, len(packed) + 1)]))


@pytest.mark.parametrize("first", range(0, 160, 40))
def test_damaged_compression_never_breaks_the_program(copy_red, tmp_path, first):
    for seed in range(first, first + 40):
        (tmp_path / "in.png").write_bytes(hostile(seed))
        refused(copy_red, tmp_path / "in.png", tmp_path / "out.f32")


def test_a_png_cut_anywhere_is_refused(copy_red, tmp_path):
    whole = png(zlib.compress(filtered(picture(), 1)))
    for length in range(0, len(whole) - 12, 17):
        (tmp_path / "in.png").write_bytes(whole[:length])
        refused(copy_red, tmp_path / "in.png", tmp_path / "out.f32")


def test_tensors_are_read_and_written_whole(copy_red, tmp_path):
    frames = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH), dtype=np.float32)
    done(copy_red, "--tensors", raw(frames, tmp_path / "in"), tmp_path / "out")
    assert np.array_equal(read_alpha(tmp_path / "out"), frames[:, 0])
    (tmp_path / "in").write_bytes(b"1234567")
    assert "input src is cut off: it has 1512 bytes" in refused(
        copy_red, "--tensors", tmp_path / "in", tmp_path / "out"
    )
