/* metrics.jsonl and the lines for people: one JSON object a line, appended, numbers that are not finite left
 * out, texts escaped; a file that cannot be written does not end a run. */
#include "report/report.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static char *directory(void)
{
    static int count;
    return pl_strdupf("%s/report-%d-%d", getenv("PL_TMPDIR") ? getenv("PL_TMPDIR") : ".", (int)getpid(), count++);
}

static char *metrics(const char *dir)
{
    char *path = pl_strdupf("%s/metrics.jsonl", dir), *text = NULL;
    size_t bytes;
    if (pl_read_file(path, "test", PL_ERR_DATA, &text, &bytes) != PL_OK)
        fail_msg("%s", pl_error_text());
    pl_free(path);
    return text;
}

/* What f writes to stderr, into text. */
static void with_stderr(void (*f)(void *), void *arg, char *text, size_t bytes)
{
    FILE *file = tmpfile();
    int old = dup(STDERR_FILENO);
    assert_non_null(file);
    dup2(fileno(file), STDERR_FILENO);
    f(arg);
    dup2(old, STDERR_FILENO);
    close(old);
    rewind(file);
    text[fread(text, 1, bytes - 1, file)] = '\0';
    fclose(file);
}

static void a_run(void *arg)
{
    const char *dir = arg;
    struct pl_report *r;
    assert_int_equal(pl_report_open(dir, true, 100, 2, &r), PL_OK);
    struct pl_report_start start = {.ranks = 2, .threads = 1, .device = "a \"quoted\"\ndevice\\", .backend = "cpu", .transport = "mpi",
                                    .algorithm = "native", .why = "so", .model = "m", .sync = "local_sgd", .tau = 50, .parameters = 12, .batch = 4, .global_batch = 8, .train_samples = 400};
    pl_report_start(r, &start);
    struct pl_report_step step = {.step = 50, .epoch = 0, .loss = 0.123456789012, .total_loss = NAN, .accuracy = NAN, .lr = 0.1, .samples_per_s = 1000, .step_ms = 2,
                                  .data_ms = INFINITY, .grad_norm = NAN, .sent_mb = NAN, .saved_mb = NAN};
    pl_report_step(r, &step);
    step.late = "2, 5";
    step.sent_mb = 1.5;
    step.saved_mb = 46.5;
    step.accuracy = 0.5;
    step.local_steps = 50;
    step.total_loss = 0.25;
    pl_report_step(r, &step);
    pl_report_progress(r, &step); /* no terminal: nothing */
    pl_report_eval(r, 50, 0, "test", 0.5, 0.75, NAN, 30);
    pl_report_checkpoint(r, 50, "dir/step", 3);
    pl_report_resume(r, 50, "dir/step");
    pl_report_say(r, "%d words", 2);
    pl_report_end(r, 100, "done", 2, 800, NULL);
    pl_report_close(r);
}

static void test_events(void **state)
{
    (void)state;
    char *dir = directory(), people[8192];
    with_stderr(a_run, dir, people, sizeof people);
    char *text = metrics(dir);
    static const char *const wanted[] = {
        "{\"event\": \"start\", \"version\": \"" PL_VERSION "\", \"model\": \"m\", \"ranks\": 2, \"threads\": 1, \"device\": \"a \\\"quoted\\\"\\u000adevice\\\\\", \"backend\": \"cpu\", \"transport\": \"mpi\", \"algorithm\": \"native\", \"why\": \"so\", \"sync\": \"local_sgd\", \"tau\": 50, \"average\": \"parameters\", \"parameters\": 12, \"batch\": 4, \"global_batch\": 8, \"train_samples\": 400, \"test_samples\": 0}\n",
        "{\"event\": \"step\", \"step\": 50, \"epoch\": 0, \"loss\": 0.123456789, \"lr\": 0.1, \"samples_per_s\": 1000, \"step_ms\": 2, \"compute_ms\": 0, \"exchange_ms\": 0, \"exchange_total_ms\": 0, \"update_ms\": 0}\n",
        "\"epoch\": 0, \"local_steps\": 50, \"loss\": 0.123456789, \"total_loss\": 0.25, \"accuracy\": 0.5, ",
        "\"sent_mb\": 1.5, \"saved_mb\": 46.5, \"late\": \"2, 5\"}\n",
        "{\"event\": \"eval\", \"step\": 50, \"epoch\": 0, \"set\": \"test\", \"loss\": 0.5, \"accuracy\": 0.75, \"samples\": 30}\n",
        "{\"event\": \"checkpoint\", \"step\": 50, \"path\": \"dir/step\", \"ms\": 3}\n",
        "{\"event\": \"resume\", \"step\": 50, \"path\": \"dir/step\"}\n",
        "{\"event\": \"end\", \"step\": 100, \"reason\": \"done\", \"seconds\": 2, \"samples\": 800}\n"};
    const char *at = text;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const char *found = strstr(at, wanted[i]);
        if (!found)
            fail_msg("no\n%sin\n%s", wanted[i], at);
        at = found + strlen(wanted[i]);
    }
    assert_true(*at == '\0');
    static const char *const lines[] = {"epoch 1/2  step 50/100  loss 0.1235  1000 samples/s", "accuracy 0.5000", "late: 2, 5",
                                        "step 50: test loss 0.5000, accuracy 0.7500 (30 samples)\n", "continuing at step 50 from dir/step\n", "2 words\n",
                                        "done at step 100 after 2.0 s, 400 samples/s\n"};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        if (!strstr(people, lines[i]))
            fail_msg("no \"%s\" in\n%s", lines[i], people);
    assert_null(strchr(people, '\r')); /* no terminal, no line that is written over */

    /* A second life appends. */
    size_t before = strlen(text);
    with_stderr(a_run, dir, people, sizeof people);
    char *both = metrics(dir);
    assert_true(strlen(both) == 2 * before && strncmp(both, text, before) == 0 && strcmp(both + before, text) == 0);
    pl_free(text);
    pl_free(both);
    pl_free(dir);
}

static void a_silent_run(void *arg)
{
    struct pl_report *r;
    struct pl_report_step step = {.step = 1};
    assert_int_equal(pl_report_open(arg, false, 100, 2, &r), PL_OK);
    pl_report_step(r, &step);
    pl_report_say(r, "nothing");
    pl_report_end(r, 100, "done", 2, 800, NULL);
    pl_report_close(r);
}

static void test_other_ranks(void **state)
{
    (void)state;
    char *dir = directory(), people[256];
    with_stderr(a_silent_run, dir, people, sizeof people);
    assert_string_equal(people, "");
    assert_int_not_equal(access(dir, F_OK), 0);
    pl_free(dir);
}

static void a_run_on_a_full_disk(void *arg)
{
    struct pl_report *r;
    struct pl_report_step step = {.step = 1, .samples_per_s = 1};
    assert_int_equal(pl_report_open(arg, true, 100, 2, &r), PL_OK);
    for (int i = 0; i < 3; i++)
        pl_report_step(r, &step);
    pl_report_end(r, 100, "done", 2, 800, NULL);
    pl_report_close(r);
}

static void test_full_disk(void **state)
{
    (void)state;
    char *dir = directory(), people[2048];
    assert_int_equal(pl_make_dirs(dir, "test"), PL_OK);
    char *path = pl_strdupf("%s/metrics.jsonl", dir);
    assert_int_equal(symlink("/dev/full", path), 0);
    with_stderr(a_run_on_a_full_disk, dir, people, sizeof people);
    const char *said = strstr(people, "metrics.jsonl: cannot be written (No space left on device); training goes on without it\n");
    assert_non_null(said);
    assert_null(strstr(said + strlen("metrics.jsonl: cannot"), "cannot be written")); /* once */
    assert_non_null(strstr(people, "done at step 100"));
    pl_free(path);
    pl_free(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_events), cmocka_unit_test(test_other_ranks), cmocka_unit_test(test_full_disk)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
