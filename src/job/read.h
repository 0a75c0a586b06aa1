/* Internal to job/: reading a tree into struct pl_job. */
#ifndef PL_JOB_READ_H
#define PL_JOB_READ_H

#include "job/node.h"

pl_status pl_job_read_model(struct pl_job *j, const struct pl_node *model);
/* Where a key stands, for messages; the root where it is not given. */
const struct pl_node *pl_job_at(const struct pl_job *j, const char *key);
/* check.c: all that is left to check once every key has its value. PL_ERR_USAGE */
pl_status pl_job_check(struct pl_job *j);

#endif
