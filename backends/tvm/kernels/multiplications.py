"""How products of bytes are spelled, by kind of `intrinsics.multiplication`, and sums of such."""

from typing import Any

from tvm import tirx
from tvm.ir import Op

from mattecompress.backends.tvm.kernels.lanes import Expression, Rule, shape, signed_bytes, splat, vector


def vnni(total: Expression, a: Expression, b: Expression) -> Expression:
    """`total` and the products of unsigned bytes of `a` and signed ones of `b`, four a lane."""
    lanes, _ = shape(a)
    return _dot(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", total, a, b)


def _dot(name: str, total: Expression, a: Expression, b: Expression) -> Expression:
    lanes, _ = shape(a)
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, total, signed_bytes(a), signed_bytes(b))


def _multiply_vnni(call: Any) -> Expression:
    a, b = call.args
    return vnni(splat(0, "int32", shape(a)[0]), a, b)


def _multiply_sdot(call: Any) -> Expression:
    """The activations come second: there, NEON takes an element of a register for all lanes."""
    a, b = call.args
    lanes, _ = shape(a)
    return _dot(f"llvm.aarch64.neon.sdot.v{lanes}i32.v{4 * lanes}i8", splat(0, "int32", lanes), b, a)


def maddubs(a: Expression, b: Expression) -> Expression:
    """Products of unsigned bytes of `a` and signed ones of `b` added in pairs to int16, and these to int32."""
    lanes, _ = shape(a)
    name = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}[lanes]
    pairs = tirx.call_llvm_pure_intrin(
        f"int16x{2 * lanes}", f"llvm.x86.{name}", signed_bytes(a), signed_bytes(b)
    )
    return _add_products(pairs, splat(1, "int16", 2 * lanes))


def _multiply_madd(call: Any) -> Expression:
    """Even and odd bytes apart, as int16, so that no sum saturates."""
    codes, weights = (
        _even_and_odd(x, dtype) for x, dtype in zip(call.args, ("uint16", "int16"), strict=True)
    )
    even, odd = (_add_products(*pair) for pair in zip(codes, weights, strict=True))
    return even + odd


def _even_and_odd(x: Expression, dtype: str) -> tuple[Expression, Expression]:
    """The bytes of words, extended to 16 bits as the type says, then taken for int16."""
    count = 2 * shape(x)[0]
    pairs, eight = tirx.reinterpret(vector(dtype, count), x), splat(8, dtype, count)
    even, odd = (
        tirx.reinterpret(f"int16x{count}", part) for part in ((pairs << eight) >> eight, pairs >> eight)
    )
    return even, odd


def _add_products(a: Expression, b: Expression) -> Expression:
    """Products of int16, added in pairs to int32."""
    lanes = shape(a)[0] // 2
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.{name}", a, b)


def _multiply_smull(prefix: str, early: bool) -> Rule:
    """Products of bytes in int16, added in pairs to int32; `early` adds two of them in int16 before."""

    def rule(call: Any) -> Expression:
        word, weights = call.args[0].value, signed_bytes(call.args[1])
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
    lanes, _ = shape(call.args[0])

    def signed(word: Expression, index: int) -> Expression:
        return (word << splat(24 - 8 * index, "int32", lanes)) >> splat(24, "int32", lanes)

    products = [signed(call.args[0], index) * signed(call.args[1], index) for index in range(4)]
    return sum(products[1:], products[0])


def _accumulate(call: Any) -> Expression:
    """`vpdpbusd` takes the sum as an operand; for `sdot`, LLVM folds the addition by itself."""
    total, product = call.args
    if getattr(product, "op", None) == Op.get("tirx.matte_multiply_vnni"):
        return vnni(total, *product.args)
    return total + product


RULES: dict[str, Rule] = {
    "multiply_sdot": _multiply_sdot,
    "multiply_vnni": _multiply_vnni,
    "multiply_maddubs": lambda call: maddubs(*call.args),
    "multiply_madd": _multiply_madd,
    "multiply_smull_aarch64": _multiply_smull("llvm.aarch64.neon.saddlp", early=False),
    "multiply_smull_arm": _multiply_smull("llvm.arm.neon.vpaddls", early=False),
    "multiply_smlal_aarch64": _multiply_smull("llvm.aarch64.neon.saddlp", early=True),
    "multiply_smlal_arm": _multiply_smull("llvm.arm.neon.vpaddls", early=True),
    "multiply_plain": _multiply_plain,
    "accumulate": _accumulate,
}
"""By the name of the intrinsic, without what all share."""
