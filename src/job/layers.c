/* The model's part of a job: its input, its layers, and a layer's own keys against its kind's table. */
#include "job/read.h"

#include <stdlib.h>
#include <string.h>

static bool fine_name(const char *s)
{
    return *s && strlen(s) <= 100 && strcmp(s, ".") != 0 && strcmp(s, "..") != 0 && /* it names a group of HDF5 */
           strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == strlen(s);
}

static pl_status text_of(const struct pl_node *map, const char *key, const char *what, char **out)
{
    const struct pl_node *n = pl_node_get(map, key);
    if (!n || n->kind != PL_SCALAR || !*n->text)
        return pl_node_error(n ? n : map, "%s needs a %s", what, key);
    return (*out = pl_strdup(n->text)) ? PL_OK : PL_ERR_MEMORY;
}

static pl_status read_layer(struct pl_job *j, const struct pl_node *n, struct pl_job_layer *l)
{
    static const struct pl_key from = {.name = "from", .type = PL_KEY_TEXTS, .offset = offsetof(struct pl_job_layer, from)};
    if (n->kind != PL_MAP)
        return pl_node_error(n, "a layer is written {name: NAME, kind: KIND, ...}");
    l->node = (struct pl_node *)n;
    PL_TRY(text_of(n, "name", "a layer", &l->name));
    PL_TRY(text_of(n, "kind", "a layer", &l->kind));
    if (!fine_name(l->name))
        return pl_node_error(n, "layer name \"%.100s\": at most 100 letters, digits, _ . and -", l->name);
    if (strcmp(l->name, "data") == 0)
        return pl_node_error(n, "a layer cannot be named data: that is the input");
    for (int i = 0; i < j->layers; i++)
        if (strcmp(j->layer[i].name, l->name) == 0)
            return pl_node_error(n, "two layers are named %s", l->name);
    return pl_node_get(n, "from") ? pl_value_set(&from, pl_node_get(n, "from"), l) : PL_OK;
}

#define LABEL_FORMS "input.label: int for a class, [int, K] for K classes, or the number of floats of a sample"

static bool is_int(const struct pl_node *n) { return n->kind == PL_SCALAR && strcmp(n->text, "int") == 0; }

static pl_status read_input(struct pl_job *j, const struct pl_node *model)
{
    static const struct pl_key dims = {.name = "input.data", .type = PL_KEY_INTS, .offset = 0, .min = 1, .max = 1e9};
    static const struct pl_key count = {.name = LABEL_FORMS, .type = PL_KEY_INTS, .offset = 0, .min = 1, .max = 1e9};
    const struct pl_node *n = pl_node_get(model, "input"), *data = pl_node_get(n, "data"), *label = pl_node_get(n, "label");
    struct pl_ints list = {0};
    if (!n || n->kind != PL_MAP || !data)
        return pl_node_error(n ? n : model, "the model needs input: {data: [CHANNELS, HEIGHT, WIDTH], label: int}");
    for (int i = 0; i < n->n; i++)
        if (strcmp(n->key[i], "data") != 0 && strcmp(n->key[i], "label") != 0)
            return pl_node_error(n->child[i], "unknown key input.%s; input has data and label", n->key[i]);
    PL_TRY(pl_value_set(&dims, data, &list));
    if (list.n < 1 || list.n > PL_MAX_DIMS - 1)
        return pl_node_error(data, "input.data: 1 to %d dimensions", PL_MAX_DIMS - 1);
    j->input.dims = list.n;
    memcpy(j->input.dim, list.v, sizeof(int64_t) * (size_t)list.n);
    if (!label || is_int(label))
        return PL_OK;
    bool classes = label->kind == PL_LIST && label->n == 2 && is_int(label->child[0]);
    PL_TRY(pl_value_set(&count, classes ? label->child[1] : label, &list));
    if (list.n != 1)
        return pl_node_error(label, LABEL_FORMS);
    *(classes ? &j->input.label_classes : &j->input.label_floats) = list.v[0];
    return PL_OK;
}

pl_status pl_job_read_model(struct pl_job *j, const struct pl_node *model)
{
    const struct pl_node *list = pl_node_get(model, "layers");
    for (int i = 0; i < model->n; i++)
        if (strcmp(model->key[i], "name") != 0 && strcmp(model->key[i], "input") != 0 && strcmp(model->key[i], "layers") != 0)
            return pl_node_error(model->child[i], "unknown key %s of a model; it has name, input and layers", model->key[i]);
    const struct pl_node *name = pl_node_get(model, "name");
    j->model_name = pl_strdup(name && name->kind == PL_SCALAR ? name->text : "model");
    PL_TRY(read_input(j, model));
    if (!list || list->kind != PL_LIST || list->n == 0)
        return pl_node_error(list ? list : model, "the model needs layers: a list");
    j->layer = pl_alloc((size_t)list->n * sizeof *j->layer, "layers");
    if (!j->layer)
        return PL_ERR_MEMORY;
    for (int i = 0; i < list->n; i++) {
        struct pl_job_layer *l = &j->layer[i];
        pl_status s = read_layer(j, list->child[i], l);
        j->layers = i + 1;
        PL_TRY(s);
    }
    return PL_OK;
}

static const struct pl_key *find_key(const struct pl_key *keys, const char *name)
{
    for (; keys && keys->name; keys++)
        if (strcmp(keys->name, name) == 0)
            return keys;
    return NULL;
}

pl_status pl_job_layer_config(const struct pl_job_layer *l, const struct pl_key *keys, void *config)
{
    static const struct pl_key none[] = {{.name = NULL}};
    const struct pl_node *n = l->node;
    keys = keys ? keys : none;
    for (const struct pl_key *k = keys; k->name; k++)
        PL_TRY(pl_value_default(k, config));
    for (int i = 0; i < n->n; i++) {
        const char *name = n->key[i];
        if (strcmp(name, "name") == 0 || strcmp(name, "kind") == 0 || strcmp(name, "from") == 0)
            continue;
        const struct pl_key *k = find_key(keys, name);
        struct pl_node at = {.file = n->file, .line = n->key_line[i], .column = n->key_column[i]};
        const char *near = pl_key_nearest(keys, name);
        if (!k)
            return pl_node_error(&at, "layer %s: unknown key %s of kind %s%s%s%s", l->name, name, l->kind,
                                 near ? "\ndid you mean " : "", near ? near : "", near ? "?" : "");
        PL_TRY(pl_value_set(k, n->child[i], config));
    }
    return PL_OK;
}

void pl_job_layer_config_free(const struct pl_key *keys, void *config)
{
    for (; config && keys && keys->name; keys++)
        pl_value_free(keys, config);
}

pl_status pl_job_layer_error(const struct pl_job_layer *l, const char *fmt, ...)
{
    char text[900];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return pl_node_error(l->node, "%s", text);
}
