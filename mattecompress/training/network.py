"""What the training loop needs from a network that mattes clips, and how RVM, BiMatting and programs give it."""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mattecompress.errors import UserError
from mattecompress.facts import evaluate_size, solve_symbols
from mattecompress.interface import frame_node
from mattecompress.models.rvm import lay_out
from mattecompress.passes.attach_mimicking import COARSE, MASK, tap_names
from mattecompress.program import Program


class Answer(NamedTuple):
    """What a network says of clips; all but the matte only where it has such.

    foreground, alpha: (B,T,3,H,W) and (B,T,1,H,W), float32 in 0..1.
    coarse: the same from its decoder's first block, at another size.
    features, mask: of its encoder, shallow first, (B*T,C,h,w), and where it looks closely, (B*T,1,h,w).
    """

    foreground: Tensor
    alpha: Tensor
    coarse: tuple[Tensor, Tensor] | None = None
    features: tuple[Tensor, ...] = ()
    mask: Tensor | None = None


class Network(Protocol):
    """A network over whole clips, its state carried from frame to frame."""

    module: nn.Module

    def answer(self, frames: Tensor, ratio: float = 1) -> Answer:
        """The matte of (B,T,3,H,W), and what else a loss may weigh."""

    def features(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Of the encoder for (B,T,3,H,W), as of `Answer`."""

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

    def answer(self, frames: Tensor, ratio: float = 1) -> Answer:
        """The matte of (B,T,3,H,W)."""
        self.module(frames, downsample_ratio=ratio)
        assert self._raw is not None
        residual, alpha = self._raw
        self._raw = None
        return Answer(*clamped(residual, alpha, frames))

    def matte(self, frames: Tensor, ratio: float = 1) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) to foreground (B,T,3,H,W) and alpha (B,T,1,H,W), float32 in 0..1."""
        return self.answer(frames, ratio)[:2]

    def features(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Of the encoder for (B,T,3,H,W), as of `Answer`."""
        found: tuple[Tensor, ...] = self.module.get_submodule("backbone")(frames.flatten(0, 1))
        return found

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


class BiMattingNetwork(RVMNetwork):
    """BiMatting and BiVM for training: with the coarse matte, the encoder's features and the mask."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._coarse: tuple[Tensor, Tensor] | None = None
        self._features: tuple[Tensor, ...] = ()
        module.get_submodule("backbone").register_forward_hook(self._see_features)
        module.get_submodule("decoder.decode4").register_forward_hook(self._see_coarse)

    def answer(self, frames: Tensor, ratio: float = 1) -> Answer:
        """The matte of (B,T,3,H,W), the coarse one at 1/16, four features and the mask."""
        foreground, alpha, *_ = super().answer(frames, ratio)
        assert self._coarse is not None
        (raw, mask), features = self._coarse, self._features
        self._coarse, self._features = None, ()
        coarse = clamped(raw[:, :3], raw[:, 3:], resized(frames, raw))
        return Answer(foreground, alpha, coarse, features, mask)

    def _see_features(
        self, module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]
    ) -> None:
        self._features = output

    def _see_coarse(self, module: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        self._coarse = (output[2], output[3])


class ProgramNetwork:
    """A captured matting program, run frame by frame from zero states, as a `Network`.

    The program has one frame input, its states, and the outputs `fgr` and `pha`, whose clamps are `InwardClamp` here
    too. Sizes may be open: a state is as large as the program's shape facts say for the frames at hand.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.module = program.graph_module
        self.frame_name = str(frame_node(program).target)
        self._run = _InwardInterpreter(program)

    def answer(self, frames: Tensor, ratio: float = 1) -> Answer:
        """The matte of (B,T,3,H,W); the coarse one, features and mask where `attach-mimicking` has tapped them.

        Raises:
            UnsupportedPassError: `ratio` is not 1 (a program's ratio is fixed when it is captured), or the program's
                resolution is fixed and another.
        """
        if ratio != 1:
            raise UnsupportedPassError(
                f"{self.program.name}: a program's downsample ratio is fixed; choose a recipe without high pass"
            )
        states = self._zero_states(frames[:, 0])
        seen: dict[str, list[Tensor]] = {name: [] for name in self.program.output_names}
        for frame in frames.unbind(1):
            outputs = self._run(**{self.frame_name: frame}, **states)
            states = {pair.input: outputs[pair.output] for pair in self.program.states}
            for name, value in outputs.items():
                seen[name].append(value)
        clips = {name: torch.stack(values, 1) for name, values in seen.items()}
        taps = tuple(clips[name].flatten(0, 1) for name in tap_names(self.program))
        mask = clips[MASK].flatten(0, 1) if MASK in clips else None
        coarse = None
        if COARSE in clips:
            raw = clips[COARSE].flatten(0, 1)
            coarse = clamped(raw[:, :3], raw[:, 3:], resized(frames, raw))
        return Answer(clips["fgr"].float(), clips["pha"].float(), coarse, taps, mask)

    def matte(self, frames: Tensor, ratio: float = 1) -> tuple[Tensor, Tensor]:
        """(B,T,3,H,W) to foreground (B,T,3,H,W) and alpha (B,T,1,H,W), float32 in 0..1."""
        return self.answer(frames, ratio)[:2]

    def features(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Of the encoder for (B,T,3,H,W), as of `Answer`, where `attach-mimicking` has tapped them."""
        return self.answer(frames).features

    def segment(self, frames: Tensor) -> Tensor:
        """Refuse: a program holds the matting pass only."""
        raise UnsupportedPassError(
            f"{self.program.name}: a program has no segmentation pass; choose a recipe without it"
        )

    def _zero_states(self, frame: Tensor) -> dict[str, Tensor]:
        inputs = dict(zip(self.program.input_names, self.program.inputs, strict=True))
        symbols = solve_sizes(self.program, frame)
        shapes = {pair.input: self.program.facts(inputs[pair.input]).shape for pair in self.program.states}
        return {
            name: frame.new_zeros([evaluate_size(size, symbols) for size in shape])
            for name, shape in shapes.items()
        }


class _InwardInterpreter(fx.Interpreter):
    """Runs a program; an output that is a clamp to 0..1 is an `InwardClamp`."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.clamps = {
            node
            for node in program.outputs.values()
            if node.target is torch.ops.aten.clamp.default and node.args[1:] == (0, 1)
        }

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.clamps:
            return super().run_node(n)
        (x, *_), _ = self.fetch_args_kwargs_from_env(n)
        return InwardClamp.apply(x)  # type: ignore[no-untyped-call]

    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        values = self.run(*(inputs[name] for name in self.program.input_names))
        return dict(zip(self.program.output_names, values, strict=True))


def solve_sizes(program: Program, frame: Tensor) -> dict[str, int]:
    """The program's open sizes, by their symbols, where it is given such frames.

    Raises:
        UnsupportedPassError: a size is fixed and another.
    """
    shape = program.facts(frame_node(program)).shape
    symbols = solve_symbols(shape, frame.shape)
    if tuple(evaluate_size(size, symbols) for size in shape) != tuple(frame.shape):
        wanted, given = "x".join(map(str, shape)), "x".join(map(str, frame.shape))
        raise UnsupportedPassError(
            f"{program.name}: takes frames {wanted}, but is given {given}; leave its sizes open, "
            "or choose a recipe and held-out clips of that size"
        )
    return symbols


def clamped(residual: Tensor, alpha: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground and alpha in the layout of `frames` (B,T,3,H,W), float32, from (B*T,3,H,W) and (B*T,1,H,W)."""
    residual, alpha = (raw.float().unflatten(0, frames.shape[:2]) for raw in (residual, alpha))
    foreground: Tensor = InwardClamp.apply(residual + frames)  # type: ignore[no-untyped-call]
    alpha = InwardClamp.apply(alpha)  # type: ignore[no-untyped-call]
    return foreground, alpha


def resized(clip: Tensor, like: Tensor) -> Tensor:
    """(B,T,C,H,W) at the size of another image's last two axes, bilinear."""
    size = like.shape[-2:]
    small: Tensor = F.interpolate(clip.flatten(0, 1), size, mode="bilinear", align_corners=False)
    return lay_out(small, clip.shape[1])


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
