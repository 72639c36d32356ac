from dataclasses import dataclass
from typing import ClassVar

import pytest

from mattecompress.errors import UserError
from mattecompress.named_pipelines import PIPELINES
from mattecompress.options import OptionError
from mattecompress.passes import PASSES
from mattecompress.pipeline import Context, Pass, PassError, Pipeline, PreconditionError, Step
from mattecompress.pipeline_text import PipelineError, load_pass, parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program


@pytest.mark.parametrize(
    "text",
    ["canonicalize", "set-resolution{height=96 width=160},fold-batch-norm,partition-blocks", *PIPELINES],
)
def test_text_round_trips(text: str) -> None:
    pipeline = parse_pipeline(text)
    assert str(parse_pipeline(str(pipeline))) == str(pipeline)
    assert text in PIPELINES or str(pipeline) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("canonicalise", "column 1: unknown pass 'canonicalise'; did you mean canonicalize?"),
        (
            "canonicalize,fold-batchnorm",
            "column 14: unknown pass 'fold-batchnorm'; did you mean fold-batch-norm or lower-batch-norm or fold-constants?",
        ),
        ("", "the pipeline is empty"),
        ("quantize{weights=4", "column 18: a '{' is not closed"),
        ("quantize}", "column 9: unexpected '}'"),
    ],
)
def test_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(
        OptionError, match="column 1: set-resolution: unknown option 'hight'; did you mean height"
    ):
        parse_pipeline("set-resolution{hight=2}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brecq{iterations=0}", "iterations=0"),
        ("qdrop{iterations=0}", "iterations=0"),
        ("ptq4vm{iterations=0}", "iterations=0"),
        ("ptq4vm{epochs=0}", "epochs=0"),
        ("sdpa{rows=0}", "rows=0"),
        ("mematte{limit=0}", "limit=0"),
        ("mematte{limit=-1}", "limit=-1"),
        ("calibrate-affine{rate=nan}", "'nan'"),
    ],
)
def test_refuses_numbers_that_mean_nothing(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_pipeline(text)


def test_every_registered_pass_says_what_it_gives() -> None:
    for name in PASSES:
        kind = load_pass(name)
        assert kind.name == name
        assert kind.__doc__ and kind.__doc__.strip().endswith(".")


def test_history_records_every_pass(tiny: Program) -> None:
    program = parse_pipeline("canonicalize,fold-batch-norm").run(tiny, Context(seed=7))
    assert [(record.text, record.seed) for record in program.history] == [
        ("canonicalize", 7),
        ("fold-batch-norm", 7),
    ]


def test_modified_is_honest(tiny_open: Program) -> None:
    def check(step: Step) -> None:
        same = [line for line in print_program(step.before).splitlines() if not line.startswith("pass ")] == [
            line for line in print_program(step.result.program).splitlines() if not line.startswith("pass ")
        ]
        assert step.result.modified is not same, str(step.step)

    passes = "set-resolution{height=8 width=12},canonicalize,fold-batch-norm,partition-blocks"
    parse_pipeline(f"{passes},canonicalize,fold-batch-norm,partition-blocks").run(
        tiny_open, after_each=[check]
    )


def test_a_pass_says_also_of_nothing_what_it_did(tiny: Program) -> None:
    step = load_pass("fold-batch-norm")()
    folded = step(tiny).program
    assert step(tiny).did == step(tiny).notes != ""
    assert step(folded).did == "changed nothing"


def test_wrong_order_names_pass_and_history(tiny: Program) -> None:
    with pytest.raises(
        PreconditionError, match=r"set-resolution.*already fixed.*passes so far: canonicalize"
    ):
        parse_pipeline("canonicalize,set-resolution{height=8 width=8}").run(tiny)


def test_a_pass_from_python_refuses_what_is_no_number(tiny: Program) -> None:
    with pytest.raises(OptionError, match="shift-activations: option 'slope': expected a finite number"):
        load_pass("shift-activations")(slope=float("nan"))(tiny)


@dataclass(frozen=True)
class BreakGraph(Pass):
    """Break a rule on purpose."""

    name: ClassVar[str] = "break-graph"

    def apply(self, program: Program, context: Context) -> str | None:
        program.output_names = ("fgr", "fgr", "r1o")
        return "broke it"


def test_a_pass_that_breaks_a_rule_is_caught(tiny: Program) -> None:
    with pytest.raises(PassError, match=r"break-graph: after break-graph: an output name is given twice"):
        Pipeline((BreakGraph(),)).run(tiny)


def test_the_given_program_is_never_changed(tiny_open: Program) -> None:
    before = print_program(tiny_open)
    parse_pipeline("set-resolution{height=8 width=8},fold-batch-norm").run(tiny_open)
    assert print_program(tiny_open) == before
