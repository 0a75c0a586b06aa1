/* world: MPI start and stop, who is where, agreement on failure during set-up, and the only place
 * that ends the program. Main thread only. */
#ifndef PL_WORLD_H
#define PL_WORLD_H

#include "base/base.h"

struct pl_world {
    int rank, ranks;             /* in the whole run */
    int local_rank, local_ranks; /* on this node */
    int leader;                   /* the first rank of this node */
    int nodes, least_local, most_local; /* how many, and ranks of the one with the fewest, the most */
    char host[64];
    int node_cores; /* in the masks of all ranks of this node together */
    int cores;   /* in this rank's affinity mask */
    int threads; /* compute threads a rank should take: its fair share of the mask, or OMP_NUM_THREADS */
    bool cores_unused; /* the masks of this node's ranks leave cores of the allocation unused */
    bool reported;     /* the run's one message has been printed */
    bool lost;         /* ranks are lost: no MPI call can be trusted, each ends by itself */
    struct pl_world *whole; /* of a part of the run, whose ranks count from 0: the run; NULL: this is the run */
    int *run_rank;     /* [ranks] of a part: their numbers in the run; NULL: the same */
    void *comm;        /* MPI's; internal to world/ */
    bool joined;       /* MPI was there before, and stays */
};
/* A rank's number in the run, for messages. */
static inline int pl_world_run_rank(const struct pl_world *w, int rank) { return w->run_rank ? w->run_rank[rank] : rank; }

/* MPI_Init_thread(SERIALIZED) and the facts above. Collective. Refuses ranks that were
 * started together and each see a world of 1 (srun without PMI, another MPI's mpirun): PL_ERR_USAGE. */
pl_status pl_world_start(int *argc, char ***argv, struct pl_world *w);

/* The same where the program that this is a part of may have started MPI already (PL_ERR_USAGE: with less than
 * MPI_THREAD_SERIALIZED). Until leave its calls on MPI_COMM_WORLD return errors instead of ending it. leave prints nothing, and
 * ends MPI if it was started here; also after a join that failed. Collective. */
pl_status pl_world_join(struct pl_world *w);
void pl_world_leave(struct pl_world *w);

/* The ranks that say the same colour, in the run's order: agreement and set-up collectives are theirs alone. A failure that
 * they agree on counts as reported in the run. Collective over w; leave before w ends. */
pl_status pl_world_part(struct pl_world *w, int colour, struct pl_world *out);
void pl_world_part_leave(struct pl_world *part);

/* Set-up, open, load and save: every rank brings its status, every rank leaves with the worst one: a cause before what may
 * follow from it, PL_ERR_PEER before PL_ERR_ECHO, and among the same the lowest rank's, which prints its recorded message, once.
 * Collective. */
pl_status pl_world_agree(struct pl_world *w, pl_status mine);

/* The same in silence, for what may fail, with other codes too: the code, not 0, of the rank that would speak; rank -1 where
 * none brings one. Collective. */
pl_status pl_world_first(struct pl_world *w, int mine, int *rank, int *code);

/* Prints the recorded message, unless it has been: before what may record or clear others. */
void pl_world_say(struct pl_world *w, pl_status s);

/* Ends in order: MPI_Finalize, then returns the exit code of s. Every rank must get here. Prints the
 * recorded message if it has not been printed. */
int pl_world_finish(struct pl_world *w, pl_status s);

/* Ends the job from inside a step: prints this rank's message and calls MPI_Abort with the exit
 * code; after PL_ERR_ECHO waits a few seconds first, so that the cause is read, not the echo. Any
 * thread. Does not return. */
_Noreturn void pl_world_abort(struct pl_world *w, pl_status s);

/* Set-up collectives, until the exchange thread starts. */
pl_status pl_world_broadcast(struct pl_world *w, void *data, size_t bytes, int root);
/* out[ranks * bytes] on every rank. */
pl_status pl_world_allgather(struct pl_world *w, const void *mine, size_t bytes, void *out);
/* The same to rank 0 alone; out is not used on the others. */
pl_status pl_world_gather(struct pl_world *w, const void *mine, size_t bytes, void *out);
/* The same as allgather among some ranks, rank[members], in one order; collective over those alone. */
pl_status pl_world_allgather_among(struct pl_world *w, const int *rank, int members, const void *mine, size_t bytes, void *out);
/* Plain MPI_Allreduce, to measure against. */
pl_status pl_world_allreduce(struct pl_world *w, const float *in, float *out, int64_t n);
const char *pl_world_mpi_version(void); /* one line, before or after start */

#endif
