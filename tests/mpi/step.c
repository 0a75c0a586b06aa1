/* A step after the warm-up allocates nothing, on whatever ranks it is started with: malloc and its family
 * are counted while the main thread is inside a step, whoever calls them there (us, BLAS, libgomp), but for
 * oneDNN, which makes itself a small map of arguments whenever a primitive is executed. */
#include "made_up.h"

#include <dlfcn.h>
#include <errno.h>

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

static void fill(struct made_up *m, const struct made_up_asked *asked)
{
    (void)asked;
    made_up_noise(m, pl_rng_make(1, (uint64_t)m->t.world->rank, 0, 0), m->t.batch - 1);
}

static int steps_of(struct pl_world *w, const char *model, const char *threads, const char *two_level, const char *sync, const char *precision)
{
    struct made_up m = {.fill = fill};
    struct pl_step_result r;
    char *key[] = {(char *)threads, "train.global_batch=24", "optimizer.clip_norm=1", "exchange.bucket_mb=0.1", (char *)two_level, (char *)sync, (char *)precision};
    made_up_open(&m, w, made_up_job(model, sizeof key / sizeof *key, key), model);
    m.t.steps_per_epoch = m.t.total_steps = 100;
    count = 0;
    for (int i = 0; i < 10; i++) {
        counting = i >= 4;
        made_up_step(&m, &r);
        counting = false;
    }
    printf("rank %d, %s, %s, %s, %s, %s: %d allocations in 6 steps\n", w->rank, model, threads, two_level, sync, precision, count);
    made_up_close(&m);
    return count;
}

static int steps_in_bf16(struct pl_world *w, const char *sync)
{
    static const char *const models[] = {"lenet/mnist", "mlp/mnist", "cifar10/resnet20"}, bf16[] = "train.precision=bf16";
    char has[512];
    int bad = 0;
    pl_backend_cpu_describe(has, sizeof has);
    if (strstr(has, "no bf16")) {
        printf("rank %d: not counted in bf16: %s\n", w->rank, has);
        return 0;
    }
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        bad += steps_of(w, models[m], "train.threads=1", "exchange.two_level=auto", sync, bf16);
        bad += steps_of(w, models[m], "train.threads=2", "exchange.two_level=auto", sync, bf16);
    }
    return bad;
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
    static const char all[] = "sync={kind: allreduce}", local[] = "sync={kind: local_sgd, tau: 2, average_momentum: true}", fp32[] = "train.precision=fp32";
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        bad += steps_of(&w, models[m], "train.threads=1", "exchange.two_level=auto", all, fp32);
        bad += steps_of(&w, models[m], "train.threads=2", "exchange.two_level=auto", all, fp32);
        bad += steps_of(&w, models[m], "train.threads=1", "exchange.two_level=never", all, fp32);
    }
    bad += steps_of(&w, models[0], "train.threads=2", "exchange.two_level=auto", local, fp32);
    bad += steps_of(&w, models[0], "train.threads=1", "exchange.two_level=never", local, fp32);
    bad += steps_of(&w, models[0], "train.threads=1", "exchange.two_level=auto", "split={pipeline: 2}", fp32);
    bad += steps_of(&w, models[2], "train.threads=2", "exchange.two_level=auto", "split={pipeline: 2, microbatches: 3}", fp32);
    bad += steps_of(&w, models[2], "train.threads=2", "exchange.two_level=auto", "train.reproducible=true", fp32);
    bad += steps_of(&w, models[2], "train.threads=2", "exchange.two_level=auto", "train.sync_bn=true", fp32);
    bad += steps_of(&w, models[2], "train.threads=1", "exchange.transport=tcp", "train.sync_bn=true", fp32); /* over mpi MPI allocates, here in the main thread */
    bad += steps_in_bf16(&w, all);
    int code = pl_world_finish(&w, PL_OK);
    return bad ? 1 : code;
}
