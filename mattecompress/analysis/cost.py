"""What a program costs: multiply-accumulates, bits of storage, and the papers' figures.

The papers count (fvcore's rule) one floating-point operation for each multiply-accumulate of a convolution or a matrix
product, two for each element of a batch norm, four for each element of a bilinear upsampling and one for each element that a
global average pool reads; nothing for the rest. A binary multiply-accumulate counts 1/64 (BiVM Table II), one
of w-bit weights and a-bit activations (w + a) / 64 (PTQ4VM Table 1). Their sizes are in MiB, of parameters alone.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx

import mattecompress.ops  # noqa: F401  registers the matte:: operators
from mattecompress.analysis.products import product_macs
from mattecompress.analysis.propagation import program_symbols
from mattecompress.binarization.masking import masked_nodes
from mattecompress.errors import UserError
from mattecompress.facts import DTYPE_NAMES, FLOAT, Precision
from mattecompress.modules.batch_norm import BatchNorm2d
from mattecompress.program import Program
from mattecompress.text import target_text

aten, matte = torch.ops.aten, torch.ops.matte
FLOAT_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv_transpose2d.input,
    matte.masked_conv2d.default,
}
HAND_ON_BITS = {matte.binary_conv2d_bits.default, matte.binary_depthwise_conv2d_bits.default}
"""Convolutions whose results are bytes of eight channels each."""
CONVOLUTIONS = FLOAT_CONVOLUTIONS | {
    matte.binary_conv2d.default,
    matte.binary_depthwise_conv2d.default,
    *HAND_ON_BITS,
    matte.quantized_conv2d.default,
    matte.masked_binary_conv2d.default,
    matte.masked_quantized_conv2d.default,
}
MIB_BITS = 8 * 2**20
BINARY = Precision(1, 1)


class OpenSizeError(UserError):
    """Costs were asked of a program whose sizes are still open."""


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node for one frame.

    macs: multiply-accumulates that are not binary; binary_macs: those of one-bit operands.
    paper_flops: operations by the papers' rule. weight_bits: storage of the tensors it reads first.
    activation_bytes: size of its result. masked: only needed where a mask of the program is set.
    """

    name: str
    op: str
    region: str | None
    type: str
    precision: str
    macs: int
    binary_macs: int
    paper_flops: float
    weight_bits: int
    activation_bytes: int
    masked: bool


@dataclass(frozen=True)
class Totals:
    """Sums over a program; `model_*` and `paper_size_mib` are of the whole model, captured or not.

    masked_gflops: what of `paper_gflops` is needed only where a mask is set; sums count it everywhere.
    """

    parameters: int
    macs: int
    binary_macs: int
    paper_gflops: float
    masked_gflops: float
    size_mib: float
    model_parameters: int
    paper_size_mib: float
    activation_mib: float


@dataclass(frozen=True)
class Cost:
    """Costs by node, by region and in total."""

    totals: Totals
    regions: tuple[dict[str, Any], ...]
    nodes: tuple[NodeCost, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def cost(program: Program) -> Cost:
    """Count a program of fixed resolution.

    Raises:
        OpenSizeError: the program's sizes are symbolic.
    """
    if program_symbols(program):
        raise OpenSizeError(
            "the program's size is open: fix it with -p 'set-resolution{height=288 width=512}'"
        )
    seen: set[str] = set()
    masked = masked_nodes(program)
    nodes = []
    for node in program.operations():
        stored = {name: bits for name, bits in _stored_bits(program, node) if name not in seen}
        seen |= stored.keys()
        nodes.append(_node_cost(program, node, sum(stored.values()), node in masked))
    return Cost(_totals(program, nodes), tuple(_by_region(nodes)), tuple(nodes))


def _node_cost(program: Program, node: fx.Node, weight_bits: int, masked: bool) -> NodeCost:
    facts = program.facts(node)
    precision = layer_precision(program, node)
    macs = convolution_macs(program, node) or product_macs(program, node)
    binary = macs if precision == BINARY else 0
    size = facts.dtype.itemsize if facts.dtype else 0
    return NodeCost(
        name=node.name,
        op=type(program.module(node)).__name__ if node.op == "call_module" else target_text(node),
        region=facts.region,
        type=facts.type_text,
        precision=str(precision) if precision else DTYPE_NAMES.get(facts.dtype or torch.int64, ""),
        macs=macs - binary,
        binary_macs=binary,
        paper_flops=_paper_flops(program, node, macs, precision or FLOAT),
        weight_bits=weight_bits,
        activation_bytes=math.prod(facts.sizes) * size,
        masked=masked,
    )


def layer_precision(program: Program, node: fx.Node) -> Precision | None:
    """The precision of a layer that has weights; None for every other node."""
    return program.facts(node).precision or (FLOAT if node.target in FLOAT_CONVOLUTIONS else None)


def convolution_macs(program: Program, node: fx.Node) -> int:
    """Multiply-accumulates of a convolution in any form, masked ones with every tile active; 0 for other nodes."""
    if node.target is aten.conv_transpose2d.input:
        source, weight = (program.facts(each).sizes for each in node.all_input_nodes[:2])
        return math.prod(source) * math.prod(weight[1:])
    taps = _taps_per_output(program, node)
    channels = 8 if node.target in HAND_ON_BITS else 1
    return math.prod(program.facts(node).sizes) * channels * taps if taps else 0


def _taps_per_output(program: Program, node: fx.Node) -> int:
    if node.op == "call_module":
        weight = getattr(program.module(node), "weight", None)
        return math.prod(weight.shape[1:]) if weight is not None and weight.ndim == 4 else 0
    if node.target not in CONVOLUTIONS:
        return 0
    names = [argument.name for argument in node.target._schema.arguments]
    arguments: dict[str, Any] = dict(zip(names, node.args, strict=False))
    weight = program.facts(arguments["weight"]).sizes
    if "zero_point" in arguments:
        channels = program.facts(arguments["q"]).sizes[1]
        return channels // int(arguments["groups"]) * int(math.prod(arguments["kernel"]))
    if "depthwise" in str(node.target):
        return math.prod(weight[:2])
    return (
        math.prod(weight[1:3]) * int(arguments["channels"])
        if "channels" in arguments
        else math.prod(weight[1:])
    )


def _paper_flops(program: Program, node: fx.Node, macs: int, precision: Precision) -> float:
    elements = math.prod(program.facts(node).sizes)
    if macs:
        share = 1 / 64 if precision == BINARY else (precision.weight_bits + precision.activation_bits) / 64
        return macs * share
    if node.op == "call_module" and isinstance(program.module(node), BatchNorm2d):
        return 2 * elements
    if node.target in (aten.upsample_bilinear2d.vec, matte.resize_bilinear.default):
        return 4 * elements
    if node.target in (aten.adaptive_avg_pool2d.default, matte.plane_mean.default):
        (source,) = node.all_input_nodes
        return math.prod(program.facts(source).sizes)
    return 0


def _stored_bits(program: Program, node: fx.Node) -> list[tuple[str, int]]:
    """Each tensor that a node reads, with the bits it takes: parameters of a layer at the layer's precision."""
    stored = [(str(r.target), _bits_of(program, r, node)) for r in node.all_input_nodes if r.op == "get_attr"]
    if node.op == "call_module":
        precision = program.facts(node).precision or FLOAT
        for name, parameter in program.module(node).named_parameters():
            bits = precision.weight_bits if name == "weight" and parameter.ndim > 1 else 32
            stored.append((f"{node.target}.{name}", parameter.numel() * bits))
    return stored


def _bits_of(program: Program, reader: fx.Node, layer: fx.Node) -> int:
    tensor = program.tensor(reader)
    module = program.module(layer) if layer.op == "call_module" else None
    bits = getattr(getattr(module, "config", None), "bits", 8 * tensor.itemsize)
    return int(tensor.numel() * bits)


def _totals(program: Program, nodes: list[NodeCost]) -> Totals:
    parameters = sum(parameter.numel() for parameter in program.graph_module.parameters())
    bits = sum(node.weight_bits for node in nodes)
    absent = program.source.absent
    return Totals(
        parameters=parameters,
        macs=sum(node.macs for node in nodes),
        binary_macs=sum(node.binary_macs for node in nodes),
        paper_gflops=sum(node.paper_flops for node in nodes) / 1e9,
        masked_gflops=sum(node.paper_flops for node in nodes if node.masked and node.macs + node.binary_macs)
        / 1e9,
        size_mib=bits / MIB_BITS,
        model_parameters=parameters + sum(math.prod(part.shape) for part in absent),
        paper_size_mib=(bits + sum(math.prod(part.shape) * part.bits for part in absent)) / MIB_BITS,
        activation_mib=sum(node.activation_bytes for node in nodes) / 2**20,
    )


def _by_region(nodes: Iterable[NodeCost]) -> list[dict[str, Any]]:
    regions: dict[str, dict[str, Any]] = {}
    for node in nodes:
        row = regions.setdefault(node.region or "", {"region": node.region or "", "nodes": 0})
        row["nodes"] += 1
        for key in ("macs", "binary_macs", "paper_flops", "weight_bits", "activation_bytes"):
            row[key] = row.get(key, 0) + getattr(node, key)
    return list(regions.values())
