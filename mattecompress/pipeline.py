"""Passes and pipelines: what a pass promises, and how a list of them runs, is spelled and is recorded."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from mattecompress.analysis.propagation import propagate
from mattecompress.errors import InternalError, UserError
from mattecompress.interface import Clip
from mattecompress.options import format_options, require_finite
from mattecompress.program import Level, PassRecord, Program
from mattecompress.provenance import Tracing
from mattecompress.verify import VerifyError, verify


class PreconditionError(UserError):
    """A pass was given a program that it cannot work on: the pipeline is in the wrong order, or lacks a step."""


class PassError(InternalError):
    """A pass broke its own promise or the program's rules; a defect of the pass, with the passes that ran before."""


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    modified: whether the program differs from the one given.
    notes: a sentence on what was done, or on why nothing was, where there is more to say than that.
    """

    program: Program
    modified: bool
    notes: str = ""

    @property
    def did(self) -> str:
        """A sentence, also of nothing."""
        return self.notes if self.modified else ": ".join(filter(None, ["changed nothing", self.notes]))


@dataclass(frozen=True)
class Unchanged:
    """What a pass returns that might have changed the program and did not."""

    why: str


@dataclass
class Context:
    """What a pass may need besides the program.

    clips: calibration clips, each (T,3,H,W) float32 in 0..1, or as `mattecompress.running.feed.Feed` takes them.
    alphas: the true alpha of each clip, (T,1,H,W) float32 in 0..1 or None where it is unknown; empty for all unknown.
    teacher: the float program that a pass may compare with; a pipeline that begins with a float program takes that.
    seed: every random draw comes from it.
    progress: called with (done, total, what) by long passes.
    folder: where long passes keep what they need to resume.
    """

    clips: Sequence[Clip] = ()
    alphas: Sequence[Tensor | None] = ()
    teacher: Program | None = None
    seed: int = 0
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    folder: Path | None = None


def expect(condition: object, message: str) -> None:
    """Raise `PreconditionError` unless `condition` holds; for `requires` and `ensures`."""
    if not condition:
        raise PreconditionError(message)


class Pass(ABC):
    """One rewriting of a program: a frozen dataclass whose fields are its options.

    The docstring's first sentence says what holds before and after. `requires` is checked on the given
    program, `ensures` on the result. `apply` gets a copy that it may change, and returns a sentence on what
    it did, None when there was nothing to do, or `Unchanged` when what it tried is not worth keeping.
    """

    name: ClassVar[str]

    def requires(self, program: Program) -> None:  # noqa: B027  nothing is required unless a pass says so
        """Raise `PreconditionError` when the program is not one that the pass can work on."""

    def ensures(self, program: Program) -> None:  # noqa: B027  nothing is promised unless a pass says so
        """Raise `PreconditionError` when the result is not what the pass promises."""

    @abstractmethod
    def apply(self, program: Program, context: Context) -> str | Unchanged | None:
        """Change the program in place; say what was done, None for nothing, or why that is not kept."""

    def __call__(self, program: Program, context: Context | None = None) -> PassResult:
        """Run the pass on a copy, check its promises, and verify the result.

        Raises:
            OptionError: an option is a number that is not finite.
            PreconditionError: the program is not one that the pass can work on.
            PassError: the result breaks the pass's promise or a rule of programs.
        """
        require_finite(self, self.name)
        self.requires(program)
        result = program.clone()
        with Tracing(result, self.name) as provenance:
            notes = self.apply(result, context or Context())
        if notes is None:
            return PassResult(program, modified=False)
        if isinstance(notes, Unchanged):
            return PassResult(program, modified=False, notes=notes.why)
        result.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        provenance.write()
        result.graph_module.recompile()
        remove_unread_tensors(result)
        propagate(result)
        try:
            self.ensures(result)
            verify(result)
        except (PreconditionError, VerifyError) as error:
            raise PassError(f"after {self}: {error}") from error
        return PassResult(result, modified=True, notes=notes)

    def __str__(self) -> str:
        return format_options(self.name, self)

    __repr__ = __str__


def remove_unread_tensors(program: Program) -> None:
    """Drop every tensor and module that the graph no longer reads."""
    module = program.graph_module
    read = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_module"}
    for name in program.state_dict():
        path, _, leaf = name.rpartition(".")
        owned = any(name.startswith(f"{prefix}.") for prefix in called)
        if name not in read and not owned:
            delattr(module.get_submodule(path), leaf)
    module.delete_all_unused_submodules()


@dataclass(frozen=True)
class Step:
    """A pass that has run within a pipeline: the programs before and after, its notes, and seconds."""

    number: int
    step: Pass
    before: Program
    result: PassResult
    seconds: float


Hook = Callable[[Step], None]
Announcement = Callable[[Pass, Program], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Its text and `repr` are one spelling, which parses back."""

    passes: tuple[Pass, ...] = field(default=())

    def run(
        self,
        program: Program,
        context: Context | None = None,
        after_each: Sequence[Hook] = (),
        before_each: Sequence[Announcement] = (),
    ) -> Program:
        """Run all passes; each is recorded in the program's history, whether or not it changed anything.

        after_each: called after every pass with what it did: printing, timing, dumping.
        before_each: called before every pass with the pass and the program that it is given.

        Raises:
            PreconditionError, PassError: with the passes that had run so far.
        """
        context = context or Context()
        if context.teacher is None and program.level is Level.FLOAT:
            context = replace(context, teacher=program)
        for number, step in enumerate(self.passes, start=1):
            for announce in before_each:
                announce(step, program)
            start = time.perf_counter()
            try:
                result = step(program, context)
            except (PreconditionError, PassError) as error:
                done = ", ".join(map(str, self.passes[: number - 1])) or "none"
                raise type(error)(f"{step}: {error} (passes so far: {done})") from error
            seconds = time.perf_counter() - start
            after = result.program if result.modified else program.clone()
            after.history = (*program.history, PassRecord(str(step), context.seed, seconds))
            for hook in after_each:
                hook(Step(number, step, program, PassResult(after, result.modified, result.notes), seconds))
            program = after
        return program

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    __repr__ = __str__
