/* Decompression of zlib streams: RFC 1950 around RFC 1951. Input may be hostile: nothing is read or written outside
 * the two buffers, and work is bounded by their lengths.
 */
#include "media.h"

#include <stdlib.h>

enum { LONGEST_CODE = 15, TABLE = 1 << LONGEST_CODE, LITERALS = 288, DISTANCES = 32 };

/* A prefix code as a table over the next 15 bits: symbol << 4 | length, 0 where no code starts so. */
struct code {
  uint16_t entry[TABLE];
};

struct stream {
  const unsigned char *data;
  size_t length, at;
  uint64_t bits; /* read ahead, first bit lowest */
  unsigned count;
  unsigned char *out;
  size_t size, done;
  struct code literals, distances;
};

static void fill(struct stream *s) {
  while (s->count <= 48 && s->at < s->length) {
    s->bits |= (uint64_t)s->data[s->at++] << s->count;
    s->count += 8;
  }
}

/* The next bits as a number, -1 past the end. */
static int take(struct stream *s, unsigned bits) {
  fill(s);
  if (s->count < bits) return -1;
  int value = (int)(s->bits & ((1u << bits) - 1));
  s->bits >>= bits;
  s->count -= bits;
  return value;
}

static int decode(struct stream *s, const struct code *code) {
  fill(s);
  unsigned entry = code->entry[s->bits & (TABLE - 1)], length = entry & 15;
  if (length == 0 || length > s->count) return -1;
  s->bits >>= length;
  s->count -= length;
  return (int)(entry >> 4);
}

/* A canonical code from the length of each symbol's code, 0 for unused symbols; -1 when codes collide. */
static int build(struct code *code, const unsigned char *lengths, unsigned symbols) {
  unsigned next = 0;
  for (unsigned i = 0; i < TABLE; i++) code->entry[i] = 0;
  for (unsigned length = 1; length <= LONGEST_CODE; length++, next <<= 1)
    for (unsigned symbol = 0; symbol < symbols; symbol++) {
      if (lengths[symbol] != length) continue;
      if (next >> length) return -1;
      unsigned reversed = 0;
      for (unsigned bit = 0; bit < length; bit++) reversed |= (next >> bit & 1) << (length - 1 - bit);
      for (unsigned i = reversed; i < TABLE; i += 1u << length) code->entry[i] = (uint16_t)(symbol << 4 | length);
      next++;
    }
  return 0;
}

static const char *stored_block(struct stream *s) {
  take(s, s->count % 8);
  int length = take(s, 16), inverse = take(s, 16);
  if (length < 0 || inverse < 0) return "the data is cut off";
  if ((length ^ inverse) != 0xffff) return "a stored block is broken";
  if ((size_t)length > s->size - s->done) return "there is more data than pixels";
  for (int i = 0; i < length; i++) {
    int byte = take(s, 8);
    if (byte < 0) return "the data is cut off";
    s->out[s->done++] = (unsigned char)byte;
  }
  return NULL;
}

static void fixed_codes(struct stream *s) {
  unsigned char lengths[LITERALS];
  for (unsigned i = 0; i < LITERALS; i++) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
  build(&s->literals, lengths, LITERALS);
  for (unsigned i = 0; i < DISTANCES; i++) lengths[i] = 5;
  build(&s->distances, lengths, DISTANCES);
}

static const char *dynamic_codes(struct stream *s) {
  static const unsigned char order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  unsigned char lengths[LITERALS + DISTANCES] = {0};
  int literals = take(s, 5), distances = take(s, 5), kinds = take(s, 4);
  if (literals < 0 || distances < 0 || kinds < 0) return "the data is cut off";
  for (int i = 0; i < kinds + 4; i++) {
    int length = take(s, 3);
    if (length < 0) return "the data is cut off";
    lengths[order[i]] = (unsigned char)length;
  }
  if (build(&s->literals, lengths, 19)) return "a code is broken";
  unsigned total = (unsigned)(literals + 257 + distances + 1), filled = 0;
  if (literals + 257 > LITERALS) return "a code is broken";
  for (unsigned i = 0; i < sizeof lengths; i++) lengths[i] = 0;
  while (filled < total) {
    int symbol = decode(s, &s->literals), repeat = 1, length = symbol;
    if (symbol < 0) return "a code is broken";
    if (symbol >= 16) {
      if (symbol == 16 && filled == 0) return "a code is broken";
      length = symbol == 16 ? lengths[filled - 1] : 0;
      int extra = take(s, symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
      if (extra < 0) return "the data is cut off";
      repeat = extra + (symbol == 18 ? 11 : 3);
    }
    if ((unsigned)repeat > total - filled) return "a code is broken";
    while (repeat--) lengths[filled++] = (unsigned char)length;
  }
  unsigned split = (unsigned)literals + 257;
  if (build(&s->literals, lengths, split) || build(&s->distances, lengths + split, total - split))
    return "a code is broken";
  return NULL;
}

/* Base and extra bits of the lengths 3..258 and the distances 1..32768: within a power of two, equal steps. */
static int length_of(struct stream *s, int symbol) {
  if (symbol == 28) return 258;
  int extra_bits = symbol < 8 ? 0 : symbol / 4 - 1;
  int base = symbol < 8 ? symbol + 3 : ((4 + symbol % 4) << extra_bits) + 3;
  int extra = take(s, (unsigned)extra_bits);
  return extra < 0 ? -1 : base + extra;
}

static int distance_of(struct stream *s, int symbol) {
  int extra_bits = symbol < 4 ? 0 : symbol / 2 - 1;
  int base = symbol < 4 ? symbol + 1 : ((2 + symbol % 2) << extra_bits) + 1;
  int extra = take(s, (unsigned)extra_bits);
  return extra < 0 ? -1 : base + extra;
}

static const char *coded_block(struct stream *s) {
  for (;;) {
    int symbol = decode(s, &s->literals);
    if (symbol < 0) return "the data is broken or cut off";
    if (symbol == 256) return NULL;
    if (symbol < 256) {
      if (s->done == s->size) return "there is more data than pixels";
      s->out[s->done++] = (unsigned char)symbol;
      continue;
    }
    if (symbol > 285) return "the data is broken";
    int length = length_of(s, symbol - 257), code = length < 0 ? -1 : decode(s, &s->distances);
    int distance = code < 0 || code > 29 ? -1 : distance_of(s, code);
    if (distance < 0) return "the data is broken or cut off";
    if ((size_t)distance > s->done) return "the data refers to before its start";
    if ((size_t)length > s->size - s->done) return "there is more data than pixels";
    for (; length; length--, s->done++) s->out[s->done] = s->out[s->done - (size_t)distance];
  }
}

static const char *blocks(struct stream *s) {
  const char *wrong = NULL;
  for (int last = 0; !last && !wrong;) {
    last = take(s, 1);
    int kind = take(s, 2);
    if (last < 0 || kind < 0) return "the data is cut off";
    if (kind == 3) return "the data is broken";
    if (kind == 0) {
      wrong = stored_block(s);
      continue;
    }
    if (kind == 1) fixed_codes(s);
    if (kind == 2 && (wrong = dynamic_codes(s))) return wrong;
    wrong = coded_block(s);
  }
  return wrong;
}

static const char *trailer(struct stream *s) {
  uint32_t sum = 0, a = 1, b = 0;
  if (s->done != s->size) return "there is less data than pixels";
  take(s, s->count % 8);
  for (int i = 0; i < 4; i++) {
    int byte = take(s, 8);
    if (byte < 0) return "the data is cut off";
    sum = sum << 8 | (uint32_t)byte;
  }
  for (size_t i = 0; i < s->size; i++) {
    a = (a + s->out[i]) % 65521;
    b = (b + a) % 65521;
  }
  return sum == (b << 16 | a) ? NULL : "the checksum is wrong";
}

const char *zlib_decompress(const unsigned char *data, size_t length, unsigned char *out, size_t size) {
  if (length < 6) return "the data is cut off";
  if ((data[0] & 15) != 8 || (data[0] * 256 + data[1]) % 31 || data[1] & 32) return "the compression is unknown";
  struct stream *s = calloc(1, sizeof *s);
  if (!s) return "out of memory";
  s->data = data;
  s->length = length;
  s->at = 2;
  s->out = out;
  s->size = size;
  const char *wrong = blocks(s);
  if (!wrong) wrong = trailer(s);
  free(s);
  return wrong;
}
