/* Ranks that meet now and then, on rank 0: it hands work out piece by piece to who is free, adds up what came of it, and calls
 * the meeting when all are there. Portions of a set that others have are handed out to who is idle only; of each result rank 0
 * says whether it counts, and to who else has that portion that it is spare. */
#include "sync/meeting_internal.h"

#include "data/data.h"

#include <string.h>

static void add(double *to, const double *v)
{
    for (int i = 0; i < PL_MEETING_VALUES; i++)
        to[i] += v[i];
}

static void next_global_batch(struct pl_leg *l)
{
    l->step++;
    l->position += l->global_batch;
    if (l->position < l->epoch_samples)
        return;
    l->epoch++;
    l->position = 0;
}

/* The next micro-batch of the leg; the meeting falls between two global batches. */
static bool next_of_leg(struct pl_meeting *m, struct pl_ticket *out)
{
    struct pl_leg *l = &m->next;
    while (l->step < l->until && !(m->closing && m->slice == 0)) {
        *out = (struct pl_ticket){.step = l->step, .epoch = l->epoch};
        pl_sampler_share(l->epoch_samples, l->global_batch, l->position, m->slice, m->ranks, &out->first, &out->rows);
        if (++m->slice == m->ranks) {
            m->slice = 0;
            next_global_batch(l);
        }
        if (out->rows > 0)
            return true;
    }
    return false;
}

/* Nobody's yet, or another's and of one only. */
static bool next_portion(struct pl_meeting *m, int r, struct pl_ticket *out)
{
    int i = m->part;
    if (m->closing)
        return false;
    if (i == m->parts) {
        while (m->undone < m->parts && m->portion[m->undone].done)
            m->undone++;
        for (i = m->undone; i < m->parts; i++)
            if (!m->portion[i].done && m->portion[i].holders == 1 && m->portion[i].holder[0] != r)
                break;
        if (i == m->parts)
            return false;
    } else {
        m->part++;
    }
    int64_t first = i * m->rows, left = m->samples - first;
    m->portion[i].holder[m->portion[i].holders++] = r;
    *out = (struct pl_ticket){.step = i, .first = first, .rows = left < m->rows ? left : m->rows};
    return true;
}

static bool next_ticket(struct pl_meeting *m, int r, struct pl_ticket *out)
{
    if (m->leg)
        return next_of_leg(m, out);
    if (m->samples > 0)
        return next_portion(m, r, out);
    *out = (struct pl_ticket){.step = m->part};
    return m->part < m->parts && m->part++ >= 0;
}

void pl_meeting_answer(struct pl_meeting *m, int r)
{
    struct rank *k = &m->rank[r];
    struct message msg = {.kind = TICKET, .phase = m->phase};
    if (!k->asks || k->phase != m->phase)
        return;
    if (m->samples > 0 && m->part == m->parts && !k->idle)
        return; /* what others have it may have when it is */
    k->asks = false;
    if (next_ticket(m, r, &msg.ticket))
        k->given++;
    else
        msg.kind = CLOSED;
    pl_meeting_post(m, r, &msg);
}

/* All are there, and so all pieces of work are done. */
static void call_meeting(struct pl_meeting *m)
{
    struct message msg = {.kind = MEET, .phase = m->phase};
    for (int r = 0; r < m->ranks; r++)
        if (!m->rank[r].arrived || m->rank[r].phase != m->phase)
            return;
    for (int i = 0; i < m->parts; i++)
        add(m->sum, m->part_values + i * PL_MEETING_VALUES);
    if (m->samples > 0 && m->closing && m->sum[PL_COUNT_STOP] == 0)
        m->sum[PL_COUNT_STOP] = 1; /* said with a result that does not count */
    for (int r = 0; r < m->ranks; r++) {
        m->rank[r].arrived = false;
        add(m->sum, m->rank[r].values);
    }
    memcpy(msg.meet.values, m->sum, sizeof m->sum);
    msg.meet.step = m->next.step;
    msg.meet.epoch = m->next.epoch;
    msg.meet.position = m->next.position;
    for (int r = m->ranks - 1; r >= 0; r--) /* itself last: it may go on at once */
        pl_meeting_post(m, r, &msg);
}

/* The first counts; who else has the portion may leave it. */
static void judge(struct pl_meeting *m, int from, int part, const double *v)
{
    struct portion *p = &m->portion[part];
    struct message verdict = {.kind = VERDICT, .phase = m->phase, .counts = !p->done}, spare = {.kind = SPARE, .phase = m->phase, .part = part};
    m->closing = m->closing || v[PL_COUNT_STOP] > 0;
    if (!p->done) {
        memcpy(m->part_values + part * PL_MEETING_VALUES, v, sizeof m->sum);
        m->share[from]++;
        p->done = true;
        if (p->holders == 2)
            pl_meeting_post(m, p->holder[p->holder[0] == from], &spare);
    }
    pl_meeting_post(m, from, &verdict);
}

void pl_meeting_hear_result(struct pl_meeting *m, int from, int part, const double *v)
{
    if (part < 0)
        return;
    if (m->samples > 0) {
        judge(m, from, part, v);
        return;
    }
    if (!m->leg) {
        memcpy(m->part_values + part * PL_MEETING_VALUES, v, sizeof m->sum);
        return;
    }
    add(m->sum, v);
    add(m->came, v);
    m->share[from]++;
    m->closing = m->closing || v[PL_COUNT_STOP] > 0 || v[PL_COUNT_SAVE] > 0;
}

/* What is asked before this rank has opened the phase waits until it does; what was done is of the one before or of this. */
void pl_meeting_hear_ask(struct pl_meeting *m, int from, const struct message *msg)
{
    struct rank *k = &m->rank[from];
    k->given = k->phase == msg->phase ? k->given : 0;
    k->phase = msg->phase;
    k->worked_ms = pl_now_ms();
    pl_meeting_hear_result(m, from, msg->part, msg->values);
    if (msg->taken < k->given)
        return; /* idle, it said, but the answer was on its way */
    k->asks = true;
    k->idle = msg->idle;
    pl_meeting_answer(m, from);
}

void pl_meeting_hear_arrival(struct pl_meeting *m, int from, const struct message *msg)
{
    struct rank *k = &m->rank[from];
    k->arrived = true;
    k->phase = msg->phase;
    k->worked_ms = pl_now_ms();
    memcpy(k->values, msg->arrive.values, sizeof k->values);
    for (int i = 0; i < PL_MEETING_COUNTS; i++)
        m->counts[i] += msg->arrive.counts[i];
    call_meeting(m);
}

pl_status pl_meeting_room_for_parts(struct pl_meeting *m, int parts)
{
    if (m->me != 0)
        return PL_OK;
    if (parts > m->part_room) {
        pl_free(m->part_values);
        pl_free(m->portion);
        m->part_values = pl_alloc((size_t)parts * PL_MEETING_VALUES * sizeof(double), "results of parts");
        m->portion = pl_alloc((size_t)parts * sizeof *m->portion, "portions");
        m->part_room = m->part_values && m->portion ? parts : 0;
        if (m->part_room == 0)
            return PL_ERR_MEMORY;
    }
    if (parts > 0) {
        memset(m->part_values, 0, (size_t)parts * PL_MEETING_VALUES * sizeof(double));
        memset(m->portion, 0, (size_t)parts * sizeof *m->portion);
    }
    return PL_OK;
}

/* To the global batch that rank 0 was handing out; another rank knows of those that it had pieces of. */
static struct pl_leg where_now(const struct pl_meeting *m)
{
    struct pl_leg l = m->next;
    int64_t first, rows;
    while (m->me > 0 && m->taken > 0 && l.step < m->hand.step)
        next_global_batch(&l);
    if (m->me > 0 || m->slice == 0)
        return l;
    pl_sampler_share(l.epoch_samples, l.global_batch, l.position, m->slice, m->ranks, &first, &rows);
    l.position = first < l.epoch_samples ? first : l.position;
    return l;
}

void pl_meeting_place(struct pl_meeting *m, struct pl_agreement *out)
{
    pl_meeting_lock(m);
    struct pl_leg l = where_now(m);
    out->apart = m->leg;
    out->step = l.step;
    out->epoch = l.epoch;
    out->position = l.position;
    pl_meeting_unlock(m);
}

void pl_meeting_news(struct pl_meeting *m, double *values)
{
    pl_meeting_lock(m);
    memcpy(values, m->came, sizeof m->came);
    memset(m->came, 0, sizeof m->came);
    pl_meeting_unlock(m);
}

void pl_meeting_counts(struct pl_meeting *m, int64_t *counts)
{
    pl_meeting_lock(m);
    memcpy(counts, m->counts, sizeof m->counts);
    pl_meeting_unlock(m);
}

const int64_t *pl_meeting_shares(const struct pl_meeting *m) { return m->share; }
