/* Faults at named points, compiled in always, off unless debug.fault asks: they are how every error
 * path is tried. "POINT[@rank=R][@step=S][@count=K]:ACTION", several joined by ','. */
#include "base/base.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_FAULTS 8

/* Every pl_fault in the program; a name that is none of them is refused. */
static const char *const points[] = {"step", "loader.read", "stage.lock", "stage.copy", "exchange.start", "exchange.shared", "h5.write", "checkpoint.write",
                                     "checkpoint.after_parts", "checkpoint.before_rename", "tcp.corrupt", "tcp.rest", "tcp.secret",
                                     "verbs.corrupt", "verbs.secret", "update.meet"};

enum action { FAIL, EXIT, KILL, HANG, DELAY };
struct fault {
    char point[64];
    int64_t step;      /* -1: any */
    _Atomic int count; /* times left; the K-th passage onwards is not counted down below 0 */
    enum action action;
    double delay_ms;
    bool mine;
};
static struct fault faults[MAX_FAULTS];
static _Atomic int active;

static pl_status bad(const char *spec)
{
    struct pl_text names = {0};
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        pl_text_add(&names, "%s%s", i ? ", " : "", points[i]);
    pl_error(PL_ERR_USAGE, "job", "debug.fault: %s\nwrite POINT[@rank=R][@step=S][@count=K]:fail|exit|kill|hang|delay=MS; points: %s",
             spec, names.s ? names.s : "");
    pl_text_free(&names);
    return PL_ERR_USAGE;
}

static bool parse_action(const char *text, struct fault *f)
{
    static const char *const names[] = {"fail", "exit", "kill", "hang"};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i]) == 0) {
            f->action = (enum action)i;
            return true;
        }
    f->action = DELAY;
    return sscanf(text, "delay=%lf", &f->delay_ms) == 1;
}

static bool known(const char *point)
{
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        if (strcmp(points[i], point) == 0)
            return true;
    return false;
}

static bool parse_one(char *spec, int rank, struct fault *f)
{
    char *colon = strrchr(spec, ':'), *save = NULL;
    if (!colon || !parse_action(colon + 1, f))
        return false;
    *colon = '\0';
    f->step = -1;
    f->mine = true;
    atomic_store(&f->count, 1 << 30);
    char *word = strtok_r(spec, "@", &save);
    if (!word || strlen(word) >= sizeof f->point || !known(word))
        return false;
    snprintf(f->point, sizeof f->point, "%s", word);
    while ((word = strtok_r(NULL, "@", &save))) {
        char *end = strchr(word, '=') ? strchr(word, '=') + 1 : NULL;
        long long v = end && *end ? strtoll(end, &end, 10) : -1;
        if (v < 0 || *end)
            return false;
        if (strncmp(word, "rank=", 5) == 0)
            f->mine = v == rank;
        else if (strncmp(word, "step=", 5) == 0)
            f->step = v;
        else if (strncmp(word, "count=", 6) == 0)
            atomic_store(&f->count, (int)v);
        else
            return false;
    }
    return true;
}

pl_status pl_fault_configure(const char *spec, int rank)
{
    int n = 0;
    atomic_store(&active, 0);
    if (!spec || !*spec)
        return PL_OK;
    char *copy = pl_strdup(spec), *save = NULL;
    if (!copy)
        return PL_ERR_MEMORY;
    for (char *one = strtok_r(copy, ",", &save); one; one = strtok_r(NULL, ",", &save))
        if (n == MAX_FAULTS || !parse_one(one, rank, &faults[n++])) {
            pl_free(copy);
            return bad(spec);
        }
    pl_free(copy);
    atomic_store(&active, n);
    pl_log_root("debug.fault is on: %s", spec);
    return PL_OK;
}

static int carry_out(const struct fault *f)
{
    switch (f->action) {
    case FAIL: return 1;
    case EXIT: _exit(1);
    case KILL: kill(getpid(), SIGKILL); break;
    case HANG:
        for (;;)
            pause();
    case DELAY: pl_sleep_ms(f->delay_ms); break;
    }
    return 0;
}

int pl_fault(const char *point, int64_t step)
{
    int n = atomic_load(&active), failed = 0;
    for (int i = 0; i < n; i++) {
        struct fault *f = &faults[i];
        if (!f->mine || strcmp(f->point, point) != 0 || (f->step >= 0 && f->step != step))
            continue;
        if (atomic_fetch_sub(&f->count, 1) > 0)
            failed |= carry_out(f);
    }
    return failed;
}
