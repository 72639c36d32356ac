import pytest
import torch

from mattecompress.pipeline_text import parse_pipeline
from mattecompress.program import Program
from mattecompress.text import digest, print_program
from mattecompress.text_parser import TextError, parse_program


def test_golden(tiny: Program, golden) -> None:
    golden(print_program(tiny))


def test_golden_open_sizes(tiny_open: Program, golden) -> None:
    golden(print_program(tiny_open))


def test_a_digest_is_of_the_values_alone() -> None:
    """Whatever strides they have; one value in all may have a stride of 0."""
    for values in (torch.rand(3, 4), torch.rand(1)):
        copies = values.T.contiguous().T, values[:1].expand(2, *values.shape[1:])[:1]
        assert digest(copies[0]) == digest(values) and digest(copies[1]) == digest(values[:1])


@pytest.mark.parametrize("passes", ["canonicalize", "fold-batch-norm", "partition-blocks,fold-batch-norm"])
def test_round_trips(tiny_open: Program, passes: str) -> None:
    program = parse_pipeline(passes).run(tiny_open)
    text = print_program(program)
    again = parse_program(text, program.state_dict())
    assert again == program
    assert print_program(again) == text
    inputs = {"src": torch.rand(1, 3, 8, 12), "r1i": torch.rand(1, 4, 4, 6)}
    for found, expected in zip(again.run(**inputs).values(), program.run(**inputs).values(), strict=True):
        assert torch.equal(found, expected)


def test_a_value_may_be_called_as_a_tensor_is() -> None:
    text = "matte 1\nprogram net level=float\nbuffer @mean f32[1] {}\n%x : f32[1] = input\n"
    text += "%mean : f32[1] = aten.sub.Tensor(%x, @mean)\nreturn y=%mean\n"
    tensor = torch.ones(1)
    program = parse_program(text.format(digest(tensor)), {"mean": tensor})
    names = [node.name for node in program.graph.nodes]
    assert len(names) == len(set(names)) and names == [node.name for node in program.clone().graph.nodes]
    assert print_program(program) == text.format(digest(tensor))


def test_equality_sees_every_bit(tiny: Program) -> None:
    other = tiny.clone()
    assert other == tiny
    with torch.no_grad():
        other.state_dict()["head.bias"][0] += 1e-6
    assert other != tiny


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("matte 1", "matte 9", "line 1: expected 'matte 1'"),
        ("aten.sigmoid.default", "aten.sigmoidal.default", "no operator 'aten.sigmoidal.default'"),
        ("aten.sigmoid.default(%r1i)", "os.system(%r1i)", "no operator 'os.system'"),
        ("aten.sigmoid.default(%r1i)", "operator.attrgetter(%r1i)", "no operator 'operator.attrgetter'"),
        ("aten.sigmoid.default(%r1i)", "aten.sigmoid.default(%nothing)", "%nothing is not defined above"),
        ("BatchNorm2d{", "BatchNorm3d{", "unknown module 'BatchNorm3d'; did you mean BatchNorm2d?"),
        ("return fgr", "stop fgr", "unknown line 'stop'"),
        (" scope=head", " region=", "'region=' says nothing"),
    ],
)
def test_refuses(tiny: Program, old: str, new: str, message: str) -> None:
    text = print_program(tiny)
    assert old in text
    with pytest.raises(TextError) as caught:
        parse_program(text.replace(old, new), tiny.state_dict())
    assert message in str(caught.value)


def test_refuses_other_weights(tiny: Program) -> None:
    tensors = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    tensors["head.bias"] += 1
    with pytest.raises(TextError, match="'head.bias' is not the one the text names"):
        parse_program(print_program(tiny), tensors)


def test_refuses_cut_text(tiny: Program) -> None:
    text = print_program(tiny)
    with pytest.raises(TextError, match="cut short"):
        parse_program("\n".join(text.splitlines()[:-1]), tiny.state_dict())


def test_a_module_allocates_no_more_than_the_file_holds(tiny: Program) -> None:
    text = print_program(tiny).replace("BatchNorm2d{features=8", "BatchNorm2d{features=10000000000000")
    with pytest.raises(
        TextError, match=r"'stem.1.bias' has shape \[8\], its module needs \[10000000000000\]"
    ):
        parse_program(text, tiny.state_dict())


def test_refuses_a_module_without_its_tensors(tiny: Program) -> None:
    lines = [line for line in print_program(tiny).splitlines() if "@stem.1.running_mean" not in line]
    with pytest.raises(TextError, match="module tensor 'stem.1.running_mean' is absent"):
        parse_program("\n".join(lines), tiny.state_dict())


def test_refuses_a_call_of_a_module_that_is_not_there(tiny: Program) -> None:
    text = print_program(tiny).replace("= @stem.1(", "= @stem.9(")
    with pytest.raises(TextError, match="reads what the text does not hold"):
        parse_program(text, tiny.state_dict())
