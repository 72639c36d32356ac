import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.capturing.tracing import capture
from mattecompress.facts import Facts
from mattecompress.modules.elastic_shortcut import ElasticShortcut, map_shortcut
from mattecompress.options import parse_options
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.insert_elastic_shortcuts import InsertElasticShortcuts, stride_between
from mattecompress.passes.lower_binary import LowerBinary
from mattecompress.passes.partition_blocks import PartitionBlocks
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.program import Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program

EVERYTHING = {"exclude_first": False, "exclude_last": False}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def program_of(net: nn.Module, size: tuple[int | str, int | str] = (6, 7)) -> Program:
    return capture(net.eval(), Signature((("x", (1, 4, *size)),), ("y",)), "net")


def shortcuts(program: Program) -> dict[str, ElasticShortcut]:
    calls = program.called_modules(ElasticShortcut)
    return {str(call.target): program.module(call) for call in calls}  # type: ignore[misc]


def test_golden(tiny_open: Program, golden) -> None:
    golden(print_program(InsertElasticShortcuts()(tiny_open).program))


@pytest.mark.parametrize("size", [(6, 7), ("2*h", "2*w")])
@pytest.mark.parametrize("stride", [1, 2])
def test_adds_the_mapped_input_behind_the_batch_norm(size: tuple[int | str, int | str], stride: int) -> None:
    net = nn.Sequential(nn.Conv2d(4, 6, 3, stride, 1), nn.BatchNorm2d(6), nn.ReLU())
    result = InsertElasticShortcuts(initial=0.5, **EVERYTHING)(program_of(net, size))
    assert result.modified and result.notes == "1 shortcuts over 1 layers"
    assert list(shortcuts(result.program)) == ["0_shortcut"]
    x = torch.randn(1, 4, 6, 7)
    with torch.no_grad():
        expected = F.relu(net[1](net[0](x)) + 0.5 * map_shortcut(x, 6, stride))
        assert torch.equal(result.program.run(x=x)["y"], expected)


@pytest.mark.parametrize("around", ["layers", "blocks"])
def test_a_factor_of_zero_changes_nothing(rvm: Program, around: str) -> None:
    program = PartitionBlocks()(rvm).program
    result = InsertElasticShortcuts(around, initial=0.0)(program)  # type: ignore[arg-type]
    sizes = {node.name: program.facts(node).sizes for node in program.inputs}
    inputs = {name: torch.rand(shape) for name, shape in sizes.items()}
    with torch.no_grad():
        before, after = program.run(**inputs), result.program.run(**inputs)
    assert result.modified and len(shortcuts(result.program)) > 10
    for name in before:
        assert torch.equal(before[name], after[name])


def test_leads_over_every_layer_that_can_become_one_bit(rvm: Program) -> None:
    program = InsertElasticShortcuts()(rvm).program
    binary = Binarize("bimatting")(rvm).notes.split(" ")[0]
    assert len(shortcuts(program)) == int(binary)
    again = InsertElasticShortcuts()(program)
    assert not again.modified


def test_before_and_after_binarizing_are_the_same(tiny: Program) -> None:
    first = Binarize("bimatting")(InsertElasticShortcuts()(tiny).program).program
    second = InsertElasticShortcuts()(Binarize("bimatting")(tiny).program).program
    inputs = {"src": torch.rand(1, 3, 12, 16), "r1i": torch.rand(1, 4, 6, 8)}
    assert list(shortcuts(first)) == list(shortcuts(second)) == ["middle.0_shortcut"]
    assert torch.equal(first.run(**inputs)["pha"], second.run(**inputs)["pha"])


def test_a_layer_that_is_called_a_shortcut_already_keeps_its_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.conv_shortcut = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.conv_shortcut(x)

    program = program_of(Net())
    result = InsertElasticShortcuts(initial=0.0, **EVERYTHING)(program).program
    assert list(shortcuts(result)) == ["conv_shortcut_1", "conv_shortcut_shortcut"]
    x = torch.randn(1, 4, 6, 7)
    assert torch.equal(result.run(x=x)["y"], program.run(x=x)["y"])


def test_trains_its_factors_and_prints_and_parses(tiny: Program) -> None:
    program = InsertElasticShortcuts(**EVERYTHING)(tiny).program
    assert program.level is Level.TRAINABLE
    assert parse_program(print_program(program), program.state_dict()) == program
    program.run(src=torch.rand(1, 3, 12, 16), r1i=torch.rand(1, 4, 6, 8))["fgr"].sum().backward()
    assert all(layer.factor.grad is not None for layer in shortcuts(program).values())


def test_draws_factors_from_the_seed(rvm: Program) -> None:
    program = PartitionBlocks()(rvm).program

    def factors(seed: int) -> list[float]:
        result = InsertElasticShortcuts("blocks", initial=None)(program, Context(seed=seed))
        return [layer.factor.item() for layer in shortcuts(result.program).values()]

    assert factors(1) == factors(1) != factors(2)
    assert all(0 <= factor < 1 for factor in factors(1))


def test_blocks_are_regions_with_one_way_in_and_out(rvm: Program) -> None:
    program = PartitionBlocks()(rvm).program
    result = InsertElasticShortcuts("blocks", exclude=("backbone.features.3",))(program)
    assert "backbone.features.2_shortcut" in shortcuts(result.program)
    assert "backbone.features.3_shortcut" not in shortcuts(result.program)
    assert not [path for path in shortcuts(result.program) if path.startswith("decoder.decode3")]
    assert PartitionBlocks()(result.program).program.has_regions


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


def test_a_layer_called_twice_gets_a_factor_for_each_call() -> None:
    program = InsertElasticShortcuts(**EVERYTHING)(program_of(Twice())).program
    assert list(shortcuts(program)) == ["conv_shortcut", "conv_shortcut_1"]


def test_leaves_other_strides_alone() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3, 3), nn.ReLU())
    assert not InsertElasticShortcuts(**EVERYTHING)(program_of(net)).modified


@pytest.mark.parametrize(
    ("before", "behind", "stride"),
    [
        ((1, 3, 45, 80), (1, 8, 23, 40), 2),
        ((1, 3, "16*h", 5), (1, 8, "16*h", 5), 1),
        ((1, 3, "16*h", 5), (1, 8, "8*h", 3), 2),
        ((1, 3, "16*h", 5), (1, 8, "4*h", 3), None),
        ((1, 3, 6, 6), (1, 8, 4, 4), None),
        ((2, 3, 6, 6), (1, 8, 6, 6), None),
        ((1, 3, 1, 1), (1, 8, 1, 1), 1),
        ((3, 6, 6), (1, 8, 6, 6), None),
    ],
)
def test_stride_between(before, behind, stride: int | None) -> None:
    assert stride_between(Facts(before, torch.float32), Facts(behind, torch.float32)) == stride


def test_refuses_what_it_cannot_work_on(tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="run partition-blocks before"):
        InsertElasticShortcuts("blocks")(tiny)
    with pytest.raises(PreconditionError, match="did you mean middle.0"):
        InsertElasticShortcuts(exclude=("midle.0",))(tiny)
    with pytest.raises(PreconditionError, match="insert shortcuts before lowering"):
        InsertElasticShortcuts()(LowerBinary()(Binarize("bnn")(tiny).program).program)


def test_its_text_is_its_options() -> None:
    made = InsertElasticShortcuts("blocks", initial=None, exclude=("a.*",))
    assert str(made) == "insert-elastic-shortcuts{around=blocks initial=none exclude=[a.*]}"
    assert parse_options(InsertElasticShortcuts, "around=blocks initial=none exclude=[a.*]", "x") == made
