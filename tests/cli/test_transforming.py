import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mattecompress import container
from mattecompress.passes.canonicalize import Canonicalize
from mattecompress.program import Program
from mattecompress.text import print_program

Cli = Callable[..., Any]


def test_captures_a_function(done: Cli, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)\n"
        "    def forward(self, src, past):\n"
        "        alpha = torch.sigmoid(self.conv(src) + past)\n"
        "        return alpha, alpha * 0.5\n"
        "def build():\n"
        "    return Net().eval()\n"
    )
    inputs = ["--inputs", "1x3x16x24", "--inputs", "past=1x1x16x24"]
    words = ["--outputs", "alpha,next", "--state", "past=next", "-o", "mine.mcg"]
    outcome = done("capture", "mine:build", *inputs, *words)
    assert outcome.out == ""
    assert outcome.err == "mine.mcg: 4 nodes, 0.00 G MACs a frame\n"
    program = container.load(tmp_path / "mine.mcg")
    assert program.input_names == ("src", "past")
    assert [str(pair) for pair in program.states] == ["StatePair(input='past', output='next')"]
    assert done("eval", "mine.mcg", "--frames", "2", "--json").out.startswith("{")
    wrong = cli("capture", "mine:build", *inputs, "--outputs", "alpha", "-o", "wrong.mcg")
    assert wrong.code == 2 and "yields 2 outputs, 1 names were given" in wrong.err


def test_captures_untrained_weights_by_the_seed(done: Cli, cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        words = ["--untrained", "--seed", seed, "--size", "16x16", "-o", f"{name}.mcg"]
        done("capture", "bimatting", *words)
    one, again, other = (container.load(tmp_path / f"{name}.mcg") for name in ("one", "again", "other"))
    assert one == again != other and one.level.value == "trainable"
    wrong = cli("capture", "bimatting", "--untrained", "--checkpoint", "w.pth", "-o", "wrong.mcg")
    assert wrong.code == 2 and "--checkpoint does not apply to bimatting" in wrong.err


def test_a_seed_of_weights_that_are_not_drawn(refused: Callable[..., str]) -> None:
    message = refused("capture", "rvm-mobilenetv3", "--checkpoint", "w.pth", "--seed", 0)
    assert message == "--seed is what untrained weights are drawn from: add --untrained"


def test_builds_a_function_by_the_seed(done: Cli, tmp_path: Path) -> None:
    (tmp_path / "drawn.py").write_text("import torch\ndef build():\n    return torch.nn.Conv2d(3, 1, 1)\n")
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        words = ["--inputs", "1x3x16x24", "--seed", seed, "-o", f"{name}.mcg"]
        done("capture", "drawn:build", *words)
    one, again, other = (container.load(tmp_path / f"{name}.mcg") for name in ("one", "again", "other"))
    assert one == again != other


def test_opt_is_deterministic(done: Cli, tiny_file: str) -> None:
    texts = []
    for number in range(2):
        pipeline = "canonicalize,fold-batch-norm,partition-blocks,quantize{weights=4 activations=8}"
        words = ["--calibration", "procedural:3", "--clips", 1, "--frames", 2, "-o", f"{number}.mcg"]
        done("opt", tiny_file, "-p", pipeline, *words)
        texts.append(done("inspect", f"{number}.mcg", "--text").out)
    assert texts[0] == texts[1]
    assert "level=trainable" in texts[0]
    assert Path("0.mcg").exists() and print_program(container.load(Path("0.mcg"))) == texts[0]


def test_the_input_may_go_while_passes_run(
    done: Cli, tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = container.load(tmp_path / tiny_file)
    container.save(given, tmp_path / tiny_file, "abc")

    def remove(self: Canonicalize, program: Program, context: object) -> None:
        (tmp_path / tiny_file).unlink()

    monkeypatch.setattr(Canonicalize, "apply", remove)
    done("opt", tiny_file, "-p", "canonicalize", "-o", "out.mcg")
    assert container.load(tmp_path / "out.mcg").history[-1].text == "canonicalize"
    assert container.load_manifest(tmp_path / "out.mcg")["input_sha256"] == "abc"


def test_a_program_that_does_not_know_its_input(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / tiny_file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["manifest.json"])
    del manifest["input_sha256"]
    with zipfile.ZipFile(tmp_path / "bare.mcg", "w") as archive:
        for name, content in (members | {"manifest.json": json.dumps(manifest)}).items():
            archive.writestr(name, content)
    done("opt", "bare.mcg", "-p", "canonicalize", "-o", "out.mcg")
    assert container.load_manifest(tmp_path / "out.mcg")["input_sha256"] == ""


def test_resumes_from_a_folder(done: Cli, tiny_file: str) -> None:
    pipeline = "qdrop{weights=4 iterations=2}"
    words = ["--calibration", "procedural:3", "--clips", 1, "--frames", 2, "--resume", "work"]
    for number in range(2):
        done("opt", tiny_file, "-p", pipeline, *words, "-o", f"{number}.mcg")
    assert len(list(Path("work").rglob("qdrop-*.safetensors"))) == 3
    one, two = (container.load(Path(f"{number}.mcg")) for number in range(2))
    assert print_program(one) == print_program(two)


def test_calibrates_at_the_size_that_the_pipeline_sets(done: Cli, open_file: str, tmp_path: Path) -> None:
    pipeline = "set-resolution{height=16 width=32},mse"
    words = ["--calibration", "procedural", "--clips", 1, "--frames", 1]
    done("opt", open_file, "-p", pipeline, *words, "-o", "q.mcg")
    assert container.load(tmp_path / "q.mcg").level.value == "trainable"


@pytest.mark.parametrize("option", ["--clips", "--frames"])
def test_counts_without_calibration(refused: Callable[..., str], tiny_file: str, option: str) -> None:
    message = refused("opt", tiny_file, "-p", "canonicalize", option, 1, "-o", "out.mcg")
    assert message == f"{option} is about calibration: add --calibration with clips"


def test_prints_before_and_after(done: Cli, tiny_file: str) -> None:
    words = ["opt", tiny_file, "-p", "canonicalize,fold-batch-norm"]
    after = done(*words, "--print-after", "all").out
    assert re.findall(r"^// .*", after, re.MULTILINE) == ["// after canonicalize", "// after fold-batch-norm"]
    before = done(*words, "--print-before", "fold-batch-norm").out
    assert before.startswith("// before fold-batch-norm\nmatte 1\n")
    assert "BatchNorm2d" in before
    assert before.partition("\n")[2] == after.split("// after")[1].partition("\n")[2]


def test_timing_and_stop_after(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    words = ["opt", tiny_file, "-p", "canonicalize,fold-batch-norm", "--timing"]
    lines = done(*words, "--stop-after", "canonicalize", "-o", "out.mcg").err.splitlines()
    assert re.fullmatch(r"  1 +\d+\.\d{3} s  canonicalize: .+", lines[0])
    assert lines[1].startswith("out.mcg: float, ")
    assert container.load(tmp_path / "out.mcg").history[-1].text == "canonicalize"
    assert len(done(*words).err.splitlines()) == 2


def test_a_failing_pass_leaves_a_reproducer(
    cli: Cli, tiny_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Canonicalize, program: Program, context: object) -> str:
        raise IndexError("there is no such node")

    monkeypatch.setattr(Canonicalize, "apply", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = cli("opt", tiny_file, "-p", "fold-batch-norm,canonicalize", "-o", "out.mcg", "--seed", 5)
    assert outcome.code == 1
    assert outcome.out == ""
    assert "mattecompress: canonicalize: IndexError: there is no such node" in outcome.err
    assert not (tmp_path / "out.mcg").exists()
    folder = Path(re.findall(r"cd (\S+) && sh reproduce.sh", outcome.err)[0])
    assert container.load(folder / "before.mcg").history[-1].text == "fold-batch-norm"
    monkeypatch.undo()
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    again = subprocess.run(
        ["sh", "reproduce.sh"],
        cwd=folder,
        env={**os.environ, "PATH": tools},
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("// after canonicalize\nmatte 1\n")
