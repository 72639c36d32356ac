"""Bad input leaves with exit code 2, one line that says what, where and how to mend it, and no trace."""

import builtins
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mattecompress import container
from mattecompress.data.video import write_frames
from mattecompress.files import UnwritableError
from mattecompress.models import build_model
from mattecompress.preparation import fix_size
from mattecompress.program import Program
from tests.data.datasets.folders import backgrounds, composed, picture, videomatte

Refused = Callable[..., str]
Cli = Callable[..., Any]


def test_unknown_verb_names_the_nearest(refused: Refused) -> None:
    assert "'inspekt'. Did you mean 'inspect'" in refused("inspekt")


def test_unknown_option_names_the_nearest(refused: Refused, tiny_file: str) -> None:
    message = refused("inspect", tiny_file, "--jso")
    assert "--jso" in message and "--json" in message and "mattecompress inspect --help" in message


def test_missing_program(refused: Refused) -> None:
    assert refused("inspect", "none.mcg") == "none.mcg: no such file; make one with `mattecompress capture`"


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04" + bytes(200)])
def test_a_file_that_is_no_program(refused: Refused, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mcg").write_bytes(content)
    assert "bad.mcg: not a .mcg file, or damaged" in refused("inspect", "bad.mcg", "--text")


def test_damaged_programs(refused: Refused, tiny_file: str, tmp_path: Path) -> None:
    whole = (tmp_path / tiny_file).read_bytes()
    for name, content in {
        "cut.mcg": whole[: len(whole) // 2],
        "text.mcg": whole.replace(b"aten.relu.default", b"aten.relo.default"),
        "op.mcg": whole.replace(b"return fgr=", b"retorn fgr="),
        "shape.mcg": whole.replace(b"f32[1,3,16,24]", b"f32[1,3,16,28]"),
    }.items():
        assert content != whole
        (tmp_path / name).write_bytes(content)
        assert refused("inspect", name).startswith(f"{name}: ")


def test_checkpoint_of_another_variant(refused: Refused, tmp_path: Path) -> None:
    weights = build_model("rvm-resnet50", untrained=True).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "resnet.safetensors")
    message = refused("capture", "rvm-mobilenetv3", "--checkpoint", "resnet.safetensors")
    assert "holds rvm-resnet50 weights, not rvm-mobilenetv3" in message


def test_checkpoint_that_is_none(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 4)
    assert "noise.pth" in refused("capture", "rvm-mobilenetv3", "--checkpoint", "noise.pth")
    assert "no such checkpoint" in refused("capture", "rvm-mobilenetv3", "--checkpoint", "none.pth")


def test_unknown_model(refused: Refused) -> None:
    assert "did you mean rvm-mobilenetv3" in refused("capture", "rvm-mobilenetv2")


@pytest.mark.parametrize("size", ["100", "0x0", "12x", "-1x16", "12x16x3", "٣x٣"])
def test_malformed_size(refused: Refused, tiny_file: str, size: str) -> None:
    message = refused("inspect", tiny_file, f"--size={size}")
    assert message == f"--size '{size}': expected HEIGHTxWIDTH, such as 288x512"


def test_size_that_the_network_cannot_take(refused: Refused, open_file: str) -> None:
    assert "height 271 is not a multiple of 2: take 272" in refused("inspect", open_file, "--size", "271x480")


def test_size_of_a_fixed_program(refused: Refused, tiny_file: str) -> None:
    assert "takes frames of 16x24, not 24x32" in refused("inspect", tiny_file, "--size", "24x32")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--inputs", "1x3xhx16"], "expected [NAME=]SHAPE, such as src=1x3x288x512"),
        (["--inputs", "1x3x0x16"], "expected [NAME=]SHAPE"),
        ([], "add --inputs 1x3x288x512"),
        (["--inputs", "1x3x8x8", "--state", "r1i"], "expected INPUT=OUTPUT"),
        (["--inputs", "1x3x8x8", "--state", "a=b"], "no input is called 'a'"),
        (["--inputs", "1x3x8x8", "--inputs", "src=1x1x8x8"], "two inputs are called 'src'"),
        (["--inputs", "1x3x8x8", "--state", "src=next"], "no output is called 'next'; known: alpha"),
        (["--inputs", "1x3x8x8", "--checkpoint", "w.pth"], "--checkpoint does not apply"),
        (["--inputs", "1x3x8x8", "--ratio", "0.5"], "--ratio does not apply"),
        (["--inputs", "1x3x8x8"], "cannot build torch.nn:Nothing"),
    ],
)
def test_function_capture(refused: Refused, words: list[str], expected: str) -> None:
    assert expected in refused("capture", "torch.nn:Nothing", *words)


def test_a_function_that_builds_no_network(refused: Refused) -> None:
    message = refused("capture", "builtins:dict", "--inputs", "1x3x8x8")
    assert "it has to return a torch.nn.Module" in message


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--refiner", "deep_guided"], "did you mean deep_guided_filter"),
        (["--ratio", "0"], "--ratio 0"),
        (["--ratio", "2"], "--ratio 2"),
        (["--ratio", "0.5"], "add --size"),
        (["--inputs", "1x3x8x8"], "--inputs does not apply to rvm-mobilenetv3"),
        (["--preprocessing", "other"], "--preprocessing 'other' is unknown"),
        (["--keep-known"], "rvm-mobilenetv3 has no option keep-known; known: refiner"),
    ],
)
def test_named_capture(refused: Refused, words: list[str], expected: str) -> None:
    assert expected in refused("capture", "rvm-mobilenetv3", *words)


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (
            "fold-batchnorm",
            "column 1: unknown pass 'fold-batchnorm'; did you mean fold-batch-norm or lower-batch-norm or fold-constants?",
        ),
        ("canonicalize,qantize", "column 14: unknown pass 'qantize'; did you mean quantize or"),
        ("quantize{weihgts=4}", "unknown option 'weihgts'; did you mean weights or"),
        ("quantize{weights=many}", "option 'weights': expected int, got 'many'"),
        ("quantize{weights=4", "a '{' is not closed"),
        ("", "the pipeline is empty"),
        ("quantize", "run fold-batch-norm before quantize (passes so far: none)"),
        ("set-resolution{height=24 width=32}", "already fixed"),
        ("lower-binary,set-resolution{height=2 width=2}", "(passes so far: lower-binary)"),
        ("fold-batch-norm,quantize", "add --calibration"),
    ],
)
def test_pipelines(refused: Refused, tiny_file: str, pipeline: str, expected: str) -> None:
    assert expected in refused("opt", tiny_file, "-p", pipeline, "-o", "out.mcg")


def test_calibration_of_single_frames(refused: Refused, tiny_file: str) -> None:
    words = ["-p", "ptq4vm{iterations=1}", "--calibration", "procedural", "--clips", 1, "--frames", 1]
    assert "every sequence has one frame" in refused("opt", tiny_file, *words, "-o", "out.mcg")


def test_calibration_of_pictures_of_two_sizes(refused: Refused, open_file: str, tmp_path: Path) -> None:
    for number, size in enumerate(((16, 24), (24, 16))):
        write_frames(tmp_path / "pictures" / f"{number}.png", [torch.zeros(3, *size)])
    words = ["-p", "mse", "--calibration", "pictures", "-o", "out.mcg"]
    assert "frame 1 is 24x16, the first is 16x24" in refused("opt", open_file, *words)


@pytest.mark.parametrize("option", ["--print-after", "--print-before", "--stop-after"])
def test_pass_that_is_not_in_the_pipeline(refused: Refused, tiny_file: str, option: str) -> None:
    message = refused("opt", tiny_file, "-p", "canonicalize", option, "canonicalise")
    assert "no pass 'canonicalise' in the pipeline; did you mean canonicalize?" in message


@pytest.mark.parametrize("source", ["none.mp4", "garbage.mp4", "empty", "procedural:x", "notes.txt"])
@pytest.mark.parametrize("verb", ["run", "eval", "opt"])
def test_clips_that_cannot_be_read(
    refused: Refused, tiny_file: str, tmp_path: Path, verb: str, source: str
) -> None:
    (tmp_path / "garbage.mp4").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "empty").mkdir()
    words = {
        "run": ["--alpha", "alpha.mp4", "--input", source],
        "eval": ["--json", "--data", source],
        "opt": ["-p", "canonicalize", "-o", "out.mcg", "--calibration", source],
    }
    assert source in refused(verb, tiny_file, *words[verb])


@pytest.mark.parametrize(
    "words",
    [
        ["opt", "-p", "canonicalize", "-o", "plain/out.mcg"],
        ["opt", "-p", "canonicalize", "-o", "plain/deep/out.mcg"],
        ["opt", "-p", "canonicalize", "-o", "folder"],
        ["build", "-o", "plain"],
        ["build", "-o", "plain/dist", "--emit", "onnx"],
        ["run", "--input", "procedural", "--alpha", "plain/alpha.mp4"],
        ["run", "--input", "procedural", "--alpha", "plain/mattes"],
    ],
)
def test_places_that_cannot_be_written(
    refused: Refused, tiny_file: str, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "plain").write_text("a file")
    (tmp_path / "folder").mkdir()
    verb, *rest = words
    assert refused(verb, tiny_file, *rest).startswith("cannot write ")


def test_a_write_that_fails_late_leaves_nothing(
    refused: Refused, tiny_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnwritableError("cannot write out.mcg: no space left on device; choose another place")

    monkeypatch.setattr("mattecompress.container.save", fail)
    assert "no space left" in refused("opt", tiny_file, "-p", "canonicalize", "-o", "out.mcg")


def test_matte_over_its_own_input(refused: Refused, tiny_file: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"precious")
    assert "overwrite" in refused("run", tiny_file, "--input", "clip.mp4", "--alpha", "clip.mp4")


def test_unknown_format_and_colour(refused: Refused, tiny_file: str) -> None:
    words = ["run", tiny_file, "--input", "procedural"]
    assert "cannot write .avi" in refused(*words, "--alpha", "alpha.avi")
    assert "'green' is no colour" in refused(*words, "--alpha", "alpha.mp4", "--composite", "green")


def test_unknown_target_backend_form_and_peer(refused: Refused, tiny_file: str) -> None:
    assert "did you mean cortex-a76" in refused("build", tiny_file, "--target", "cortex-a77")
    assert "did you mean onnx" in refused("build", tiny_file, "--emit", "onx")
    assert "leave --target and --linker out" in refused(
        "build", tiny_file, "--emit", "onnx", "--target", "cortex-a76"
    )
    assert "for cortex-a76 take --emit exe or lib" in refused(
        "build", tiny_file, "--emit", "so", "--target", "cortex-a76"
    )
    assert "unknown backend 'tvn'; did you mean tvm" in refused("eval", tiny_file, "--backend", "tvn")
    assert "did you mean torch" in refused("bench", tiny_file, "--against", "torhc")
    assert "expected HOST:PORT" in refused("bench", tiny_file, "--rpc", "board")
    assert "no RPC server at 127.0.0.1:1" in refused("bench", tiny_file, "--rpc", "127.0.0.1:1")
    assert "other than host" in refused("bench", tiny_file, "--emulate", "host")
    assert "did you mean cortex-a76" in refused("bench", tiny_file, "--emulate", "cortex-a7")


def test_times(refused: Refused, tiny_file: str, tmp_path: Path) -> None:
    assert "holds no times: measure with" in refused("inspect", tiny_file, "--times", "absent.json")
    (tmp_path / "times.json").write_text("[1")
    assert "holds no times: measure with" in refused("inspect", tiny_file, "--times", "times.json")
    (tmp_path / "folder").mkdir()
    assert "it is a folder" in refused("bench", tiny_file, "--nodes", "--times", "folder")


def test_no_linker(refused: Refused, tiny_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["build", tiny_file, "--target", "cortex-a76", "-o", "dist"]
    assert "no compiler nosuch on PATH" in refused(*words, "--linker", "nosuch")
    found = importlib.util.find_spec
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ziglang" else found(name))
    assert "nothing links for cortex-a76: run `pip install ziglang`" in refused(*words)
    assert "nothing links for host: run `pip install ziglang`" in refused("build", tiny_file, "--emit", "so")


def test_open_sizes_where_they_must_be_fixed(refused: Refused, open_file: str) -> None:
    for words in (["build"], ["bench"], ["inspect"], ["inspect", "--json"]):
        verb, *rest = words
        assert "the size of tiny is open" in refused(verb, open_file, *rest)


@pytest.mark.parametrize(
    ("module", "extra", "words"),
    [
        ("onnx", "onnx", ["build", "--emit", "onnx"]),
        ("onnxruntime", "onnx", ["eval", "--backend", "onnx"]),
        ("tvm", "tvm", ["build"]),
        ("av", "media", ["run", "--input", "procedural", "--frames", "1", "--alpha", "alpha.mp4"]),
        ("PIL", "media", ["run", "--input", "procedural", "--frames", "1", "--alpha", "alpha"]),
    ],
)
def test_missing_extra(
    refused: Refused,
    tiny_file: str,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    extra: str,
    words: list[str],
) -> None:
    genuine = builtins.__import__

    def absent(name: str, *rest: object, **more: object) -> object:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        return genuine(name, *rest, **more)  # type: ignore[arg-type]

    ours = f"mattecompress.backends.{extra}"
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name.startswith(ours):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(sys, "meta_path", [_Absent(module), *sys.meta_path])
    verb, *rest = words
    assert f"run `pip install 'mattecompress[{extra}]'`" in refused(verb, tiny_file, *rest)


class _Absent:
    """Finds nothing of one module, and says so."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == self.module:
            raise ModuleNotFoundError(f"No module named '{self.module}'", name=self.module)


def test_reference_of_another_size(
    refused: Refused, tiny_file: str, tmp_path: Path, tiny_open: Program
) -> None:
    container.save(fix_size(tiny_open, (8, 12)), tmp_path / "small.mcg")
    message = refused("eval", tiny_file, "--reference", "small.mcg", "--frames", "1")
    assert "tiny takes frames of 8x12, not 16x24" in message
    assert "8x12, not 16x24" in refused("bench", tiny_file, "--reference", "small.mcg")


def test_a_program_too_small_for_procedural_clips(refused: Refused, tmp_path: Path, tiny: Program) -> None:
    container.save(tiny, tmp_path / "small.mcg")
    assert "sides of at least 16, not 12x16" in refused("eval", "small.mcg")


def test_truth_that_is_unknown(refused: Refused, tiny_file: str, tmp_path: Path) -> None:
    write_frames(tmp_path / "clip.y4m", torch.rand(2, 3, 12, 16))
    assert "clip has no known alpha: add --reference" in refused("eval", tiny_file, "--data", "clip.y4m")


def test_training(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    assert "did you mean rvm-small" in refused("train", "--recipe", "rvm-smal", "-o", "out")
    assert "cannot write plain" in refused("train", "-o", "plain")
    assert "--device 'gpu': expected cpu" in refused("train", "-o", "out", "--device", "gpu")
    number = torch.cuda.device_count()
    assert f"cuda:{number}" in refused("train", "-o", "out", "--device", f"cuda:{number}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["front", "--backgrounds", "behind"], "Missing option '-o' / '--output'"),
        (
            ["none", "--backgrounds", "behind", "-o", "out"],
            "none: no such folder; expected one of rvm: CLIP/com",
        ),
        (["behind", "--backgrounds", "behind", "-o", "out"], "behind: holds no data set"),
        (["aim:front", "--backgrounds", "behind", "-o", "out"], "front: holds no fg/CLIP and alpha/CLIP"),
        (["half", "--backgrounds", "behind", "-o", "out"], "half: holds FG but no GT beside it"),
        (["front", "--backgrounds", "none", "-o", "out"], "none: no such folder; name one"),
        (["front", "--backgrounds", "empty", "-o", "out"], "empty: holds no pictures"),
        (["front", "--backgrounds", "behind", "-o", "out"], "front/fgr/0000 has 6 frames, 100 are wanted"),
        (["front", "--backgrounds", "behind", "-o", "front", "--frames", "1"], "front: holds something else"),
        (["front", "--backgrounds", "behind", "-o", "plain/out"], "cannot write plain/out"),
        (
            ["front", "--backgrounds", "behind", "-o", "out", "--format", "gif"],
            "--format 'gif' is unknown; known: jpg, png",
        ),
        (["front", "--backgrounds", "behind", "-o", "out", "--size", "12"], "expected HEIGHTxWIDTH"),
        (["front", "--backgrounds", "behind", "-o", "out", "--seed", "-1"], "--seed"),
        (["set", "--backgrounds", "behind", "-o", "out", "--frames", "1"], "set: rvm holds composed clips"),
        (["bad", "--backgrounds", "behind", "-o", "out", "--frames", "2"], "00000.png: not a picture"),
    ],
)
def test_compose(refused: Refused, tmp_path: Path, words: list[str], expected: str) -> None:
    for name in ("front", "bad"):
        videomatte(tmp_path / name)
    (tmp_path / "bad/pha/0000/00000.png").write_bytes(b"no picture")
    backgrounds(tmp_path / "behind")
    composed(tmp_path / "set")
    picture(tmp_path / "half" / "FG" / "man.png", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").touch()
    assert expected in refused("compose", *words)


def test_data_sets_that_do_not_fit_the_verb(refused: Refused, tiny_file: str, tmp_path: Path) -> None:
    videomatte(tmp_path / "front")
    for words in (["eval", tiny_file, "--data"], ["opt", tiny_file, "-p", "quantize", "--calibration"]):
        assert "make clips of them with `mattecompress compose front" in refused(*words, "front")
    assert "--data and --backgrounds go together" in refused("train", "-o", "out", "--data", "front")
    composed(tmp_path / "set")
    message = refused("train", "-o", "out", "--data", "set", "--backgrounds", "front")
    assert "set: rvm holds composed clips, no foregrounds" in message


def test_the_program_before_a_pass_that_refuses_is_printed(cli: Cli, tiny_file: str) -> None:
    outcome = cli("opt", tiny_file, "-p", "canonicalize,lower-binary,set-resolution{height=8 width=8}",
                  "--print-before", "set-resolution")  # fmt: skip
    assert outcome.code == 2 and "already fixed" in outcome.err
    assert outcome.out.startswith("// before set-resolution{height=8 width=8}\nmatte 1\n")
