/* The list of backends in order of preference, and what all of them share. cuda is a module, opened when it is asked for. */
#include "backend/module.h"

#include <string.h>

extern const struct pl_backend_table pl_backend_cpu, pl_backend_reference;

static const struct pl_backend_table *const backends[] = {&pl_backend_cpu, &pl_backend_reference, NULL};

const struct pl_backend_table *const *pl_backend_list(void) { return backends; }

const struct pl_backend_table *pl_backend_find(const char *name)
{
    for (int i = 0; backends[i]; i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    const char *why = "there is no such backend";
    const struct pl_module *m = strcmp(name, "cuda") == 0 ? pl_module_cuda(&why) : NULL;
    if (m)
        return m->table;
    pl_error(PL_ERR_MEMORY, "device", "%s cannot be used: %s\n`paceline doctor` shows what this build and machine have", name, why);
    return NULL;
}

bool pl_backend_cuda_describe(char *text, size_t bytes)
{
    const char *why;
    const struct pl_module *m = pl_module_cuda(&why);
    if (m)
        m->describe(text, bytes);
    else
        snprintf(text, bytes, "%s", why);
    return m != NULL;
}

int64_t pl_shape_elems(const struct pl_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->dims; k++)
        n *= s->dim[k];
    return n;
}

size_t pl_layout_bytes(const struct pl_layout *l, const struct pl_shape *s)
{
    return (size_t)pl_shape_elems(s) * (l->bf16 ? sizeof(uint16_t) : sizeof(float));
}

int64_t pl_shape_row_elems(const struct pl_shape *s)
{
    int64_t n = 1;
    for (int k = 1; k < s->dims; k++)
        n *= s->dim[k];
    return n;
}
