"""Nothing that lives together shares bytes, and the arena is no larger than it must be."""

from hypothesis import given
from hypothesis import strategies as st

from mattecompress.backends.tvm.freestanding.arena import ALIGNMENT, Lifetime, align, allocate

lifetimes = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(1, 1000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=24,
)


@given(lifetimes)
def test_nothing_that_lives_together_shares_bytes(requests):
    offsets, total = allocate(requests)
    for i, (one, start) in enumerate(zip(requests, offsets, strict=True)):
        assert start % ALIGNMENT == 0
        assert start + one.bytes <= total
        for other, begin in zip(requests[:i], offsets[:i], strict=True):
            apart = start + one.bytes <= begin or begin + other.bytes <= start
            assert apart or not one.meets(other)


@given(lifetimes)
def test_the_arena_is_neither_too_small_nor_wasteful(requests):
    _, total = allocate(requests)
    live = [sum(align(r.bytes) for r in requests if r.first <= step <= r.last) for step in range(20)]
    assert max(live) <= total <= sum(align(r.bytes) for r in requests)


def test_a_chain_needs_its_two_largest_neighbours():
    sizes = (640, 128, 1280, 64)
    chain = [Lifetime(size, step, step + 1) for step, size in enumerate(sizes)]
    assert allocate(chain)[1] == 128 + 1280


def test_the_tightest_gap_is_taken():
    wide, narrow = Lifetime(640, 0, 1), Lifetime(128, 0, 1)
    keep = [Lifetime(6400, 0, 3), Lifetime(3200, 0, 3), Lifetime(1600, 0, 3)]
    offsets, total = allocate([*keep, wide, narrow, Lifetime(100, 2, 3)])
    assert total == 6400 + 3200 + 1600 + 640 + 128
    assert offsets[-1] in (offsets[3], offsets[4])


def test_an_idle_place_is_lent():
    keeps, borrows = Lifetime(640, 0, 9, idle=(3, 6)), Lifetime(640, 3, 6)
    assert allocate([keeps, borrows]) == ([0, 0], 640)
    assert keeps.meets(Lifetime(64, 6, 7))
    assert keeps.meets(Lifetime(64, 0, 9))
