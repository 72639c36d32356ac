"""How each intrinsic of `intrinsics.py` is spelled in vector instructions, on each instruction set.

A rule takes a call that the vectoriser has widened and returns arithmetic and LLVM intrinsics on whole registers.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import _ffi_api as ir_api
from tvm.ir import register_op_attr
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from mattecompress.backends.tvm.compute.mathematics import dtype_of
from mattecompress.backends.tvm.kernels.lanes import (
    Expression,
    Rule,
    dtype_of_lane,
    octets_of,
    shape,
    splat,
    vector,
)
from mattecompress.backends.tvm.kernels.multiplications import RULES, maddubs, vnni

_DESCRIPTION = "mattecompress: bytes packed into lanes"
_GATHER = 0x0102040810204080
_LOW_BYTES = {2: 0x00FF, 4: 0x00FF00FF}


def _count_bytes(call: Any) -> Expression:
    (x,) = call.args
    lanes, size = shape(x)
    octets = tirx.reinterpret(f"uint8x{lanes * size}", x)
    return tirx.reinterpret(dtype_of(x), tirx.popcount(octets))


def _add_bytes(call: Any) -> Expression:
    return _add_bytes_of(call.args[0])


def _add_bytes_of(x: Expression) -> Expression:
    lanes, size = shape(x)
    dtype = dtype_of_lane(x)
    mask, eight = splat(_LOW_BYTES[size], dtype, lanes), splat(8, dtype, lanes)
    pairs = (x & mask) + ((x >> eight) & mask)
    if size == 4:
        pairs = (pairs + (pairs >> splat(16, dtype, lanes))) & splat(0xFFFF, dtype, lanes)
    return pairs.astype(vector("int32", lanes))


def _add_neighbours(prefix: str, bits: int, x: Expression) -> Expression:
    """Neighbouring unsigned pieces of `bits` bits, added to twice their size, by NEON's pairwise long addition."""
    lanes, size = shape(x)
    count = lanes * size * 8 // bits
    dtype = f"uint{2 * bits}x{count // 2}"
    name = f"{prefix}.v{count // 2}i{2 * bits}.v{count}i{bits}"
    return tirx.call_llvm_pure_intrin(dtype, name, tirx.reinterpret(f"uint{bits}x{count}", x))


def _accumulate_pairs(prefix: str) -> Rule:
    """One `uadalp`; a scalar, which only an unscheduled kernel has, is taken apart by shifts."""

    def rule(call: Any) -> Expression:
        total, counts = call.args
        lanes, size = shape(counts)
        if lanes * size not in (8, 16):
            mask, eight = (splat(value, dtype_of_lane(counts), lanes) for value in (_LOW_BYTES[size], 8))
            return total + (counts & mask) + ((counts >> eight) & mask)
        pairs = _add_neighbours(prefix, 8, counts)
        return tirx.reinterpret(dtype_of(total), tirx.reinterpret(dtype_of(pairs), total) + pairs)

    return rule


def _add_pairs(prefix: str) -> Rule:
    def rule(call: Any) -> Expression:
        (x,) = call.args
        lanes, size = shape(x)
        if lanes * size in (8, 16):
            return tirx.reinterpret(f"int32x{lanes}", _add_neighbours(prefix, 16, x))
        low, high = splat(0xFFFF, "uint32", lanes), splat(16, "uint32", lanes)
        return ((x & low) + (x >> high)).astype(vector("int32", lanes))

    return rule


def _accumulate_dot(add: Callable[[Expression, Expression, Expression], Expression]) -> Rule:
    """A dot product with ones; a scalar, which only an unscheduled kernel has, is taken apart by shifts."""

    def rule(call: Any) -> Expression:
        total, counts = call.args
        lanes, _ = shape(counts)
        if lanes == 1:
            return total + _add_bytes_of(counts).astype("uint32")
        ones = splat(0x01010101, "int32", lanes)
        before, octets = (tirx.reinterpret(f"int32x{lanes}", x) for x in (total, counts))
        return tirx.reinterpret(dtype_of(total), add(before, octets, ones))

    return rule


def _mark_bytes(call: Any) -> Expression:
    x, places = (octets_of(argument) for argument in call.args)
    lanes, _ = shape(x)
    marks = tirx.Select(
        (x & places) != splat(0, "uint8", lanes), *(splat(m, "uint8", lanes) for m in (255, 0))
    )
    return tirx.reinterpret(dtype_of(call.args[0]), marks)


def _count_marks(call: Any) -> Expression:
    total, marks = (octets_of(argument) for argument in call.args)
    return tirx.reinterpret(dtype_of(call.args[0]), total - marks)


def _load_word(call: Any) -> Expression:
    first, _, index, count = call.args
    dtype = call.ty.dtype
    size, words = dtype.bits // 8, int(count)
    if words > 1 and isinstance(index, tirx.IntImm):
        loaded = tirx.BufferLoad(first.source, [tirx.Ramp(first.indices[0], 1, size * words)])
        return tirx.Shuffle([tirx.reinterpret(f"{dtype}x{words}", loaded)], [index])
    start = first.indices[0] + index * size
    return tirx.reinterpret(str(dtype), tirx.BufferLoad(first.source, [tirx.Ramp(start, 1, size)]))


def _gather_by(collect: Callable[[list[Expression]], Expression], most: int) -> Rule:
    """Each eight neighbouring flags become a byte; `collect` takes vectors of up to `most` of them."""

    def rule(call: Any) -> Expression:
        flags = list(call.args)
        if not _are_neighbours(flags):
            return _gather_one_by_one(flags)
        count = 8 * shape(flags[0])[0]
        return collect([_load(flags[0], min(count, most), start) for start in range(0, count, most)])

    return rule


def _collect_ones(parts: list[Expression]) -> Expression:
    """Eight bytes as one integer: a multiplication moves bit 0 of each into the top byte."""
    (ones,) = parts
    moved = tirx.reinterpret("uint64", ones) * tirx.const(_GATHER, "uint64")
    return (moved >> tirx.const(56, "uint64")).astype("uint8")


def _collect_signs(parts: list[Expression]) -> Expression:
    """x86: the uppermost bit of each byte. LLVM takes vectors that were compared into masks from there."""
    (masks,) = parts
    lanes, _ = shape(masks)
    if lanes == 8:
        return _signs("sse2.pmovmskb.128", tirx.Shuffle([masks, masks], list(range(16)))).astype("uint8")
    if lanes == 16:
        return tirx.reinterpret("uint8x2", _signs("sse2.pmovmskb.128", masks).astype("uint16"))
    return tirx.reinterpret("uint8x4", _signs("avx2.pmovmskb", masks))


def _signs(name: str, masks: Expression) -> Expression:
    return tirx.call_llvm_pure_intrin("int32", f"llvm.x86.{name}", masks)


def _collect_places(parts: list[Expression]) -> Expression:
    """NEON: places of set bits are added, of 16 bytes and more by neighbours until one byte is left of each eight."""
    if shape(parts[0])[0] == 8:
        return _reduce(parts[0] & _places("uint8", _PLACES))
    octets = 2 * len(parts)
    sums = [part & _places("uint8", _PLACES * 2) for part in parts]
    for _ in range(3):
        pairs = zip(sums[::2], sums[1::2] or sums, strict=True)
        sums = [
            tirx.call_llvm_pure_intrin("uint8x16", "llvm.aarch64.neon.addp.v16i8", *pair) for pair in pairs
        ]
    first = tirx.Shuffle([tirx.reinterpret(f"uint{8 * octets}x{16 // octets}", sums[0])], [0])
    return tirx.reinterpret(f"uint8x{octets}", first)


def _gather_one_by_one(flags: list[Expression]) -> Expression:
    one = tirx.const(1, "uint8")
    bits = [(value & one) << tirx.const(index, "uint8") for index, value in enumerate(flags)]
    return sum(bits[1:], bits[0])


def _are_neighbours(loads: list[Any]) -> bool:
    """Whether eight expressions read consecutive elements of one buffer, of which the next lane reads the next eight."""
    if not all(isinstance(load, TensorLoad) for load in loads):
        return False
    (first, *_), analyzer = loads, Analyzer()
    places = [_first_index(load) for load in loads]
    return all(
        place is not None
        and load.source.same_as(first.source)
        and analyzer.can_prove_equal(place, index + places[0])
        for index, (load, place) in enumerate(zip(loads, places, strict=True))
    )


def _first_index(load: Any) -> Expression:
    """Where the first lane of a load lies; None where lanes do not lie eight elements apart."""
    index = load.indices[0]
    if load.ty.dtype.lanes == 1:
        return index
    return index.base if isinstance(index, tirx.Ramp) and int(index.stride) == 8 else None


def _load(first: Expression, lanes: int, start: int = 0) -> Expression:
    """Neighbouring elements of a buffer from `start` elements after the first that is loaded."""
    *outer, last = first.indices
    last = last.base if isinstance(last, tirx.Ramp) else last
    return tirx.BufferLoad(first.source, [*outer, tirx.Ramp(last + start, 1, lanes)])


def _sum_of_set(mask: Expression, weights: list[int], dtype: str) -> Expression:
    """The vector of `weights` where `mask` is set, else 0."""
    return tirx.Select(mask, _places(dtype, weights), splat(0, dtype, len(weights)))


def _places(dtype: str, weights: list[int]) -> Expression:
    return tirx.Shuffle([tirx.const(weight, dtype) for weight in weights], list(range(len(weights))))


def _reduce(x: Expression) -> Expression:
    lanes, size = shape(x)
    return tirx.call_llvm_pure_intrin(dtype_of_lane(x), f"llvm.vector.reduce.add.v{lanes}i{8 * size}", x)


_PLACES = [1 << place for place in range(8)]


def _pack_within(call: Any) -> Expression:
    total, start, span = (_load(first, 8) for first in call.args[:3])
    total = tirx.reinterpret(dtype_of(start), total)
    chosen = _sum_of_set(total - start <= span, _PLACES, dtype_of_lane(start))
    return _reduce(chosen).astype("uint8")


def _pack_within_pairs(prefix: str) -> Rule:
    def rule(call: Any) -> Expression:
        halves = []
        for first in (0, 4):
            pairs, start, span = (_load(load, 4, first) for load in call.args[:3])
            total = _add_neighbours(prefix, 16, pairs)
            halves.append(_sum_of_set(total - start <= span, _PLACES[first : first + 4], "uint32"))
        return _reduce(halves[0] + halves[1]).astype("uint8")

    return rule


def _pack_octets(call: Any) -> Expression:
    words = [_load(first, 8) for first in call.args[:3]]
    lanes, size = shape(words[0])
    total, start, span = (tirx.reinterpret(f"uint8x{lanes * size}", word) for word in words)
    weights = [place for place in _PLACES for _ in range(size)]
    chosen = _sum_of_set(total - start <= span, weights, "uint8")
    return _reduce(tirx.reinterpret(dtype_of(words[0]), chosen))


def _look_up(call: Any) -> Expression:
    table, index = call.args
    twice = tirx.Shuffle([table, table], [*range(32)])
    return tirx.call_llvm_pure_intrin(dtype_of(index), "llvm.x86.avx2.pshuf.b", twice, index)


_RULES: dict[str, Rule] = {
    "count_bytes": _count_bytes,
    "add_bytes": _add_bytes,
    "accumulate_pairs_aarch64": _accumulate_pairs("llvm.aarch64.neon.uaddlp"),
    "accumulate_pairs_arm": _accumulate_pairs("llvm.arm.neon.vpaddlu"),
    "add_pairs_aarch64": _add_pairs("llvm.aarch64.neon.uaddlp"),
    "add_pairs_arm": _add_pairs("llvm.arm.neon.vpaddlu"),
    "accumulate_dot_vnni": _accumulate_dot(vnni),
    "accumulate_dot_maddubs": _accumulate_dot(lambda total, a, b: total + maddubs(a, b)),
    "mark_bytes": _mark_bytes,
    "count_marks": _count_marks,
    **RULES,
    "load_word": _load_word,
    "look_up": _look_up,
    "gather_bits_ones": _gather_by(_collect_ones, 8),
    "gather_bits_signs": _gather_by(_collect_signs, 32),
    "gather_bits_places": _gather_by(_collect_places, 16),
    "pack_within_plain": _pack_within,
    "pack_within_pairs_aarch64": _pack_within_pairs("llvm.aarch64.neon.uaddlp"),
    "pack_within_pairs_arm": _pack_within_pairs("llvm.arm.neon.vpaddlu"),
    "pack_octets": _pack_octets,
}


def register() -> None:
    """Make the intrinsics and their rules known to TVM."""
    pure, plain_level = 1, 10
    for short, rule in _RULES.items():
        name = f"tirx.matte_{short}"
        ir_api.RegisterOp(name, _DESCRIPTION)
        register_op_attr(name, "TVectorizable", True, plain_level)
        register_op_attr(name, "TCallEffectKind", pure, plain_level)
        register_op_attr(name, "TScriptPrinterName", f"matte_{short}", plain_level)
        tirx.register_intrin_lowering(name, "llvm", f=rule)
