/* {{ name }}: made by mattecompress for {{ target }}. Tensors are dense, planes in NCHW order.
 *
{%- for tensor in inputs %}
 * {{ "state" if tensor.state else "input" }} {{ tensor.name }}: {{ tensor.dtype }} {{ tensor.shape | join("x") }}
{%- endfor %}
{%- for tensor in outputs %}
 * {{ "state" if tensor.state else "output" }} {{ tensor.name }}: {{ tensor.dtype }} {{ tensor.shape | join("x") }}
{%- endfor %}
 */
#ifndef {{ name | upper }}_H
#define {{ name | upper }}_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Working memory of a stream, and what each thread after its first one needs besides, in bytes. */
#define {{ name | upper }}_ARENA_BYTES {{ arena_bytes }}u
#define {{ name | upper }}_THREAD_BYTES {{ local_bytes }}u

/* One stream of frames: working memory and recurrent states. Different streams may run in different threads. */
typedef struct {{ name }}_stream {{ name }}_stream;

/* A stream with zero states, or NULL when memory is short; it takes {{ name }}_memory bytes. */
{{ name }}_stream *{{ name }}_create(void);

/* The same with a pool of POSIX threads, the caller's among them, that share the work of each frame; at most 256. The
 * results are the same bits. NULL also when a thread cannot be made. */
{{ name }}_stream *{{ name }}_create_with_threads(unsigned threads);

/* Compute one frame; the states move on. An output may be NULL; pointers must not overlap. */
void {{ name }}_process_frame({{ name }}_stream *self
{%- for tensor in inputs if not tensor.state %}, const {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %}
{%- for tensor in outputs if not tensor.state %}, {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %});

/* Forget the past: zero states. */
void {{ name }}_reset({{ name }}_stream *self);

/* End a stream's threads and free it; NULL is allowed. */
void {{ name }}_destroy({{ name }}_stream *self);

/* For tools: every input and output, states among them. */
typedef struct {
  const char *name, *dtype;
  size_t bytes, rank, shape[8];
  int state;
} {{ name }}_tensor;

enum { {{ name | upper }}_INPUTS = {{ inputs | length }}, {{ name | upper }}_OUTPUTS = {{ outputs | length }} };
extern const {{ name }}_tensor {{ name }}_inputs[], {{ name }}_outputs[];
extern const size_t {{ name }}_memory;

/* Compute one frame from an array of all inputs to one of all outputs. Where a state's input is NULL the stream's
 * own state is used; where an output is NULL it is not handed out. */
void {{ name }}_run({{ name }}_stream *self, const void *const *inputs, void *const *outputs);

#ifdef __cplusplus
}
#endif
#endif
