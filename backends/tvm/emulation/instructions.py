"""Counts the instructions of a frame under qemu, by kernel: a cost that is the same on every run and every machine.

The driver's own share varies by a few dozen instructions with where the system puts its memory.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mattecompress.backends.tvm.freestanding.executable import SECONDS, ExecutableArtifact
from mattecompress.backends.tvm.freestanding.library import find_ports
from mattecompress.backends.tvm.freestanding.link import compile_plugin, find_linker
from mattecompress.backends.tvm.targets import find_target
from mattecompress.errors import UserError

PLUGIN = Path(__file__).with_name("count.c")
NEW_INTERFACE = 9
"""The first qemu whose plugins name another version of its interface."""


class EmulationError(UserError):
    """A program's instructions cannot be counted here."""


@dataclass(frozen=True)
class Loop:
    """The block of straight code that a kernel spends most in: how often it runs in a frame, and its instructions."""

    runs: int
    instructions: tuple[str, ...]


@dataclass(frozen=True)
class KernelCost:
    """Instructions that one kernel executes in a frame, all its calls together."""

    name: str
    instructions: int
    loop: Loop


@dataclass(frozen=True)
class _Symbol:
    instructions: int
    loop: Loop


def count(
    program: ExecutableArtifact, frames: np.ndarray[Any, Any] | None = None
) -> tuple[int, tuple[KernelCost, ...]]:
    """Instructions of a frame, and those of each kernel, most first, for a program linked with its symbols.

    frames: the two frames (2,3,H,W), float32, of a program that takes clips; None makes noise of them.

    What no kernel accounts for is the driver's: reading the frame, copying states, writing the matte. The frame is
    the second of two, so that nothing is counted that happens once.

    Raises:
        EmulationError: the target has no emulator here, the emulator takes no plugins, or the program takes no clips.
        LinkError: no C compiler for this machine.
    """
    if program.target.is_host:
        raise EmulationError("instructions are counted by an emulator: give a target other than host")
    if frames is not None and find_ports(program.plan) is None:
        raise EmulationError(
            "the program does not make one matte of one frame: leave --input out, and noise is counted"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = build_plugin(program.emulator()[0], folder)
        one, two = (_run(program, plugin, folder, number, frames) for number in (1, 2))
    frame = Counter({name: symbol.instructions for name, symbol in two.items()})
    frame.subtract({name: symbol.instructions for name, symbol in one.items()})
    costs = [
        KernelCost(program.kernels[name], frame[name], _difference(two[name].loop, one.get(name)))
        for name in two
        if name in program.kernels
    ]
    costs.sort(key=lambda cost: (-cost.instructions, cost.name))
    return frame.total(), tuple(costs)


def _difference(loop: Loop, earlier: _Symbol | None) -> Loop:
    if earlier is None or earlier.loop.instructions != loop.instructions:
        return loop
    return Loop(loop.runs - earlier.loop.runs, loop.instructions)


def build_plugin(emulator: str, folder: Path) -> Path:
    """The counting plugin for an emulator on this machine, compiled into a folder.

    Raises:
        EmulationError: the emulator is none.
        LinkError: no C compiler for this machine.
    """
    host = find_target("host")
    version = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)", version)
    if not found:
        raise EmulationError(f"{emulator} does not tell its version; install qemu-user")
    interface = 1 if int(found[1]) < NEW_INTERFACE else 2
    plugin = folder / "count.so"
    compile_plugin(PLUGIN, {"QEMU_API": interface}, host, plugin, find_linker(host))
    return plugin


def _run(
    program: ExecutableArtifact,
    plugin: Path,
    folder: Path,
    number: int,
    frames: np.ndarray[Any, Any] | None,
) -> dict[str, _Symbol]:
    log, result = folder / "log", folder / "result.f32"
    ports = find_ports(program.plan)
    specs = program.plan.inputs if ports is None else [program.plan.inputs[ports.frame]]
    source = folder / ("inputs" if ports is None else "frames.f32")
    if frames is None or ports is None:
        generator = np.random.default_rng(0)
        source.write_bytes(
            b"".join(_noise(spec.bytes, spec.dtype, generator) for _ in range(number) for spec in specs)
        )
    else:
        source.write_bytes(np.ascontiguousarray(frames[:number], "<f4").tobytes())
    emulator, *options = program.emulator()
    command = [emulator, "-plugin", str(plugin), "-d", "plugin", "-D", str(log), *options, str(program.path)]
    words = ["--tensors"] if ports is None else []
    try:
        done = subprocess.run(
            [*command, *words, str(source), str(result)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EmulationError(f"{emulator} cannot count: {error}") from error
    if done.returncode or not log.exists():
        lines = done.stderr.strip().splitlines() or ["it has no plugins"]
        raise EmulationError(
            f"{emulator} cannot count: {lines[0]}; it must be built with plugins, as Debian's is"
        )
    return dict(_parse(log.read_text(errors="replace")))


def _noise(count: int, dtype: str, generator: np.random.Generator) -> bytes:
    if dtype == "float32":
        return generator.random(count // 4, dtype=np.float32).tobytes()
    return bytes(count)


def _parse(log: str) -> Iterator[tuple[str, _Symbol]]:
    lines = iter(log.splitlines())
    for line in lines:
        match line.split():
            case ["symbol", name, instructions]:
                _, runs, length = next(lines).split()
                loop = Loop(int(runs), tuple(islice(lines, int(length))))
                yield name, _Symbol(int(instructions), loop)
            case _:
                raise EmulationError(f"the emulator's log has a line that is not ours: {line[:80]}")
