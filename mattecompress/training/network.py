"""What the training loop needs from a network that mattes clips, and how RVM and programs give it."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mattecompress.data.sources import frame_node
from mattecompress.errors import UserError
from mattecompress.facts import evaluate_size, size_symbols
from mattecompress.program import Program


class Network(Protocol):
    """A network over whole clips, its state carried from frame to frame."""

    module: nn.Module

    def matte(self, frames: Tensor, ratio: float = 1) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) to foreground (B,T,3,H,W) and alpha (B,T,1,H,W), float32 in 0..1."""

    def segment(self, frames: Tensor) -> Tensor:
        """(B,T,3,H,W) to logits (B,T,1,H,W), float32."""


class UnsupportedPassError(UserError):
    """A recipe asks a program for a pass or a frame size that was not captured into it."""


class RVMNetwork:
    """RVM for training: its values, but its clamps are `InwardClamp`.

    From random weights half of the alphas begin below 0, where the clamp of RVM's own forward would hold them.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module = module
        self._raw: tuple[Tensor, Tensor] | None = None
        module.get_submodule("project_mat").register_forward_hook(self._see_projection)
        module.get_submodule("refiner").register_forward_hook(self._see_refiner)

    def matte(self, frames: Tensor, ratio: float = 1) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) to foreground (B,T,3,H,W) and alpha (B,T,1,H,W), float32 in 0..1."""
        self.module(frames, downsample_ratio=ratio)
        assert self._raw is not None
        residual, alpha = (raw.float().unflatten(0, frames.shape[:2]) for raw in self._raw)
        self._raw = None
        foreground: Tensor = InwardClamp.apply(residual + frames)  # type: ignore[no-untyped-call]
        alpha = InwardClamp.apply(alpha)  # type: ignore[no-untyped-call]
        return foreground, alpha

    def segment(self, frames: Tensor) -> Tensor:
        """(B,T,3,H,W) to logits (B,T,1,H,W), float32."""
        logits: Tensor = self.module(frames, segmentation_pass=True)[0]
        return logits.float()

    def _see_projection(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._raw = (output[:, :3], output[:, 3:])

    def _see_refiner(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]
    ) -> None:
        self._raw = output


class ProgramNetwork:
    """A captured matting program, run frame by frame from zero states, as a `Network`.

    The program has one frame input, its states, and the outputs `fgr` and `pha`. Sizes may be open: a state is as
    large as the program's shape facts say for the frames at hand.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.module = program.graph_module
        self.frame_name = str(frame_node(program).target)

    def matte(self, frames: Tensor, ratio: float = 1) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) to foreground (B,T,3,H,W) and alpha (B,T,1,H,W), float32 in 0..1.

        Raises:
            UnsupportedPassError: `ratio` is not 1 (a program's ratio is fixed when it is captured), or the program's
                resolution is fixed and another.
        """
        if ratio != 1:
            raise UnsupportedPassError(
                f"{self.program.name}: a program's downsample ratio is fixed; choose a recipe without high pass"
            )
        states = self._zero_states(frames[:, 0])
        foregrounds, alphas = [], []
        for frame in frames.unbind(1):
            outputs = self.program.run(**{self.frame_name: frame}, **states)
            states = {pair.input: outputs[pair.output] for pair in self.program.states}
            foregrounds.append(outputs["fgr"])
            alphas.append(outputs["pha"])
        return torch.stack(foregrounds, 1).float(), torch.stack(alphas, 1).float()

    def segment(self, frames: Tensor) -> Tensor:
        """Refuse: a program holds the matting pass only."""
        raise UnsupportedPassError(
            f"{self.program.name}: a program has no segmentation pass; choose a recipe without it"
        )

    def _zero_states(self, frame: Tensor) -> dict[str, Tensor]:
        inputs = dict(zip(self.program.input_names, self.program.inputs, strict=True))
        shape = self.program.facts(inputs[self.frame_name]).shape
        symbols = _solve(shape, frame.shape)
        if tuple(evaluate_size(size, symbols) for size in shape) != tuple(frame.shape):
            wanted, given = "x".join(map(str, shape)), "x".join(map(str, frame.shape))
            raise UnsupportedPassError(
                f"{self.program.name}: takes frames {wanted}, the recipe gives {given}; "
                "train before set-resolution, or choose a recipe of that size"
            )
        shapes = {pair.input: self.program.facts(inputs[pair.input]).shape for pair in self.program.states}
        return {
            name: frame.new_zeros([evaluate_size(size, symbols) for size in shape])
            for name, shape in shapes.items()
        }


def _solve(shape: tuple[int | str, ...], sizes: torch.Size) -> dict[str, int]:
    """The symbols of a frame's shape, whose sizes are `k*symbol`, from actual sizes."""
    symbols: dict[str, int] = {}
    for size, actual in zip(shape, sizes, strict=True):
        for symbol in size_symbols(size):
            symbols[symbol] = actual // evaluate_size(size, {symbol: 1})
    return symbols


class InwardClamp(torch.autograd.Function):
    """y = min(max(x, 0), 1);  dL/dx = dL/dy, but 0 where x is outside and descent would move it further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Clamp."""
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Let the gradient through where it leads inward."""
        (x,) = ctx.saved_tensors
        outward = ((x < 0) & (gradient > 0)) | ((x > 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0)
