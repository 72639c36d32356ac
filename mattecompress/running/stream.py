"""Frame after frame through a recurrent program: states start at zero and are fed back."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mattecompress.data.trimaps import TrimapError
from mattecompress.interface import ONE_AT_A_TIME, TRIMAP, Clip, FrameInputError, frame_node, takes_trimap
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

    frame_name: the input that is a frame.

    Raises:
        FrameInputError: the program takes something else than a frame, and perhaps a trimap, besides its states, or
            several frames at once.
    """

    def __init__(self, program: Program, run: Runner | None = None) -> None:
        self.program = program
        frame = frame_node(program)
        batch = program.facts(frame).shape[0]
        if isinstance(batch, int) and batch != 1:
            raise FrameInputError(f"{program.name} takes batches of {batch}: {ONE_AT_A_TIME}")
        self.frame_name, self._takes_trimap = str(frame.target), takes_trimap(program)
        self.stateful = run if isinstance(run, Stateful) else FedBack(program, run or program.run)
        self.stateful.reset()

    @torch.no_grad()
    def __call__(self, frame: Tensor, trimap: Tensor | None = None) -> dict[str, Tensor]:
        """The outputs for one frame, (1,3,H,W), and its trimap, (1,1,H,W), float32 in 0..1; the states move on.

        A frame with a trimap is laid out pixel by pixel: PyTorch's convolutions copy an image of any other layout, and
        at the size of photographs their copies take more memory than all else.

        Raises:
            TrimapError: the program takes a trimap and there is none, or takes none.
        """
        if self._takes_trimap != (trimap is not None):
            takes, fix = ("no", "leave it out") if trimap is not None else ("a", "add --trimap")
            raise TrimapError(f"{self.program.name} takes {takes} trimap with each frame: {fix}")
        if trimap is None:
            return self.stateful.step(**{self.frame_name: frame})
        by_pixel = frame.contiguous(memory_format=torch.channels_last)
        return self.stateful.step(**{self.frame_name: by_pixel, TRIMAP: trimap})

    def over(
        self, frames: Iterable[Tensor], trimaps: Iterable[Tensor] | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """The outputs for each frame, (3,H,W), and trimap, (1,H,W), of one clip, from fresh states."""
        self.stateful.reset()
        for frame, trimap in zip(frames, repeat(None) if trimaps is None else trimaps, strict=False):
            yield self(frame[None], None if trimap is None else trimap[None])

    def over_clip(self, clip: Clip) -> Iterator[dict[str, Tensor]]:
        """The same for a clip as `mattecompress.running.feed.Feed` takes it."""
        if isinstance(clip, Tensor):
            return self.over(clip)
        return self.over(clip[self.frame_name], clip.get(TRIMAP))
