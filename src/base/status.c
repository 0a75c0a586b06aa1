/* The one message of a failure. Whoever first knows an error records it; callers pass the status on
 * in silence, so the first record of a process stands. */
#include "base/base.h"

#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards text and recorded */
static char text[4096];
static bool recorded;

int pl_exit_code(pl_status s)
{
    if (s == PL_ERR_ECHO)
        return 5;
    if (s < 0)
        return -s >= 2 && -s <= 7 ? -s : 1;
    return s == PL_STOPPED ? 75 : 0;
}

pl_status pl_error(pl_status s, const char *room, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    pthread_mutex_lock(&lock);
    if (!recorded) {
        int n = snprintf(text, sizeof text, "%s: ", room);
        vsnprintf(text + n, sizeof text - (size_t)n, fmt, args);
        recorded = true;
    }
    pthread_mutex_unlock(&lock);
    va_end(args);
    return s;
}

const char *pl_error_text(void)
{
    pthread_mutex_lock(&lock);
    const char *result = recorded ? text : NULL;
    pthread_mutex_unlock(&lock);
    return result;
}

void pl_error_clear(void)
{
    pthread_mutex_lock(&lock);
    recorded = false;
    pthread_mutex_unlock(&lock);
}
