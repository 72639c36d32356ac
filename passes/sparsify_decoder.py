"""y = W (*) x + b  becomes  y = M * (W' (*) x) + W1 (*) x + b        (taps)
y = g(W, x)      becomes  y = M * g(W, x) + g'(W1, x)             (branches)

with M a mask of where the coarse alpha is not certain (`mattecompress.modules.spatial_mask`), resized bilinearly, W1 the
centre taps of W and W' the other taps. Where M is 0 the layer sees a pixel without its surroundings. With taps a mask
of ones changes nothing. With branches, g is a convolution with its batch norm and activation, and g' has a batch norm
of its own: the network has to be trained.

Source: BiVM equation (17), whose symbols are lost in our copy of the paper: reconstructions (R). BiMatting's program
has branches, though both from random weights.
"""

import fnmatch
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from mattecompress.analysis.operands import arguments_of
from mattecompress.analysis.regions import regions_in_order
from mattecompress.binarization.binarizable import float_convolutions, layer_path, weight_of
from mattecompress.binarization.masked_sum import BranchSums, MaskedSums, TapSums
from mattecompress.binarization.masking import masked_nodes
from mattecompress.modules.batch_norm import BatchNorm2d, BatchNormConfig
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.quantizer import FakeQuantize
from mattecompress.modules.spatial_mask import Rule, SpatialMask, SpatialMaskConfig
from mattecompress.options import nearest
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Level, Program

aten = torch.ops.aten
PART = "sparsifier"
"""Where the tensors of the coarse alpha live."""
SUMS: dict[str, type[MaskedSums]] = {"taps": TapSums, "branches": BranchSums}


@dataclass(frozen=True)
class SparsifyDecoder(Pass):
    """Put the surroundings of a decoder's convolutions under a mask; afterwards each that can be is a masked sum.

    coarse: the region whose value, read by a later region, the coarse alpha is computed from.
    head: path of the 1x1 layer that makes the alpha, in RVM project_mat.conv; it makes the coarse one too.
    channel: the alpha among the head's outputs.
    regions: patterns of the regions to work on.
    sum: of taps, or of branches.
    rule, threshold: as of `SpatialMask`.
    output: name of an output to add, the coarse alpha before any clamp: no gradient passes a mask, so a loss has to
        be put on it.
    """

    coarse: str
    head: str
    regions: tuple[str, ...]
    channel: int = 3
    sum: Literal["taps", "branches"] = "taps"
    rule: Rule = "support_residual"
    threshold: float = 0.01
    output: str | None = None
    name: ClassVar[str] = "sparsify-decoder"

    def requires(self, program: Program) -> None:
        """Nothing is quantized, binarized or lowered, there is no mask yet, and the options name known regions."""
        expect(program.level is not Level.LOWERED, "the program is lowered: sparsify before lowering")
        for kind, name in ((FakeQuantize, "quantize"), (BinaryConv2d, "binarize")):
            expect(not program.called_modules(kind), f"run sparsify-decoder before {name}, not after it")
        regions = list(regions_in_order(program))
        expect(regions, "no regions are known: run partition-blocks before")
        expect(self.coarse in regions, f"no region is called '{self.coarse}'{nearest(self.coarse, regions)}")
        later = regions[regions.index(self.coarse) + 1 :]
        for pattern in self.regions:
            expect(
                fnmatch.filter(regions, pattern), f"'{pattern}' matches no region{nearest(pattern, later)}"
            )
            early = [region for region in fnmatch.filter(regions, pattern) if region not in later]
            expect(not early, f"region {', '.join(early)} is computed before the mask of {self.coarse}")
        paths = sorted({layer_path(node) for node in float_convolutions(program)})
        expect(self.head in paths, f"no float layer is called '{self.head}'{nearest(self.head, paths)}")
        weight = program.tensor(self._head(program)["weight"])
        expect(weight.shape[2:] == (1, 1), f"{self.head} is no 1x1 layer")
        expect(
            0 <= self.channel < len(weight), f"{self.head} has {len(weight)} outputs, not one {self.channel}"
        )
        if not program.called_modules(SpatialMask):
            expect(_read_later(program, self.coarse), f"region {self.coarse} hands no single value on")
            expect(self._layers(program), f"no layer of {', '.join(self.regions)} can become a masked sum")

    def ensures(self, program: Program) -> None:
        """There is one mask, and every layer that can be is a masked sum."""
        masked = masked_nodes(program)
        left = [node.name for node in self._layers(program) if node not in masked]
        expect(masked and not left, f"layers without a mask: {', '.join(left) or 'all'}")

    def apply(self, program: Program, context: Context) -> str | None:
        """The mask behind the coarse region, then each layer."""
        if program.called_modules(SpatialMask):
            return None
        layers = self._layers(program)
        mask = self._mask(program, torch.Generator().manual_seed(context.seed))
        if self.output is not None:
            program.add_output(self.output, mask.all_input_nodes[0])
        writer = SUMS[self.sum](program, mask)
        writer.split(layers)
        return f"{len(layers)} layers under a mask of {self.coarse}, at {len(writer.resized)} sizes"

    def _head(self, program: Program) -> dict[str, Any]:
        return next(arguments_of(n) for n in float_convolutions(program) if layer_path(n) == self.head)

    def _layers(self, program: Program) -> list[fx.Node]:
        chosen = []
        for node in float_convolutions(program):
            region = program.facts(node).region or ""
            if any(fnmatch.fnmatchcase(region, pattern) for pattern in self.regions) and _can_split(
                program, node
            ):
                chosen.append(node)
        return chosen

    def _mask(self, program: Program, generator: torch.Generator) -> fx.Node:
        """The coarse alpha of a 3x3 layer, batch norm, PReLU and the head, and the mask of it."""
        (value,) = _read_later(program, self.coarse)
        head = self._head(program)
        inputs, hidden = int(program.facts(value).shape[1]), program.tensor(head["weight"]).shape[1]
        spread = (2 / (9 * inputs)) ** 0.5
        weight = torch.randn(hidden, inputs, 3, 3, generator=generator) * spread
        layer = program.constant(f"{PART}.conv.weight", nn.Parameter(weight))
        slope = program.constant(f"{PART}.activation.weight", nn.Parameter(torch.full((hidden,), 0.25)))
        training = program.graph_module.training
        program.add_module(f"{PART}.norm", BatchNorm2d(BatchNormConfig(hidden)).train(training))
        program.add_module(f"{PART}.mask", SpatialMask(SpatialMaskConfig(self.rule, self.threshold)))
        graph = program.graph
        with graph.inserting_after(value):
            steps = [graph.call_function(aten.conv2d.default, (value, layer, None, [1, 1], [1, 1]))]
        for operator, arguments in (
            (f"{PART}.norm", ()),
            (aten.prelu.default, (slope,)),
            (aten.conv2d.default, (head["weight"], head["bias"])),
            (aten.slice.Tensor, (1, self.channel, self.channel + 1)),
            (f"{PART}.mask", ()),
        ):
            with graph.inserting_after(steps[-1]):
                make: Any = graph.call_module if isinstance(operator, str) else graph.call_function
                steps.append(make(operator, (steps[-1], *arguments)))
        for step in steps:
            step.meta["facts"] = program.facts(value).but(
                precision=None, scope=self.coarse, region=self.coarse
            )
        return steps[-1]


def _read_later(program: Program, region: str) -> list[fx.Node]:
    """The image that a region hands to others, states and outputs aside; empty where it is not one."""
    found = []
    for node in regions_in_order(program).get(region, []):
        outside = [user for user in node.users if user.op != "output"]
        outside = [user for user in outside if program.facts(user).region != region]
        if outside and len(program.facts(node).shape) == 4:
            found.append(node)
    return found if len(found) == 1 else []


def _can_split(program: Program, node: fx.Node) -> bool:
    """Taps around a centre, and a result as large as what is read."""
    if node.target is not aten.conv2d.default or weight_of(node).op != "get_attr":
        return False
    kernel = program.tensor(weight_of(node)).shape[2:]
    (x, *_) = node.all_input_nodes
    same = program.facts(x).shape[2:] == program.facts(node).shape[2:]
    return same and max(kernel) > 1 and all(size % 2 for size in kernel)
