/* Internal to exchange/: what progress.c asks of the memory that the ranks of a node share. Buckets and values
 * are numbered from 1, from the start of the run. */
#ifndef PL_EXCHANGE_NODE_H
#define PL_EXCHANGE_NODE_H

#include "exchange/exchange_internal.h"

/* Main thread. */
void pl_node_post(struct pl_shared *s); /* this rank's next bucket is final */
void pl_node_say(struct pl_shared *s, const double *values, int n);
pl_status pl_node_drain(struct pl_shared *s); /* until everybody's part of all buckets is whole */
float *pl_node_common(const struct pl_shared *s, int i); /* as pl_exchange_common and those after it */
struct pl_span pl_node_near(const struct pl_shared *s);
pl_status pl_node_meet(struct pl_shared *s);

/* The exchange thread. */
bool pl_node_posted(const struct pl_shared *s, uint64_t bucket); /* by all of the node */
void pl_node_add(const struct pl_shared *s, int64_t a, int64_t n, float *out); /* their sum of [a, a + n) */
void pl_node_done(struct pl_shared *s);                          /* this rank's part of the next bucket is whole */
/* The node's values, by its first rank; false: not all have said them. Then what all nodes' gave; false: not yet. */
bool pl_node_reduce(const struct pl_shared *s, uint64_t number, enum pl_reduce op, double *out, int n);
void pl_node_publish(struct pl_shared *s, uint64_t number, const double *values, int n);
bool pl_node_result(const struct pl_shared *s, uint64_t number, double *out, int n);
/* Appends the ranks of the node that have posted or said less than this one: "2, 5". */
void pl_node_missing(const struct pl_shared *s, char *text, size_t bytes);

#endif
