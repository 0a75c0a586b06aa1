/* The cuda backend over kernels that run on the host (emulated.h) and stand-ins for the libraries (libraries/), against
 * `reference`: random operations canonical and channels last, large enough ones for every loop over tiles, slices and blocks,
 * the kernels that others call, and that the emulation itself faults where a device would. tests/gpu has what of it needs no
 * emulation, for the module on a GPU. */
#ifndef PL_ON_GPU
#include "backend/cuda/cuda.h"
#include "cuda/emulated.h"
#endif
#include "unit/ops.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pl_backend *reference_backend, *cuda_backend;
static const struct pl_backend_table *cuda;
static bool tf32 = true; /* the emulation rounds nothing, but then lets convolutions choose channels last */
static bool bf16;

static int open_all(void **state)
{
    (void)state;
    assert_int_equal(pl_backend_find("reference")->open(&(struct pl_device_options){.threads = 1}, &reference_backend), PL_OK);
    assert_int_equal(cuda->open(&(struct pl_device_options){.threads = 1, .tf32 = tf32, .bf16 = bf16}, &cuda_backend), PL_OK);
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    pl_backend_find("reference")->close(reference_backend);
    cuda->close(cuda_backend);
    return 0;
}

/* One trial on both, with op's layouts and rectifier on cuda */
static void check(const struct trial *t, const struct pl_op *op, bool train)
{
    const struct pl_backend_table *reference = pl_backend_find("reference");
    struct results wanted, found;
    if (op->relu)
        run_with_relu(reference, reference_backend, t, train, &wanted);
    else
        run_on(reference, reference_backend, t, train, &wanted);
    run_as(cuda, cuda_backend, t, op, train, &found);
    compare_all(t, op->ly.block > 1 ? "cuda, channels last" : "cuda", &wanted, &found, train);
    int64_t row = pl_shape_row_elems(&t->op.y);
    for (int64_t i = t->io.rows * row; t->op.kind == PL_OP_BATCHNORM && i < t->op.y.dim[0] * row; i++)
        assert_true(found.y[i] == 0 && (!train || found.dx[0][i] == 0)); /* padding rows */
    free_results(&wanted);
    free_results(&found);
}

static void test_canonical(void **state)
{
    (void)state;
    for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
        for (int round = 0; round < ROUNDS; round++) {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, 1);
            t.io.accumulate = round % 3 == 2;
            struct pl_op op = t.op;
            op.relu = cuda->fuses_relu(op.kind) && round % 5 < 2;
            check(&t, &op, round % 4 != 3);
            free_trial(&t);
        }
}

static struct pl_layout channels_last(const struct pl_shape *s) { return (struct pl_layout){.block = s->dim[1], .plane = s->dim[2] * s->dim[3]}; }

static void test_channels_last(void **state)
{
    int stayed[PL_OP_EUCLIDEAN_LOSS + 1] = {0};
    (void)state;
    for (int kind = 0; kind < PL_OP_SOFTMAX_LOSS; kind++)
        for (int round = 0; round < ROUNDS; round++) {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, round % 4 == 1 ? 1 : 4);
            t.io.accumulate = round % 3 == 2;
            struct pl_op op = t.op;
            op.relu = cuda->fuses_relu(op.kind) && round % 3 != 1;
            for (int k = 0; k < op.inputs; k++)
                if ((round % 7 != 6 || k != 1) && op.x[k].dims == 4) /* some sums and concatenations are of both kinds */
                    op.lx[k] = channels_last(&op.x[k]);
            op.ly = round % 5 == 4 ? (struct pl_layout){0} : cuda->layout(cuda_backend, &op);
            stayed[kind] += op.ly.block > 1;
            check(&t, &op, round % 4 != 3);
            free_trial(&t);
        }
    assert_true(!(tf32 || bf16) || stayed[PL_OP_CONV] > 0 || ROUNDS < 20);
    static const enum pl_op_kind through[] = {PL_OP_MAXPOOL, PL_OP_AVGPOOL, PL_OP_RELU, PL_OP_SIGMOID, PL_OP_TANH, PL_OP_GELU, PL_OP_DROPOUT, PL_OP_BATCHNORM, PL_OP_LRN, PL_OP_CONCAT, PL_OP_ADD};
    for (size_t i = 0; i < sizeof through / sizeof *through; i++)
        if (stayed[through[i]] < ROUNDS / 4)
            fail_msg("op %d: only %d of %d outputs had their channels last", (int)through[i], stayed[through[i]], ROUNDS);
}

/* Activations of bf16, in both orders, and next to some of float: from inputs that bf16 can hold results differ by no more than
 * its rounding. */
static void test_bf16(void **state)
{
    int stayed[PL_OP_EUCLIDEAN_LOSS + 1] = {0};
    double allowed_before = allowed;
    float kink_before = kink;
    (void)state;
    kink = 0.02f; /* sums are rounded before a bias of up to 3 is added */
    for (int kind = 0; kind <= PL_OP_EUCLIDEAN_LOSS; kind++)
        for (int round = 0; round < 2 * ROUNDS; round++) {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)kind, round % 2 == 0, round % 4 == 1 ? 1 : 8);
            round_all(&t);
            t.io.accumulate = round % 3 == 2;
            struct pl_op op = t.op;
            allowed = BF16_ALLOWED * (op.bias ? 4 : 1); /* rounded twice */
            op.relu = cuda->fuses_relu(op.kind) && round % 3 != 1;
            for (int k = 0; k < op.inputs; k++) {
                if (round % 9 < 5 && !is_loss(op.kind) && op.x[k].dims == 4)
                    op.lx[k] = channels_last(&op.x[k]);
                op.lx[k].bf16 = round % 7 != k && op.kind != PL_OP_EMBEDDING;
            }
            op.ly = round % 5 == 4 ? (struct pl_layout){0} : cuda->layout(cuda_backend, &op);
            stayed[kind] += op.ly.bf16;
            check(&t, &op, round % 4 != 3);
            free_trial(&t);
        }
    allowed = allowed_before;
    kink = kink_before;
    for (int kind = 0; kind < PL_OP_SOFTMAX_LOSS; kind++)
        if (stayed[kind] < ROUNDS / 2 && kind != PL_OP_EMBEDDING && kind != PL_OP_LSTM && kind != PL_OP_GRU && kind != PL_OP_ATTENTION)
            fail_msg("op %d: only %d of %d outputs were of bf16", kind, stayed[kind], 2 * ROUNDS);
}

static int open_bf16(void **state)
{
    bf16 = true;
    return open_all(state);
}

struct sizes { enum pl_op_kind kind; int64_t n, c, h, w; };

/* Canonical, channels last, and from the one into the other */
static void check_sizes(const struct sizes *s, bool full)
{
    for (int i = 0; i < (s->h > 0 ? 3 : 1); i++) {
        struct trial t = {0};
        make_op(&t.op, s->kind, 1);
        t.op.positions = 0;
        t.op.x[0] = t.op.y = shape(s->h > 0 ? 4 : 2, s->n, s->c, s->h, s->w);
        t.op.params = s->kind == PL_OP_LAYERNORM ? 2 : t.op.params;
        for (int k = 0; k < t.op.params; k++)
            t.op.p[k] = shape(1, s->c, 0, 0, 0);
        if (s->kind == PL_OP_CONCAT) {
            t.op.x[1] = shape(4, s->n, 33, s->h, s->w);
            t.op.y = shape(4, s->n, s->c + 33, s->h, s->w);
        }
        t.op.label_floats = t.op.label_floats > 0 ? s->c : 0;
        t.op.size = 4; /* of a window, not the same on both sides */
        fill_trial(&t, full);
        struct pl_op op = t.op;
        for (int k = 0; k < op.inputs && i > 0; k++)
            op.lx[k] = channels_last(&op.x[k]);
        op.ly = i == 1 ? channels_last(&op.y) : (struct pl_layout){0};
        check(&t, &op, true);
        free_trial(&t);
    }
}

static void make_attention(struct trial *t, int64_t n, int64_t positions, int64_t heads, int64_t d, bool causal)
{
    memset(t, 0, sizeof *t);
    make_op(&t->op, PL_OP_ATTENTION, 1);
    t->op.heads = heads;
    t->op.causal = causal;
    t->op.y = shape(3, n, positions, heads * d, 0);
    t->op.x[0] = shape(3, n, positions, 3 * heads * d, 0);
    fill_trial(t, true);
}

static void check_attention(int64_t n, int64_t positions, int64_t heads, int64_t d, bool causal)
{
    struct trial t;
    make_attention(&t, n, positions, heads, d, causal);
    check(&t, &t.op, true);
    free_trial(&t);
}

/* More channels and places than a tile has, more samples, classes and positions than a block has threads. */
static void test_large(void **state)
{
    static const struct sizes sizes[] = {
        {PL_OP_BATCHNORM, 5, 70, 9, 5}, {PL_OP_BATCHNORM, 300, 3, 1, 2}, {PL_OP_BATCHNORM, 67, 40, 1, 1}, {PL_OP_BATCHNORM, 3, 2, 40, 41},
        {PL_OP_CONCAT, 3, 37, 9, 8}, {PL_OP_RELU, 2, 67, 5, 9}, {PL_OP_GELU, 2, 67, 5, 9}, {PL_OP_DROPOUT, 3, 67, 5, 9}, {PL_OP_LRN, 2, 67, 4, 4},
        {PL_OP_LAYERNORM, 3, 1500, 0, 0}, {PL_OP_LAYERNORM, 2, 1100, 0, 0}, {PL_OP_LAYERNORM, 700, 37, 0, 0}, {PL_OP_POSITION_EMBEDDING, 600, 70, 0, 0},
        {PL_OP_SOFTMAX_LOSS, 3, 1500, 0, 0}, {PL_OP_SOFTMAX_LOSS, 600, 7, 0, 0}, {PL_OP_SIGMOID_LOSS, 300, 3, 0, 0}, {PL_OP_EUCLIDEAN_LOSS, 5, 700, 0, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_sizes(&sizes[i], i % 2 == 0);
    check_attention(1, 1100, 1, 2, true);
}

/* For blocks of more than two warps, of which few are made */
static void test_few(void **state)
{
    static const struct sizes sizes[] = {{PL_OP_BATCHNORM, 70, 3, 2, 2}, {PL_OP_LAYERNORM, 3, 150, 0, 0}, {PL_OP_SOFTMAX_LOSS, 2, 300, 0, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_sizes(&sizes[i], true);
    check_attention(1, 150, 1, 3, false);
}

/* What would overflow, or be lost beside what is large: scores of attention that are all moved up by 200, rows with a mean of 100,
 * to whose variance something is added. */
static void test_extremes(void **state)
{
    struct trial t;
    (void)state;
    make_attention(&t, 2, 9, 2, 4, true);
    for (int64_t i = 0; i < 2 * 9 * 2; i++) { /* heads of positions; queries and keys are 8 features apart */
        float *head = t.x[0] + i / 2 * 24 + i % 2 * 4;
        head[0] = 400;
        head[8] = 1;
    }
    check(&t, &t.op, true);
    free_trial(&t);
    make_trial(&t, PL_OP_LAYERNORM, true, 1);
    t.op.epsilon = 0.1;
    for (int64_t i = 0; i < pl_shape_elems(&t.op.x[0]); i++)
        t.x[0][i] += 100;
    check(&t, &t.op, true);
    free_trial(&t);
}

/* On a device of its own, where no other plan has asked for the memory that they share. */
static void test_alone(void **state)
{
    static const struct sizes sizes[] = {{PL_OP_LAYERNORM, 700, 300, 0, 0}, {PL_OP_BATCHNORM, 300, 300, 1, 2}};
    const int more = sizeof sizes / sizeof *sizes;
    struct pl_backend *shared = cuda_backend;
    (void)state;
    for (int i = 0; i <= PL_OP_EUCLIDEAN_LOSS + more; i++) {
        assert_int_equal(cuda->open(&(struct pl_device_options){.threads = 1, .tf32 = tf32, .bf16 = bf16}, &cuda_backend), PL_OK);
        if (i < more) {
            check_sizes(&sizes[i], true);
        } else {
            struct trial t;
            make_trial(&t, (enum pl_op_kind)(i - more), true, 1);
            check(&t, &t.op, true);
            free_trial(&t);
        }
        cuda->close(cuda_backend);
        cuda_backend = shared;
    }
}

/* Plans after which no backward comes keep nothing for it. */
static void test_without_backward(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * PL_OP_EUCLIDEAN_LOSS; i++) {
        struct trial t;
        make_trial(&t, (enum pl_op_kind)(i / 2), i % 2, 1);
        struct pl_op op = t.op;
        op.train = false;
        memset(op.need_dx, 0, sizeof op.need_dx);
        check(&t, &op, false);
        free_trial(&t);
    }
}

/* Flattened tensors keep the order of what they look at. */
static void test_flattened(void **state)
{
    static const enum pl_op_kind kinds[] = {PL_OP_RELU, PL_OP_GELU, PL_OP_DROPOUT, PL_OP_ADD, PL_OP_CONCAT, PL_OP_BATCHNORM, PL_OP_LAYERNORM, PL_OP_POSITION_EMBEDDING};
    (void)state;
    for (size_t i = 0; i < 4 * sizeof kinds / sizeof *kinds; i++) {
        struct trial t = {0};
        make_op(&t.op, kinds[i / 4], 1);
        t.op.positions = 0;
        t.op.x[0] = t.op.y = shape(2, 3, 12 * 5, 0, 0);
        t.op.inputs = t.op.kind == PL_OP_ADD || t.op.kind == PL_OP_CONCAT ? 2 : 1;
        t.op.x[1] = t.op.x[0];
        for (int k = 0; k < t.op.params; k++)
            t.op.p[k] = shape(1, 12 * 5, 0, 0, 0);
        if (t.op.kind == PL_OP_CONCAT)
            t.op.y.dim[1] *= 2;
        fill_trial(&t, true);
        struct pl_op op = t.op;
        op.lx[i % 2] = op.inputs > 1 || i % 2 == 0 ? (struct pl_layout){.block = 12, .plane = 5} : (struct pl_layout){0};
        op.lx[1 - i % 2] = i % 4 > 1 ? (struct pl_layout){.block = 12, .plane = 5} : (struct pl_layout){0};
        check(&t, &op, true);
        free_trial(&t);
    }
}

#ifndef PL_ON_GPU
/* ---- what other files call ------------------------------------------------------------------------- */

static float *far_noise(int64_t n, float **host)
{
    *host = noise(&(struct pl_shape){1, {n}});
    return lend(cuda, cuda_backend, *host, (size_t)n * sizeof(float));
}

static void expect(const char *what, const float *far, const float *wanted, int64_t n)
{
    float *found = fetch(cuda, cuda_backend, far, &(struct pl_shape){1, {n}}, &(struct pl_layout){0});
    for (int64_t i = 0; i < n; i++)
        if (!(fabsf(found[i] - wanted[i]) <= 1e-5f * (1 + fabsf(wanted[i]))))
            fail_msg("%s: element %lld is %g, wanted %g", what, (long long)i, found[i], wanted[i]);
    free(found);
}

static struct pl_cuda_view view(int64_t n, int64_t c, int64_t h, int64_t w, bool last)
{
    return (struct pl_cuda_view){n, c, h, w, c * h * w, last ? 1 : h * w, last ? c : 1, false};
}

static int64_t place(struct pl_cuda_view v, int64_t i, int64_t k, int64_t at) { return i * v.sn + k * v.sc + at * v.sp; }

static void check_bias(bool last, bool relu, bool more)
{
    struct pl_cuda_view v = view(7, 35, 3, 4, last);
    int64_t plane = 12, n = v.n * v.c * plane;
    float *y, *bias, *far_y = far_noise(n, &y), *far_bias = far_noise(v.c, &bias);
    void *scratch = cuda->alloc(cuda_backend, pl_cuda_channel_scratch(v), "scratch");
    pl_cuda_bias(cuda_backend->stream, far_y, v, far_bias, relu);
    pl_cuda_bias_back(cuda_backend->stream, far_y, v, more, far_bias, scratch);
    for (int64_t k = 0; k < v.c; k++) {
        double sum = more ? bias[k] : 0;
        for (int64_t i = 0; i < v.n; i++)
            for (int64_t at = 0; at < plane; at++) {
                float *to = &y[place(v, i, k, at)];
                *to += bias[k];
                *to = relu && *to < 0 ? 0 : *to;
                sum += *to;
            }
        bias[k] = (float)sum;
    }
    expect("bias", far_y, y, n);
    expect("gradient of the bias", far_bias, bias, v.c);
    cuda->free(cuda_backend, scratch), cuda->free(cuda_backend, far_y), cuda->free(cuda_backend, far_bias);
    free(y), free(bias);
}

static void check_weights(void)
{
    int64_t o = 3, c = 35, taps = 9, n = o * c * taps;
    float *w, *last, *far_w = far_noise(n, &w), *far_last = far_noise(n, &last);
    const struct pl_cuda_weights how = {o, c, taps, true, false};
    pl_cuda_weights_lay(cuda_backend->stream, how, far_w, far_last);
    for (int64_t i = 0; i < n; i++)
        last[i / (c * taps) * c * taps + i % taps * c + i / taps % c] = w[i];
    expect("weights", far_last, last, n);
    pl_cuda_weights_back(cuda_backend->stream, how, far_last, far_w, true);
    for (int64_t i = 0; i < n; i++)
        w[i] *= 2;
    expect("weights and back", far_w, w, n);
    pl_cuda_weights_back(cuda_backend->stream, how, far_last, far_w, false);
    for (int64_t i = 0; i < n; i++)
        w[i] /= 2;
    expect("weights and back again", far_w, w, n);
    cuda->free(cuda_backend, far_w), cuda->free(cuda_backend, far_last);
    free(w), free(last);
}

static void check_pad(bool last)
{
    struct pl_cuda_view x = view(2, 5, 4, 3, last), y = view(2, 5, 7, 4, last); /* 1 above, 2 below, 0 and 1 beside */
    float *a, *b, *c, *far_a = far_noise(120, &a), *far_b = far_noise(280, &b), *far_c = far_noise(120, &c);
    pl_cuda_pad(cuda_backend->stream, far_a, x, 1, 0, far_b, y);
    pl_cuda_crop(cuda_backend->stream, far_b, y, 1, 0, far_c, x);
    for (int64_t i = 0; i < 2; i++)
        for (int64_t k = 0; k < 5; k++)
            for (int64_t r = 0; r < 7; r++)
                for (int64_t s = 0; s < 4; s++)
                    b[place(y, i, k, r * 4 + s)] = r < 1 || r > 4 || s > 2 ? 0 : a[place(x, i, k, (r - 1) * 3 + s)];
    expect("padded", far_b, b, 280);
    expect("cropped", far_c, a, 120);
    cuda->free(cuda_backend, far_a), cuda->free(cuda_backend, far_b), cuda->free(cuda_backend, far_c);
    free(a), free(b), free(c);
}

static void check_relu_mask(void)
{
    float *a, *b, *far_a = far_noise(1000, &a), *far_b = far_noise(1000, &b);
    pl_cuda_relu_mask(cuda_backend->stream, far_a, far_b, view(10, 20, 5, 1, false));
    for (int i = 0; i < 1000; i++)
        b[i] = a[i] > 0 ? b[i] : 0;
    expect("masked", far_b, b, 1000);
    cuda->free(cuda_backend, far_a), cuda->free(cuda_backend, far_b);
    free(a), free(b);
}

static void check_pixels(void)
{
    enum { N = 4, C = 3, H = 5, W = 7, ROW = C * H * W };
    static const struct pl_cuda_place places[N] = {{0, H, 0, W, 0}, {1, 4, 2, 7, 1}, {0, 3, 0, 6, 1}, {0, 0, 0, 0, 0}};
    uint8_t value[N * ROW];
    float *factor, *far_factor = far_noise(2 * C, &factor), *wanted, *far = far_noise(N * ROW, &wanted);
    for (int i = 0; i < N * ROW; i++)
        value[i] = (uint8_t)between(0, 255);
    for (int i = 0; i < N * ROW; i++) {
        int n = i / ROW, c = i / (H * W) % C, r = i / W % H, x = i % W, from = places[n].mirrored ? W - 1 - x : x;
        bool inside = r >= places[n].top && r < places[n].bottom && from >= places[n].left && from < places[n].right;
        float scaled = (float)value[i - x + from] * factor[c];
        wanted[i] = inside ? scaled + factor[C + c] : 0;
    }
    uint8_t *far_value = lend(cuda, cuda_backend, value, sizeof value);
    struct pl_cuda_place *far_places = lend(cuda, cuda_backend, places, sizeof places);
    pl_cuda_widen(cuda_backend->stream, (struct pl_cuda_pixels){N, C, H, W, far_value, far_places, far_factor}, far);
    expect("pixels", far, wanted, N * ROW);
    cuda->free(cuda_backend, far_value), cuda->free(cuda_backend, far_places), cuda->free(cuda_backend, far_factor), cuda->free(cuda_backend, far);
    free(factor), free(wanted);
}

static void test_helpers(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++)
        check_bias(i % 2, i / 2 % 2, i / 4);
    check_weights();
    check_pad(false);
    check_pad(true);
    check_relu_mask();
    check_pixels();
}

#endif
/* Convolutions as networks have them, whose algorithms are others than those of small ones. */
static void test_networks(void **state)
{
#ifdef PL_ON_GPU
    const char *less = getenv("PL_TEST_LESS");
    const int64_t LESS = less ? atoi(less) : 1;
#else
    enum { LESS = 8 }; /* where the host computes them */
#endif
    static const struct { int64_t n, c, size, o, kernel, stride; } convs[] = {{4, 3, 224, 64, 7, 2}, {4, 64, 56, 64, 3, 1}, {4, 256, 28, 64, 1, 1}, {4, 256, 14, 256, 3, 2}, {4, 48, 28, 64, 5, 1}};
    double allowed_before = allowed;
    (void)state;
    allowed = bf16 ? BF16_ALLOWED : allowed;
    for (size_t i = 0; i < 2 * sizeof convs / sizeof *convs; i++) {
        struct trial t = {0};
        bool last = i % 2, colours = convs[i / 2].c == 3;
        int64_t size = convs[i / 2].size / LESS, kernel = convs[i / 2].kernel, stride = convs[i / 2].stride, out_side = (size + 2 * (kernel / 2) - kernel) / stride + 1;
        int64_t c = colours ? 3 : (convs[i / 2].c / LESS + 7) / 8 * 8, o = convs[i / 2].o / LESS;
        if (last && colours)
            continue;
        make_op(&t.op, PL_OP_CONV, 1);
        t.op.groups = t.op.dilation[0] = t.op.dilation[1] = 1;
        for (int k = 0; k < 2; k++) {
            t.op.kernel[k] = kernel;
            t.op.stride[k] = stride;
            t.op.pad_begin[k] = t.op.pad_end[k] = kernel / 2;
        }
        t.op.x[0] = shape(4, convs[i / 2].n, c, size, size);
        t.op.y = shape(4, convs[i / 2].n, o, out_side, out_side);
        t.op.p[0] = shape(4, o, c, kernel, kernel);
        t.op.p[1] = shape(1, o, 0, 0, 0);
        fill_trial(&t, true);
        if (bf16)
            round_all(&t);
        struct pl_op op = t.op;
        op.lx[0] = last ? channels_last(&op.x[0]) : (struct pl_layout){0};
        op.lx[0].bf16 = bf16;
        op.ly = cuda->layout(cuda_backend, &op);
        check(&t, &op, true);
        free_trial(&t);
    }
    allowed = allowed_before;
}

/* ---- what moves by itself ------------------------------------------------------------------------------ */

enum { AHEAD = 300000 };

static void send_ahead(float *sent, float *from, int round)
{
    for (int i = 0; i < AHEAD; i++)
        from[i] = (float)(round * 7 + i % 1000);
    assert_int_equal(cuda->ahead(cuda_backend, sent, from, AHEAD / 2 * sizeof *from), PL_OK);
    assert_int_equal(cuda->ahead(cuda_backend, sent + AHEAD / 2, from + AHEAD / 2, AHEAD / 2 * sizeof *from), PL_OK);
    assert_int_equal(cuda->ahead_wait(cuda_backend), PL_OK);
}

/* What is copied ahead, from memory that is pinned and from other, arrives whole; one place is used again and again, by the next
 * while the one before is on its way out of it. */
static void test_ahead(void **state)
{
    enum { N = AHEAD };
    size_t bytes = N * sizeof(float);
    float *host[2], *sent = cuda->alloc(cuda_backend, bytes, "test"), *far = cuda->alloc(cuda_backend, bytes, "test"), *back = malloc(bytes);
    (void)state;
    for (int h = 0; h < 2; h++)
        host[h] = pl_alloc_pages(bytes, "test");
    cuda->pin(cuda_backend, host[0], bytes);
    assert_int_equal(cuda->ahead_taken(cuda_backend), PL_OK);
    send_ahead(sent, host[0], 0);
    for (int round = 0; round < 8; round++) {
        assert_int_equal(cuda->copy(cuda_backend, far, sent, bytes), PL_OK);
        assert_int_equal(cuda->ahead_taken(cuda_backend), PL_OK);
        send_ahead(sent, host[(round + 1) % 2], round + 1);
        assert_int_equal(cuda->download(cuda_backend, back, far, bytes), PL_OK);
        assert_memory_equal(back, host[round % 2], bytes);
    }
    cuda->unpin(cuda_backend, host[0]);
    cuda->free(cuda_backend, sent), cuda->free(cuda_backend, far);
    pl_free(host[0]), pl_free(host[1]), free(back);
}

/* The sum over one rank is what it was, after the work before it and before what is started after it. */
static void test_reducer(void **state)
{
    enum { N = 100000 };
    size_t bytes = N * sizeof(float);
    unsigned char id[PL_REDUCER_ID_BYTES];
    struct pl_reducer *r;
    char how[128];
    float *far = cuda->alloc(cuda_backend, bytes, "test"), *host = malloc(bytes), *back = malloc(bytes);
    (void)state;
    if (cuda->reducer_open(cuda_backend, 20000, &r) < 0) {
        print_message("not tried: %s\n", pl_error_text());
        pl_error_clear();
        free(host), free(back), cuda->free(cuda_backend, far);
        return;
    }
    if (cuda->reducer_id(r, id) < 0 || cuda->reducer_join(r, id, 0, 1) < 0)
        fail_msg("%s", pl_error_text());
    cuda->reducer_describe(r, how, sizeof how);
    print_message("%s\n", how);
    for (int round = 0; round < 5; round++) {
        bool done = false;
        for (int i = 0; i < N; i++)
            host[i] = (float)(i + round);
        assert_int_equal(cuda->upload(cuda_backend, far, host, bytes), PL_OK);
        assert_int_equal(cuda->reduce(r, far + N / 2, N / 2), PL_OK);
        assert_int_equal(cuda->reduce(r, far, N / 2), PL_OK);
        for (double end = pl_now_ms() + 20000; !done && pl_now_ms() < end;)
            assert_int_equal(cuda->reduced(r, &done), PL_OK);
        assert_true(done);
        assert_int_equal(cuda->download(cuda_backend, back, far, bytes), PL_OK);
        assert_memory_equal(back, host, bytes);
    }
    cuda->reducer_close(r);
    free(host), free(back), cuda->free(cuda_backend, far);
}

/* ---- errors ------------------------------------------------------------------------------------------- */

static void test_wrong_label(void **state)
{
    struct trial t;
    (void)state;
    make_trial(&t, PL_OP_SOFTMAX_LOSS, true, 1);
    t.label[t.op.x[0].dim[0] - 1] = 1234;
    struct pl_loss_sums sums = {0};
    struct pl_io io = lend_all(cuda, cuda_backend, &t, &t.op);
    struct pl_plan *p = plan_on(cuda, cuda_backend, &t.op);
    io.sums = &sums;
    assert_int_equal(cuda->forward(p, &io), PL_ERR_DATA);
    if (!strstr(pl_error_text(), "label 1234 is not one of"))
        fail_msg("the message is: %s", pl_error_text());
    pl_error_clear();
    cuda->plan_destroy(p);
    give_all_back(cuda, cuda_backend, &t.op, &io);
    free_trial(&t);
}

/* Its statistics are of one device. */
static void test_over_ranks(void **state)
{
    struct pl_op op;
    struct pl_plan *p = NULL;
    (void)state;
    make_op(&op, PL_OP_BATCHNORM, 1);
    op.sync = true;
    assert_int_equal(cuda->plan(cuda_backend, &op, &p), PL_ERR_USAGE);
    if (!strstr(pl_error_text(), "cuda cannot compute layer trial: it normalises over the samples of one rank"))
        fail_msg("the message is: %s", pl_error_text());
    pl_error_clear();
}

#ifndef PL_ON_GPU
static int ends_by(void (*what)(float *far))
{
    int status;
    float *far = cuda->alloc(cuda_backend, 64, "test");
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer has its own */
        if (!freopen("/dev/null", "w", stderr))
            _exit(1);
        what(far);
        _exit(0);
    }
    waitpid(child, &status, 0);
    cuda->free(cuda_backend, far);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void host_reads(float *far) { *(volatile float *)far += 1; }
static void kernel_reads_host(float *far)
{
    float here[4] = {0};
    pl_cuda_relu_mask(cuda_backend->stream, here, far, view(1, 4, 1, 1, false));
}
static void kernel_overruns(float *far)
{
    pl_cuda_relu_mask(cuda_backend->stream, far, far, view(1, 64 / sizeof(float) + 1, 1, 1, false));
    cuda->finish(cuda_backend); /* what it was started for is done at the latest now */
}

static void test_finish(void **state)
{
    (void)state;
    float *far = cuda->alloc(cuda_backend, 64, "test");
    pl_cuda_relu_mask(cuda_backend->stream, far, far, view(1, 16, 1, 1, false));
    assert_true(pl_emulated_waiting() > 0);
    assert_int_equal(cuda->finish(cuda_backend), PL_OK);
    assert_int_equal(pl_emulated_waiting(), 0);
    cuda->free(cuda_backend, far);
}

static void test_faults(void **state)
{
    (void)state;
    assert_int_equal(ends_by(host_reads), SIGSEGV);
    assert_int_equal(ends_by(kernel_reads_host), SIGABRT);
    assert_int_equal(ends_by(kernel_overruns), SIGSEGV);
}

#endif

#ifndef PL_ON_GPU
int main(void)
{
    cuda = &pl_backend_cuda;
    const char *given = getenv("PL_TEST_SEED");
    seed = given ? strtoull(given, NULL, 10) : 1;
    rng = pl_rng_make(seed, 0, 0, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_canonical), cmocka_unit_test(test_channels_last), cmocka_unit_test(test_large), cmocka_unit_test(test_few),
                                       cmocka_unit_test(test_extremes), cmocka_unit_test(test_alone), cmocka_unit_test(test_without_backward),
                                       cmocka_unit_test(test_flattened), cmocka_unit_test(test_networks), cmocka_unit_test(test_helpers), cmocka_unit_test(test_wrong_label), cmocka_unit_test(test_over_ranks),
                                       cmocka_unit_test(test_ahead), cmocka_unit_test(test_reducer), cmocka_unit_test(test_finish), cmocka_unit_test(test_faults)};
    const struct CMUnitTest in_bf16[] = {cmocka_unit_test(test_bf16), cmocka_unit_test(test_networks)};
    cmocka_set_test_filter(getenv("PL_TEST_ONLY"));
    int failures = cmocka_run_group_tests(tests, open_all, close_all);
    return failures + cmocka_run_group_tests(in_bf16, open_bf16, close_all);
}
#endif
