"""Cutting a loop into consecutive pieces, each a vector of a power-of-two width or a serial loop.

A vector of 40 lanes is scalarised by LLVM, and a condition inside a vector loop stops vectorisation: a loop of 40
becomes 16 + 16 + 8 lanes, and a loop over a join of 24 and 16 channels is cut at 24. Schedule rules mark loops with
`mark`; `cut_loops` replaces them in the scheduled function.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.s_tir import SBlock

from mattecompress.backends.tvm.statements import sequence_of, statements_of

MARK = "pieces"
ROW_LOOP, PIXEL_LOOP = "row", "pixel"
Piece = tuple[int, int, int]


def widths(extent: int, lanes: int) -> list[int]:
    """Vector widths, powers of two of at most `lanes`, widest first, that add up to `extent`."""
    parts = [lanes] * (extent // lanes)
    rest = extent % lanes
    while rest:
        part = 1 << (rest.bit_length() - 1)
        parts.append(part)
        rest -= part
    return parts


def vector_pieces(extent: int, lanes: int, cuts: Iterable[int] = ()) -> list[Piece]:
    """Pieces (start, count, width) that cover `extent` and cross no cut; `count` vectors of `width` lanes each."""
    pieces: list[Piece] = []
    for start, end in _sections(extent, cuts):
        position = start
        for width in widths(end - start, lanes):
            if pieces and pieces[-1][2] == width and _end(pieces[-1]) == position > start:
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + 1, width)
            else:
                pieces.append((position, 1, width))
            position += width
    return pieces


def serial_pieces(extent: int, cuts: Iterable[int]) -> list[Piece]:
    """Pieces of scalars (start, count, 1) that cover `extent` and cross no cut."""
    return [(start, end - start, 1) for start, end in _sections(extent, cuts)]


def mark(schedule: Any, loop: Any, pieces: list[Piece]) -> None:
    """Ask `cut_loops` to cut a loop of a schedule."""
    schedule.annotate(loop, MARK, [number for piece in pieces for number in piece])


def cut_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with every marked loop replaced by its pieces."""
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, _cut)))


def join_rows(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with nests `for image: for row:` in sequence, whose row loops are marked `ROW_LOOP`, made one.

    Where loops marked `PIXEL_LOOP` then follow each other in a row, they are made one too. Each nest may read what those
    before it wrote in the same row only, or of the same pixel.
    """
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.SeqStmt, _join)))


def condition_cuts(block: SBlock, axis: int) -> list[int]:
    """Values of a block's iterator at which some condition of its body changes."""
    variable = block.iter_vars[axis].var
    cuts: set[int] = set()

    def visit(condition: Any) -> None:
        if "int" not in str(condition.a.ty.dtype):
            return
        terms = sym.detect_linear_equation(condition.a - condition.b, [variable])
        if len(terms) != 2 or not isinstance(terms[1], tirx.IntImm) or abs(_number(terms[0])) != 1:
            return
        zero = -_number(terms[1]) * _number(terms[0])
        rises_after = isinstance(condition, (tirx.GT, tirx.LE)) == (_number(terms[0]) > 0)
        cuts.add(zero + 1 if rises_after else zero)

    tvm_ffi.structural_walk(block.body, ((tirx.LT, tirx.LE, tirx.GT, tirx.GE), visit))
    return sorted(cuts)


def _number(value: Any) -> int:
    return int(value.value) if isinstance(value, tirx.IntImm) else 0


def _sections(extent: int, cuts: Iterable[int]) -> list[tuple[int, int]]:
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < extent}), extent]
    return list(itertools.pairwise(bounds))


def _end(piece: Piece) -> int:
    start, count, width = piece
    return start + count * width


def _join(sequence: tirx.SeqStmt) -> tirx.Stmt:
    nests = list(sequence.seq)
    if not all(isinstance(nest, tirx.For) and isinstance(nest.body, tirx.For) for nest in nests):
        return sequence
    if not all(ROW_LOOP in nest.body.annotations for nest in nests):
        return sequence
    image, row = nests[0], nests[0].body
    bodies = [
        _substitute(nest.body.body, {nest.loop_var: image.loop_var, nest.body.loop_var: row.loop_var})
        for nest in nests
    ]
    inner = _serial_like(row, _join_pixels(bodies))
    return _serial_like(image, inner)


def _join_pixels(bodies: list[tirx.Stmt]) -> tirx.Stmt:
    """The bodies of a row in sequence, with neighbouring loops over its pixels as one."""
    statements = [part for body in bodies for part in statements_of(body)]
    joined: list[tirx.Stmt] = []
    for over_pixels, run in itertools.groupby(statements, _is_over_pixels):
        loops = list(run)
        if over_pixels and len(loops) > 1:
            pixel = loops[0]
            parts = [_substitute(loop.body, {loop.loop_var: pixel.loop_var}) for loop in loops]
            joined.append(_serial_like(pixel, tirx.SeqStmt(parts)))
        else:
            joined += loops
    return sequence_of(joined)


def _is_over_pixels(statement: tirx.Stmt) -> bool:
    return isinstance(statement, tirx.For) and PIXEL_LOOP in statement.annotations


def _serial_like(loop: tirx.For, body: tirx.Stmt) -> tirx.For:
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, body)


def _substitute(statement: Any, values: dict[tirx.Var, Any]) -> Any:
    def replace(variable: tirx.Var) -> Any:
        return next((value for key, value in values.items() if key.same_as(variable)), variable)

    return tvm_ffi.structural_map(statement, (tirx.Var, replace))


def _cut(loop: tirx.For) -> tirx.Stmt:
    numbers = loop.annotations.get(MARK)
    if numbers is None:
        return loop
    values = [int(number) for number in numbers]
    pieces = zip(values[0::3], values[1::3], values[2::3], strict=True)
    statements = [_piece(loop, piece) for piece in pieces]
    return sequence_of(statements)


def with_own_names(statement: tirx.Stmt) -> tirx.Stmt:
    """The same with names of its own for what its expressions bind: nothing that is compiled beside it shares them."""
    result: tirx.Stmt = tvm_ffi.structural_map(statement, (tirx.Let, _rename))
    return result


def _rename(let: tirx.Let) -> tirx.Let:
    name = tirx.Var(let.var.name, let.var.ty.dtype)
    return tirx.Let(name, let.value, _substitute(let.body, {let.var: name}))


def _piece(loop: tirx.For, piece: Piece) -> tirx.Stmt:
    start, count, width = piece
    name, dtype = loop.loop_var.name, str(loop.loop_var.ty.dtype)
    outer, lane = tirx.Var(name, dtype), tirx.Var(f"{name}_lane", dtype)
    place = tirx.IntImm(dtype, start) + (outer * width if count > 1 else 0) + (lane if width > 1 else 0)

    result = _substitute(loop.body, {loop.loop_var: place})
    result = with_own_names(result)
    if width > 1:
        result = tirx.For(lane, 0, width, tirx.ForKind.VECTORIZED, result)
    if count > 1:
        result = tirx.For(outer, 0, count, tirx.ForKind.SERIAL, result)
    return result
