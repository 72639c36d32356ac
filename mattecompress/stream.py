"""Frame after frame through a recurrent program: states start at zero and are fed back."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from mattecompress.data.sources import frame_node
from mattecompress.program import Program

Run = Callable[..., dict[str, Tensor]]


class Stream:
    """Carries a program's recurrent states over any way of running it: the program itself or an artifact.

    run: takes every input and gives every output by name.

    Raises:
        FrameInputError: the program takes something else than one frame besides its states.
    """

    def __init__(self, program: Program, run: Run | None = None) -> None:
        self.program = program
        self.run = run or program.run
        self.reset()

    def reset(self) -> None:
        """Forget the past: zero states."""
        facts = {name: self.program.facts(node) for name, node in self._inputs().items()}
        self.states = {
            pair.input: torch.zeros(facts[pair.input].sizes, dtype=facts[pair.input].dtype)
            for pair in self.program.states
        }

    @property
    def frame_name(self) -> str:
        """The one input that is no state."""
        return str(frame_node(self.program).target)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> dict[str, Tensor]:
        """All outputs for one frame, (1,3,H,W) of float32 in 0..1; the states move on."""
        outputs = self.run(**{self.frame_name: frame}, **self.states)
        self.states = {pair.input: outputs[pair.output] for pair in self.program.states}
        return outputs

    def over(self, frames: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """All outputs for each frame, (3,H,W), of one clip, from fresh states."""
        self.reset()
        for frame in frames:
            yield self(frame.unsqueeze(0))

    def _inputs(self) -> dict[str, torch.fx.Node]:
        return dict(zip(self.program.input_names, self.program.inputs, strict=True))
