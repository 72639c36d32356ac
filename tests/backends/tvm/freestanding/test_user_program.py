"""Other people's programs around an emitted library: the example, sanitizers, and what the library needs."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mattecompress.backends.tvm.targets import find_target
from mattecompress.capturing.tracing import capture
from mattecompress.passes.fold_batch_norm import FoldBatchNorm
from mattecompress.program import Program
from mattecompress.signature import Signature
from tests.conftest import ROOT

pytest.importorskip("tvm")
pytest.importorskip("ziglang")
from mattecompress.backends.tvm import parallel
from mattecompress.backends.tvm.compile import lower
from mattecompress.backends.tvm.freestanding.executable import OBJECT, emit_library, prepare
from mattecompress.backends.tvm.freestanding.library import find_ports, write_driver
from mattecompress.backends.tvm.freestanding.link import find_linker
from mattecompress.running.stream import Stream

NAME, C_NAME = "rvm-mobilenetv3", "rvm_mobilenetv3"
HEIGHT, WIDTH = 12, 16
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NEEDED = {"malloc", "calloc", "free", "memcpy", "memset", "sched_yield"}


@pytest.fixture(scope="module", autouse=True)
def all_work_is_enough():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "ENOUGH_WORK", 1)
        yield


@pytest.fixture(scope="module")
def program(tiny_net: nn.Module, tiny_shapes: Signature) -> Program:
    """A small program under the name and with the inputs and outputs of RVM."""
    return FoldBatchNorm()(capture(tiny_net, tiny_shapes, NAME)).program


@pytest.fixture(scope="module")
def sources(program: Program, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The C of the library and of its driver, and the kernels' object file, for this machine."""
    folder, host = tmp_path_factory.mktemp("sources"), find_target("host")
    plan, made, _ = prepare(lower(program, host), program, host, folder, C_NAME)
    return [*made, folder / OBJECT, *write_driver(folder, C_NAME, NAME, find_ports(plan))]


@pytest.fixture(scope="module")
def frame() -> torch.Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def library(program: Program, target: str, folder: Path) -> Path:
    wanted = find_target(target)
    return emit_library(lower(program, wanted), program, wanted, folder, NAME).path


def run(*words: object) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def read_picture(path: Path) -> np.ndarray:
    header, pixels = path.read_bytes().split(b"\n", 1)
    assert header == f"P5 {WIDTH} {HEIGHT} 255".encode()
    return np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "target", ["host", pytest.param("cortex-a76", marks=pytest.mark.needs("qemu-aarch64"))]
)
def test_the_example_mattes_a_frame(program, frame, tmp_path, target):
    made, wanted = library(program, target, tmp_path), find_target(target)
    compiler = find_linker(wanted).cc(wanted)
    static = [] if wanted.is_host else ["-static"]
    words = [
        *FLAGS,
        *static,
        f"-I{tmp_path}",
        str(ROOT / "examples/build_for_arm/matte.c"),
        str(made),
        "-lm",
        "-lpthread",
    ]
    subprocess.run([*compiler, *words, "-o", str(tmp_path / "matte")], check=True)
    start = [] if wanted.is_host else [wanted.emulator, "-cpu", wanted.emulated_cpu]
    expected = Stream(program)(frame)["pha"][0, 0].numpy()
    frame.numpy().tofile(tmp_path / "frame.f32")
    for threads in (1, 3):
        said = run(*start, tmp_path / "matte", tmp_path / "alpha.pgm", tmp_path / "frame.f32", threads)
        assert said.endswith("bytes of working memory\n")
        shown = read_picture(tmp_path / "alpha.pgm")
        assert np.abs((shown + 0.5) / 255 - expected.clip(0, 1)).max() < 0.5 / 255 + 1e-4
    run(*start, tmp_path / "matte", tmp_path / "alpha.pgm")
    assert read_picture(tmp_path / "alpha.pgm").shape == (HEIGHT, WIDTH)


@pytest.mark.needs("nm")
def test_a_library_needs_the_c_library_alone(program, tmp_path):
    listed = run("nm", "-g", "-A", library(program, "host", tmp_path))
    rows = [line.rsplit(":", 1)[1].split() for line in listed.splitlines() if ":" in line]
    defined = {row[-1] for row in rows if row[-2] != "U"}
    needed = {row[-1] for row in rows if row[-2] == "U"} - defined
    threads = {name for name in needed if name.startswith("pthread_")}
    assert needed - threads <= NEEDED
    assert {name for name in defined if not name.startswith(C_NAME)} <= {"__extendhfsf2", "__truncsfhf2"}


def test_one_thread_needs_no_threads_library(program, tmp_path):
    archive = library(program, "host", tmp_path)
    text = f"""#include "{C_NAME}.h"
    int main(void) {{ {C_NAME}_destroy({C_NAME}_create()); return 0; }}"""
    (tmp_path / "alone.c").write_text(text)
    subprocess.run(["cc", "alone.c", archive.name, "-o", "alone"], cwd=tmp_path, check=True)
    assert "pthread_create" not in run("nm", tmp_path / "alone")


def test_the_header_tells_the_memory(program, tmp_path):
    wanted = find_target("host")
    made = emit_library(lower(program, wanted), program, wanted, tmp_path, NAME)
    header = made.header.read_text()
    assert f"#define RVM_MOBILENETV3_ARENA_BYTES {made.plan.arena_bytes}u\n" in header
    assert f"#define RVM_MOBILENETV3_THREAD_BYTES {made.plan.local_bytes}u\n" in header


STREAMS = """
#include "rvm_mobilenetv3.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>
enum { MATTE = 12 * 16, FRAME = 3 * MATTE, FRAMES = 3 };
static float frames[FRAMES][FRAME], expected[FRAMES][MATTE];
static int same(rvm_mobilenetv3_stream *self) {
  float alpha[MATTE], foreground[FRAME];
  for (int i = 0; i < FRAMES; i++) {
    rvm_mobilenetv3_process_frame(self, frames[i], i % 2 ? foreground : NULL, alpha);
    if (memcmp(alpha, expected[i], sizeof alpha)) return 0;
  }
  return 1;
}
static void *serve(void *threads) {
  rvm_mobilenetv3_stream *self = rvm_mobilenetv3_create_with_threads(*(unsigned *)threads);
  int right = self && same(self);
  if (right) { /* a clip broken off, without any output, and begun again */
    rvm_mobilenetv3_process_frame(self, frames[1], NULL, NULL);
    rvm_mobilenetv3_reset(self);
    right = same(self);
  }
  rvm_mobilenetv3_destroy(self);
  return right ? threads : NULL;
}
int main(int count, char **words) {
  FILE *file = fopen(words[count - 1], "rb");
  if (!file || fread(frames, sizeof frames, 1, file) != 1) return 2;
  fclose(file);
  rvm_mobilenetv3_stream *first = rvm_mobilenetv3_create();
  for (int i = 0; i < FRAMES; i++) rvm_mobilenetv3_process_frame(first, frames[i], NULL, expected[i]);
  rvm_mobilenetv3_destroy(first);
  unsigned threads[4] = {1, 2, 3, 1};
  pthread_t handles[4];
  int wrong = 0;
  for (int i = 0; i < 4; i++) wrong |= pthread_create(&handles[i], NULL, serve, &threads[i]);
  for (int i = 0; i < 4; i++) {
    void *right;
    wrong |= pthread_join(handles[i], &right) || !right;
  }
  return wrong;
}
"""


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("user", ["streams", "example", "driver"])
def test_sanitizers_find_nothing(sources, frame, tmp_path, user):
    folder = sources[0].parent
    (folder / "streams.c").write_text(STREAMS)
    own, around = [path.name for path in sources[:3]], [path.name for path in sources[3:]]
    users = {
        "streams": ["streams.c"],
        "example": [str(ROOT / "examples/build_for_arm/matte.c")],
        "driver": around,
    }[user]
    command = ["gcc", *FLAGS, *SANITIZERS, "-I.", *own, *users, "-lm", "-o", user]
    subprocess.run(command, cwd=folder, check=True)
    frame.repeat(3, 1, 1, 1).numpy().tofile(tmp_path / "frames.f32")
    if user == "streams":
        run(folder / user, tmp_path / "frames.f32")
    elif user == "example":
        run(folder / user, tmp_path / "alpha.pgm", tmp_path / "frames.f32", 2)
    else:
        run(folder / user, tmp_path / "frames.f32", tmp_path / "alpha.f32", "--threads", 2, "--repeat", 2)
