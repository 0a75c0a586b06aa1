/* The main thread's half of the exchange: how to add up is chosen, slices become buckets.
 * A bucket is a range of the gradient slab of about bucket_bytes, closed as backward hands over
 * slices from the far end (Li et al., PyTorch Distributed, VLDB 2020, section 3.2.3). */
#include "exchange/exchange_internal.h"
#include "exchange/node.h"

#include <string.h>

/* ---- who with whom ------------------------------------------------------------------------------ */

struct place { int leader, local; }; /* of a rank: the first rank of its node, its place there */

/* The ranks on a node, or those of one place over all nodes; -1: any. */
static int pick(const struct place *all, int ranks, int leader, int local, int *out)
{
    int n = 0;
    for (int r = 0; r < ranks; r++)
        if ((leader < 0 || all[r].leader == leader) && (local < 0 || all[r].local == local))
            out[n++] = r;
    return n;
}

/* By node: all columns have one order, and a ring visits each node once. */
static void sort_by_node(const struct place *all, int *rank, int n)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k > 0 && all[rank[k]].leader < all[rank[k - 1]].leader; k--) {
            int swap = rank[k];
            rank[k] = rank[k - 1];
            rank[k - 1] = swap;
        }
}

static void free_levels(struct pl_levels *l)
{
    pl_free(l->node);
    pl_free(l->column_ranks);
    *l = (struct pl_levels){0};
}

static pl_status find_levels(struct pl_exchange *x, bool two)
{
    struct pl_world *w = x->world;
    struct pl_levels *l = &x->levels;
    struct place mine = {w->leader, w->local_rank}, *all = pl_alloc((size_t)w->ranks * sizeof *all, "places of ranks");
    free_levels(l);
    l->node = pl_alloc((size_t)w->ranks * sizeof *l->node, "ranks of this node");
    l->column_ranks = pl_alloc((size_t)w->ranks * sizeof *l->column_ranks, "ranks of this column");
    pl_status s = pl_world_agree(w, all && l->node && l->column_ranks ? PL_OK : PL_ERR_MEMORY);
    if (s == PL_OK)
        s = pl_world_allgather(w, &mine, sizeof mine, all);
    if (s == PL_OK) {
        l->place = w->local_rank;
        l->columns = two ? w->least_local : 1;
        l->column = !two ? 0 : w->local_rank < l->columns ? w->local_rank : -1;
        l->node_ranks = pick(all, w->ranks, w->leader, -1, l->node);
        l->members = l->column < 0 ? 0 : pick(all, w->ranks, -1, two ? l->column : -1, l->column_ranks);
        if (!x->options.by_rank)
            sort_by_node(all, l->column_ranks, l->members);
    }
    pl_free(all);
    return s;
}

/* ---- choice ------------------------------------------------------------------------------------- */

static pl_status open_alone(struct pl_exchange *x)
{
    snprintf(x->why, sizeof x->why, "one rank, nothing to exchange");
    snprintf(x->name, sizeof x->name, "none");
    x->gradient = x->sum = x->own[0] = pl_alloc((size_t)x->elems * sizeof(float), "gradients");
    return pl_world_agree(x->world, x->gradient ? PL_OK : PL_ERR_MEMORY);
}

static bool named(const char *choice) { return choice && strcmp(choice, "auto") != 0; }

/* PL_END: not here, x->why says it. */
static pl_status map_node(struct pl_exchange *x)
{
    struct pl_levels *l = &x->levels;
    struct pl_extent own[PL_OWN_EXTENTS];
    void *memory;
    int values = x->options.values, common = x->options.common;
    size_t bytes = pl_exchange_shared_bytes(l->node_ranks, x->elems, values, common);
    pl_exchange_shared_extents(x->world->local_rank, l->node_ranks, x->elems, values, common, own);
    pl_status s = pl_exchange_map(x->world, l->node, l->node_ranks, bytes, own, &memory, x->why, sizeof x->why);
    if (s == PL_END && common > 0) /* it is not only for speed */
        return pl_error(PL_ERR_MEMORY, "exchange", "%s", x->why);
    if (s != PL_OK)
        return s;
    for (int i = 0; i < l->node_ranks; i++) /* for messages, from here on */
        l->node[i] = pl_world_run_rank(x->world, l->node[i]);
    s = pl_exchange_shared_open(x, memory, x->world->local_rank, l->node_ranks, l->node);
    if (s < 0)
        pl_exchange_unmap(memory, bytes, l->node_ranks);
    else
        snprintf(x->why, sizeof x->why, "the %d ranks of %s add up in %.1f MB that they share", l->node_ranks,
                 x->world->nodes > 1 ? "each node" : "this node", (double)bytes / 1e6);
    return pl_world_agree(x->world, s);
}

static pl_status open_node(struct pl_exchange *x)
{
    const struct pl_world *w = x->world;
    const struct pl_exchange_options *o = &x->options;
    if (!o->two_level || (w->nodes == 1 && (named(o->transport) || named(o->algorithm)))) {
        if (o->by_rank)
            snprintf(x->why, sizeof x->why, "no shared memory, as gradients are added up in the order of the ranks");
        else
            snprintf(x->why, sizeof x->why, "no shared memory by the job's choice of exchange.%s",
                     !o->two_level ? "two_level" : named(o->transport) ? "transport" : "algorithm");
        return PL_END;
    }
    if (w->most_local == 1) {
        snprintf(x->why, sizeof x->why, "one rank a node");
        return PL_END;
    }
    return map_node(x);
}

/* The gradient, the sum and what is between, as far as they do not lie in shared memory. */
static pl_status make_sums(struct pl_exchange *x)
{
    size_t bytes = (size_t)x->elems * sizeof(float);
    if (!x->shared) {
        x->gradient = x->own[0] = pl_alloc(bytes, "gradients");
        x->sum = x->own[1] = pl_alloc(bytes, "the agreed gradient");
        return x->gradient && x->sum ? PL_OK : PL_ERR_MEMORY;
    }
    int64_t buckets = 1 + (int64_t)((double)x->elems * sizeof(float) / x->options.bucket_bytes);
    x->partial_elems = x->elems / x->levels.columns + 32 * (buckets + 1 + 2 * x->options.exacts);
    x->partial = x->own[2] = pl_alloc((size_t)x->partial_elems * sizeof(float), "a part of the node's gradient");
    return x->partial ? PL_OK : PL_ERR_MEMORY;
}

static pl_status make_slabs(struct pl_exchange *x)
{
    if (x->reducer)
        return PL_OK;
    PL_TRY(make_sums(x));
    if (!x->codec)
        return PL_OK;
    x->residual = x->own[3] = pl_alloc((size_t)x->elems * sizeof(float), "what compression loses");
    return x->residual ? PL_OK : PL_ERR_MEMORY;
}

static pl_status choose_algorithm(struct pl_exchange *x, const char *transport)
{
    char text[96];
    const struct pl_exchange_options *o = &x->options;
    PL_TRY(pl_choose(o->algorithm ? o->algorithm : "auto", o->table, transport, x->levels.members, &x->choice));
    pl_choose_describe(&x->choice, text, sizeof text);
    if (x->codec && named(o->algorithm))
        return pl_error(PL_ERR_USAGE, "exchange", "exchange.algorithm %s cannot add up compressed gradients\n"
                        "leave it auto with exchange.compress", o->algorithm);
    snprintf(x->name, sizeof x->name, "%s%s%s%s", x->shared ? "shared memory, " : "", x->codec ? "compressed " : "",
             x->codec ? x->codec->name : "", x->codec ? "" : text);
    x->transport = transport;
    return PL_OK;
}

/* The network among the ranks of a column; nobody has less than two nodes here, or all have one level. */
static pl_status open_network(struct pl_exchange *x)
{
    const struct pl_levels *l = &x->levels;
    struct pl_world *w = x->world;
    struct pl_network n = {0};
    struct pl_transport_options o = x->options.network;
    char why[1024], reason[256];
    o.timeout_ms = x->options.timeout_ms;
    PL_TRY(pl_world_agree(w, pl_transport_find(w, x->reducer ? "mpi" : x->options.transport, &o, &n.table, why, sizeof why)));
    pl_status s = make_slabs(x);
    if (s == PL_OK)
        s = choose_algorithm(x, n.table->name);
    PL_TRY(pl_world_agree(w, s));
    if (l->column >= 0)
        s = pl_network_open(w, &o, l->column_ranks, l->members, w->nodes == 1, &n);
    s = pl_world_agree(w, s);
    snprintf(reason, sizeof reason, "%.255s", x->why);
    snprintf(x->why, sizeof x->why, "%.900s; %s%s%s", why, reason, n.how[0] ? "; by " : "", n.how);
    if (s == PL_OK)
        s = pl_world_agree(w, pl_exchange_network_open(x, l->column >= 0 ? &n : NULL));
    else
        pl_network_close(&n, true);
    return s;
}

/* Counts go by MPI. */
static pl_status open_far(struct pl_exchange *x)
{
    char counts[sizeof x->why];
    PL_TRY(find_levels(x, false));
    PL_TRY(pl_exchange_far_open(x));
    PL_TRY(open_network(x));
    snprintf(counts, sizeof counts, "%.*s", (int)strcspn(x->why, ";"), x->why);
    snprintf(x->why, sizeof x->why, "where they lie; counts by %.1000s", counts);
    x->options.far.table->reducer_describe(x->reducer, x->name, sizeof x->name);
    x->transport = "nccl";
    return PL_OK;
}

static pl_status open(struct pl_exchange *x)
{
    if (x->world->ranks == 1)
        return open_alone(x);
    if (x->options.far.table)
        return open_far(x);
    PL_TRY(find_levels(x, true));
    pl_status s = open_node(x);
    if (s < 0)
        return s;
    if (s == PL_OK && x->world->nodes == 1) {
        size_t at = strlen(x->why);
        x->algorithm = &pl_algorithm_shared;
        snprintf(x->name, sizeof x->name, "shared memory");
        if (x->codec)
            snprintf(x->why + at, sizeof x->why - at, "; exchange.compress %s: nothing leaves this node, nothing is compressed", x->codec->name);
        else if (x->options.network.interface || x->options.table)
            snprintf(x->why + at, sizeof x->why - at, "; nothing leaves this node: exchange.%s is not used", x->options.network.interface ? "interface" : "table");
        return PL_OK;
    }
    if (s == PL_END)
        PL_TRY(find_levels(x, false));
    return open_network(x);
}

static struct pl_exchange *make(const struct pl_exchange_options *o, int64_t elems)
{
    struct pl_exchange *x = pl_alloc(sizeof *x, "exchange");
    if (!x)
        return NULL;
    x->codec = o->compress ? pl_codec_find(o->compress) : NULL;
    x->exact = pl_alloc((size_t)(o->exacts + o->gaps) * sizeof *x->exact, "what is not compressed");
    if (!x->exact) {
        pl_free(x);
        return NULL;
    }
    x->gap = x->exact + o->exacts;
    if (o->exacts > 0)
        memcpy(x->exact, o->exact, (size_t)o->exacts * sizeof *x->exact);
    if (o->gaps > 0)
        memcpy(x->gap, o->gap, (size_t)o->gaps * sizeof *x->gap);
    x->options = *o;
    x->options.values = pl_exchange_most_values(o->values);
    x->elems = elems;
    x->step = -1;
    x->transport = "none";
    return x;
}

pl_status pl_exchange_create(struct pl_world *w, const struct pl_exchange_options *o, int64_t elems, struct pl_exchange **out)
{
    struct pl_exchange *x = make(o, elems);
    PL_TRY(pl_world_agree(w, x ? PL_OK : PL_ERR_MEMORY));
    x->world = w;
    pl_status s = open(x);
    if (s < 0)
        pl_exchange_destroy(x);
    else
        *out = x;
    return s;
}

static pl_status open_in(struct pl_exchange *x, void *memory, const struct pl_network *network)
{
    if (memory)
        PL_TRY(pl_exchange_shared_open(x, memory, x->levels.place, x->levels.node_ranks, x->levels.node));
    if (!network) {
        x->algorithm = &pl_algorithm_shared;
        snprintf(x->name, sizeof x->name, "shared memory");
        return PL_OK;
    }
    PL_TRY(make_slabs(x));
    PL_TRY(choose_algorithm(x, network->table->name));
    return pl_exchange_network_open(x, network);
}

pl_status pl_exchange_create_in(void *memory, const struct pl_levels *levels, const struct pl_network *network,
                                const struct pl_exchange_options *o, int64_t elems, struct pl_exchange **out)
{
    struct pl_exchange *x = make(o, elems);
    if (!x)
        return PL_ERR_MEMORY;
    x->levels = *levels;
    pl_status s = open_in(x, memory, network);
    if (s < 0)
        pl_exchange_destroy(x);
    else
        *out = x;
    return s;
}

void pl_exchange_destroy(struct pl_exchange *x)
{
    if (!x)
        return;
    if (x->reducer)
        x->options.far.table->reducer_close(x->reducer);
    if (x->algorithm)
        x->algorithm->close(x);
    pl_exchange_shared_close(x);
    for (int i = 0; i < 4; i++)
        pl_free(x->own[i]);
    pl_free(x->exact);
    if (x->world)
        free_levels(&x->levels);
    pl_free(x);
}

const char *pl_exchange_transport(const struct pl_exchange *x) { return x->transport; }
const char *pl_exchange_algorithm(const struct pl_exchange *x) { return x->name; }
const char *pl_exchange_why(const struct pl_exchange *x) { return x->why; }
bool pl_exchange_is_far(const struct pl_exchange *x) { return x && x->reducer; }
float *pl_exchange_gradient(struct pl_exchange *x) { return x->gradient; }
float *pl_exchange_residual(struct pl_exchange *x) { return x->residual; }
const float *pl_exchange_agreed(const struct pl_exchange *x) { return x->sum; }
float *pl_exchange_common(struct pl_exchange *x, int i) { return x->shared && i < x->options.common ? pl_node_common(x->shared, i) : NULL; }
struct pl_span pl_exchange_near(const struct pl_exchange *x) { return x->shared ? pl_node_near(x->shared) : (struct pl_span){0, x->elems}; }
pl_status pl_exchange_meet(struct pl_exchange *x) { return x->shared ? pl_node_meet(x->shared) : PL_OK; }

void pl_exchange_append(char *list, size_t bytes, const char *more)
{
    size_t at = strlen(list), n = strlen(more);
    if (n > 0 && at + n + 3 <= bytes)
        snprintf(list + at, bytes - at, "%s%s", at > 0 ? ", " : "", more);
}

pl_status pl_exchange_timed_out(double ms, int64_t step, const char *missing)
{
    return pl_error(PL_ERR_PEER, "exchange",
                    "waited %g s for the ranks in step %lld; %s%s\n"
                    "%s; exchange.timeout sets how long is waited",
                    ms / 1000, (long long)step, missing[0] ? "missing: rank " : "all answer, but nothing moves", missing,
                    missing[0] ? "see that rank's log" : "is the network slow, or a rank busy elsewhere?");
}

/* ---- a step ------------------------------------------------------------------------------------- */

pl_status pl_exchange_begin(struct pl_exchange *x, int64_t step)
{
    x->bucket_end = x->ready_from = x->elems;
    x->step = step;
    x->first_post_ms = x->within_ms = 0;
    return PL_OK;
}

/* With compression a bucket goes out in pieces that are compressed and pieces that must not be, from the far end. */
static pl_status post_pieces(struct pl_exchange *x, int64_t a, int64_t b)
{
    for (int r = x->options.exacts - 1; b > a;) {
        while (r >= 0 && x->exact[r].a >= b)
            r--;
        bool exact = r >= 0 && x->exact[r].b >= b;
        int64_t from = r < 0 ? a : exact ? x->exact[r].a : x->exact[r].b;
        from = from > a ? from : a;
        PL_TRY(x->algorithm->post_bucket(x, from, b, exact));
        b = from;
    }
    return PL_OK;
}

static pl_status post_bucket(struct pl_exchange *x)
{
    int64_t a = x->ready_from, b = x->bucket_end;
    if (a == b)
        return PL_OK;
    x->bucket_end = a;
    if (x->first_post_ms == 0)
        x->first_post_ms = pl_now_ms();
    if (x->reducer)
        return x->options.far.table->reduce(x->reducer, x->options.far.gradient + a, b - a);
    return x->codec && x->progress ? post_pieces(x, a, b) : x->algorithm->post_bucket(x, a, b, true);
}

pl_status pl_exchange_ready(struct pl_exchange *x, int64_t a, int64_t b)
{
    if (b != x->ready_from)
        return pl_error(PL_ERR_USAGE, "exchange", "slice [%lld, %lld) leaves a gap before %lld",
                        (long long)a, (long long)b, (long long)x->ready_from);
    x->ready_from = a;
    if (!x->algorithm || (double)(x->bucket_end - a) * sizeof(float) < x->options.bucket_bytes)
        return PL_OK;
    double begin = pl_now_ms(), traced = pl_trace_begin();
    pl_status s = post_bucket(x);
    x->within_ms += pl_now_ms() - begin;
    pl_trace_end(traced, "exchange", "hand over a bucket", x->step);
    return s;
}

pl_status pl_exchange_finish(struct pl_exchange *x, struct pl_exchange_times *times)
{
    memset(times, 0, sizeof *times);
    if (!x->algorithm)
        return PL_OK;
    double begin = pl_now_ms(), traced = pl_trace_begin();
    PL_TRY(post_bucket(x));
    PL_TRY(x->algorithm->drain(x));
    PL_TRY(x->reducer ? pl_exchange_far_finish(x) : PL_OK);
    double end = pl_now_ms();
    pl_trace_end(traced, "exchange", "wait for the sum", x->step);
    times->exposed_ms = x->within_ms + end - begin;
    times->within_ms = x->within_ms;
    times->busy_ms = x->first_post_ms > 0 ? end - x->first_post_ms : 0;
    if (x->progress)
        pl_exchange_network_traffic(x, &times->sent_mb, &times->saved_mb);
    return PL_OK;
}

/* ---- small sums --------------------------------------------------------------------------------- */

pl_status pl_exchange_post_sum(struct pl_exchange *x, double *values, int n)
{
    return x->algorithm ? x->algorithm->post_values(x, PL_SUM_F64, values, n) : PL_OK;
}

static pl_status reduce_now(struct pl_exchange *x, enum pl_reduce op, double *values, int n)
{
    if (!x->algorithm)
        return PL_OK;
    PL_TRY(x->algorithm->post_values(x, op, values, n));
    return x->algorithm->drain(x);
}

pl_status pl_exchange_sum(struct pl_exchange *x, double *values, int n) { return reduce_now(x, PL_SUM_F64, values, n); }
pl_status pl_exchange_max(struct pl_exchange *x, double *values, int n) { return reduce_now(x, PL_MAX_F64, values, n); }
