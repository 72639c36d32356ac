"""How the sums of a convolution of packed bits are looked up, and whether: what `lookup.py` goes by.

Everything follows from the layer's shape and the target. A block of registers holds the sums of one pair of outputs at
the pixels of two vectors; the window's entries are added up in chunks whose counts fit a byte; and the planes of some
rows are in memory at a time, a band.
"""

from dataclasses import dataclass
from math import ceil, prod

from tvm import tirx
from tvm.target import Target, codegen

from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.kernels.intrinsics import current_target, instruction_set
from mattecompress.backends.tvm.kernels.window import Array, Expression
from mattecompress.backends.tvm.schedules.stages import divisors

BITS = 4
"""Of an index."""
TRIPLE = 3
"""Entries that are added before their halves are taken apart."""
MOST_TRIPLES = 21
"""Whose counts a byte holds."""
VECTOR = 32
"""Pixels of a vector."""
LANES = 16
"""Pixels that indices are made for at once, and that are turned at once."""
LEAST_PRODUCTS = 256
"""Products of an output below which turning lanes of pixels into outputs costs more than is won."""
MOST_WASTE = 1.4
"""Pixels of whole blocks for each pixel of a row."""
ROW_BYTES = 1 << 15
"""Of the indices of a row, which are on the stack."""
NEAR_BYTES = 1 << 17
"""Of planes that a near cache holds beside the rest."""
BANDS = 8
"""At least, where there are as many rows."""
OUTPUTS = 8
"""Bytes of a word that is written."""


@dataclass(frozen=True)
class Block:
    """Pixels whose sums registers hold for a pair of outputs: `columns` vectors in each of `rows`."""

    columns: int
    rows: int

    @property
    def pixels(self) -> int:
        """Of a row."""
        return self.columns * VECTOR

    @property
    def vectors(self) -> list[tuple[int, int]]:
        """Row and column of each."""
        return [(row, column) for row in range(self.rows) for column in range(self.columns)]


BLOCKS = (Block(2, 1), Block(1, 2), Block(1, 1))


@dataclass(frozen=True)
class LookupPlan:
    """How sums are looked up.

    size: rows and columns of the input. channels: of a tap. outputs: channels of the result.
    """

    window: Geometry
    size: tuple[int, int]
    channels: int
    outputs: int
    block: Block

    @property
    def groups(self) -> int:
        """Indices of a tap."""
        return ceil(self.channels / BITS)

    @property
    def chunks(self) -> int:
        """Pieces of a row of the window whose counts fit a byte."""
        return ceil(self.window.kernel[1] * self.groups / (TRIPLE * MOST_TRIPLES))

    @property
    def triples(self) -> int:
        """Of a chunk."""
        return ceil(self.window.kernel[1] * self.groups / (TRIPLE * self.chunks))

    @property
    def steps(self) -> int:
        """Entries of an output in a row of the window, which count nothing beyond the last tap."""
        return self.chunks * self.triples * TRIPLE

    @property
    def dtype(self) -> str:
        """Of the sums: bytes where they hold the counts of the whole window."""
        return "uint8" if self.window.kernel[0] * self.steps <= TRIPLE * MOST_TRIPLES else "uint16"

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return self.window.extent(self.size[0], 0), self.window.extent(self.size[1], 1)

    @property
    def blocks(self) -> int:
        """Of a row of the result."""
        return ceil(self.result[1] / self.block.pixels)

    def first(self, block: Expression) -> Expression:
        """The first column of a block: the last one may begin in the one before it, and the only one end beyond the row."""
        return tirx.min(block * self.block.pixels, max(self.result[1] - self.block.pixels, 0))

    @property
    def band(self) -> int:
        """Rows of the result whose planes are in memory at a time: as many as a near cache holds the planes of.

        A band is computed by one thread, so there are some.
        """
        most = NEAR_BYTES // (self.blocks * self.steps * self.block.pixels)
        whole = [rows for rows in divisors(self.result[0]) if rows % self.block.rows == 0]
        shares = [rows for rows in whole if rows * BANDS <= self.result[0] and self._read(rows) <= most]
        return max(shares, default=whole[0])

    @property
    def planes(self) -> tuple[int, int, int, int]:
        """Rows that a band reads, blocks of pixels, steps, and pixels of a block."""
        return self._read(self.band), self.blocks, self.steps, self.block.pixels

    def _read(self, rows: int) -> int:
        """Rows of the padded image that so many rows of the result read."""
        (stride, _), (dilation, _), (taps, _) = self.window.stride, self.window.dilation, self.window.kernel
        return (rows - 1) * stride + (taps - 1) * dilation + 1

    @property
    def row(self) -> tuple[int, int, int]:
        """Kinds of columns, which a stride takes apart, of a padded row; indices of a tap; and columns of each kind."""
        (_, stride), (_, dilation), (_, taps) = self.window.stride, self.window.dilation, self.window.kernel
        columns = max(self.result[1], self.block.pixels)
        return stride, self.groups, columns + (taps - 1) * dilation // stride

    def inside(self, phase: int) -> range:
        """Columns of a kind that lie in the image."""
        stride, left = self.window.stride[1], self.window.padding[1]
        first = max(ceil((left - phase) / stride), 0)
        return range(first, min((self.size[1] - 1 + left - phase) // stride + 1, self.row[-1]))


def plan_lookup(weight: Array, window: Geometry, size: tuple[int, int], channels: int) -> LookupPlan | None:
    """The plan for packed weights (O, KH, KW, B) of one group, or None where counting bits serves as well."""
    outputs, rows, taps, _ = weight.shape
    if not shuffles_faster(current_target()) or outputs % OUTPUTS or rows * taps * channels < LEAST_PRODUCTS:
        return None
    height, columns = window.extent(size[0], 0), window.extent(size[1], 1)
    plan = LookupPlan(window, size, channels, outputs, choose_block(height, columns))
    fits = all(len(plan.inside(phase)) >= LANES for phase in range(window.stride[1]))
    fits = fits and prod(plan.row) <= ROW_BYTES
    return plan if fits and plan.blocks * plan.block.pixels <= MOST_WASTE * columns else None


def shuffles_faster(target: Target) -> bool:
    """Whether a byte is shuffled in much less time than its bits are counted: on x86 before AVX-512 counts them."""
    return (
        instruction_set(target) == "x86"
        and codegen.target_has_features("avx2", target)
        and not codegen.target_has_features("avx512bitalg", target)
    )


def choose_block(height: int, columns: int) -> Block:
    """The block that needs least work for rows of `columns` pixels, which whole blocks cover."""
    fitting = [block for block in BLOCKS if block.pixels <= max(columns, VECTOR) and height % block.rows == 0]

    def work(block: Block) -> float:
        return ceil(columns / block.pixels) * (len(block.vectors) + 1) / block.rows

    return min(fitting, key=work)
