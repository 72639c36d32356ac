import pytest
from torch import nn

from mattecompress.capturing.tracing import capture
from mattecompress.interface import FrameInputError, MatteOutputError, alpha_name, frame_node, frame_size
from mattecompress.program import Program
from mattecompress.signature import Signature


def test_frame_size(tiny: Program, tiny_open: Program) -> None:
    assert frame_size(tiny) == (12, 16)
    assert frame_size(tiny_open) is None
    assert frame_node(tiny).target == "src"


def test_programs_that_take_no_single_frame(tiny: Program) -> None:
    stateless = tiny.clone()
    stateless.states = ()
    with pytest.raises(FrameInputError, match=r"it takes src, r1i: name recurrent states with --state"):
        frame_size(stateless)


@pytest.mark.parametrize("shape", [(1, 1, 8, 12), (1, 4, 8, 12), (3, 8, 12)])
def test_programs_whose_frame_is_no_picture(shape: tuple[int, ...]) -> None:
    program = capture(nn.Sigmoid(), Signature((("x", shape),), ("alpha",)), "sigmoid")
    text = ",".join(map(str, shape))
    with pytest.raises(FrameInputError, match=rf"sigmoid takes x \({text}\), and a frame is \(1,3,H,W\)"):
        frame_node(program)


def test_alpha_name(tiny: Program) -> None:
    assert alpha_name(tiny) == "pha"
    other = tiny.clone()
    other.output_names = ("a", "b", "r1o")
    assert alpha_name(other) == "b"
    foreground, _, state = other.outputs.values()
    other.graph.output_node().args = ((foreground, state),)
    other.output_names = ("a", "r1o")
    with pytest.raises(MatteOutputError, match="tiny has no one-channel output: a, r1o"):
        alpha_name(other)
