/* YAML to a tree, by libyaml's document API. Every node keeps file, line and column, because every
 * message about a job names them. Anchors work; a key that stands twice in a map is refused. */
#include "job/node.h"

#include <string.h>
#include <yaml.h>

struct pl_node *pl_node_new(enum pl_node_kind kind, const char *file)
{
    struct pl_node *n = pl_alloc(sizeof *n, "a YAML node");
    if (!n)
        return NULL;
    n->kind = kind;
    n->file = pl_strdup(file);
    return n;
}

void pl_node_free(struct pl_node *n)
{
    if (!n)
        return;
    for (int i = 0; i < n->n; i++) {
        pl_node_free(n->child[i]);
        if (n->key)
            pl_free(n->key[i]);
    }
    pl_free(n->key);
    pl_free(n->key_line);
    pl_free(n->key_column);
    pl_free(n->child);
    pl_free(n->file);
    pl_free(n->text);
    pl_free(n);
}

pl_status pl_node_error(const struct pl_node *n, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n->line == 0)
        return pl_error(PL_ERR_USAGE, "job", "%s: %s", n->file, text);
    return pl_error(PL_ERR_USAGE, "job", "%s:%d:%d: %s", n->file, n->line, n->column, text);
}

static int find(const struct pl_node *map, const char *key)
{
    for (int i = 0; map && map->kind == PL_MAP && i < map->n; i++)
        if (strcmp(map->key[i], key) == 0)
            return i;
    return -1;
}

struct pl_node *pl_node_get(const struct pl_node *map, const char *key)
{
    int i = find(map, key);
    return i < 0 ? NULL : map->child[i];
}

static pl_status append(struct pl_node *to, const char *key, struct pl_node *child)
{
    if (to->n == to->capacity) {
        size_t old = (size_t)to->capacity, cap = old ? 2 * old : 8;
        to->child = pl_realloc(to->child, old * sizeof *to->child, cap * sizeof *to->child, "YAML");
        to->key = pl_realloc(to->key, old * sizeof *to->key, cap * sizeof *to->key, "YAML");
        to->key_line = pl_realloc(to->key_line, old * sizeof(int), cap * sizeof(int), "YAML");
        to->key_column = pl_realloc(to->key_column, old * sizeof(int), cap * sizeof(int), "YAML");
        if (!to->child || !to->key || !to->key_line || !to->key_column)
            return PL_ERR_MEMORY;
        to->capacity = (int)cap;
    }
    to->key[to->n] = key ? pl_strdup(key) : NULL;
    to->key_line[to->n] = child->line;
    to->key_column[to->n] = child->column;
    to->child[to->n++] = child;
    return PL_OK;
}

pl_status pl_node_put(struct pl_node *map, const char *key, struct pl_node *child)
{
    int i = find(map, key);
    if (i < 0)
        return append(map, key, child);
    pl_node_free(map->child[i]);
    map->child[i] = child;
    return PL_OK;
}

void pl_node_remove(struct pl_node *map, const char *key)
{
    int i = find(map, key);
    if (i < 0)
        return;
    pl_node_free(map->child[i]);
    pl_free(map->key[i]);
    for (map->n--; i < map->n; i++) {
        map->child[i] = map->child[i + 1];
        map->key[i] = map->key[i + 1];
        map->key_line[i] = map->key_line[i + 1];
        map->key_column[i] = map->key_column[i + 1];
    }
}

#define MOST_NODES 100000 /* aliases of aliases grow without end */

/* What is being read: nodes counts those made so far. */
struct reading { yaml_document_t *doc; const char *where; int nodes; };

static pl_status convert(struct reading *r, int index, int depth, struct pl_node **out);

static pl_status convert_map(struct reading *r, yaml_node_t *y, int depth, struct pl_node *n)
{
    for (yaml_node_pair_t *p = y->data.mapping.pairs.start; p < y->data.mapping.pairs.top; p++) {
        struct pl_node *child = NULL;
        yaml_node_t *k = yaml_document_get_node(r->doc, p->key);
        struct pl_node at = {.file = (char *)r->where, .line = (int)k->start_mark.line + 1, .column = (int)k->start_mark.column + 1};
        if (k->type != YAML_SCALAR_NODE)
            return pl_node_error(&at, "a key must be a plain word");
        const char *key = (const char *)k->data.scalar.value;
        if (pl_node_get(n, key))
            return pl_node_error(&at, "%s stands here twice", key);
        PL_TRY(convert(r, p->value, depth + 1, &child));
        PL_TRY(append(n, key, child));
        n->key_line[n->n - 1] = at.line;
        n->key_column[n->n - 1] = at.column;
    }
    return PL_OK;
}

static pl_status convert(struct reading *r, int index, int depth, struct pl_node **out)
{
    static const enum pl_node_kind kinds[] = {[YAML_SCALAR_NODE] = PL_SCALAR, [YAML_SEQUENCE_NODE] = PL_LIST, [YAML_MAPPING_NODE] = PL_MAP};
    yaml_node_t *y = yaml_document_get_node(r->doc, index);
    struct pl_node *n = pl_node_new(kinds[y->type], r->where);
    pl_status s = PL_OK;
    if (!n)
        return PL_ERR_MEMORY;
    n->line = (int)y->start_mark.line + 1;
    n->column = (int)y->start_mark.column + 1;
    if (depth > 32)
        s = pl_node_error(n, "nested too deeply");
    else if (++r->nodes > MOST_NODES)
        s = pl_node_error(n, "more than %d entries; aliases count each time", MOST_NODES);
    else if (n->kind == PL_SCALAR) {
        n->text = pl_strdup((const char *)y->data.scalar.value);
        n->quoted = y->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    } else if (n->kind == PL_MAP)
        s = convert_map(r, y, depth, n);
    else
        for (yaml_node_item_t *i = y->data.sequence.items.start; s == PL_OK && i < y->data.sequence.items.top; i++) {
            struct pl_node *child = NULL;
            s = convert(r, *i, depth + 1, &child);
            if (s == PL_OK)
                s = append(n, NULL, child);
        }
    if (s < 0)
        pl_node_free(n);
    else
        *out = n;
    return s;
}

static pl_status not_yaml(const yaml_parser_t *p, const char *where)
{
    return pl_error(PL_ERR_USAGE, "job", "%s:%d:%d: not YAML: %s", where, (int)p->problem_mark.line + 1,
                    (int)p->problem_mark.column + 1, p->problem ? p->problem : "unreadable");
}

static pl_status nothing_follows(yaml_parser_t *p, const char *where)
{
    yaml_document_t doc;
    if (!yaml_parser_load(p, &doc))
        return not_yaml(p, where);
    bool more = yaml_document_get_root_node(&doc) != NULL;
    int line = (int)doc.start_mark.line + 1;
    yaml_document_delete(&doc);
    return more ? pl_error(PL_ERR_USAGE, "job", "%s:%d:1: a second YAML document; a file holds one", where, line) : PL_OK;
}

pl_status pl_node_parse(const char *text, size_t bytes, const char *where, struct pl_node **out)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    if (!yaml_parser_initialize(&parser))
        return pl_error(PL_ERR_MEMORY, "job", "no memory for YAML");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
    pl_status s;
    if (!yaml_parser_load(&parser, &doc)) {
        s = not_yaml(&parser, where);
    } else {
        struct reading r = {.doc = &doc, .where = where};
        if (yaml_document_get_root_node(&doc))
            s = convert(&r, 1, 0, out);
        else
            s = (*out = pl_node_new(PL_MAP, where)) ? PL_OK : PL_ERR_MEMORY;
        yaml_document_delete(&doc);
        if (s == PL_OK && (s = nothing_follows(&parser, where)) < 0) {
            pl_node_free(*out);
            *out = NULL;
        }
    }
    yaml_parser_delete(&parser);
    return s;
}

/* ---- back to text ------------------------------------------------------------------------------- */

static bool plain(const char *s)
{
    return *s && strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+- ") == strlen(s) &&
           s[0] != ' ' && s[0] != '-' && s[strlen(s) - 1] != ' ';
}

static void emit_flow(const struct pl_node *n, struct pl_text *out)
{
    if (n->kind == PL_SCALAR) {
        bool number = n->text[0] == '-' && plain(n->text + 1);
        if (!n->quoted && (plain(n->text) || number))
            pl_text_add(out, "%s", n->text);
        else
            pl_text_add_json(out, n->text);
        return;
    }
    pl_text_add(out, n->kind == PL_LIST ? "[" : "{");
    for (int i = 0; i < n->n; i++) {
        pl_text_add(out, "%s", i ? ", " : "");
        if (n->kind == PL_MAP)
            pl_text_add(out, "%s: ", n->key[i]);
        emit_flow(n->child[i], out);
    }
    pl_text_add(out, n->kind == PL_LIST ? "]" : "}");
}

static bool has_maps(const struct pl_node *n)
{
    for (int i = 0; i < n->n; i++)
        if (n->child[i]->kind == PL_MAP)
            return true;
    return false;
}

/* Maps in block style, lists of maps an entry a line, the rest in one line. */
void pl_node_emit(const struct pl_node *n, int indent, struct pl_text *out)
{
    for (int i = 0; i < n->n; i++) {
        const struct pl_node *c = n->child[i];
        pl_text_add(out, "%*s", indent, "");
        if (n->kind == PL_LIST)
            pl_text_add(out, "- ");
        else
            pl_text_add(out, "%s: ", n->key[i]);
        if (n->kind == PL_MAP && c->kind != PL_SCALAR && c->n > 0 && (c->kind == PL_MAP || has_maps(c))) {
            pl_text_add(out, "\n");
            pl_node_emit(c, indent + 2, out);
        } else {
            emit_flow(c, out);
            pl_text_add(out, "\n");
        }
    }
}
