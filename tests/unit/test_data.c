/* Data sets and the loader, on HDF5 files made here: what is refused and with which words, every
 * type and layout against values computed in the test, shares, restarts, the cache. Element e of
 * sample i is value(i, e), which fits every type. */
#include "data/dataset.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#ifdef PL_HAVE_JPEG
#include <hdf5.h>
#include <turbojpeg.h>
#endif

#define TEST(name) static void name(void **state __attribute__((unused)))

#define MADE(...) ((struct made){__VA_ARGS__})
#define LOAD(...) ((struct pl_loader_options){__VA_ARGS__})

static char folder[64];

static int below; /* how far values reach below 0, for signed types */
static int value(int64_t i, int64_t e) { return (int)((i * 7 + e * 3) % 101) - below; }

/* What a file is to hold, besides samples of [2, 3, 4]; zeros are the defaults. */
struct made {
    int64_t n, labels; /* labels: as many as n unless given */
    enum pl_dtype type, label_type;
    int64_t label_floats, chunk;
    int deflate;
    int64_t start; /* element e of sample i is value(start + i, e) */
    int64_t bad_sample; /* with bad_at: its first element or label is `bad` */
    enum { NOWHERE, IN_DATA, IN_LABEL } bad_at;
    double bad;
};

static void write_dataset(struct pl_h5 *f, const struct made *m, const char *name, enum pl_dtype t,
                          int64_t n, int dims, const int64_t *dim, bool label)
{
    struct pl_h5ds *d;
    int64_t full[4] = {n}, elems = 1;
    bool bad = m->bad_at == (label ? IN_LABEL : IN_DATA), classes = label && !m->label_floats;
    for (int k = 0; k < dims; k++)
        elems *= full[k + 1] = dim[k];
    double *rows = calloc((size_t)(n * elems), sizeof *rows);
    for (int64_t at = 0; at < n * elems; at++) {
        rows[at] = classes ? (double)((m->start + at) % 10) : value(m->start + at / elems, at % elems);
        if (bad && at == m->bad_sample * elems)
            rows[at] = m->bad;
    }
    assert_int_equal(pl_h5_make_dataset(f, name, t, dims + 1, full, m->chunk, m->deflate, &d), 0);
    assert_int_equal(pl_h5_write_rows(d, 0, n, PL_F64, rows), PL_OK);
    pl_h5_dataset_close(d);
    free(rows);
}

static const struct pl_job_input images = {.dims = 3, .dim = {2, 3, 4}};

/* A set of its own file, removed by done. */
static struct pl_job_set make(struct made m)
{
    static int count;
    struct pl_h5 *f;
    char *path = pl_strdupf("%s/%d.h5", folder, count++);
    assert_int_equal(pl_h5_create(path, "test", PL_ERR_DATA, &f), PL_OK);
    write_dataset(f, &m, "data", m.type, m.n, 3, images.dim, false);
    write_dataset(f, &m, "label", m.label_type, m.labels ? m.labels : m.n, m.label_floats > 0,
                  &m.label_floats, true);
    assert_int_equal(pl_h5_close(f), PL_OK);
    return (struct pl_job_set){.file = path, .data = "data", .label = "label", .scale = 1};
}

static void done(struct pl_job_set *set) { unlink(set->file), pl_free(set->file); }

/* A set on its way into batches. */
struct run {
    struct pl_job_set set;
    struct pl_dataset *d;
    struct pl_loader *l;
};

/* Opens the set and starts at `epoch`; a window of rows sets a small one, read piece by piece. */
static void begin(struct run *r, struct pl_job_set set, const struct pl_job_input *want,
                  int64_t window, int64_t epoch, struct pl_loader_options o)
{
    r->set = set;
    pl_error_clear();
    if (pl_dataset_open(&r->set, want, true, &r->d) != PL_OK)
        fail_msg("%s", pl_error_text());
    r->d->all_in_memory = r->d->all_in_memory && (window == 0 || set.cache == 1);
    if (window && window / r->d->block_rows < r->d->blocks)
        r->d->window_blocks = (window + r->d->block_rows - 1) / r->d->block_rows;
    o.ranks = o.ranks ? o.ranks : 1;
    o.depth = o.depth ? o.depth : 2;
    assert_int_equal(pl_loader_create(r->d, &o, &r->l), PL_OK);
    assert_int_equal(pl_loader_start(r->l, epoch, 0, false), PL_OK);
}

static void end(struct run *r, bool remove)
{
    pl_loader_destroy(r->l);
    pl_dataset_close(r->d);
    if (remove)
        done(&r->set);
}

static struct pl_job_set make_bytes(int64_t n, int64_t chunk)
{
    return make(MADE(.n = n, .type = PL_U8, .label_type = PL_U8, .chunk = chunk, .deflate = 1));
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
    if (!strstr(text ? text : "", words))
        fail_msg("\"%s\" does not have \"%s\"", text, words);
    pl_error_clear();
}

static void refuse(struct pl_job_set set, const struct pl_job_input *want, const char *words)
{
    struct pl_dataset *d = NULL;
    pl_error_clear();
    expect(pl_dataset_open(&set, want, true, &d), words);
    assert_null(d);
}

TEST(bad_files)
{
    struct pl_job_set set = make(MADE(.n = 4000, .type = PL_F32, .label_type = PL_U8));
    struct pl_job_set absent = set, other = set;
    absent.file = "no/such.h5";
    refuse(absent, &images, "data: no/such.h5: No such file or directory\ncheck the set's");
    other.data = "/images";
    refuse(other, &images, "/images: no such dataset, the file has /data, /label\nname");
    other = set, other.label = "y";
    refuse(other, &images, ".h5:/y: no such dataset");
    assert_int_equal(truncate(set.file, 200000), 0);
    refuse(set, &images, "0.h5: cannot be opened"); /* HDF5 adds that it is truncated */
    assert_int_equal(truncate(set.file, 0), 0);
    FILE *f = fopen(set.file, "w");
    fputs("sample,label\n", f);
    fclose(f);
    refuse(set, &images, "not an HDF5 file");
    done(&set);
}

TEST(bad_shapes)
{
    struct pl_job_set set = make(MADE(.n = 20, .type = PL_U8, .label_type = PL_I64));
    struct pl_job_input want = {.dims = 3, .dim = {1, 28, 28}};
    refuse(set, &want, ".h5:/data: wanted [N, 1, 28, 28], found [20, 2, 3, 4]\nchange the model's");
    want = images, want.label_floats = 5;
    refuse(set, &want, ".h5:/label: wanted [N, 5], found [20]\nchange the model's input.label");
    done(&set);
    set = make(MADE(.n = 20, .type = PL_U8, .label_type = PL_F32));
    refuse(set, &images, ".h5:/label: wanted integers (classes), found float32");
    done(&set);
    set = make(MADE(.n = 20, .labels = 19, .type = PL_U8, .label_type = PL_U8));
    refuse(set, &images, ".h5: /data has 20 samples, /label has 19\nevery sample needs one label");
    done(&set);
}

TEST(bad_settings)
{
    struct pl_job_set set = make_bytes(5, 0), s = set;
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
    pl_status s = PL_OK;
    want.label_floats = m.label_floats;
    begin(&r, make(m), &want, 0, 0, LOAD(.global_batch = 8, .shuffle = true, .classes = classes));
    for (int i = 0; (s = pl_loader_next(r.l, &b)) == PL_OK && i < 7; i++)
        pl_loader_release(r.l, b);
    expect(s, words);
    assert_int_equal(pl_loader_next(r.l, &b), PL_ERR_DATA);
    end(&r, true);
}

TEST(bad_values)
{
    struct made m = {.n = 50, .type = PL_U8, .label_type = PL_U8, .chunk = 10, .deflate = 1};
    m.bad_at = IN_LABEL, m.bad_sample = 17, m.bad = 10;
    refuse_values(m, 10, ".h5:/label: sample 17 has label 10, wanted 0..9\n");
    m.label_type = PL_I64, m.bad = 4294967296.0 * 3;
    refuse_values(m, 10, "sample 17 has label 12884901888, wanted 0..9\n");
    m.bad = -1;
    refuse_values(m, 0, "sample 17 has label -1, wanted 0..2147483647\n");
    m.label_type = PL_F32, m.label_floats = 3, m.bad = (double)INFINITY;
    refuse_values(m, 0, ".h5:/label: sample 17 has an infinity at element 0\n");
    m = MADE(.n = 50, .type = PL_F32, .label_type = PL_U8, .bad_at = IN_DATA);
    m.bad_sample = 33, m.bad = (double)NAN;
    refuse_values(m, 10, ".h5:/data: sample 33 has NaN at element 0\nfind and replace");
    m.type = PL_F64, m.bad = 1e300;
    refuse_values(m, 10, "sample 33 has a value beyond float32 at element 0\n");
}

static void check_row(const struct pl_batch *b, int64_t row, const struct pl_job_set *set)
{
    const float *x = b->data + row * 24;
    for (int64_t e = 0; e < 24; e++) {
        double want =
            (value(b->index[row], e) * set->scale - set->mean.v[e / 12]) / set->std.v[e / 12];
        if (fabs((double)x[e] - want) > 1e-5)
            fail_msg("sample %d element %d: %g, wanted %g", (int)b->index[row], (int)e, x[e], want);
    }
    assert_int_equal(((int32_t *)b->label)[row], b->index[row] % 10);
}

/* Every sample once in `epochs` epochs, from start on; rows beyond the share are empty. */
static void check_epochs(struct pl_loader *l, const struct pl_job_set *set, int64_t n, int epochs)
{
    for (int64_t epoch = 0; epoch < epochs; epoch++) {
        int seen[150] = {0};
        for (int64_t at = 0, end; at < n; at = end) {
            struct pl_batch *b = next(l);
            end = b->end;
            assert_int_equal(b->epoch, epoch);
            assert_int_equal(b->begin, at);
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
    }
}

TEST(every_type_and_layout)
{
    /* chunk rows, deflate, limit */
    static const int layout[][3] = {{0, 0, 0}, {0, 0, 77},   {7, 0, 0},
                                    {7, 4, 0}, {64, 4, 100}, {100, 1, 0}};
    for (int t = PL_F32; t < PL_OTHER; t++)
        for (size_t k = 0; k < sizeof layout / sizeof *layout; k++) {
            struct made m = {.n = 150, .chunk = layout[k][0], .deflate = layout[k][1]};
            m.type = (enum pl_dtype)t;
            m.label_type = t < PL_U8 ? PL_I64 : m.type;
            below = t == PL_U8 || t == PL_U16 || t == PL_U32 || t == PL_U64 ? 0 : 50;
            struct pl_job_set set = make(m);
            set.scale = 0.25;
            set.mean = (struct pl_doubles){2, {3, 5}};
            set.std = (struct pl_doubles){2, {2, 4}};
            set.limit = layout[k][2];
            struct run r;
            begin(&r, set, &images, 0, 0,
                  LOAD(.global_batch = 32, .shuffle = k % 2, .classes = 10));
            assert_int_equal(pl_dataset_samples(r.d), set.limit ? set.limit : 150);
            assert_true(r.d->all_in_memory); /* auto, and small */
            check_epochs(r.l, &set, pl_dataset_samples(r.d), 2);
            end(&r, true);
        }
    below = 0;
}

TEST(labels_of_floats)
{
    struct made m = {.n = 20, .type = PL_U8, .label_type = PL_F64, .label_floats = 3, .chunk = 4};
    struct pl_job_input want = images;
    want.label_floats = 3;
    struct run r;
    begin(&r, make(m), &want, 0, 0, LOAD(.global_batch = 20, .shuffle = true));
    struct pl_batch *b = next(r.l);
    for (int64_t i = 0; i < 60; i++)
        assert_true(((float *)b->label)[i] == (float)value(b->index[i / 3], i % 3));
    end(&r, true);
}

/* The ranks' batches of epoch 4, side by side, are its order, and then it ends. */
static void check_shares(struct pl_job_set set, int64_t n, int64_t global, int ranks)
{
    struct run run[8];
    int64_t at = 0, order[100];
    struct pl_batch *b;
    for (int r = 0; r < ranks; r++) {
        begin(&run[r], set, &images, 0, 4,
              LOAD(.global_batch = global, .rank = r, .ranks = ranks, .seed = 3, .shuffle = true,
                   .classes = 10));
        assert_int_equal(pl_loader_start(run[r].l, 4, 0, true), PL_OK);
    }
    const struct pl_dataset *d = run->d;
    struct pl_sampler *s = pl_sampler_create(d->blocks, d->block_first, d->window_blocks, true, 3);
    assert_int_equal(pl_sampler_order(s, 4, 0, n, order), PL_OK);
    for (int64_t step = 0; step < pl_sampler_steps(n, global); step++)
        for (int r = 0; r < ranks; r++) {
            b = next(run[r].l);
            assert_int_equal(b->capacity, (global + ranks - 1) / ranks);
            assert_int_equal(b->begin, step * global);
            assert_int_equal(b->end, (step + 1) * global < n ? (step + 1) * global : n);
            for (int64_t i = 0; i < b->rows; i++)
                assert_int_equal(b->index[i], order[at++]);
            pl_loader_release(run[r].l, b);
        }
    assert_int_equal(at, n);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pl_loader_next(run[r].l, &b), PL_END);
        end(&run[r], false);
    }
    pl_sampler_destroy(s);
}

TEST(ranks_share_an_epoch)
{
    /* samples, global batch */
    static const int64_t cases[][2] = {{5, 16}, {100, 16}, {96, 10}};
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct pl_job_set set = make_bytes(cases[k][0], 4);
        for (int ranks = 1; ranks <= 8; ranks++)
            check_shares(set, cases[k][0], cases[k][1], ranks);
        done(&set);
    }
}

TEST(restarts)
{
    struct run run;
    struct pl_batch *b, *kept = NULL;
    struct pl_rng r = pl_rng_make(1, 2, 3, 4);
    begin(&run, make_bytes(90, 8), &images, 64, 0,
          LOAD(.global_batch = 8, .shuffle = true, .classes = 10, .depth = 3));
    struct pl_sampler *order = pl_sampler_create(run.d->blocks, run.d->block_first, run.d->window_blocks, true, 0);
    for (int i = 0; i < 300; i++) {
        int64_t index[8], epoch = pl_rng_u32(&r) % 3, position = pl_rng_u32(&r) % 90;
        assert_int_equal(pl_loader_start(run.l, epoch, position, i % 3 == 0), PL_OK);
        pl_loader_release(run.l, i % 2 ? kept : NULL); /* lent before the restart */
        kept = i % 2 ? NULL : kept;
        for (int64_t k = pl_rng_u32(&r) % 5; k > 0 && position < 90; k--, position += 8) {
            if (b = next(run.l), b->begin != position)
                fail_msg("samples from %lld on, wanted %lld", (long long)b->begin, (long long)position);
            assert_ptr_not_equal(b, kept);
            assert_int_equal(b->epoch, epoch);
            assert_int_equal(b->end, position + 8 < 90 ? position + 8 : 90);
            assert_int_equal(b->rows, b->end - position);
            assert_int_equal(pl_sampler_order(order, epoch, position, b->rows, index), PL_OK);
            assert_memory_equal(b->index, index, (size_t)b->rows * sizeof *index);
            if (kept)
                pl_loader_release(run.l, b);
            else
                kept = b;
        }
    }
    pl_sampler_destroy(order);
    end(&run, true); /* while it reads, a batch still lent */
}

/* What is asked for comes, in that order, from any epoch; a start ends it. */
TEST(reads_what_is_asked_for)
{
    struct run run;
    struct pl_rng r = pl_rng_make(1, 2, 3, 5);
    begin(&run, make_bytes(90, 8), &images, 64, 0, LOAD(.global_batch = 8, .shuffle = true, .classes = 10, .depth = 3));
    struct pl_sampler *order = pl_sampler_create(run.d->blocks, run.d->block_first, run.d->window_blocks, true, 0);
    for (int i = 0; i < 40; i++) {
        int64_t index[8], epoch[3], first[3], rows[3];
        if (i % 10 == 0)
            assert_int_equal(pl_loader_feed(run.l), PL_OK);
        for (int k = 0; k < 3; k++) {
            epoch[k] = pl_rng_u32(&r) % 3;
            rows[k] = 1 + pl_rng_u32(&r) % 8;
            first[k] = pl_rng_u32(&r) % (91 - rows[k]);
            assert_int_equal(pl_loader_ask(run.l, epoch[k], first[k], rows[k]), PL_OK);
        }
        for (int k = 0; k < 3; k++) {
            struct pl_batch *b = next(run.l);
            assert_int_equal(b->epoch, epoch[k]);
            assert_int_equal(b->begin, first[k]);
            assert_int_equal(b->end, first[k] + rows[k]);
            assert_int_equal(b->rows, rows[k]);
            assert_int_equal(pl_sampler_order(order, epoch[k], first[k], rows[k], index), PL_OK);
            assert_memory_equal(b->index, index, (size_t)rows[k] * sizeof *index);
            for (int64_t row = rows[k]; row < b->capacity; row++)
                assert_int_equal(b->index[row], -1);
            pl_loader_release(run.l, b);
        }
    }
    assert_int_equal(pl_loader_ask(run.l, 0, 0, 9), PL_ERR_USAGE);
    pl_error_clear();
    assert_int_equal(pl_loader_ask(run.l, 0, 0, 8), PL_OK); /* nobody takes it */
    assert_int_equal(pl_loader_start(run.l, 1, 40, true), PL_OK);
    struct pl_batch *b = next(run.l);
    assert_int_equal(b->begin, 40);
    pl_loader_release(run.l, b);
    pl_sampler_destroy(order);
    end(&run, true);
}

/* The second of 2 ranks becomes the last of 3, with a batch still lent. */
TEST(deals_anew)
{
    struct run r;
    begin(&r, make_bytes(40, 0), &images, 0, 0, LOAD(.global_batch = 16, .rank = 1, .ranks = 2));
    struct pl_batch *lent = next(r.l), *b = NULL;
    assert_int_equal(lent->index[0], 8);
    assert_int_equal(pl_loader_deal(r.l, 25, 2, 3), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "25 on 3 ranks is 9 samples a rank: the loader has room for 8"));
    pl_error_clear();
    b = next(r.l); /* reads on as before */
    assert_int_equal(b->index[0], 24);
    pl_loader_release(r.l, b);
    assert_int_equal(pl_loader_deal(r.l, 22, 2, 3), PL_OK);
    assert_int_equal(pl_loader_next(r.l, &b), PL_ERR_USAGE);
    pl_error_clear();
    assert_int_equal(pl_loader_start(r.l, 0, 5, false), PL_OK);
    pl_loader_release(r.l, lent);
    static const int64_t want[][4] = {{5, 27, 21, 6}, {27, 40, 40, 0}, {0, 22, 16, 6}}; /* begin, end, first, rows */
    for (int i = 0; i < 3; i++) {
        b = next(r.l);
        assert_true(b->begin == want[i][0] && b->end == want[i][1] && b->rows == want[i][3] && b->capacity == 8);
        assert_int_equal(b->index[0], b->rows > 0 ? want[i][2] : -1);
        assert_int_equal(b->index[b->rows], -1);
        pl_loader_release(r.l, b);
    }
    end(&r, true);
}

TEST(all_batches_lent)
{
    struct run r;
    struct pl_batch *b[3];
    begin(&r, make_bytes(40, 0), &images, 0, 0, LOAD(.global_batch = 8, .depth = 1));
    b[0] = next(r.l), b[1] = next(r.l);
    assert_int_equal(pl_loader_next(r.l, &b[2]), PL_ERR_USAGE);
    assert_non_null(strstr(pl_error_text(), "all 2 batches are lent"));
    pl_error_clear();
    pl_loader_release(r.l, b[0]);
    pl_loader_release(r.l, b[0]); /* twice: no harm */
    b[2] = next(r.l);
    assert_int_equal(b[2]->begin, 16);
    assert_int_equal(b[1]->index[0], 8);
    end(&r, true);
}

/* A window of 4 blocks out of 25, so that blocks give way: memory and none must not differ. */
TEST(cache_modes_agree)
{
    struct pl_job_set set = make_bytes(1000, 40);
    set.mean = (struct pl_doubles){2, {0, 0}}, set.std = (struct pl_doubles){2, {1, 1}};
    struct run r[3];
    for (set.cache = 0; set.cache < 3; set.cache++) {
        begin(&r[set.cache], set, &images, 160, 0,
              LOAD(.global_batch = 48, .shuffle = true, .classes = 10));
        assert_int_equal(r[set.cache].d->all_in_memory, set.cache == 1);
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
        end(&r[k], false);
    done(&set);
}

TEST(steps_allocate_nothing)
{
    struct run r;
    begin(&r, make_bytes(5000, 0), &images, 2048, 0, /* so that blocks keep being read */
          LOAD(.global_batch = 64, .shuffle = true));
    pl_loader_release(r.l, next(r.l));
    uint64_t before = pl_alloc_count();
    for (int i = 0; i < 200; i++)
        pl_loader_release(r.l, next(r.l));
    assert_int_equal(pl_alloc_count(), before);
    end(&r, true);
}

TEST(faults_come_out_of_next)
{
    struct pl_batch *b;
    struct run r;
    begin(&r, make_bytes(40, 0), &images, 0, 0, LOAD(.global_batch = 8));
    assert_int_equal(pl_fault_configure("loader.read@step=7:fail", 0), PL_OK);
    assert_int_equal(pl_loader_start(r.l, 1, 0, false), PL_OK);
    pl_loader_release(r.l, next(r.l));
    pl_loader_release(r.l, next(r.l));
    expect(pl_loader_next(r.l, &b), "samples 16 to 24 of epoch 1: debug.fault at loader.read");
    pl_fault_configure("", 0);
    assert_int_equal(pl_loader_start(r.l, 1, 16, false), PL_OK);
    assert_int_equal(next(r.l)->begin, 16);
    end(&r, true);
}

/* What data.h says of pixels */
static void widen(const struct pl_pixels *p, int64_t i, float *out)
{
    const struct pl_pixel_place *at = &p->place[i];
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t y = 0; y < p->height; y++)
            for (int64_t x = 0; x < p->width; x++) {
                int64_t line = (c * p->height + y) * p->width, from = at->mirrored ? p->width - 1 - x : x;
                bool inside = y >= at->top && y < at->bottom && from >= at->left && from < at->right;
                float scaled = inside ? p->value[i * p->channels * p->height * p->width + line + from] * p->factor[c] : 0;
                out[line + x] = inside ? scaled + p->factor[p->channels + c] : 0;
            }
}

/* The images that these make are those that come otherwise; a set that is not of uint8 comes as it did. */
TEST(pixels_for_a_device)
{
    static const struct { int64_t crop, pad; bool flip, augment; } cases[] = {{0, 0, false, true}, {0, 0, true, true}, {2, 0, true, true}, {3, 2, true, true},
                                                                            {6, 4, true, true}, {2, 0, true, false}, {5, 1, false, false}};
    float wide[2 * 6 * 6];
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        struct run plain, pixel;
        struct pl_job_input want = images;
        struct pl_job_set set = make_bytes(50, 7);
        struct pl_loader_options o = LOAD(.global_batch = 12, .shuffle = true, .augment = cases[k].augment, .classes = 10, .threads = 2);
        set.crop = cases[k].crop, set.pad = cases[k].pad, set.flip = cases[k].flip;
        set.scale = 0.3, set.mean = (struct pl_doubles){2, {3, 5}}, set.std = (struct pl_doubles){2, {0.7, 4}};
        if (set.crop > 0)
            want.dim[1] = want.dim[2] = set.crop;
        begin(&plain, set, &want, 0, 0, o);
        o.pixels = true;
        begin(&pixel, set, &want, 0, 0, o);
        size_t bytes = (size_t)(2 * want.dim[1] * want.dim[2]) * sizeof *wide;
        for (int step = 0; step < 9; step++) { /* into the second epoch: short batches too */
            struct pl_batch *a = next(plain.l), *b = next(pixel.l);
            assert_true(!a->pixels && a->data && b->pixels && !b->data);
            assert_int_equal(a->rows, b->rows);
            for (int64_t i = 0; i < a->capacity; i++) {
                widen(b->pixels, i, wide);
                assert_memory_equal(wide, (char *)a->data + (size_t)i * bytes, bytes);
                assert_int_equal(a->index[i], b->index[i]);
            }
            pl_loader_release(plain.l, a);
            pl_loader_release(pixel.l, b);
        }
        end(&plain, false);
        end(&pixel, true);
    }
    struct run r;
    begin(&r, make(MADE(.n = 20, .type = PL_I16, .label_type = PL_U8)), &images, 0, 0, LOAD(.global_batch = 4, .pixels = true, .classes = 10));
    assert_true(!next(r.l)->pixels);
    end(&r, true);
}

/* What is ready is what comes next, and nobody waits for what is not. */
/* The same labels in the same order, from a set that is read piece by piece and from one in memory; of the samples no byte. */
TEST(labels_without_samples)
{
    for (int pieces = 0; pieces < 2; pieces++) {
        struct run whole, labels;
        struct pl_loader_options o = LOAD(.global_batch = 7, .rank = 1, .ranks = 2, .shuffle = true, .augment = true, .classes = 10);
        struct pl_job_set set = make_bytes(50, 7);
        begin(&whole, set, &images, pieces ? 10 : 0, 0, o);
        o.labels_only = true;
        begin(&labels, set, &images, pieces ? 10 : 0, 0, o);
        for (int step = 0; step < 20; step++) {
            struct pl_batch *a = next(whole.l), *b = next(labels.l);
            assert_true(a->rows == b->rows && a->begin == b->begin && a->end == b->end && a->epoch == b->epoch);
            assert_memory_equal(a->index, b->index, (size_t)a->capacity * sizeof *a->index);
            assert_memory_equal(a->label, b->label, (size_t)a->capacity * sizeof(int32_t));
            assert_int_equal(b->read_bytes, 0);
            assert_true(b->memory_bytes < a->memory_bytes);
            pl_loader_release(whole.l, a);
            pl_loader_release(labels.l, b);
        }
        end(&labels, false);
        end(&whole, true);
    }
}

TEST(what_is_ready)
{
    for (int pixels = 0; pixels < 2; pixels++) {
        struct run waits, looks;
        struct pl_batch *b[4];
        const struct pl_batch *all;
        struct pl_loader_options o = LOAD(.global_batch = 7, .shuffle = true, .classes = 10, .pixels = pixels, .depth = 3);
        struct pl_job_set set = make_bytes(50, 7);
        begin(&waits, set, &images, 0, 0, o);
        begin(&looks, set, &images, 0, 0, o);
        assert_int_equal(pl_loader_batches(looks.l, &all), 4);
        for (int step = 0; step < 24; step++) {
            int ready = 0, most = step % 4 + 1;
            double end = pl_now_ms() + 20000;
            while (ready < most && pl_now_ms() < end) {
                assert_int_equal(pl_loader_next_ready(looks.l, &b[ready]), PL_OK);
                ready += b[ready] != NULL;
            }
            assert_int_equal(ready, most);
            struct pl_batch *more = b[0];
            if (ready == 4) /* no more are to be had */
                assert_true(pl_loader_next_ready(looks.l, &more) == PL_OK && !more);
            for (int i = 0; i < ready; i++) {
                struct pl_batch *a = next(waits.l);
                const char *from = b[i]->memory, *to = from + b[i]->memory_bytes, *values = pixels ? (const char *)b[i]->pixels->value : (const char *)b[i]->data;
                assert_true(b[i] >= all && b[i] < all + 4 && (uintptr_t)from % 4096 == 0);
                assert_true(values >= from && values < to && (char *)b[i]->label >= from && (char *)(b[i]->index + b[i]->capacity) <= to);
                assert_int_equal(a->begin, b[i]->begin);
                assert_memory_equal(a->index, b[i]->index, (size_t)a->capacity * sizeof *a->index);
                pl_loader_release(waits.l, a);
                pl_loader_release(looks.l, b[i]);
            }
        }
        end(&waits, false);
        end(&looks, true);
    }
}

/* The loader applies what augment.c draws: test_sampler.c holds that against its statistics. */
TEST(augments_alike_on_any_ranks)
{
    struct pl_job_set set = make_bytes(60, 0);
    struct pl_job_input want = {.dims = 3, .dim = {2, 2, 2}};
    float x[2][60][8]; /* [ranks - 1][sample] */
    set.crop = 2, set.pad = 1, set.flip = true;
    for (int k = 0; k < 3; k++) { /* one rank, then both of two */
        struct run r;
        begin(&r, set, &want, 0, 3,
              LOAD(.global_batch = 20, .rank = k == 2, .ranks = k ? 2 : 1, .seed = 9,
                   .shuffle = true, .augment = true));
        assert_int_equal(pl_loader_start(r.l, 3, 0, true), PL_OK);
        for (struct pl_batch *b; pl_loader_next(r.l, &b) == PL_OK; pl_loader_release(r.l, b))
            for (int64_t i = 0; i < b->rows; i++)
                memcpy(x[k > 0][b->index[i]], b->data + i * 8, sizeof x[0][0]);
        end(&r, false);
    }
    assert_memory_equal(x[0], x[1], sizeof x[0]);
    assert_memory_not_equal(x[0][0], x[0][1], sizeof x[0][0]);
    done(&set);
}

/* One set in three files, as numbers and a pattern name them: sample i is what it is in one file. */
static struct pl_job_set make_three(struct made m)
{
    static int count;
    static const int64_t rows[] = {23, 40, 7};
    static const char *const names[] = {"%s/part-%d.h5", "%s/part-%d-b.h5", "%s/part-%d-c.h5"};
    struct pl_job_set set = {.data = "data", .label = "label", .scale = 1};
    for (int i = 0; i < 3; i++) {
        m.n = rows[i];
        struct pl_job_set one = make(m);
        char *path = pl_strdupf(names[i], folder, count);
        assert_int_equal(rename(one.file, path), 0);
        pl_free(one.file);
        if (i < 1)
            set.files.v[set.files.n++] = path;
        else
            pl_free(path);
        m.start += rows[i];
    }
    set.files.v[set.files.n++] = pl_strdupf("%s/part-%d-?.h5", folder, count++);
    set.mean = (struct pl_doubles){2, {0, 0}}, set.std = (struct pl_doubles){2, {1, 1}};
    return set;
}

static void done_three(struct pl_job_set *set)
{
    struct pl_files f;
    assert_int_equal(pl_files_find(set, &f), PL_OK);
    for (int i = 0; i < f.n; i++)
        unlink(f.path[i]);
    pl_files_free(&f);
    for (int i = 0; i < set->files.n; i++)
        pl_free(set->files.v[i]);
}

TEST(several_files)
{
    static const int64_t chunks[] = {0, 4, 40};
    for (int i = 0; i < 3; i++)
        for (int64_t limit = 0; limit <= 50; limit += 25) {
            struct pl_job_set set = make_three(
                MADE(.type = PL_U8, .label_type = PL_U8, .chunk = chunks[i] < 7 ? chunks[i] : 7, .deflate = i));
            set.limit = limit;
            for (int shuffle = 0; shuffle < 2; shuffle++)
                for (set.cache = 1; set.cache < 3; set.cache++) {
                    struct run r;
                    begin(&r, set, &images, 16, 0,
                          LOAD(.global_batch = 16, .shuffle = shuffle, .classes = 10));
                    int64_t n = limit ? limit : 70;
                    assert_int_equal(pl_dataset_samples(r.d), n);
                    assert_non_null(strstr(pl_dataset_name(r.d), ".h5 and 2 more files ["));
                    check_epochs(r.l, &set, n, 2);
                    end(&r, false);
                }
            if (!limit)
                for (int ranks = 1; ranks <= 4; ranks++)
                    check_shares(set, 70, 16, ranks);
            done_three(&set);
        }
}

TEST(bad_lists_of_files)
{
    struct made m = {.n = 20, .type = PL_U8, .label_type = PL_U8};
    struct pl_job_set a = make(m), b, set = {.data = "data", .label = "label", .scale = 1};
    char pattern[96], words[200];
    snprintf(pattern, sizeof pattern, "%s/none-*.h5", folder);
    set.files = (struct pl_texts){2, {a.file, pattern}};
    refuse(set, &images, "none-*.h5: no file matches\na relative pattern counts");
    set.files.v[1] = a.file;
    refuse(set, &images, ".h5: is twice in files");
    m.type = PL_F32;
    b = make(m);
    set.files.v[1] = b.file;
    snprintf(words, sizeof words, "%s:/data: is float32 [N, 2, 3, 4], in %s it is uint8 [N, 2, 3, 4]\nthe files of a set", b.file, a.file);
    refuse(set, &images, words);
    done(&b);
    m.type = PL_U8, m.label_type = PL_I64;
    b = make(m);
    set.files.v[1] = b.file;
    snprintf(words, sizeof words, "%s:/label: is int64 [N], in %s it is uint8 [N]", b.file, a.file);
    refuse(set, &images, words);
    done(&b);
    m.label_type = PL_U8, m.bad_at = IN_LABEL, m.bad_sample = 17, m.bad = 10;
    b = make(m);
    set.files.v[1] = b.file;
    struct run r;
    struct pl_batch *batch;
    begin(&r, set, &images, 0, 0, LOAD(.global_batch = 40, .classes = 10));
    snprintf(words, sizeof words, "%s:/label: sample 17 has label 10", b.file); /* its number in the file */
    expect(pl_loader_next(r.l, &batch), words);
    end(&r, false);
    done(&a);
    done(&b);
}

#ifdef PL_HAVE_JPEG
/* What image i of a file is: its size, and pixel (x, y) of channel c. Some are grey, some CMYK. */
typedef int pixel_fn(int i, int x, int y, int c);
static int flat(int i, int x, int y, int c) { return (void)x, (void)y, 40 + (i * 37 + c * 60) % 160; }
static int ramp(int i, int x, int y, int c) { return (void)i, c == 0 ? x : c == 1 ? 2 * y : 120; }

static hvl_t compress(int i, int width, int height, int format, pixel_fn *pixel)
{
    tjhandle tj = tjInitCompress();
    unsigned char *image = calloc((size_t)(width * height), 4), *p = image, *out = NULL;
    unsigned long bytes = 0;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < tjPixelSize[format]; c++)
                *p++ = c == 3 ? 255 : (unsigned char)pixel(i, x, y, c);
    int grey = format == TJPF_GRAY ? TJSAMP_GRAY : TJSAMP_444;
    assert_int_equal(tjCompress2(tj, image, width, 0, height, format, &out, &bytes, grey, 98, 0), 0);
    hvl_t v = {.len = bytes, .p = malloc(bytes)};
    memcpy(v.p, out, bytes);
    tjFree(out);
    tjDestroy(tj);
    free(image);
    return v;
}

struct jpegs {
    int n, start, width, height; /* width 0: each of its own size */
    bool colours;                /* grey and CMYK among them */
    pixel_fn *pixel;
    int broken;                  /* cut short; 0: none */
    const char *encoding; /* "jpeg" unless given */
};

static struct pl_job_set make_jpegs(struct jpegs m)
{
    static int count;
    char *path = pl_strdupf("%s/jpeg-%d.h5", folder, count++);
    hvl_t image[100];
    uint8_t label[100];
    for (int i = 0; i < m.n; i++) {
        int k = m.start + i, format = !m.colours || k % 3 == 0 ? TJPF_RGB : k % 3 == 1 ? TJPF_GRAY : TJPF_CMYK;
        image[i] = compress(k, m.width ? m.width : 33 + k * 7, m.width ? m.height : 90 - k, format, m.pixel);
        image[i].len = m.broken && i == m.broken ? image[i].len / 2 : image[i].len;
        label[i] = (uint8_t)(k % 10);
    }
    hsize_t n = (hsize_t)m.n;
    hid_t f = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), space = H5Screate_simple(1, &n, NULL);
    hid_t type = H5Tvlen_create(H5T_NATIVE_UINT8), text = H5Tcopy(H5T_C_S1), scalar = H5Screate(H5S_SCALAR);
    hid_t d = H5Dcreate2(f, "data", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    hid_t l = H5Dcreate2(f, "label", H5T_NATIVE_UINT8, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, image) >= 0);
    assert_true(H5Dwrite(l, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, label) >= 0);
    const char *encoding = m.encoding ? m.encoding : "jpeg";
    H5Tset_size(text, strlen(encoding)); /* of a fixed length, as some write it */
    hid_t a = H5Acreate2(d, "encoding", text, scalar, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(a, text, encoding) >= 0);
    H5Aclose(a);
    H5Sclose(space), H5Sclose(scalar), H5Tclose(type), H5Tclose(text), H5Dclose(d), H5Dclose(l), H5Fclose(f);
    for (int i = 0; i < m.n; i++)
        free(image[i].p);
    return (struct pl_job_set){.file = path, .data = "data", .label = "label", .scale = 1};
}
#define JPEGS(...) make_jpegs((struct jpegs){__VA_ARGS__})

static const struct pl_job_input colour = {.dims = 3, .dim = {3, 24, 24}}, grey = {.dims = 3, .dim = {1, 24, 24}};

static int flat_wanted(int k, int c, int64_t channels, bool colours)
{
    int rgb[3];
    for (int i = 0; i < 3; i++)
        rgb[i] = flat(k, 0, 0, colours && k % 3 == 1 ? 0 : i);
    return channels == 3 ? rgb[c] : (int)(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] + 0.5);
}

/* Images of one colour each keep it, whatever their size and kind, through crop, mirror and values. */
TEST(jpeg_colours)
{
    for (int channels = 1; channels <= 3; channels += 2) {
        struct pl_job_set set = JPEGS(.n = 40, .pixel = flat, .colours = true);
        set.crop = 24, set.flip = true, set.scale = 0.5, set.mean = (struct pl_doubles){1, {3}};
        struct run r;
        begin(&r, set, channels == 3 ? &colour : &grey, 0, 0,
              LOAD(.global_batch = 40, .shuffle = true, .augment = true, .classes = 10, .threads = 2));
        struct pl_batch *b = next(r.l);
        for (int64_t i = 0; i < 40; i++)
            for (int64_t e = 0; e < channels * 576; e++) {
                double want = 0.5 * flat_wanted((int)b->index[i], (int)(e / 576), channels, true) - 3;
                double got = (double)b->data[i * channels * 576 + e];
                if (fabs(got - want) > 1.6)
                    fail_msg("image %d element %d: %g, wanted %g", (int)b->index[i], (int)e, got, want);
            }
        end(&r, true);
    }
}

/* Where pixels go: the centre of an image scaled by 1/2, by 3/10 and by 6/5, which JPEG itself cannot. */
TEST(jpeg_places)
{
    static const int resize[] = {50, 30, 120};
    for (int k = 0; k < 3; k++) {
        struct pl_job_set set = JPEGS(.n = 2, .pixel = ramp, .width = 200, .height = 100);
        set.crop = 24, set.resize = resize[k];
        struct run r;
        begin(&r, set, &colour, 0, 0, LOAD(.global_batch = 2, .classes = 10));
        struct pl_batch *b = next(r.l);
        double scale = 100.0 / resize[k];
        for (int e = 0; e < 2 * 576; e++) {
            int c = e / 576, at = c == 0 ? e % 24 : e % 576 / 24, side = resize[k] * (c == 0 ? 2 : 1);
            double want = (((side - 24) / 2 + at + 0.5) * scale - 0.5) * (c == 0 ? 1 : 2);
            if (fabs((double)b->data[e] - want) > 3)
                fail_msg("resize %d channel %d at %d: %g, wanted %g", resize[k], c, at, (double)b->data[e], want);
        }
        end(&r, true);
    }
}

/* Any number of threads, a cache that must give blocks back within a batch, padding: the same bits. */
TEST(jpeg_threads_agree)
{
    struct pl_job_set set = {.data = "data", .label = "label", .scale = 1}, part[3];
    for (int i = 0; i < 3; i++) {
        part[i] = JPEGS(.n = 20, .start = 20 * i, .pixel = i == 1 ? ramp : flat, .colours = i != 1, .width = i == 1 ? 70 : 0, .height = 60);
        set.files.v[set.files.n++] = part[i].file;
    }
    set.crop = 24, set.flip = true, set.pad = 4, set.cache = 2;
    struct run r[3];
    for (int k = 0; k < 3; k++) {
        begin(&r[k], set, &colour, 0, 0,
              LOAD(.global_batch = 60, .shuffle = false, .augment = true, .classes = 10, .threads = 1 + 2 * k));
        assert_false(r[k].d->all_in_memory);
        assert_int_equal(r[k].d->blocks, 3);
    }
    for (int step = 0; step < 3; step++) {
        struct pl_batch *b[3];
        for (int k = 0; k < 3; k++) {
            b[k] = next(r[k].l);
            assert_memory_equal(b[k]->data, b[0]->data, 60 * 3 * 576 * sizeof(float));
            assert_memory_equal(b[k]->label, b[0]->label, 60 * sizeof(int32_t));
        }
        for (int k = 0; k < 3; k++)
            pl_loader_release(r[k].l, b[k]);
    }
    for (int k = 0; k < 3; k++)
        end(&r[k], false), done(&part[k]);
}

TEST(bad_jpegs)
{
    struct pl_job_set set = JPEGS(.n = 40, .pixel = ramp, .width = 70, .height = 60, .broken = 17);
    struct pl_job_input want = {.dims = 3, .dim = {2, 24, 24}};
    struct run r;
    struct pl_batch *b;
    begin(&r, set, &colour, 0, 0, LOAD(.global_batch = 40, .classes = 10, .threads = 3));
    char words[200];
    snprintf(words, sizeof words, "%s:/data: sample 17 cannot be decoded: ", set.file);
    expect(pl_loader_next(r.l, &b), words);
    end(&r, false);
    refuse(set, &want, ":/data: JPEG images have 1 or 3 channels");
    struct pl_job_set low = set;
    low.resize = 20;
    refuse(low, &colour, "augment.resize is 20, the model's input 24x24");
    done(&set);
    set = JPEGS(.n = 4, .pixel = flat, .encoding = "png");
    refuse(set, &colour, "variable-length bytes are taken for images where they are [N] and the attribute encoding");
    done(&set);
    set = make_bytes(5, 0);
    set.resize = 4;
    refuse(set, &images, "augment.resize is for JPEG images, /data holds pixels");
    done(&set);
}
#endif

static int make_folder(void **state __attribute__((unused)))
{
    snprintf(folder, sizeof folder, "/tmp/paceline-data-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state __attribute__((unused)))
{
    char path[96]; /* of a test that failed */
    for (int i = 0; i < 1000 && snprintf(path, sizeof path, "%s/%d.h5", folder, i) > 0; i++)
        unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bad_files),
                                       cmocka_unit_test(bad_shapes),
                                       cmocka_unit_test(bad_settings),
                                       cmocka_unit_test(bad_values),
                                       cmocka_unit_test(every_type_and_layout),
                                       cmocka_unit_test(labels_of_floats),
                                       cmocka_unit_test(ranks_share_an_epoch),
                                       cmocka_unit_test(restarts),
                                       cmocka_unit_test(reads_what_is_asked_for),
                                       cmocka_unit_test(deals_anew),
                                       cmocka_unit_test(all_batches_lent),
                                       cmocka_unit_test(cache_modes_agree),
                                       cmocka_unit_test(steps_allocate_nothing),
                                       cmocka_unit_test(faults_come_out_of_next),
                                       cmocka_unit_test(augments_alike_on_any_ranks),
                                       cmocka_unit_test(pixels_for_a_device),
                                       cmocka_unit_test(labels_without_samples),
                                       cmocka_unit_test(what_is_ready),
                                       cmocka_unit_test(several_files),
#ifdef PL_HAVE_JPEG
                                       cmocka_unit_test(jpeg_colours),
                                       cmocka_unit_test(jpeg_places),
                                       cmocka_unit_test(jpeg_threads_agree),
                                       cmocka_unit_test(bad_jpegs),
#endif
                                       cmocka_unit_test(bad_lists_of_files)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
