"""The pool of threads, built with sanitizers around kernels in C."""

import subprocess
from pathlib import Path

import pytest

from mattecompress.backends.tvm.freestanding.library import CKernel, write_library
from mattecompress.backends.tvm.freestanding.plan import Place, Plan, Step, TensorSpec
from mattecompress.backends.tvm.targets import find_target

pytestmark = pytest.mark.needs("gcc")
SIZE, LOCAL = 1000, 256
FLAGS = ("-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow")

KERNELS = """
#include <stdint.h>
#include <string.h>
/* Every place twice its neighbour's number, by way of scratch; the last one first. */
void twice(int32_t *x, int32_t *y, int32_t *local, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) {
    memset(local, i, 256);
    for (int k = 0; k < 64; k++) local[k] = x[(i + 1) % 1000];
    y[i] = local[i % 64] + local[(i + 7) % 64];
  }
}
void rotate(int32_t *x, int32_t *y) {
  for (int i = 0; i < 1000; i++) y[i] = x[(i + 1) % 1000];
}
"""
USER = """
#define _DEFAULT_SOURCE
#include "net.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int run(net_stream *self, int32_t seed) {
  int32_t x[1000], y[1000];
  for (int round = 0; round < 200; round++) {
    for (int i = 0; i < 1000; i++) x[i] = seed + 7 * i + round;
    net_process_frame(self, x, y);
    for (int i = 0; i < 1000; i++)
      if (y[i] != 4 * x[(i + 3) % 1000]) return 1;
    if (round % 50 == 0) usleep(2000); /* long enough for the threads to fall asleep */
  }
  return 0;
}
static void *alone(void *seed) {
  net_stream *self = net_create_with_threads(3);
  int wrong = !self || run(self, *(int32_t *)seed);
  net_destroy(self);
  return wrong ? seed : NULL;
}
int main(int count, char **words) {
  unsigned threads = (unsigned)atoi(words[count - 1]);
  net_stream *self = net_create_with_threads(threads);
  if (!self || run(self, 1)) return puts("one stream is wrong"), 1;
  net_destroy(self);
  pthread_t handles[3];
  int32_t seeds[3] = {1, 2, 3};
  for (int i = 0; i < 3; i++) pthread_create(&handles[i], NULL, alone, &seeds[i]);
  int wrong = 0;
  for (int i = 0; i < 3; i++) {
    void *result;
    pthread_join(handles[i], &result);
    wrong |= result != NULL;
  }
  net_destroy(net_create_with_threads(2)); /* threads without work */
  return wrong;
}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pool")
    x, y = (TensorSpec(name, (SIZE,), "int32") for name in "xy")
    middle = [Place("arena", 0), Place("arena", 4032)]
    own = Place("arena", 8064)
    steps = (
        Step("double", (Place("input", 0), middle[0]), local=own),
        Step("rotate", (middle[0], middle[1])),
        Step("double", (middle[1], Place("output", 0)), local=own),
    )
    plan = Plan((x,), (y,), steps, (), (0,), b"", 8064 + LOCAL, LOCAL)
    kernels = {"double": CKernel((("twice", SIZE),)), "rotate": CKernel((("rotate", None),))}
    made = write_library(folder, "net", find_target("host"), plan, kernels)
    for name, text in (("kernels.c", KERNELS), ("user.c", USER)):
        (folder / name).write_text(text)
        made.append(folder / name)
    return made


def build(sources: list[Path], name: str, *flags: str) -> Path:
    program = sources[0].parent / name
    files = [path.name for path in sources]
    subprocess.run(["gcc", *FLAGS, *flags, *files, "-o", name], cwd=program.parent, check=True)
    return program


def run(program: Path, *words: object) -> None:
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_threads_race_and_leak_nothing(sources, sanitizer):
    program = build(sources, sanitizer.replace(",", "-"), f"-fsanitize={sanitizer}")
    for threads in (0, 1, 2, 5):
        run(program, threads)


REFUSING = """
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
int allowed;
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
void *__wrap_malloc(size_t size) { return allowed-- > 0 ? __real_malloc(size) : NULL; }
void *__wrap_calloc(size_t count, size_t size) { return allowed-- > 0 ? __real_calloc(count, size) : NULL; }
int __wrap_pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *p) {
  return allowed-- > 0 ? __real_pthread_create(t, a, f, p) : EAGAIN;
}
"""
WISHING = """
#include "net.h"
#include <stdio.h>
extern int allowed;
int main(void) {
  for (int threads = 1; threads <= 4; threads += 3) {
    int needed = 0;
    net_stream *self = NULL;
    for (; !self; needed++) {
      allowed = needed;
      self = net_create_with_threads((unsigned)threads);
    }
    printf("%d ", needed - 1);
    net_destroy(self);
  }
  net_destroy(NULL);
  return 0;
}
"""


def test_nothing_leaks_where_memory_or_threads_run_out(sources):
    """One thread takes two allocations; four take one more, and for each but the first its scratch and itself."""
    folder = sources[0].parent
    for name, text in (("refusing.c", REFUSING), ("wishing.c", WISHING)):
        (folder / name).write_text(text)
    files = [*sources[:3], folder / "refusing.c", folder / "wishing.c"]
    wraps = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "pthread_create")]
    program = build(files, "refusing", "-fsanitize=address,undefined", *wraps)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 9 ", "")
