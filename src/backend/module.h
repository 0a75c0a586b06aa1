/* What a backend that is a module of its own exports: one symbol of this type. */
#ifndef PL_BACKEND_MODULE_H
#define PL_BACKEND_MODULE_H

#include "backend/backend.h"

/* Goes up whenever the meaning of backend.h or base.h changes for a module. */
#define PL_MODULE_NUMBER 1
#define PL_MODULE_CUDA paceline_cuda_module

/* The first two stay where they are for ever: a stale module is known by them. */
struct pl_module {
    uint32_t number;     /* PL_MODULE_NUMBER */
    char version[28];    /* PL_VERSION */
    uint64_t op_bytes, io_bytes, table_bytes, options_bytes; /* sizeof the structs of backend.h */
    const struct pl_backend_table *table;
    void (*describe)(char *text, size_t bytes); /* what it is built with and what it sees here, for doctor */
};

#define PL_MODULE_HEAD .number = PL_MODULE_NUMBER, .version = PL_VERSION, .op_bytes = sizeof(struct pl_op), .io_bytes = sizeof(struct pl_io), \
                       .table_bytes = sizeof(struct pl_backend_table), .options_bytes = sizeof(struct pl_device_options)

/* The cuda backend's module, opened on the first call; NULL with the reason in *why. Any thread. */
const struct pl_module *pl_module_cuda(const char **why);

#endif
