"""Runs kernels of another processor under qemu: one static program that checks all of them byte for byte."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mattecompress.backends.tvm.emulation.instructions import build_plugin
from mattecompress.backends.tvm.freestanding.link import find_linker
from mattecompress.backends.tvm.targets import Target
from tests.backends.tvm.harness import Kernel, build

DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct {
  void *data; int32_t device[2]; int32_t ndim; uint8_t code, bits; uint16_t lanes;
  int64_t *shape, *strides; uint64_t offset;
} Tensor;
typedef struct { int32_t kind; uint32_t zero; union { int64_t i; void *p; } v; } Any;
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int i = 0; i < count; i++) fputs(parts[i], stderr);
}
static void *take(int device, int id, uint64_t bytes, int code, int bits) {
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}
static int drop(int device, int id, void *pointer) { free(pointer); return 0; }
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = take;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = drop;
DECLARATIONS
static int (*const kernels[])(void *, Any *, int32_t, Any *) = {NAMES};
static int64_t next(FILE *file) { int64_t n; if (fread(&n, 8, 1, file) != 1) exit(3); return n; }
int main(int argc, char **argv) {
  FILE *file = fopen(argv[1], "rb");
  int wrong = 0;
  for (unsigned k = 0; k < sizeof kernels / sizeof *kernels; k++) {
    Tensor tensors[8]; Any arguments[8], result = {0};
    memset(tensors, 0, sizeof tensors); memset(arguments, 0, sizeof arguments);
    int count = next(file); int64_t bytes = 0;
    for (int t = 0; t < count; t++) {
      Tensor *x = &tensors[t];
      x->device[0] = 1; x->lanes = 1; x->code = next(file); x->bits = next(file); x->ndim = next(file);
      x->shape = malloc(8 * x->ndim); bytes = x->bits / 8;
      for (int i = 0; i < x->ndim; i++) bytes *= x->shape[i] = next(file);
      x->data = aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (fread(x->data, 1, bytes, file) != (size_t)bytes) return 3;
      arguments[t].kind = 7; arguments[t].v.p = x;
    }
    void *expected = malloc(bytes);
    memcpy(expected, tensors[count - 1].data, bytes);
    memset(tensors[count - 1].data, 0xa5, bytes);
    int status = 0;
    for (int run = argc > 2 ? atoi(argv[2]) : 1; run > 0; run--) status |= kernels[k](NULL, arguments, count, &result);
    int bad = status || memcmp(expected, tensors[count - 1].data, bytes);
    printf("kernel %u: %s\n", k, bad ? "wrong" : "right");
    wrong += bad;
  }
  return wrong != 0;
}
"""
CODES = {"i": 0, "u": 1, "f": 2}


def check_emulated(kernels: Sequence[Kernel], target: Target, folder: Path) -> str:
    """What the program printed; it fails the test unless every kernel is right."""
    _build_program(kernels, target, folder)
    return _run(target, folder, [], 1)


def count_instructions(kernel: Kernel, target: Target, folder: Path) -> int:
    """Instructions that one run of a kernel executes."""
    _build_program([kernel], target, folder)
    assert target.emulator is not None
    plugin, log = build_plugin(target.emulator, folder), folder / "log"
    totals = []
    for runs in (1, 2):
        _run(target, folder, ["-plugin", str(plugin), "-d", "plugin", "-D", str(log)], runs)
        symbols = re.findall(r"^symbol \S+ (\d+)$", log.read_text(), re.MULTILINE)
        totals.append(sum(map(int, symbols)))
    return totals[1] - totals[0]


def _build_program(kernels: Sequence[Kernel], target: Target, folder: Path) -> None:
    build(kernels, target.tvm()).write_to_file(str(folder / "kernels.o"))
    names = [f"__tvm_ffi_kernel_{index}" for index in range(len(kernels))]
    declarations = "\n".join(f"int {name}(void *, Any *, int32_t, Any *);" for name in names)
    driver = DRIVER.replace("DECLARATIONS", declarations).replace("NAMES", ", ".join(names))
    (folder / "driver.c").write_text(driver)
    (folder / "data.bin").write_bytes(b"".join(_encode(kernel) for kernel in kernels))
    compiler = find_linker(target).cc(target)
    subprocess.run(
        [*compiler, "-O1", "-static", "driver.c", "kernels.o", "-o", "program"],
        cwd=folder,
        check=True,
        timeout=300,
    )


def _run(target: Target, folder: Path, options: Sequence[str], runs: int) -> str:
    command = [target.emulator, *options, "-cpu", target.emulated_cpu, "program", "data.bin", str(runs)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _encode(kernel: Kernel) -> bytes:
    arrays = (*kernel.arguments, kernel.expected)
    parts = [np.int64(len(arrays)).tobytes()]
    for array in arrays:
        header = [CODES[array.dtype.kind], array.dtype.itemsize * 8, array.ndim, *array.shape]
        parts += [np.array(header, np.int64).tobytes(), np.ascontiguousarray(array).tobytes()]
    return b"".join(parts)
