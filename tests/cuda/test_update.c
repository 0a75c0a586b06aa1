/* The optimizer on slabs in device memory (kernels on the host, emulated.h) against optim/: every rule, over tensors of several
 * chunks, multipliers, running statistics, gaps, ranges and the norm of the gradient. */
#include "backend/cuda/cuda.h"
#include "optim/optim.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { STEPS = 4 };
static struct pl_rng rng;

/* The optimizer of a network with all that a slab can hold, and the same in device memory. */
struct fixture {
    struct pl_job *job;
    struct pl_backend *reference;
    struct pl_graph *g;
    struct pl_optimizer *o;
    struct pl_cuda_device *device;
    pl_cuda_stream stream;
    struct pl_cuda_update far;
    int64_t elems;
    float *sum, *params, *far_sum, *far_params;
    const struct pl_tensor *tensor;
};

static void *far(struct fixture *f, const void *host, size_t bytes)
{
    void *p = pl_cuda_alloc(f->device, bytes, "test");
    assert_int_equal(pl_cuda_upload(f->device, p, host, bytes), PL_OK);
    return p;
}

static void make_far(struct fixture *f)
{
    struct pl_cuda_tensor table[16];
    int tensors = pl_graph_tensors(f->g, &f->tensor);
    size_t bytes = (size_t)f->elems * sizeof(float);
    assert_in_range(tensors, 8, 16);
    for (int t = 0; t < tensors; t++) {
        const struct pl_param *p = f->tensor[t].param;
        table[t] = (struct pl_cuda_tensor){p->offset, pl_shape_elems(&p->shape), p->lr_mult, p->decay_mult, p->statistic ? p->momentum : -1};
    }
    assert_int_equal(pl_cuda_device_open(&(struct pl_device_options){.threads = 1}, &f->device, &f->stream), PL_OK);
    f->far_sum = far(f, f->sum, bytes);
    f->far_params = far(f, f->params, bytes);
    f->far = (struct pl_cuda_update){
        .rule = (enum pl_cuda_rule)f->job->optimizer.kind, .weight_decay = f->job->optimizer.weight_decay,
        .momentum = f->job->optimizer.momentum, .beta1 = f->job->optimizer.beta1, .beta2 = f->job->optimizer.beta2,
        .epsilon = f->job->optimizer.epsilon, .rho = f->job->optimizer.rho, .trust = f->job->optimizer.trust,
        .tensors = {far(f, table, (size_t)tensors * sizeof *table), tensors},
        .sum = f->far_sum, .from = f->far_params, .to = f->far_params,
        .scratch = pl_cuda_alloc(f->device, pl_cuda_norm_scratch(tensors), "test")};
    for (int i = 0; i < pl_optimizer_slots(f->o); i++)
        f->far.slot[i] = pl_cuda_alloc(f->device, bytes, "test");
}

static void open_fixture(struct fixture *f, const char *kind)
{
    char *text = pl_strdupf(
        "model: {name: m, input: {data: [3, 6, 6], label: int}, layers: ["
        "{name: c, kind: conv, filters: 5, kernel: 3}, {name: bn, kind: batchnorm, momentum: 0.75},"
        "{name: d, kind: dense, units: 70, lr_mult: 0.5, decay_mult: 2, bias_lr_mult: 3, bias_decay_mult: 0},"
        "{name: e, kind: dense, units: 3}, {name: loss, kind: softmax_loss}]}\n"
        "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 4}\n"
        "optimizer: {kind: %s, lr: 0.1, momentum: 0.9, weight_decay: 0.01, rho: 0.9, epsilon: 1e-4, beta1: 0.8, beta2: 0.99, trust: 0.05}\n", kind);
    const struct pl_backend_table *table = pl_backend_find("reference");
    *f = (struct fixture){0};
    if (pl_job_parse(text, "t.yaml", &f->job) < 0)
        fail_msg("%s: %s", kind, pl_error_text());
    pl_free(text);
    assert_int_equal(table->open(&(struct pl_device_options){.threads = 1}, &f->reference), PL_OK);
    assert_int_equal(pl_graph_create(f->job, table, f->reference, 4, true, NULL, &f->g), PL_OK);
    assert_int_equal(pl_optimizer_create(f->job, f->g, &f->o), PL_OK);
    f->elems = pl_graph_elems(f->g);
    f->params = pl_graph_params(f->g);
    f->sum = pl_alloc((size_t)f->elems * sizeof(float), "test");
    pl_graph_init(f->g, 1);
    make_far(f);
}

static void close_fixture(struct fixture *f)
{
    for (int i = 0; i < 2; i++)
        pl_cuda_free(f->device, f->far.slot[i]);
    pl_cuda_free(f->device, (void *)(uintptr_t)f->far.tensors.at);
    pl_cuda_free(f->device, f->far.scratch);
    pl_cuda_free(f->device, f->far_sum);
    pl_cuda_free(f->device, f->far_params);
    pl_cuda_device_close(f->device);
    pl_optimizer_destroy(f->o);
    pl_graph_destroy(f->g);
    pl_backend_find("reference")->close(f->reference);
    pl_job_destroy(f->job);
    pl_free(f->sum);
}

/* A gradient for all tensors, the same on both sides; gaps stay 0. */
static void set_gradient(struct fixture *f)
{
    for (int t = 0; t < f->far.tensors.count; t++)
        pl_rng_normals(&rng, f->sum + f->tensor[t].param->offset, pl_shape_elems(&f->tensor[t].param->shape));
    assert_int_equal(pl_cuda_upload(f->device, f->far_sum, f->sum, (size_t)f->elems * sizeof(float)), PL_OK);
}

static void compare(struct fixture *f, const char *kind, const char *what, const float *wanted, const float *far_found)
{
    float *found = pl_alloc((size_t)f->elems * sizeof(float), "test");
    assert_int_equal(pl_cuda_download(f->device, found, far_found, (size_t)f->elems * sizeof(float)), PL_OK);
    for (int64_t i = 0; i < f->elems; i++)
        if (!(fabsf(found[i] - wanted[i]) <= 1e-6f * (1 + fabsf(wanted[i]))))
            fail_msg("%s: element %lld of %s is %.9g, wanted %.9g", kind, (long long)i, what, found[i], wanted[i]);
    pl_free(found);
}

static void compare_all(struct fixture *f, const char *kind)
{
    compare(f, kind, "the parameters", f->params, f->far_params);
    for (int i = 0; i < pl_optimizer_slots(f->o); i++)
        compare(f, kind, pl_optimizer_slot_name(f->o, i), pl_optimizer_slot(f->o, i), f->far.slot[i]);
}

static const char *const kinds[] = {"sgd", "momentum", "nesterov", "adagrad", "adadelta", "rmsprop", "adam", "adamw", "lars"};

static void test_rules(void **state)
{
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct fixture f;
        open_fixture(&f, kinds[k]);
        assert_true(f.elems > 2 * 2048); /* chunks of the kernel */
        for (int64_t step = 0; step < STEPS; step++) {
            struct pl_update u = {.lr = 0.1 / (1 + (double)step), .step = step, .samples = 10, .clip = step == 2 ? 0.25 : 1};
            set_gradient(&f);
            f.far.lr = u.lr, f.far.step = u.step, f.far.samples = u.samples, f.far.clip = u.clip;
            pl_optimizer_update(f.o, &u, f.sum, f.params, f.params);
            pl_cuda_update_slabs(f.stream, &f.far, 0, f.elems);
        }
        compare_all(&f, kinds[k]);
        close_fixture(&f);
    }
}

/* In pieces that cut tensors, and into another slab */
static void test_ranges(void **state)
{
    struct fixture f;
    struct pl_update u = {.lr = 0.1, .samples = 7, .clip = 1};
    (void)state;
    open_fixture(&f, "adam");
    set_gradient(&f);
    f.far.lr = u.lr, f.far.samples = u.samples, f.far.clip = u.clip;
    f.far.to = pl_cuda_alloc(f.device, (size_t)f.elems * sizeof(float), "test");
    float *before = pl_alloc((size_t)f.elems * sizeof(float), "test");
    memcpy(before, f.params, (size_t)f.elems * sizeof(float));
    for (int64_t a = 0, b; a < f.elems; a = b) {
        b = a + 777 < f.elems ? a + 777 : f.elems;
        pl_cuda_update_slabs(f.stream, &f.far, a, b);
    }
    pl_optimizer_update(f.o, &u, f.sum, f.params, f.params);
    compare(&f, "adam", "the slab that is written", f.params, f.far.to);
    compare(&f, "adam", "the slab that is read", before, f.far_params);
    pl_cuda_free(f.device, f.far.to);
    pl_free(before);
    close_fixture(&f);
}

static void test_square_sum(void **state)
{
    struct fixture f;
    (void)state;
    open_fixture(&f, "sgd");
    set_gradient(&f);
    double found, *far_found = pl_cuda_alloc(f.device, sizeof found, "test");
    const int64_t from[] = {0, f.tensor[1].param->offset, 1, 0}, to[] = {f.elems, f.elems, f.elems, f.elems - 100};
    for (int i = 0; i < 4; i++) {
        double wanted = pl_optimizer_square_sum(f.o, f.sum, from[i], to[i]);
        pl_cuda_square_sum(f.stream, f.far.tensors, f.far_sum, from[i], to[i], f.far.scratch, far_found);
        assert_int_equal(pl_cuda_download(f.device, &found, far_found, sizeof found), PL_OK);
        if (!(fabs(found - wanted) <= 1e-12 * wanted) || wanted == 0)
            fail_msg("range %d: the sum of squares is %.15g, wanted %.15g", i, found, wanted);
    }
    pl_cuda_free(f.device, far_found);
    close_fixture(&f);
}

int main(void)
{
    const char *given = getenv("PL_TEST_SEED");
    rng = pl_rng_make(given ? strtoull(given, NULL, 10) : 1, 0, 0, 0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rules), cmocka_unit_test(test_ranges), cmocka_unit_test(test_square_sum)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
