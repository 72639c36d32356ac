/* {{ name }}: made by mattecompress for {{ target }}. */
#include "{{ name }}_stream.h"

#include <stdlib.h>
#include <string.h>

#define BYTES {{ name | upper }}_ARENA_BYTES

/* SHA-256 {{ digest }} */
__asm__(
#ifdef __APPLE__
    ".section __TEXT,__const\n.p2align 6\n_{{ name }}_weights:\n.incbin \"{{ file }}\"\n.byte 0\n.text\n"
#else
    ".pushsection .rodata\n.balign 64\n{{ name }}_weights:\n.incbin \"{{ file }}\"\n.byte 0\n.popsection\n"
#endif
);
extern const unsigned char {{ name }}_weights[] __attribute__((visibility("hidden")));
{% for symbol, count, divided in kernels %}
void {{ symbol }}({{ (["void *"] * count + (["void *", "int32_t", "int32_t"] if divided else [])) | join(", ") }});
{%- endfor %}
{% for symbol, count, divided in kernels if divided %}
static void part_of_{{ symbol }}(void *const *p, unsigned char *local, int32_t begin, int32_t end) {
  {{ symbol }}({% for index in range(count) %}p[{{ index }}], {% endfor %}local, begin, end);
}
{%- endfor %}

static inline void divide({{ name }}_pool *pool, {{ name }}_task *task, void *const *arguments, unsigned char *local, int32_t extent) {
  pool ? pool->divide(pool, task, arguments, local, extent) : task(arguments, local, 0, extent);
}
{% for kind, tensors in (("inputs", inputs), ("outputs", outputs)) %}
const {{ name }}_tensor {{ name }}_{{ kind }}[] = {
{%- for tensor in tensors %}
  {"{{ tensor.name }}", "{{ tensor.dtype }}", {{ tensor.bytes }}u, {{ tensor.shape | length }}, {
    {{- (tensor.shape or [0]) | join(", ") }}}, {{ tensor.state | int }}},
{%- endfor %}
};
{% endfor %}
const size_t {{ name }}_memory = BYTES + 63 + sizeof({{ name }}_stream);

{{ name }}_stream *{{ name }}_create(void) {
  {{ name }}_stream *self = malloc(sizeof *self);
  if (!self) return NULL;
  self->block = malloc(BYTES + 63);
  if (!self->block) {
    free(self);
    return NULL;
  }
  self->arena = (unsigned char *)self->block + (64 - (uintptr_t)self->block % 64) % 64;
  self->pool = NULL;
  {{ name }}_reset(self);
  return self;
}

void {{ name }}_reset({{ name }}_stream *self) {
  self->phase = 0;
{%- for state in states %}
  memset(self->arena + {{ state.offsets[0] }}u, 0, {{ state.bytes }}u);
{%- endfor %}
}

void {{ name }}_destroy({{ name }}_stream *self) {
  if (!self) return;
  if (self->pool) self->pool->destroy(self->pool);
  free(self->block);
  free(self);
}

/* The places: a = arena, w = weights, in and out = the caller's pointers, old and new = slots of the states. */
static void frame({{ name }}_pool *pool, unsigned char *a, const void *const *in, void *const *out, unsigned phase) {
  unsigned char *const w = (unsigned char *){{ name }}_weights;
{%- for state in states %}
  unsigned char *const old{{ loop.index0 }} = a + (phase ? {{ state.offsets[1] }}u : {{ state.offsets[0] }}u);
  unsigned char *const new{{ loop.index0 }} = a + (phase ? {{ state.offsets[0] }}u : {{ state.offsets[1] }}u);
  (void)old{{ loop.index0 }}, (void)new{{ loop.index0 }};
{%- endfor %}
  (void)pool, (void)a, (void)in, (void)out, (void)w, (void)phase;
{%- for state in states %}
  if (in[{{ state.input }}]) {{ state.enter }};
{%- endfor %}
{%- for step in steps %}
  {{ step }};
{%- endfor %}
{%- for state in states %}
  if (out[{{ state.output }}]) {{ state.leave }};
{%- endfor %}
}

void {{ name }}_run({{ name }}_stream *self, const void *const *inputs, void *const *outputs) {
  void *out[{{ outputs | length }}] = {
{%- for offset in output_offsets %}
    {{ "NULL" if offset is none else "self->arena + %du" % offset }},
{%- endfor %}
  };
  for (size_t i = 0; i < {{ outputs | length }}; i++)
    if (outputs[i]) out[i] = outputs[i];
  frame(self->pool, self->arena, inputs, out, self->phase);
  self->phase ^= 1;
}

void {{ name }}_process_frame({{ name }}_stream *self
{%- for tensor in inputs if not tensor.state %}, const {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %}
{%- for tensor in outputs if not tensor.state %}, {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %}) {
  const void *const all_inputs[] = { {{- inputs | map(attribute="slot") | join(", ") }}};
  void *const all_outputs[] = { {{- outputs | map(attribute="slot") | join(", ") }}};
  {{ name }}_run(self, all_inputs, all_outputs);
}
