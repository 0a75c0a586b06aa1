/* Checkpoints of a split model: each stage writes its part, model.h5 shows the whole of it to whoever reads it, whole or split
 * otherwise, from anywhere; a part that is missing or damaged is no part of zeros. */
#include "checkpoint/checkpoint.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

enum { STAGES = 3 };
static char prefix[4096];

/* A network, or a stage of it, with an optimizer. */
struct piece { struct pl_graph *g; struct pl_optimizer *o; };

struct fixture {
    struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct piece whole, stage[STAGES];
    struct pl_run_state state;
    char *dir;
};

static void open_piece(struct fixture *f, const struct pl_graph_cut *cut, struct piece *p)
{
    if (pl_graph_create_stage(f->job, f->table, f->backend, 4, true, cut, NULL, &p->g) < 0 || pl_optimizer_create(f->job, p->g, &p->o) < 0)
        fail_msg("%s", pl_error_text());
}

static void open_fixture(struct fixture *f)
{
    static int count;
    static const char text[] = "model: {name: m, input: {data: [3], label: int}, layers: [{name: a, kind: dense, units: 7}, {name: bn, kind: batchnorm}, "
                               "{name: b, kind: dense, units: 5}, {name: c, kind: dense, units: 2}, {name: loss, kind: softmax_loss}]}\n"
                               "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 4, seed: 7}\noptimizer: {kind: adam}\n"
                               "checkpoint: {keep: 2}\nsplit: {pipeline: 3, at: [b, c]}\n";
    *f = (struct fixture){.table = pl_backend_find("reference")};
    pl_error_clear();
    if (pl_job_parse(text, "t.yaml", &f->job) < 0)
        fail_msg("%s", pl_error_text());
    assert_int_equal(f->table->open(&(struct pl_device_options){.threads = 1}, &f->backend), PL_OK);
    open_piece(f, NULL, &f->whole);
    for (int s = 0; s < STAGES; s++)
        open_piece(f, &(struct pl_graph_cut){.stage = s, .stages = STAGES, .at = &f->job->split.at}, &f->stage[s]);
    f->dir = pl_strdupf("%s/stages-%d-%d", getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : ".", (int)getpid(), count++);
    f->state = (struct pl_run_state){.epoch = 1, .train_samples = 1000, .seed = 7, .ranks = STAGES, .best = NAN, .last_loss = NAN, .last_accuracy = NAN, .best_step = -1};
}

static void close_piece(struct piece *p)
{
    pl_optimizer_destroy(p->o);
    pl_graph_destroy(p->g);
}

static void close_fixture(struct fixture *f)
{
    char *command = pl_strdupf("rm -rf '%s'*", f->dir);
    assert_int_equal(system(command), 0);
    pl_free(command);
    for (int s = 0; s < STAGES; s++)
        close_piece(&f->stage[s]);
    close_piece(&f->whole);
    f->table->close(f->backend);
    pl_job_destroy(f->job);
    pl_free(f->dir);
}

/* By names alone, so that a stage and the whole have the same: element i of slab s, s 0 the parameters. */
static float value(const struct pl_tensor *t, int64_t i, int slab, float add)
{
    return add + (float)(pl_hash(pl_hash(PL_HASH_START, t->layer, strlen(t->layer)), t->name, strlen(t->name)) % 1000) + (float)i / 64 + 2000 * (float)slab;
}

static float *slab_of(struct piece *p, int slab) { return slab == 0 ? pl_graph_params(p->g) : pl_optimizer_slot(p->o, slab - 1); }

static void fill(struct piece *p, float add)
{
    const struct pl_tensor *t;
    int n = pl_graph_tensors(p->g, &t);
    for (int slab = 0; slab <= pl_optimizer_slots(p->o); slab++)
        for (int k = 0; k < n; k++)
            for (int64_t i = 0; i < pl_shape_elems(&t[k].param->shape) && (slab == 0 || !t[k].param->statistic); i++)
                slab_of(p, slab)[t[k].param->offset + i] = value(&t[k], i, slab, add);
}

static void holds(struct piece *p, float add, int slabs)
{
    const struct pl_tensor *t;
    int n = pl_graph_tensors(p->g, &t);
    for (int slab = 0; slab < slabs; slab++)
        for (int k = 0; k < n; k++)
            for (int64_t i = 0; i < pl_shape_elems(&t[k].param->shape) && (slab == 0 || !t[k].param->statistic); i++) {
                float v = slab_of(p, slab)[t[k].param->offset + i];
                if (v != value(&t[k], i, slab, add))
                    fail_msg("slab %d, %s/%s, element %lld: %g, wanted %g", slab, t[k].layer, t[k].name, (long long)i, (double)v, (double)value(&t[k], i, slab, add));
            }
}

static struct pl_checkpoint_source source(struct fixture *f, struct piece *p, const float **slot)
{
    for (int s = 0; s < pl_optimizer_slots(p->o); s++)
        slot[s] = pl_optimizer_slot(p->o, s);
    return (struct pl_checkpoint_source){.graph = p->g, .optimizer = p->o, .params = pl_graph_params(p->g), .slot = slot, .state = &f->state, .job = f->job};
}

/* Of the stages but `without`; -1: all. */
static pl_status save_split(struct fixture *f, int64_t step, float add, int without)
{
    const float *slot[4];
    f->state.step = step;
    for (int s = STAGES - 1; s >= 0; s--) {
        fill(&f->stage[s], add);
        struct pl_checkpoint_source src = source(f, &f->stage[s], slot);
        if (s != without && pl_checkpoint_save_stage(f->dir, s, &src) < 0)
            fail_msg("stage %d: %s", s, pl_error_text());
    }
    struct pl_checkpoint_source src = source(f, &f->stage[0], slot);
    src.params = NULL;
    src.slot = NULL;
    src.split = true;
    src.parts = STAGES;
    return pl_checkpoint_save(f->dir, &src);
}

static void must_save(struct fixture *f, int64_t step, float add)
{
    if (save_split(f, step, add, -1) < 0)
        fail_msg("step %lld: %s", (long long)step, pl_error_text());
}

static void must_load(struct fixture *f, struct piece *p, const char *path, float add)
{
    struct pl_run_state state;
    fill(p, -1e6f);
    if (pl_checkpoint_load(path, p->g, p->o, pl_graph_params(p->g), &state) < 0)
        fail_msg("%s", pl_error_text());
    holds(p, add, 1 + pl_optimizer_slots(p->o));
    assert_int_equal(state.step, f->state.step);
    fill(p, -1e6f);
    if (pl_checkpoint_load_weights(path, p->g, pl_graph_params(p->g)) < 0)
        fail_msg("%s", pl_error_text());
    holds(p, add, 1);
}

static void all_load(struct fixture *f, const char *path, float add)
{
    struct pl_part none = {.name = "compression", .slab = NULL, .own = true};
    must_load(f, &f->whole, path, add);
    for (int s = 0; s < STAGES; s++) {
        must_load(f, &f->stage[s], path, add);
        assert_int_equal(pl_checkpoint_load_part(path, f->stage[s].g, s, STAGES, &none, 1), PL_OK); /* they are no such parts */
    }
}

static char *inside(const struct fixture *f, int64_t step, const char *file) { return pl_strdupf("%s/step-%08lld/%s", f->dir, (long long)step, file); }

static void test_split_and_whole(void **state)
{
    (void)state;
    struct fixture f;
    const float *slot[4];
    open_fixture(&f);
    must_save(&f, 10, 1);
    all_load(&f, f.dir, 1);
    f.state.step = 20; /* and what a whole one wrote, by the stages */
    fill(&f.whole, 3);
    struct pl_checkpoint_source src = source(&f, &f.whole, slot);
    assert_int_equal(pl_checkpoint_save(f.dir, &src), PL_OK);
    all_load(&f, f.dir, 3);
    char *decoy = pl_strdupf("mkdir -p '%s' && cp -r '%s/step-00000010/parts' '%s'", prefix, f.dir, prefix);
    assert_int_equal(system(decoy), 0); /* where HDF5 would look first */
    pl_free(decoy);
    must_save(&f, 30, 5); /* the third: the first goes, with its parts */
    char *first = inside(&f, 10, "");
    assert_int_not_equal(access(first, F_OK), 0);
    pl_free(first);
    all_load(&f, f.dir, 5);
    close_fixture(&f);
}

/* Once it is elsewhere, and seen from elsewhere. */
static void test_moved(void **state)
{
    (void)state;
    struct fixture f;
    char here[4096];
    open_fixture(&f);
    must_save(&f, 10, 1);
    char *to = pl_strdupf("%s-moved", f.dir), *model = pl_strdupf("%s/step-00000010/model.h5", to);
    assert_int_equal(rename(f.dir, to), 0);
    all_load(&f, model, 1);
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(to), 0);
    all_load(&f, "step-00000010", 1);
    all_load(&f, "step-00000010/model.h5", 1);
    assert_int_equal(chdir("step-00000010"), 0);
    all_load(&f, "model.h5", 1);
    assert_int_equal(chdir(here), 0);
    char *folder = pl_strdupf("%s-links", f.dir), *linked = pl_strdupf("%s/best.h5", folder), *from = pl_strdupf("../%s/step-00000010/model.h5", strrchr(to, '/') + 1);
    assert_true(mkdir(folder, 0777) == 0 && symlink(from, linked) == 0);
    all_load(&f, linked, 1);
    pl_free(folder);
    pl_free(linked);
    pl_free(from);
    pl_free(to);
    pl_free(model);
    close_fixture(&f);
}

static void refused(struct fixture *f, const char *path, const char *text)
{
    pl_error_clear();
    assert_int_equal(pl_checkpoint_load_weights(path, f->whole.g, pl_graph_params(f->whole.g)), PL_ERR_CHECKPOINT);
    if (!strstr(pl_error_text(), text))
        fail_msg("wanted \"%s\" in: %s", text, pl_error_text());
    pl_error_clear();
}

static void test_missing(void **state)
{
    (void)state;
    struct fixture f;
    char *found = NULL;
    open_fixture(&f);
    must_save(&f, 10, 1);
    must_save(&f, 20, 2);
    char *model = inside(&f, 20, "model.h5"), *part = inside(&f, 20, "parts/part-00001.h5"), *other = inside(&f, 20, "parts/part-00002.h5");
    assert_int_equal(unlink(part), 0);
    refused(&f, model, "part-00001.h5:/params/b/weight, which cannot be read");
    must_load(&f, &f.stage[0], model, 2); /* whose part is there */
    assert_int_equal(pl_checkpoint_find(f.dir, &found), PL_OK);
    assert_non_null(strstr(found, "step-00000010"));
    must_save(&f, 20, 2);
    FILE *h = fopen(other, "r+");
    assert_int_equal(fseek(h, -9, SEEK_END), 0);
    assert_int_equal(fputc('!', h), '!');
    assert_int_equal(fclose(h), 0);
    pl_free(found);
    assert_int_equal(pl_checkpoint_find(f.dir, &found), PL_OK);
    assert_non_null(strstr(found, "step-00000010"));
    assert_int_equal(truncate(other, 300), 0);
    refused(&f, model, "part-00002.h5:/params/c/weight, which cannot be read");
    pl_free(found);
    pl_free(model);
    pl_free(part);
    pl_free(other);
    close_fixture(&f);
}

/* A stage that did not write: what was whole stays, nothing is left behind. */
static void test_not_written(void **state)
{
    (void)state;
    struct fixture f;
    char *found = NULL;
    open_fixture(&f);
    must_save(&f, 10, 1);
    pl_error_clear();
    assert_int_equal(save_split(&f, 20, 2, 1), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "part-00001.h5"));
    pl_error_clear();
    char *command = pl_strdupf("ls -A '%s' | grep -vxE 'step-00000010|latest' && exit 1 || exit 0", f.dir);
    assert_int_equal(system(command), 0);
    pl_free(command);
    assert_int_equal(pl_checkpoint_find(f.dir, &found), PL_OK);
    f.state.step = 10;
    all_load(&f, found, 1);
    pl_free(found);
    close_fixture(&f);
}

static void test_export(void **state)
{
    (void)state;
    struct fixture f;
    char *text;
    open_fixture(&f);
    must_save(&f, 10, 1);
    char *alone = pl_strdupf("%s-alone.h5", f.dir), *command = pl_strdupf("rm -r '%s'", f.dir);
    if (pl_checkpoint_export(f.dir, alone) < 0)
        fail_msg("%s", pl_error_text());
    assert_int_equal(pl_checkpoint_export(f.dir, alone), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "exists already"));
    assert_int_equal(system(command), 0);
    all_load(&f, alone, 1);
    assert_int_equal(pl_checkpoint_text(alone, "optimizer", &text), PL_OK);
    assert_string_equal(text, "adam");
    pl_error_clear();
    pl_free(command);
    command = pl_strdupf("%s-none/alone.h5", f.dir);
    assert_int_equal(pl_checkpoint_export(alone, command), PL_ERR_CHECKPOINT);
    pl_free(text);
    pl_free(command);
    command = pl_strdupf("ls '%s'* | grep -c writing | grep -qx 0", f.dir);
    assert_int_equal(system(command), 0);
    pl_free(alone);
    pl_free(command);
    close_fixture(&f);
}

int main(void)
{
    snprintf(prefix, sizeof prefix, "%s/decoy-%d", getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : ".", (int)getpid());
    setenv("HDF5_VDS_PREFIX", prefix, 1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_split_and_whole), cmocka_unit_test(test_moved), cmocka_unit_test(test_missing),
                                       cmocka_unit_test(test_not_written), cmocka_unit_test(test_export)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
