"""Timing on a device that runs TVM's RPC server: the kernels are built here, sent there and run with TVM's runtime."""

import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tvm
from tvm import relax, rpc

from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.freestanding.link import Linker, find_linker, shared_linker
from mattecompress.backends.tvm.targets import Target
from mattecompress.errors import UserError
from mattecompress.program import Program

SESSION_SECONDS = 600


class RemoteError(UserError):
    """A device that does not answer, or refuses the work."""


@dataclass(frozen=True)
class Address:
    """Where a device's server listens; with a key, where a tracker does that lends devices of that key."""

    host: str
    port: int
    key: str | None = None

    @classmethod
    def parse(cls, text: str, key: str | None = None) -> "Address":
        """From `HOST:PORT`.

        Raises:
            RemoteError: it is written otherwise.
        """
        match = re.fullmatch(r"(.+):([0-9]{1,5})", text)
        if not match:
            raise RemoteError(f"--rpc '{text}': expected HOST:PORT, such as 192.168.0.7:9090")
        return cls(match[1].strip("[]"), int(match[2]), key)

    def connect(self) -> Any:
        """A session.

        Raises:
            RemoteError: nobody answers.
        """
        try:
            if self.key is None:
                return rpc.connect(self.host, self.port)
            tracker = rpc.connect_tracker(self.host, self.port)
            return tracker.request(self.key, session_timeout=SESSION_SECONDS)
        except (OSError, RuntimeError) as error:
            what = "server" if self.key is None else f"tracker with a free device of key '{self.key}'"
            raise RemoteError(
                f"no RPC {what} at {self.host}:{self.port}: {_first_line(error)}; "
                "start one with `python -m tvm.exec.rpc_server`"
            ) from error


def time_remotely(
    programs: Sequence[Program], target: Target, address: Address, runs: int, linker: str | None = None
) -> list[float]:
    """Median milliseconds of a frame of each lowered program of fixed size, run in turn, on a device.

    Raises:
        RemoteError: the device does not answer or cannot load the kernels.
        LinkError: no tool chain for the target.
    """
    chain = find_linker(target, linker)
    session = address.connect()
    works = [_Work(program, target, chain, session, f"program{i}.so") for i, program in enumerate(programs)]
    times: list[list[float]] = [[] for _ in works]
    for _ in range(runs):
        for work, seen in zip(works, times, strict=True):
            seen.append(work.milliseconds())
    return list(map(statistics.median, times))


class _Work:
    """One program on the device, its inputs set to zeros."""

    def __init__(self, program: Program, target: Target, linker: Linker, session: Any, name: str) -> None:
        executable = tvm.compile(lower(program, target), target=target.tvm())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            executable.export_library(str(path), fcompile=shared_linker(target, linker))
            try:
                session.upload(str(path))
                self.machine = relax.VirtualMachine(session.load_module(name), session.cpu(0))
            except (OSError, RuntimeError, tvm.error.RPCError) as error:
                raise RemoteError(
                    f"the device cannot load code for {target.name}: {_first_line(error)}"
                ) from error
        device = session.cpu(0)
        facts = [program.facts(node) for node in program.inputs]
        zeros = [torch.zeros(one.sizes, dtype=one.dtype).numpy() for one in facts]
        self.machine.set_input("main", *(tvm.runtime.tensor(value, device) for value in zeros))
        self.evaluate = self.machine.time_evaluator("invoke_stateful", device, number=1, repeat=1)
        self.milliseconds()

    def milliseconds(self) -> float:
        """Of one frame."""
        return float(self.evaluate("main").mean) * 1e3


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
