"""y = scale_o * (B_w (*) B_a(x)) + bias_o

becomes  bits = [x >= threshold_c] packed,  n = B_w (*) bits in integers,  y = n * scale_o + bias_o.

Two-bit activations q are two planes of bits:  n = B_w (*) b0 + 2 * (B_w (*) b1),  q = b0 + 2 b1.

Every bit is the same: the threshold is the negated activation bias, of the layer's own or added by the network before
it, and x + b >= 0 just when x >= -b in floating point.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from mattecompress.facts import DTYPE_NAMES, Precision
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.ops.binary import choose_word, pack_depthwise_signs, pack_weight_signs
from mattecompress.pipeline import Context, Pass, expect
from mattecompress.program import Program, numbered

aten = torch.ops.aten
matte = torch.ops.matte


@dataclass(frozen=True)
class LowerBinary(Pass):
    """Turn trainable one-bit convolutions into packed ones; afterwards none is called.

    A layer that cannot be packed becomes a float convolution of signs, which the pass's note names with the reason.

    strict: refuse a program with such a layer.
    """

    strict: bool = False
    name: ClassVar[str] = "lower-binary"

    def requires(self, program: Program) -> None:
        """Under strict, every layer can be packed."""
        refusals = _refusals(program) if self.strict else {}
        expect(not refusals, f"cannot pack {_list(refusals)}: lower without strict to compute it in float")

    def ensures(self, program: Program) -> None:
        """No trainable one-bit convolution is left."""
        expect(not program.called_modules(BinaryConv2d), "a one-bit convolution is still trainable")

    def apply(self, program: Program, context: Context) -> str | None:
        """Lower each call; those that read the same bits in the same region share one packing."""
        refusals = _refusals(program)
        modules = {call: program.module(call) for call in program.called_modules(BinaryConv2d)}
        if not modules:
            return None
        for path in {str(call.target) for call in modules}:
            program.add_module(path, nn.Module())
        writer = _Writer(program)
        for call, module in modules.items():
            assert isinstance(module, BinaryConv2d)
            writer.lower(call, module, packed=call not in refusals)
        counts = writer.counts
        in_float = f"; in float: {_list(refusals)}" if refusals else ""
        return f"{counts['packed']} convolutions packed, reading {counts['packings']} packings{in_float}"


def _refusals(program: Program) -> dict[fx.Node, str]:
    """The calls that cannot be packed, with the reason."""
    refusals = {}
    for call in program.called_modules(BinaryConv2d):
        facts = program.facts(_input(call))
        if facts.dtype is not torch.float32:
            refusals[call] = f"it reads {DTYPE_NAMES[facts.dtype or torch.int64]}, packing reads f32"
        elif len(facts.shape) != 4:
            refusals[call] = f"it reads {facts.type_text}, packing reads (N,C,H,W)"
    return refusals


def _list(refusals: dict[fx.Node, str]) -> str:
    return ", ".join(f"{call.target} ({reason})" for call, reason in refusals.items())


def _input(call: fx.Node) -> fx.Node:
    (x,) = call.all_input_nodes
    return x


@dataclass
class _Writer:
    """Writes nodes and constants into the program in place of calls."""

    program: Program
    constants: dict[str, fx.Node] = field(default_factory=dict)
    packings: dict[tuple[object, ...], fx.Node] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def lower(self, call: fx.Node, module: BinaryConv2d, packed: bool) -> None:
        """Replace one call."""
        scale, shift = _affine(module)
        with self.program.graph.inserting_before(call):
            sums = self.packed_sums(call, module) if packed else self.float_sums(call, module)
            result = self.scaled(call, sums, scale, shift)
        call.replace_all_uses_with(result)
        self.program.graph.erase_node(call)
        self.counts["packed"] += packed

    def packed_sums(self, call: fx.Node, module: BinaryConv2d) -> fx.Node:
        """The int32 convolution of packed bits, or of both planes of two-bit activations."""
        if module.config.activations == 1:
            return self.plane_sums(call, module, plane=None)
        low, high = (self.plane_sums(call, module, plane) for plane in (0, 1))
        both = self.node(call, aten.add.Tensor, low, high)
        both.kwargs = {"alpha": 2}
        return both

    def plane_sums(self, call: fx.Node, module: BinaryConv2d, plane: int | None) -> fx.Node:
        """The int32 convolution of one-bit activations, or of one plane of two-bit activations."""
        config = module.config
        groups = 1 if config.is_depthwise else config.groups
        channels = config.inputs // groups
        word = choose_word(channels)
        bits = self.packing(call, module, plane, groups, word)
        geometry = [list(config.stride), list(config.padding), list(config.dilation)]
        pack = pack_depthwise_signs if config.is_depthwise else pack_weight_signs
        weight = self.constant(f"{call.target}.weight_bits", pack(module.binary_weight().detach(), word))
        target, grouping = matte.binary_depthwise_conv2d.default, []
        if not config.is_depthwise:
            target, grouping = matte.binary_conv2d.default, [groups]
        end = [*grouping, module.encoding, config.border]
        sums = self.node(call, target, bits, weight, channels, *geometry, *end)
        facts = self.program.facts(call)
        sums.meta["facts"] = facts if plane is None else facts.but(precision=Precision(1, 1))
        return sums

    def packing(
        self, call: fx.Node, module: BinaryConv2d, plane: int | None, groups: int, word: int
    ) -> fx.Node:
        """The packed bits of what the call reads: those of an earlier call where they are the same."""
        source, threshold = self.shifted(call, module)
        if threshold is not None and not threshold.any():
            threshold = None
        values = None if threshold is None else tuple(threshold.tolist())
        key = (source, self.program.facts(call).region, module.encoding, plane, groups, word, values)
        if key not in self.packings:
            limits = None if threshold is None else self.constant(f"{call.target}.threshold", threshold)
            if plane is not None:
                arguments: tuple[Any, ...] = (matte.pack_plane.default, source, plane, groups, word)
            elif module.encoding == "units":
                arguments = (matte.pack_units.default, source, groups, word)
            else:
                arguments = (matte.pack_signs.default, source, limits, groups, word)
            self.packings[key] = self.node(call, *arguments)
            self.counts["packings"] += 1
        return self.packings[key]

    def shifted(self, call: fx.Node, module: BinaryConv2d) -> tuple[fx.Node, Tensor | None]:
        """What is compared with which threshold (C,): a bias that the network adds before the layer is one too."""
        source, threshold = _input(call), module.threshold()
        if source.target is not aten.add.Tensor or source.kwargs or module.encoding != "signs":
            return source, threshold
        x, bias = source.args
        shape = self.program.facts(source).shape
        if threshold is not None or not isinstance(x, fx.Node) or not isinstance(bias, fx.Node):
            return source, threshold
        per_channel = bias.op == "get_attr" and self.program.facts(bias).shape == (1, shape[1], 1, 1)
        if not per_channel or self.program.facts(x).shape != shape:
            return source, threshold
        return x, -self.program.tensor(bias).detach().flatten()

    def float_sums(self, call: fx.Node, module: BinaryConv2d) -> fx.Node:
        """The same sums in floating point, in the type of what the call reads."""
        config, dtype = module.config, self.program.facts(_input(call)).dtype
        values = self.float_codes(call) if config.activations > 1 else self.float_bits(call, module)
        padding = list(config.padding)
        if config.border:
            around = [padding[1], padding[1], padding[0], padding[0]]
            outside = float(config.levels)
            values, padding = self.node(call, aten.constant_pad_nd.default, values, around, outside), [0, 0]
        weight = self.constant(f"{call.target}.weight_signs", module.binary_weight().detach().to(dtype))
        geometry = [list(config.stride), padding, list(config.dilation), config.groups]
        return self.node(call, aten.conv2d.default, values, weight, None, *geometry)

    def float_bits(self, call: fx.Node, module: BinaryConv2d) -> fx.Node:
        """One-bit activations, -1 or 0 and +1."""
        x, limits = _input(call), module.threshold()
        low, dtype = -1.0, self.program.facts(x).dtype
        if module.encoding == "units":
            low, above = 0.0, self.node(call, aten.gt.Scalar, x, 0.5)
        elif limits is None:
            above = self.node(call, aten.ge.Scalar, x, 0.0)
        else:
            limit = self.constant(f"{call.target}.threshold", limits[:, None, None].to(dtype))
            above = self.node(call, aten.ge.Tensor, x, limit)
        return self.chosen(call, above, low)

    def float_codes(self, call: fx.Node) -> fx.Node:
        """Two-bit activations, 0 to 3: how many of the steps 0.5, 1.5 and 2.5, rounded to even, 3 x has passed."""
        x = _input(call)
        levels = torch.tensor(3.0, dtype=self.program.facts(x).dtype)
        steps = self.node(call, aten.mul.Tensor, x, self.constant(f"{call.target}.levels", levels))
        passed = ((aten.gt.Scalar, 0.5), (aten.ge.Scalar, 1.5), (aten.gt.Scalar, 2.5))
        codes = [self.chosen(call, self.node(call, test, steps, limit), 0.0) for test, limit in passed]
        return self.node(call, aten.add.Tensor, self.node(call, aten.add.Tensor, *codes[:2]), codes[2])

    def chosen(self, call: fx.Node, condition: fx.Node, low: float) -> fx.Node:
        """1 where the condition holds, else `low`, in the type of what the call reads."""
        dtype = self.program.facts(_input(call)).dtype
        ends = [
            self.constant(f"{call.target}.{name}", torch.tensor(value, dtype=dtype))
            for name, value in (("high", 1.0), ("low", low))
        ]
        return self.node(call, aten.where.self, condition, *ends)

    def scaled(self, call: fx.Node, sums: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node:
        """sums * scale + shift, less what changes nothing; one of the two stays to turn integers into floats."""
        x = self.program.facts(_input(call))
        shape = (1,) * (len(x.shape) - 3) + (-1, 1, 1)
        steps = []
        if shift.any():
            steps.append((aten.add.Tensor, "shift", shift))
        if not steps or not (scale == 1).all():
            steps.insert(0, (aten.mul.Tensor, "scale", scale))
        for target, name, value in steps:
            constant = self.constant(f"{call.target}.{name}", value.reshape(shape).to(x.dtype))
            sums = self.node(call, target, sums, constant)
        return sums

    def node(self, call: fx.Node, target: Any, *arguments: Any) -> fx.Node:
        """A call of an operator that stands where `call` stood; shapes follow when the pass is done."""
        node = self.program.graph.call_function(target, arguments)
        node.meta["facts"] = self.program.facts(call).but(precision=None)
        return node

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """The tensor under its name; under a numbered one where a shared layer needs several."""
        known = self.constants
        name = next(
            each
            for each in numbered(name)
            if each not in known or torch.equal(self.program.tensor(known[each]), value)
        )
        if name not in known:
            known[name] = self.program.constant(name, value)
        return known[name]


@torch.no_grad()
def _affine(module: BinaryConv2d) -> tuple[Tensor, Tensor]:
    """The (O,) factor and summand that turn the layer's integers into what it yields."""
    scale = module.output_scale().flatten().expand(module.config.outputs)
    return scale, torch.zeros_like(scale) if module.bias is None else module.bias.detach()
