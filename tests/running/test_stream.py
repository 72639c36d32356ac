from dataclasses import replace

import pytest
import torch
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.interface import FrameInputError
from mattecompress.program import Program
from mattecompress.running.stream import Stream
from mattecompress.signature import Signature


def test_states_start_at_zero_and_are_fed_back(tiny: Program) -> None:
    frames = torch.rand(2, 1, 3, 12, 16)
    stream = Stream(tiny)
    first = stream(frames[0])
    zero = torch.zeros(1, 4, 6, 8)
    assert all(torch.equal(first[name], value) for name, value in tiny.run(src=frames[0], r1i=zero).items())
    second = stream(frames[1])
    expected = tiny.run(src=frames[1], r1i=first["r1o"])
    assert all(torch.equal(second[name], value) for name, value in expected.items())


def test_over_begins_afresh(tiny: Program) -> None:
    frames = torch.rand(3, 3, 12, 16)
    stream = Stream(tiny)
    one, two = ([output["pha"] for output in stream.over(frames)] for _ in range(2))
    assert len(one) == 3
    assert all(map(torch.equal, one, two))


def test_runs_what_it_is_given(tiny: Program) -> None:
    seen = []

    def run(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(sorted(inputs))
        return tiny.run(**inputs)

    stream = Stream(tiny, run)
    assert stream.frame_name == "src"
    stream(torch.rand(1, 3, 12, 16))
    assert seen == [["r1i", "src"]]


def test_refuses_a_program_with_two_frames(tiny: Program) -> None:
    stateless = tiny.clone()
    stateless.states = ()
    with pytest.raises(FrameInputError, match="it takes src, r1i"):
        Stream(stateless)(torch.rand(1, 3, 12, 16))


def test_refuses_a_program_that_takes_several_frames_at_once(
    tiny_net: nn.Module, tiny_shapes: Signature
) -> None:
    inputs = tuple((name, (2, *shape[1:])) for name, shape in tiny_shapes.inputs)
    program = capture(tiny_net, replace(tiny_shapes, inputs=inputs), "tiny")
    with pytest.raises(FrameInputError, match="tiny takes batches of 2: capture it with a batch of 1"):
        Stream(program)
