"""Clips as a program takes them: frame by frame, checked against its inputs, with zero states to begin from."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from mattecompress.errors import UserError
from mattecompress.facts import evaluate_size, size_step, solve_symbols
from mattecompress.interface import ONE_AT_A_TIME, Clip
from mattecompress.program import Program


class CalibrationError(UserError):
    """Clips are absent or do not fit the program, or a value that is not finite was met."""


class Feed:
    """Clips for one program, of whatever sizes its open axes allow.

    clips: each (T,3,H,W) float32 in 0..1; of a program with several inputs besides its states, each a mapping from
        the inputs' names to tensors of T entries.

    Raises:
        CalibrationError: no clips, or clips that do not fit.
    """

    def __init__(self, program: Program, clips: Sequence[Clip]) -> None:
        self.program = program
        states = {state.input for state in program.states}
        self._frames = [node for node in program.inputs if node.target not in states]
        self._states = [node for node in program.inputs if node.target in states]
        self.clips = [self._named(number, clip) for number, clip in enumerate(clips, start=1)]
        if sum(self.length(number) for number in range(len(self))) == 0:
            raise CalibrationError(
                "calibration needs clips and none were given: add --calibration with a video or a folder of clips, "
                "or in Python Context(clips=[frames]) with frames (T,3,H,W) float32 in 0..1"
            )
        for number in range(len(self)):
            self._check(number)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def length(self, clip: int) -> int:
        """Frames of a clip."""
        return min((len(value) for value in self.clips[clip].values()), default=0)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Every (clip, frame), in order."""
        return [(clip, frame) for clip in range(len(self)) for frame in range(self.length(clip))]

    def frame(self, clip: int, index: int) -> dict[str, Tensor]:
        """The inputs besides the states at one frame, each (1, ...)."""
        return {name: value[index : index + 1] for name, value in self.clips[clip].items()}

    def zeros(self, clip: int) -> dict[str, Tensor]:
        """The states that a clip begins with."""
        return {
            str(node.target): torch.zeros(self.shape(node, clip), dtype=self.program.facts(node).dtype)
            for node in self._states
        }

    def shape(self, node: fx.Node, clip: int) -> list[int]:
        """What a node of the program yields for a frame of a clip."""
        symbols = self._symbols(clip)
        return [int(evaluate_size(size, symbols)) for size in self.program.facts(node).shape]

    def sizes(self, clip: int) -> tuple[tuple[int, ...], ...]:
        """The shapes of one frame; clips that agree in them can share a batch."""
        return tuple(tuple(value.shape[1:]) for value in self.clips[clip].values())

    def _named(self, number: int, clip: Clip) -> Mapping[str, Tensor]:
        if not isinstance(clip, Tensor | Mapping):
            raise CalibrationError(f"clip {number} is no tensor: {_why_no_tensor(clip)}")
        names = [str(node.target) for node in self._frames]
        if isinstance(clip, Tensor):
            if len(names) != 1:
                raise CalibrationError(
                    f"calibration feeds one frame at a time; this program also takes {', '.join(names)}: "
                    "give each clip as a mapping from these names to tensors"
                )
            return {names[0]: clip}
        if set(clip) != set(names):
            raise CalibrationError(
                f"a clip has {', '.join(sorted(clip))}, the program takes {', '.join(names)}"
            )
        return {name: clip[name] for name in names}

    def _check(self, clip: int) -> None:
        name, lengths = f"clip {clip + 1}", {len(value) for value in self.clips[clip].values()}
        if len(lengths) > 1:
            raise CalibrationError(f"{name} has inputs of {' and '.join(map(str, lengths))} frames")
        if lengths == {0}:
            raise CalibrationError(f"{name} holds no frames: leave it out")
        for node, value in zip(self._frames, self.clips[clip].values(), strict=True):
            wanted, sizes = self.program.facts(node), (1, *value.shape[1:])
            if len(sizes) != len(wanted.shape) or not all(map(_fits, sizes, wanted.shape)):
                shape, text = list(value.shape), ",".join(map(str, wanted.shape))
                single = all(map(_fits, (1,), wanted.shape))
                fix = "resize the frames, or capture another size" if single else ONE_AT_A_TIME
                raise CalibrationError(f"{name} is {shape}, the program takes [{text}]: {fix}")
            if value.dtype != wanted.dtype:
                raise CalibrationError(f"{name} is {value.dtype}: give {wanted.dtype}, pictures in 0..1")
            check_finite(value, name)

    def _symbols(self, clip: int) -> dict[str, int]:
        symbols: dict[str, int] = {}
        for node, value in zip(self._frames, self.clips[clip].values(), strict=True):
            symbols |= solve_symbols(self.program.facts(node).shape, (1, *value.shape[1:]))
        return symbols


def _why_no_tensor(clip: object) -> str:
    """What to do about a clip of some other type, such as a list of frames."""
    frames = clip if isinstance(clip, list | tuple) else []
    shapes = [list(frame.shape) for frame in frames if isinstance(frame, Tensor)]
    for number, shape in enumerate(shapes, start=1):
        if shape != shapes[0]:
            return f"frame {number} is {shape}, the first {shapes[0]}; give each size a clip of its own"
    return f"stack the frames of this {type(clip).__name__} into one (T,3,H,W)"


def check_finite(value: Tensor, clip: str) -> None:
    """Raise `CalibrationError`, which names the first such frame, unless all of (T, ...) is finite."""
    for number, frame in enumerate(value, start=1):
        if not frame.isfinite().all():
            raise CalibrationError(
                f"values are not finite on frame {number} of {clip}: leave it out, or make the clip again"
            )


def _fits(have: int, want: int | str) -> bool:
    return have == want if isinstance(want, int) else have % size_step(want) == 0
