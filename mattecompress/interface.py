"""What a matting program takes and yields: a frame, perhaps with a trimap, and the matte."""

from collections.abc import Mapping

from torch import Tensor, fx

from mattecompress.errors import UserError
from mattecompress.program import Program

TRIMAP = "trimap"
Clip = Tensor | Mapping[str, Tensor]
"""Frames (T,3,H,W) float32 in 0..1, or a tensor of T entries for each input besides the states, by name."""
ONE_AT_A_TIME = "capture it with a batch of 1, or leave it open and run set-resolution with batch=1"
"""How to mend a program that takes several frames at once, where they come one by one."""


class FrameInputError(UserError):
    """A program does not take exactly one frame, or a frame and a trimap, besides its states."""


class MatteOutputError(UserError):
    """None of a program's outputs can be a matte."""


def frame_node(program: Program) -> fx.Node:
    """The input (1,3,H,W) that is no state; a trimap may stand behind it.

    Raises:
        FrameInputError: there is another input besides the states, or the first is no frame.
    """
    states = {state.input for state in program.states}
    inputs = [node for node in program.inputs if node.target not in states]
    if not inputs or [node.target for node in inputs[1:]] not in ([], [TRIMAP]):
        names = ", ".join(str(node.target) for node in inputs) or "none"
        raise FrameInputError(
            f"{program.name} has to take one input (1,3,H,W) besides its states, it takes {names}: "
            "name recurrent states with --state when you capture it, and a second input 'trimap'"
        )
    shape = program.facts(inputs[0]).shape
    if len(shape) != 4 or shape[1] != 3:
        text = ",".join(map(str, shape))
        raise FrameInputError(
            f"{program.name} takes {inputs[0].target} ({text}), and a frame is (1,3,H,W): "
            "capture a network of RGB pictures"
        )
    return inputs[0]


def frame_size(program: Program) -> tuple[int, int] | None:
    """(height, width) of the program's frame; None while it is open.

    Raises:
        FrameInputError: the program takes no single frame.
    """
    height, width = program.facts(frame_node(program)).shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def takes_trimap(program: Program) -> bool:
    """Whether the program takes a trimap (1,1,H,W), 0 background, 1 foreground, with each frame."""
    return TRIMAP in program.input_names


def alpha_name(program: Program) -> str:
    """The output that is the matte: `pha`, `alpha`, or the first output with one channel.

    Raises:
        MatteOutputError: no output has one channel.
    """
    for name in ("pha", "alpha"):
        if name in program.output_names:
            return name
    singles = [name for name, node in program.outputs.items() if program.facts(node).shape[1:2] == (1,)]
    if not singles:
        raise MatteOutputError(f"{program.name} has no one-channel output: {', '.join(program.output_names)}")
    return singles[0]
