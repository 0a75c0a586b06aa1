/* Requests taken back, of messages that nobody wants any more. A frame that is with the device goes out in any case: from
 * a slot of ours as it was, but where it is read from its owner's memory ("lent") perhaps no longer so, and then its
 * checksum is wrong. So the peer is told, behind it on the same queue pair, that such frames are void. */
#include "transport/verbs/verbs.h"

bool pl_verbs_forgotten(const struct pl_verbs_peer *p, struct pl_label l)
{
    return l.bucket != PL_CONTROL_BUCKET && l.step < p->forgotten[pl_step_kind(l.step)];
}

static void give_back(struct pl_verbs_request *r) { ((struct pl_request *)(void *)r)->active = false; }

static void take_back(const struct pl_verbs_peer *p, struct pl_verbs_list *l)
{
    struct pl_verbs_list kept = {NULL, NULL};
    for (struct pl_verbs_request *r = l->head, *next; r; r = next) {
        next = r->next;
        if (pl_verbs_forgotten(p, r->label))
            give_back(r);
        else
            pl_verbs_append(&kept, r);
    }
    *l = kept;
}

/* Frames with the device belong to nobody from now on. True: some of them are lent. */
static bool disown(struct pl_verbs_queue *q)
{
    bool lent = false;
    for (int i = 0; i < q->slots; i++) {
        struct pl_verbs_request *r = q->flight[i].request;
        if (!r || !pl_verbs_forgotten(q->peer, r->label))
            continue;
        give_back(r);
        q->flight[i].request = NULL;
        lent |= q->flight[i].lent != NULL;
    }
    return lent;
}

static void tell_void(struct pl_transport *t, struct pl_verbs_queue *q)
{
    q->voided = q->sent;
    if (!q->peer->closed && !pl_verbs_signal(t, q, PL_VERBS_VOID))
        pl_verbs_lose_by(t, q, "no room to say what is void");
}

void pl_verbs_forget(struct pl_transport *t, int peer, uint64_t before)
{
    struct pl_verbs_peer *p = &t->peer[peer];
    uint64_t *bound = &p->forgotten[pl_step_kind(before)];
    if (before <= *bound)
        return;
    *bound = before;
    for (int c = 0; c < t->channels; c++) {
        struct pl_verbs_queue *q = &p->queue[c];
        bool lent = disown(q);
        take_back(p, &q->sends);
        take_back(p, &q->receives);
        if (peer == t->me || p->lost)
            continue;
        if (lent)
            tell_void(t, q);
        pl_verbs_drain(t, q);
        pl_verbs_push(t, q);
    }
    if (p->closed)
        pl_verbs_settle(t, p);
}
