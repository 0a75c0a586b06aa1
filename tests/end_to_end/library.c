/* A program of somebody else's, by the public header alone: trains job.yaml on train.bin and test.bin, then runs what was trained.
 * library CASE [KEY=VALUE ...]; -DWITH_MPI: it has started MPI itself. */
#include <paceline/paceline.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef WITH_MPI
#include <mpi.h>
#endif

#define SAMPLE 144 /* 1 x 12 x 12 */

static int64_t reports, evaluations, last_step;
static double last_loss;

static void *read_all(const char *path, int64_t *bytes)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        exit(99);
    *bytes = ftell(f);
    rewind(f);
    void *p = malloc((size_t)*bytes + 1);
    if (!p || fread(p, 1, (size_t)*bytes, f) != (size_t)*bytes)
        exit(99);
    fclose(f);
    return p;
}

/* The set in NAME.data (uint8) and NAME.label (int32); the arrays are freed before they are used: they must have been copied. */
static int give(struct paceline *p, struct paceline_job *j, const char *name, const char *what)
{
    char path[64];
    int64_t bytes, n, classes;
    snprintf(path, sizeof path, "%s.data", name);
    unsigned char *data = read_all(path, &bytes);
    snprintf(path, sizeof path, "%s.label", name);
    int32_t *label = read_all(path, &classes);
    n = bytes / SAMPLE;
    int64_t dim[4] = {n, 1, 12, 12};
    if (strcmp(what, "differ") == 0 && paceline_rank(p) == 1)
        data[bytes - 1] ^= 1;
    if (strcmp(what, "one") == 0)
        label[0] ^= 1;
    if (strcmp(what, "label") == 0)
        label[n - 1] = 4;
    if (strcmp(what, "short") == 0)
        n--;
    if (strcmp(what, "shape") == 0)
        dim[2] = 6, dim[3] = 24;
    const int other = strcmp(what, "types") == 0 && paceline_rank(p) == 1; /* the same bytes */
    struct paceline_array x = {other ? PACELINE_INT8 : PACELINE_UINT8, 4, dim, data}, y = {PACELINE_INT32, 1, &n, label};
    int code = paceline_job_data(j, strcmp(what, "name") == 0 ? "valid" : name, &x, strcmp(what, "unlabelled") == 0 ? NULL : &y);
    memset(data, 0, (size_t)bytes);
    free(data);
    free(label);
    return code;
}

static volatile sig_atomic_t signals;
static void on_signal(int number)
{
    signal(number, on_signal); /* in C99 it is reset */
    signals++;
}

static const char *what_to_do; /* the case */

static void hear(void *arg, const struct paceline_report *r)
{
    if (*(int *)arg != 7 || r->step > r->steps)
        exit(98);
    reports++;
    evaluations += r->evaluation;
    last_step = r->step;
    if (r->evaluation && r->step == r->steps && strcmp(what_to_do, "late") == 0)
        raise(SIGUSR1); /* nothing is left that could be stopped */
    if (r->evaluation)
        last_loss = r->loss;
    else if (!(r->samples_per_s > 0))
        exit(97);
}

static int train(struct paceline *p, const char *what, int keys, const char *const *key, struct paceline_job **job)
{
    int seven = 7, code, late = strcmp(what, "late") == 0;
    void (*before)(int) = late ? on_signal : SIG_DFL;
    *job = NULL;
    signal(SIGUSR1, before);
    signals = 0;
    if (strcmp(what, "text") == 0) {
        int64_t bytes;
        char *text = read_all("whole.yaml", &bytes);
        text[bytes] = '\0';
        code = paceline_job_parse(p, text, job);
        free(text);
    } else {
        code = paceline_job_read(p, "job.yaml", keys, key, job);
    }
    if (code == 0)
        code = give(p, *job, "train", what);
    if (code == 0 && strcmp(what, "untested") != 0)
        code = give(p, *job, "test", "");
    if (code == 0)
        code = paceline_train(p, *job, hear, &seven);
    if (signal(SIGUSR1, SIG_DFL) != before || signals != (late && paceline_rank(p) == 0))
        exit(92); /* it has been given back, and with it what came too late */
    return code;
}

/* What the network gives for test.data, in two parts, to RANK.out. */
static int run(struct paceline *p, struct paceline_model *m)
{
    char path[64];
    int64_t bytes;
    int code = 0;
    unsigned char *data = read_all("test.data", &bytes);
    int64_t n = bytes / SAMPLE, outputs = paceline_model_outputs(m);
    float *out = malloc((size_t)(n * outputs) * sizeof *out);
    for (int64_t from = 0, to = 5; code == 0 && from < n; from = to, to = n) {
        int64_t dim[4] = {to - from, 1, 12, 12};
        struct paceline_array x = {PACELINE_UINT8, 4, dim, data + from * SAMPLE};
        code = paceline_model_run(m, &x, out + from * outputs);
    }
    snprintf(path, sizeof path, "%d.out", paceline_rank(p));
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(out, sizeof *out, (size_t)(n * outputs), f) != (size_t)(n * outputs) || fclose(f) != 0)
        exit(99);
    int64_t wrong[4] = {5, 1, 12, 13};
    struct paceline_array x = {PACELINE_UINT8, 4, wrong, data};
    if (code == 0 && (paceline_model_run(m, &x, out) != PACELINE_DATA || !strstr(paceline_message(), "wanted [N, 1, 12, 12]")))
        exit(96);
    free(data);
    free(out);
    return code;
}

int main(int argc, char **argv)
{
    struct paceline *p, *second;
    struct paceline_job *job;
    struct paceline_model *m = NULL;
    const char *what = argc > 1 ? argv[1] : "";
    what_to_do = what;
#ifdef WITH_MPI
    int level, size, sum = 0, one = 1;
    MPI_Init_thread(&argc, &argv, strcmp(what, "single") == 0 ? MPI_THREAD_SINGLE : MPI_THREAD_MULTIPLE, &level);
#endif
    int code = paceline_open(&p);
    if (code != 0) {
        fprintf(stdout, "code %d: %s\n", code, paceline_message());
        return code;
    }
    if (paceline_open(&second) != PACELINE_USAGE || second)
        return 95;
    code = train(p, what, argc - 2, (const char *const *)argv + 2, &job);
    if (code == 0 && strcmp(what, "untested") != 0)
        code = paceline_model_open(p, job, strcmp(what, "lost") == 0 ? "nowhere" : NULL, &m);
    if (code == 0 && strcmp(what, "again") == 0) { /* another job in the same process, while there is the model of the first */
        const char *other[] = {"checkpoint.dir=other", "report.dir=none", "train.threads=2", "optimizer.kind=adam", "optimizer.lr=0.001", "train.threads=3"};
        struct paceline_job *next;
        code = train(p, "", 5, other, &next);
        paceline_job_close(next);
        if (train(p, "", 6, other, &next) != PACELINE_USAGE || (paceline_message()[0] && !strstr(paceline_message(), "train.threads")))
            return 93;
        paceline_job_close(next);
    }
    if (code == 0 && m)
        code = run(p, m);
    if (code != 0 && paceline_message()[0])
        fprintf(stdout, "rank %d of %d, code %d: %s\n", paceline_rank(p), paceline_ranks(p), code, paceline_message());
    else if (code == 0 && paceline_rank(p) == 0)
        fprintf(stdout, "code %d, %lld reports, %lld evaluations, step %lld, loss %.6f\n", code, (long long)reports, (long long)evaluations, (long long)last_step, last_loss);
    paceline_model_close(m);
    paceline_job_close(job);
    paceline_close(p);
#ifdef WITH_MPI
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD) != MPI_SUCCESS || sum != size)
        return 94;
    MPI_Finalize();
#endif
    return code;
}
