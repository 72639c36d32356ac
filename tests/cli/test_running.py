import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mattecompress import container, preparation
from mattecompress.data.clips import procedural_clip
from mattecompress.data.colours import parse_colour
from mattecompress.data.frames import composite, to_bytes
from mattecompress.data.video import read_frames, read_info, write_frames
from mattecompress.running.stream import Stream
from tests.reconstruction.nets import Trimapped, captured

Cli = Callable[..., Any]

METRICS = {"mad", "mse", "grad", "conn", "dtssd", "fgr_mse"}


@pytest.fixture
def clip(tmp_path: Path) -> Tensor:
    """Written to clip.y4m, and as it is read back: (5,3,16,24)."""
    frames = procedural_clip(1, 0, 5, 16, 24).frames
    write_frames(tmp_path / "clip.y4m", frames)
    return torch.stack(list(read_frames(tmp_path / "clip.y4m")))


def test_mattes_into_a_folder_and_carries_states(
    done: Cli, tiny_file: str, tmp_path: Path, clip: Tensor
) -> None:
    words = ["--input", "clip.y4m", "--alpha", "mattes", "--composite", "#00b140"]
    outcome = done("run", tiny_file, *words)
    assert outcome.out == ""
    assert outcome.err.splitlines() == ["mattes", "mattes-composite"]
    expected = list(Stream(container.load(tmp_path / tiny_file)).over(clip))
    behind = parse_colour("#00b140")
    for number, (outputs, alpha, green) in enumerate(
        zip(
            expected,
            read_frames(tmp_path / "mattes"),
            read_frames(tmp_path / "mattes-composite"),
            strict=True,
        )
    ):
        assert torch.equal(to_bytes(outputs["pha"][0]), to_bytes(alpha[:1])), number
        assert torch.equal(to_bytes(composite(outputs["pha"], outputs["fgr"], behind)[0]), to_bytes(green))
    alone = Stream(container.load(tmp_path / tiny_file))(clip[4:5])["pha"]
    assert not torch.equal(alone, expected[4]["pha"])


@pytest.mark.parametrize("full", ["mattes", "mattes-composite"])
def test_a_folder_for_mattes_that_holds_something(
    refused: Callable[..., str], tmp_path: Path, full: str
) -> None:
    write_frames(tmp_path / full, torch.zeros(1, 1, 16, 24))
    words = [
        "run",
        "looked-at-later.mcg",
        "--input",
        "procedural",
        "--alpha",
        "mattes",
        "--composite",
        "#00b140",
    ]
    assert refused(*words).startswith(f"cannot write {full}: it holds something already; name a new folder")


def test_mattes_a_video_into_a_video(done: Cli, open_file: str, tmp_path: Path, clip: Tensor) -> None:
    write_frames(tmp_path / "clip.mp4", clip, 30)
    words = ["--input", "clip.mp4", "--alpha", "alpha.mp4", "--frames", 3, "--backend", "onnx"]
    done("run", open_file, *words)
    info = read_info(tmp_path / "alpha.mp4")
    assert (info.height, info.width, info.frames, info.fps) == (16, 24, 3, 30)


def test_frames_of_other_sizes_are_resized(done: Cli, open_file: str, tmp_path: Path) -> None:
    write_frames(tmp_path / "odd", procedural_clip(1, 0, 2, 17, 23).frames)
    outcome = done("run", open_file, "--input", "odd", "--alpha", "mattes")
    assert outcome.err.splitlines() == ["odd: 17x23 is resized to 16x24", "mattes"]
    assert read_info(tmp_path / "mattes").height == 16


def test_eval_json(done: Cli, tiny_file: str, open_file: str, clip: Tensor) -> None:
    document = json.loads(done("eval", tiny_file, "--frames", 3, "--json").out)
    assert document.keys() == {"frames", "metrics"}
    assert document["frames"] == 3
    assert document["metrics"].keys() == METRICS
    assert all(value >= 0 for value in document["metrics"].values())
    same = json.loads(done("eval", tiny_file, "--data", "clip.y4m", "--reference", tiny_file, "--json").out)
    assert same == {"frames": 5, "metrics": dict.fromkeys(METRICS, 0.0)}
    opened = json.loads(done("eval", open_file, "--data", "clip.y4m", "--reference", tiny_file, "--json").out)
    assert opened == same


def test_eval_for_people(done: Cli, tiny_file: str) -> None:
    shown = done("eval", tiny_file, "--frames", 2).out
    assert "tiny.mcg: 2 frames" in shown and "dtssd" in shown
    large = done("eval", tiny_file, "--frames", 2, "--high-resolution").out
    assert "conn" in shown and "conn" not in large and "grad" in large


def test_bench_json(done: Cli, tiny_file: str) -> None:
    words = ["--against", "torch", "--reference", tiny_file, "--runs", 3, "--json"]
    document = json.loads(done("bench", tiny_file, *words).out)
    assert document.keys() == {"threads", "runs", "ours_ms", "peer", "speedup"}
    assert (document["threads"], document["runs"], document["peer"]["name"]) == (1, 3, "torch")
    assert document["speedup"] == pytest.approx(document["peer"]["ms"] / document["ours_ms"])


def test_eval_with_a_trimap(done: Cli, tmp_path: Path) -> None:
    container.save(captured(Trimapped), tmp_path / "trimapped.mcg")
    document = json.loads(done("eval", "trimapped.mcg", "--frames", 2, "--json").out)
    assert document["unknown"].keys() == {"sad", "mse", "grad", "conn"} and document["unknown"]["sad"] > 0
    assert "sad, unknown region" in done("eval", "trimapped.mcg", "--frames", 2).out


def test_bench_with_a_trimap(done: Cli, cli: Cli, tmp_path: Path) -> None:
    container.save(captured(Trimapped), tmp_path / "trimapped.mcg")
    words = ("bench", "trimapped.mcg", "--against", "torch", "--runs", 1, "--json")
    for source in ([], ["--input", "procedural:3"]):
        assert json.loads(done(*words, *source).out)["ours_ms"] > 0
    write_frames(tmp_path / "white.png", torch.ones(1, 3, 16, 24))
    refused = cli(*words, "--input", "white.png")
    assert refused.code == 2 and "takes a trimap, and the alpha of white" in refused.err


def test_bench_nodes(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    words = ("bench", tiny_file, "--nodes", "--runs", 2)
    said = done(*words, "--input", "procedural:3", "--times", "times.json", "--json")
    document = json.loads(said.out)
    assert (said.err, document) == ("times.json\n", json.loads((tmp_path / "times.json").read_text()))
    shown = done("inspect", tiny_file, "--times", "times.json", "--where", "time_ms>0", "--json").out
    times = [node["time_ms"] for node in json.loads(shown)["nodes"]]
    assert sum(times) == pytest.approx(document["kernels_ms"])
    assert "of limit" in done("inspect", tiny_file, "--times", "times.json").out
    table = done(*words).out
    assert "bound by" in table and "the frame" in table


@pytest.mark.needs("qemu-aarch64")
def test_bench_emulated(done: Cli, tiny_file: str) -> None:
    document = json.loads(done("bench", tiny_file, "--emulate", "cortex-a76", "--json").out)
    assert document.keys() == {"target", "arena_bytes", "instructions", "kernels"}
    kernels = document["kernels"]
    assert kernels == sorted(kernels, key=lambda kernel: (-kernel["instructions"], kernel["name"]))
    assert 0 < sum(kernel["instructions"] for kernel in kernels) < document["instructions"]
    shown = done("bench", tiny_file, "--emulate", "cortex-a76").out
    assert f"{document['instructions'] / 1e9:.4f} G instructions a frame" in shown


@pytest.mark.needs("qemu-aarch64")
def test_bench_emulated_on_a_clip(done: Cli, tiny_file: str) -> None:
    words = ("bench", tiny_file, "--emulate", "cortex-a76", "--input", "procedural:3", "--json")
    assert json.loads(done(*words).out)["instructions"] > 0


def test_emulation_takes_no_clip_with_a_trimap(refused: Callable[..., str], tmp_path: Path) -> None:
    container.save(captured(Trimapped), tmp_path / "trimapped.mcg")
    words = ("--emulate", "cortex-a76", "--input", "procedural:3")
    assert "not make one matte of one frame: leave --input out" in refused("bench", "trimapped.mcg", *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--target", "cortex-a76"], "--target goes with --rpc: add --rpc, or leave --target out"),
        (["--rpc-key", "board"], "--rpc-key goes with --rpc: add --rpc, or leave --rpc-key out"),
        (["--times", "times.json"], "--times goes with --nodes: add --nodes, or leave --times out"),
        (
            ["--emulate", "cortex-a76", "--runs", 3],
            "--runs does not go with --emulate: leave one of them out",
        ),
        (["--emulate", "cortex-a76", "--threads", 1], "--threads does not go with --emulate"),
        (["--emulate", "cortex-a76", "--against", "torch"], "--against does not go with --emulate"),
        (["--emulate", "cortex-a76", "--rpc", "board:1"], "--rpc does not go with --emulate"),
        (["--rpc", "board:1", "--against", "torch"], "--against does not go with --rpc"),
        (["--rpc", "board:1", "--threads", 2], "--threads does not go with --rpc"),
        (["--rpc", "board:1", "--input", "procedural"], "--input does not go with --rpc"),
        (["--nodes", "--threads", 2], "--threads does not go with --nodes"),
        (["--nodes", "--emulate", "cortex-a76"], "--emulate does not go with --nodes"),
    ],
)
def test_bench_options_that_nothing_reads(
    refused: Callable[..., str], tiny_file: str, words: list[object], expected: str
) -> None:
    assert expected in refused("bench", tiny_file, *words)


def test_bench_with_threads(done: Cli, tiny_file: str) -> None:
    words = ("--against", "torch", "--runs", 2, "--threads", 2, "--json")
    assert json.loads(done("bench", tiny_file, *words).out)["threads"] == 2


def test_bench_for_people(done: Cli, tiny_file: str) -> None:
    assert "onnxruntime" in done("bench", tiny_file, "--runs", 2).out


@pytest.mark.parametrize(
    ("emit", "names"),
    [
        ("onnx", ["tiny.onnx"]),
        ("qdq", ["tiny.onnx"]),
        ("so", ["tiny.so"]),
        ("lib", ["libtiny.a", "tiny.h"]),
        ("exe", ["tiny-host"]),
    ],
)
def test_build(done: Cli, tiny_file: str, tmp_path: Path, emit: str, names: list[str]) -> None:
    outcome = done("build", tiny_file, "--emit", emit, "-o", "dist")
    assert outcome.out == ""
    assert sorted(path.name for path in (tmp_path / "dist").iterdir()) == names
    assert [line.partition(":")[0] for line in outcome.err.splitlines()] == [f"dist/{name}" for name in names]


@pytest.mark.needs("qemu-aarch64")
def test_build_for_arm(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    done("build", tiny_file, "--target", "cortex-a76", "-o", "dist")
    (made,) = (tmp_path / "dist").iterdir()
    assert made.read_bytes()[:4] == b"\x7fELF"


def test_build_of_open_size(done: Cli, open_file: str, tmp_path: Path) -> None:
    done("build", open_file, "--emit", "onnx", "-o", "dist")
    assert (tmp_path / "dist" / "tiny.onnx").is_file()


def test_a_trimap_goes_with_the_picture(done: Cli, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "joined.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, image, trimap):\n"
        "        return image[:, :1] * trimap\n"
        "build = Net\n"
    )
    inputs = ["--inputs", "image=1x3x16x24", "--inputs", "trimap=1x1x16x24"]
    done("capture", "joined:build", *inputs, "--outputs", "alpha", "-o", "joined.mcg")
    trimap = (torch.arange(24) // 8 / 2).expand(1, 16, 24)
    write_frames(tmp_path / "trimap.png", trimap[None])
    write_frames(tmp_path / "white.png", torch.ones(1, 3, 16, 24))
    words = ["run", "joined.mcg", "--input", "white.png", "--alpha", "alpha.png"]
    done(*words, "--trimap", "trimap.png")
    (alpha,) = read_frames(tmp_path / "alpha.png")
    assert torch.equal(to_bytes(alpha[:1]), to_bytes(trimap))
    refused = cli(*words)
    assert refused.code == 2 and "takes a trimap with each frame: add --trimap" in refused.err
    done("opt", "joined.mcg", "-p", "canonicalize", "--calibration", "procedural", "--frames", 1)


def test_an_image_beyond_all_memory_is_refused(
    done: Cli, cli: Cli, tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "machine_memory", lambda: 1 << 10)
    write_frames(tmp_path / "white.png", torch.ones(1, 3, 16, 24))
    for backend in ("reference", "onnx"):
        refused = cli("run", tiny_file, "--input", "white.png", "--alpha", "a.png", "--backend", backend)
        assert refused.code == 2
        assert "of values alive at %" in refused.err and "this machine 0.0 GiB" in refused.err
        assert not (tmp_path / "a.png").exists()
