import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mattecompress import container
from mattecompress.files import UnwritableError
from mattecompress.measuring import sensitivity_plot
from mattecompress.measuring.sensitivity import Scanner
from tests.reconstruction.nets import FedBack, Trimapped, captured

Cli = Callable[..., Any]
WORDS = ("--calibration", "procedural:1", "--frames", 2, "--precisions", "w4a8,w8a8")


@pytest.fixture
def net_file(tmp_path: Path) -> str:
    container.save(captured(FedBack), tmp_path / "net.mcg")
    return "net.mcg"


def test_prints_tables_and_rules_that_opt_takes(done: Cli, net_file: str) -> None:
    lines = done("scan", net_file, *WORDS).out.splitlines()
    assert "x 1e6" in lines[0] and any("measured" in line for line in lines)
    assert lines[-1].startswith("canonicalize,") and ":w8a8" in lines[-1]
    done("opt", net_file, "-p", lines[-1], "--calibration", "procedural:1", "-o", "mixed.mcg")


def test_json_and_picture(done: Cli, net_file: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    words = ["--budget", 0.0005, "--picture", "scan.svg", "--json"]
    document = json.loads(done("scan", net_file, *WORDS, *words).out)
    assert {cell["precision"] for cell in document["cells"]} == {"w4a8", "w8a8"}
    assert set(document) == {"cells", "choices", "largest", "chosen", "smallest"}
    assert document["chosen"]["measured"] >= 0
    assert (tmp_path / "scan.svg").read_text().startswith("<?xml")


def test_a_trimap_goes_with_each_frame(done: Cli, tmp_path: Path) -> None:
    container.save(captured(Trimapped), tmp_path / "trimapped.mcg")
    document = json.loads(done("scan", "trimapped.mcg", *WORDS, "--json").out)
    assert {cell["precision"] for cell in document["cells"]} == {"w4a8", "w8a8"}


def test_prints_its_tables_before_it_draws(cli: Cli, net_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise UnwritableError("cannot write scan.png: no space")

    monkeypatch.setattr(sensitivity_plot, "require_matplotlib", lambda: None)
    monkeypatch.setattr(sensitivity_plot, "plot_scan", full)
    outcome = cli("scan", net_file, *WORDS, "--picture", "scan.png")
    assert outcome.code == 2 and outcome.err == "mattecompress: cannot write scan.png: no space\n"
    assert outcome.out.splitlines()[-1].startswith("canonicalize,")


def test_refuses_before_it_measures(
    refused: Callable[..., str], net_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Scanner, "error")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "the smallest choice has 0.000415 MiB" in refused("scan", net_file, *WORDS, "--budget", 0.0001)
    assert "'mattecompress[plot]'" in refused("scan", net_file, *WORDS, "--picture", "scan.png")
    said = refused("scan", net_file, *WORDS, "--picture", "scan.gif")
    assert said == "--picture scan.gif: name a file that ends in .png, .svg or .pdf"


def test_refuses(refused: Callable[..., str], net_file: str) -> None:
    assert "precision 'x': expected such as w4a8" in refused("scan", net_file, "--precisions", "x,w8a8")
    assert "is a folder" in refused("scan", net_file, "--picture", ".")
