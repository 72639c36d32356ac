/* The two ends that every format shares: opening by suffix, raw float32, and output that appears whole or not at all. */
#define _POSIX_C_SOURCE 200809L
#include "media.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

int complain(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  return -1;
}

/* 0, 1, 2 for .y4m, .png, .f32; -1 for anything else. */
static int format_of(const char *path) {
  static const char *const suffixes[] = {".y4m", ".png", ".f32"};
  size_t length = strlen(path);
  for (int i = 0; i < 3; i++)
    if (length > 4 && !strcasecmp(path + length - 4, suffixes[i])) return i;
  return complain("%s: the name must end in .y4m, .png or .f32 (raw planes of float32)", path);
}

int reader_open(struct reader *reader, const char *path, struct geometry size, enum matrix matrix) {
  *reader = (struct reader){.path = path, .size = size, .matrix = matrix, .y4m.rate = "25:1"};
  int format = format_of(path);
  if (format < 0) return -1;
  reader->format = format;
  if (format != READ_RAW && size.channels != 3)
    return complain("%s: this program takes frames of %zu planes, so only .f32 input", path, size.channels);
  reader->file = fopen(path, "rb");
  if (!reader->file) return complain("%s: cannot read it: %s", path, strerror(errno));
  return format == READ_Y4M ? y4m_open(reader) : 0;
}

static int raw_next(struct reader *reader, float *planes) {
  size_t count = reader->size.channels * reader->size.height * reader->size.width;
  size_t bytes = fread(planes, 1, count * sizeof *planes, reader->file);
  if (ferror(reader->file)) return complain("%s: cannot read it: %s", reader->path, strerror(errno));
  if (bytes == 0 && reader->frames) return 0;
  if (bytes < count * sizeof *planes)
    return complain("%s: frame %zu is cut off: a frame is %zu float32 planes of %zux%zu, %zu bytes", reader->path,
                    reader->frames, reader->size.channels, reader->size.height, reader->size.width,
                    count * sizeof *planes);
  return 1;
}

int reader_next(struct reader *reader, float *planes) {
  int status;
  if (reader->format == READ_Y4M)
    status = y4m_next(reader, planes);
  else if (reader->format == READ_RAW)
    status = raw_next(reader, planes);
  else
    status = reader->frames ? 0 : png_read(reader, planes);
  reader->frames += status > 0;
  return status;
}

void reader_close(struct reader *reader) {
  if (reader->file) fclose(reader->file);
  free(reader->y4m.planes);
}

int writer_create(struct writer *writer, const char *path) {
  size_t length = strlen(path) + 32;
  *writer = (struct writer){.path = path, .temporary = malloc(length)};
  if (!writer->temporary) return complain("%s: out of memory", path);
  snprintf(writer->temporary, length, "%s.%ld.part", path, (long)getpid());
  writer->file = fopen(writer->temporary, "wbx");
  return writer->file ? 0 : complain("%s: cannot write there: %s", path, strerror(errno));
}

int writer_open(struct writer *writer, const char *path, struct geometry size, const char *rate) {
  int format = format_of(path);
  if (format < 0 || writer_create(writer, path)) return -1;
  writer->size = size;
  writer->format = format;
  return format == WRITE_Y4M ? y4m_start(writer, rate) : 0;
}

/* Truncated, as Python stores them; nan becomes 0. */
static unsigned char *to_bytes(const float *alpha, size_t count) {
  unsigned char *bytes = malloc(count);
  for (size_t i = 0; bytes && i < count; i++)
    bytes[i] = !(alpha[i] > 0) ? 0 : alpha[i] < 1 ? (unsigned char)(alpha[i] * 255.0f) : 255;
  return bytes;
}

int writer_put(struct writer *writer, const float *alpha) {
  size_t count = writer->size.height * writer->size.width;
  if (writer->format == WRITE_PNG && writer->frames)
    return complain("%s: a PNG holds one frame: write .y4m, or read one frame with --frames 1", writer->path);
  writer->frames++;
  if (writer->format == WRITE_RAW) {
    if (fwrite(alpha, sizeof *alpha, count, writer->file) == count) return 0;
    return complain("%s: cannot write it: %s", writer->path, strerror(errno));
  }
  unsigned char *bytes = to_bytes(alpha, count);
  if (!bytes) return complain("%s: out of memory", writer->path);
  int status = writer->format == WRITE_Y4M ? y4m_put(writer, bytes) : png_write(writer, bytes);
  free(bytes);
  return status ? complain("%s: cannot write it: %s", writer->path, strerror(errno)) : 0;
}

int writer_finish(struct writer *writer) {
  FILE *file = writer->file;
  writer->file = NULL;
  if (fclose(file) || rename(writer->temporary, writer->path)) {
    complain("%s: cannot write it: %s", writer->path, strerror(errno));
    remove(writer->temporary);
    return -1;
  }
  return 0;
}

void writer_close(struct writer *writer) {
  if (writer->file) {
    fclose(writer->file);
    remove(writer->temporary);
  }
  free(writer->temporary);
}
