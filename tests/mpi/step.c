/* A step after the warm-up allocates nothing, on whatever ranks it is started with: malloc and its family
 * are counted while the main thread is inside a step, whoever calls them there (us, BLAS, libgomp), but for
 * oneDNN, which makes itself a small map of arguments whenever a primitive is executed. */
#include "train/train.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static _Thread_local bool counting;
static _Thread_local int count;

static void note(const void *caller)
{
    Dl_info i;
    if (!counting)
        return;
    counting = false; /* dladdr itself */
    bool known = dladdr(caller, &i) != 0 && i.dli_fname;
    if (!known || (!strstr(i.dli_fname, "libstdc++") && !strstr(i.dli_fname, "libdnnl")))
        count++;
    counting = true;
}
void *malloc(size_t n) { note(__builtin_return_address(0)); return __libc_malloc(n); }
void *calloc(size_t n, size_t size) { note(__builtin_return_address(0)); return __libc_calloc(n, size); }
void *realloc(void *p, size_t n) { note(__builtin_return_address(0)); return __libc_realloc(p, n); }
void *memalign(size_t align, size_t n) { note(__builtin_return_address(0)); return __libc_memalign(align, n); }
void *aligned_alloc(size_t align, size_t n) { note(__builtin_return_address(0)); return __libc_memalign(align, n); }
int posix_memalign(void **p, size_t align, size_t n)
{
    note(__builtin_return_address(0));
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}

static struct pl_batch batch;
static pl_status next(void *arg, struct pl_batch **out)
{
    (void)arg;
    *out = &batch;
    return PL_OK;
}
static void release(void *arg, struct pl_batch *b) { (void)arg, (void)b; }

static void fill_batch(const struct pl_trainer *t)
{
    struct pl_rng r = pl_rng_make(1, (uint64_t)t->world->rank, 0, 0);
    int64_t row = 1;
    for (int d = 0; d < t->job->input.dims; d++)
        row *= t->job->input.dim[d];
    batch = (struct pl_batch){.rows = t->batch - 1, .capacity = t->batch};
    batch.data = pl_alloc((size_t)(t->batch * row) * sizeof(float), "test");
    batch.label = pl_alloc((size_t)t->batch * sizeof(int32_t), "test");
    batch.index = pl_alloc((size_t)t->batch * sizeof(int64_t), "test");
    pl_rng_normals(&r, batch.data, batch.rows * row);
    for (int64_t i = 0; i < batch.rows; i++)
        ((int32_t *)batch.label)[i] = (int32_t)pl_rng_below(&r, 10);
}

static int steps_of(struct pl_world *w, const char *model, const char *threads, const char *two_level, const char *sync)
{
    struct pl_trainer t;
    struct pl_job *job;
    struct pl_step_result r;
    char *path = pl_strdupf("%s/models/%s.yaml", getenv("PL_SOURCE_DIR"), model);
    char *over[] = {(char *)threads, "train.global_batch=24", "optimizer.clip_norm=1", "exchange.bucket_mb=0.1", (char *)two_level, (char *)sync};
    pl_status s = pl_job_read(path, 6, over, &job);
    if (s < 0 || (s = pl_trainer_open(&t, w, job, true)) < 0) {
        fprintf(stderr, "%s: %s\n", model, pl_error_text());
        exit(1);
    }
    fill_batch(&t);
    s = pl_graph_init(t.graph, 1);
    t.source = (struct pl_source){.next = next, .release = release, .epoch_samples = INT64_MAX};
    t.steps_per_epoch = t.total_steps = 100;
    count = 0;
    for (int i = 0; i < 10 && s == PL_OK; i++) {
        counting = i >= 4;
        s = pl_trainer_step(&t, &r);
        counting = false;
    }
    if (s < 0)
        pl_world_abort(w, s);
    printf("rank %d, %s, %s, %s, %s: %d allocations in 6 steps\n", w->rank, model, threads, two_level, sync, count);
    pl_free(batch.data);
    pl_free(batch.label);
    pl_free(batch.index);
    pl_trainer_close(&t);
    pl_job_destroy(job);
    pl_free(path);
    return count;
}

int main(int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(&argc, &argv, &w);
    if (s < 0)
        return pl_world_finish(&w, s);
    static const char *const models[] = {"lenet/mnist", "cifar10/full", "cifar10/resnet20"};
    int bad = 0;
    free(malloc(1)); /* the counter works */
    counting = true;
    count = 0;
    void *volatile p = malloc(1);
    counting = false;
    free(p);
    bad += count != 1;
    static const char all[] = "sync={kind: allreduce}", local[] = "sync={kind: local_sgd, tau: 2, average_momentum: true}";
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        bad += steps_of(&w, models[m], "train.threads=1", "exchange.two_level=auto", all);
        bad += steps_of(&w, models[m], "train.threads=2", "exchange.two_level=auto", all);
        bad += steps_of(&w, models[m], "train.threads=1", "exchange.two_level=never", all);
    }
    bad += steps_of(&w, models[0], "train.threads=2", "exchange.two_level=auto", local);
    bad += steps_of(&w, models[0], "train.threads=1", "exchange.two_level=never", local);
    int code = pl_world_finish(&w, PL_OK);
    return bad ? 1 : code;
}
