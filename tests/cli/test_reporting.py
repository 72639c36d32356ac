from pathlib import Path

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


def test_bad_input_leaves_nothing(cli: Cli, tiny_file: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = cli("report", tiny_file, "--reference", tmp_path / "none.mcg", "-o", page)
    assert result.code == 2 and "none.mcg: no such file" in result.err and not page.exists()
