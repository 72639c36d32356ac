/* Frames in, mattes out: Y4M, PNG and raw float32. A function that fails says why on standard error and returns -1. */
#ifndef MEDIA_H
#define MEDIA_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The size of a frame that the program takes: planes of float32 in 0..1. */
struct geometry {
  size_t channels, height, width;
};

enum matrix { BT601, BT709 };

/* A Y4M stream: which planes a frame has and how its numbers are meant; rate such as "30:1". */
struct y4m {
  int chroma; /* 444, 420 or 0 for grey */
  int full_range;
  char rate[32];
  unsigned char *planes;
};

struct reader {
  const char *path;
  FILE *file;
  struct geometry size;
  enum { READ_Y4M, READ_PNG, READ_RAW } format;
  enum matrix matrix;
  struct y4m y4m;
  size_t frames;
};

struct writer {
  const char *path;
  char *temporary;
  FILE *file;
  struct geometry size;
  enum { WRITE_Y4M, WRITE_PNG, WRITE_RAW } format;
  size_t frames;
};

int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Open a file for frames of exactly this size. */
int reader_open(struct reader *reader, const char *path, struct geometry size, enum matrix matrix);
/* The next frame: 1 when there is one, 0 at the end. */
int reader_next(struct reader *reader, float *planes);
void reader_close(struct reader *reader);

/* Open an output under a temporary name beside it. */
int writer_create(struct writer *writer, const char *path);
/* The same for mattes, in the format that the name's suffix says. */
int writer_open(struct writer *writer, const char *path, struct geometry size, const char *rate);
/* Append one matte of height x width. */
int writer_put(struct writer *writer, const float *alpha);
/* Give the file its name. */
int writer_finish(struct writer *writer);
/* Remove what was written, unless it was finished. */
void writer_close(struct writer *writer);

int y4m_open(struct reader *reader);
int y4m_next(struct reader *reader, float *planes);
int y4m_start(struct writer *writer, const char *rate);
int y4m_put(struct writer *writer, const unsigned char *alpha);

int png_read(struct reader *reader, float *planes);
int png_write(struct writer *writer, const unsigned char *alpha);

/* Decompress a zlib stream that must hold exactly `size` bytes; NULL when done, else what is wrong with it. */
const char *zlib_decompress(const unsigned char *data, size_t length, unsigned char *out, size_t size);

#endif
