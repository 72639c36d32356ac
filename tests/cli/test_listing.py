import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mattecompress.cli.app import app
from mattecompress.named_pipelines import PIPELINES
from mattecompress.passes import PASSES

Cli = Callable[..., Any]

VERBS = sorted(command.name or command.callback.__name__ for command in app.registered_commands)
COMMAND = [sys.executable, "-m", "mattecompress"]


def test_verbs() -> None:
    listed = (
        "bench bisect build capture compose demo diff doctor eval inspect models opt passes pipelines recipes report run "
        "scan targets train"
    )
    assert " ".join(VERBS) == listed


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(done: Cli, verb: str) -> None:
    shown = " ".join(done(verb, "--help").out.split())
    assert f"mattecompress {verb}" in shown.partition("Usage:")[2].partition(f"mattecompress {verb}")[2]


def test_help_without_a_verb(done: Cli) -> None:
    shown = done().out
    assert all(verb in shown for verb in VERBS)
    assert done("--help").out.split() == shown.split()


def test_version(done: Cli) -> None:
    assert done("--version").out == "mattecompress 0.1.0\n"


def test_lists(done: Cli) -> None:
    assert "rvm-mobilenetv3      weights shipped" in done("models").out
    passes = done("passes").out
    assert all(f"{name}\n    " in passes for name in PASSES)
    assert "options: weights=8, activations=8, range=mse, first=8, last=none, exclude=[refiner.*]" in passes
    assert all(name in done("pipelines").out for name in PIPELINES)
    assert "cortex-a76    aarch64-linux-gnu" in done("targets").out
    assert "rvm-small        rvm-mobilenetv3, " in done("recipes").out


def test_doctor(done: Cli) -> None:
    shown = done("doctor").out
    findings = json.loads(done("doctor", "--json").out)
    assert [finding["subject"] for finding in findings][:2] == ["python", "torch"]
    for finding in findings:
        assert finding.keys() == {"subject", "good", "detail", "mend"}
        assert finding["good"] or finding["mend"]
        assert f"{'ok' if finding['good'] else 'NO'} {finding['subject']}" in shown


def test_as_a_command_of_its_own(tmp_path: Path) -> None:
    """Help needs no torch; errors take one line; completion answers."""
    code = (
        "import sys; sys.argv = ['mattecompress', '--help']\n"
        "from mattecompress.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n    sys.stderr.write(f'torch={\"torch\" in sys.modules}')\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "torch=False")
    failed = subprocess.run(
        [*COMMAND, "inspect", "none.mcg"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    message = "mattecompress: none.mcg: no such file; make one with `mattecompress capture`\n"
    assert (failed.returncode, failed.stdout, failed.stderr) == (2, "", message)


def test_completion() -> None:
    script = Path(sys.executable).with_name("mattecompress")
    if not script.is_file():
        pytest.skip("the package is not installed as a command")
    asked = {
        "_MATTECOMPRESS_COMPLETE": "complete_bash",
        "COMP_WORDS": "mattecompress ins",
        "COMP_CWORD": "1",
    }
    given = subprocess.run([script], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert given.stdout.split() == ["inspect"]
    show = subprocess.run(
        [script, "--show-completion", "bash"],
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "complete_bash" in show.stdout
