/* Every operation: on `reference` against finite differences, on every other backend against
 * `reference`, over random shapes (in the spirit of ggml's test-backend-ops). PL_TEST_SEED names them. */
#include "backend/cpu/lanes.h"
#include "ops.h"

/* sum(dy * y) over the real rows, or the loss. */
static double objective(const struct pl_backend_table *table, struct pl_plan *p, struct trial *t)
{
    struct pl_loss_sums sums = {0};
    t->io.sums = &sums;
    assert_int_equal(table->forward(p, &t->io), PL_OK);
    if (is_loss(t->op.kind))
        return sums.total;
    double sum = 0;
    int64_t n = t->io.rows * pl_shape_row_elems(&t->op.y);
    for (int64_t i = 0; i < n; i++)
        sum += (double)t->dy[i] * t->y[i];
    return sum;
}

/* dp or dx of a random element against the slope of the objective. */
static void check_slopes(const struct pl_backend_table *table, struct pl_plan *p, struct trial *t, float *at, const float *gradient, int64_t n, const char *what)
{
    for (int k = 0; k < 6; k++) {
        int64_t i = between(0, n - 1);
        float old = at[i], step = 1e-2f;
        double best = INFINITY, slope = 0, wanted = gradient[i];
        for (int halving = 0; halving < 3; halving++, step /= 4) { /* kinks of relu and maxpool: a smaller step passes them */
            at[i] = old + step;
            double above = objective(table, p, t), h = at[i];
            at[i] = old - step;
            double below = objective(table, p, t), s = (above - below) / (h - at[i]);
            if (fabs(s - wanted) < best) {
                best = fabs(s - wanted);
                slope = s;
            }
        }
        at[i] = old;
        if (best > 2e-2 * (1 + fabs(wanted)))
            fail_msg("op %d, %s[%lld]: gradient %g, finite differences %g, seed %llu", (int)t->op.kind, what, (long long)i, wanted, slope, (unsigned long long)seed);
    }
}

static void test_finite_differences(void **state)
{
    const struct pl_backend_table *table = pl_backend_find("reference");
    struct pl_backend *b;
    (void)state;
    assert_int_equal(table->open(&(struct pl_device_options){.threads = 1}, &b), PL_OK);
    for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
        for (int round = 0; round < ROUNDS; round++) {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 1);
            struct pl_plan *p = plan_on(table, b, &t.op);
            objective(table, p, &t);
            assert_int_equal(table->backward(p, &t.io), PL_OK);
            for (int k = 0; k < t.op.inputs && t.op.need_dx[k]; k++)
                check_slopes(table, p, &t, t.x[k], t.dx[k], pl_shape_elems(&t.op.x[k]), "x");
            for (int k = 0; k < t.op.params && !(kind == PL_OP_BATCHNORM && k >= 2); k++)
                check_slopes(table, p, &t, t.p[k], t.dp[k], pl_shape_elems(&t.op.p[k]), "p");
            table->plan_destroy(p);
            free_trial(&t);
        }
    table->close(b);
}

static void flatten(struct pl_shape *s) { *s = shape(2, s->dim[0], pl_shape_row_elems(s), 0, 0); }

/* The same with inputs that are laid out, flat: seen as rows, and what the backend makes of them or canonical; whether the output was laid out. */
static int run_laid(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, bool train, int64_t block, bool bf16, bool flat, bool canonical_y, struct results *r)
{
    struct pl_op op = t->op;
    for (int k = 0; k < op.inputs; k++)
        op.lx[k] = (struct pl_layout){.block = block, .plane = block > 0 ? op.x[k].dim[2] * op.x[k].dim[3] : 0, .bf16 = bf16};
    for (int k = 0; k < op.inputs && flat; k++)
        flatten(&op.x[k]);
    if (flat)
        flatten(&op.y);
    op.ly = canonical_y ? (struct pl_layout){0} : table->layout(b, &op);
    run_as(table, b, t, &op, train, r);
    return op.ly.block > 1 || op.ly.bf16;
}

static void test_against_reference(void **state)
{
    const struct pl_backend_table *reference = pl_backend_find("reference");
    struct pl_backend *rb, *b;
    (void)state;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    for (const struct pl_backend_table *const *list = pl_backend_list(); *list; list++) {
        if (*list == reference)
            continue;
        assert_int_equal(pl_pool_start(2), PL_OK);
        assert_int_equal((*list)->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
        for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
            for (int round = 0; round < (kind == PL_OP_CONV ? CONV_ROUNDS : ROUNDS); round++) {
                struct trial t;
                struct results wanted, found;
                bool train = round % 4 != 3;
                make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 1);
                t.io.accumulate = round % 3 == 2;
                run_on(reference, rb, &t, train, &wanted);
                run_on(*list, b, &t, train, &found);
                compare_all(&t, (*list)->name, &wanted, &found, train);
                free_results(&wanted);
                free_results(&found);
                free_trial(&t);
            }
        (*list)->close(b);
        pl_pool_stop();
    }
    reference->close(rb);
}

/* Random operations of a kind, their inputs in blocks or not, with or without a rectifier at their end; how many outputs the
 * backend laid out. */
static int run_kind(struct pl_backend *rb, struct pl_backend *b, enum pl_op_kind kind, int64_t block, bool bf16)
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    int stayed = 0;
    double before = allowed;
    if (bf16 && (kind == PL_OP_LSTM || kind == PL_OP_GRU))
        allowed *= 10; /* what is rounded at a position is rounded again at the next */
    for (int round = 0; round < (kind == PL_OP_CONV ? CONV_ROUNDS : ROUNDS); round++) {
        struct trial t;
        struct results wanted, found;
        bool train = round % 4 != 3;
        make_trial(&t, kind, round % 2 == 0, block);
        t.io.accumulate = round % 3 == 2;
        bool relu = cpu->fuses_relu(kind) && round % 3 != 1, blocks = (!relu || round % 2 == 0) && kind != PL_OP_DROPOUT && (kind != PL_OP_DENSE || !bf16) && t.op.x[0].dims == 4;
        if (bf16)
            round_all(&t);
        if (relu)
            run_with_relu(reference, rb, &t, train, &wanted);
        else
            run_on(reference, rb, &t, train, &wanted);
        t.op.relu = relu;
        bool rows = kind == PL_OP_RELU || kind == PL_OP_SIGMOID || kind == PL_OP_DROPOUT || kind == PL_OP_CONCAT || kind == PL_OP_ADD;
        stayed += run_laid(cpu, b, &t, train, blocks ? block : 0, bf16 && round % 5 != 3 && kind != PL_OP_EMBEDDING, rows && round % 7 == 2, round % 5 == 4, &found);
        compare_all(&t, bf16 ? "cpu in bf16" : "cpu in blocks", &wanted, &found, train);
        free_results(&wanted);
        free_results(&found);
        free_trial(&t);
    }
    allowed = before;
    return stayed;
}

static void run_kinds(struct pl_backend *b, int64_t block, bool bf16, int *stayed)
{
    const struct pl_backend_table *reference = pl_backend_find("reference");
    struct pl_backend *rb;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    for (int kind = 0; kind < PL_OP_SOFTMAX_LOSS; kind++)
        stayed[kind] = run_kind(rb, b, (enum pl_op_kind)kind, block, bf16);
    reference->close(rb);
}

/* What a backend lets pass in blocks between its plans, and rectifiers at the end of a plan. */
static void test_blocked(void **state)
{
    static const enum pl_op_kind through[] = {PL_OP_MAXPOOL, PL_OP_AVGPOOL, PL_OP_RELU, PL_OP_BATCHNORM, PL_OP_LRN, PL_OP_CONCAT, PL_OP_ADD};
    const struct pl_backend_table *cpu = pl_backend_find("cpu");
    struct pl_backend *b;
    int stayed[PL_OP_SOFTMAX_LOSS];
    (void)state;
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    for (int64_t block = 8; block <= 16; block *= 2) {
        run_kinds(b, block, false, stayed);
        for (size_t i = 0; i < sizeof through / sizeof *through; i++)
            if (stayed[through[i]] < ROUNDS / 4)
                fail_msg("op %d: only %d of %d outputs were blocked", (int)through[i], stayed[through[i]], ROUNDS);
        print_message("convolutions with outputs in blocks of %d: %d of %d\n", (int)block, stayed[PL_OP_CONV], CONV_ROUNDS); /* none without oneDNN */
    }
    cpu->close(b);
    pl_pool_stop();
}

/* The same with activations of bf16: from inputs that are, results differ by no more than their rounding. */
static void test_bf16(void **state)
{
    static const enum pl_op_kind through[] = {PL_OP_DENSE, PL_OP_CONV, PL_OP_MAXPOOL, PL_OP_AVGPOOL, PL_OP_RELU, PL_OP_DROPOUT, PL_OP_BATCHNORM, PL_OP_LRN, PL_OP_CONCAT, PL_OP_ADD};
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    int stayed[PL_OP_SOFTMAX_LOSS];
    double before = allowed;
    (void)state;
    assert_int_equal(pl_pool_start(2), PL_OK);
    if (cpu->open(&(struct pl_device_options){.threads = 2, .bf16 = true}, &b) < 0) {
        print_message("skipped: %s\n", pl_error_text());
        pl_error_clear();
        pl_pool_stop();
        skip();
    }
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    allowed = BF16_ALLOWED;
    run_kinds(b, 16, true, stayed);
    struct pl_cpu_lanes eager = pl_cpu_lanes_16; /* convolutions by minimal filtering, where they can be, and all by oneDNN */
    eager.most_effort = INFINITY;
    b->lanes = &eager;
    run_kind(rb, b, PL_OP_CONV, 16, true);
    b->lanes = NULL;
    run_kind(rb, b, PL_OP_CONV, 16, true);
    reference->close(rb);
    allowed = before;
    for (size_t i = 0; i < sizeof through / sizeof *through; i++)
        if (stayed[through[i]] < ROUNDS / 4)
            fail_msg("op %d: only %d outputs were bf16", (int)through[i], stayed[through[i]]);
    cpu->close(b);
    pl_pool_stop();
}

/* cpu against reference on operations of given shapes; shape_of fills the one numbered i, false: there are no more. Every
 * convolution that our own kernels can do goes to them, however little they gain; lanes NULL: without them. */
static void check_shapes_with(const struct pl_cpu_lanes *lanes, bool (*shape_of)(size_t i, struct pl_op *op))
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    struct pl_cpu_lanes eager = {0};
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    if (lanes != NULL)
        eager = *lanes, eager.most_effort = INFINITY;
    b->lanes = lanes == NULL ? NULL : &eager;
    struct trial t = {0};
    for (size_t i = 0; shape_of(i, &t.op); i++) {
        struct results wanted, found;
        t.op.inputs = 1, t.op.train = t.op.need_dx[0] = true, t.op.groups = 1;
        bool weights = t.op.p[0].dims > 0;
        t.op.bias = weights && i % 2 == 0, t.op.params = weights + t.op.bias;
        t.op.p[1] = shape(1, t.op.p[0].dim[0], 0, 0, 0);
        fill_trial(&t, i % 3 != 2);
        t.io.accumulate = i % 3 == 1;
        bool blocks = lanes != NULL && t.op.kind == PL_OP_CONV && i % 4 != 3 && t.op.x[0].dim[1] % lanes->lanes == 0 && t.op.y.dim[1] % lanes->lanes == 0;
        struct pl_op op = t.op;
        if (blocks) {
            op.lx[0] = (struct pl_layout){.block = lanes->lanes, .plane = op.x[0].dim[2] * op.x[0].dim[3]};
            op.ly = (struct pl_layout){.block = lanes->lanes, .plane = op.y.dim[2] * op.y.dim[3]};
        }
        run_on(reference, rb, &t, true, &wanted);
        run_as(cpu, b, &t, &op, true, &found);
        compare_all(&t, blocks ? "cpu in blocks" : "cpu", &wanted, &found, true);
        check_largest(i, &t, &wanted, &found);
        free_results(&wanted);
        free_results(&found);
        free_trial(&t);
        t = (struct trial){0};
    }
    cpu->close(b);
    pl_pool_stop();
    reference->close(rb);
}

/* In every width of vectors that the processor has, and without our own kernels. */
static void check_shapes(bool (*shape_of)(size_t i, struct pl_op *op))
{
    const struct pl_cpu_lanes *here = pl_cpu_lanes_here();
    check_shapes_with(NULL, shape_of);
    if (here != NULL)
        check_shapes_with(&pl_cpu_lanes_8, shape_of);
    if (here != NULL && here->lanes == 16)
        check_shapes_with(&pl_cpu_lanes_16, shape_of);
}

/* Convolutions of stride 1, as the networks have them: many channels, many tiles, tiles cut off at every
 * edge, uneven padding, channels that fill no blocks. */
static bool convolution(size_t i, struct pl_op *op)
{
    static const struct { int64_t n, c, k, h, w, kernel, top, left, bottom, right; } shapes[] = {
        {2, 64, 64, 12, 12, 3, 1, 1, 1, 1}, {3, 8, 24, 7, 9, 3, 0, 2, 1, 0}, {2, 40, 8, 5, 4, 3, 2, 2, 2, 2}, {16, 16, 16, 3, 3, 3, 0, 0, 0, 0},
        {2, 16, 16, 3, 3, 3, 1, 1, 1, 1}, {2, 256, 32, 8, 8, 3, 1, 1, 1, 1}, {4, 32, 64, 8, 8, 5, 2, 2, 2, 2}, {2, 24, 8, 9, 6, 5, 4, 0, 1, 3},
        {24, 8, 16, 36, 33, 3, 1, 1, 1, 1}, {9, 20, 50, 12, 12, 5, 0, 0, 0, 0}, {5, 9, 17, 7, 11, 3, 1, 0, 1, 2},
        {2, 48, 112, 9, 10, 3, 0, 1, 1, 0}, {3, 16, 48, 7, 6, 5, 1, 2, 2, 0}, {2, 33, 18, 6, 7, 3, 1, 1, 1, 1}};
    if (i == sizeof shapes / sizeof *shapes)
        return false;
    *op = (struct pl_op){.kind = PL_OP_CONV, .name = "conv", .kernel = {shapes[i].kernel, shapes[i].kernel}, .stride = {1, 1}, .dilation = {1, 1},
                         .pad_begin = {shapes[i].top, shapes[i].left}, .pad_end = {shapes[i].bottom, shapes[i].right}};
    op->x[0] = shape(4, shapes[i].n, shapes[i].c, shapes[i].h, shapes[i].w);
    op->y = shape(4, shapes[i].n, shapes[i].k, out_size(op, 0, shapes[i].h), out_size(op, 1, shapes[i].w));
    op->p[0] = shape(4, shapes[i].k, shapes[i].c, shapes[i].kernel, shapes[i].kernel);
    return true;
}
static void test_convolutions(void **state) { (void)state, check_shapes(convolution); }

/* Dense layers whose weights are large against the batch. */
static bool narrow_dense(size_t i, struct pl_op *op)
{
    static const struct { int64_t n, in, out; } shapes[] = {{64, 400, 512}, {1, 391, 397}, {17, 1200, 385}, {33, 384, 390}};
    if (i == sizeof shapes / sizeof *shapes)
        return false;
    *op = (struct pl_op){.kind = PL_OP_DENSE, .name = "dense"};
    op->x[0] = shape(2, shapes[i].n, shapes[i].in, 0, 0);
    op->y = shape(2, shapes[i].n, shapes[i].out, 0, 0);
    op->p[0] = shape(2, shapes[i].out, shapes[i].in, 0, 0);
    return true;
}
static void test_narrow_dense(void **state) { (void)state, check_shapes(narrow_dense); }

/* Recurrent cells of more units and samples than a tile has, in every width of vectors that the processor has and by the library;
 * the last of a kind as evaluation has it, without memory for backward. */
static void recurrent_on(const struct pl_cpu_lanes *lanes)
{
    static const struct { int64_t n, t, i, h; } shapes[] = {{32, 5, 40, 64}, {13, 4, 70, 37}, {7, 3, 3, 16}, {41, 1, 16, 50}, {1, 6, 20, 33}, {9, 4, 5, 20}};
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    b->lanes = lanes;
    for (size_t k = 0; k < 2 * sizeof shapes / sizeof *shapes; k++) {
        bool lstm = k % 2, train = k / 2 + 1 < sizeof shapes / sizeof *shapes;
        int64_t gates = (lstm ? 4 : 3) * shapes[k / 2].h;
        struct trial t = {.op = {.kind = lstm ? PL_OP_LSTM : PL_OP_GRU, .name = "cell", .inputs = 1, .params = 4, .bias = true, .last = k % 3 == 0, .train = train,
                                 .need_dx = {true}}};
        struct results wanted, found;
        t.op.x[0] = shape(3, shapes[k / 2].n, shapes[k / 2].t, shapes[k / 2].i, 0);
        t.op.y = t.op.last ? shape(2, shapes[k / 2].n, shapes[k / 2].h, 0, 0) : shape(3, shapes[k / 2].n, shapes[k / 2].t, shapes[k / 2].h, 0);
        t.op.p[0] = shape(2, gates, shapes[k / 2].i, 0, 0);
        t.op.p[1] = shape(2, gates, shapes[k / 2].h, 0, 0);
        t.op.p[2] = t.op.p[3] = shape(1, gates, 0, 0, 0);
        fill_trial(&t, k % 4 < 2);
        for (int m = 0; m < 2; m++) /* as weights are that do not make a little rounding much more at every position */
            for (int64_t i = 0; i < pl_shape_elems(&t.op.p[m]); i++)
                t.p[m][i] /= sqrtf((float)t.op.p[m].dim[1]);
        t.io.accumulate = k % 5 < 2;
        run_on(reference, rb, &t, train, &wanted);
        run_on(cpu, b, &t, train, &found);
        compare_all(&t, "cpu", &wanted, &found, train);
        free_results(&wanted);
        free_results(&found);
        free_trial(&t);
    }
    cpu->close(b);
    pl_pool_stop();
    reference->close(rb);
}

/* The same on cpu and reference */
static void check_on_cpu(struct trial *t)
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *rb, *b;
    struct results wanted, found;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 1}, &b), PL_OK);
    run_on(reference, rb, t, true, &wanted);
    run_on(cpu, b, t, true, &found);
    compare_all(t, "cpu", &wanted, &found, true);
    free_results(&wanted);
    free_results(&found);
    cpu->close(b);
    reference->close(rb);
}

/* Scores beyond what exp can take, rows that lie far from 0, and an epsilon that counts. */
static void test_extremes(void **state)
{
    struct trial t = {.op = {.kind = PL_OP_ATTENTION, .name = "attention", .inputs = 1, .train = true, .need_dx = {true}, .heads = 2, .causal = true}};
    (void)state;
    t.op.x[0] = shape(3, 2, 70, 24, 0);
    t.op.y = shape(3, 2, 70, 8, 0);
    fill_trial(&t, true);
    for (int64_t i = 0; i < 2 * 70 * 2; i++) { /* heads of positions: a feature of all queries and one of all keys */
        float *head = t.x[0] + i / 2 * 24 + i % 2 * 4;
        head[0] = 200; /* halved, 100 */
        head[8] = 1;
    }
    check_on_cpu(&t);
    free_trial(&t);
    make_trial(&t, PL_OP_LAYERNORM, true, 1);
    t.op.epsilon = 0.1;
    for (int64_t i = 0; i < pl_shape_elems(&t.op.x[0]); i++)
        t.x[0][i] += 100;
    check_on_cpu(&t);
    free_trial(&t);
}

static void test_recurrent(void **state)
{
    const struct pl_cpu_lanes *here = pl_cpu_lanes_here();
    (void)state;
    recurrent_on(NULL);
    if (here != NULL)
        recurrent_on(&pl_cpu_lanes_8);
    if (here != NULL && here->lanes == 16)
        recurrent_on(&pl_cpu_lanes_16);
}

/* Maxima of 2x2 without padding, in rows of less than four, of several fours, with a rest and with a column left over. */
static bool maxima(size_t i, struct pl_op *op)
{
    static const struct { int64_t n, c, h, w; } shapes[] = {{2, 20, 24, 24}, {3, 5, 8, 8}, {1, 7, 6, 22}, {2, 3, 7, 9}, {2, 4, 5, 6}, {1, 2, 2, 40}};
    if (i == sizeof shapes / sizeof *shapes)
        return false;
    *op = (struct pl_op){.kind = PL_OP_MAXPOOL, .name = "pool", .kernel = {2, 2}, .stride = {2, 2}, .dilation = {1, 1}};
    op->x[0] = shape(4, shapes[i].n, shapes[i].c, shapes[i].h, shapes[i].w);
    op->y = shape(4, shapes[i].n, shapes[i].c, shapes[i].h / 2, shapes[i].w / 2);
    return true;
}
static void test_maxima(void **state) { (void)state, check_shapes(maxima); }

/* ---- statistics over ranks ------------------------------------------------------------------------ */

/* Two ranks that run one after the other, again and again: a sum is of one's own values and of what the other said in its last
 * run. What is said first is right from the first run on, what depends on it one run later, and so on. */
enum { MOST_SUMS = 4, MOST_SUMMED = 256 };
static struct said {
    double v[2][MOST_SUMS][MOST_SUMMED];
    int rank, sums, fail; /* fail: this sum does; -1: none */
    int64_t most;
} said;

static pl_status sum_of_two(void *arg, double *v, int64_t n)
{
    struct said *s = arg;
    int k = s->sums++;
    if (k == s->fail)
        return pl_error(PL_ERR_PEER, "test", "the other is lost");
    if (k >= MOST_SUMS || n > s->most)
        fail_msg("sum %d of %lld values, %lld at most", k, (long long)n, (long long)s->most);
    for (int64_t i = 0; i < n; i++) {
        s->v[s->rank][k][i] = v[i];
        v[i] += s->v[1 - s->rank][k][i];
    }
    return PL_OK;
}

/* [first, first + rows) of the trial's rows, at the same capacity. */
static struct trial part_of(const struct trial *t, int64_t first, int64_t rows, float *x, float *dy)
{
    struct trial part = *t;
    int64_t row = pl_shape_row_elems(&t->op.y), bytes = row * (int64_t)sizeof(float);
    memset(x, 0, (size_t)(t->op.y.dim[0] * bytes));
    memset(dy, 0, (size_t)(t->op.y.dim[0] * bytes));
    memcpy(x, t->x[0] + first * row, (size_t)(rows * bytes));
    memcpy(dy, t->dy + first * row, (size_t)(rows * bytes));
    part.x[0] = x;
    part.dy = dy;
    part.io.x[0] = x;
    part.io.dy = dy;
    part.io.rows = rows;
    part.io.sum = sum_of_two;
    part.io.sum_arg = &said;
    return part;
}

/* What two ranks with `first` rows and the rest compute, put together as one batch's. */
static void run_two(const struct pl_backend_table *table, struct pl_backend *b, const struct trial *t, const struct pl_op *op, int64_t first, struct results *r)
{
    int64_t n = pl_shape_elems(&t->op.y), row = pl_shape_row_elems(&t->op.y), rows = t->io.rows;
    float *x = calloc((size_t)n + 1, sizeof *x), *dy = calloc((size_t)n + 1, sizeof *dy);
    struct results of[2];
    said = (struct said){.fail = -1, .most = pl_op_sync_values(op)};
    for (int run = 0; run < 2 * MOST_SUMS; run++) {
        said.rank = run % 2;
        said.sums = 0;
        struct trial part = said.rank == 0 ? part_of(t, 0, first, x, dy) : part_of(t, first, rows - first, x, dy);
        run_as(table, b, &part, op, true, &of[said.rank]);
        assert_in_range(said.sums, 2, 3);
        if (run < 2 * MOST_SUMS - 2)
            free_results(&of[said.rank]);
    }
    memset(r, 0, sizeof *r);
    r->y = copy_of(of[0].y, n);
    r->dx[0] = copy_of(of[0].dx[0], n);
    memcpy(r->y + first * row, of[1].y, (size_t)((rows - first) * row) * sizeof(float));
    memcpy(r->dx[0] + first * row, of[1].dx[0], (size_t)((rows - first) * row) * sizeof(float));
    for (int k = 0; k < t->op.params; k++) {
        int64_t c = pl_shape_elems(&t->op.p[k]);
        r->dp[k] = copy_of(of[0].dp[k], c);
        for (int64_t i = 0; i < c; i++)
            r->dp[k][i] += of[1].dp[k][i] - (t->io.accumulate ? t->dp[k][i] : 0); /* both added to what was there */
    }
    for (int64_t i = first * row; i < n; i++)
        assert_true(of[0].y[i] == 0 && of[0].dx[0][i] == 0); /* padding rows */
    free_results(&of[0]), free_results(&of[1]);
    free(x), free(dy);
}

static void check_two(const struct pl_backend_table *table, struct pl_backend *b, int64_t block, bool bf16)
{
    const struct pl_backend_table *reference = pl_backend_find("reference");
    struct pl_backend *rb;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &rb), PL_OK);
    for (int round = 0; round < 2 * ROUNDS; round++) {
        struct trial t = {0};
        struct results wanted, found;
        bool relu = table->fuses_relu && table->fuses_relu(PL_OP_BATCHNORM) && round % 3 != 1, flat = block == 0 && round % 4 == 1;
        make_op(&t.op, PL_OP_BATCHNORM, block > 0 ? block : 1);
        if (flat)
            t.op.x[0] = t.op.y = shape(2, between(4, 9), t.op.p[0].dim[0], 0, 0);
        fill_trial(&t, round % 2 == 0);
        t.io.accumulate = round % 5 == 2;
        if (bf16)
            round_all(&t);
        if (relu)
            run_with_relu(reference, rb, &t, true, &wanted);
        else
            run_on(reference, rb, &t, true, &wanted);
        t.op.relu = relu;
        struct pl_op op = t.op;
        op.sync = true;
        op.lx[0] = (struct pl_layout){.block = block, .plane = block > 0 ? op.x[0].dim[2] * op.x[0].dim[3] : 0, .bf16 = bf16};
        op.ly = op.lx[0];
        run_two(table, b, &t, &op, round % 6 == 3 ? 0 : between(0, t.io.rows), &found);
        compare_all(&t, table->name, &wanted, &found, true);
        free_results(&wanted), free_results(&found);
        free_trial(&t);
    }
    reference->close(rb);
}

/* Without others, and in evaluation, it is the plain operation, to the bit; an error of the sum is the operation's. */
static void check_alone(const struct pl_backend_table *table, struct pl_backend *b)
{
    for (int train = 0; train < 2; train++) {
        struct trial t;
        struct results plain, sync;
        make_trial(&t, PL_OP_BATCHNORM, true, 1);
        run_on(table, b, &t, train, &plain);
        t.op.sync = true;
        said = (struct said){.fail = 0};
        t.io.sum = train ? NULL : sum_of_two;
        t.io.sum_arg = &said;
        run_on(table, b, &t, train, &sync);
        assert_int_equal(said.sums, 0);
        assert_memory_equal(plain.y, sync.y, (size_t)pl_shape_elems(&t.op.y) * sizeof(float));
        assert_memory_equal(plain.dx[0], sync.dx[0], (size_t)pl_shape_elems(&t.op.y) * sizeof(float));
        assert_memory_equal(plain.dp[3], sync.dp[3], (size_t)pl_shape_elems(&t.op.p[3]) * sizeof(float));
        free_results(&plain), free_results(&sync);
        t.io.sum = sum_of_two;
        for (int fail = 0; train && fail < 3; fail++) {
            struct pl_plan *p = plan_on(table, b, &t.op);
            said = (struct said){.fail = fail, .most = pl_op_sync_values(&t.op)};
            pl_status forward = table->forward(p, &t.io);
            int sums = said.sums; /* of forward: one or two */
            assert_int_equal(forward, fail < sums && said.fail == sums - 1 ? PL_ERR_PEER : PL_OK);
            if (forward == PL_OK)
                assert_int_equal(table->backward(p, &t.io), fail == sums ? PL_ERR_PEER : PL_OK);
            pl_error_clear();
            table->plan_destroy(p);
        }
        free_trial(&t);
    }
}

static void test_over_ranks(void **state)
{
    const struct pl_backend_table *reference = pl_backend_find("reference"), *cpu = pl_backend_find("cpu");
    struct pl_backend *b;
    double before = allowed;
    (void)state;
    assert_int_equal(reference->open(&(struct pl_device_options){.threads = 1}, &b), PL_OK);
    check_two(reference, b, 0, false);
    check_alone(reference, b);
    reference->close(b);
    assert_int_equal(pl_pool_start(2), PL_OK);
    assert_int_equal(cpu->open(&(struct pl_device_options){.threads = 2}, &b), PL_OK);
    for (int64_t block = 0; block <= 16; block = block == 0 ? 8 : 2 * block)
        check_two(cpu, b, block, false);
    check_alone(cpu, b);
    cpu->close(b);
    allowed = BF16_ALLOWED;
    if (cpu->open(&(struct pl_device_options){.threads = 2, .bf16 = true}, &b) == PL_OK) {
        check_two(cpu, b, 16, true);
        cpu->close(b);
    } else {
        print_message("not in bf16: %s\n", pl_error_text());
        pl_error_clear();
    }
    allowed = before;
    pl_pool_stop();
}

int main(void)
{
    const char *given = getenv("PL_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : 1;
    rng = pl_rng_make(seed, 0, 0, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_against_reference), cmocka_unit_test(test_blocked), cmocka_unit_test(test_bf16), cmocka_unit_test(test_over_ranks), cmocka_unit_test(test_convolutions), cmocka_unit_test(test_narrow_dense), cmocka_unit_test(test_recurrent), cmocka_unit_test(test_extremes), cmocka_unit_test(test_maxima)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
