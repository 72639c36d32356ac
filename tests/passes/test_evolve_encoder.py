import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mattecompress.analysis.regions import regions_in_order
from mattecompress.capturing.tracing import capture
from mattecompress.models.binary_encoder import BinaryEncoder, EncoderPlan, Group
from mattecompress.models.binary_layers import Form
from mattecompress.modules.binary import BinaryConv2d
from mattecompress.modules.elastic_shortcut import ElasticShortcut
from mattecompress.options import parse_options
from mattecompress.passes.binarize import Binarize
from mattecompress.passes.evolve_encoder import EvolveEncoder
from mattecompress.passes.partition_blocks import PartitionBlocks
from mattecompress.pipeline import Context, PreconditionError
from mattecompress.program import Level, Program
from mattecompress.signature import Signature
from mattecompress.text import print_program
from mattecompress.text_parser import parse_program


class Encoder(nn.Module):
    """Features of 4 and 6 channels at 1/2 and 1/4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2, 1)
        self.second = nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f1 = self.first(x).relu()
        return f1, self.second(f1).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.reduce = nn.Conv2d(6, 5, 1)
        self.join = nn.Conv2d(9, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        f1, f2 = self.encoder(x)
        y = F.interpolate(self.reduce(f2), scale_factor=2, mode="bilinear", align_corners=False)
        y = y[:, :, : f1.shape[2], : f1.shape[3]]
        return self.head(self.join(torch.cat([y, f1], 1)))


def evolve(**options: object) -> EvolveEncoder:
    plan = {"stem": 8, "groups": ("8-16-4/2",), "widening": (12,)}
    return EvolveEncoder("encoder", **{**plan, **options})  # type: ignore[arg-type]


def program_of(height: int | str = 16, width: int | str = 24) -> Program:
    torch.manual_seed(0)
    return capture(Net().eval(), Signature((("x", (1, 3, height, width)),), ("y",)), "net")


@pytest.fixture(scope="module")
def program() -> Program:
    return program_of()


def test_golden(golden) -> None:
    """Its text; digests are of drawn weights, which PyTorch promises on no other processor."""
    result = evolve()(program_of("4*h", "4*w")).program
    for tensor in result.state_dict().values():
        tensor.zero_()
    golden(print_program(result))


def test_computes_what_the_network_of_the_plan_computes(program: Program) -> None:
    result = evolve()(program, Context(seed=3))
    assert result.modified
    assert result.notes == "1 groups and 1 sub-blocks in encoder; new weights in 2 layers that read it"
    expected = Net().eval()
    expected.encoder = BinaryEncoder(
        Form(binary=False, elastic=True), EncoderPlan(8, (Group(8, 16, 4, 2),), (12,))
    )
    expected.reduce, expected.join = nn.Conv2d(12, 5, 1), nn.Conv2d(13, 4, 3, padding=1)
    found = result.program.state_dict()
    assert set(found) < {*expected.state_dict(), "encoder.mean", "encoder.std"}
    expected.load_state_dict(found, strict=False)
    x = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(result.program.run(x=x)["y"], expected.eval()(x))


def test_keeps_what_reads_no_changed_feature(program: Program) -> None:
    before, after = program.state_dict(), evolve(stem=4)(program).program.state_dict()
    kept = {name for name in before if name in after and torch.equal(before[name], after[name])}
    assert kept == {"reduce.bias", "join.weight", "join.bias", "head.weight", "head.bias"}
    same = evolve(stem=4, widening=(6,))(program).program.state_dict()
    assert torch.equal(before["reduce.weight"], same["reduce.weight"])
    assert torch.equal(before["join.weight"], same["join.weight"])


def test_draws_from_the_seed(program: Program) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        return evolve()(program, Context(seed=seed)).program.state_dict()

    def equal(one: dict[str, Tensor], other: dict[str, Tensor], name: str) -> bool:
        return torch.equal(one[name], other[name])

    first, again, other = weights(1), weights(1), weights(2)
    assert all(equal(first, again, name) for name in first)
    drawn = ("encoder.feature.1.binary_3x3.weight", "encoder.joins.0.cross.factor", "join.weight")
    assert not any(equal(first, other, name) for name in drawn)
    state = torch.get_rng_state()
    weights(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_shortcuts_may_be_fixed(program: Program) -> None:
    assert len(evolve()(program).program.called_modules(ElasticShortcut)) == 10
    assert not evolve(shortcuts="fixed")(program).program.called_modules(ElasticShortcut)


def test_is_trained_binarized_and_partitioned(program: Program) -> None:
    result = evolve()(program).program
    assert result.level is Level.TRAINABLE
    assert parse_program(print_program(result), result.state_dict()) == result
    assert not evolve()(result).modified
    result.run(x=torch.rand(1, 3, 16, 24))["y"].sum().backward()
    assert all(parameter.grad is not None for parameter in result.graph_module.parameters())
    binary = Binarize("bimatting")(result)
    assert binary.notes.startswith("13 of 15 convolutions in one bit")
    calls = binary.program.called_modules(BinaryConv2d)
    ours = [call for call in calls if str(call.target).startswith("encoder.")]
    assert len(ours) == 11 and not any(binary.program.module(call).config.threshold for call in ours)
    partitioned = PartitionBlocks()(result).program
    assert [*regions_in_order(partitioned)][1:4] == [f"encoder.feature.{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ("8-16",)}, "'8-16' is no HEAD-MIDDLE-TAIL"),
        ({"groups": ("8-0-4/2",)}, "a block needs channels"),
        ({"groups": ("8-16-4",)}, "encoder gives 2 features, the plan 1"),
        ({"groups": ("8-16-4/2", "8-16-4/2")}, "encoder gives 2 features, the plan 3"),
    ],
)
def test_refuses_a_plan_that_does_not_fit(program: Program, options, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        evolve(**options)(program)


def test_refuses_what_is_no_encoder(program: Program, tiny: Program) -> None:
    with pytest.raises(PreconditionError, match="no operation comes from a module 'encoder'"):
        evolve()(tiny)
    with pytest.raises(PreconditionError, match="is evolved already, by another plan"):
        evolve(stem=4)(evolve()(program).program)
    with pytest.raises(PreconditionError, match="is no RGB frame"):
        EvolveEncoder("head", groups=(), widening=())(program)


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        f1, f2 = self.encoder(x)
        return self.head(f1 * F.interpolate(f2[:, :4], scale_factor=2.0))


def test_refuses_a_reader_that_cannot_be_fitted() -> None:
    program = capture(Scaled().eval(), Signature((("x", (1, 3, 16, 24)),), ("y",)), "net")
    with pytest.raises(PreconditionError, match="reads a feature whose channels change"):
        evolve()(program)


def test_its_text_is_its_options() -> None:
    text = "encoder=backbone stem=8 groups=[8-16-4/2,8-8-8] widening=[12,24] shortcuts=fixed"
    made = EvolveEncoder("backbone", 8, ("8-16-4/2", "8-8-8"), (12, 24), "fixed")
    assert str(made) == f"evolve-encoder{{{text}}}"
    assert parse_options(EvolveEncoder, text, "evolve-encoder") == made
