/* {{ name }}: made by mattecompress for {{ target }}. */
#include "{{ name }}.h"

#include <stdlib.h>
#include <string.h>

#define BYTES {{ arena_bytes }}u

/* SHA-256 {{ digest }} */
__asm__(
#ifdef __APPLE__
    ".section __TEXT,__const\n.p2align 6\n_{{ name }}_weights:\n.incbin \"{{ file }}\"\n.byte 0\n.text\n"
#else
    ".pushsection .rodata\n.balign 64\n{{ name }}_weights:\n.incbin \"{{ file }}\"\n.byte 0\n.popsection\n"
#endif
);
extern const unsigned char {{ name }}_weights[] __attribute__((visibility("hidden")));
{% for symbol, count in kernels %}
void {{ symbol }}({{ (["void *"] * count) | join(", ") }});
{%- endfor %}

struct {{ name }}_stream {
  void *block;
  unsigned char *arena; /* in the block, at a multiple of 64 bytes */
  unsigned phase;       /* which of its two slots holds a state */
};
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
  if (self) free(self->block);
  free(self);
}

/* The places: a = arena, w = weights, in and out = the caller's pointers, old and new = slots of the states. */
static void frame(unsigned char *a, const void *const *in, void *const *out, unsigned phase) {
  unsigned char *const w = (unsigned char *){{ name }}_weights;
{%- for state in states %}
  unsigned char *const old{{ loop.index0 }} = a + (phase ? {{ state.offsets[1] }}u : {{ state.offsets[0] }}u);
  unsigned char *const new{{ loop.index0 }} = a + (phase ? {{ state.offsets[0] }}u : {{ state.offsets[1] }}u);
  (void)old{{ loop.index0 }}, (void)new{{ loop.index0 }};
{%- endfor %}
  (void)a, (void)in, (void)out, (void)w, (void)phase;
{%- for step in steps %}
  {{ step }};
{%- endfor %}
}

void {{ name }}_run({{ name }}_stream *self, const void *const *inputs, void *const *outputs) {
  void *out[{{ outputs | length }}] = {
{%- for offset in output_offsets %}
    {{ "NULL" if offset is none else "self->arena + %du" % offset }},
{%- endfor %}
  };
  for (size_t i = 0; i < {{ outputs | length }}; i++)
    if (outputs[i] && !{{ name }}_outputs[i].state) out[i] = outputs[i];
{%- for state in states %}
  if (inputs[{{ state.input }}])
    memcpy(self->arena + (self->phase ? {{ state.offsets[1] }}u : {{ state.offsets[0] }}u), inputs[{{ state.input }}], {{ state.bytes }}u);
{%- endfor %}
  frame(self->arena, inputs, out, self->phase);
  self->phase ^= 1;
{%- for state in states %}
  if (outputs[{{ state.output }}])
    memcpy(outputs[{{ state.output }}], self->arena + (self->phase ? {{ state.offsets[1] }}u : {{ state.offsets[0] }}u), {{ state.bytes }}u);
{%- endfor %}
}

void {{ name }}_process_frame({{ name }}_stream *self
{%- for tensor in inputs if not tensor.state %}, const {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %}
{%- for tensor in outputs if not tensor.state %}, {{ tensor.ctype }} *{{ tensor.argument }}{% endfor %}) {
  const void *const all_inputs[] = { {{- inputs | map(attribute="slot") | join(", ") }}};
  void *const all_outputs[] = { {{- outputs | map(attribute="slot") | join(", ") }}};
  {{ name }}_run(self, all_inputs, all_outputs);
}
