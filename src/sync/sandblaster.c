/* Sandblaster L-BFGS (Dean et al., Large scale distributed deep networks, NIPS 2012): a step is an iteration of L-BFGS with
 * a line search on the whole training set. Every rank keeps a shard of parameters, gradient, direction and history
 * (optim/lbfgs.c), and all go through the set together, in portions that rank 0 hands out as they are free. When all are
 * handed out, who is idle is given one that another still has: the first result counts, and a rank adds a portion's
 * gradient to its sum only once rank 0 has said that it does, while it computes the next.
 *
 * Three things go from every rank to every other: its shard of a point's parameters, before the pass; the sum of its
 * gradients, to each the part of its shard, after it; and sums of products. Each adds up in the order of the ranks, so that
 * all have the same bits and decide alike. What is minimised is the mean loss plus half of weight_decay times the squares
 * of the parameters, the same function in every pass: what is drawn at random or depends on a portion's samples is refused.
 * Each rank keeps the parameters that the iteration began with, so that a lost one takes nothing along but the history. */
#include "sync/counts.h"
#include "sync/meeting.h"

#include <math.h>
#include <string.h>

#define GRAIN 16384
enum { PIECE = 512 };

/* Another rank, or this one. */
struct peer {
    int64_t begin, end;           /* its shard: elements [begin, end) of the slab */
    float *gradient;              /* its sum of gradients, [elements of this rank's shard] */
    double *sums;                 /* its terms, [room for sums] */
    struct pl_transfer to, from;
    const void *out;              /* of the trade under way */
    void *in;
    size_t out_bytes, in_bytes;
};

struct pl_sync {
    struct pl_replica replica;
    struct pl_meeting *meeting;
    struct pl_lbfgs *lbfgs;
    int me, ranks, terms;         /* terms: of a sum at most */
    int64_t elems;
    struct peer *peer;            /* [ranks] */
    float *gradient, *done, *sum; /* [elems]: of a portion; of the one before, if `owed`; of those that counted */
    float *start;                 /* [elems] parameters, as the iteration found them */
    float *x;                     /* this rank's shard of the point */
    double *mine;                 /* [terms] */
    bool owed, summed;            /* it is not known yet whether done counts; there is anything in sum */
    double counts[PL_COUNTS];     /* of the portion in work */
    double seen[PL_COUNTS];       /* of the last pass, over all */
    const struct pl_passes *passes;
    double exchange_ms;
    /* between the two threads: by the meeting's lock */
    bool asked, trading, traded;
    uint64_t trades;
    size_t moved;                 /* of the trade under way, and when it last did */
    double moved_ms;
};

static const struct peer *own(const struct pl_sync *s) { return &s->peer[s->me]; }
static int64_t shard_elems(const struct peer *p) { return p->end - p->begin; }
static size_t shard_bytes(const struct peer *p) { return (size_t)shard_elems(p) * sizeof(float); }
static float *params_of(struct pl_sync *s) { return pl_graph_params(s->replica.graph); }

/* ---- from every rank to every other -------------------------------------------------------------------- */

static pl_status begin_trade(struct pl_sync *s)
{
    struct pl_mesh *mesh = pl_meeting_mesh(s->meeting);
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        if (r != s->me && p->in_bytes > 0)
            PL_TRY(pl_mesh_receive(mesh, &p->from, r, s->trades, p->in, p->in_bytes));
    }
    for (int i = 1; i < s->ranks; i++) { /* each begins with another */
        int r = (s->me + i) % s->ranks;
        struct peer *p = &s->peer[r];
        if (p->out_bytes > 0)
            PL_TRY(pl_mesh_send(mesh, &p->to, r, s->trades, p->out, p->out_bytes));
    }
    return PL_OK;
}

/* Who does not trade for as long as a wait may take is lost; its thread may still say that it is there. */
static void look_for_missing(struct pl_sync *s)
{
    double now = pl_now_ms(), limit = s->replica.job->exchange.timeout_ms;
    size_t moved = 0;
    for (int r = 0; r < s->ranks; r++)
        moved += s->peer[r].from.moved + s->peer[r].to.moved;
    s->moved_ms = moved != s->moved ? now : s->moved_ms;
    s->moved = moved;
    for (int r = 0; r < s->ranks && now - s->moved_ms > limit; r++) {
        if (r == s->me || s->peer[r].in_bytes == 0 || s->peer[r].from.done)
            continue;
        pl_meeting_lose(s->meeting, r, "rank %d did not send its part for %.0f s (exchange.timeout)", r, limit / 1000);
    }
}

static bool all_there(const struct pl_sync *s)
{
    bool all = true;
    for (int r = 0; r < s->ranks; r++) {
        const struct peer *p = &s->peer[r];
        if (r != s->me)
            all = all && (p->in_bytes == 0 || p->from.done) && (p->out_bytes == 0 || p->to.done);
    }
    return all;
}

static pl_status turn(void *arg, bool *busy)
{
    struct pl_sync *s = arg;
    if (s->asked) {
        s->asked = false;
        s->trading = *busy = true;
        s->moved_ms = pl_now_ms();
        PL_TRY(begin_trade(s));
    }
    if (s->trading && all_there(s)) {
        s->trading = false;
        s->traded = *busy = true;
    }
    if (s->trading)
        look_for_missing(s);
    return PL_OK;
}

static void hear(void *arg, int from, const void *note) { (void)arg, (void)from, (void)note; } /* it says none */

static bool is_traded(const void *arg) { return ((const struct pl_sync *)arg)->traded; }

/* What each peer's in and out say. All ranks make the same trades. */
static pl_status trade(struct pl_sync *s)
{
    double begin = pl_now_ms();
    pl_meeting_lock(s->meeting);
    s->trades++;
    s->traded = false;
    s->asked = true;
    pl_status status = pl_meeting_wait(s->meeting, is_traded, s);
    pl_meeting_unlock(s->meeting);
    s->exchange_ms += pl_now_ms() - begin;
    return status;
}

static pl_status gather_point(struct pl_sync *s, const float *x)
{
    memcpy(params_of(s) + own(s)->begin, x, shard_bytes(own(s)));
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        p->out = x;
        p->out_bytes = shard_bytes(own(s));
        p->in = params_of(s) + p->begin;
        p->in_bytes = shard_bytes(p);
    }
    return trade(s);
}

static pl_status scatter_gradient(struct pl_sync *s)
{
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        p->out = s->sum + p->begin;
        p->out_bytes = shard_bytes(p);
        p->in = p->gradient;
        p->in_bytes = shard_bytes(own(s));
    }
    return trade(s);
}

static pl_status sum_up(void *arg, double *v, int n)
{
    struct pl_sync *s = arg;
    memcpy(s->mine, v, (size_t)n * sizeof *v);
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        p->out = s->mine;
        p->in = p->sums;
        p->out_bytes = p->in_bytes = (size_t)n * sizeof *v;
    }
    PL_TRY(trade(s));
    memset(v, 0, (size_t)n * sizeof *v);
    for (int r = 0; r < s->ranks; r++)
        for (int i = 0; i < n; i++)
            v[i] += r == s->me ? s->mine[i] : s->peer[r].sums[i];
    return PL_OK;
}

/* ---- a pass over the set --------------------------------------------------------------------------------- */

struct addition { const float *in; float *out; };

static void add(void *arg, int64_t begin, int64_t end)
{
    const struct addition *p = arg;
    for (int64_t i = begin; i < end; i++)
        p->out[i] += p->in[i];
}

/* What was computed last goes into the sum, if it counts. */
static pl_status settle(struct pl_sync *s)
{
    struct addition a = {s->done, s->sum};
    bool counts = false;
    if (!s->owed)
        return PL_OK;
    s->owed = false;
    PL_TRY(pl_meeting_counts_it(s->meeting, &counts));
    if (!counts)
        return PL_OK;
    if (s->summed)
        pl_parallel_for(s->elems, GRAIN, add, &a);
    else
        memcpy(s->sum, s->done, (size_t)s->elems * sizeof *s->sum);
    s->summed = true;
    return PL_OK;
}

static pl_status compute_portion(struct pl_sync *s)
{
    float *gradient = s->gradient;
    pl_graph_set_grads(s->replica.graph, gradient);
    pl_status status = s->passes->compute(s->passes->arg);
    if (status != PL_OK) /* PL_END: another was faster */
        return status < 0 ? status : PL_OK;
    PL_TRY(settle(s));
    s->gradient = s->done;
    s->done = gradient;
    s->owed = true;
    pl_meeting_done(s->meeting, s->counts);
    return PL_OK;
}

static pl_status go_through(struct pl_sync *s)
{
    struct pl_ticket portion;
    struct pl_meet met;
    double mine[PL_MEETING_VALUES] = {0};
    pl_status status = pl_meeting_open_set(s->meeting, s->passes->samples, s->passes->rows);
    s->summed = s->owed = false;
    while (status == PL_OK && (status = pl_meeting_take(s->meeting, &portion)) == PL_OK)
        status = compute_portion(s);
    PL_TRY(status);
    PL_TRY(settle(s));
    double begin = pl_now_ms();
    mine[PL_COUNT_SAVE] = s->passes->save;
    PL_TRY(pl_meeting_meet(s->meeting, mine, NULL, &met));
    s->exchange_ms += pl_now_ms() - begin;
    memcpy(s->seen, met.values, sizeof s->seen);
    if (!s->summed)
        memset(s->sum, 0, (size_t)s->elems * sizeof *s->sum);
    if (s->seen[PL_COUNT_STOP] == 0 && s->seen[PL_COUNT_ROWS] != (double)s->passes->samples)
        return pl_error(PL_ERR_DATA, "sync", "a pass over %lld samples came to %.0f", (long long)s->passes->samples, s->seen[PL_COUNT_ROWS]);
    return PL_OK;
}

/* ---- the function and its gradient ----------------------------------------------------------------------- */

struct mean { struct pl_sync *s; float *gradient; double scale; };

/* In the order of the ranks. */
static void add_shards(void *arg, int64_t begin, int64_t end)
{
    const struct mean *m = arg;
    const struct pl_sync *s = m->s;
    double sum[PIECE];
    for (int64_t at = begin; at < end; at += PIECE) {
        int64_t n = end - at < PIECE ? end - at : PIECE;
        memset(sum, 0, sizeof sum);
        for (int r = 0; r < s->ranks; r++) {
            const float *in = (r == s->me ? s->sum + own(s)->begin : s->peer[r].gradient) + at;
            for (int64_t i = 0; i < n; i++)
                sum[i] += in[i];
        }
        for (int64_t i = 0; i < n; i++)
            m->gradient[at + i] = (float)(m->scale * sum[i]);
    }
}

/* Tensor by tensor: its decay, or nothing of one that is not to be trained. */
static double add_decay(struct pl_sync *s, const float *x, float *gradient)
{
    const struct pl_tensor *tensor;
    int tensors = pl_graph_tensors(s->replica.graph, &tensor);
    double value = 0;
    for (int t = 0; t < tensors; t++) {
        const struct pl_param *p = tensor[t].param;
        int64_t end = p->offset + pl_shape_elems(&p->shape);
        int64_t a = p->offset > own(s)->begin ? p->offset : own(s)->begin, b = end < own(s)->end ? end : own(s)->end;
        double decay = s->replica.job->optimizer.weight_decay * p->decay_mult;
        for (int64_t i = a - own(s)->begin; i < b - own(s)->begin; i++) {
            gradient[i] = p->lr_mult > 0 ? (float)(gradient[i] + decay * x[i]) : 0;
            value += p->lr_mult > 0 ? decay / 2 * x[i] * x[i] : 0;
        }
    }
    return value;
}

static pl_status evaluate(void *arg, const float *x, double *value, float *gradient)
{
    struct pl_sync *s = arg;
    PL_TRY(gather_point(s, x));
    PL_TRY(go_through(s));
    if (s->seen[PL_COUNT_STOP] > 0)
        return PL_END;
    *value = INFINITY;
    memset(gradient, 0, shard_bytes(own(s)));
    if (s->seen[PL_COUNT_NOT_FINITE] > 0 || !isfinite(s->seen[PL_COUNT_TOTAL]))
        return PL_OK;
    PL_TRY(scatter_gradient(s));
    struct mean m = {s, gradient, 1 / s->seen[PL_COUNT_ROWS]};
    pl_parallel_for(shard_elems(own(s)), GRAIN, add_shards, &m);
    *value = (s->me == 0 ? s->seen[PL_COUNT_TOTAL] / s->seen[PL_COUNT_ROWS] : 0) + add_decay(s, x, gradient);
    return PL_OK;
}

/* ---- a step ---------------------------------------------------------------------------------------------- */

/* The status of what failed, and in *out how it ends here. Where a rank is lost, the first that is left writes. */
static pl_status ended(struct pl_sync *s, pl_status status, struct pl_agreement *out)
{
    memcpy(params_of(s), s->start, (size_t)s->elems * sizeof *s->start);
    pl_meeting_parts(s->meeting, out);
    if (!out->tells)
        pl_meeting_leave(s->meeting, pl_exit_code(status), true);
    return status;
}

static bool never(const void *arg)
{
    (void)arg;
    return false;
}

/* That the loss is not finite all find alike, and rank 0 says it: the others wait for that, as the launcher may end all
 * with the first of them. */
static pl_status end_with_rank_0(struct pl_sync *s, struct pl_agreement *out)
{
    pl_meeting_lock(s->meeting);
    pl_status status = pl_meeting_wait(s->meeting, never, NULL);
    pl_meeting_unlock(s->meeting);
    return ended(s, status, out);
}

static const char *converged(const struct pl_iteration *i)
{
    return i->how == PL_DESCENT_CONVERGED ? "the gradient's norm is below sync.tolerance"
         : i->how == PL_DESCENT_NONE      ? "no descent found, neither by the history nor along the gradient"
                                          : NULL;
}

static pl_status sandblaster_iterate(struct pl_sync *s, const struct pl_passes *p, struct pl_descent_step *step, struct pl_agreement *out)
{
    const struct pl_objective objective = {.evaluate = evaluate, .sum = sum_up, .arg = s};
    struct pl_iteration i;
    memcpy(s->start, params_of(s), (size_t)s->elems * sizeof *s->start);
    memcpy(s->x, s->start + own(s)->begin, shard_bytes(own(s)));
    s->passes = p;
    s->exchange_ms = 0;
    pl_status status = pl_meeting_start(s->meeting);
    if (status == PL_OK)
        status = pl_meeting_open(s->meeting, NULL, 0);
    if (status == PL_OK)
        status = pl_meeting_meet(s->meeting, NULL, NULL, NULL); /* one may come late, from writing a checkpoint */
    if (status == PL_OK)
        status = pl_lbfgs_iterate(s->lbfgs, &objective, s->x, &i);
    if (status < 0)
        return ended(s, status, out);
    if (status == PL_OK && i.how == PL_DESCENT_NOT_FINITE && s->me > 0)
        return end_with_rank_0(s, out);
    *out = (struct pl_agreement){.steps = 1, .writes = s->me == 0};
    pl_counts_read(s->seen, out);
    *step = (struct pl_descent_step){.passes = i.evaluations, .lr = i.step, .grad_norm = i.grad_norm, .given_up = status == PL_END};
    if (status == PL_OK)
        step->converged = converged(&i);
    if (status == PL_END || step->converged)
        memcpy(params_of(s), s->start, (size_t)s->elems * sizeof *s->start);
    out->not_finite = status == PL_OK && i.how == PL_DESCENT_NOT_FINITE ? s->ranks : 0;
    out->times.exposed_ms = out->times.busy_ms = s->exchange_ms;
    return PL_OK;
}

static pl_status sandblaster_contribute(struct pl_sync *s, const struct pl_contribution *mine)
{
    memset(s->counts, 0, sizeof s->counts);
    pl_counts_add(s->counts, mine);
    return PL_OK;
}

static bool sandblaster_abandoned(void *s) { return pl_meeting_is_spare(((struct pl_sync *)s)->meeting); }

static pl_status sandblaster_slice_final(struct pl_sync *s, int64_t a, int64_t b)
{
    (void)a, (void)b;
    return pl_meeting_is_spare(s->meeting) ? PL_END : PL_OK;
}

/* ---- set-up ---------------------------------------------------------------------------------------------- */

/* It must be the same function in every pass. */
static pl_status check(const struct pl_replica *r)
{
    const struct pl_layer *layer;
    const struct pl_tensor *tensor;
    int layers = pl_graph_layers(r->graph, &layer), tensors = pl_graph_tensors(r->graph, &tensor);
    for (int i = 0; i < layers; i++)
        if (strcmp(layer[i].kind->name, "dropout") == 0)
            return pl_error(PL_ERR_USAGE, "sync", "layer %s: with sync.kind sandblaster every pass must see the same function, and dropout draws another one\n"
                            "leave the layer out, or give another sync.kind", layer[i].name);
    for (int i = 0; i < tensors; i++) {
        if (tensor[i].param->statistic)
            return pl_error(PL_ERR_USAGE, "sync", "layer %s: with sync.kind sandblaster every pass must see the same function, and batch normalisation's depends on which samples a portion has\n"
                            "leave the layer out, or give another sync.kind", tensor[i].layer);
        if (tensor[i].param->lr_mult != 0 && tensor[i].param->lr_mult != 1)
            return pl_error(PL_ERR_USAGE, "sync", "layer %s: lr_mult %g of its %s: sync.kind sandblaster has no learning rate to multiply, only 0 (not trained) and 1",
                            tensor[i].layer, tensor[i].param->lr_mult, tensor[i].name);
    }
    return PL_OK;
}

static void sandblaster_destroy(struct pl_sync *s)
{
    if (!s)
        return;
    pl_meeting_destroy(s->meeting);
    pl_lbfgs_destroy(s->lbfgs);
    for (int r = 0; s->peer && r < s->ranks; r++) {
        pl_free(s->peer[r].gradient);
        pl_free(s->peer[r].sums);
    }
    pl_free(s->peer);
    pl_free(s->gradient);
    pl_free(s->done);
    pl_free(s->sum);
    pl_free(s->start);
    pl_free(s->x);
    pl_free(s->mine);
    pl_free(s);
}

static pl_status make_peers(struct pl_sync *s)
{
    for (int r = 0; r < s->ranks; r++)
        pl_meeting_shard(s->elems, r, s->ranks, &s->peer[r].begin, &s->peer[r].end);
    for (int r = 0; r < s->ranks; r++) {
        struct peer *p = &s->peer[r];
        p->gradient = r == s->me ? NULL : pl_alloc(shard_bytes(own(s)) + PL_MEETING_LINE, "gradients of other ranks");
        p->sums = pl_alloc((size_t)s->terms * sizeof *p->sums, "sums of other ranks");
        if ((r != s->me && !p->gradient) || !p->sums)
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

static pl_status prepare(struct pl_sync *s)
{
    size_t bytes = (size_t)s->elems * sizeof(float);
    s->peer = pl_alloc((size_t)s->ranks * sizeof *s->peer, "other ranks");
    s->gradient = pl_alloc(bytes, "gradients");
    s->done = pl_alloc(bytes, "gradients that may count");
    s->sum = pl_alloc(bytes, "the sum of gradients");
    s->start = pl_alloc(bytes, "parameters before a step");
    s->mine = pl_alloc((size_t)s->terms * sizeof *s->mine, "sums");
    if (!s->peer || !s->gradient || !s->done || !s->sum || !s->start || !s->mine)
        return PL_ERR_MEMORY;
    PL_TRY(make_peers(s));
    s->x = pl_alloc(shard_bytes(own(s)) + PL_MEETING_LINE, "a shard of the parameters");
    return s->x ? pl_lbfgs_create(shard_elems(own(s)), (int)s->replica.job->sync.history, s->replica.job->sync.tolerance, &s->lbfgs) : PL_ERR_MEMORY;
}

static pl_status sandblaster_create(const struct pl_replica *r, struct pl_exchange *x, struct pl_sync **out)
{
    struct pl_sync *s = pl_alloc(sizeof *s, "sync");
    (void)x;
    if (s)
        *s = (struct pl_sync){.replica = *r, .me = r->world->rank, .ranks = r->world->ranks, .elems = pl_graph_elems(r->graph),
                              .terms = PL_LBFGS_TERMS((int)r->job->sync.history)};
    pl_status status = pl_world_agree(r->world, s ? check(r) : PL_ERR_MEMORY);
    if (status == PL_OK)
        status = pl_world_agree(r->world, prepare(s));
    const struct pl_meeting_hooks hooks = {.hear = hear, .turn = turn, .arg = s};
    if (status == PL_OK)
        status = pl_meeting_create(r, &hooks, &s->meeting);
    if (status < 0)
        sandblaster_destroy(s);
    else
        *out = s;
    return status;
}

static float *sandblaster_gradient(struct pl_sync *s) { return s->gradient; }
static const int64_t *sandblaster_shares(struct pl_sync *s) { return pl_meeting_shares(s->meeting); }
static pl_status sandblaster_share_out(struct pl_sync *s, const struct pl_parts *p, double *sum) { return pl_meeting_share_out(s->meeting, p, sum); }

static pl_status sandblaster_leave(struct pl_sync *s, int code, bool wrote, struct pl_parting *out)
{
    return pl_meeting_part(s->meeting, code, wrote, out);
}

static struct pl_path sandblaster_path(const struct pl_sync *s)
{
    const struct pl_mesh *mesh = pl_meeting_mesh(s->meeting);
    return (struct pl_path){pl_mesh_transport(mesh), "sandblaster", pl_mesh_why(mesh)};
}

static const struct pl_sync_meshed meshed = {
    .gradient = sandblaster_gradient,
    .path = sandblaster_path,
    .abandoned = sandblaster_abandoned,
    .share_out = sandblaster_share_out,
    .leave = sandblaster_leave,
};

static const struct pl_sync_whole whole = {
    .iterate = sandblaster_iterate,
    .shares = sandblaster_shares,
};

const struct pl_sync_table pl_sync_sandblaster = {
    .name = "sandblaster",
    .meshed = &meshed,
    .whole = &whole,
    .create = sandblaster_create,
    .destroy = sandblaster_destroy,
    .contribute = sandblaster_contribute,
    .slice_final = sandblaster_slice_final,
};
