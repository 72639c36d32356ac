/* {{ name }}: threads that share the work of a kernel; made by mattecompress.
 *
 * A job is a loop of independent iterations. Every thread begins with its own share of them, a piece at a time, and
 * then helps the others, so the caller never waits for a thread that has not begun. While `round` is odd a job is open.
 * A thread reads the job only after it has counted itself in `active` and then seen an odd round, and the caller changes
 * it only after it has made the round even and then seen nobody active. Idle threads spin for a moment, then sleep. */
#define _POSIX_C_SOURCE 200809L
#include "{{ name }}_stream.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MOST = 256, PIECES = 8, SPINS = 4000, STACK = 1 << 20, LINE = 64 };

typedef struct share {
  atomic_int next; /* the first iteration that nobody has taken */
  int32_t end;
  void *block;
  unsigned char *local; /* in the block, at a multiple of 64 bytes */
  struct crew *crew;
  pthread_t handle;
  char apart[LINE];
} share;

typedef struct crew {
  {{ name }}_pool pool;
  unsigned threads;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  {{ name }}_task *task;
  void *const *arguments;
  int32_t piece;
  char apart[LINE];
  atomic_uint round, active, sleepers, stopping;
  share shares[];
} crew;

static void relax(void) {
#if defined __x86_64__ || defined __i386__
  __builtin_ia32_pause();
#elif defined __aarch64__ || defined __arm__
  __asm__ volatile("yield");
#endif
}

static void work(crew *self, unsigned number, unsigned char *local) {
  for (unsigned step = 0; step < self->threads; step++) {
    share *from = &self->shares[(number + step) % self->threads];
    int32_t begin, end = from->end, piece = self->piece;
    while ((begin = atomic_fetch_add(&from->next, piece)) < end)
      self->task(self->arguments, local, begin, end - begin < piece ? end : begin + piece);
  }
}

/* Wait until the round is not `seen`; 0 where the threads are to stop instead. */
static int await_round(crew *self, unsigned seen) {
  for (int spin = 0; spin < SPINS; spin++) {
    if (atomic_load(&self->round) != seen) return 1;
    relax();
  }
  pthread_mutex_lock(&self->mutex);
  atomic_fetch_add(&self->sleepers, 1);
  while (atomic_load(&self->round) == seen && !atomic_load(&self->stopping))
    pthread_cond_wait(&self->wake, &self->mutex);
  atomic_fetch_sub(&self->sleepers, 1);
  pthread_mutex_unlock(&self->mutex);
  return !atomic_load(&self->stopping);
}

static void *serve(void *argument) {
  share *own = argument;
  crew *self = own->crew;
  unsigned seen = 0;
  while (await_round(self, seen)) {
    atomic_fetch_add(&self->active, 1);
    seen = atomic_load(&self->round);
    if (seen % 2) work(self, (unsigned)(own - self->shares), own->local);
    atomic_fetch_sub(&self->active, 1);
  }
  return NULL;
}

static void wake(crew *self) {
  pthread_mutex_lock(&self->mutex);
  pthread_cond_broadcast(&self->wake);
  pthread_mutex_unlock(&self->mutex);
}

static void divide({{ name }}_pool *pool, {{ name }}_task *task, void *const *arguments, unsigned char *local, int32_t extent) {
  crew *self = (crew *)pool;
  int64_t threads = self->threads;
  for (int64_t t = 0; t < threads; t++) {
    atomic_store(&self->shares[t].next, (int)(extent * t / threads));
    self->shares[t].end = (int32_t)(extent * (t + 1) / threads);
  }
  self->task = task;
  self->arguments = arguments;
  self->piece = (int32_t)(extent / (threads * PIECES));
  if (!self->piece) self->piece = 1;
  atomic_fetch_add(&self->round, 1);
  if (atomic_load(&self->sleepers)) wake(self);
  work(self, 0, local);
  atomic_fetch_add(&self->round, 1);
  for (int spin = 0; atomic_load(&self->active); spin++) spin < SPINS ? relax() : (void)sched_yield();
}

/* End the threads 1 to `started` - 1. */
static void dismiss(crew *self, unsigned started) {
  atomic_store(&self->stopping, 1);
  wake(self);
  for (unsigned t = 1; t < started; t++) pthread_join(self->shares[t].handle, NULL);
  for (unsigned t = 1; t < self->threads; t++) free(self->shares[t].block);
  pthread_cond_destroy(&self->wake);
  pthread_mutex_destroy(&self->mutex);
  free(self);
}

static void destroy({{ name }}_pool *pool) { dismiss((crew *)pool, ((crew *)pool)->threads); }

/* Scratch and thread of share t; 0 when done. */
static int start(crew *self, unsigned t) {
  pthread_attr_t attributes;
  share *own = &self->shares[t];
  own->crew = self;
  if (!(own->block = malloc({{ local_bytes }}u + LINE))) return -1;
  own->local = (unsigned char *)own->block + (LINE - (uintptr_t)own->block % LINE) % LINE;
  if (pthread_attr_init(&attributes)) return -1;
  int status = pthread_attr_setstacksize(&attributes, STACK);
  if (!status) status = pthread_create(&own->handle, &attributes, serve, own);
  pthread_attr_destroy(&attributes);
  return status;
}

static {{ name }}_pool *assemble(unsigned threads) {
  crew *self = calloc(1, sizeof *self + threads * sizeof *self->shares);
  if (!self) return NULL;
  self->pool = ({{ name }}_pool){divide, destroy};
  self->threads = threads;
  if (pthread_mutex_init(&self->mutex, NULL)) return free(self), NULL;
  if (pthread_cond_init(&self->wake, NULL)) return pthread_mutex_destroy(&self->mutex), free(self), NULL;
  for (unsigned t = 1; t < threads; t++)
    if (start(self, t)) return dismiss(self, t), NULL;
  return &self->pool;
}

{{ name }}_stream *{{ name }}_create_with_threads(unsigned threads) {
  {{ name }}_stream *self = {{ name }}_create();
  if (!self || threads < 2) return self;
  if (!(self->pool = assemble(threads < MOST ? threads : MOST))) {
    {{ name }}_destroy(self);
    return NULL;
  }
  return self;
}
