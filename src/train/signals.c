/* Signals that ask a run to checkpoint and stop. The handler only notes that one came; the step's
 * agreement spreads it, so that one seen by any rank counts for all. */
#include "train/train.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t seen;
static struct { int number; struct sigaction act; } before[8]; /* what they did */
static int caught;

static void note(int signal_number)
{
    seen = signal_number;
}

static int number_of(const char *name)
{
    static const struct { const char *name; int number; } known[] = {
        {"USR1", SIGUSR1}, {"USR2", SIGUSR2}, {"TERM", SIGTERM}, {"INT", SIGINT}, {"HUP", SIGHUP}};
    if (strncmp(name, "SIG", 3) == 0)
        name += 3;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].number;
    return -1;
}

pl_status pl_signals_catch(const struct pl_texts *names)
{
    for (int i = 0; i < names->n; i++) {
        int number = number_of(names->v[i]);
        struct sigaction act = {.sa_handler = note, .sa_flags = number == SIGINT ? SA_RESTART | (int)SA_RESETHAND : SA_RESTART};
        struct sigaction was;
        bool fine = number >= 0 && sigaction(number, &act, &was) == 0;
        if (fine && caught < (int)(sizeof before / sizeof *before)) {
            before[caught].number = number;
            before[caught++].act = was;
        }
        if (!fine)
            return pl_error(PL_ERR_USAGE, "job", "checkpoint.signals: %s is not one of USR1, USR2, TERM, INT, HUP",
                            names->v[i]);
    }
    return PL_OK;
}

void pl_signals_release(bool stopped)
{
    int late = stopped ? 0 : seen;
    while (caught > 0) {
        caught--;
        sigaction(before[caught].number, &before[caught].act, NULL);
    }
    seen = 0;
    if (late)
        raise(late);
}

bool pl_signals_seen(void) { return seen != 0; }
