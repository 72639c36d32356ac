/* A qemu plugin: instructions that a program executes, by symbol, and each symbol's busiest block.
 *
 * At the end it prints, for every symbol that ran:
 *   symbol NAME INSTRUCTIONS
 *   block RUNS LENGTH, then the block's instructions, a line each
 * QEMU_API is 1 for qemu before 9, else 2; what is used here is the same in both. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*exit_callback)(qemu_plugin_id_t, void *);
typedef void (*translation_callback)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*execution_callback)(unsigned, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translation_callback);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, execution_callback, int flags, void *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exit_callback, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern char *qemu_plugin_insn_disas(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = QEMU_API;

struct block {
  uint64_t address, runs, length;
  char *text;
  struct symbol *symbol;
  struct block *next;
};

struct symbol {
  char *name;
  uint64_t instructions;
  struct block *busiest;
  struct symbol *next;
};

static struct symbol *symbols;
static struct block *blocks;

static struct symbol *find_symbol(const char *name) {
  for (struct symbol *symbol = symbols; symbol; symbol = symbol->next)
    if (!strcmp(symbol->name, name)) return symbol;
  struct symbol *symbol = calloc(1, sizeof *symbol);
  symbol->name = strdup(name);
  symbol->next = symbols;
  return symbols = symbol;
}

static char *disassemble(const struct qemu_plugin_tb *tb, size_t length) {
  size_t used = 0;
  char *text = calloc(1, 1);
  for (size_t i = 0; i < length; i++) {
    char *line = qemu_plugin_insn_disas(qemu_plugin_tb_get_insn(tb, i));
    size_t bytes = strlen(line);
    text = realloc(text, used + bytes + 2);
    memcpy(text + used, line, bytes);
    memcpy(text + used + bytes, "\n", 2);
    used += bytes + 1;
    free(line);
  }
  return text;
}

/* qemu may translate a block again; its counts go on. */
static struct block *find_block(const struct qemu_plugin_tb *tb) {
  const struct qemu_plugin_insn *first = qemu_plugin_tb_get_insn(tb, 0);
  const char *name = qemu_plugin_insn_symbol(first);
  uint64_t address = qemu_plugin_insn_vaddr(first), length = qemu_plugin_tb_n_insns(tb);
  for (struct block *block = blocks; block; block = block->next)
    if (block->address == address && block->length == length) return block;
  struct block *block = calloc(1, sizeof *block);
  *block = (struct block){address, 0, length, disassemble(tb, length), find_symbol(name && *name ? name : "?"), blocks};
  return blocks = block;
}

static void executed(unsigned cpu, void *data) {
  (void)cpu;
  __atomic_fetch_add(&((struct block *)data)->runs, 1, __ATOMIC_RELAXED);
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(tb, executed, 0, find_block(tb));
}

static void report(qemu_plugin_id_t id, void *data) {
  char line[512];
  (void)id, (void)data;
  for (struct block *block = blocks; block; block = block->next) {
    struct block *busiest = block->symbol->busiest;
    block->symbol->instructions += block->runs * block->length;
    if (!busiest || block->runs * block->length > busiest->runs * busiest->length) block->symbol->busiest = block;
  }
  for (struct symbol *symbol = symbols; symbol; symbol = symbol->next) {
    snprintf(line, sizeof line, "symbol %s %llu\n", symbol->name, (unsigned long long)symbol->instructions);
    qemu_plugin_outs(line);
    snprintf(line, sizeof line, "block %llu %llu\n", (unsigned long long)symbol->busiest->runs,
             (unsigned long long)symbol->busiest->length);
    qemu_plugin_outs(line);
    qemu_plugin_outs(symbol->busiest->text);
  }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  (void)info, (void)argc, (void)argv;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, report, NULL);
  return 0;
}
