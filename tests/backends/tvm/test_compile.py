from pathlib import Path

import pytest
import torch

from mattecompress.backends.tvm.backend import Tvm
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.program import Program

pytest.importorskip("tvm", reason="the extra tvm is not installed")


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
