import builtins
from fractions import Fraction

import numpy as np
import pytest
import torch

from mattecompress.data.frames import MediaError, from_bytes, to_bytes
from mattecompress.data.video import (
    FolderWriter,
    PictureWriter,
    VideoWriter,
    Y4mWriter,
    open_writer,
    read_frames,
    read_info,
    write_frames,
)
from mattecompress.errors import MissingExtraError
from mattecompress.files import UnwritableError


def smooth_clip(count=6, height=48, width=64, channels=3):
    """Slow gradients, which a codec keeps well."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    frames = [torch.stack((x * t / count, y, (x + y) / 2))[:channels] for t in range(1, count + 1)]
    return torch.stack(frames)


def random_picture(channels=3, height=9, width=11):
    return from_bytes(
        torch.randint(0, 256, (channels, height, width), generator=torch.Generator().manual_seed(1))
    )


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_videos_come_back(tmp_path, suffix):
    clip = smooth_clip()
    path = tmp_path / "deep" / f"clip{suffix}"
    write_frames(path, clip, fps=24)
    back = torch.stack(list(read_frames(path)))
    assert back.dtype == torch.float32 and back.shape == clip.shape
    assert (back - clip).abs().mean() < 0.01
    info = read_info(path)
    assert (info.height, info.width, info.frames, info.fps) == (48, 64, 6, 24)
    assert left_behind(path.parent) == [path.name]


def test_odd_sizes_are_kept(tmp_path):
    clip = smooth_clip(3, 33, 47)
    write_frames(tmp_path / "odd.mp4", clip)
    back = torch.stack(list(read_frames(tmp_path / "odd.mp4")))
    assert back.shape == clip.shape
    assert (back - clip).abs().mean() < 0.01


def test_grey_video(tmp_path):
    clip = smooth_clip(channels=1)
    write_frames(tmp_path / "alpha.mp4", clip)
    back = torch.stack(list(read_frames(tmp_path / "alpha.mp4")))
    assert (back - clip).abs().mean() < 0.01


def test_uniform_colours_survive_the_video(tmp_path):
    for colour in ([1.0, 0, 0], [0, 1.0, 0], [0.2, 0.4, 0.9], [1.0, 1.0, 1.0]):
        clip = torch.tensor(colour).view(1, 3, 1, 1).expand(2, 3, 32, 32)
        write_frames(tmp_path / "flat.mp4", clip)
        assert (next(read_frames(tmp_path / "flat.mp4")) - clip[0]).abs().max() < 0.03


@pytest.mark.parametrize("fps", [25, 29.97, Fraction(30000, 1001), 12.5])
def test_frame_rates_survive(tmp_path, fps):
    write_frames(tmp_path / "a.mp4", smooth_clip(3), fps)
    assert float(read_info(tmp_path / "a.mp4").fps) == pytest.approx(float(fps), rel=1e-4)


@pytest.mark.parametrize("writer", [VideoWriter, Y4mWriter])
def test_frame_rates_must_be_positive(tmp_path, writer):
    with pytest.raises(ValueError, match="more than 0"):
        writer(tmp_path / "a.mp4", 0)


def test_limit_and_size(tmp_path):
    write_frames(tmp_path / "a.mp4", smooth_clip())
    frames = list(read_frames(tmp_path / "a.mp4", limit=2, size=(20, 30)))
    assert [tuple(frame.shape) for frame in frames] == [(3, 20, 30)] * 2
    with pytest.raises(ValueError, match="at least 1"):
        read_frames(tmp_path / "a.mp4", limit=0)


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "a"])
def test_start(tmp_path, name):
    write_frames(tmp_path / name, torch.rand(5, 3, 12, 16))
    whole = list(read_frames(tmp_path / name))
    assert torch.equal(
        torch.stack(list(read_frames(tmp_path / name, limit=2, start=2))), torch.stack(whole[2:4])
    )
    with pytest.raises(MediaError, match="holds no frames"):
        list(read_frames(tmp_path / name, start=5))


def test_turned_videos_come_upright(tmp_path):
    path, clip = tmp_path / "turned.mp4", smooth_clip(2)
    write_frames(path, clip)
    data = path.read_bytes()
    track = data.index(b"tkhd")
    unit, zero = bytes([0, 1, 0, 0]), bytes(4)
    upright = unit + zero * 3 + unit
    place = data.index(upright, track)
    clockwise = zero + unit + zero + bytes([255, 255, 0, 0]) + zero
    path.write_bytes(data[:place] + clockwise + data[place + len(upright) :])
    frame = next(read_frames(path))
    assert frame.shape == (3, 64, 48)
    assert (frame - torch.rot90(clip[0], -1, (1, 2))).abs().mean() < 0.01
    assert (read_info(path).height, read_info(path).width) == (64, 48)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_survive_exactly(tmp_path, channels):
    picture = random_picture(channels)
    write_frames(tmp_path / "a.png", picture[None])
    (back,) = read_frames(tmp_path / "a.png")
    assert torch.equal(back, picture[:3].expand(3, -1, -1))
    assert read_info(tmp_path / "a.png").fps is None


def test_pictures_are_truncated_to_bytes(tmp_path):
    write_frames(tmp_path / "a.png", torch.full((1, 1, 4, 4), 0.9999))
    assert to_bytes(next(read_frames(tmp_path / "a.png"))).unique().tolist() == [254]


def test_sixteen_bit_pictures_keep_their_range(tmp_path):
    from PIL import Image

    values = np.array([[0, 32768], [65535, 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    (back,) = read_frames(tmp_path / "deep.png")
    assert torch.allclose(back[2], torch.from_numpy(values / 65535.0).float())


def test_pictures_of_32_bits_keep_their_range(tmp_path):
    from PIL import Image

    floats = np.array([[0, 0.25], [1, 0.3]], np.float32)
    integers = np.array([[0, 32768], [65535, 257]], np.int32)
    for values, white in ((floats, 1), (integers, 65535)):
        Image.fromarray(values).save(tmp_path / "deep.tif")
        (back,) = read_frames(tmp_path / "deep.tif")
        assert torch.equal(back, torch.from_numpy(values.astype(np.float32) / white).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("values", "white"), [([0.0, 1.5], 1), ([-0.5, 1.0], 1), ([0.0, np.nan], 1), ([0, 65536], 65535)]
)
def test_pictures_of_unknown_range_are_refused(tmp_path, values, white):
    from PIL import Image

    kind = np.float32 if white == 1 else np.int32
    Image.fromarray(np.array([values], kind)).save(tmp_path / "deep.tif")
    with pytest.raises(MediaError, match=rf"deep\.tif: holds values from .* bring them to 0\.\.{white}"):
        next(read_frames(tmp_path / "deep.tif"))


def test_photographs_come_upright(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "photo.jpg", exif=exif)
    assert next(read_frames(tmp_path / "photo.jpg")).shape == (3, 20, 10)


def test_folders_are_read_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        write_frames(tmp_path / f"frame{number}.png", torch.full((1, 1, 4, 4), number / 255))
    (tmp_path / "notes.txt").write_text("no picture")
    order = [int(to_bytes(frame)[0, 0, 0]) for frame in read_frames(tmp_path)]
    assert order == [1, 2, 10]
    assert read_info(tmp_path).frames == 3


def test_picture_folders_round_trip(tmp_path):
    clip = torch.stack([random_picture(1), random_picture(1).flip(2)])
    write_frames(tmp_path / "alpha", clip)
    assert left_behind(tmp_path / "alpha") == ["000000.png", "000001.png"]
    assert torch.equal(torch.stack(list(read_frames(tmp_path / "alpha")))[:, :1], clip)
    assert left_behind(tmp_path) == ["alpha"]


def test_a_full_folder_is_not_overwritten(tmp_path):
    write_frames(tmp_path / "alpha", random_picture()[None])
    with pytest.raises(UnwritableError, match="alpha: it holds something already"):
        open_writer(tmp_path / "alpha").__enter__()
    assert left_behind(tmp_path) == ["alpha"]


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "folder"])
def test_nothing_is_left_after_an_error(tmp_path, name):
    with pytest.raises(KeyError), open_writer(tmp_path / name) as writer:
        writer.write(random_picture(3, 16, 16))
        raise KeyError("stop")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "folder", "a.png"])
def test_no_frames_are_an_error(tmp_path, name):
    with pytest.raises(MediaError, match="no frame to write"):
        write_frames(tmp_path / name, [])
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "folder"])
def test_frames_must_agree(tmp_path, name):
    with pytest.raises(ValueError, match="frame 1 is"), open_writer(tmp_path / name) as writer:
        writer.write(torch.zeros(3, 16, 16))
        writer.write(torch.zeros(3, 16, 18))
    with pytest.raises(ValueError, match="a frame is"), open_writer(tmp_path / name) as writer:
        writer.write(torch.zeros(2, 16, 16))
    assert left_behind(tmp_path) == []


def test_what_the_encoder_refuses_is_one_line(tmp_path):
    with pytest.raises(MediaError, match="cannot encode frame 0") as caught:
        write_frames(tmp_path / "huge.mp4", torch.zeros(1, 1, 2, 40000))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.gif", "a.webm", "a.txt"])
def test_unknown_suffixes_are_refused(tmp_path, name):
    with pytest.raises(MediaError, match=r"cannot write \.\w+: use \.mp4"):
        open_writer(tmp_path / name)


def test_one_picture_takes_one_frame(tmp_path):
    with pytest.raises(MediaError, match="holds one frame"):
        write_frames(tmp_path / "a.png", torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize("name", ["missing.mp4", "missing.png", "missing"])
def test_missing_files_are_named_at_once(tmp_path, name):
    with pytest.raises(MediaError, match=f"{name}: no such file"):
        read_frames(tmp_path / name)


@pytest.mark.parametrize("name", ["bad.mp4", "bad.png", "bad.jpg", "bad.bin"])
@pytest.mark.parametrize("data", [b"", b"not a picture\nnor a video", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_undecodable_files_are_one_line(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=f"{name}: .*decoded|no video|no frames") as caught:
        list(read_frames(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.mp4", "cut.png"])
def test_cut_files_are_errors(tmp_path, name):
    whole = tmp_path / f"whole{name[3:]}"
    write_frames(whole, smooth_clip(1, 64, 64))
    (tmp_path / name).write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    with pytest.raises(MediaError, match=name):
        list(read_frames(tmp_path / name))


def test_sound_alone_is_no_video(tmp_path):
    import av

    with av.open(tmp_path / "sound.wav", "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MediaError, match="sound.wav: holds no video"):
        list(read_frames(tmp_path / "sound.wav"))


def test_empty_folders_are_errors(tmp_path):
    with pytest.raises(MediaError, match="holds no pictures"):
        read_frames(tmp_path)


def test_pictures_of_different_sizes_need_a_size(tmp_path):
    write_frames(tmp_path / "0.png", torch.zeros(1, 3, 4, 5))
    write_frames(tmp_path / "1.png", torch.zeros(1, 3, 6, 5))
    with pytest.raises(MediaError, match="frame 1 is 6x5, the first is 4x5: give a size"):
        list(read_frames(tmp_path))
    assert len(list(read_frames(tmp_path, size=(4, 4)))) == 2


@pytest.mark.parametrize(("name", "package"), [("a.mp4", "av"), ("a.png", "pillow")])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"anything")
    imported = builtins.__import__

    def refuse(module, *arguments, **named):
        if module in ("av", "PIL"):
            raise ImportError(module)
        return imported(module, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*mattecompress\[media\]"):
        read_frames(tmp_path / name)


def test_formats_that_cannot_hold_the_channels_are_errors(tmp_path):
    with pytest.raises(MediaError, match="a.jpg: cannot be written"):
        write_frames(tmp_path / "a.jpg", torch.zeros(1, 4, 8, 8))
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("name", ["a.mp4", "a.y4m", "a.png", "folder"])
def test_unwritable_places_are_named(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnwritableError, match="cannot write .*file"):
        write_frames(tmp_path / "file" / name, torch.zeros(1, 3, 8, 8))


def test_real_video(shared_data):
    path = shared_data / "clips" / "dancers.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}")
    info = read_info(path)
    assert (info.height, info.width, info.frames, info.fps) == (720, 1280, 96, 25)
    frame = next(read_frames(path, size=(144, 256)))
    assert frame.shape == (3, 144, 256) and 0.1 < frame.mean() < 0.9


def test_writer_kinds(tmp_path):
    kinds = {
        "a.mp4": VideoWriter,
        "a.MOV": VideoWriter,
        "a.y4m": Y4mWriter,
        "a.png": PictureWriter,
        "a": FolderWriter,
    }
    assert all(type(open_writer(tmp_path / name)) is kind for name, kind in kinds.items())
