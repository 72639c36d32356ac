/* The program around the library: frames from a file through the network, mattes to a file. */
#define _POSIX_C_SOURCE 200809L
#include "media.h"
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char USAGE[] =
    "usage: " PROGRAM_NAME " INPUT OUTPUT [--frames N] [--repeat N] [--time] [--threads N] [--matrix bt601|bt709]\n"
    "       " PROGRAM_NAME " --tensors INPUT OUTPUT [--threads N]\n"
    "INPUT    .y4m (8-bit 4:4:4, 4:2:0 or grey), .png, or .f32: raw float32 planes of RGB in 0..1\n"
    "OUTPUT   alpha as .y4m (grey), .png (one frame) or .f32\n"
    "--frames  stop after N frames\n"
    "--repeat  run over the input N times, for timing; only the first run is written\n"
    "--threads compute with N threads; the result is the same\n"
    "--time    print the time of a frame as JSON\n"
    "--matrix  colours of Y4M input, bt601 unless given\n"
    "--tensors read all inputs of each frame, states among them, and write all outputs, as raw bytes\n";

struct options {
  const char *input, *output;
  unsigned long frames, repeat, threads;
  int time, tensors;
  enum matrix matrix;
};

struct timing {
  double best, total;
  unsigned long frames;
};

static int read_count(const char *option, const char *text, unsigned long *count) {
  char *end = NULL;
  errno = 0;
  if (text && *text >= '0' && *text <= '9') *count = strtoul(text, &end, 10);
  if (end && !*end && *count && !errno) return 0;
  return complain("%s: give a number from 1", option);
}

static int read_options(int count, char **words, struct options *options) {
  *options = (struct options){.frames = (unsigned long)-1, .repeat = 1, .threads = 1};
  for (int i = 1; i < count; i++) {
    const char *word = words[i], *next = i + 1 < count ? words[i + 1] : NULL;
    if (!strcmp(word, "--time")) {
      options->time = 1;
    } else if (!strcmp(word, "--tensors")) {
      options->tensors = 1;
    } else if (!strcmp(word, "--frames")) {
      if (read_count(word, next, &options->frames)) return -1;
      i++;
    } else if (!strcmp(word, "--repeat")) {
      if (read_count(word, next, &options->repeat)) return -1;
      i++;
    } else if (!strcmp(word, "--threads")) {
      if (read_count(word, next, &options->threads)) return -1;
      i++;
    } else if (!strcmp(word, "--matrix")) {
      if (!next || (strcmp(next, "bt601") && strcmp(next, "bt709"))) return complain("--matrix: give bt601 or bt709");
      options->matrix = strcmp(next, "bt601") ? BT709 : BT601;
      i++;
    } else if (*word == '-' && word[1]) {
      return complain("%s: no such option; see --help", word);
    } else if (!options->input) {
      options->input = word;
    } else if (!options->output) {
      options->output = word;
    } else {
      return complain("%s: one word too many; see --help", word);
    }
  }
  return options->output ? 0 : complain("%s", USAGE);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static struct geometry geometry_of(const PROGRAM(tensor) *tensor) {
  return (struct geometry){tensor->shape[1], tensor->shape[2], tensor->shape[3]};
}

/* One pass over the input; mattes go to the writer when there is one. */
static int run_clip(PROGRAM(stream) *self, const struct options *options, struct reader *reader, struct writer *writer,
                    float *frame, float *alpha, struct timing *timing) {
  const void *inputs[PROGRAM_INPUTS] = {0};
  void *outputs[PROGRAM_OUTPUTS] = {0};
  int status = 0;
  inputs[PROGRAM_FRAME] = frame;
  outputs[PROGRAM_ALPHA] = alpha;
  PROGRAM(reset)(self);
  for (unsigned long i = 0; i < options->frames && (status = reader_next(reader, frame)) > 0; i++) {
    double start = seconds();
    PROGRAM(run)(self, inputs, outputs);
    double elapsed = seconds() - start;
    timing->total += elapsed;
    if (!timing->frames++ || elapsed < timing->best) timing->best = elapsed;
    if (writer && writer_put(writer, alpha)) return -1;
  }
  return status < 0 ? -1 : 0;
}

static int open_both(const struct options *options, struct reader *reader, struct writer *writer) {
  struct geometry in = geometry_of(&PROGRAM(inputs)[PROGRAM_FRAME]);
  if (reader_open(reader, options->input, in, options->matrix)) return -1;
  return writer ? writer_open(writer, options->output, geometry_of(&PROGRAM(outputs)[PROGRAM_ALPHA]), reader->y4m.rate)
                : 0;
}

static int run_media(PROGRAM(stream) *self, const struct options *options) {
  struct timing timing = {0};
  struct writer writer = {0};
  float *frame = malloc(PROGRAM(inputs)[PROGRAM_FRAME].bytes), *alpha = malloc(PROGRAM(outputs)[PROGRAM_ALPHA].bytes);
  int status = frame && alpha ? 0 : complain("out of memory");
  for (unsigned long round = 0; !status && round < options->repeat; round++) {
    struct reader reader = {0};
    struct writer *to = round ? NULL : &writer;
    status = open_both(options, &reader, to);
    if (!status) status = run_clip(self, options, &reader, to, frame, alpha, &timing);
    reader_close(&reader);
  }
  if (!status) status = writer_finish(&writer);
  writer_close(&writer);
  free(frame);
  free(alpha);
  if (!status && options->time)
    printf("{\"frames\": %lu, \"best_ms\": %.3f, \"mean_ms\": %.3f, \"memory_bytes\": %zu}\n", timing.frames,
           timing.best * 1e3, timing.total * 1e3 / (double)timing.frames, PROGRAM(memory));
  return status;
}

/* All of one frame's tensors, one after the other: 1 when read, 0 at the end of the file. */
static int read_tensors(const char *path, FILE *file, void **values) {
  for (int i = 0; i < PROGRAM_INPUTS; i++) {
    size_t bytes = PROGRAM(inputs)[i].bytes, read = fread(values[i], 1, bytes, file);
    if (i == 0 && read == 0 && !ferror(file)) return 0;
    if (read != bytes) return complain("%s: input %s is cut off: it has %zu bytes", path, PROGRAM(inputs)[i].name, bytes);
  }
  return 1;
}

static int run_tensors(PROGRAM(stream) *self, const struct options *options) {
  void *inputs[PROGRAM_INPUTS] = {0}, *outputs[PROGRAM_OUTPUTS] = {0};
  struct writer writer = {0};
  int status = 0;
  for (int i = 0; i < PROGRAM_INPUTS; i++)
    if (!(inputs[i] = malloc(PROGRAM(inputs)[i].bytes))) status = complain("out of memory");
  for (int i = 0; i < PROGRAM_OUTPUTS; i++)
    if (!(outputs[i] = malloc(PROGRAM(outputs)[i].bytes))) status = complain("out of memory");
  FILE *file = status ? NULL : fopen(options->input, "rb");
  if (!status && !file) status = complain("%s: cannot read it: %s", options->input, strerror(errno));
  if (!status) status = writer_create(&writer, options->output);
  while (!status && (status = read_tensors(options->input, file, inputs)) > 0) {
    status = 0;
    PROGRAM(run)(self, (const void *const *)inputs, outputs);
    for (int i = 0; !status && i < PROGRAM_OUTPUTS; i++)
      if (fwrite(outputs[i], 1, PROGRAM(outputs)[i].bytes, writer.file) != PROGRAM(outputs)[i].bytes)
        status = complain("%s: cannot write it: %s", options->output, strerror(errno));
  }
  if (!status) status = writer_finish(&writer);
  writer_close(&writer);
  if (file) fclose(file);
  for (int i = 0; i < PROGRAM_INPUTS; i++) free(inputs[i]);
  for (int i = 0; i < PROGRAM_OUTPUTS; i++) free(outputs[i]);
  return status;
}

int main(int count, char **words) {
  struct options options;
  if (count == 2 && !strcmp(words[1], "--help")) return fputs(USAGE, stdout) < 0;
  if (read_options(count, words, &options)) return 2;
  if (!options.tensors && !PROGRAM_HAS_MEDIA)
    return complain("%s: this program takes no picture alone; use --tensors", options.input), 2;
  PROGRAM(stream) *self = PROGRAM(create_with_threads)((unsigned)options.threads);
  if (!self) return complain("%zu bytes of memory and %lu threads are not to be had", PROGRAM(memory), options.threads), 2;
  int status = options.tensors ? run_tensors(self, &options) : run_media(self, &options);
  PROGRAM(destroy)(self);
  return status ? 2 : 0;
}
