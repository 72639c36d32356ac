"""The command line called in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mattecompress import container
from mattecompress.cli.app import main
from mattecompress.preparation import fix_size
from mattecompress.program import Program


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run the words as a command in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mattecompress", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return Outcome(int(left.value.code or 0), streams.out, streams.err)

    return call


@pytest.fixture
def done(cli: Cli) -> Cli:
    """The same, and it has to succeed."""

    def call(*words: object) -> Outcome:
        outcome = cli(*words)
        assert outcome.code == 0, outcome.err
        return outcome

    return call


@pytest.fixture
def refused(cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """The same, and it has to refuse: exit code 2, one line, nothing on standard output, nothing written."""

    def call(*words: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        outcome = cli(*words)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("mattecompress: ")
        assert outcome.err.count("\n") == 1
        assert outcome.err.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return outcome.err.removeprefix("mattecompress: ").rstrip("\n")

    return call


@pytest.fixture
def tiny_file(tiny_open: Program, tmp_path: Path) -> str:
    """At 16x24, the least that a procedural clip has."""
    container.save(fix_size(tiny_open, (16, 24)), tmp_path / "tiny.mcg")
    return "tiny.mcg"


@pytest.fixture
def open_file(tiny_open: Program, tmp_path: Path) -> str:
    container.save(tiny_open, tmp_path / "open.mcg")
    return "open.mcg"
