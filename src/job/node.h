/* Internal to job/: YAML as a tree whose nodes know where they stand. */
#ifndef PL_JOB_NODE_H
#define PL_JOB_NODE_H

#include "job/job.h"

enum pl_node_kind { PL_SCALAR, PL_LIST, PL_MAP };
struct pl_node {
    enum pl_node_kind kind;
    char *file;           /* "command line" for overrides */
    int line, column;     /* from 1; 0 on the command line */
    char *text;           /* scalars, and the key of a map's entry is in key[] */
    bool quoted;
    int n, capacity;
    char **key;           /* maps: names of the entries */
    int *key_line, *key_column;
    struct pl_node **child;
};

/* Parses one document. where: name for messages. An empty document is an empty map. */
pl_status pl_node_parse(const char *text, size_t bytes, const char *where, struct pl_node **out);
void pl_node_free(struct pl_node *n);
struct pl_node *pl_node_get(const struct pl_node *map, const char *key); /* NULL: none */
/* Puts a child into a map, replacing one of the same name; takes ownership of child. */
pl_status pl_node_put(struct pl_node *map, const char *key, struct pl_node *child);
void pl_node_remove(struct pl_node *map, const char *key);
struct pl_node *pl_node_new(enum pl_node_kind kind, const char *file);
/* "file:line:column: text" as a usage error. */
pl_status pl_node_error(const struct pl_node *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void pl_node_emit(const struct pl_node *n, int indent, struct pl_text *out);

/* value.c: puts a node's value, or a default's text, into base + key->offset. name: for messages. */
pl_status pl_value_set(const struct pl_key *key, const struct pl_node *n, void *base);
pl_status pl_value_default(const struct pl_key *key, void *base);
void pl_value_free(const struct pl_key *key, void *base);
void pl_value_text(const struct pl_key *key, const void *base, struct pl_text *out); /* added as it would be written */
/* The nearest name of a table, or NULL when none is near. */
const char *pl_key_nearest(const struct pl_key *keys, const char *name);

#endif
