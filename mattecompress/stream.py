"""Frame after frame through a recurrent program: states start at zero and are fed back."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mattecompress.data.sources import frame_node
from mattecompress.program import Program

Run = Callable[..., dict[str, Tensor]]
"""Takes every input and gives every output by name."""


@runtime_checkable
class Stateful(Protocol):
    """A way of running that keeps the states of one clip to itself."""

    def reset(self) -> None:
        """Forget the past: zero states."""

    def step(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Every output that is no state, from every input that is none; the states move on."""


Runner = Run | Stateful


class FedBack:
    """Keeps the states of a way of running that takes and gives them."""

    def __init__(self, program: Program, run: Run) -> None:
        self.program = program
        self.run = run
        self.reset()

    def reset(self) -> None:
        """Forget the past: zero states."""
        facts = dict(zip(self.program.input_names, map(self.program.facts, self.program.inputs), strict=True))
        self.states = {
            pair.input: torch.zeros(facts[pair.input].sizes, dtype=facts[pair.input].dtype)
            for pair in self.program.states
        }

    def step(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Every output, states among them; the states move on."""
        outputs = self.run(**inputs, **self.states)
        self.states = {pair.input: outputs[pair.output] for pair in self.program.states}
        return outputs


class Stream:
    """Carries a program's recurrent states over any way of running it: the program itself or an artifact.

    Raises:
        FrameInputError: the program takes something else than one frame besides its states.
    """

    def __init__(self, program: Program, run: Runner | None = None) -> None:
        self.program = program
        self.stateful = run if isinstance(run, Stateful) else FedBack(program, run or program.run)
        self.stateful.reset()

    @property
    def frame_name(self) -> str:
        """The one input that is no state."""
        return str(frame_node(self.program).target)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> dict[str, Tensor]:
        """The outputs for one frame, (1,3,H,W) of float32 in 0..1; the states move on."""
        return self.stateful.step(**{self.frame_name: frame})

    def over(self, frames: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """The outputs for each frame, (3,H,W), of one clip, from fresh states."""
        self.stateful.reset()
        for frame in frames:
            yield self(frame.unsqueeze(0))
