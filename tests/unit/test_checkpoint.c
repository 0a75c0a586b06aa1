/* Checkpoints: what is written is read back, damage is named and passed over, a failed write harms nothing
 * that was whole, old ones go, and another model's or optimizer's is refused. */
#include "checkpoint/checkpoint.h"

#include <fcntl.h>
#include <hdf5.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

struct fixture {
    struct pl_job *job;
    const struct pl_backend_table *table;
    struct pl_backend *backend;
    struct pl_graph *g;
    struct pl_optimizer *o;
    struct pl_run_state state;
    char *dir;
    const char *owner;
};

static void open_fixture(struct fixture *f, const char *units, const char *kind, const char *dir)
{
    static int count;
    const char *base = getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : ".";
    char *text = pl_strdupf("model: {name: m, input: {data: [3], label: int}, layers: [{name: d, kind: dense, units: %s}, {name: bn, kind: batchnorm}, {name: loss, kind: softmax_loss}]}\n"
                            "data: {train: {file: none.h5}}\ntrain: {steps: 100, batch: 4, seed: 7}\noptimizer: {kind: %s}\ncheckpoint: {keep: 2, keep_best: true}\n", units, kind);
    *f = (struct fixture){.table = pl_backend_find("reference")};
    pl_error_clear();
    if (pl_job_parse(text, "t.yaml", &f->job) < 0)
        fail_msg("%s", pl_error_text());
    pl_free(text);
    assert_int_equal(f->table->open(&(struct pl_device_options){.threads = 1}, &f->backend), PL_OK);
    assert_int_equal(pl_graph_create(f->job, f->table, f->backend, 4, true, NULL, &f->g), PL_OK);
    assert_int_equal(pl_optimizer_create(f->job, f->g, &f->o), PL_OK);
    f->dir = dir ? pl_strdup(dir) : pl_strdupf("%s/checkpoints-%d-%d", base, (int)getpid(), count++);
    f->state = (struct pl_run_state){.epoch = 1, .position = 234, .train_samples = 1000, .samples_seen = 1234, .seed = 7, .ranks = 3, .best = NAN,
                                     .last_loss = 0.25, .last_accuracy = 0.75, .last_eval_step = -1, .best_step = -1};
}

static void close_fixture(struct fixture *f)
{
    pl_optimizer_destroy(f->o);
    pl_graph_destroy(f->g);
    f->table->close(f->backend);
    pl_job_destroy(f->job);
    pl_free(f->dir);
}

/* Numbers that tell every element of every slab apart, gaps left at 0. */
static void fill(struct fixture *f, float add)
{
    const struct pl_tensor *t;
    int n = pl_graph_tensors(f->g, &t);
    for (int k = 0; k < n; k++)
        for (int64_t i = 0; i < pl_shape_elems(&t[k].param->shape); i++) {
            int64_t at = t[k].param->offset + i;
            pl_graph_params(f->g)[at] = add + (float)at;
            for (int s = 0; s < pl_optimizer_slots(f->o) && !t[k].param->statistic; s++)
                pl_optimizer_slot(f->o, s)[at] = add + (float)at + 1000 * (float)(s + 1);
        }
}

static void clear(struct fixture *f)
{
    size_t bytes = (size_t)pl_graph_elems(f->g) * sizeof(float);
    memset(pl_graph_params(f->g), 0, bytes);
    for (int s = 0; s < pl_optimizer_slots(f->o); s++)
        memset(pl_optimizer_slot(f->o, s), 0, bytes);
}

static pl_status save(struct fixture *f, int64_t step)
{
    const float *slots[2] = {NULL, NULL};
    for (int s = 0; s < pl_optimizer_slots(f->o); s++)
        slots[s] = pl_optimizer_slot(f->o, s);
    f->state.step = step;
    struct pl_checkpoint_source src = {.graph = f->g, .optimizer = f->o, .params = pl_graph_params(f->g), .slot = slots, .state = &f->state, .job = f->job, .owner = f->owner};
    return pl_checkpoint_save(f->dir, &src);
}

static void must_save(struct fixture *f, int64_t step)
{
    if (save(f, step) != PL_OK)
        fail_msg("step %lld: %s", (long long)step, pl_error_text());
}

/* The step of what pl_checkpoint_find gives; -1: none. */
static int64_t found(struct fixture *f)
{
    char *path;
    assert_int_equal(pl_checkpoint_find(f->dir, &path), PL_OK);
    if (!path)
        return -1;
    int64_t step = atoll(strrchr(path, '-') + 1);
    pl_free(path);
    return step;
}

static char *inside(struct fixture *f, int64_t step, const char *file) { return pl_strdupf("%s/step-%08lld%s%s", f->dir, (long long)step, *file ? "/" : "", file); }
static bool exists(struct fixture *f, int64_t step)
{
    struct stat st;
    char *path = inside(f, step, "");
    bool there = stat(path, &st) == 0;
    pl_free(path);
    return there;
}

static void remove_all(struct fixture *f)
{
    char *command = pl_strdupf("chmod -R u+w '%s' 2>/dev/null; rm -rf '%s'", f->dir, f->dir);
    assert_int_equal(system(command), 0);
    pl_free(command);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const char *const kinds[] = {"sgd", "momentum", "adam", "adadelta"};
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        struct fixture f;
        struct pl_run_state back = {0};
        open_fixture(&f, "2", kinds[k], NULL);
        size_t bytes = (size_t)pl_graph_elems(f.g) * sizeof(float);
        float *copy = pl_alloc(bytes, "test"), *slot = pl_alloc(bytes, "test");
        int slots = pl_optimizer_slots(f.o);
        fill(&f, 0.5f);
        memcpy(copy, pl_graph_params(f.g), bytes);
        if (slots > 0)
            memcpy(slot, pl_optimizer_slot(f.o, slots - 1), bytes);
        must_save(&f, 40);
        clear(&f);
        char *path = inside(&f, 40, "");
        assert_int_equal(pl_checkpoint_load(path, f.g, f.o, pl_graph_params(f.g), &back), PL_OK);
        assert_memory_equal(copy, pl_graph_params(f.g), bytes);
        if (slots > 0)
            assert_memory_equal(slot, pl_optimizer_slot(f.o, slots - 1), bytes);
        assert_true(back.step == 40 && back.epoch == 1 && back.position == 234 && back.samples_seen == 1234 && back.seed == 7 && back.ranks == 3);
        assert_true(isnan(back.best) && back.last_loss == 0.25 && back.last_accuracy == 0.75 && back.best_step == -1 && !back.done);
        char *text;
        assert_int_equal(pl_checkpoint_text(path, "job", &text), PL_OK);
        assert_string_equal(text, f.job->text);
        pl_free(text);
        clear(&f);
        assert_int_equal(pl_checkpoint_load_weights(path, f.g, pl_graph_params(f.g)), PL_OK);
        assert_memory_equal(copy, pl_graph_params(f.g), bytes);
        pl_free(path);
        pl_free(copy);
        pl_free(slot);
        remove_all(&f);
        close_fixture(&f);
    }
}

/* One of before the position was kept: it is what the run had seen of the epoch. */
static void test_without_position(void **state)
{
    (void)state;
    struct fixture f;
    struct pl_run_state back = {0};
    open_fixture(&f, "2", "sgd", NULL);
    f.state.epoch = 3, f.state.samples_seen = 3234;
    must_save(&f, 40);
    char *path = inside(&f, 40, "model.h5");
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(H5Adelete_by_name(file, "/run", "position", H5P_DEFAULT) >= 0);
    H5Fclose(file);
    pl_error_clear();
    assert_int_equal(pl_checkpoint_load(path, f.g, f.o, pl_graph_params(f.g), &back), PL_OK);
    assert_true(back.epoch == 3 && back.position == 234);
    assert_null(pl_error_text());
    pl_free(path);
    remove_all(&f);
    close_fixture(&f);
}

static void damage(struct fixture *f, int64_t step, const char *how)
{
    char *model = inside(f, step, "model.h5"), *manifest = inside(f, step, "manifest.json");
    struct stat st;
    assert_int_equal(stat(model, &st), 0);
    if (strcmp(how, "flip") == 0) { /* one bit in the middle */
        FILE *file = fopen(model, "r+b");
        assert_non_null(file);
        fseek(file, st.st_size / 2, SEEK_SET);
        int c = fgetc(file);
        fseek(file, st.st_size / 2, SEEK_SET);
        fputc(c ^ 4, file);
        fclose(file);
    } else if (strcmp(how, "short") == 0) {
        assert_int_equal(truncate(model, st.st_size - 1), 0);
    } else if (strcmp(how, "no model") == 0) {
        assert_int_equal(unlink(model), 0);
    } else if (strcmp(how, "no manifest") == 0) {
        assert_int_equal(unlink(manifest), 0);
    } else {
        assert_int_equal(truncate(manifest, 10), 0);
    }
    pl_free(model);
    pl_free(manifest);
}

static void test_damage(void **state)
{
    (void)state;
    static const char *const ways[] = {"flip", "short", "no model", "no manifest", "half a manifest"};
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        struct fixture f;
        open_fixture(&f, "2", "momentum", NULL);
        assert_int_equal(found(&f), -1);
        fill(&f, 1);
        must_save(&f, 10);
        must_save(&f, 20);
        assert_int_equal(found(&f), 20);
        damage(&f, 20, ways[w]);
        if (found(&f) != 10)
            fail_msg("%s: the checkpoint before it was not taken", ways[w]);
        char *path = inside(&f, 20, ""), *other = NULL;
        if (strcmp(ways[w], "no manifest") != 0)
            assert_int_equal(pl_checkpoint_find(path, &other), PL_ERR_CHECKPOINT); /* asked for by name: no other is taken */
        pl_error_clear();
        pl_free(path);
        must_save(&f, 20); /* a damaged one gives way */
        assert_int_equal(found(&f), 20);
        remove_all(&f);
        close_fixture(&f);
    }
}

static void test_failed_write(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, "2", "momentum", NULL);
    fill(&f, 1);
    must_save(&f, 10);
    assert_int_equal(pl_fault_configure("checkpoint.write:fail", 0), PL_OK);
    assert_int_equal(save(&f, 20), PL_ERR_CHECKPOINT);
    pl_fault_configure("", 0);
    pl_error_clear();
    assert_int_equal(found(&f), 10);
    assert_false(exists(&f, 20));
    /* A leftover of a killed writer is no checkpoint and goes with the next one. */
    char host[64] = "";
    struct stat st;
    gethostname(host, sizeof host - 1);
    char *leftover = pl_strdupf("%s/.writing-999999999-%s", f.dir, host), *half = pl_strdupf("%s/model.h5", leftover);
    char *alive = pl_strdupf("%s/.writing-%d-%s", f.dir, (int)getppid(), host); /* of a writer that lives */
    assert_int_equal(mkdir(alive, 0777), 0);
    assert_int_equal(mkdir(leftover, 0777), 0);
    FILE *file = fopen(half, "w");
    assert_non_null(file);
    fclose(file);
    assert_int_equal(found(&f), 10);
    must_save(&f, 20);
    assert_int_equal(found(&f), 20);
    assert_int_not_equal(stat(leftover, &st), 0);
    assert_int_equal(stat(alive, &st), 0);
    pl_free(alive);
    pl_free(leftover);
    pl_free(half);
    /* A file where the directory should be. */
    char *dir = f.dir;
    f.dir = pl_strdupf("%s/latest/below", dir);
    assert_int_equal(pl_checkpoint_probe(f.dir), PL_ERR_CHECKPOINT);
    assert_int_equal(save(&f, 30), PL_ERR_CHECKPOINT);
    pl_error_clear();
    pl_free(f.dir);
    f.dir = dir;
    remove_all(&f);
    close_fixture(&f);
}

static void test_retention(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, "2", "momentum", NULL);
    fill(&f, 1);
    f.state.best_step = 10;
    for (int64_t step = 10; step <= 50; step += 10)
        must_save(&f, step);
    assert_true(exists(&f, 10) && !exists(&f, 20) && !exists(&f, 30) && exists(&f, 40) && exists(&f, 50));
    char *latest = pl_strdupf("%s/latest", f.dir), *text;
    size_t bytes;
    assert_int_equal(pl_read_file(latest, "test", PL_ERR_DATA, &text, &bytes), PL_OK);
    assert_string_equal(text, "step-00000050\n");
    pl_free(text);
    pl_free(latest);
    must_save(&f, 123456789); /* more digits than the name has places */
    assert_int_equal(found(&f), 123456789);
    remove_all(&f);
    close_fixture(&f);
}

static void test_branches(void **state)
{
    (void)state;
    struct fixture f;
    struct pl_run_state back;
    open_fixture(&f, "2", "momentum", NULL);
    fill(&f, 1);
    must_save(&f, 10);
    must_save(&f, 40);
    must_save(&f, 50);
    /* From 10 it goes another way: the newest is what was written last, and what was further stays. */
    fill(&f, 2);
    must_save(&f, 20);
    assert_int_equal(found(&f), 20);
    must_save(&f, 40); /* replaces the other way's */
    assert_int_equal(found(&f), 40);
    assert_true(exists(&f, 20) && exists(&f, 40) && exists(&f, 50));
    float wanted = pl_graph_params(f.g)[0];
    char *path = inside(&f, 40, "");
    clear(&f);
    assert_int_equal(pl_checkpoint_load(path, f.g, f.o, pl_graph_params(f.g), &back), PL_OK);
    assert_true(pl_graph_params(f.g)[0] == wanted);
    pl_free(path);
    /* With its own gone, the other way's is better than none. */
    damage(&f, 40, "flip");
    assert_int_equal(found(&f), 20);
    damage(&f, 20, "flip");
    assert_int_equal(found(&f), 50);
    /* Killed between the rename and `latest`: the newest counts. */
    must_save(&f, 60);
    char *latest = pl_strdupf("%s/latest", f.dir);
    struct timespec long_ago[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    FILE *file = fopen(latest, "w");
    assert_non_null(file);
    fputs("step-00000050\n", file);
    fclose(file);
    assert_int_equal(utimensat(AT_FDCWD, latest, long_ago, 0), 0);
    assert_int_equal(found(&f), 60);
    pl_free(latest);
    /* A file in the way is somebody else's: refused, and left. */
    char *name = inside(&f, 70, "");

    file = fopen(name, "w");
    assert_non_null(file);
    fclose(file);
    assert_int_equal(save(&f, 70), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "stands in the way"));
    pl_error_clear();
    pl_free(name);
    /* So is a file in a checkpoint's directory: the checkpoint is replaced, the file stays. */
    struct stat st;
    char *note = inside(&f, 60, "note.txt"), *kept = pl_strdupf("%s/step-00000060.replaced/note.txt", f.dir);
    file = fopen(note, "w");
    assert_non_null(file);
    fclose(file);
    must_save(&f, 60);
    assert_int_equal(found(&f), 60);
    assert_int_equal(stat(kept, &st), 0);
    pl_free(note);
    pl_free(kept);
    remove_all(&f);
    close_fixture(&f);
}

/* What differs is named: a tensor's shape, the optimizer, the structure. */
static void test_other_model(void **state)
{
    (void)state;
    struct fixture f, other;
    struct pl_run_state back;
    open_fixture(&f, "2", "momentum", NULL);
    fill(&f, 1);
    must_save(&f, 10);
    char *path = inside(&f, 10, "");
    open_fixture(&other, "5", "momentum", f.dir);
    pl_error_clear();
    assert_int_equal(pl_checkpoint_load(path, other.g, other.o, pl_graph_params(other.g), &back), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "of another model: /params/d/weight is [2, 3], this job's is [5, 3]"));
    close_fixture(&other);
    open_fixture(&other, "2", "adam", f.dir);
    pl_error_clear();
    assert_int_equal(pl_checkpoint_load(path, other.g, other.o, pl_graph_params(other.g), &back), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "was trained with optimizer.kind momentum, the job says adam"));
    close_fixture(&other);
    pl_error_clear();
    pl_free(path);
    remove_all(&f);
    close_fixture(&f);
}

/* The writer's thread takes a copy: what is changed after the call does not reach the file. */
static void test_writer(void **state)
{
    (void)state;
    struct fixture f;
    struct pl_checkpoint_writer *w;
    struct pl_run_state back;
    open_fixture(&f, "2", "momentum", NULL);
    size_t bytes = (size_t)pl_graph_elems(f.g) * sizeof(float);
    float *copy = pl_alloc(bytes, "test");
    assert_int_equal(pl_checkpoint_writer_create(f.dir, &(struct pl_checkpoint_source){.graph = f.g, .optimizer = f.o, .job = f.job}, &w), PL_OK);
    fill(&f, 3);
    memcpy(copy, pl_graph_params(f.g), bytes);
    f.state.step = 5;
    assert_int_equal(pl_checkpoint_writer_save(w, pl_graph_params(f.g), &f.state), PL_OK);
    clear(&f);
    assert_int_equal(pl_checkpoint_writer_finish(w), PL_OK);
    char *path = inside(&f, 5, "");
    assert_int_equal(pl_checkpoint_load(path, f.g, f.o, pl_graph_params(f.g), &back), PL_OK);
    assert_memory_equal(copy, pl_graph_params(f.g), bytes);
    pl_free(path);
    /* An error of the thread comes out at the next call, and only then does the message stand. */
    assert_int_equal(pl_fault_configure("checkpoint.write:fail", 0), PL_OK);
    f.state.step = 6;
    assert_int_equal(pl_checkpoint_writer_save(w, pl_graph_params(f.g), &f.state), PL_OK);
    assert_int_equal(pl_checkpoint_writer_finish(w), PL_ERR_CHECKPOINT);
    pl_fault_configure("", 0);
    pl_error_clear();
    pl_checkpoint_writer_destroy(w);
    pl_free(copy);
    remove_all(&f);
    close_fixture(&f);
}

/* Every element of rank r's slab s is r + 1 + 10 s; padding and statistics stay 0. */
static void fill_part(struct fixture *f, float *slab, float value)
{
    const struct pl_tensor *t;
    int n = pl_graph_tensors(f->g, &t);
    memset(slab, 0, (size_t)pl_graph_elems(f->g) * sizeof *slab);
    for (int k = 0; k < n; k++)
        for (int64_t i = 0; i < pl_shape_elems(&t[k].param->shape) && !t[k].param->statistic; i++)
            slab[t[k].param->offset + i] = value;
}

static void wants(struct fixture *f, const float *slab, float value, const char *what)
{
    float *wanted = pl_alloc((size_t)pl_graph_elems(f->g) * sizeof *wanted, "test");
    fill_part(f, wanted, value);
    for (int64_t i = 0; i < pl_graph_elems(f->g); i++)
        if (slab[i] != wanted[i])
            fail_msg("%s: element %lld is %g, wanted %g", what, (long long)i, slab[i], wanted[i]);
    pl_free(wanted);
}

/* Slabs that differ by rank: each rank's own comes back, on other ranks the mean or the shared sum, and where all need
 * the same the mean; what is not there is left alone. */
static void test_parts(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, "2", "adam", NULL);
    size_t bytes = (size_t)pl_graph_elems(f.g) * sizeof(float);
    float *slab[3];
    for (int i = 0; i < 3; i++)
        slab[i] = pl_alloc(bytes, "test");
    struct pl_part part[] = {{"compression", slab[0], true, false}, {"optimizer/moment1", slab[1], true, true}, {"optimizer/moment2", slab[2], false, true}};
    fill(&f, 1);
    f.state.step = 4;
    for (int r = 0; r < 4; r++) {
        fill_part(&f, slab[0], (float)r + 1);
        fill_part(&f, slab[1], (float)r + 11);
        assert_int_equal(pl_checkpoint_save_part(f.dir, 4, r, f.g, part, 3), PL_OK);
    }
    const float *slots[2] = {pl_optimizer_slot(f.o, 0), pl_optimizer_slot(f.o, 1)};
    struct pl_checkpoint_source src = {.graph = f.g, .optimizer = f.o, .params = pl_graph_params(f.g), .slot = slots, .state = &f.state, .job = f.job, .parts = 4};
    if (pl_checkpoint_save(f.dir, &src) != PL_OK)
        fail_msg("%s", pl_error_text());
    char *path = inside(&f, 4, "");
    fill_part(&f, slab[2], 99);
    assert_int_equal(pl_checkpoint_load_part(path, f.g, 2, 4, part, 3), PL_OK);
    wants(&f, slab[0], 3, "rank 2's own residual");
    wants(&f, slab[1], 13, "rank 2's own moment");
    wants(&f, slab[2], 99, "a moment that was not its own");
    assert_int_equal(pl_checkpoint_load_part(path, f.g, 0, 2, part, 3), PL_OK);
    wants(&f, slab[0], 5, "half of the residuals");
    wants(&f, slab[1], 12.5f, "the mean of the moments on two ranks");
    part[1].own = false;
    assert_int_equal(pl_checkpoint_load_part(path, f.g, 1, 4, part, 3), PL_OK);
    wants(&f, slab[0], 2, "rank 1's own residual");
    wants(&f, slab[1], 12.5f, "the mean of the moments where all need the same");
    part[0].slab = NULL;
    assert_int_equal(pl_checkpoint_load_part(path, f.g, 1, 4, part, 3), PL_END);
    pl_free(path);
    must_save(&f, 5); /* without parts */
    path = inside(&f, 5, "");
    fill_part(&f, slab[1], 7);
    assert_int_equal(pl_checkpoint_load_part(path, f.g, 1, 4, part, 3), PL_OK);
    wants(&f, slab[1], 7, "a moment of a checkpoint without parts");
    pl_free(path);
    for (int i = 0; i < 3; i++)
        pl_free(slab[i]);
    remove_all(&f);
    close_fixture(&f);
}

/* The older of two runs in one directory commits nothing more, and the newer one is not hindered. */
static void test_two_runs(void **state)
{
    (void)state;
    struct fixture f;
    char older[PL_OWNER_BYTES], newer[PL_OWNER_BYTES];
    open_fixture(&f, "2", "momentum", NULL);
    f.owner = "nobody has said whose it is";
    must_save(&f, 1);
    assert_int_equal(pl_checkpoint_own(f.dir, older), PL_OK);
    f.owner = older;
    must_save(&f, 2);
    assert_int_equal(pl_checkpoint_own(f.dir, newer), PL_OK);
    assert_string_not_equal(older, newer);
    assert_int_equal(save(&f, 3), PL_ERR_CHECKPOINT);
    assert_non_null(strstr(pl_error_text(), "another run has begun here since"));
    assert_non_null(strstr(pl_error_text(), newer));
    pl_error_clear();
    assert_false(exists(&f, 3));
    assert_int_equal(found(&f), 2);
    f.owner = newer;
    must_save(&f, 3);
    assert_int_equal(found(&f), 3);
    char *path = pl_strdupf("%s/owner", f.dir);
    assert_int_equal(unlink(path), 0);
    assert_true(pl_checkpoint_owned(f.dir, older));
    pl_free(path);
    remove_all(&f);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_without_position), cmocka_unit_test(test_damage), cmocka_unit_test(test_failed_write),
                                       cmocka_unit_test(test_retention), cmocka_unit_test(test_branches), cmocka_unit_test(test_other_model), cmocka_unit_test(test_writer), cmocka_unit_test(test_parts), cmocka_unit_test(test_two_runs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
