from pathlib import Path

import pytest
import torch
from torch.utils.dlpack import from_dlpack

tvm = pytest.importorskip("tvm", reason="the extra tvm is not installed")
from tvm import relax

from mattecompress.backends.tvm.backend import Tvm
from mattecompress.backends.tvm.freestanding import link
from mattecompress.backends.tvm.freestanding.link import LinkError
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.program import Program


def test_takes_tensors_at_any_address(tiny: Program) -> None:
    program = FoldBatchNorm()(tiny).program
    artifact = Tvm().compile(program)
    clip = torch.rand(4, 3, 12, 16)
    state = torch.rand(1 + 4 * 6 * 8)[1:].reshape(1, 4, 6, 8)
    assert state.data_ptr() % 64
    for frame in clip:
        inputs = {"src": frame[None], "r1i": state}
        found, expected = artifact.run(**inputs), program.run(**inputs)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_saves_a_library_quietly(tiny: Program, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (path,) = Tvm().compile(FoldBatchNorm()(tiny).program).save(tmp_path)
    assert path.is_file()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("linker", [pytest.param("gcc", marks=pytest.mark.needs("gcc")), "ziglang"])
def test_the_named_compiler_links_the_library(
    tiny: Program, linker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if linker == "ziglang":
        pytest.importorskip("ziglang")
    monkeypatch.setenv("CXX", "/bin/false")
    program = FoldBatchNorm()(tiny).program
    (path,) = Tvm(linker=linker).compile(program).save(tmp_path)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    inputs = {"src": torch.rand(1, 3, 12, 16), "r1i": torch.rand(1, 4, 6, 8)}
    results = machine["main"](*(tvm.runtime.tensor(inputs[name].numpy()) for name in program.input_names))
    expected = Tvm().compile(program).run(**inputs)
    for name, result in zip(program.output_names, results, strict=True):
        assert torch.equal(from_dlpack(result), expected[name])


def test_without_a_compiler_nothing_is_written(
    tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Tvm().compile(FoldBatchNorm()(tiny).program)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LinkError, match="nothing links for host: run `pip install ziglang`"):
        artifact.save(tmp_path / "dist")
    assert not list(tmp_path.iterdir())
