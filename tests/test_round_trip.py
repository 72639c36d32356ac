import pytest
import torch

from mattecompress.named_pipelines import PIPELINES
from mattecompress.pipeline import Context
from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

BRIEF = {
    "brecq": "{iterations=2}",
    "qdrop": "{iterations=2}",
    "ptq4vm": "{iterations=2 epochs=1}",
}
"""How long a pipeline learns makes no difference to what it prints."""


@pytest.mark.parametrize("lowered", ["", ",lower"])
@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "lower"])
def test_every_named_pipeline_prints_and_parses_back(rvm: Program, name: str, lowered: str) -> None:
    clip = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    program = parse_pipeline(name + BRIEF.get(name, "") + lowered).run(rvm, Context(clips=[clip]))
    text = print_program(program)
    again = parse_program(text, program.state_dict())
    assert again == program
    assert print_program(again) == text
