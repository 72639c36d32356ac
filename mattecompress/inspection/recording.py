"""A pipeline's history in a folder: the program after each pass as text, what the pass did, and what it cost.

    index.json          {"format": 1, "program", "pipeline", "finished", "steps": [{"number", "pass", "text", ...}]}
    00-given.txt        the program that the pipeline was given
    01-NAME.txt         the program after the first pass
    01-NAME.json        its difference to the one before, as `mattecompress.inspection.difference.Difference`

Every file is written whole or not at all, and the index last, so that whoever reads it finds all that it names, also
while passes still run.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mattecompress.analysis.cost import cost
from mattecompress.analysis.propagation import program_symbols
from mattecompress.errors import UserError
from mattecompress.files import atomic_path
from mattecompress.inspection.difference import diff
from mattecompress.pipeline import Pipeline, Step
from mattecompress.program import Program
from mattecompress.text import print_program

FORMAT = 1
INDEX = "index.json"


class RecordError(UserError):
    """A folder holds no history, or something else."""


class Recorder:
    """Writes a history; an instance is a hook that a pipeline calls after each pass.

    Raises:
        RecordError: the folder holds something that is no history.
        UnwritableError: it cannot be written.
    """

    def __init__(self, folder: Path, program: Program, pipeline: Pipeline) -> None:
        if folder.is_dir() and any(folder.iterdir()):
            _clear(folder)
        self.folder = folder
        self.index: dict[str, Any] = {
            "format": FORMAT,
            "program": program.name,
            "pipeline": str(pipeline),
            "finished": False,
            "steps": [],
        }
        self.add(0, "given", program, {"pass": "", "seconds": 0.0, "modified": False, "notes": ""})

    def __call__(self, step: Step) -> None:
        """Record a pass."""
        name = f"{step.number:02d}-{step.step.name}.json"
        difference = diff(step.before, step.result.program)
        _write(self.folder / name, json.dumps(difference.as_json(), indent=1))
        facts = {
            "pass": str(step.step),
            "seconds": step.seconds,
            "modified": step.result.modified,
            "notes": step.result.did,
            "difference": name,
        }
        self.add(step.number, step.step.name, step.result.program, facts)

    def finish(self) -> None:
        """Say that no pass will follow."""
        self.index["finished"] = True
        self.save()

    def add(self, number: int, name: str, program: Program, facts: dict[str, Any]) -> None:
        """Write a program's text, then the index that names it."""
        text = f"{number:02d}-{name}.txt"
        _write(self.folder / text, print_program(program))
        totals = None if program_symbols(program) else asdict(cost(program).totals)
        known = {"text": text, "level": program.level.value, "nodes": len(list(program.operations()))}
        self.index["steps"].append({"number": number, **facts, **known, "totals": totals})
        self.save()

    def save(self) -> None:
        """Write the index."""
        _write(self.folder / INDEX, json.dumps(self.index, indent=1))


def read_history(folder: Path) -> dict[str, Any]:
    """The index of a history, finished or not.

    Raises:
        RecordError: there is none, or of another format.
    """
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{folder} holds no history; make one with `mattecompress opt --record`") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise RecordError(f"{folder}: its format is not {FORMAT}: record it again")
    steps = index.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RecordError(f"{folder}: the history is damaged or not whole: record it again")
    return index


def _clear(folder: Path) -> None:
    """Remove an earlier history, the index first."""
    index = read_history(folder)
    (folder / INDEX).unlink()
    for step in index["steps"]:
        for key in ("text", "difference"):
            name = step.get(key)
            if isinstance(name, str) and name and Path(name).name == name:
                (folder / name).unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)
