/* Y4M (YUV4MPEG2), 8 bits: 4:4:4 and 4:2:0 in, grey out.
 *
 * Colours follow BT.601, or BT.709 on request: the format does not say. Numbers are in the video range, 16..235 and
 * 16..240, unless the header has XCOLORRANGE=FULL. A chroma sample of 4:2:0 serves its four pixels alike. Mattes are
 * written as Cmono in the full range.
 */
#include "media.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { LINE = 1024 };

/* A header line without its end: 1 when read, 0 at the end of the file. */
static int read_line(struct reader *reader, char *line) {
  size_t length = 0;
  for (int c = getc(reader->file); c != '\n'; c = getc(reader->file)) {
    if (c == EOF && length == 0 && !ferror(reader->file)) return 0;
    if (c == EOF || c == 0 || length == LINE - 1) return complain("%s: broken Y4M header", reader->path);
    line[length++] = (char)c;
  }
  line[length] = 0;
  return 1;
}

static int read_chroma(struct reader *reader, const char *name) {
  static const char *const known[] = {"420jpeg", "420mpeg2", "420paldv", "420"};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (!strcmp(name, known[i])) return 420;
  if (!strcmp(name, "444")) return 444;
  if (!strcmp(name, "mono")) return 0;
  return complain("%s: chroma format C%s: only 8-bit C444, C420 and Cmono are read", reader->path, name);
}

static size_t plane_bytes(const struct reader *reader) {
  size_t height = reader->size.height, width = reader->size.width;
  if (reader->y4m.chroma == 0) return height * width;
  if (reader->y4m.chroma == 444) return height * width * 3;
  return height * width + (height + 1) / 2 * ((width + 1) / 2) * 2;
}

int y4m_open(struct reader *reader) {
  char line[LINE];
  unsigned long width = 0, height = 0;
  reader->y4m.chroma = 420;
  int status = read_line(reader, line);
  if (status < 0) return -1;
  char *word = status ? strtok(line, " ") : NULL;
  if (!word || strcmp(word, "YUV4MPEG2")) return complain("%s: this is no Y4M file", reader->path);
  while ((word = strtok(NULL, " "))) {
    if (*word == 'W') width = strtoul(word + 1, NULL, 10);
    if (*word == 'H') height = strtoul(word + 1, NULL, 10);
    if (*word == 'C' && (reader->y4m.chroma = read_chroma(reader, word + 1)) < 0) return -1;
    if (*word == 'F' && strspn(word + 1, "0123456789:") == strlen(word + 1))
      snprintf(reader->y4m.rate, sizeof reader->y4m.rate, "%.31s", word + 1);
    if (*word == 'I' && word[1] != 'p' && word[1] != '?')
      return complain("%s: interlaced video; deinterlace it first", reader->path);
    if (!strcmp(word, "XCOLORRANGE=FULL")) reader->y4m.full_range = 1;
  }
  if (width != reader->size.width || height != reader->size.height)
    return complain("%s: frames are %lux%lu (height x width), this program takes %zux%zu; scale them first", reader->path,
                    height, width, reader->size.height, reader->size.width);
  reader->y4m.planes = malloc(plane_bytes(reader));
  return reader->y4m.planes ? 0 : complain("%s: out of memory", reader->path);
}

static float unit(float value) { return value < 0 ? 0 : value > 1 ? 1 : value; }

static void convert(const struct reader *reader, float *planes) {
  size_t height = reader->size.height, width = reader->size.width, area = height * width;
  int shift = reader->y4m.chroma == 420;
  size_t stride = shift ? (width + 1) / 2 : width;
  size_t chroma_area = shift ? (height + 1) / 2 * stride : area;
  const unsigned char *luma = reader->y4m.planes, *blue = luma + area, *red = blue + chroma_area;
  float red_weight = reader->matrix == BT709 ? 0.2126f : 0.299f;
  float blue_weight = reader->matrix == BT709 ? 0.0722f : 0.114f;
  float green_weight = 1 - red_weight - blue_weight;
  float black = reader->y4m.full_range ? 0 : 16, span = reader->y4m.full_range ? 255 : 219;
  float chroma_span = reader->y4m.full_range ? 255 : 224;
  for (size_t i = 0; i < height; i++)
    for (size_t j = 0; j < width; j++) {
      size_t at = i * width + j, chroma_at = (i >> shift) * stride + (j >> shift);
      float y = ((float)luma[at] - black) / span, b = 0, r = 0;
      if (reader->y4m.chroma) {
        b = ((float)blue[chroma_at] - 128) / chroma_span * 2 * (1 - blue_weight);
        r = ((float)red[chroma_at] - 128) / chroma_span * 2 * (1 - red_weight);
      }
      planes[at] = unit(y + r);
      planes[area + at] = unit(y - (red_weight * r + blue_weight * b) / green_weight);
      planes[2 * area + at] = unit(y + b);
    }
}

int y4m_next(struct reader *reader, float *planes) {
  char line[LINE];
  int status = read_line(reader, line);
  if (status < 0) return -1;
  if (status == 0) return reader->frames ? 0 : complain("%s: no frame in it", reader->path);
  if (strncmp(line, "FRAME", 5) || (line[5] && line[5] != ' '))
    return complain("%s: frame %zu does not start with FRAME", reader->path, reader->frames);
  size_t bytes = plane_bytes(reader);
  if (fread(reader->y4m.planes, 1, bytes, reader->file) != bytes)
    return complain("%s: frame %zu is cut off", reader->path, reader->frames);
  convert(reader, planes);
  return 1;
}

int y4m_start(struct writer *writer, const char *rate) {
  if (fprintf(writer->file, "YUV4MPEG2 W%zu H%zu F%s Ip A1:1 Cmono XCOLORRANGE=FULL\n", writer->size.width,
              writer->size.height, rate) > 0)
    return 0;
  return complain("%s: cannot write it: %s", writer->path, strerror(errno));
}

int y4m_put(struct writer *writer, const unsigned char *alpha) {
  size_t count = writer->size.height * writer->size.width;
  return fputs("FRAME\n", writer->file) < 0 || fwrite(alpha, 1, count, writer->file) != count ? -1 : 0;
}
