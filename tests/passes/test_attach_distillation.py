import pytest
import torch

from mattecompress.options import parse_options
from mattecompress.passes.attach_distillation import AttachDistillation
from mattecompress.passes.route_tokens import RouteTokens
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program
from tests.models.vit import random_inputs, tiny_program
from tests.passes.attention_nets import mixer


def distilled() -> tuple[Program, Program, Program]:
    """A teacher, a routed student made from it, and that student beside the teacher."""
    teacher = mixer(positioned=True, blocks=2)
    student = RouteTokens(limit=6)(teacher).program
    return teacher, student, AttachDistillation("0")(student, Context(teacher=teacher)).program


def test_golden(golden) -> None:
    golden(print_program(distilled()[2]))


def test_features_are_those_of_student_and_teacher() -> None:
    _, student, both = distilled()
    x = torch.randn(2, 3, 4, 8)
    outputs = both.run(x=x)
    assert torch.equal(outputs["y"], student.run(x=x)["y"])
    assert torch.equal(outputs["taught"], mixer(positioned=True).run(x=x)["y"])
    assert outputs["features"].shape == outputs["taught"].shape
    assert not torch.allclose(outputs["features"], outputs["taught"])
    assert parse_program(print_program(both), both.state_dict()) == both


def test_nothing_trains_the_teacher() -> None:
    _, student, both = distilled()
    assert (
        dict(both.graph_module.named_parameters()).keys()
        == dict(student.graph_module.named_parameters()).keys()
    )
    assert any(name.startswith("teacher.0.") for name in both.state_dict())
    outputs = both.run(x=torch.randn(2, 3, 4, 8))
    assert outputs["features"].requires_grad and not outputs["taught"].requires_grad


def test_comes_off_again() -> None:
    teacher, student, both = distilled()
    assert not AttachDistillation("0")(both, Context(teacher=teacher)).modified
    result = AttachDistillation(remove=True)(both)
    assert result.notes == "teacher removed" and result.program == student
    assert not AttachDistillation(remove=True)(student).modified


def test_a_pipeline_teaches_what_it_made() -> None:
    """The teacher of a pipeline is the float program that it begins with."""
    teacher = tiny_program()
    both = parse_pipeline("mematte,attach-distillation").run(teacher)
    assert both.output_names == ("alpha", "features", "taught")
    assert "teacher.backbone" in both.scopes and "teacher.decoder" not in both.scopes
    inputs = random_inputs(teacher)
    again = AttachDistillation()(teacher, Context(teacher=teacher)).program.run(**inputs)
    assert torch.equal(again["features"], again["taught"])
    assert torch.equal(again["taught"], both.run(**inputs)["taught"])


def test_refuses() -> None:
    teacher, student, _ = distilled()
    with pytest.raises(
        PreconditionError, match="there is no teacher: begin the pipeline with the float program"
    ):
        AttachDistillation("0")(student)
    with pytest.raises(PreconditionError, match="no operation of mixer comes from a module 'backbone'"):
        AttachDistillation()(student, Context(teacher=teacher))
    with pytest.raises(PreconditionError, match="the teacher takes image, trimap, the program x"):
        AttachDistillation("0")(student, Context(teacher=tiny_program()))
    with pytest.raises(
        PreconditionError, match="encoder holds RoutedAttention, TokenRefinement, TokenRouter"
    ):
        AttachDistillation("0")(student, Context(teacher=student))


def test_its_text_is_its_options() -> None:
    made = AttachDistillation("encoder", remove=True)
    assert str(made) == "attach-distillation{encoder=encoder remove=true}"
    assert parse_options(AttachDistillation, "encoder=encoder remove=true", "attach-distillation") == made
