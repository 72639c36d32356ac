"""Timing through TVM's RPC, with a server on this machine."""

import json
from collections.abc import Iterator

import pytest

rpc = pytest.importorskip("tvm.rpc")
pytest.importorskip("cloudpickle")

import tvm
from tvm import relax

from mattecompress.measuring.device import time_remotely
from mattecompress.program import Program


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = rpc.Server(host="127.0.0.1", port=9190, port_end=9290, silent=True)
    yield f"127.0.0.1:{server.port}"
    server.terminate()


def test_times_two_programs_in_turn(tiny: Program, address: str) -> None:
    timing = time_remotely([tiny, tiny], "host", address, runs=3)
    document = timing.as_json()
    assert (document["target"], document["rpc"], document["runs"]) == ("host", address, 3)
    assert document["ours_ms"] > 0 and document["peer"]["name"] == "reference"
    assert document["speedup"] == pytest.approx(document["peer"]["ms"] / document["ours_ms"])
    json.dumps(document)


def test_one_program_has_no_peer(tiny: Program, address: str) -> None:
    document = time_remotely([tiny], "host", address, runs=1).as_json()
    assert document["ours_ms"] > 0 and document["peer"] is None and document["speedup"] is None


def test_inputs_are_zeros(tiny: Program, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    set_input = relax.VirtualMachine.set_input

    def watch(machine: relax.VirtualMachine, name: str, *inputs: tvm.runtime.Tensor) -> None:
        given.extend(value.numpy() for value in inputs)
        set_input(machine, name, *inputs)

    monkeypatch.setattr(relax.VirtualMachine, "set_input", watch)
    time_remotely([tiny], "host", address, runs=1)
    assert [value.shape for value in given] == [(1, 3, 12, 16), (1, 4, 6, 8)]
    assert not any(value.any() for value in given)
