from collections.abc import Iterator

import pytest

from mattecompress.program import Program
from tests.inspection.browser import NAMES, Tab, browse, find_browser


def softened(program: Program) -> Program:
    """A copy whose outputs stay between 0 and 1, so that every error shows in them."""
    copy = program.clone()
    copy.graph_module.get_parameter("head.weight").data *= 0.05
    copy.graph_module.get_parameter("head.bias").data[:] = 0.5
    return copy


@pytest.fixture(scope="module")
def soft(tiny: Program) -> Program:
    return softened(tiny)


@pytest.fixture(scope="module")
def soft_open(tiny_open: Program) -> Program:
    return softened(tiny_open)


@pytest.fixture(scope="package")
def shared_tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    browser = find_browser()
    if browser is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(NAMES)}")
    with browse(browser, tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """A tab of a browser; whatever a page complains of fails the test."""
    shared_tab.complaints.clear()
    shared_tab.prefer("light")
    yield shared_tab
    assert shared_tab.complaints == []
