/* Internal to job/: reading a tree into struct pl_job. */
#ifndef PL_JOB_READ_H
#define PL_JOB_READ_H

#include "job/node.h"

pl_status pl_job_read_model(struct pl_job *j, const struct pl_node *model);
extern const char *const pl_job_later[]; /* NULL-terminated */

#endif
