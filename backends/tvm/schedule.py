"""A schedule for every kernel, from its shape and the target alone.

Rules are tried in order; each either schedules a function or refuses it with a reason. The last one never refuses.
Which rule was used stands in the function's attribute `matte.schedule`.
"""

from collections.abc import Callable

import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule

from mattecompress.backends.tvm.kernels.bitserial import schedule_binary_convolution
from mattecompress.backends.tvm.kernels.bitserial_depthwise import schedule_binary_depthwise
from mattecompress.backends.tvm.kernels.integer import schedule_integer_convolution
from mattecompress.backends.tvm.kernels.masked import schedule_masked_convolution
from mattecompress.backends.tvm.kernels.packing import schedule_packing
from mattecompress.backends.tvm.schedules.convolution import Packing, schedule_convolution
from mattecompress.backends.tvm.schedules.depthwise import schedule_depthwise
from mattecompress.backends.tvm.schedules.frame import schedule_frame
from mattecompress.backends.tvm.schedules.guard import guard_loops
from mattecompress.backends.tvm.schedules.injective import schedule_injective
from mattecompress.backends.tvm.schedules.pieces import cut_loops, join_rows
from mattecompress.backends.tvm.schedules.pooling import schedule_pooling
from mattecompress.backends.tvm.schedules.product import schedule_product
from mattecompress.backends.tvm.schedules.relayout import PackedFunction, replace_functions
from mattecompress.backends.tvm.schedules.rows import schedule_rows
from mattecompress.backends.tvm.schedules.stages import RefusalError
from mattecompress.backends.tvm.schedules.winograd import schedule_winograd
from mattecompress.backends.tvm.targets import Target

RULE_ATTRIBUTE = "matte.schedule"
Rule = Callable[[Schedule, Target], list[Packing]]


def adapted(rule: Callable[[Schedule], str | None]) -> Rule:
    """A rule that returns its refusal, as one that raises it."""

    def schedule(s: Schedule, target: Target) -> list[Packing]:
        refusal = rule(s)
        if refusal is not None:
            raise RefusalError(refusal)
        return []

    return schedule


def leave_serial(s: Schedule, target: Target) -> list[Packing]:
    """The loops as they are; for what no other rule takes."""
    return []


RULES: dict[str, Rule] = {
    "convolution": schedule_convolution,
    "winograd": schedule_winograd,
    "depthwise": schedule_depthwise,
    "masked convolution": adapted(schedule_masked_convolution),
    "binary convolution": adapted(schedule_binary_convolution),
    "binary depthwise": adapted(schedule_binary_depthwise),
    "integer convolution": adapted(schedule_integer_convolution),
    "packing": adapted(schedule_packing),
    "product": schedule_product,
    "rows": schedule_rows,
    "pooling": schedule_pooling,
    "frame": schedule_frame,
    "injective": schedule_injective,
    "serial": leave_serial,
}


def schedule_function(function: tirx.PrimFunc, target: Target) -> PackedFunction:
    """A kernel scheduled by the first rule that takes it, and how its weights must be laid out."""
    if function.attrs and function.attrs.get("tirx.is_scheduled"):
        return PackedFunction(function, ())
    refusals = []
    for name, rule in RULES.items():
        schedule = Schedule(function)
        try:
            packings = rule(schedule, target)
        except RefusalError as refusal:
            refusals.append(f"{name}: {refusal}")
            continue
        attributes = {**function.attrs, "tirx.is_scheduled": True, RULE_ATTRIBUTE: name}
        result = guard_loops(join_rows(cut_loops(schedule.mod["main"]))).with_attrs(attributes)
        return PackedFunction(result, tuple(packings))
    raise AssertionError(f"no rule took the function: {refusals}")


def schedule_module(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """The module with every kernel scheduled for a target and its constant weights laid out to match."""
    scheduled = {
        variable: schedule_function(function, target)
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    }
    return replace_functions(module, scheduled)


def rules_used(module: tvm.IRModule) -> dict[str, str]:
    """For every kernel of a scheduled module, the rule that scheduled it."""
    return {
        str(variable.name_hint): str(function.attrs.get(RULE_ATTRIBUTE, "given"))
        for variable, function in module.functions.items()
        if not isinstance(function, relax.Function)
    }
