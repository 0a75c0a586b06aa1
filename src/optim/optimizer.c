/* The optimizer as a pass over the slabs, tensor by tensor: each has its multipliers, a running
 * statistic is averaged instead. Ranges are cut the same way for the same number of threads, so the
 * bits are the same in every run. */
#include "optim/rules.h"

#include <math.h>
#include <string.h>

#define GRAIN 16384
#define CHUNK 8192 /* elements that are rounded while they are in the cache */

static const struct pl_rule *const rules[] = {
    [PL_SGD] = &pl_rule_sgd, [PL_MOMENTUM] = &pl_rule_momentum, [PL_NESTEROV] = &pl_rule_nesterov,
    [PL_ADAGRAD] = &pl_rule_adagrad, [PL_ADADELTA] = &pl_rule_adadelta, [PL_RMSPROP] = &pl_rule_rmsprop,
    [PL_ADAM] = &pl_rule_adam, [PL_ADAMW] = &pl_rule_adamw, [PL_LARS] = &pl_rule_lars};

/* pl_optimizer_stay */
struct far {
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *graph;
    struct pl_slab_optimizer *pass;
    float *slot[2], *sum; /* sum: NULL where it is the graph's own gradient */
    size_t bytes;         /* of a slab */
};

struct pl_optimizer {
    const struct pl_job *job;
    const struct pl_rule *rule;
    const struct pl_tensor *tensor;
    int tensors;
    int64_t elems;
    float *slot[2], *own[2]; /* own: what of slot is not shared */
    struct pl_optimizer_shared shared; /* meet NULL: nothing is */
    float *trust;     /* [tensors] of lars */
    void (*round)(const float *from, void *to, int64_t n); /* of weights with a copy in bf16; NULL: those are not kept */
    struct far far;   /* table NULL: nothing is */
    const float *sum; /* taken, where the rest is */
};

pl_status pl_optimizer_create(const struct pl_job *job, const struct pl_graph *g, struct pl_optimizer **out)
{
    struct pl_optimizer *o = pl_alloc(sizeof *o, "an optimizer");
    if (!o)
        return PL_ERR_MEMORY;
    o->job = job;
    o->rule = rules[job->optimizer.kind];
    o->tensors = pl_graph_tensors(g, &o->tensor);
    o->elems = pl_graph_elems(g);
    o->trust = pl_alloc((size_t)(o->tensors + 1) * sizeof *o->trust, "rates of tensors");
    pl_status s = !o->trust ? PL_ERR_MEMORY : job->split.optimizer == PL_OPTIMIZER_WHOLE ? pl_optimizer_share(o, NULL) : PL_OK;
    if (s < 0)
        pl_optimizer_destroy(o);
    else
        *out = o;
    return s;
}

pl_status pl_optimizer_share(struct pl_optimizer *o, const struct pl_optimizer_shared *shared)
{
    if (shared)
        o->shared = *shared;
    for (int i = 0; i < o->rule->slots; i++) {
        if (!shared)
            o->own[i] = pl_alloc((size_t)o->elems * sizeof(float), "optimizer state");
        o->slot[i] = shared ? shared->slot[i] : o->own[i];
        if (!o->slot[i])
            return PL_ERR_MEMORY;
    }
    return PL_OK;
}

static void leave_far(struct far *f)
{
    float *const at[] = {f->slot[0], f->slot[1], f->sum};
    for (int i = 0; i < 3; i++)
        if (at[i])
            f->table->free(f->backend, at[i]);
    if (f->pass)
        f->table->optimizer_destroy(f->pass);
    *f = (struct far){0};
}

void pl_optimizer_destroy(struct pl_optimizer *o)
{
    if (!o)
        return;
    leave_far(&o->far);
    pl_free(o->own[0]);
    pl_free(o->own[1]);
    pl_free(o->trust);
    pl_free(o);
}

const char *pl_optimizer_name(const struct pl_optimizer *o) { return o->rule->name; }
int pl_optimizer_slots(const struct pl_optimizer *o) { return o->rule->slots; }
const char *pl_optimizer_slot_name(const struct pl_optimizer *o, int slot) { return o->rule->slot_name[slot]; }
float *pl_optimizer_slot(struct pl_optimizer *o, int slot) { return o->slot[slot]; }

static double square_sum(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

double pl_optimizer_square_sum(const struct pl_optimizer *o, const float *sum, int64_t a, int64_t b)
{
    double total = 0;
    for (int t = 0; t < o->tensors; t++) {
        const struct pl_param *p = o->tensor[t].param;
        int64_t n = pl_shape_elems(&p->shape);
        if (!p->statistic && !p->twin && p->offset >= a && p->offset + n <= b)
            total += square_sum(sum + p->offset, n);
    }
    return total;
}

struct pass {
    const struct pl_rule *rule;
    struct pl_rule_args all;
    void (*round)(const float *from, void *to, int64_t n); /* NULL: there is no copy in bf16 */
    uint16_t *bf16;
};

static void apply(const struct pass *p, int64_t begin, int64_t end)
{
    struct pl_rule_args a = p->all;
    a.n = end - begin;
    a.sum += begin;
    a.from += begin;
    a.to += begin;
    for (int i = 0; i < p->rule->slots; i++)
        a.slot[i] += begin;
    p->rule->apply(&a);
    if (p->round)
        p->round(a.to, p->bf16 + begin, a.n);
}

static void run_range(void *arg, int64_t begin, int64_t end)
{
    const struct pass *p = arg;
    for (int64_t at = begin, n = p->round ? CHUNK : end - begin; at < end; at += n)
        apply(p, at, end - at < n ? end : at + n);
}

static float trust_ratio(const struct pl_rule_args *a)
{
    double w = sqrt(square_sum(a->from, a->n)), g = a->scale * sqrt(square_sum(a->sum, a->n));
    if (a->decay == 0 || w == 0 || g == 0)
        return 1;
    return (float)(a->job->optimizer.trust * w / (g + a->decay * w));
}

static void average_statistic(const struct pl_param *p, double samples, int64_t n, const float *sum, const float *from, float *to)
{
    float m = (float)p->momentum, rest = (float)((1 - p->momentum) / samples);
    for (int64_t i = 0; i < n; i++)
        to[i] = m * from[i] + rest * sum[i];
}

/* Elements of one tensor, from `at` of the slab on; sum, from, to begin there. */
static struct pass pass_over(const struct pl_optimizer *o, const struct pl_rule *rule, const struct pl_update *u, const struct pl_param *p,
                             int64_t at, int64_t n, const float *sum, const float *from, float *to)
{
    struct pass pass = {.rule = rule, .all = {.job = o->job, .lr = (float)(u->lr * p->lr_mult),
                        .decay = (float)(o->job->optimizer.weight_decay * p->decay_mult),
                        .scale = (float)(u->clip / u->samples), .step = u->step + 1, .trust = 1,
                        .sum = sum, .from = from, .to = to, .n = n}};
    for (int i = 0; i < rule->slots; i++)
        pass.all.slot[i] = o->slot[i] + at;
    return pass;
}

/* Of a tensor, what lies in elements [a, b) of the slab: from *at on so many. */
static int64_t overlap(const struct pl_param *p, int64_t a, int64_t b, int64_t *at)
{
    int64_t end = p->offset + pl_shape_elems(&p->shape);
    *at = p->offset > a ? p->offset : a;
    end = end < b ? end : b;
    return end > *at ? end - *at : 0;
}

/* Rates of the tensors of which anything lies in [a, b), by norms of all of each. */
static void find_rates(struct pl_optimizer *o, const struct pl_update *u, int64_t a, int64_t b, const float *sum, const float *from)
{
    int64_t at;
    for (int t = 0; t < o->tensors && o->rule->per_tensor_norm; t++) {
        const struct pl_param *p = o->tensor[t].param;
        if (p->statistic || overlap(p, a, b, &at) == 0)
            continue;
        struct pass whole = pass_over(o, o->rule, u, p, p->offset, pl_shape_elems(&p->shape), sum + p->offset, from + p->offset, NULL);
        o->trust[t] = trust_ratio(&whole.all);
    }
}

/* Elements [a, b) of the slabs, by all threads. */
static void update_between(struct pl_optimizer *o, const struct pl_update *u, int64_t a, int64_t b, const float *sum, const float *from, float *to)
{
    for (int t = 0; t < o->tensors; t++) {
        const struct pl_param *p = o->tensor[t].param;
        int64_t at, n = overlap(p, a, b, &at);
        if (n == 0)
            continue;
        if (p->statistic) {
            average_statistic(p, u->samples, n, sum + at, from + at, to + at);
            continue;
        }
        struct pass pass = pass_over(o, o->rule, u, p, at, n, sum + at, from + at, to + at);
        if (o->rule->per_tensor_norm)
            pass.all.trust = o->trust[t];
        pass.bf16 = o->tensor[t].bf16;
        pass.round = pass.bf16 ? o->round : NULL; /* NULL, too, where n is not all of it: what is shared is rounded elsewhere */
        pl_parallel_for(n, GRAIN, run_range, &pass);
    }
}

void pl_optimizer_update(struct pl_optimizer *o, const struct pl_update *u, const float *sum, const float *from, float *to)
{
    find_rates(o, u, 0, o->elems, sum, from);
    update_between(o, u, 0, o->elems, sum, from, to);
}

static pl_status update_shared(struct pl_optimizer *o, const struct pl_update *u, float *params)
{
    const struct pl_optimizer_shared *s = &o->shared;
    find_rates(o, u, s->a, s->b, o->sum, params);
    PL_TRY(o->rule->per_tensor_norm ? s->meet(s->arg) : PL_OK); /* norms of what others are about to write */
    update_between(o, u, s->a, s->b, o->sum, params, params);
    return s->meet(s->arg);
}

void pl_optimizer_update_range(struct pl_optimizer *o, const struct pl_update *u, int64_t a, int64_t b, const float *sum,
                               const float *from, float *to)
{
    for (int t = 0; t < o->tensors; t++) {
        const struct pl_param *p = o->tensor[t].param;
        int64_t begin, n = overlap(p, a, b, &begin), at = begin - a;
        if (n == 0)
            continue;
        struct pass pass = pass_over(o, o->rule, u, p, begin, n, sum + at, from + at, to + at);
        if (p->statistic)
            average_statistic(p, u->samples, n, sum + at, from + at, to + at);
        else
            o->rule->apply(&pass.all);
    }
}

void pl_optimizer_descend(const struct pl_optimizer *o, const struct pl_update *u, const float *sum, float *params)
{
    for (int t = 0; t < o->tensors; t++) {
        const struct pl_param *p = o->tensor[t].param;
        int64_t n = pl_shape_elems(&p->shape), at = p->offset;
        struct pass pass = pass_over(o, &pl_rule_sgd, u, p, at, n, sum + at, params + at, params + at);
        if (!p->statistic)
            pl_parallel_for(n, GRAIN, run_range, &pass);
    }
}

void pl_optimizer_round(struct pl_optimizer *o, void (*round)(const float *from, void *to, int64_t n)) { o->round = round; }

/* ---- far ------------------------------------------------------------------------------------- */

static pl_status make_pass(struct pl_optimizer *o)
{
    struct far *f = &o->far;
    struct pl_slab_tensor *t = pl_alloc((size_t)(o->tensors + 1) * sizeof *t, "the tensors of an optimizer");
    if (!t)
        return PL_ERR_MEMORY;
    for (int i = 0; i < o->tensors; i++) {
        const struct pl_param *p = o->tensor[i].param;
        t[i] = (struct pl_slab_tensor){.offset = p->offset, .elems = pl_shape_elems(&p->shape), .lr_mult = p->lr_mult,
                                       .decay_mult = p->decay_mult, .statistic = p->statistic, .momentum = p->momentum};
    }
    pl_status s = f->table->optimizer(f->backend, o->job, t, o->tensors, &f->pass);
    pl_free(t);
    return s;
}

pl_status pl_optimizer_stay(struct pl_optimizer *o, const struct pl_backend_table *table, struct pl_backend *backend, struct pl_graph *g, bool own)
{
    struct far *f = &o->far;
    *f = (struct far){.table = table, .backend = backend, .graph = g, .bytes = (size_t)pl_graph_elems(g) * sizeof(float)};
    PL_TRY(make_pass(o));
    if (!own && !(f->sum = table->alloc(backend, f->bytes, "the agreed gradient")))
        return PL_ERR_MEMORY;
    for (int i = 0; i < o->rule->slots; i++) {
        if (!(f->slot[i] = table->alloc(backend, f->bytes, "optimizer state")))
            return PL_ERR_MEMORY;
        PL_TRY(table->upload(backend, f->slot[i], o->slot[i], f->bytes));
    }
    return PL_OK;
}

bool pl_optimizer_stays(const struct pl_optimizer *o) { return o->far.table; }

pl_status pl_optimizer_bring(struct pl_optimizer *o)
{
    const struct far *f = &o->far;
    for (int i = 0; i < o->rule->slots; i++)
        PL_TRY(f->table->download(f->backend, o->slot[i], f->slot[i], f->bytes));
    return PL_OK;
}

/* ---- a step ---------------------------------------------------------------------------------- */

pl_status pl_optimizer_take(struct pl_optimizer *o, const float *sum)
{
    const struct far *f = &o->far;
    o->sum = !f->table ? sum : f->sum ? f->sum : pl_graph_there(f->graph).grads;
    return f->sum ? f->table->upload(f->backend, f->sum, sum, f->bytes) : PL_OK;
}

pl_status pl_optimizer_squares(struct pl_optimizer *o, double *squares)
{
    if (o->far.table)
        return o->far.table->square_sum(o->far.pass, o->sum, squares);
    *squares = pl_optimizer_square_sum(o, o->sum, 0, INT64_MAX);
    return PL_OK;
}

pl_status pl_optimizer_apply(struct pl_optimizer *o, const struct pl_update *u, struct pl_graph *g)
{
    const struct far *f = &o->far;
    if (o->shared.meet)
        return update_shared(o, u, pl_graph_params(g));
    if (!f->table) {
        pl_optimizer_update(o, u, o->sum, pl_graph_params(g), pl_graph_params(g));
        return PL_OK;
    }
    struct pl_slab_update there = {.lr = u->lr, .samples = u->samples, .clip = u->clip, .step = u->step, .sum = o->sum,
                                   .params = pl_graph_there(g).params, .slot = {f->slot[0], f->slot[1]}};
    return f->table->update(f->pass, &there);
}
