"""Work side by side: in order, as in the calling thread, and the threads are given back."""

import threading
from collections.abc import Callable

import pytest
import torch

from mattecompress.side_by_side import side_by_side


@pytest.fixture(autouse=True)
def two_threads(set_threads: Callable[[int], None]) -> None:
    set_threads(2)


def test_as_many_at_a_time_as_torch_has_threads() -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(number: int) -> tuple[int, int]:
        together.wait()
        return number, torch.get_num_threads()

    assert side_by_side(meet, range(4)) == [(number, 1) for number in range(4)]
    assert torch.get_num_threads() == 2


def test_fewer_items_get_more_threads_each() -> None:
    assert side_by_side(lambda item: torch.get_num_threads(), [None]) == [2]
    assert side_by_side(lambda item: item, []) == []


@pytest.mark.parametrize("recorded", [True, False])
def test_records_gradients_as_the_caller_does(recorded: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(recorded):
        products = side_by_side(lambda factor: weight * factor, range(3))
    assert [product.requires_grad for product in products] == [recorded] * 3


def test_an_error_comes_through_and_the_threads_come_back() -> None:
    def fail(number: int) -> int:
        raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item 0"):
        side_by_side(fail, range(3))
    assert torch.get_num_threads() == 2
