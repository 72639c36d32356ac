import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

tvm = pytest.importorskip("tvm")

from tvm import tirx
from tvm.target import Target, codegen

from mattecompress.backends.tvm.compute.convolution import Geometry
from mattecompress.backends.tvm.freestanding.objects import lower_to_loops
from mattecompress.backends.tvm.kernels import bitserial, lookup, lookup_plan
from mattecompress.backends.tvm.parallel import divide_loops
from mattecompress.backends.tvm.statements import statements_of
from mattecompress.backends.tvm.targets import find_target
from mattecompress.ops.binary import ENCODINGS
from tests.backends.tvm import calls
from tests.backends.tvm.harness import build, make_kernel, run_here
from tests.ops.cases import Convolution

HOST = find_target("host").tvm()
AVX2 = Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"})
WORD = 8
BORDER = Convolution(1, 9, 12, 64, 64, 1, (3, 3), (1, 1), (1, 12), (1, 1), 0)
LONG = Convolution(2, 4, 90, 999, 16, 1, (1, 1), (1, 1), (0, 0), (1, 1), 3)
needs_avx2 = pytest.mark.skipif(
    not codegen.target_has_features("avx2", HOST), reason="this processor has no AVX2"
)


@st.composite
def wide(draw: st.DrawFn) -> Convolution:
    """Convolutions of one group whose sums are looked up."""
    size, stride = draw(st.sampled_from([(3, 3), (1, 1), (2, 3), (1, 5)])), draw(st.integers(1, 2))
    taps = size[0] * size[1]
    return Convolution(
        batch=draw(st.integers(1, 2)),
        height=draw(st.integers(5, 9)),
        width=draw(st.integers(55, 75)) * stride,
        channels=draw(st.integers(-(-lookup_plan.LEAST_PRODUCTS // taps), 700 // taps)),
        outputs=8 * draw(st.integers(1, 3)),
        groups=1,
        kernel=size,
        stride=(draw(st.integers(1, 2)), stride),
        padding=(draw(st.integers(0, 1)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        seed=draw(st.integers(0, 2**16)),
    )


def plan_of(case: Convolution, target: Target) -> lookup_plan.LookupPlan | None:
    weight = np.zeros((case.outputs, *case.kernel, -(-case.channels // 8)), np.uint8)
    window = Geometry(case.kernel, case.stride, case.padding, case.dilation)
    with target:
        return lookup_plan.plan_lookup(weight, window, (case.height, case.width), case.channels)


def test_those_of_these_tests_are_looked_up() -> None:
    assert all(plan_of(case, AVX2) for case in (square(29, 8, 4, 24), square(256, 8, 5, 31), LONG))


def square(channels: int, outputs: int, height: int, width: int) -> Convolution:
    return Convolution(1, height, width, channels, outputs, 1, (3, 3), (1, 1), (1, 1), (1, 1), 0)


@needs_avx2
@settings(max_examples=15, deadline=None)
@example(square(29, 8, 4, 24), "signs", 1)
@example(square(256, 8, 5, 31), "units", 0)
@example(LONG, "signs", 0)
@given(wide(), st.sampled_from(ENCODINGS), st.sampled_from([0, 1]))
def test_convolution_equals_reference(case: Convolution, encoding: str, border: int) -> None:
    assume(plan_of(case, AVX2) is not None)
    kernel = make_kernel(*calls.binary_conv2d(case, WORD, encoding, border), AVX2)
    assert np.array_equal(run_here(kernel, AVX2), kernel.expected)


@needs_avx2
def test_meaning_does_not_depend_on_the_schedule() -> None:
    kernel = make_kernel(*calls.binary_conv2d(square(40, 16, 6, 40), WORD, "signs", 0), AVX2, scheduled=False)
    assert np.array_equal(run_here(kernel, AVX2), kernel.expected)


@given(st.integers(1, 400), st.integers(1, 5), st.integers(1, 5))
def test_no_sum_overflows(channels: int, rows: int, columns: int) -> None:
    window = Geometry((rows, columns), (1, 1), (0, 0), (1, 1))
    plan = lookup_plan.LookupPlan(window, (9, 40), channels, 8, lookup_plan.BLOCKS[0])
    assert plan.triples <= lookup_plan.MOST_TRIPLES
    assert plan.steps >= columns * plan.groups > plan.steps - plan.chunks * lookup_plan.TRIPLE
    if plan.dtype == "uint8":
        assert rows * columns * channels <= 255


def test_entries_count_for_two_outputs() -> None:
    table = lookup.entries()[16 * 0b0110_1111 :][:16]
    assert [divmod(int(entry), 16) for entry in table[[0b0000, 0b1111, 0b0110]]] == [(2, 4), (2, 0), (0, 2)]


@pytest.mark.parametrize(
    ("height", "columns", "block"),
    [
        (18, 24, (1, 2)),
        (18, 32, (1, 2)),
        (17, 32, (1, 1)),
        (18, 64, (2, 1)),
        (18, 70, (1, 2)),
        (17, 120, (2, 1)),
    ],
)
def test_block_wastes_least(height: int, columns: int, block: tuple[int, int]) -> None:
    assert lookup_plan.choose_block(height, columns) == lookup_plan.Block(*block)


@pytest.mark.parametrize(
    ("case", "cpu"),
    [
        pytest.param(square(64, 64, 9, 64), "icelake-server", id="AVX-512 counts the bits of bytes"),
        pytest.param(square(64, 64, 9, 64), "x86-64", id="no AVX2"),
        pytest.param(square(16, 64, 9, 64), "haswell", id="few products"),
        pytest.param(square(64, 20, 9, 64), "haswell", id="no whole word of outputs"),
        pytest.param(square(64, 64, 9, 17), "haswell", id="half of a block beyond the row"),
        pytest.param(BORDER, "haswell", id="hardly anything but border"),
    ],
)
def test_bits_are_counted_where_that_serves_as_well(case: Convolution, cpu: str) -> None:
    assert plan_of(case, Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": cpu})) is None


def test_bits_are_counted_on_arm() -> None:
    assert plan_of(square(64, 64, 9, 64), find_target("cortex-a76").tvm()) is None


@pytest.mark.parametrize("width", [32, 64])
def test_inner_loop_keeps_its_sums_in_registers(width: int) -> None:
    """Six shuffles, of three steps for two vectors, and at most 28 instructions in all; no store."""
    kernel = make_kernel(*calls.binary_conv2d(square(64, 16, 8, width), WORD, "signs", 0), AVX2)
    assembly = build([kernel], AVX2).inspect_source("asm")
    blocks = [re.split(r"\tj[a-z]+\t", block)[0] for block in assembly.split("\n.LBB")]
    inner = [block for block in blocks if block.count("\tvbroadcasti128\t") and "\tvpshufb\t" in block]
    (counted, *_) = [
        found
        for found in (Counter(re.findall(r"^\t([a-z]\w*)\t", block, re.MULTILINE)) for block in inner)
        if found["vpshufb"] % 6 == 0 and found["vpsrlw"] * 3 == found["vpshufb"]
    ]
    assert sum(counted.values()) <= 28 * counted["vpshufb"] / 6
    assert not re.search(r"^\tvmov\w+\t%ymm\d+, ", "".join(inner), re.MULTILINE)


@needs_avx2
def test_epilogue_reads_what_was_looked_up() -> None:
    """Of one kernel: the sums of a band, then the results of the whole."""
    kernel = make_kernel(*calls.binary_conv2d(square(64, 16, 9, 64), WORD, "signs", 0), AVX2)
    names = re.findall(r'T.sblock\("(\w+)"\)', str(kernel.function))
    assert names == ["root", "sums", bitserial.RESULT]


def test_bands_are_divided_among_threads() -> None:
    kernel = make_kernel(*calls.binary_conv2d(square(64, 64, 18, 64), WORD, "signs", 0), AVX2)
    module = tvm.IRModule({"main": kernel.function})
    (function,) = lower_to_loops(module, ["main"], find_target("host")).values()
    loops = [s for s in statements_of(divide_loops(function).body) if isinstance(s, tirx.For)]
    assert [(loop.kind == tirx.ForKind.PARALLEL, int(loop.extent)) for loop in loops] == [
        (True, 9),
        (True, 18),
    ]
