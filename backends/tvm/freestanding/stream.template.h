/* {{ name }}: what its two source files share; made by mattecompress. */
#include "{{ name }}.h"

/* Iterations `begin` to `end` - 1 of a kernel's loop, with scratch of the calling thread's own. */
typedef void {{ name }}_task(void *const *arguments, unsigned char *local, int32_t begin, int32_t end);

/* Runs all iterations of a task, in several threads. */
typedef struct {{ name }}_pool {
  void (*divide)(struct {{ name }}_pool *self, {{ name }}_task *task, void *const *arguments, unsigned char *local, int32_t extent);
  void (*destroy)(struct {{ name }}_pool *self);
} {{ name }}_pool;

struct {{ name }}_stream {
  void *block;
  unsigned char *arena; /* in the block, at a multiple of 64 bytes */
  unsigned phase;       /* which of its two slots holds a state */
  {{ name }}_pool *pool; /* NULL where the caller's thread does all */
};
