import pytest

from mattecompress.facts import nearest_multiple, size_step


@pytest.mark.parametrize(("size", "step"), [("h", 1), ("16*h", 16), ("h*4", 4), (5, 5)])
def test_step_of_a_size(size: int | str, step: int) -> None:
    assert size_step(size) == step


@pytest.mark.parametrize(("size", "nearest"), [(271, 272), (265, 272), (263, 256), (16, 16), (1, 16)])
def test_nearest_multiple(size: int, nearest: int) -> None:
    assert nearest_multiple(size, 16) == nearest
