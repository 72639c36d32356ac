"""Convolutions at the active tiles of a mask: the dense kernels' inner loops over a list.

A masked kernel is the dense one whose outputs lie in the tiles of `mattecompress.backends.tvm.kernels.listed`, and whose
loop over tiles ends at their count: it takes the active share of their time. What follows elementwise joins that loop.
"""

from collections.abc import Sequence
from typing import Any

from torch import fx
from tvm import relax, te

from mattecompress.analysis.operands import arguments_of
from mattecompress.backends.tvm.compute.operands import CONVOLUTION
from mattecompress.backends.tvm.kernels.bitserial import (
    binary_convolution,
    binary_table,
    lay_out_words,
    plan_binary_convolution,
    schedule_binary_convolution,
)
from mattecompress.backends.tvm.kernels.integer import (
    integer_convolution,
    integer_depthwise,
    integer_table,
    lay_out_depthwise,
    plan_convolution,
    plan_depthwise,
    schedule_integer_convolution,
    signed_weight,
)
from mattecompress.backends.tvm.kernels.integer import lay_out_words as lay_out_codes
from mattecompress.backends.tvm.kernels.listed import active_outputs, emit_over, sums_of
from mattecompress.backends.tvm.kernels.masked_float import schedule_floats
from mattecompress.backends.tvm.kernels.window import MASKED, constant, image_size
from mattecompress.backends.tvm.schedules.guard import mark_guarded
from mattecompress.backends.tvm.schedules.stages import child_blocks


def emit_masked_binary_conv2d(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::masked_binary_conv2d`: bits uint8 (N, H, W, groups * B) to int32 (1, K, width, O)."""
    values = arguments_of(node)
    bits, weight, tiles = operands[0], constant(operands[1]), operands[2]
    plan = plan_binary_convolution(weight, image_size(bits), values, columns=values["width"])
    table = binary_table(weight, values["channels"], plan, values["encoding"], values["border"])
    rows, columns = (plan.window.extent(plan.size[axis], axis) for axis in (0, 1))

    def compute(source: te.Tensor, places: te.Tensor, words: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        outputs = active_outputs(places, rows, columns, values["width"])
        return binary_convolution(source, words, offsets, plan, outputs)

    name = f"masked_binary_convolution_{values['channels']}_{weight.shape[0]}"
    operands = (bits, tiles, lay_out_words(weight, plan), table)
    return emit_over(builder, name, compute, *operands, op_pattern=CONVOLUTION)


def emit_masked_quantized_conv2d(
    builder: relax.BlockBuilder, node: fx.Node, operands: Sequence[Any]
) -> relax.Var:
    """`matte::masked_quantized_conv2d`: codes uint8 (N, H, W, C) to int32 (1, K, width, O)."""
    values = arguments_of(node)
    codes, tiles = operands[0], operands[2]
    channels = int(codes.ty.shape[3])
    weight = signed_weight(constant(operands[1]), channels // values["groups"], values)
    depthwise = values["groups"] == channels == weight.shape[0] and channels > 1
    plan = (plan_depthwise if depthwise else plan_convolution)(
        weight, image_size(codes), values, columns=values["width"]
    )
    lay_out, kernel = (
        (lay_out_depthwise, integer_depthwise) if depthwise else (lay_out_codes, integer_convolution)
    )
    table = integer_table(weight, plan, values["zero_point"])
    rows, columns = (plan.window.extent(plan.size[axis], axis) for axis in (0, 1))

    def compute(source: te.Tensor, places: te.Tensor, words: te.Tensor, offsets: te.Tensor) -> te.Tensor:
        outputs = active_outputs(places, rows, columns, values["width"])
        return kernel(source, words, offsets, plan, outputs)

    name = f"masked_integer_convolution_{channels}_{weight.shape[0]}"
    operands = (codes, tiles, lay_out(weight, plan), table)
    return emit_over(builder, name, compute, *operands, op_pattern=CONVOLUTION)


def schedule_masked_convolution(schedule: Any) -> str | None:
    """Tile a function that holds a masked convolution and its epilogue, and end its loop at the list's count.

    Returns:
        None when done, else why the rule does not fit; the schedule is then untouched.
    """
    if not any(schedule.get(block).annotations.get(MASKED, 0) for block in child_blocks(schedule)):
        return "no masked convolution"
    rules = (schedule_binary_convolution, schedule_integer_convolution, schedule_floats)
    assert any(rule(schedule) is None for rule in rules)
    mark_guarded(schedule, schedule.get_loops(sums_of(schedule))[1])
    return None
