import pytest

from mattecompress.backends.tvm.freestanding.library import (
    LibraryError,
    Ports,
    find_ports,
    identifier,
    write_library,
)
from mattecompress.backends.tvm.freestanding.plan import Place, Plan, StateSlots, Step, TensorSpec
from mattecompress.backends.tvm.targets import find_target


@pytest.mark.parametrize(
    ("name", "result"), [("rvm", "rvm"), ("rvm-w4a8", "rvm_w4a8"), ("4bit", "_4bit"), ("float", "float_")]
)
def test_identifiers(name, result):
    assert identifier(name) == result


@pytest.mark.parametrize(
    "name", ["", 'x"; system("rm")', "a/b", "../a", ".hidden", "a b", "a\n", "naïve", "*/"]
)
def test_names_that_could_break_out_are_refused(name):
    with pytest.raises(LibraryError, match="cannot be a name in C"):
        identifier(name)


def plan(inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], states=()) -> Plan:
    specs = [tuple(TensorSpec(n, s, "float32") for n, s in tensors.items()) for tensors in (inputs, outputs)]
    return Plan(specs[0], specs[1], (), tuple(states), (None,) * len(outputs), b"", 0)


PICTURE, MATTE = (1, 3, 8, 8), (1, 1, 8, 8)
ENTER, LEAVE = (Place("input", 0), Place("old", 0)), (Place("new", 0), Place("output", 1))
STATE = StateSlots(0, 1, (0, 0), 256, Step("", ENTER, 256), Step("", LEAVE, 256))


@pytest.mark.parametrize(
    ("inputs", "outputs", "states", "ports"),
    [
        ({"src": PICTURE}, {"fgr": PICTURE, "pha": MATTE}, (), Ports(0, 1)),
        (
            {"r": MATTE, "src": PICTURE},
            {"pha": MATTE, "s": MATTE},
            (STATE,),
            Ports(1, 0),
        ),
        ({"image": (1, 4, 8, 8)}, {"matte": MATTE}, (), Ports(0, 0)),
        ({"image": PICTURE, "trimap": MATTE}, {"pha": MATTE}, (), None),
        ({"src": PICTURE}, {"one": MATTE, "two": MATTE}, (), None),
        ({"src": PICTURE}, {"label": (1, 10)}, (), None),
        ({"src": (3, 8, 8)}, {"pha": MATTE}, (), None),
    ],
)
def test_ports_are_the_one_frame_and_the_one_matte(inputs, outputs, states, ports):
    assert find_ports(plan(inputs, outputs, states)) == ports


def test_hostile_tensor_names_are_refused(tmp_path):
    with pytest.raises(LibraryError):
        write_library(tmp_path, "x", find_target("host"), plan({'a", 0}; int b = {"': PICTURE}, {}), {})


def test_nine_dimensions_are_too_many(tmp_path):
    with pytest.raises(LibraryError, match="x has 9 dimensions"):
        write_library(tmp_path, "x", find_target("host"), plan({"x": (1,) * 9}, {}), {})


def test_an_output_named_like_an_input_is_another_argument(tmp_path):
    write_library(tmp_path, "x", find_target("host"), plan({"alpha": PICTURE}, {"alpha": MATTE}), {})
    assert "(x_stream *self, const float *alpha, float *alpha_out);" in (tmp_path / "x.h").read_text()
