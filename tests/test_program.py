import pytest
import torch

from mattecompress.errors import InternalError
from mattecompress.program import Program


def test_a_constant_takes_no_name_that_is_taken(tiny: Program) -> None:
    program = tiny.clone()
    for name in ("stem.0.weight", "stem.0", "stem"):
        with pytest.raises(InternalError, match=f"@{name} is there already"):
            program.constant(name, torch.zeros(2))
    free = program.free_path("stem.0.weight")
    assert free == "stem.0.weight_1"
    assert program.tensor(program.constant(free, torch.zeros(2))).shape == (2,)
    assert program.state_dict()["stem.0.weight"].ndim == 4


def test_a_constant_gives_way_on_purpose(tiny: Program) -> None:
    program = tiny.clone()
    node = program.constant("stem.0.weight", torch.zeros(2), replaces=True)
    assert program.facts(node).shape == (2,)
    assert "stem.0.weight" in dict(program.graph_module.named_buffers())
