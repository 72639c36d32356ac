"""What the training loop needs from a network that mattes pictures with trimaps, and how models and programs give it."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mattecompress.interface import TRIMAP, frame_node
from mattecompress.modules.routed_attention import TokenChoice
from mattecompress.modules.token_router import TokenRouter
from mattecompress.passes.attach_distillation import FEATURES, TAUGHT
from mattecompress.program import Program
from mattecompress.training.network import solve_sizes


class TrimapAnswer(NamedTuple):
    """What a network says of pictures; all but the matte only where it has such.

    alpha: (N,1,H,W), float32 in 0..1.
    features: of its encoder, (N,C,h,w). taught: the same of a teacher that it carries with it.
    share: of all tokens those that attend, the mean over its routers, a scalar; in training with a gradient.
    expected: the share that would attend if it were drawn as in the last step of training, a scalar; not in training.
    """

    alpha: Tensor
    features: Tensor | None = None
    taught: Tensor | None = None
    share: Tensor | None = None
    expected: Tensor | None = None


class TrimapNetwork(ABC):
    """A network that mattes pictures with trimaps, and whose routers are watched.

    brings_teacher: whether its answers say what a teacher of its own would.
    """

    brings_teacher = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._shares: list[Tensor] = []
        self._expected: list[Tensor] = []
        self._noise = 1.0
        self._choices = [part for part in module.modules() if isinstance(part, TokenChoice)]
        for choice in self._choices:
            choice.register_forward_hook(self._see_choice)
        for part in module.modules():
            if isinstance(part, TokenRouter):
                part.register_forward_hook(self._see_scores)

    def draw_with(self, noise: float) -> None:
        """Let routers draw, in training, with that factor of noise, as of `TokenChoice`."""
        self._noise = noise
        for choice in self._choices:
            choice.noise = noise

    def answer(self, frames: Tensor, trimap: Tensor) -> TrimapAnswer:
        """The matte of (N,3,H,W) and (N,1,H,W), and what else a loss may weigh."""
        answer = self._matte(frames, trimap)
        share, expected = (
            torch.stack(seen).mean() if seen else None for seen in (self._shares, self._expected)
        )
        self._shares.clear()
        self._expected.clear()
        return answer._replace(alpha=answer.alpha.float(), share=share, expected=expected)

    @abstractmethod
    def _matte(self, frames: Tensor, trimap: Tensor) -> TrimapAnswer: ...

    def _see_choice(self, module: nn.Module, inputs: tuple[Tensor, ...], chosen: Tensor) -> None:
        self._shares.append(chosen.float().mean())

    def _see_scores(self, module: nn.Module, inputs: tuple[Tensor, ...], scores: Tensor) -> None:
        if not module.training:
            self._shares.append((scores[..., 0] > scores[..., 1]).float().mean())
            margin = (scores[..., 0] - scores[..., 1]).float()
            self._expected.append(torch.sigmoid(margin / self._noise).mean())


class ViTMatteNetwork(TrimapNetwork):
    """ViTMatte and MEMatte for training."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._features: Tensor | None = None
        module.get_submodule("decoder").register_forward_pre_hook(self._see_features)

    def _matte(self, frames: Tensor, trimap: Tensor) -> TrimapAnswer:
        alpha = self.module(frames, trimap)
        features, self._features = self._features, None
        return TrimapAnswer(alpha, features)

    def _see_features(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0]


class TrimapProgramNetwork(TrimapNetwork):
    """A captured program of such a network, with its features and a teacher's where `attach-distillation` has run."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.program = program
        self.brings_teacher = TAUGHT in program.output_names
        self._frame = str(frame_node(program).target)

    def _matte(self, frames: Tensor, trimap: Tensor) -> TrimapAnswer:
        solve_sizes(self.program, frames)
        outputs = self.program.run(**{self._frame: frames, TRIMAP: trimap})
        features, taught = outputs.pop(FEATURES, None), outputs.pop(TAUGHT, None)
        (alpha,) = outputs.values()
        return TrimapAnswer(alpha, features, taught)
