"""Integer kernels: quantize, dequantize, and convolutions of uint8 codes with int8 weights, in tensor expressions.

Meaning, with q the codes of the image, z their zero point (which also fills the border) and w the weights:

    result[n, y, x, o] = table[o] + sum over taps and channels of (q - h) * w,    table = (h - z) * sum(w)

Four neighbouring bytes of a run make a word, and a row of neighbouring taps is one run; bytes of the last words that
belong to others meet weights of 0. h is 128 where the instruction set multiplies signed bytes, so that q - h is q with its
top bit turned over, and 0 where it takes unsigned ones. Sums are int32 on every path, so every path agrees.
Weights of 4 bits or fewer are spread to 8 when the kernel is built.
Reference: mattecompress.ops.integer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx
from tvm import relax, te, tirx

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.compute.mathematics import fused, named, product, quotient
from mattecompress.backends.tvm.compute.operands import BROADCAST, CONVOLUTION
from mattecompress.backends.tvm.kernels.intrinsics import (
    UNSIGNED,
    accumulate,
    current_target,
    has_fused_multiply_add,
    multiplication,
    multiply,
    pair_bytes,
)
from mattecompress.backends.tvm.kernels.octets import Octets, gather, gather_by_rows, schedule_gathering
from mattecompress.backends.tvm.kernels.tiles import Registers, Tile, choose_tile, lanes_of, schedule_tiles
from mattecompress.backends.tvm.kernels.window import (
    MASKED,
    Array,
    Expression,
    Outputs,
    border_table,
    constant,
    emit_kernel,
    geometry,
    image_size,
    read_table,
    result_tile,
)
from mattecompress.backends.tvm.schedules.stages import child_blocks
from mattecompress.ops.integer import unpack_weight
from mattecompress.ops.reproducible import ROUND_SHIFT

RESULT = "integer_result"
WORD = 4
SHIFT_BITS = 0x4B400000
"""The bits of `ROUND_SHIFT` as an int32."""
SMALLEST_NORMAL = np.finfo(np.float32).tiny
LOADED_COST = {1: 1.63, 2: 1.25, 4: 1.19, 8: 1.17}
"""Instructions for a `sdot` and its share of loads, by words loaded together, in a tile of 4 by 4 vectors."""
DEPTHWISE_PIXELS = 8


@dataclass(frozen=True)
class IntegerPlan:
    """How one integer convolution is computed.

    multiplication: as `intrinsics.multiplication` names it, or "depthwise".
    joined: the taps of a row are one run of bytes.
    words: of four bytes, for a tap or, if joined, for a row of taps; of one channel in a depthwise convolution.
    copied: the kernel reads a padded copy: it needs borders or other signs, or the last word would leave the image.
    loaded: words that are loaded together.
    border: the code outside the image.
    """

    window: Geometry
    size: tuple[int, int]
    groups: int
    multiplication: str
    joined: bool
    words: int
    copied: bool
    loaded: int
    border: int
    tile: Tile

    @property
    def offset(self) -> int:
        """h of the module's docstring."""
        return 0 if self.multiplication in (*UNSIGNED, "depthwise") else 128

    @property
    def taps(self) -> tuple[int, int]:
        """Rows of the window, and runs of bytes in a row."""
        rows, columns = self.window.kernel
        return rows, 1 if self.joined else columns


def emit_quantize(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::quantize`: float32 to uint8, by a true division and rounding halves to even.

    Clamping to what the codes can say changes nothing before the division either, and then adding `ROUND_SHIFT` rounds:
    the sum's lowest bits are the integer.
    """
    values = arguments_of(node)
    zero_point, step = values["zero_point"], np.float32(values["scale"])
    shift, bias = tirx.const(ROUND_SHIFT, "float32"), tirx.const(SHIFT_BITS - zero_point, "int32")
    low, high = (
        tirx.const(np.float32(end - zero_point) * step, "float32") for end in (0, 2 ** values["bits"] - 1)
    )

    def element(x: Expression) -> Expression:
        steps = divided(tirx.min(tirx.max(x, low), high), step)
        return (tirx.reinterpret("int32", steps + shift) - bias).astype("uint8")

    def compute(x: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda *index: element(x(*index)), name="quantize")

    return emit_kernel(builder, "quantize", BROADCAST, compute, operands[0])


def divided(value: Expression, divisor: np.float32) -> Expression:
    """float32 `value / divisor`, rounded once, of finite values whose quotients are normal, or far below 1.

    By one product and two fused multiply-adds, which take a fraction of a division's time: q + r / d with q = x * (1 / d)
    and the remainder r = x - q * d, which is exact. Source: Markstein 1990; Brisebarre, Muller and Raina, "Accelerating
    correctly rounded floating-point division when the divisor is known in advance", 2004.
    """
    if not has_fused_multiply_add(current_target()) or not SMALLEST_NORMAL <= divisor <= 1 / SMALLEST_NORMAL:
        return quotient(value, tirx.const(divisor, "float32"))
    inverse = np.float32(1) / divisor

    def corrected(x: Expression, q: Expression) -> Expression:
        return fused(fused(q, tirx.const(-divisor, "float32"), x), tirx.const(inverse, "float32"), q)

    return named(
        value, lambda x: named(product(x, tirx.const(inverse, "float32")), lambda q: corrected(x, q))
    )


def emit_dequantize(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::dequantize`: uint8 to float32."""
    values = arguments_of(node)
    step = tirx.const(np.float32(values["scale"]), "float32")
    zero = tirx.const(float(values["zero_point"]), "float32")

    def compute(q: te.Tensor) -> te.Tensor:
        return te.compute(
            q.shape, lambda *index: (q(*index).astype("float32") - zero) * step, name="dequantize"
        )

    return emit_kernel(builder, "dequantize", BROADCAST, compute, operands[0])


def emit_quantized_conv2d(builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]) -> relax.Var:
    """`matte::quantized_conv2d`: codes uint8 (N, H, W, C) to int32 (N, OH, OW, O)."""
    values = arguments_of(node)
    codes = operands[0]
    channels = int(codes.ty.shape[3])
    weight = signed_weight(constant(operands[1]), channels // values["groups"], values)
    depthwise = values["groups"] == channels == weight.shape[0] and channels > 1
    plan = (plan_depthwise if depthwise else plan_convolution)(weight, image_size(codes), values)
    lay_out = lay_out_depthwise if depthwise else lay_out_words
    kernel = integer_depthwise if depthwise else integer_convolution

    def compute(source: te.Tensor, words: te.Tensor, table: te.Tensor) -> te.Tensor:
        return kernel(source, words, table, plan)

    rows, columns = plan.window.kernel
    name = (
        f"integer_{'depthwise' if depthwise else 'convolution'}_{rows}x{columns}_{channels}_{weight.shape[0]}"
    )
    table = integer_table(weight, plan, values["zero_point"])
    return emit_kernel(builder, name, CONVOLUTION, compute, codes, lay_out(weight, plan), table)


def signed_weight(weight: Array, inputs: int, values: dict[str, Any]) -> Array:
    """The int8 weight (O, inputs, KH, KW) of a node with these arguments, unpacked where it is packed."""
    unpacked = unpack_weight(torch.from_numpy(weight.copy()), inputs, values["weight_bits"], values["kernel"])
    return np.ascontiguousarray(unpacked.numpy())


def plan_convolution(
    weight: Array, size: tuple[int, int], values: dict[str, Any], columns: int | None = None
) -> IntegerPlan:
    """The plan for int8 weights (O, I, KH, KW) that mix channels.

    columns: outputs in a row, where they are not those of the image.
    """
    outputs, inputs, *kernel = weight.shape
    window, target = geometry(kernel, values), current_target()
    per_group = outputs // values["groups"]
    tile = choose_tile(per_group, columns or window.extent(size[1], 1), WORD, Registers.of(target))
    kind = multiplication(target, tile.lanes, int(np.abs(weight.astype(np.int32)).max()))
    if kind.startswith("sm"):
        tile = replace(tile, steps=1)
    copied = window.padding != (0, 0) or kind not in UNSIGNED or inputs % WORD != 0
    joined = copied and values["groups"] == 1 and kernel[1] > 1 and window.dilation[1] == 1
    words, loaded = choose_words(inputs * (kernel[1] if joined else 1), kind)
    return IntegerPlan(
        window=window,
        size=size,
        groups=values["groups"],
        multiplication=kind,
        joined=joined,
        words=words,
        copied=copied,
        loaded=loaded,
        border=_border(values["zero_point"]),
        tile=tile,
    )


def choose_words(run: int, kind: str) -> tuple[int, int]:
    """Words for a run of bytes, and how many of them to load together, which may take some more words."""
    words = -(-run // WORD)
    if kind != "sdot":
        return words, 1
    loaded = min(LOADED_COST, key=lambda count: -(-words // count) * count * LOADED_COST[count])
    return -(-words // loaded) * loaded, loaded


def plan_depthwise(
    weight: Array, size: tuple[int, int], values: dict[str, Any], columns: int | None = None
) -> IntegerPlan:
    """The plan for int8 weights (C, 1, KH, KW), one filter a channel; `columns` as for `plan_convolution`."""
    channels, _, *kernel = weight.shape
    window = geometry(kernel, values)
    width = columns or window.extent(size[1], 1)
    pixels = max(p for p in range(1, DEPTHWISE_PIXELS + 1) if width % p == 0)
    tile = Tile(lanes_of(channels, 2, Registers.of(current_target())), 1, pixels)
    copied, border = window.padding != (0, 0), _border(values["zero_point"])
    return IntegerPlan(window, size, 1, "depthwise", False, channels, copied, 1, border, tile)


def _border(zero_point: int) -> int:
    """The zero point where it is a code; else any code, which the table then puts right."""
    return zero_point if 0 <= zero_point <= 255 else 0


def integer_table(weight: Array, plan: IntegerPlan, zero_point: int) -> Array:
    """The constant part of every output, by border class."""
    sums = weight.astype(np.int64).sum(1).transpose(1, 2, 0)
    everywhere = (plan.offset - zero_point) * sums.sum((0, 1))
    return border_table(plan.window, plan.size, everywhere, (zero_point - plan.border) * sums)


def lay_out_words(weight: Array, plan: IntegerPlan) -> Array:
    """Weights (O, I, KH, KW) as int32 words (O / tile outputs, rows, runs, words, tile outputs)."""
    rows, runs = plan.taps
    taken = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], rows, runs, -1)
    padded = np.pad(taken, [(0, 0)] * 3 + [(0, plan.words * WORD - taken.shape[3])])
    words = np.ascontiguousarray(padded).view("<i4").reshape(-1, plan.tile.outputs, rows, runs, plan.words)
    laid_out = np.ascontiguousarray(words.transpose(0, 2, 3, 4, 1))
    return pair_bytes(laid_out) if plan.multiplication.startswith("sm") else laid_out


def lay_out_depthwise(weight: Array, plan: IntegerPlan) -> Array:
    """Weights (C, 1, KH, KW) as int16 (KH, KW, C), wide enough for one multiplication."""
    return np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0).astype(np.int16))


def integer_convolution(
    source: te.Tensor, weight: te.Tensor, table: te.Tensor, plan: IntegerPlan, places: Outputs | None = None
) -> te.Tensor:
    """The kernel of a convolution that mixes channels, int32 (N, OH, OW, O), or of the shape of the given outputs."""
    places = places or Outputs.all(plan.window, plan.size, int(source.shape[0]))
    window, block, words = plan.window, plan.tile.outputs, plan.words
    codes = _codes(source, plan)
    outputs = int(weight.shape[0]) * block
    extents = (*plan.taps, words // plan.loaded, plan.loaded)
    row, column, piece, index = (
        te.reduce_axis((0, extent), name) for extent, name in zip(extents, "klmi", strict=True)
    )
    add = te.comm_reducer(accumulate, lambda dtype: tirx.const(0, dtype), name="accumulate")

    def total(n: Expression, y: Expression, x: Expression, o: Expression) -> Expression:
        image, top, left = places.place(n, y, x)
        pixel = (image, window.tap(top, row, 0), window.tap(left, column, 1))
        group = o // (outputs // plan.groups) * (codes.pixel // plan.groups) if plan.groups > 1 else 0
        code = codes.word("int32", pixel, group + piece * (plan.loaded * WORD), index, plan.loaded)
        factor = weight(o // block, row, column, piece * plan.loaded + index, o % block)
        return add(multiply(plan.multiplication, code, factor), axis=[row, column, piece, index])

    return _result(table, te.compute((*places.shape, outputs), total, name="total"), plan, places)


def integer_depthwise(
    source: te.Tensor, weight: te.Tensor, table: te.Tensor, plan: IntegerPlan, places: Outputs | None = None
) -> te.Tensor:
    """The kernel of a depthwise convolution, int32 (N, OH, OW, C), or of the shape of the given outputs."""
    window = plan.window
    places = places or Outputs.all(window, plan.size, int(source.shape[0]))
    codes = _codes(source, plan)
    row, column = (
        te.reduce_axis((0, extent), name) for extent, name in zip(window.kernel, "kl", strict=True)
    )

    def total(n: Expression, y: Expression, x: Expression, c: Expression) -> Expression:
        image, top, left = places.place(n, y, x)
        code = codes.octet(image, window.tap(top, row, 0), window.tap(left, column, 1), c).astype("int16")
        return te.sum(code.astype("int32") * weight(row, column, c).astype("int32"), axis=[row, column])

    return _result(table, te.compute((*places.shape, plan.words), total, name="total"), plan, places)


def _codes(source: te.Tensor, plan: IntegerPlan) -> Octets:
    if not plan.copied:
        return Octets(source, int(source.shape[3]))
    return gather(source, plan.window, plan.border, flip=plan.offset != 0)


def _result(table: te.Tensor, total: te.Tensor, plan: IntegerPlan, places: Outputs) -> te.Tensor:
    def result(n: Expression, y: Expression, x: Expression, o: Expression) -> Expression:
        _, row, column = places.place(n, y, x)
        return read_table(table, plan.window, plan.size, row, column, o) + total(n, y, x, o)

    return te.compute(total.shape, result, name=RESULT, attrs=places.attributes(plan.tile.numbers))


def schedule_integer_convolution(schedule: Any) -> str | None:
    """Tile a function that holds an integer convolution and its epilogue.

    Rows of the image are copied as they are read; where a mask chooses the places, the whole image is, beforehand.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    numbers = result_tile(schedule, RESULT)
    if numbers is None:
        return "no integer convolution"
    masked = any(schedule.get(block).annotations.get(MASKED, 0) for block in child_blocks(schedule))
    schedule_tiles(schedule, ("total",), RESULT, Tile(*numbers))
    if masked:
        schedule_gathering(schedule)
    else:
        gather_by_rows(schedule, child_blocks(schedule)[-1])
    return None
