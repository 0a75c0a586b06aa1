/* A network whose layers are shared out over the ranks against the same network whole, on every rank: what a pass gives, the sums of its
 * losses, and the gradient of every tensor, of which a rank has its rows. Short batches, and none; several passes that add up. */
#include "check.h"
#include "split/split.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 6, PIXELS = 2 * 8 * 8, CLASSES = 12 };

static const char text[] =
    "model: {name: m, input: {data: [2, 8, 8], label: int}, layers: ["
    "{name: norm0, kind: batchnorm}, {name: conv1, kind: conv, filters: 48, kernel: 3, pad: 1, activation: tanh}, "
    "{name: conv2, kind: conv, filters: 48, kernel: 3, pad: 1, groups: 4}, {name: conv3, kind: conv, filters: 48, kernel: 3, pad: 1, bias: false}, "
    "{name: norm3, kind: batchnorm, activation: tanh}, {name: drop3, kind: dropout, rate: 0.3}, {name: sum, kind: add, from: [drop3, conv2]}, "
    "{name: sum1, kind: add, from: [drop3, conv1]}, {name: both, kind: concat, from: [sum, sum1]}, {name: lrn, kind: lrn}, "
    "{name: aside, kind: softmax_loss, weight: 0.3, from: aside_ip}, {name: aside_ip, kind: dense, units: 12, from: both}, "
    "{name: conv4, kind: conv, filters: 96, kernel: 3, from: lrn, activation: sigmoid}, {name: pool4, kind: avgpool, kernel: 2, stride: 2}, "
    "{name: flat, kind: flatten}, {name: ip1, kind: dense, units: 36, activation: tanh}, {name: drop1, kind: dropout, rate: 0.3}, "
    "{name: ip2, kind: dense, units: 12}, {name: loss, kind: softmax_loss}]}\n"
    "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 6, seed: 7}\n";

struct sample { float data[BATCH * PIXELS]; int32_t label[BATCH]; int64_t index[BATCH]; };

static void make_batch(struct sample *s, int64_t rows, int round, struct pl_graph_batch *b)
{
    memset(s, 0, sizeof *s);
    for (int64_t i = 0; i < rows * PIXELS; i++)
        s->data[i] = (float)((i * 37 + round * 11) % 101) / 50 - 1;
    for (int64_t i = 0; i < rows; i++) {
        s->label[i] = (int32_t)((i * 5 + round) % CLASSES);
        s->index[i] = i * 3 + round;
    }
    *b = (struct pl_graph_batch){.rows = rows, .data = s->data, .label = s->label, .index = s->index, .seed = 7, .step_key = 1};
}

static const struct pl_tensor *find(const struct pl_tensor *t, int n, const struct pl_tensor *like)
{
    for (int i = 0; i < n; i++)
        if (strcmp(t[i].layer, like->layer) == 0 && strcmp(t[i].name, like->name) == 0)
            return &t[i];
    return NULL;
}

/* The slab of a part against the rows that it has of the whole one's. */
static void check_slab(struct pl_graph *whole, struct pl_graph *part, const float *all, const float *mine, double limit, const char *what)
{
    const struct pl_tensor *w, *p;
    int n = pl_graph_tensors(whole, &w), m = pl_graph_tensors(part, &p);
    CHECK(n == m, "%d tensors of %d", m, n);
    for (int i = 0; i < m; i++) {
        const struct pl_tensor *of = find(w, n, &p[i]);
        const struct pl_param *q = p[i].param;
        int64_t elems = pl_shape_elems(&q->shape), row = elems / q->shape.dim[0];
        double worst = 0, largest = 0;
        CHECK(of && pl_shape_elems(&of->param->shape) == pl_param_rows(q) * row, "%s/%s: rows", p[i].layer, p[i].name);
        const float *x = all + of->param->offset + q->first * row, *y = mine + q->offset;
        for (int64_t k = 0; k < elems; k++) {
            worst = fmax(worst, fabs((double)x[k] - y[k]));
            largest = fmax(largest, fabs((double)x[k]));
        }
        CHECK(worst <= limit * fmax(largest, 1e-2), "%s of %s/%s: %g apart, of %g", what, p[i].layer, p[i].name, worst, largest);
    }
}

/* What every rank computes alike it has alike, to the bit: nothing would bring it together again. */
static void check_twins(struct pl_world *w, struct pl_graph *part)
{
    const struct pl_tensor *p;
    static float first[1 << 17];
    for (int i = 0, n = pl_graph_tensors(part, &p); i < n; i++) {
        const float *mine = pl_graph_grads(part) + p[i].param->offset;
        size_t bytes = (size_t)pl_shape_elems(&p[i].param->shape) * sizeof *mine;
        if (p[i].param->whole > 0 || bytes > sizeof first)
            continue;
        CHECK(p[i].param->twin == (w->rank > 0), "%s/%s: who speaks for it", p[i].layer, p[i].name);
        memcpy(first, mine, bytes);
        CHECK(pl_world_broadcast(w, first, bytes, 0) == PL_OK, "broadcast");
        CHECK(memcmp(first, mine, bytes) == 0, "%s/%s differs from rank 0's", p[i].layer, p[i].name);
    }
}

static void check_sums(const struct pl_loss_sums *a, const struct pl_loss_sums *b)
{
    CHECK(fabs(a->loss - b->loss) < 1e-4 && fabs(a->total - b->total) < 1e-4 && a->correct == b->correct && a->rows == b->rows,
          "losses %g and %g, totals %g and %g", a->loss, b->loss, a->total, b->total);
}

static void check_output(struct pl_graph *whole, struct pl_graph *part, int64_t rows)
{
    const float *x = pl_graph_output(whole), *y = pl_graph_output(part);
    for (int64_t i = 0; i < rows * CLASSES; i++)
        if (fabsf(x[i] - y[i]) > 1e-5f) {
            CHECK(false, "output %lld: %g and %g", (long long)i, (double)x[i], (double)y[i]);
            return;
        }
}

static void run_passes(struct pl_world *w, struct pl_graph *whole, struct pl_graph *part)
{
    static const int64_t rows[] = {BATCH, 1, 4, 0, BATCH};
    static struct sample s;
    for (int round = 0; round < 5; round++) {
        struct pl_graph_batch b;
        struct pl_loss_sums of_whole = {0}, of_part = {0};
        make_batch(&s, rows[round], round, &b);
        CHECK(pl_graph_forward(whole, &b, true, &of_whole) == PL_OK && pl_graph_backward(whole, &b, round % 2, NULL, NULL) == PL_OK, "whole: %s", pl_error_text());
        CHECK(pl_graph_forward(part, &b, true, &of_part) == PL_OK && pl_graph_backward(part, &b, round % 2, NULL, NULL) == PL_OK, "part: %s", pl_error_text());
        check_sums(&of_whole, &of_part);
        check_output(whole, part, b.rows);
        check_slab(whole, part, pl_graph_grads(whole), pl_graph_grads(part), 1e-4, "gradient");
        check_twins(w, part);
    }
}

static void test_parts(struct pl_world *w, const struct pl_job *job, const char *device, const char *transport)
{
    const struct pl_backend_table *table = pl_backend_find(device);
    const struct pl_exchange_options o = {.transport = transport, .network = {.channels = 1}, .bucket_bytes = 1 << 16, .timeout_ms = 30000};
    struct pl_backend *backend;
    struct pl_graph *whole = NULL, *part = NULL, *eval = NULL;
    struct pl_tensor_group *group = NULL;
    struct pl_grid grid;
    CHECK(table->open(&(struct pl_device_options){.threads = 1}, &backend) == PL_OK && pl_grid_open(w, 1, w->ranks, &grid) == PL_OK, "open: %s", pl_error_text());
    const struct pl_graph_cut cut = {.part = grid.part, .parts = grid.parts};
    CHECK(grid.part == w->rank && grid.parts == w->ranks && grid.pieces == w->ranks && grid.stages == 1, "part %d of %d", grid.part, grid.parts);
    CHECK(pl_graph_create(job, table, backend, BATCH, true, NULL, &whole) == PL_OK && pl_graph_create_stage(job, table, backend, BATCH, true, &cut, NULL, &part) == PL_OK &&
          pl_graph_create_stage(job, table, backend, BATCH, false, &cut, part, &eval) == PL_OK, "graph: %s", pl_error_text());
    CHECK(pl_graph_signature(whole) == pl_graph_signature(part), "it is another model");
    CHECK(w->ranks == 1 || pl_graph_weights(part) < pl_graph_weights(whole), "%lld weights of %lld", (long long)pl_graph_weights(part), (long long)pl_graph_weights(whole));
    CHECK(pl_tensor_group_create(w, &grid, &o, part, &group) == PL_OK, "group: %s", pl_error_text());
    pl_tensor_group_serve(group, eval);
    pl_graph_init(whole, 7);
    pl_graph_init(part, 7);
    check_slab(whole, part, pl_graph_params(whole), pl_graph_params(part), 0, "initial values");
    run_passes(w, whole, part);

    struct sample s;
    struct pl_graph_batch b;
    struct pl_loss_sums a = {0}, e = {0};
    make_batch(&s, 5, 9, &b);
    CHECK(pl_graph_forward(whole, &b, false, &a) == PL_OK && pl_graph_prepare(eval) == PL_OK && pl_graph_forward(eval, &b, false, &e) == PL_OK, "evaluation: %s", pl_error_text());
    e.total = a.total; /* an evaluation is without the other losses */
    check_sums(&a, &e);
    check_output(whole, eval, 5);
    pl_tensor_group_destroy(group, false);
    pl_graph_destroy(eval);
    pl_graph_destroy(part);
    pl_graph_destroy(whole);
    pl_grid_close(&grid);
    table->close(backend);
}

int main(int argc, char **argv)
{
    const struct pl_transport_options none = {.channels = 2};
    char why[256];
    struct pl_world w;
    struct pl_job *job;
    if (pl_world_start(&argc, &argv, &w) < 0 || pl_job_parse(text, "t.yaml", &job) < 0)
        return 1;
    test_parts(&w, job, "cpu", "mpi");
    if (w.ranks <= 2)
        test_parts(&w, job, "reference", "auto"); /* it takes its time */
    if (w.ranks > 1 && pl_transport_list()[1]->probe(&w, &none, true, why, sizeof why))
        test_parts(&w, job, "cpu", "tcp");
    pl_job_destroy(job);
    pl_world_finish(&w, PL_OK);
    return failures ? 1 : 0;
}
