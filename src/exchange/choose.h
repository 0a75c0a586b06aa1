/* Internal to exchange/: which algorithm sums a message of a given size. */
#ifndef PL_EXCHANGE_CHOOSE_H
#define PL_EXCHANGE_CHOOSE_H

#include "exchange/schedule.h"

#define PL_NATIVE PL_PATTERNS /* the library's own */
enum { PL_MOST_CHOICES = 16 };

/* From the smallest message on: up to so many bytes, this. The last has no limit. */
struct pl_choice {
    int rows;
    struct { size_t most_bytes; int pattern; } row[PL_MOST_CHOICES];
};

/* algorithm: as in the job file. auto: the rows of the file `table` for this transport and number of members,
 * where there are any, or else our own; MPI's own on mpi. PL_ERR_USAGE for native without such an all-reduce, and
 * for a table that is malformed. */
pl_status pl_choose(const char *algorithm, const char *table, const char *transport, int members, struct pl_choice *out);
/* false: the library's own. */
bool pl_choose_pattern(const struct pl_choice *c, size_t bytes, enum pl_pattern *out);
/* "ring", or "tree to 8 KB, ring": for rank 0. */
void pl_choose_describe(const struct pl_choice *c, char *text, size_t bytes);

#endif
