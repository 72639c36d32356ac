"""A library in this process computes what the program does, with any number of threads."""

import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm")
pytest.importorskip("ziglang")
from mattecompress.backends.tvm import parallel
from mattecompress.backends.tvm.backend import SharedObject, Tvm
from mattecompress.backends.tvm.freestanding.executable import ExecutableError
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.program import Program
from mattecompress.running.stream import Stream
from tests.backends.tvm.nets import Net, inputs_of, program_of


@pytest.fixture(scope="module", autouse=True)
def all_work_is_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "ENOUGH_WORK", 1)
        yield


@pytest.fixture
def program(tiny: Program) -> Program:
    return FoldBatchNorm()(tiny).program


def test_equals_the_program_from_frame_to_frame(program: Program) -> None:
    ours, truth = Stream(program, Tvm(threads=2).compile(program).run), Stream(program)
    for frame in torch.rand(3, 1, 3, 12, 16):
        found, expected = ours(frame), truth(frame)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)


def test_threads_and_linkers_change_no_bit(program: Program) -> None:
    frames = torch.rand(3, 1, 3, 12, 16)
    results = []
    for linker, threads in (("gcc", 1), ("gcc", 2), ("gcc", 5), ("ziglang", 3)):
        stream = Stream(program, Tvm(threads=threads, linker=linker).compile(program).run)
        results.append([stream(frame)["pha"] for frame in frames])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_one_artifact_serves_several_threads(program: Program) -> None:
    artifact = Tvm(threads=2).compile(program)
    inputs = [{"src": torch.rand(1, 3, 12, 16), "r1i": torch.rand(1, 4, 6, 8)} for _ in range(4)]
    expected = [artifact.run(**one)["pha"] for one in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not torch.equal(artifact.run(**inputs[index])["pha"], expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_wrong_inputs_are_refused(program: Program) -> None:
    artifact = Tvm().compile(program)
    with pytest.raises(ExecutableError, match="input src is missing"):
        artifact.run(r1i=torch.rand(1, 4, 6, 8))
    with pytest.raises(ExecutableError, match=r"input src is float64"):
        artifact.run(src=torch.rand(1, 3, 12, 16, dtype=torch.float64), r1i=torch.rand(1, 4, 6, 8))


def test_a_library_for_the_runtime_is_still_saved(program: Program, tmp_path: Path) -> None:
    artifact = Tvm(emit="so").compile(program)
    assert isinstance(artifact, SharedObject)
    assert [path.suffix for path in artifact.save(tmp_path)] == [".so"]


def test_clips_of_one_artifact_keep_their_own_states(program: Program) -> None:
    artifact = Tvm().compile(program)
    clips, truth = torch.rand(2, 3, 1, 3, 12, 16), Stream(program)
    ours = [Stream(program, artifact.over_clips()) for _ in clips]
    found = [[stream(clip[frame]) for stream, clip in zip(ours, clips, strict=True)] for frame in range(3)]
    for number, clip in enumerate(clips):
        for frame, expected in enumerate(truth.over(clip[:, 0])):
            assert set(found[frame][number]) == {"fgr", "pha"} & set(expected)
            for name, value in found[frame][number].items():
                torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


def test_a_kernel_that_copies_an_image_onto_itself_is_left_out() -> None:
    torch.manual_seed(0)

    def expression(net, x):
        y = net.conv(x)
        z = torch.cat([y[:, :3], y[:, 3:]], 1)
        return F.avg_pool2d(z, 3, 1, 1) - F.avg_pool2d(z * x, 3, 1, 1)

    net = program_of(Net(expression, conv=nn.Conv2d(4, 4, 3, padding=1)), (1, 4, 12, 16))
    inputs = inputs_of(net)
    found = Tvm().compile(net).run(**inputs)["out0"]
    torch.testing.assert_close(found, net.run(**inputs)["out0"], rtol=1e-5, atol=1e-5)
