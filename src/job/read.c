/* A job file, its model and the command line's overrides to a checked struct pl_job.
 * Paths that are read count from the folder of the file they stand in, on the command line from the
 * working directory; paths that are written from the working directory. */
#include "job/read.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- overrides ---------------------------------------------------------------------------------- */

/* What stands on the command line replaces what stands in the file, the other way to say it too. */
static const char *const either_or[][2] = {{"train.epochs", "train.steps"},
                                              {"train.batch", "train.global_batch"},
                                              {"data.train.file", "data.train.files"},
                                              {"data.test.file", "data.test.files"}};

static struct pl_node *descend(struct pl_node *root, const char *path, bool make, const char **last)
{
    struct pl_node *at = root;
    for (const char *dot; (dot = strchr(path, '.')); path = dot + 1) {
        char *word = pl_strdupf("%.*s", (int)(dot - path), path);
        struct pl_node *next = word ? pl_node_get(at, word) : NULL;
        if (word && make && (!next || next->kind != PL_MAP)) {
            next = pl_node_new(PL_MAP, "command line");
            if (next && pl_node_put(at, word, next) < 0)
                next = NULL;
        }
        pl_free(word);
        if (!next)
            return NULL;
        at = next;
    }
    *last = path;
    return at;
}

/* Line 0: from the command line, whatever its own lines are. */
static void clear_lines(struct pl_node *n)
{
    n->line = 0;
    for (int i = 0; i < n->n; i++) {
        n->key_line[i] = 0;
        clear_lines(n->child[i]);
    }
}

static pl_status override(struct pl_node *root, const char *text)
{
    const char *equals = strchr(text, '='), *last;
    struct pl_node *value = NULL, *map;
    if (!equals || equals == text)
        return pl_error(PL_ERR_USAGE, "job", "command line: \"%s\" is not key=value", text);
    if (strncmp(text, "model.", 6) == 0)
        return pl_error(PL_ERR_USAGE, "job", "command line, %s: a model is not overridden in parts; give model=FILE", text);
    char *path = pl_strdupf("%.*s", (int)(equals - text), text), *where = pl_strdupf("command line, %s", text);
    pl_status s = pl_node_parse(equals + 1, strlen(equals + 1), where, &value);
    for (size_t i = 0; s == PL_OK && i < sizeof either_or / sizeof *either_or; i++)
        for (int side = 0; side < 2; side++)
            if (strcmp(path, either_or[i][side]) == 0 && (map = descend(root, either_or[i][1 - side], false, &last))) {
                struct pl_node *other = pl_node_get(map, last);
                if (other && other->line > 0) /* from the file */
                    pl_node_remove(map, last);
            }
    if (s == PL_OK) {
        clear_lines(value);
        if (value->kind == PL_MAP && value->n == 0 && equals[1] == '\0') { /* "key=" is an empty text */
            value->kind = PL_SCALAR;
            value->text = pl_strdup("");
        }
        map = descend(root, path, true, &last);
        s = map ? pl_node_put(map, last, value) : PL_ERR_MEMORY;
    }
    pl_free(path);
    pl_free(where);
    return s;
}

/* ---- the walk through the tree ------------------------------------------------------------------ */

static const struct pl_key *find_key(const char *path)
{
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        if (strcmp(k->name, path) == 0)
            return k;
    return NULL;
}

static bool is_group(const char *path)
{
    size_t n = strlen(path);
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        if (strncmp(k->name, path, n) == 0 && k->name[n] == '.')
            return true;
    return false;
}

/* The first part of a key that is nearest to it; NULL: none is near. */
static const char *nearest_section(const char *path)
{
    static char best[64];
    char name[64], given[64];
    int least = 3;
    snprintf(given, sizeof given, "%.*s", (int)strcspn(path, "."), path);
    for (const struct pl_key *k = pl_job_keys; k->name; k++) {
        snprintf(name, sizeof name, "%.*s", (int)strcspn(k->name, "."), k->name);
        int d = pl_text_distance(given, name);
        if (d > 0 && d < least) {
            least = d;
            snprintf(best, sizeof best, "%s", name);
        }
    }
    return least < 3 ? best : NULL;
}

static pl_status unknown(const struct pl_node *at, const char *path)
{
    const char *near = pl_key_nearest(pl_job_keys, path);
    if (!near)
        near = nearest_section(path);
    return pl_node_error(at, "unknown key %s%s%s%s", path, near ? "\ndid you mean " : "\nsee paceline train --help-keys",
                         near ? near : "", near ? "?" : "");
}

static pl_status walk(struct pl_job *j, const struct pl_node *map, const char *prefix)
{
    for (int i = 0; i < map->n; i++) {
        struct pl_node *child = map->child[i];
        struct pl_node at = {.file = child->file, .line = child->line ? map->key_line[i] : 0, .column = map->key_column[i]};
        if (!*prefix && strcmp(map->key[i], "model") == 0)
            continue;
        if (strchr(map->key[i], '.'))
            return pl_node_error(&at, "%s: in a file keys stand below each other: train: {steps: 100}", map->key[i]);
        char *path = pl_strdupf("%s%s%s", prefix, *prefix ? "." : "", map->key[i]);
        const struct pl_key *k = find_key(path);
        pl_status s;
        if (k) {
            s = pl_value_set(k, child, j);
        } else if (is_group(path)) {
            s = child->kind == PL_MAP ? walk(j, child, path) : pl_node_error(child, "%s: wanted a map of keys, found \"%s\"", path, child->kind == PL_SCALAR ? child->text : "a list");
        } else {
            s = unknown(&at, path);
        }
        pl_free(path);
        PL_TRY(s);
    }
    return PL_OK;
}

/* ---- paths -------------------------------------------------------------------------------------- */

/* Makes a read path absolute, in the tree, so that the job's text holds wherever it is read again. */
static pl_status resolve_path(struct pl_node *n)
{
    char cwd[4096];
    if (n->kind != PL_SCALAR || !*n->text || strcmp(n->text, "none") == 0)
        return PL_OK;
    char *path = n->line > 0 ? pl_path_beside(n->file, n->text) : pl_strdup(n->text);
    if (path && path[0] != '/' && getcwd(cwd, sizeof cwd)) {
        char *full = pl_strdupf("%s/%s", cwd, path);
        pl_free(path);
        path = full;
    }
    if (!path)
        return PL_ERR_MEMORY;
    pl_free(n->text);
    n->text = path;
    return PL_OK;
}

/* A path, or each of a list. */
static pl_status resolve(struct pl_node *root, const char *key)
{
    const char *last;
    struct pl_node *map = descend(root, key, false, &last), *n = map ? pl_node_get(map, last) : NULL;
    for (int i = 0; n && n->kind == PL_LIST && i < n->n; i++)
        PL_TRY(resolve_path(n->child[i]));
    return n ? resolve_path(n) : PL_OK;
}

static pl_status load_model(struct pl_node *root)
{
    struct pl_node *n = pl_node_get(root, "model"), *model = NULL;
    char *text = NULL;
    size_t bytes = 0;
    if (!n)
        return pl_node_error(root, "model is missing: a file, or {name, input, layers} in place");
    if (n->kind == PL_MAP)
        return PL_OK;
    if (n->kind != PL_SCALAR)
        return pl_node_error(n, "model: wanted a file, or {name, input, layers} in place");
    PL_TRY(resolve(root, "model"));
    if (access(n->text, F_OK) != 0)
        return pl_node_error(n, "model: there is no file %s\na relative path counts from the folder of the job file, on the command line from the working directory", n->text);
    PL_TRY(pl_read_file(n->text, "job", PL_ERR_USAGE, &text, &bytes));
    pl_status s = pl_node_parse(text, bytes, n->text, &model);
    pl_free(text);
    PL_TRY(s);
    if (model->kind != PL_MAP) {
        s = pl_node_error(model, "a model is a map of name, input and layers");
        pl_node_free(model);
        return s;
    }
    return pl_node_put(root, "model", model);
}

bool pl_job_set_given(const struct pl_job_set *s) { return s->file || s->files.n > 0 || s->memory; }

const struct pl_node *pl_job_at(const struct pl_job *j, const char *key)
{
    const char *last;
    struct pl_node *map = descend(j->root, key, false, &last), *n = map ? pl_node_get(map, last) : NULL;
    return n ? n : j->root;
}

bool pl_job_given(const struct pl_job *j, const char *key) { return pl_job_at(j, key) != j->root; }

/* ---- the whole ---------------------------------------------------------------------------------- */

static pl_status fill(struct pl_job *j)
{
    static const char *const read_paths[] = {"data.train.file", "data.train.files", "data.test.file", "data.test.files", "train.init", "exchange.table"};
    if (j->root->kind != PL_MAP)
        return pl_node_error(j->root, "a job file is a map of keys");
    PL_TRY(load_model(j->root));
    for (size_t i = 0; i < sizeof read_paths / sizeof *read_paths; i++)
        PL_TRY(resolve(j->root, read_paths[i]));
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        PL_TRY(pl_value_default(k, j));
    PL_TRY(walk(j, j->root, ""));
    PL_TRY(pl_job_read_model(j, pl_node_get(j->root, "model")));
    PL_TRY(pl_job_check(j));
    struct pl_text text = {0};
    pl_node_emit(j->root, 0, &text);
    j->text = text.s;
    return j->text ? PL_OK : PL_ERR_MEMORY;
}

/* A model's file by itself is a job without data: to inspect it, to time it. */
static pl_status wrap_model(struct pl_node **root)
{
    if ((*root)->kind != PL_MAP || !pl_node_get(*root, "layers") || pl_node_get(*root, "model"))
        return PL_OK;
    struct pl_node *job = pl_node_new(PL_MAP, (*root)->file), *train = pl_node_new(PL_MAP, (*root)->file), *steps = pl_node_new(PL_SCALAR, (*root)->file);
    if (!job || !train || !steps || !(steps->text = pl_strdup("1")))
        return PL_ERR_MEMORY;
    PL_TRY(pl_node_put(train, "steps", steps));
    PL_TRY(pl_node_put(job, "train", train));
    PL_TRY(pl_node_put(job, "model", *root));
    *root = job;
    return PL_OK;
}

static pl_status build(const char *text, size_t bytes, const char *name, int overrides, char *const *over, struct pl_job **out)
{
    struct pl_job *j = pl_alloc(sizeof *j, "a job");
    if (!j)
        return PL_ERR_MEMORY;
    j->path = pl_strdup(name);
    pl_status s = pl_node_parse(text, bytes, name, &j->root);
    if (s == PL_OK)
        s = wrap_model(&j->root);
    for (int i = 0; s == PL_OK && i < overrides; i++)
        s = j->root->kind == PL_MAP ? override(j->root, over[i]) : PL_OK;
    if (s == PL_OK)
        s = fill(j);
    if (s < 0)
        pl_job_destroy(j);
    else
        *out = j;
    return s;
}

pl_status pl_job_read(const char *path, int overrides, char *const *over, struct pl_job **out)
{
    char *text = NULL;
    size_t bytes = 0;
    PL_TRY(pl_read_file(path, "job", PL_ERR_USAGE, &text, &bytes));
    pl_status s = build(text, bytes, path, overrides, over, out);
    pl_free(text);
    return s;
}

pl_status pl_job_parse(const char *text, const char *name, struct pl_job **out)
{
    return build(text, strlen(text), name, 0, NULL, out);
}

void pl_job_destroy(struct pl_job *j)
{
    if (!j)
        return;
    for (const struct pl_key *k = pl_job_keys; k->name; k++)
        pl_value_free(k, j);
    for (int i = 0; i < j->layers; i++) {
        pl_free(j->layer[i].name);
        pl_free(j->layer[i].kind);
        for (int f = 0; f < j->layer[i].from.n; f++)
            pl_free(j->layer[i].from.v[f]);
    }
    pl_free(j->layer);
    pl_free(j->model_name);
    pl_free(j->path);
    pl_free(j->text);
    pl_node_free(j->root);
    pl_free(j);
}
