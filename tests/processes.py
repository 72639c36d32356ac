"""Work in processes of its own: killed in the middle and taken up again, or done by several together."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from mattecompress import container
from mattecompress.program import Program
from tests.conftest import ROOT

SECONDS = 120
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def start(*words: str) -> "subprocess.Popen[bytes]":
    """Python with these arguments, which finds this tree."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment)


def kill_at(sign: str, folder: Path, process: "subprocess.Popen[bytes]") -> None:
    """Kill -9 as soon as something of the name `sign`, which may have `**` and `*`, is in the folder."""
    until = time.monotonic() + SECONDS
    try:
        while not list(folder.glob(sign)):
            assert process.poll() is None, f"it ended before there was {sign}"
            assert time.monotonic() < until, f"there is no {sign} after {SECONDS} s"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def resumed_and_whole(code: str, given: Program, sign: str, folder: Path) -> tuple[Program, Program]:
    """What code makes of a program when it is killed at a sign and goes on, and in one go.

    The code is given three paths: of the program, of the result, and of a folder to keep checkpoints in.
    """
    container.save(given, folder / "given.mcg")

    def run(out: str, kept: str) -> "subprocess.Popen[bytes]":
        return start("-c", code, *(str(folder / name) for name in ("given.mcg", out, kept)))

    kill_at(sign, folder / "killed", run("none.mcg", "killed"))
    assert not (folder / "none.mcg").exists()
    assert run("resumed.mcg", "killed").wait() == 0 and run("whole.mcg", "fresh").wait() == 0
    return container.load(folder / "resumed.mcg"), container.load(folder / "whole.mcg")


def train_together(code: str, folder: Path) -> None:
    """Run code in two processes that torchrun starts."""
    script = folder / "worker.py"
    script.write_text(f"import torch\ntorch.set_num_threads(1)\n{code}")
    assert start(*TORCHRUN, str(script)).wait(300) == 0
