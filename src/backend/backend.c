/* The list of backends in order of preference, and what all of them share. */
#include "backend/backend.h"

#include <string.h>

extern const struct pl_backend_table pl_backend_cpu, pl_backend_reference;

static const struct pl_backend_table *const backends[] = {&pl_backend_cpu, &pl_backend_reference, NULL};

const struct pl_backend_table *const *pl_backend_list(void) { return backends; }

const struct pl_backend_table *pl_backend_find(const char *name)
{
    for (int i = 0; backends[i]; i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    return NULL;
}

int64_t pl_shape_elems(const struct pl_shape *s)
{
    int64_t n = 1;
    for (int k = 0; k < s->dims; k++)
        n *= s->dim[k];
    return n;
}

int64_t pl_shape_row_elems(const struct pl_shape *s)
{
    int64_t n = 1;
    for (int k = 1; k < s->dims; k++)
        n *= s->dim[k];
    return n;
}
