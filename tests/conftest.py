"""Fixtures and markers that every test may use."""

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("needs"):
            for executable in mark.args:
                if shutil.which(executable) is None:
                    item.add_marker(pytest.mark.skip(reason=f"{executable} is not on PATH"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real weights and pictures: $MATTECOMPRESS_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("MATTECOMPRESS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data in {folder}: set MATTECOMPRESS_DATA")
    return folder


@pytest.fixture(scope="session")
def spec_data(shared_data: Path) -> Path:
    """The folder of golden vectors beside the test data."""
    folder = shared_data.parent / "spec" / "data"
    if not folder.is_dir():
        pytest.skip(f"no golden vectors in {folder}")
    return folder


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Compare text with tests/golden/<test path>/<test name>.txt; `--update-golden` rewrites it."""
    folder = ROOT / "tests" / "golden" / request.path.relative_to(ROOT / "tests").with_suffix("")
    path = folder / f"{request.node.name}.txt"

    def check(text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"no golden file {path.relative_to(ROOT)}: run pytest --update-golden"
        assert text == path.read_text()

    return check
