/* The matte of one frame, by a library that mattecompress has built.
 *
 *     mattecompress build rvm.mcg --target host --emit lib -o dist/
 *     cc -Idist examples/build_for_arm/matte.c dist/librvm-mobilenetv3.a -lm -lpthread -o matte
 *     ./matte alpha.pgm                        a frame made here: a bright disc
 *     ./matte alpha.pgm frame.f32 [THREADS]    raw float32 planes of RGB in 0..1, of the network's size
 *
 * The alpha is written as a grey picture. Clips go through `process_frame` frame after frame; the stream keeps the
 * recurrent states, and `rvm_mobilenetv3_reset` forgets them for the next clip. */
#include "rvm_mobilenetv3.h"

#include <stdio.h>
#include <stdlib.h>

static const rvm_mobilenetv3_tensor *frame_of_network = &rvm_mobilenetv3_inputs[0];

static void make_frame(float *frame) {
  size_t height = frame_of_network->shape[2], width = frame_of_network->shape[3];
  for (size_t y = 0; y < height; y++)
    for (size_t x = 0; x < width; x++) {
      float down = 2 * (float)y / (float)height - 1, right = 2 * (float)x / (float)width - 1;
      float inside = down * down + right * right < 0.5f;
      for (size_t channel = 0; channel < 3; channel++)
        frame[(channel * height + y) * width + x] = inside ? 0.9f : 0.1f * (float)channel;
    }
}

static int read_frame(const char *path, float *frame) {
  FILE *file = fopen(path, "rb");
  int done = file && fread(frame, frame_of_network->bytes, 1, file) == 1;
  if (file) fclose(file);
  return done ? 0 : -1;
}

static int write_alpha(const char *path, const float *alpha) {
  size_t height = frame_of_network->shape[2], width = frame_of_network->shape[3];
  FILE *file = fopen(path, "wb");
  if (!file) return -1;
  fprintf(file, "P5 %zu %zu 255\n", width, height);
  for (size_t i = 0; i < height * width; i++) fputc((int)(alpha[i] * 255), file);
  return fclose(file);
}

int main(int count, char **words) {
  if (count < 2) return fprintf(stderr, "usage: matte ALPHA.pgm [FRAME.f32 [THREADS]]\n"), 2;
  float *frame = malloc(frame_of_network->bytes), *alpha = malloc(frame_of_network->bytes / 3);
  unsigned threads = count > 3 ? (unsigned)strtoul(words[3], NULL, 10) : 1;
  rvm_mobilenetv3_stream *stream = rvm_mobilenetv3_create_with_threads(threads);
  int failed = !frame || !alpha || !stream;
  if (!failed && count > 2) failed = read_frame(words[2], frame);
  if (!failed && count <= 2) make_frame(frame);
  if (!failed) {
    rvm_mobilenetv3_process_frame(stream, frame, NULL, alpha); /* the foreground is not wanted */
    failed = write_alpha(words[1], alpha);
    printf("%zu bytes of working memory\n", rvm_mobilenetv3_memory);
  }
  rvm_mobilenetv3_destroy(stream);
  free(frame);
  free(alpha);
  return failed ? fprintf(stderr, "matte: cannot do it\n"), 1 : 0;
}
