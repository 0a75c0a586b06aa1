/* Data sets and the loader, on HDF5 files made here: what is refused and with which words, every type
 * and layout against values computed in the test, shares, restarts, the cache, augmentation. Element e
 * of sample i is value(i, e), which fits every type. */
#include "data/dataset.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char folder[64];

static int value(int64_t i, int64_t e) { return (int)((i * 7 + e * 3) % 101); }

static void put(void *to, enum pl_dtype t, int64_t at, double v)
{
    switch (t) {
    case PL_F32: ((float *)to)[at] = (float)v; break;
    case PL_F64: ((double *)to)[at] = v; break;
    case PL_U8: ((uint8_t *)to)[at] = (uint8_t)v; break;
    case PL_I8: ((int8_t *)to)[at] = (int8_t)v; break;
    case PL_I16: ((int16_t *)to)[at] = (int16_t)v; break;
    case PL_U16: ((uint16_t *)to)[at] = (uint16_t)v; break;
    case PL_I32: ((int32_t *)to)[at] = (int32_t)v; break;
    case PL_U32: ((uint32_t *)to)[at] = (uint32_t)v; break;
    case PL_I64: ((int64_t *)to)[at] = (int64_t)v; break;
    case PL_U64: ((uint64_t *)to)[at] = (uint64_t)v; break;
    case PL_OTHER: fail();
    }
}

/* What a file is to hold; zeros are the defaults. */
struct made {
    int64_t n, labels;       /* labels: as many as n unless given */
    int dims;
    int64_t dim[3];          /* of a sample; [2, 3, 4] unless given */
    enum pl_dtype type, label_type;
    int64_t label_floats, chunk;
    int deflate;
    int64_t bad_sample;      /* with bad_at: its first element or label is `bad` */
    enum { NOWHERE, IN_DATA, IN_LABEL } bad_at;
    double bad;
    bool pixels;             /* element e is 1 + e in every sample, labels are 0 */
};

static void write_dataset(struct pl_h5 *f, const struct made *m, const char *name, enum pl_dtype t,
                          int64_t n, int dims, const int64_t *dim, bool label)
{
    struct pl_h5ds *d;
    int64_t full[4] = {n}, elems = 1;
    bool bad = m->bad_at == (label ? IN_LABEL : IN_DATA), classes = label && !m->label_floats;
    for (int k = 0; k < dims; k++)
        elems *= full[k + 1] = dim[k];
    void *rows = calloc((size_t)(n * elems) + 1, 8);
    for (int64_t i = 0; i < n; i++)
        for (int64_t e = 0; e < elems; e++) {
            double v = classes ? (double)(i % 10) : value(i, e);
            v = m->pixels ? (label ? 0 : (double)(1 + e)) : v;
            put(rows, t, i * elems + e, bad && i == m->bad_sample && e == 0 ? m->bad : v);
        }
    assert_int_equal(pl_h5_make_dataset(f, name, t, dims + 1, full, m->chunk, m->deflate, &d), PL_OK);
    assert_int_equal(pl_h5_write_rows(d, 0, n, t, rows), PL_OK);
    pl_h5_dataset_close(d);
    free(rows);
}

/* A set of its own file, opened by open_set; the struct lives as long as the test. */
static struct pl_job_set make(struct made m)
{
    static int count;
    struct pl_h5 *f;
    char *path = pl_strdupf("%s/%d.h5", folder, count++);
    if (m.dims == 0)
        m.dims = 3, m.dim[0] = 2, m.dim[1] = 3, m.dim[2] = 4;
    assert_int_equal(pl_h5_create(path, "test", PL_ERR_DATA, &f), PL_OK);
    write_dataset(f, &m, "data", m.type, m.n, m.dims, m.dim, false);
    write_dataset(f, &m, "label", m.label_type, m.labels ? m.labels : m.n, m.label_floats > 0,
                  &m.label_floats, true);
    assert_int_equal(pl_h5_close(f), PL_OK);
    return (struct pl_job_set){.file = path, .data = "data", .label = "label", .scale = 1};
}

static void done(struct pl_job_set *set)
{
    unlink(set->file);
    pl_free(set->file);
}

static const struct pl_job_input images = {.dims = 3, .dim = {2, 3, 4}};

/* A set on its way into batches. */
struct run {
    struct pl_job_set set;
    struct pl_dataset *d;
    struct pl_loader *l;
};

static void open_run(struct run *r, struct pl_job_set set, const struct pl_job_input *want)
{
    r->set = set;
    pl_error_clear();
    if (pl_dataset_open(&r->set, want, &r->d) != PL_OK)
        fail_msg("%s", pl_error_text());
}

static void load(struct run *r, struct pl_loader_options o)
{
    o.ranks = o.ranks ? o.ranks : 1;
    o.depth = o.depth ? o.depth : 2;
    assert_int_equal(pl_loader_create(r->d, &o, &r->l), PL_OK);
}

static void close_run(struct run *r)
{
    pl_loader_destroy(r->l);
    pl_dataset_close(r->d);
}

/* Of n samples in uint8, from the start of epoch 0 on. */
static void simple_run(struct run *r, int64_t n, struct pl_loader_options o)
{
    open_run(r, make((struct made){.n = n, .type = PL_U8, .label_type = PL_U8}), &images);
    load(r, o);
    assert_int_equal(pl_loader_start(r->l, 0, 0, false), PL_OK);
}

static struct pl_batch *next(struct pl_loader *l)
{
    struct pl_batch *b = NULL;
    if (pl_loader_next(l, &b) != PL_OK)
        fail_msg("%s", pl_error_text());
    return b;
}

static void expect(pl_status got, const char *words)
{
    const char *text = pl_error_text();
    assert_int_equal(got, PL_ERR_DATA);
    if (!text || !strstr(text, words))
        fail_msg("\"%s\" does not have \"%s\"", text ? text : "(none)", words);
    pl_error_clear();
}

static void refuse(struct pl_job_set set, const struct pl_job_input *want, const char *words)
{
    struct pl_dataset *d = NULL;
    pl_error_clear();
    expect(pl_dataset_open(&set, want, &d), words);
    assert_null(d);
}

/* ---- what is refused ---- */

static void bad_files(void **state)
{
    (void)state;
    struct pl_job_set set = make((struct made){.n = 4000, .type = PL_F32, .label_type = PL_U8});
    struct pl_job_set absent = set, other = set;
    absent.file = "no/such.h5";
    refuse(absent, &images, "data: no/such.h5: No such file or directory\ncheck the set's key `file`");
    other.data = "/images";
    refuse(other, &images, "/images: no such dataset, the file has /data, /label\nname the right one");
    other = set, other.label = "y";
    refuse(other, &images, ".h5:/y: no such dataset");
    assert_int_equal(truncate(set.file, 200000), 0);
    refuse(set, &images, "truncated file");
    assert_int_equal(truncate(set.file, 0), 0);
    FILE *f = fopen(set.file, "w");
    fputs("sample,label\n", f);
    fclose(f);
    refuse(set, &images, "not an HDF5 file");
    done(&set);
}

static void bad_shapes(void **state)
{
    (void)state;
    struct pl_job_set set = make((struct made){.n = 20, .type = PL_U8, .label_type = PL_I64});
    struct pl_job_input want = {.dims = 3, .dim = {1, 28, 28}};
    refuse(set, &want, ".h5:/data: wanted [N, 1, 28, 28], found [20, 2, 3, 4]\nchange the model's");
    want = images, want.label_floats = 5;
    refuse(set, &want, ".h5:/label: wanted [N, 5], found [20]\nchange the model's input.label");
    done(&set);
    set = make((struct made){.n = 20, .type = PL_U8, .label_type = PL_F32});
    refuse(set, &images, ".h5:/label: wanted integers (classes), found float32");
    done(&set);
    set = make((struct made){.n = 20, .labels = 19, .type = PL_U8, .label_type = PL_U8});
    refuse(set, &images, ".h5: /data has 20 samples, /label has 19\nevery sample needs one label");
    done(&set);
}

static void bad_settings(void **state)
{
    (void)state;
    struct pl_job_set set = make((struct made){.n = 5, .type = PL_U8, .label_type = PL_U8}), s = set;
    struct pl_job_input want = {.dims = 3, .dim = {2, 4, 4}};
    s.mean = (struct pl_doubles){3, {1, 2, 3}};
    refuse(s, &images, "3 values of mean for 2 channels");
    s = set, s.std = (struct pl_doubles){2, {1, 0}};
    refuse(s, &images, "a std of 0 would divide by zero");
    s = set, s.pad = 1;
    refuse(s, &images, "augment.pad without augment.crop");
    s = set, s.crop = 4;
    refuse(s, &want, "no crop of 4 fits into 3x4 with 0 of padding");
    s.crop = 2;
    refuse(s, &want, "augment.crop is 2, the model's input 4x4");
    done(&set);
}

/* Reads one epoch until something is wrong. */
static void refuse_values(struct made m, int64_t classes, const char *words)
{
    struct run r;
    struct pl_job_input want = images;
    struct pl_batch *b;
    pl_status s;
    want.label_floats = m.label_floats;
    open_run(&r, make(m), &want);
    load(&r, (struct pl_loader_options){.global_batch = 8, .shuffle = true, .classes = classes});
    assert_int_equal(pl_loader_start(r.l, 0, 0, true), PL_OK);
    while ((s = pl_loader_next(r.l, &b)) == PL_OK)
        pl_loader_release(r.l, b);
    expect(s, words);
    assert_int_equal(pl_loader_next(r.l, &b), PL_ERR_DATA);
    close_run(&r);
    done(&r.set);
}

static void bad_values(void **state)
{
    (void)state;
    struct made m = {.n = 50, .type = PL_U8, .label_type = PL_U8, .chunk = 10, .deflate = 1};
    m.bad_at = IN_LABEL, m.bad_sample = 17, m.bad = 12;
    refuse_values(m, 10, ".h5:/label: sample 17 has label 12, wanted 0..9\n");
    m.label_type = PL_I64, m.bad = 4294967296.0 * 3;
    refuse_values(m, 10, "sample 17 has label 12884901888, wanted 0..9\n");
    m.bad = -1;
    refuse_values(m, 0, "sample 17 has label -1, wanted 0..2147483647\n");
    m.label_type = PL_F32, m.label_floats = 3, m.bad = (double)INFINITY;
    refuse_values(m, 0, ".h5:/label: sample 17 has an infinity at element 0\n");
    m = (struct made){.n = 50, .type = PL_F32, .label_type = PL_U8, .bad_at = IN_DATA};
    m.bad_sample = 33, m.bad = (double)NAN;
    refuse_values(m, 10, ".h5:/data: sample 33 has NaN at element 0\nfind and replace");
    m.type = PL_F64, m.bad = 1e300;
    refuse_values(m, 10, "sample 33 has a value beyond float32 at element 0\n");
}

/* ---- what comes out ---- */

static void check_row(const struct pl_batch *b, int64_t row, const struct pl_job_set *set)
{
    const float *x = b->data + row * 24;
    for (int64_t e = 0; e < 24; e++) {
        double want = (value(b->index[row], e) * set->scale - set->mean.v[e / 12]) / set->std.v[e / 12];
        if (fabs((double)x[e] - want) > 1e-5)
            fail_msg("sample %lld element %lld is %g, wanted %g", (long long)b->index[row], (long long)e,
                     (double)x[e], want);
    }
    assert_int_equal(((int32_t *)b->label)[row], b->index[row] % 10);
}

/* Every sample once in `epochs` epochs, from start on; rows beyond the share are empty. */
static void check_epochs(struct pl_loader *l, const struct pl_job_set *set, int64_t n, int epochs)
{
    for (int64_t epoch = 0; epoch < epochs; epoch++) {
        int *seen = calloc((size_t)n, sizeof *seen);
        for (int64_t step = 0; step < pl_loader_steps(l); step++) {
            struct pl_batch *b = next(l);
            assert_int_equal(b->epoch, epoch);
            assert_int_equal(b->step, step);
            for (int64_t i = 0; i < b->rows; i++) {
                check_row(b, i, set);
                seen[b->index[i]]++;
            }
            for (int64_t i = b->rows; i < b->capacity; i++) {
                assert_int_equal(b->index[i], -1);
                assert_int_equal(((int32_t *)b->label)[i], 0);
                for (int64_t e = 0; e < 24; e++)
                    assert_true(b->data[i * 24 + e] == 0);
            }
            pl_loader_release(l, b);
        }
        for (int64_t i = 0; i < n; i++)
            assert_int_equal(seen[i], 1);
        free(seen);
    }
}

static void every_type_and_layout(void **state)
{
    (void)state;
    static const struct { int64_t chunk; int deflate; int64_t limit; } layout[] = {
        {0, 0, 0}, {0, 0, 77}, {7, 0, 0}, {7, 4, 0}, {64, 4, 100}, {100, 1, 0}};
    for (int t = PL_F32; t < PL_OTHER; t++)
        for (size_t k = 0; k < sizeof layout / sizeof *layout; k++) {
            struct made m = {.n = 150, .type = (enum pl_dtype)t, .chunk = layout[k].chunk,
                             .deflate = layout[k].deflate,
                             .label_type = t < PL_U8 ? PL_I64 : (enum pl_dtype)t};
            struct pl_job_set set = make(m);
            set.scale = 0.25;
            set.mean = (struct pl_doubles){2, {3, 5}};
            set.std = (struct pl_doubles){2, {2, 4}};
            set.limit = layout[k].limit;
            struct run r;
            open_run(&r, set, &images);
            load(&r, (struct pl_loader_options){.global_batch = 32, .shuffle = k % 2, .classes = 10});
            int64_t n = layout[k].limit ? layout[k].limit : 150;
            assert_int_equal(pl_dataset_samples(r.d), n);
            assert_int_equal(pl_loader_start(r.l, 0, 0, false), PL_OK);
            check_epochs(r.l, &set, n, 2);
            close_run(&r);
            done(&set);
        }
}

static void labels_of_floats(void **state)
{
    (void)state;
    struct made m = {.n = 20, .type = PL_U8, .label_type = PL_F64, .label_floats = 3, .chunk = 4};
    struct pl_job_input want = images;
    struct run r;
    want.label_floats = 3;
    open_run(&r, make(m), &want);
    load(&r, (struct pl_loader_options){.global_batch = 20, .shuffle = true});
    assert_int_equal(pl_loader_start(r.l, 0, 0, true), PL_OK);
    struct pl_batch *b = next(r.l);
    for (int64_t i = 0; i < 60; i++)
        assert_true(((float *)b->label)[i] == (float)value(b->index[i / 3], i % 3));
    close_run(&r);
    done(&r.set);
}

/* The ranks' batches of epoch 4, side by side, are its order, and then it ends. */
static void check_shares(struct pl_job_set set, int64_t n, int64_t global, int ranks)
{
    struct run run[8];
    int64_t at = 0, order[100];
    struct pl_batch *b;
    for (int r = 0; r < ranks; r++) {
        open_run(&run[r], set, &images);
        load(&run[r], (struct pl_loader_options){.global_batch = global, .rank = r, .ranks = ranks,
                                                 .seed = 3, .shuffle = true, .classes = 10});
        assert_int_equal(pl_loader_start(run[r].l, 4, 0, true), PL_OK);
    }
    struct pl_sampler *s = pl_sampler_create(n, run[0].d->block_rows, run[0].d->window_rows, true, 3);
    assert_int_equal(pl_sampler_order(s, 4, 0, n, order), PL_OK);
    for (int64_t step = 0; step < pl_loader_steps(run[0].l); step++)
        for (int r = 0; r < ranks; r++) {
            b = next(run[r].l);
            assert_int_equal(b->capacity, (global + ranks - 1) / ranks);
            for (int64_t i = 0; i < b->rows; i++)
                assert_int_equal(b->index[i], order[at++]);
            pl_loader_release(run[r].l, b);
        }
    assert_int_equal(at, n);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pl_loader_next(run[r].l, &b), PL_END);
        assert_null(b);
        close_run(&run[r]);
    }
    pl_sampler_destroy(s);
}

static void ranks_share_an_epoch(void **state)
{
    (void)state;
    static const struct { int64_t n, global; } cases[] = {{5, 16}, {100, 16}, {96, 10}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct made m = {.n = cases[k].n, .type = PL_U8, .label_type = PL_U8, .chunk = 4};
        struct pl_job_set set = make(m);
        for (int ranks = 1; ranks <= 8; ranks++)
            check_shares(set, cases[k].n, cases[k].global, ranks);
        done(&set);
    }
}

/* ---- start, stop, cache, memory ---- */

static void restarts(void **state)
{
    (void)state;
    struct made m = {.n = 90, .type = PL_U8, .label_type = PL_U8, .chunk = 8, .deflate = 1};
    struct run run;
    struct pl_batch *b, *kept = NULL;
    struct pl_rng r = pl_rng_make(1, 2, 3, 4);
    open_run(&run, make(m), &images);
    load(&run, (struct pl_loader_options){.global_batch = 8, .shuffle = true, .classes = 10, .depth = 3});
    struct pl_sampler *order = pl_sampler_create(90, run.d->block_rows, run.d->window_rows, true, 0);
    assert_int_equal(pl_loader_next(run.l, &b), PL_ERR_USAGE);
    pl_error_clear();
    for (int i = 0; i < 300; i++) {
        int64_t epoch = (int64_t)pl_rng_below(&r, 3), step = (int64_t)pl_rng_below(&r, 12), index[8];
        assert_int_equal(pl_loader_start(run.l, epoch, step, i % 3 == 0), PL_OK);
        if (i % 2) {
            pl_loader_release(run.l, kept); /* lent before the restart */
            kept = NULL;
        }
        for (int64_t k = (int64_t)pl_rng_below(&r, 5); k > 0 && step < 12; k--, step++) {
            b = next(run.l);
            assert_ptr_not_equal(b, kept);
            assert_int_equal(b->epoch, epoch);
            assert_int_equal(b->step, step);
            assert_int_equal(pl_sampler_order(order, epoch, step * 8, b->rows, index), PL_OK);
            assert_memory_equal(b->index, index, (size_t)b->rows * sizeof *index);
            if (kept)
                pl_loader_release(run.l, b);
            else
                kept = b;
        }
    }
    pl_sampler_destroy(order);
    close_run(&run); /* while it reads, a batch still lent */
    done(&run.set);
}

static void all_batches_lent(void **state)
{
    (void)state;
    struct run r;
    struct pl_batch *b[3];
    simple_run(&r, 40, (struct pl_loader_options){.global_batch = 8, .depth = 1});
    b[0] = next(r.l), b[1] = next(r.l);
    assert_int_equal(pl_loader_next(r.l, &b[2]), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "all 2 batches are lent"));
    pl_error_clear();
    pl_loader_release(r.l, b[0]);
    pl_loader_release(r.l, b[0]); /* twice: no harm */
    b[2] = next(r.l);
    assert_int_equal(b[2]->step, 2);
    assert_int_equal(b[1]->index[0], 8);
    close_run(&r);
    done(&r.set);
}

/* A window of 4 blocks out of 25, so that blocks give way: memory and none must not differ. */
static void cache_modes_agree(void **state)
{
    (void)state;
    struct made m = {.n = 1000, .type = PL_U8, .label_type = PL_U8, .chunk = 40, .deflate = 1};
    struct pl_job_set set = make(m);
    set.mean = (struct pl_doubles){2, {0, 0}}, set.std = (struct pl_doubles){2, {1, 1}};
    struct run r[3];
    for (set.cache = 0; set.cache < 3; set.cache++) {
        struct run *one = &r[set.cache];
        open_run(one, set, &images);
        assert_int_equal(one->d->all_in_memory, set.cache != 2);
        assert_int_equal(one->d->window_rows, 1000);
        one->d->window_rows = 160;
        load(one, (struct pl_loader_options){.global_batch = 48, .shuffle = true, .classes = 10});
        assert_int_equal(pl_loader_start(one->l, 0, 0, false), PL_OK);
    }
    for (int step = 0; step < 50; step++) {
        struct pl_batch *b[3];
        for (int k = 0; k < 3; k++) {
            b[k] = next(r[k].l);
            assert_memory_equal(b[k]->index, b[0]->index, 48 * sizeof(int64_t));
            assert_memory_equal(b[k]->data, b[0]->data, 48 * 24 * sizeof(float));
            assert_memory_equal(b[k]->label, b[0]->label, 48 * sizeof(int32_t));
        }
        for (int64_t i = 0; i < b[0]->rows; i++)
            check_row(b[2], i, &set);
        for (int k = 0; k < 3; k++)
            pl_loader_release(r[k].l, b[k]);
    }
    for (int k = 0; k < 3; k++)
        close_run(&r[k]);
    done(&set);
}

static void steps_allocate_nothing(void **state)
{
    (void)state;
    struct run r;
    struct made m = {.n = 5000, .type = PL_U8, .label_type = PL_U8};
    open_run(&r, make(m), &images);
    r.d->all_in_memory = false, r.d->window_rows = 2048; /* so that blocks keep being read */
    load(&r, (struct pl_loader_options){.global_batch = 64, .shuffle = true});
    assert_int_equal(pl_loader_start(r.l, 0, 0, false), PL_OK);
    pl_loader_release(r.l, next(r.l));
    uint64_t before = pl_alloc_count();
    for (int i = 0; i < 200; i++)
        pl_loader_release(r.l, next(r.l));
    assert_int_equal(pl_alloc_count(), before);
    close_run(&r);
    done(&r.set);
}

static void faults_come_out_of_next(void **state)
{
    (void)state;
    struct run r;
    struct pl_batch *b;
    simple_run(&r, 40, (struct pl_loader_options){.global_batch = 8});
    assert_int_equal(pl_fault_configure("loader.read@step=7:fail", 0), PL_OK);
    assert_int_equal(pl_loader_start(r.l, 1, 0, false), PL_OK);
    pl_loader_release(r.l, next(r.l));
    pl_loader_release(r.l, next(r.l));
    expect(pl_loader_next(r.l, &b), "step 2 of epoch 1: debug.fault at loader.read");
    assert_int_equal(pl_fault_configure("", 0), PL_OK);
    assert_int_equal(pl_loader_start(r.l, 1, 2, false), PL_OK);
    assert_int_equal(next(r.l)->step, 2);
    close_run(&r);
    done(&r.set);
}

/* ---- augmentation: 1x8x8 images whose pixel (y, x) is 1 + 8 y + x ---- */

#define IMAGES 2000
struct place { int top, left, flip; };
static struct place places[2][IMAGES]; /* [epoch][sample] */

static struct pl_job_set make_images(int64_t n)
{
    return make((struct made){.n = n, .dims = 3, .dim = {1, 8, 8}, .type = PL_U8,
                              .label_type = PL_U8, .pixels = true});
}

/* Whether x is the crop of `side` at p, zeros outside the image. */
static bool is_crop(const float *x, int side, struct place p)
{
    for (int i = 0; i < side * side; i++) {
        int r = p.top + i / side, c = p.left + (p.flip ? side - 1 - i % side : i % side);
        float want = r < 0 || r > 7 || c < 0 || c > 7 ? 0 : (float)(1 + 8 * r + c);
        if (x[i] != want)
            return false;
    }
    return true;
}

/* The one place that x was taken from. */
static struct place find_crop(const float *x, int side, int pad)
{
    int room = 9 + 2 * pad - side, found = 0;
    struct place p = {0};
    for (int k = 0; k < room * room * 2; k++) {
        struct place q = {k / 2 / room - pad, k / 2 % room - pad, k % 2};
        if (is_crop(x, side, q)) {
            p = q;
            found++;
        }
    }
    assert_int_equal(found, 1);
    return p;
}

/* Two epochs of one rank's samples into places, or held against what stands there. */
static void find_places(struct pl_job_set set, int rank, int ranks, bool compare)
{
    struct run r;
    int side = (int)set.crop;
    struct pl_job_input want = {.dims = 3, .dim = {1, side, side}};
    open_run(&r, set, &want);
    load(&r, (struct pl_loader_options){.global_batch = 64, .rank = rank, .ranks = ranks,
                                        .augment = true, .shuffle = true, .classes = 1});
    assert_int_equal(pl_loader_start(r.l, 0, 0, false), PL_OK);
    for (int64_t step = 0; step < 2 * pl_loader_steps(r.l); step++) {
        struct pl_batch *b = next(r.l);
        for (int64_t i = 0; i < b->rows; i++) {
            struct place p = find_crop(b->data + i * side * side, side, (int)set.pad);
            struct place *q = &places[b->epoch][b->index[i]];
            if (compare)
                assert_memory_equal(&p, q, sizeof p);
            *q = p;
        }
        pl_loader_release(r.l, b);
    }
    close_run(&r);
}

/* Offsets even, half of them mirrored, another in the next epoch, the same on 1 rank as on 2. */
static void check_augment(struct pl_job_set set, int crop, int pad, bool flip)
{
    int room = 9 + 2 * pad - crop, top[16] = {0}, left[16] = {0}, flips = 0, changed = 0;
    set.crop = crop, set.pad = pad, set.flip = flip;
    find_places(set, 0, 2, false);
    find_places(set, 1, 2, false);
    find_places(set, 0, 1, true);
    for (int i = 0; i < IMAGES; i++) {
        struct place p = places[0][i];
        top[p.top + pad]++, left[p.left + pad]++, flips += p.flip;
        changed += memcmp(&p, &places[1][i], sizeof p) != 0;
    }
    for (int i = 0; i < room; i++) { /* a deviation is below 22 */
        assert_in_range(top[i], IMAGES / room - 110, IMAGES / room + 110);
        assert_in_range(left[i], IMAGES / room - 110, IMAGES / room + 110);
    }
    assert_in_range(flips, flip ? IMAGES / 2 - 110 : 0, flip ? IMAGES / 2 + 110 : 0);
    assert_in_range(changed, IMAGES * 3 / 4, IMAGES);
}

static void crops_and_flips(void **state)
{
    (void)state;
    struct pl_job_set set = make_images(IMAGES);
    check_augment(set, 8, 2, true);
    check_augment(set, 4, 0, true);
    check_augment(set, 6, 1, false);
    done(&set);
}

static void centre_without_augment(void **state)
{
    (void)state;
    struct pl_job_set set = make_images(9);
    for (int side = 4; side <= 8; side += 4) {
        struct pl_job_input want = {.dims = 3, .dim = {1, side, side}};
        struct run r;
        set.crop = side, set.pad = 3, set.flip = true;
        open_run(&r, set, &want);
        load(&r, (struct pl_loader_options){.global_batch = 9, .classes = 1});
        assert_int_equal(pl_loader_start(r.l, 0, 0, true), PL_OK);
        struct pl_batch *b = next(r.l);
        for (int i = 0; i < 9; i++)
            assert_true(is_crop(b->data + i * side * side, side,
                                (struct place){(8 - side) / 2, (8 - side) / 2, false}));
        close_run(&r);
    }
    done(&set);
}

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/paceline-data-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_files),
        cmocka_unit_test(bad_shapes),
        cmocka_unit_test(bad_settings),
        cmocka_unit_test(bad_values),
        cmocka_unit_test(every_type_and_layout),
        cmocka_unit_test(labels_of_floats),
        cmocka_unit_test(ranks_share_an_epoch),
        cmocka_unit_test(restarts),
        cmocka_unit_test(all_batches_lent),
        cmocka_unit_test(cache_modes_agree),
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(faults_come_out_of_next),
        cmocka_unit_test(crops_and_flips),
        cmocka_unit_test(centre_without_augment),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
