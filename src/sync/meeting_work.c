/* Ranks that meet now and then, each at work: a phase is opened, pieces are taken and what came of them is told, and all meet.
 * Asked for one ahead, a ticket is there when the main thread is ready for it. */
#include "sync/meeting_internal.h"

#include <math.h>
#include <string.h>

/* With what came of the last. */
static void tell_result(struct pl_meeting *m, enum kind kind)
{
    struct message msg = {.kind = kind, .phase = m->phase, .part = m->done_part, .taken = m->taken, .idle = m->asked_idle};
    memcpy(msg.values, m->done, sizeof m->done);
    m->done_part = -1;
    pl_meeting_post(m, 0, &msg);
}

/* Again when there is nothing else to do. */
static void ask(struct pl_meeting *m, bool idle)
{
    if (m->closed || m->in_hand || (m->asking && (m->asked_idle || !idle)))
        return;
    m->asking = true;
    m->asked_idle = idle;
    tell_result(m, ASK);
}

void pl_meeting_hear_ticket(struct pl_meeting *m, const struct pl_ticket *t)
{
    m->asking = m->hand_spare = false;
    m->in_hand = true;
    m->taken++;
    m->hand = *t;
    pl_status s = m->leg || m->samples > 0 ? m->replica.ahead(m->replica.arg, t) : PL_OK;
    if (s < 0)
        m->failed = s;
}

void pl_meeting_hear_spare(struct pl_meeting *m, int part)
{
    if (m->in_hand && m->hand.step == part)
        m->hand_spare = true;
    else if (m->doing == part)
        atomic_store(&m->spare, true);
}

/* ---- the main thread -------------------------------------------------------------------------------------- */

static pl_status open_phase(struct pl_meeting *m, const struct pl_leg *leg, int parts, int64_t samples, int64_t rows)
{
    pl_meeting_lock(m);
    pl_status s = pl_meeting_room_for_parts(m, parts);
    m->phase++;
    m->leg = leg != NULL;
    m->met = m->asking = m->asked_idle = m->in_hand = m->closing = false;
    m->closed = !leg && parts == 0;
    m->done_part = m->doing = -1;
    m->parts = parts;
    m->part = m->slice = m->taken = m->undone = 0;
    m->samples = samples;
    m->rows = rows;
    memset(m->sum, 0, sizeof m->sum);
    memset(m->done, 0, sizeof m->done);
    if (leg)
        m->next = *leg;
    if (s == PL_OK && !m->closed)
        ask(m, false);
    for (int r = 0; r < m->ranks && m->me == 0; r++)
        pl_meeting_answer(m, r); /* who was here first */
    pl_meeting_unlock(m);
    return s;
}

pl_status pl_meeting_open(struct pl_meeting *m, const struct pl_leg *leg, int parts) { return open_phase(m, leg, parts, 0, 0); }

pl_status pl_meeting_open_set(struct pl_meeting *m, int64_t samples, int64_t rows)
{
    int64_t portions = (samples + rows - 1) / rows;
    int parts;
    PL_TRY(pl_narrow_int(portions, "portions of the training set", &parts));
    return open_phase(m, NULL, parts, samples, rows);
}

static bool has_ticket(const void *arg)
{
    const struct pl_meeting *m = arg;
    return m->in_hand || m->closed;
}

pl_status pl_meeting_take(struct pl_meeting *m, struct pl_ticket *out)
{
    pl_meeting_lock(m);
    if (m->samples > 0)
        ask(m, true);
    pl_status s = pl_meeting_wait(m, has_ticket, m);
    if (s == PL_OK && !m->in_hand)
        s = PL_END;
    if (s == PL_OK) {
        *out = m->hand;
        m->in_hand = false;
        m->doing = m->leg ? 0 : (int)m->hand.step;
        atomic_store(&m->spare, m->hand_spare);
        ask(m, false);
    }
    pl_meeting_unlock(m);
    return s;
}

void pl_meeting_done(struct pl_meeting *m, const double *values)
{
    pl_meeting_lock(m);
    m->done_part = m->doing;
    m->judged = false;
    memcpy(m->done, values, sizeof m->done);
    if (m->me == 0 || m->samples > 0)
        tell_result(m, RESULT);
    pl_meeting_unlock(m);
}

bool pl_meeting_is_spare(struct pl_meeting *m) { return atomic_load(&m->spare); }

static bool is_judged(const void *arg) { return ((const struct pl_meeting *)arg)->judged; }

pl_status pl_meeting_counts_it(struct pl_meeting *m, bool *counts)
{
    pl_meeting_lock(m);
    pl_status s = pl_meeting_wait(m, is_judged, m);
    *counts = m->counts_it;
    pl_meeting_unlock(m);
    return s;
}

static bool has_met(const void *arg) { return ((const struct pl_meeting *)arg)->met; }

pl_status pl_meeting_meet(struct pl_meeting *m, const double *values, const int64_t *counts, struct pl_meet *out)
{
    struct message msg = {.kind = ARRIVE, .phase = m->phase};
    if (values)
        memcpy(msg.arrive.values, values, sizeof msg.arrive.values);
    if (counts)
        memcpy(msg.arrive.counts, counts, sizeof msg.arrive.counts);
    pl_meeting_lock(m);
    if (m->done_part >= 0)
        tell_result(m, RESULT);
    pl_meeting_post(m, 0, &msg);
    pl_status s = pl_meeting_wait(m, has_met, m);
    if (s == PL_OK && out)
        *out = m->meet;
    pl_meeting_unlock(m);
    return s;
}

pl_status pl_meeting_share_out(struct pl_meeting *m, const struct pl_parts *p, double *sum)
{
    struct pl_ticket part;
    struct pl_meet met;
    double v[PL_MEETING_VALUES];
    pl_status status = pl_meeting_start(m);
    if (status == PL_OK)
        status = pl_meeting_open(m, NULL, p->parts);
    while (status == PL_OK && (status = pl_meeting_take(m, &part)) == PL_OK) {
        memset(v, 0, sizeof v);
        PL_TRY(p->run(p->arg, (int)part.step, v)); /* this rank's own */
        pl_meeting_done(m, v);
    }
    if (status == PL_END)
        status = pl_meeting_meet(m, NULL, NULL, &met);
    for (int i = 0; i < p->values; i++)
        sum[i] = status == PL_OK ? met.values[i] : NAN; /* the run is over: the next step finds it so, in order */
    return PL_OK;
}
