import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mattecompress.cli.options import ArgumentError
from mattecompress.cli.reporting import names_of
from tests.cli.conftest import Cli


def test_page(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    made, page = tmp_path / "w4.mcg", tmp_path / "report.html"
    words = ("--calibration", "procedural:1", "--clips", 1, "--frames", 2)
    done("opt", tiny_file, "-p", "mse{weights=4}", *words, "-o", made)
    clip = ("--data", "procedural:2", "--frames", 2)
    done("report", made, "--reference", tiny_file, *clip, "-o", page)
    text = page.read_text()
    assert "Signal to noise by region" in text and "w4 alpha" in text
    assert "Numbers of the affine calibration" not in text


def test_programs_of_one_name_stay_apart(done: Cli, tiny_file: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / tiny_file, tmp_path / folder / "w4.mcg")
    clip = ("--data", "procedural:2", "--frames", 1)
    said = done(
        "report", "one/w4.mcg", "two/w4.mcg", "--reference", tiny_file, *clip, "-o", "report.html"
    ).err
    assert "2 programs on 1 frames" in said
    page = (tmp_path / "report.html").read_text()
    assert "one/w4 alpha" in page and "two/w4 alpha" in page


def test_names_are_as_short_as_they_differ() -> None:
    paths = ["a/x/w4.mcg", "b/x/w4.mcg", "b/y/w4.mcg", "deep/w8.v2.mcg"]
    assert names_of([Path(path) for path in paths]) == ["a/x/w4", "b/x/w4", "y/w4", "w8.v2"]
    with pytest.raises(ArgumentError, match=r"a/w4\.mcg is named twice"):
        names_of([Path("a/w4.mcg"), Path("a/w4.mcg")])


def test_refuses_a_program_twice(refused: Callable[..., str], tiny_file: str) -> None:
    said = refused("report", tiny_file, tiny_file, "--reference", tiny_file, "-o", "report.html")
    assert said == "tiny.mcg is named twice: name each program once"


def test_bad_input_leaves_nothing(cli: Cli, tiny_file: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = cli("report", tiny_file, "--reference", tmp_path / "none.mcg", "-o", page)
    assert result.code == 2 and "none.mcg: no such file" in result.err and not page.exists()
