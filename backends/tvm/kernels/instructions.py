"""How each intrinsic of `intrinsics.py` is spelled in vector instructions, on each instruction set.

A rule takes a call that the vectoriser has widened and returns arithmetic and LLVM intrinsics on whole registers.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Op, register_op_attr
from tvm.ir import _ffi_api as ir_api
from tvm.ir.expr import TensorLoad
from tvm.sym import Analyzer

from mattecompress.backends.tvm.compute.mathematics import dtype_of

Expression = Any
Rule = Callable[[Any], Expression]

_DESCRIPTION = "mattecompress: bytes packed into lanes"
_GATHER = 0x0102040810204080
_LOW_BYTES = {2: 0x00FF, 4: 0x00FF00FF}


def _shape(x: Expression) -> tuple[int, int]:
    """Lanes, and bytes of a lane."""
    dtype = x.ty.dtype
    return dtype.lanes, dtype.bits // 8


def _dtype_of_lane(x: Expression) -> str:
    return f"uint{8 * _shape(x)[1]}"


def _vector(name: str, lanes: int) -> str:
    return name if lanes == 1 else f"{name}x{lanes}"


def _splat(value: int, dtype: str, lanes: int) -> Expression:
    constant = tirx.const(value, dtype)
    return constant if lanes == 1 else tirx.Broadcast(constant, lanes)


def _count_bytes(call: Any) -> Expression:
    (x,) = call.args
    lanes, size = _shape(x)
    octets = tirx.reinterpret(f"uint8x{lanes * size}", x)
    return tirx.reinterpret(dtype_of(x), tirx.popcount(octets))


def _add_bytes(call: Any) -> Expression:
    return _add_bytes_of(call.args[0])


def _add_bytes_of(x: Expression) -> Expression:
    lanes, size = _shape(x)
    dtype = _dtype_of_lane(x)
    mask, eight = _splat(_LOW_BYTES[size], dtype, lanes), _splat(8, dtype, lanes)
    pairs = (x & mask) + ((x >> eight) & mask)
    if size == 4:
        pairs = (pairs + (pairs >> _splat(16, dtype, lanes))) & _splat(0xFFFF, dtype, lanes)
    return pairs.astype(_vector("int32", lanes))


def _add_neighbours(prefix: str, bits: int, x: Expression) -> Expression:
    """Neighbouring unsigned pieces of `bits` bits, added to twice their size, by NEON's pairwise long addition."""
    lanes, size = _shape(x)
    count = lanes * size * 8 // bits
    dtype = f"uint{2 * bits}x{count // 2}"
    name = f"{prefix}.v{count // 2}i{2 * bits}.v{count}i{bits}"
    return tirx.call_llvm_pure_intrin(dtype, name, tirx.reinterpret(f"uint{bits}x{count}", x))


def _accumulate_pairs(prefix: str) -> Rule:
    """One `uadalp`; a scalar, which only an unscheduled kernel has, is taken apart by shifts."""

    def rule(call: Any) -> Expression:
        total, counts = call.args
        lanes, size = _shape(counts)
        if lanes * size not in (8, 16):
            mask, eight = (_splat(value, _dtype_of_lane(counts), lanes) for value in (_LOW_BYTES[size], 8))
            return total + (counts & mask) + ((counts >> eight) & mask)
        pairs = _add_neighbours(prefix, 8, counts)
        return tirx.reinterpret(dtype_of(total), tirx.reinterpret(dtype_of(pairs), total) + pairs)

    return rule


def _add_pairs(prefix: str) -> Rule:
    def rule(call: Any) -> Expression:
        (x,) = call.args
        lanes, size = _shape(x)
        if lanes * size in (8, 16):
            return tirx.reinterpret(f"int32x{lanes}", _add_neighbours(prefix, 16, x))
        low, high = _splat(0xFFFF, "uint32", lanes), _splat(16, "uint32", lanes)
        return ((x & low) + (x >> high)).astype(_vector("int32", lanes))

    return rule


def _accumulate_dot(call: Any) -> Expression:
    total, counts = call.args
    lanes, _ = _shape(counts)
    if lanes == 1:
        return total + _add_bytes_of(counts).astype("uint32")
    ones = _splat(0x01010101, "int32", lanes)
    signed = [tirx.reinterpret(f"int32x{lanes}", x) for x in (total, counts)]
    return tirx.reinterpret(dtype_of(total), _dot(_vnni, signed[0], signed[1], ones))


def _bytes(x: Expression) -> Expression:
    return tirx.reinterpret(f"int8x{4 * _shape(x)[0]}", x)


def _octets(x: Expression) -> Expression:
    lanes, size = _shape(x)
    return tirx.reinterpret(_vector("uint8", lanes * size), x)


def _mark_bytes(call: Any) -> Expression:
    x, places = (_octets(argument) for argument in call.args)
    lanes, _ = _shape(x)
    marks = tirx.Select(
        (x & places) != _splat(0, "uint8", lanes), *(_splat(m, "uint8", lanes) for m in (255, 0))
    )
    return tirx.reinterpret(dtype_of(call.args[0]), marks)


def _count_marks(call: Any) -> Expression:
    total, marks = (_octets(argument) for argument in call.args)
    return tirx.reinterpret(dtype_of(call.args[0]), total - marks)


def _dot(name: Callable[[int], str], total: Expression, a: Expression, b: Expression) -> Expression:
    lanes, _ = _shape(a)
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name(lanes), total, _bytes(a), _bytes(b))


def _multiply_sdot(call: Any) -> Expression:
    """The activations come second: there, NEON takes an element of a register for all lanes."""
    a, b = call.args
    return _dot(_sdot, _splat(0, "int32", _shape(a)[0]), b, a)


def _multiply_vnni(call: Any) -> Expression:
    a, b = call.args
    return _dot(_vnni, _splat(0, "int32", _shape(a)[0]), a, b)


def _sdot(lanes: int) -> str:
    return f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8"


def _vnni(lanes: int) -> str:
    return f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"


def _multiply_maddubs(call: Any) -> Expression:
    """Products of bytes added in pairs to int16, and these to int32."""
    lanes, _ = _shape(call.args[0])
    name = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}[lanes]
    pairs = tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", f"llvm.x86.{name}", *map(_bytes, call.args))
    return _add_products(pairs, _splat(1, "int16", 2 * lanes))


def _multiply_madd(call: Any) -> Expression:
    """Even and odd bytes apart, as int16, so that no sum saturates."""
    codes, weights = (
        _even_and_odd(x, dtype) for x, dtype in zip(call.args, ("uint16", "int16"), strict=True)
    )
    even, odd = (_add_products(*pair) for pair in zip(codes, weights, strict=True))
    return even + odd


def _even_and_odd(x: Expression, dtype: str) -> tuple[Expression, Expression]:
    """The bytes of words, extended to 16 bits as the type says, then taken for int16."""
    count = 2 * _shape(x)[0]
    pairs, eight = tirx.reinterpret(_vector(dtype, count), x), _splat(8, dtype, count)
    even, odd = (
        tirx.reinterpret(f"int16x{count}", part) for part in ((pairs << eight) >> eight, pairs >> eight)
    )
    return even, odd


def _add_products(a: Expression, b: Expression) -> Expression:
    """Products of int16, added in pairs to int32."""
    lanes = _shape(a)[0] // 2
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.{name}", a, b)


def _multiply_smull(prefix: str, early: bool) -> Rule:
    """Products of bytes in int16, added in pairs to int32; `early` adds two of them in int16 before."""

    def rule(call: Any) -> Expression:
        word, weights = call.args[0].value, _bytes(call.args[1])
        products = []
        for shift, half in ((0, tirx.op.vectorlow), (16, tirx.op.vectorhigh)):
            pair = (word >> tirx.const(shift, "int32")).astype("int16")
            signed = tirx.reinterpret("int8x8", tirx.Broadcast(pair, 4)).astype("int16x8")
            products.append(signed * half("int8x8", weights).astype("int16x8"))
        sums = [products[0] + products[1]] if early else products
        wide = [tirx.call_llvm_pure_intrin("int32x4", f"{prefix}.v4i32.v8i16", value) for value in sums]
        return sum(wide[1:], wide[0])

    return rule


def _multiply_plain(call: Any) -> Expression:
    lanes, _ = _shape(call.args[0])

    def signed(word: Expression, index: int) -> Expression:
        return (word << _splat(24 - 8 * index, "int32", lanes)) >> _splat(24, "int32", lanes)

    products = [signed(call.args[0], index) * signed(call.args[1], index) for index in range(4)]
    return sum(products[1:], products[0])


def _accumulate(call: Any) -> Expression:
    """`vpdpbusd` takes the sum as an operand; for `sdot`, LLVM folds the addition by itself."""
    total, product = call.args
    if getattr(product, "op", None) == Op.get("tirx.matte_multiply_vnni"):
        return _dot(_vnni, total, *product.args)
    return total + product


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
        count = 8 * _shape(flags[0])[0]
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
    lanes, _ = _shape(masks)
    if lanes == 8:
        return _signs("sse2.pmovmskb.128", tirx.Shuffle([masks, masks], list(range(16)))).astype("uint8")
    if lanes == 16:
        return tirx.reinterpret("uint8x2", _signs("sse2.pmovmskb.128", masks).astype("uint16"))
    return tirx.reinterpret("uint8x4", _signs("avx2.pmovmskb", masks))


def _signs(name: str, masks: Expression) -> Expression:
    return tirx.call_llvm_pure_intrin("int32", f"llvm.x86.{name}", masks)


def _collect_places(parts: list[Expression]) -> Expression:
    """NEON: places of set bits are added, of 16 bytes and more by neighbours until one byte is left of each eight."""
    if _shape(parts[0])[0] == 8:
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
    return tirx.Select(mask, _places(dtype, weights), _splat(0, dtype, len(weights)))


def _places(dtype: str, weights: list[int]) -> Expression:
    return tirx.Shuffle([tirx.const(weight, dtype) for weight in weights], list(range(len(weights))))


def _reduce(x: Expression) -> Expression:
    lanes, size = _shape(x)
    return tirx.call_llvm_pure_intrin(_dtype_of_lane(x), f"llvm.vector.reduce.add.v{lanes}i{8 * size}", x)


_PLACES = [1 << place for place in range(8)]


def _pack_within(call: Any) -> Expression:
    total, start, span = (_load(first, 8) for first in call.args[:3])
    total = tirx.reinterpret(dtype_of(start), total)
    chosen = _sum_of_set(total - start <= span, _PLACES, _dtype_of_lane(start))
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
    lanes, size = _shape(words[0])
    total, start, span = (tirx.reinterpret(f"uint8x{lanes * size}", word) for word in words)
    weights = [place for place in _PLACES for _ in range(size)]
    chosen = _sum_of_set(total - start <= span, weights, "uint8")
    return _reduce(tirx.reinterpret(dtype_of(words[0]), chosen))


_RULES: dict[str, Rule] = {
    "count_bytes": _count_bytes,
    "add_bytes": _add_bytes,
    "accumulate_pairs_aarch64": _accumulate_pairs("llvm.aarch64.neon.uaddlp"),
    "accumulate_pairs_arm": _accumulate_pairs("llvm.arm.neon.vpaddlu"),
    "add_pairs_aarch64": _add_pairs("llvm.aarch64.neon.uaddlp"),
    "add_pairs_arm": _add_pairs("llvm.arm.neon.vpaddlu"),
    "accumulate_dot": _accumulate_dot,
    "mark_bytes": _mark_bytes,
    "count_marks": _count_marks,
    "multiply_sdot": _multiply_sdot,
    "multiply_vnni": _multiply_vnni,
    "multiply_maddubs": _multiply_maddubs,
    "multiply_madd": _multiply_madd,
    "multiply_smull_aarch64": _multiply_smull("llvm.aarch64.neon.saddlp", early=False),
    "multiply_smull_arm": _multiply_smull("llvm.arm.neon.vpaddls", early=False),
    "multiply_smlal_aarch64": _multiply_smull("llvm.aarch64.neon.saddlp", early=True),
    "multiply_smlal_arm": _multiply_smull("llvm.arm.neon.vpaddls", early=True),
    "multiply_plain": _multiply_plain,
    "accumulate": _accumulate,
    "load_word": _load_word,
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
