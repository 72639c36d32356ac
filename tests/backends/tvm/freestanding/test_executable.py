"""Emitted programs and libraries: equal to TVM's own runtime here, and the same bits on ARM."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mattecompress.backends.tvm.freestanding.plan import PlanError
from mattecompress.backends.tvm.targets import find_target

tvm = pytest.importorskip("tvm")
pytest.importorskip("ziglang")
from tvm import relax, te, tirx, topi

from mattecompress.backends.tvm import parallel
from mattecompress.backends.tvm.freestanding.executable import (
    ExecutableError,
    emit_executable,
    emit_library,
)

HEIGHT, WIDTH, CHANNELS = 12, 20, 8
INTERFACE = SimpleNamespace(
    input_names=("src", "r1i"),
    output_names=("fgr", "pha", "r1o"),
    states=(SimpleNamespace(input="r1i", output="r1o"),),
)


def weights(*shape: int) -> "relax.Constant":
    return relax.const(np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32") / 4)


def mix(z, h, c):
    return te.compute(
        h.shape, lambda *at: z(*at) * h(*at) + (tirx.const(1.0, "float32") - z(*at)) * c(*at), "mix"
    )


def squash(x):
    one = tirx.const(1.0, "float32")
    return te.compute(x.shape, lambda *at: one / (one + x(*at) * x(*at)), "squash")


def parallel_loops(function: tirx.PrimFunc) -> tirx.PrimFunc:
    schedule = tvm.s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        schedule.parallel(schedule.get_loops(block)[1])
    return schedule.mod["main"].with_attrs(dict(function.attrs))


@pytest.fixture(scope="module")
def module() -> "tvm.IRModule":
    """A gated recurrent network of six kernels, a reshape, and an output that is its input."""
    builder = relax.BlockBuilder()
    src = relax.Var("src", relax.TensorType((1, 3, HEIGHT, WIDTH), "float32"))
    state = relax.Var("r1i", relax.TensorType((1, CHANNELS, HEIGHT, WIDTH), "float32"))
    with builder.function("main", [src, state]):
        with builder.dataflow():
            x = builder.emit_te(topi.nn.conv2d, src, weights(CHANNELS, 3, 3, 3), 1, 1, 1)
            gate = builder.emit_te(
                squash, builder.emit_te(topi.nn.conv2d, state, weights(CHANNELS, CHANNELS, 3, 3), 1, 1, 1)
            )
            new = builder.emit_te(mix, gate, state, x)
            alpha = builder.emit_te(topi.nn.conv2d, new, weights(1, CHANNELS, 1, 1), 1, 0, 1)
            flat = builder.emit(relax.op.reshape(alpha, (1, HEIGHT * WIDTH)))
            alpha = builder.emit(relax.op.reshape(builder.emit_te(squash, flat), (1, 1, HEIGHT, WIDTH)))
            result = builder.emit_output((src, alpha, new))
        builder.emit_func_output(result)
    made = builder.get()
    made["mix"] = parallel_loops(made["mix"])
    return made


@pytest.fixture(scope="module")
def on_host(module, tmp_path_factory):
    return emit_executable(module, INTERFACE, find_target("host"), tmp_path_factory.mktemp("host"), "gru-net")


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "src": torch.rand(1, 3, HEIGHT, WIDTH, generator=generator),
        "r1i": torch.rand(1, CHANNELS, HEIGHT, WIDTH, generator=generator),
    }


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(4, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def test_run_equals_the_virtual_machine(module, on_host, inputs):
    machine = relax.VirtualMachine(tvm.compile(module, find_target("host").tvm()), tvm.cpu())
    expected = machine["main"](*(tvm.runtime.tensor(value.numpy()) for value in inputs.values()))
    outputs = on_host.run(**inputs)
    assert list(outputs) == ["fgr", "pha", "r1o"]
    for value, reference in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(value.numpy(), reference.numpy(), atol=1e-6, rtol=1e-6)
    assert torch.equal(outputs["fgr"], inputs["src"])


def test_states_move_on_by_themselves(on_host, inputs, clip):
    state, mattes = torch.zeros_like(inputs["r1i"]), []
    for frame in clip:
        outputs = on_host.run(src=frame.unsqueeze(0), r1i=state)
        state = outputs["r1o"]
        mattes.append(outputs["pha"][0])
    assert torch.equal(on_host.run_clip(clip), torch.stack(mattes))


def test_working_memory_is_planned(on_host):
    plan = on_host.plan
    padded = CHANNELS * (HEIGHT + 2) * (WIDTH + 2) * 4
    state = CHANNELS * HEIGHT * WIDTH * 4
    assert 2 * state + padded < plan.arena_bytes < 6 * state + padded


def test_the_same_program_twice_is_the_same_bytes(module, on_host, tmp_path):
    again = emit_executable(module, INTERFACE, find_target("host"), tmp_path, "gru-net")
    assert again.path.read_bytes() == on_host.path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r1i": None}, "input r1i is missing"),
        (
            {"src": torch.rand(1, 3, 4, 4)},
            r"input src is float32 \(1, 3, 4, 4\), expected float32 \(1, 3, 12, 20\)",
        ),
        ({"src": torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)}, "input src is uint8"),
        ({"r2i": torch.zeros(1)}, "no input r2i"),
    ],
)
def test_wrong_inputs_are_refused(on_host, inputs, change, message):
    with pytest.raises(ExecutableError, match=message):
        on_host.run(**(inputs | change))


def test_the_program_complains_through_the_artifact(on_host, tmp_path):
    with pytest.raises(ExecutableError, match=r"gru-net failed: .*absent.y4m: cannot read it"):
        on_host.execute(str(tmp_path / "absent.y4m"), str(tmp_path / "out.y4m"))


def test_main_must_be_a_sequence_of_kernels(tmp_path):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.add(x, x))
        builder.emit_func_output(result)
    interface = SimpleNamespace(input_names=("x",), output_names=("y",), states=())
    with pytest.raises(PlanError, match="no sequence of kernel calls"):
        emit_executable(builder.get(), interface, find_target("host"), tmp_path, "sum")


USER = r"""
#include <stdio.h>
#include <stdlib.h>
#include "gru_net.h"
enum { FRAME = 3 * 12 * 20, MATTE = 12 * 20 };
int main(int count, char **words) {
  gru_net_stream *one = gru_net_create(), *two = gru_net_create();
  static float frame[FRAME], first[MATTE], second[MATTE];
  FILE *in = fopen(words[count - 1], "rb");
  while (fread(frame, sizeof frame, 1, in)) {
    gru_net_process_frame(one, frame, NULL, first);
    gru_net_reset(two);
    gru_net_process_frame(two, frame, NULL, second);
    fwrite(first, sizeof first, 1, stdout);
    fwrite(second, sizeof second, 1, stdout);
  }
  gru_net_destroy(one);
  gru_net_destroy(two);
  fclose(in);
}
"""


@pytest.mark.needs("gcc")
def test_a_library_serves_streams_apart(module, on_host, clip, tmp_path):
    library = emit_library(module, INTERFACE, find_target("host"), tmp_path, "gru-net", linker="gcc")
    assert [path.name for path in (library.path, library.header)] == ["libgru-net.a", "gru_net.h"]
    (tmp_path / "user.c").write_text(USER)
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "user.c", "libgru-net.a", "-o", "user"]
    subprocess.run(command, cwd=tmp_path, check=True)
    clip.numpy().tofile(tmp_path / "clip")
    data = subprocess.run([tmp_path / "user", tmp_path / "clip"], capture_output=True, check=True).stdout
    mattes = torch.from_numpy(np.frombuffer(data, np.float32).copy()).reshape(-1, 2, 1, HEIGHT, WIDTH)
    assert torch.equal(mattes[:, 0], on_host.run_clip(clip))
    assert torch.equal(mattes[:, 1], torch.cat([on_host.run_clip(frame.unsqueeze(0)) for frame in clip]))


@pytest.mark.needs("qemu-aarch64")
def test_aarch64_gives_the_same_bits(module, on_host, inputs, clip, tmp_path):
    there = emit_executable(module, INTERFACE, find_target("cortex-a76"), tmp_path, "gru-net", "ziglang")
    here = on_host.run(**inputs)
    for name, value in there.run(**inputs).items():
        assert torch.equal(value, here[name]), name
    assert torch.equal(there.run_clip(clip), on_host.run_clip(clip))


@pytest.mark.parametrize(
    "target", ["host", pytest.param("cortex-a76", marks=pytest.mark.needs("qemu-aarch64"))]
)
def test_threads_change_no_bit(module, on_host, clip, tmp_path, monkeypatch, target):
    monkeypatch.setattr(parallel, "ENOUGH_WORK", 1)
    program = emit_executable(module, INTERFACE, find_target(target), tmp_path, "gru-net")
    clip.numpy().tofile(tmp_path / "clip.f32")
    for threads in (1, 2, 3):
        program.execute(str(tmp_path / "clip.f32"), str(tmp_path / "alpha.f32"), "--threads", str(threads))
        mattes = np.fromfile(tmp_path / "alpha.f32", np.float32).reshape(-1, 1, HEIGHT, WIDTH)
        assert np.array_equal(mattes, on_host.run_clip(clip).numpy())


@pytest.mark.slow
@pytest.mark.needs("qemu-arm")
def test_armv7_gives_the_same_bits(module, on_host, inputs, clip, tmp_path):
    there = emit_executable(module, INTERFACE, find_target("armv7-a"), tmp_path, "gru-net", "ziglang")
    here = on_host.run(**inputs)
    for name, value in there.run(**inputs).items():
        assert torch.equal(value, here[name]), name
    assert torch.equal(there.run_clip(clip), on_host.run_clip(clip))


@pytest.mark.slow
def test_apple_programs_link_and_say_where_they_run(module, inputs, tmp_path):
    there = emit_executable(module, INTERFACE, find_target("apple-m1"), tmp_path, "gru-net", "ziglang")
    assert there.path.read_bytes()[:4] == b"\xcf\xfa\xed\xfe"
    with pytest.raises(ExecutableError, match="runs on apple-m1 only"):
        there.run(**inputs)
