import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from mattecompress import container
from mattecompress.passes.canonicalize import Canonicalize
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.pipeline import Context, Pass, PassError, Pipeline, PreconditionError, Step
from mattecompress.program import Program
from mattecompress.reproducer import run_with_reproducer
from mattecompress.text import print_program


@dataclass(frozen=True)
class Break(Pass):
    """Break a rule, or the pass itself."""

    crash: bool = False
    words: str = "it's so"
    name: ClassVar[str] = "break"

    def apply(self, program: Program, context: Context) -> str | None:
        if self.crash:
            raise RuntimeError("a defect")
        program.output_names = ("fgr", "fgr", "r1o")
        return "broke it"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("crash", "reason"), [(False, "an output name is given twice"), (True, "RuntimeError: a defect")]
)
def test_saves_what_the_pass_was_given(tiny: Program, here: Path, crash: bool, reason: str) -> None:
    pipeline = Pipeline((FoldBatchNorm(), Break(crash), Canonicalize()))
    with pytest.raises(PassError) as caught:
        run_with_reproducer(pipeline, tiny, Context(seed=9), options=["--calibration", "my clips"])
    (folder,) = here.iterdir()
    assert reason in str(caught.value)
    assert str(caught.value).endswith(f"to see it again: cd {folder} && sh reproduce.sh")
    given = Pipeline((FoldBatchNorm(),)).run(tiny, Context(seed=9))
    assert print_program(container.load(folder / "before.mcg")) == print_program(given)
    first, command = (folder / "reproduce.sh").read_text().splitlines()
    assert first == "#!/bin/sh"
    assert shlex.split(command) == [
        *["mattecompress", "opt", "before.mcg", "-p", f"{Break(crash)},canonicalize", "--seed", "9"],
        *["--calibration", "my clips", "--print-after", "all"],
    ]


def test_a_pass_that_is_used_wrongly_is_no_defect(tiny: Program, here: Path) -> None:
    @dataclass(frozen=True)
    class Refuse(Canonicalize):
        def requires(self, program: Program) -> None:
            raise PreconditionError("not this program")

    with pytest.raises(PreconditionError):
        run_with_reproducer(Pipeline((Refuse(),)), tiny, Context())
    assert not list(here.iterdir())


def test_a_closed_pipe_is_no_defect(tiny: Program, here: Path) -> None:
    def write(step: Step) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_with_reproducer(Pipeline((Canonicalize(),)), tiny, Context(), [write])
    assert not list(here.iterdir())


def test_returns_the_program_when_all_goes_well(tiny: Program) -> None:
    assert (
        run_with_reproducer(Pipeline((Canonicalize(),)), tiny, Context()).history[-1].text == "canonicalize"
    )
