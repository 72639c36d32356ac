"""features of an encoder  become  features of stem, groups and single sub-blocks, from the same frame:

    group   h1 = head(x), h2 = middle(h1), h3 = tail(h2),  y = h3 + b * f(P(h1)) + c * f(P(x))

with sub-blocks as in `mattecompress.models.binary_encoder`, still in float: `binarize` makes them one-bit. A stem of C
channels halves the frame; a group `32-64-32/2` has sub-blocks of 32, 64 and 32 channels and halves the size in its
middle. The last block at each scale gives a feature.

Source: BiVM, Table V, equations (9) to (12), whose symbols are lost in our copy of the paper: a reconstruction (R).
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from mattecompress.analysis.operands import arguments_of
from mattecompress.analysis.scopes import lies_in, nodes_of
from mattecompress.binarization.binarizable import float_convolutions, weight_of
from mattecompress.capturing.tracing import capture
from mattecompress.grafting import graft
from mattecompress.models.binary_encoder import BinaryEncoder, EncoderPlan, Group
from mattecompress.models.binary_layers import Form
from mattecompress.passes.insert_elastic_shortcuts import stride_between
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program, owner_of
from mattecompress.signature import Signature

aten = torch.ops.aten
CHANNELWISE = (
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.upsample_bilinear2d.vec,
    aten.relu.default,
    aten.hardswish.default,
)
"""What passes channels on one by one."""
GROUP = re.compile(r"(\d+)-(\d+)-(\d+)(/2)?")


@dataclass(frozen=True)
class EvolveEncoder(Pass):
    """Replace an encoder by evolvable blocks; afterwards its features have a plan's channels, which their readers take.

    Weights of the new encoder, and of the convolutions that read a feature whose channels have changed, are drawn.

    encoder: path of the module that makes the features from the frame.
    stem: channels at half the size.
    groups: channels of head, middle and tail, `/2` where the middle halves the size.
    widening: channels of the single sub-blocks behind the groups.
    shortcuts: elastic, with learnable factors a from 1, b and c from U(0, 1); fixed, as BiMatting's: a = 1, b = 1 where
        the size halves and else 0, c = 0.
    """

    encoder: str
    stem: int = EncoderPlan().stem
    groups: tuple[str, ...] = tuple(
        f"{head}-{middle}-{tail}{'/2' * (stride == 2)}" for head, middle, tail, stride in EncoderPlan().groups
    )
    widening: tuple[int, ...] = EncoderPlan().widening
    shortcuts: Literal["elastic", "fixed"] = "elastic"
    name: ClassVar[str] = "evolve-encoder"

    def requires(self, program: Program) -> None:
        """The encoder is there, in float, reads one RGB image, and hands on as many features as the plan has."""
        for group in self.groups:
            expect(GROUP.fullmatch(group), f"groups: '{group}' is no HEAD-MIDDLE-TAIL, such as 32-64-32/2")
        counts = [self.stem, *self.widening, *(channels for group in self._plan.groups for channels in group)]
        expect(min(counts) > 0, "a block needs channels: the plan has one of 0")
        expect(program.level is not Level.LOWERED, "the program is lowered: evolve the encoder before")
        nodes = nodes_of(program, self.encoder)
        expect(nodes, f"no operation comes from a module '{self.encoder}'")
        frames, features = _ends(program, nodes)
        if self._is_evolved(program):
            expect(self._fits(program, features), f"{self.encoder} is evolved already, by another plan")
            return
        modules = [node.name for node in nodes if program.facts(node).precision]
        expect(not modules, f"%{next(iter(modules), '')} is not float: evolve the encoder first")
        expect(len(frames) == 1, f"{self.encoder} reads {len(frames)} values, not one frame")
        expect(program.facts(frames[0]).shape[1] == 3, f"%{frames[0].name} is no RGB frame")
        planned = len(self._plan.channels)
        expect(len(features) == planned, f"{self.encoder} gives {len(features)} features, the plan {planned}")

    def ensures(self, program: Program) -> None:
        """The encoder is one of evolvable blocks, and gives the plan's channels."""
        expect(self._is_evolved(program), f"{self.encoder} has no evolvable blocks")
        _, features = _ends(program, nodes_of(program, self.encoder))
        expect(self._fits(program, features), f"features have other channels than {self._plan.channels}")

    def apply(self, program: Program, context: Context) -> str | None:
        """The new encoder in place of the old, then weights for those that read it."""
        if self._is_evolved(program):
            return None
        nodes = nodes_of(program, self.encoder)
        (frame,), old = _ends(program, nodes)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(context.seed)
            donor = self._captured(program.facts(frame).shape, context.seed)
        program.scopes = {
            path: kind for path, kind in program.scopes.items() if not lies_in(path, self.encoder)
        }
        new = list(graft(program, donor, {"x": frame}, self.encoder, nodes[0]).values())
        program.scopes = dict(sorted({**program.scopes, self.encoder: BinaryEncoder.__name__}.items()))
        _read_sizes_of(program, old, nodes)
        images = {node for node in nodes if _is_image(program, node)}
        changed = {}
        for one, other in zip(old, new, strict=True):
            same = stride_between(program.facts(one), program.facts(other)) == 1
            expect(
                same, f"%{one.name} has another size than the plan gives: put `/2` on the groups that halve"
            )
            one.replace_all_uses_with(other, delete_user_cb=lambda user: user not in images)
            if program.facts(one).shape[1] != program.facts(other).shape[1]:
                changed[other] = int(program.facts(other).shape[1])
        program.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        generator = torch.Generator().manual_seed(context.seed)
        readers = _fit_readers(program, changed, set(nodes_of(program, self.encoder)), generator)
        blocks = f"{len(self.groups)} groups and {len(self.widening)} sub-blocks"
        return f"{blocks} in {self.encoder}; new weights in {readers} layers that read it"

    @property
    def _plan(self) -> EncoderPlan:
        parts = [GROUP.fullmatch(group) for group in self.groups]
        groups = (Group(int(p[1]), int(p[2]), int(p[3]), 2 if p[4] else 1) for p in parts if p is not None)
        return EncoderPlan(self.stem, tuple(groups), self.widening)

    def _captured(self, frame: tuple[int | str, ...], seed: int) -> Program:
        encoder = BinaryEncoder(Form(binary=False, elastic=self.shortcuts == "elastic"), self._plan)
        encoder.draw_factors(torch.Generator().manual_seed(seed))
        outputs = tuple(f"f{number}" for number in range(1, len(self._plan.channels) + 1))
        return capture(encoder, Signature((("x", frame),), outputs), BinaryEncoder.__name__)

    def _fits(self, program: Program, features: list[fx.Node]) -> bool:
        return tuple(program.facts(node).shape[1] for node in features) == self._plan.channels

    def _is_evolved(self, program: Program) -> bool:
        return program.scopes.get(self.encoder) == BinaryEncoder.__name__


def _ends(program: Program, nodes: list[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The images that an encoder reads, and those that others read from it, in order."""
    own = set(nodes)
    read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in own)
    frames = [node for node in read if node.op != "get_attr" and program.facts(node).dtype is not None]
    return frames, [node for node in nodes if any(_is_image(program, u) and u not in own for u in node.users)]


def _is_image(program: Program, node: fx.Node) -> bool:
    """No size, or the outputs."""
    return node.op == "output" or program.facts(node).dtype is not None


def _read_sizes_of(program: Program, features: list[fx.Node], nodes: list[fx.Node]) -> None:
    """Let those who read a size within an encoder read it of a feature.

    Raises:
        PreconditionError: no feature is as large.
    """
    for node in nodes:
        for user in [user for user in node.users if not _is_image(program, user)]:
            size = program.facts(user).shape
            axis = user.args[1]
            assert isinstance(axis, int)
            equal = [feature for feature in features if program.facts(feature).shape[axis : axis + 1] == size]
            expect(equal, f"%{user.name} reads a size of {node.name}, which no feature has")
            user.update_arg(0, equal[0])


def _fit_readers(
    program: Program, channels: dict[fx.Node, int], encoder: set[fx.Node], generator: torch.Generator
) -> int:
    """Draw weights for the convolutions that read images of other channels than before; how many there are."""
    fitted = 0
    convolutions = set(float_convolutions(program))
    for node in program.operations():
        sources = [source for source in node.all_input_nodes if source in channels]
        if not sources or node in encoder or not _is_image(program, node):
            continue
        if node in convolutions:
            _draw_weight(program, node, channels[sources[0]], generator)
            fitted += 1
        elif node.target is aten.cat.default and node.args[1:] == (1,):
            parts = [channels.get(part, program.facts(part).shape[1]) for part in node.all_input_nodes]
            channels[node] = sum(map(int, parts))
        else:
            passes_on = node.target in CHANNELWISE or (
                node.target is aten.slice.Tensor and node.args[1] in (2, 3)
            )
            expect(passes_on, f"%{node.name} ({node.target}) reads a feature whose channels change")
            channels[node] = channels[sources[0]]
    return fitted


def _draw_weight(program: Program, layer: fx.Node, inputs: int, generator: torch.Generator) -> None:
    """PyTorch's uniform weights for a layer of that many inputs."""
    given: dict[str, Any] = arguments_of(layer)
    expect(given["groups"] == 1, f"%{layer.name} is grouped: its inputs cannot change")
    reader = weight_of(layer)
    outputs, _, *kernel = program.tensor(reader).shape
    bound = (inputs * kernel[0] * kernel[1]) ** -0.5
    weight = torch.empty(outputs, inputs, *kernel).uniform_(-bound, bound, generator=generator)
    owner, leaf = owner_of(program.graph_module, str(reader.target))
    setattr(owner, leaf, nn.Parameter(weight))
