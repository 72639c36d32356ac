/* PNG, 8 bits a sample, not interlaced: grey, RGB and both with alpha in; grey out. An alpha channel is ignored. */
#include "media.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST_FILE = 1 << 28 };

static const unsigned char SIGNATURE[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

struct image {
  size_t samples;         /* a pixel: 1 to 4 */
  unsigned char *file, *packed, *lines;
  size_t length, packed_length;
  char message[160];
};

static uint32_t big_endian(const unsigned char *bytes) {
  return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static uint32_t crc(const unsigned char *data, size_t length, uint32_t sum) {
  for (size_t i = 0; i < length; i++) {
    sum ^= data[i];
    for (int bit = 0; bit < 8; bit++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320u : 0);
  }
  return sum;
}

static const char *read_file(struct reader *reader, struct image *image) {
  size_t room = 1 << 16;
  for (;;) {
    unsigned char *larger = realloc(image->file, room);
    if (!larger) return "out of memory";
    image->file = larger;
    image->length += fread(image->file + image->length, 1, room - image->length, reader->file);
    if (ferror(reader->file)) return strerror(errno);
    if (image->length < room) return NULL;
    if (room >= LARGEST_FILE) return "the file is too large";
    room *= 2;
  }
}

static const char *read_header(const struct reader *reader, struct image *image, const unsigned char *data) {
  static const unsigned char samples[7] = {1, 0, 3, 0, 2, 0, 4};
  size_t width = big_endian(data), height = big_endian(data + 4);
  if (width != reader->size.width || height != reader->size.height) {
    snprintf(image->message, sizeof image->message, "it is %zux%zu (height x width), this program takes %zux%zu; scale it first",
             height, width, reader->size.height, reader->size.width);
    return image->message;
  }
  if (data[8] != 8 || data[9] > 6 || !samples[data[9]]) return "only 8-bit grey and RGB are read; convert it first";
  if (data[10] || data[11]) return "its compression or filter method is unknown";
  if (data[12]) return "it is interlaced; save it without interlacing";
  image->samples = samples[data[9]];
  return NULL;
}

/* Walk the chunks, check them, and join the IDAT chunks in `packed`. */
static const char *read_chunks(const struct reader *reader, struct image *image) {
  const unsigned char *file = image->file;
  if (image->length < 8 || memcmp(file, SIGNATURE, 8)) return "this is no PNG file";
  image->packed = malloc(image->length);
  if (!image->packed) return "out of memory";
  for (size_t at = 8; image->length - at >= 12;) {
    size_t length = big_endian(file + at);
    const unsigned char *name = file + at + 4, *data = name + 4;
    if (length > image->length - at - 12) return "it is cut off";
    if ((crc(name, length + 4, 0xffffffffu) ^ 0xffffffffu) != big_endian(data + length)) return "a checksum is wrong";
    int header = !memcmp(name, "IHDR", 4);
    if (header != (at == 8) || (header && length != 13)) return "its header is broken";
    const char *wrong = header ? read_header(reader, image, data) : NULL;
    if (wrong) return wrong;
    if (!memcmp(name, "IDAT", 4)) {
      memcpy(image->packed + image->packed_length, data, length);
      image->packed_length += length;
    }
    if (!memcmp(name, "IEND", 4)) return NULL;
    at += length + 12;
  }
  return "it is cut off";
}

static unsigned char paeth(int left, int up, int corner) {
  int guess = left + up - corner;
  int a = abs(guess - left), b = abs(guess - up), c = abs(guess - corner);
  return (unsigned char)(a <= b && a <= c ? left : b <= c ? up : corner);
}

/* Undo the filter of one line; `above` is the line before it, without filters. */
static const char *restore(unsigned char *line, const unsigned char *above, size_t bytes, size_t samples) {
  unsigned filter = *line++;
  if (filter > 4) return "a filter is unknown";
  for (size_t i = 0; i < bytes; i++) {
    int left = i < samples ? 0 : line[i - samples], up = above ? above[i] : 0;
    int corner = i < samples || !above ? 0 : above[i - samples];
    int guess = filter == 0 ? 0 : filter == 1 ? left : filter == 2 ? up : (left + up) / 2;
    line[i] = (unsigned char)(line[i] + (filter == 4 ? paeth(left, up, corner) : guess));
  }
  return NULL;
}

static const char *unpack(const struct reader *reader, struct image *image, float *planes) {
  size_t height = reader->size.height, width = reader->size.width, samples = image->samples;
  size_t stride = width * samples + 1;
  image->lines = malloc(height * stride);
  if (!image->lines) return "out of memory";
  const char *wrong = zlib_decompress(image->packed, image->packed_length, image->lines, height * stride);
  for (size_t i = 0; !wrong && i < height; i++) {
    unsigned char *line = image->lines + i * stride;
    wrong = restore(line, i ? line - stride + 1 : NULL, stride - 1, samples);
    for (size_t j = 0; !wrong && j < width; j++)
      for (size_t c = 0; c < 3; c++)
        planes[(c * height + i) * width + j] = (float)line[1 + j * samples + (samples < 3 ? 0 : c)] / 255.0f;
  }
  return wrong;
}

int png_read(struct reader *reader, float *planes) {
  struct image image = {0};
  const char *wrong = read_file(reader, &image);
  if (!wrong) wrong = read_chunks(reader, &image);
  if (!wrong) wrong = unpack(reader, &image, planes);
  free(image.file);
  free(image.packed);
  free(image.lines);
  return wrong ? complain("%s: %s", reader->path, wrong) : 1;
}

static int write_chunk(FILE *file, const char *name, const unsigned char *data, size_t length) {
  unsigned char head[8], tail[4];
  uint32_t sum = crc((const unsigned char *)name, 4, 0xffffffffu);
  sum = crc(data, length, sum) ^ 0xffffffffu;
  for (int i = 0; i < 4; i++) {
    head[i] = (unsigned char)(length >> (24 - 8 * i));
    head[4 + i] = (unsigned char)name[i];
    tail[i] = (unsigned char)(sum >> (24 - 8 * i));
  }
  return fwrite(head, 1, 8, file) != 8 || fwrite(data, 1, length, file) != length || fwrite(tail, 1, 4, file) != 4;
}

/* Bits of a deflate stream, first bit lowest. */
struct packer {
  unsigned char *out;
  size_t length;
  uint64_t bits;
  unsigned count;
};

static void put(struct packer *p, uint32_t bits, unsigned count) {
  p->bits |= (uint64_t)bits << p->count;
  for (p->count += count; p->count >= 8; p->count -= 8, p->bits >>= 8) p->out[p->length++] = (unsigned char)p->bits;
}

/* A symbol of the fixed literal code, whose bits go highest first. */
static void put_symbol(struct packer *p, unsigned symbol) {
  unsigned length = symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8, reversed = 0;
  unsigned code = symbol < 144 ? 48 + symbol : symbol < 256 ? 256 + symbol : symbol < 280 ? symbol - 256 : symbol - 88;
  for (unsigned bit = 0; bit < length; bit++) reversed |= (code >> bit & 1) << (length - 1 - bit);
  put(p, reversed, length);
}

/* zlib with the fixed code, where only runs of one byte are shortened: 258 bytes at a time, at distance 1. */
static size_t compress_runs(const unsigned char *data, size_t length, unsigned char *out) {
  struct packer p = {.out = out};
  uint32_t a = 1, b = 0;
  put(&p, 0x0178, 16);
  put(&p, 3, 3);
  for (size_t i = 0; i < length;) {
    size_t run = 0;
    while (i && run < 258 && i + run < length && data[i + run] == data[i - 1]) run++;
    if (run == 258) {
      put_symbol(&p, 285);
      put(&p, 0, 5);
      i += run;
    } else {
      put_symbol(&p, data[i++]);
    }
  }
  put_symbol(&p, 256);
  put(&p, 0, (8 - p.count) % 8);
  for (size_t i = 0; i < length; i++) {
    a = (a + data[i]) % 65521;
    b = (b + a) % 65521;
  }
  for (int i = 0; i < 4; i++) put(&p, (b << 16 | a) >> (24 - 8 * i) & 255, 8);
  return p.length;
}

int png_write(struct writer *writer, const unsigned char *alpha) {
  size_t height = writer->size.height, width = writer->size.width, bytes = height * (width + 1);
  unsigned char header[13] = {0}, *lines = malloc(bytes), *packed = malloc(bytes * 9 / 8 + 64);
  int failed = !lines || !packed;
  for (int i = 0; i < 4; i++) {
    header[i] = (unsigned char)(width >> (24 - 8 * i));
    header[4 + i] = (unsigned char)(height >> (24 - 8 * i));
  }
  header[8] = 8;
  for (size_t i = 0; !failed && i < height; i++) {
    lines[i * (width + 1)] = i ? 2 : 0; /* filter: less the line above */
    for (size_t j = 0; j < width; j++)
      lines[i * (width + 1) + 1 + j] = (unsigned char)(alpha[i * width + j] - (i ? alpha[(i - 1) * width + j] : 0));
  }
  if (!failed)
    failed = fwrite(SIGNATURE, 1, 8, writer->file) != 8 || write_chunk(writer->file, "IHDR", header, 13) ||
             write_chunk(writer->file, "IDAT", packed, compress_runs(lines, bytes, packed)) ||
             write_chunk(writer->file, "IEND", header, 0);
  free(lines);
  free(packed);
  return failed ? -1 : 0;
}
