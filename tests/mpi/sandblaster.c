/* Sandblaster on the ranks it is started with, over MPI and tcp: after every step all ranks hold the same bits, and loss and
 * gradient's norm are those of the whole set as each rank computes them by itself, whoever was slow and whatever was
 * handed out twice; the loss falls; and what a slow rank has is done by another. */
#include "check.h"
#include "made_up.h"

#include <math.h>

enum { SAMPLES = 203, BATCH = 8, WIDTH = 6, STEPS = 12 };

static void read_samples(struct pl_batch *b, int64_t first, int64_t rows)
{
    memset(b->data, 0, (size_t)(b->capacity * WIDTH) * sizeof(float));
    b->begin = first;
    b->end = first + rows;
    b->rows = rows;
    for (int64_t i = 0; i < rows; i++) {
        struct pl_rng r = pl_rng_make(7, (uint64_t)(first + i), 0, 0);
        float *x = b->data + i * WIDTH;
        pl_rng_normals(&r, x, WIDTH);
        ((int32_t *)b->label)[i] = x[0] * x[1] > 0 ? 0 : x[2] > 0 ? 1 : 2;
        b->index[i] = first + i;
    }
}

static void fill(struct made_up *m, const struct made_up_asked *a) { read_samples(&m->batch, a->first, a->rows); }

/* ---- what this rank alone makes of the parameters ------------------------------------------------------------ */

static bool decays(const struct pl_graph *g, int64_t i)
{
    const struct pl_tensor *tensor;
    int n = pl_graph_tensors(g, &tensor);
    for (int t = 0; t < n; t++)
        if (i >= tensor[t].param->offset && i < tensor[t].param->offset + pl_shape_elems(&tensor[t].param->shape))
            return tensor[t].param->decay_mult > 0;
    return false;
}

static void whole_set(struct pl_trainer *t, double *loss, double *norm)
{
    struct pl_batch b;
    struct pl_loss_sums sums = {0};
    float *g = pl_alloc((size_t)pl_graph_elems(t->graph) * sizeof *g, "test");
    made_up_batch(t, &b);
    pl_graph_set_grads(t->graph, g);
    for (int64_t first = 0; first < SAMPLES; first += BATCH) {
        read_samples(&b, first, SAMPLES - first < BATCH ? SAMPLES - first : BATCH);
        struct pl_graph_batch in = {.rows = b.rows, .data = b.data, .label = b.label, .index = b.index};
        if (pl_graph_forward(t->graph, &in, true, &sums) != PL_OK || pl_graph_backward(t->graph, &in, first > 0, NULL, NULL) != PL_OK)
            exit(1);
    }
    *loss = sums.total / SAMPLES;
    *norm = 0;
    for (int64_t i = 0; i < pl_graph_elems(t->graph); i++) {
        double d = g[i] / (double)SAMPLES;
        if (decays(t->graph, i))
            d += t->job->optimizer.weight_decay * pl_graph_params(t->graph)[i];
        *norm += d * d;
    }
    *norm = sqrt(*norm);
    pl_graph_set_grads(t->graph, NULL);
    made_up_free_batch(&b);
    pl_free(g);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

/* The sync's own thread has MPI: what is to be compared is kept, and compared when it is over. */
struct kept { double hash[STEPS], loss[STEPS]; };

static void check_step(struct pl_trainer *t, const struct pl_step_result *r, struct kept *k, const char *how)
{
    double loss, norm;
    int64_t i = r->step;
    whole_set(t, &loss, &norm);
    CHECK(fabs(loss - r->loss) < 1e-6, "%s: step %lld: loss %.9g, and by one rank %.9g", how, (long long)i, r->loss, loss);
    CHECK(fabs(norm - r->grad_norm) < 1e-5 * (1 + norm), "%s: step %lld: norm %.9g, and by one rank %.9g", how, (long long)i, r->grad_norm, norm);
    k->hash[i] = (double)(pl_hash_words(PL_HASH_START, pl_graph_params(t->graph), (size_t)pl_graph_elems(t->graph) * sizeof(float)) >> 12);
    k->loss[i] = r->loss;
}

static void compare(struct pl_world *w, const struct kept *mine, const struct made_up *m, int64_t passes, const char *how)
{
    struct kept first = *mine;
    float all, one = 0;
    for (int i = 0; i < SAMPLES; i++)
        one += m->seen[i];
    if (pl_world_broadcast(w, &first, sizeof first, 0) < 0 || pl_world_allreduce(w, &one, &all, 1) < 0)
        pl_world_abort(w, PL_ERR_PEER);
    for (int i = 0; i < STEPS; i++)
        CHECK(mine->hash[i] == first.hash[i], "%s: after step %d other bits than rank 0", how, i);
    CHECK(mine->loss[STEPS - 1] < 0.5 * mine->loss[0], "%s: the loss fell from %.4f to %.4f only", how, mine->loss[0], mine->loss[STEPS - 1]);
    CHECK(all >= (float)(SAMPLES * passes), "%s: %g samples read in %lld passes", how, (double)all, (long long)passes);
    if (w->ranks > 1 && strstr(how, "{ms: 3}")) /* whoever is the last in a pass */
        CHECK(all > (float)(SAMPLES * passes), "%s: nothing was handed out twice", how);
    if (w->ranks == 1)
        CHECK(all == (float)(SAMPLES * passes), "%s: %g samples read in %lld passes", how, (double)all, (long long)passes);
}

static void check_shares(struct pl_trainer *t, int64_t passes, const char *how)
{
    const int64_t *share = t->sync_table->whole->shares(t->sync);
    int64_t portions = (SAMPLES + BATCH - 1) / BATCH, all = 0;
    for (int r = 0; r < t->world->ranks; r++)
        all += share[r];
    CHECK(all == portions * passes, "%s: %lld portions in %lld passes", how, (long long)all, (long long)passes);
    if (t->world->ranks > 1 && strstr(how, "rank: 1"))
        CHECK(share[1] * 4 < all, "%s: the slow rank's are %lld of %lld", how, (long long)share[1], (long long)all);
}

static const char text[] = "model: {name: m, input: {data: [6], label: int}, layers: [{name: a, kind: dense, units: 12, activation: tanh},"
                           " {name: b, kind: dense, units: 3, decay_mult: 0}, {name: loss, kind: softmax_loss}]}\n"
                           "data: {train: {file: none.h5}}\ntrain: {steps: 12, batch: 8, threads: 1}\nsync: {kind: sandblaster, history: 5}\n"
                           "optimizer: {weight_decay: 0.001}\nexchange: {transport: %s}\ndebug: {delay%s}\n";

static void run(struct pl_world *w, const char *transport, const char *delay)
{
    struct made_up m = {.samples = SAMPLES, .epochs = 1, .fill = fill};
    struct pl_trainer *t = &m.t;
    struct pl_job *job;
    struct kept kept = {0};
    struct pl_step_result r;
    struct pl_parting parting;
    char *yaml = pl_strdupf(text, transport, delay), how[128];
    snprintf(how, sizeof how, "%s, delay%s", transport, delay);
    made_up_end_on(pl_job_parse(yaml, "test", &job), how);
    made_up_open(&m, w, job, how);
    while (t->state.step < t->total_steps) {
        made_up_step(&m, &r);
        check_step(t, &r, &kept, how);
    }
    int64_t passes = t->state.epoch;
    CHECK(t->state.step == STEPS && passes >= STEPS, "%s: %lld steps in %lld passes", how, (long long)t->state.step, (long long)passes);
    CHECK(t->state.samples_seen == SAMPLES * passes, "%s: %lld samples in %lld passes", how, (long long)t->state.samples_seen, (long long)passes);
    if (w->rank == 0)
        check_shares(t, passes, how);
    pl_status s = t->sync_table->meshed->leave(t->sync, 0, true, &parting);
    CHECK(s == PL_OK && parting.clean, "%s: they did not part in order", how);
    compare(w, &kept, &m, passes, how);
    made_up_close(&m);
    pl_free(yaml);
}

int main(int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(&argc, &argv, &w);
    if (s < 0)
        return pl_world_finish(&w, s);
    static const char *const transports[] = {"mpi", "tcp"};
    for (size_t i = 0; i < sizeof transports / sizeof *transports; i++) {
        run(&w, transports[i], ": {ms: 0}");
        run(&w, transports[i], ": {ms: 3}");
        run(&w, transports[i], ": {ms: 1, distribution: exponential}");
        if (w.ranks > 1)
            run(&w, transports[i], ": {ms: 60, rank: 1}");
    }
    int code = pl_world_finish(&w, PL_OK);
    return failures ? 1 : code;
}
