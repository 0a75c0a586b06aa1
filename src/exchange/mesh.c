/* Every rank with every other: notes, sums among some of them, memory from one to another. All three are requests to
 * one transport among all ranks of the run; a request that fails with its peer ends what it belongs to. */
#include "exchange/choose.h"
#include "exchange/collective.h"
#include "exchange/exchange_internal.h"

#include <string.h>

enum { NOTES = 32 }; /* under way to a rank */
#define TRANSFER (1ull << 63) /* in a label's step: these count apart from the rounds of sums */

struct peer {
    bool lost;
    char why[256];
    uint64_t heard, said;      /* notes so far */
    bool come;                 /* the note of `receive` is there */
    struct pl_request receive, send[NOTES];
    unsigned char *in, *out;   /* [note_bytes], [NOTES * note_bytes] */
    unsigned sent;             /* those before are gone */
};

struct sum {
    uint64_t round; /* 0: none */
    bool whole, failed;
    const float *in;
    float *out;
    int64_t elems, started; /* elements; the first so many have been started */
    uint32_t buckets;
    unsigned last; /* ticket of the last bucket */
};

struct pl_mesh {
    struct pl_network network;
    struct pl_collectives *collectives;
    struct pl_choice choice;
    size_t note_bytes;
    int64_t bucket_elems;
    int me, ranks, asked; /* asked: whose note is looked at first */
    bool news;
    _Atomic bool woken;
    struct peer *peer;    /* [ranks] */
    unsigned char *notes;
    struct sum sum;
    struct pl_transfer *transfers;
    char why[1200], name[128];
};

/* ---- opening and closing -------------------------------------------------------------------------- */

static void cancel_transfer(struct pl_mesh *m, struct pl_transfer *t)
{
    const struct pl_network *n = &m->network;
    for (int i = 0; i < PL_TRANSFER_WINDOW && !t->sends; i++)
        if (t->request[i].active)
            n->table->cancel(n->transport, &t->request[i]);
}

/* Of each rank the next note is waited for always, and what is transferred at the end nobody may want. */
static void cancel_receives(struct pl_mesh *m)
{
    const struct pl_network *n = &m->network;
    for (int r = 0; m->peer && r < m->ranks; r++)
        if (m->peer[r].receive.active)
            n->table->cancel(n->transport, &m->peer[r].receive);
    for (struct pl_transfer *t = m->transfers; t; t = t->next)
        cancel_transfer(m, t);
}

static void destroy(struct pl_mesh *m, bool lost)
{
    if (!lost && m->network.transport && m->network.table->cancel)
        cancel_receives(m);
    pl_network_close(&m->network, lost);
    pl_collectives_destroy(m->collectives);
    pl_free(m->notes);
    pl_free(m->peer);
    pl_free(m);
}

static struct pl_mesh *make(int me, int ranks, const struct pl_exchange_options *o, size_t note_bytes)
{
    struct pl_mesh *m = pl_alloc(sizeof *m, "a mesh");
    if (!m)
        return NULL;
    m->me = me;
    m->ranks = ranks;
    m->note_bytes = note_bytes;
    m->bucket_elems = (int64_t)(o->bucket_bytes / sizeof(float));
    m->peer = pl_alloc((size_t)ranks * sizeof *m->peer, "the ranks of a mesh");
    m->notes = pl_alloc((size_t)ranks * (NOTES + 1) * note_bytes, "notes");
    if (!m->peer || !m->notes) {
        destroy(m, true);
        return NULL;
    }
    for (int r = 0; r < ranks; r++) {
        m->peer[r].in = m->notes + (size_t)r * (NOTES + 1) * note_bytes;
        m->peer[r].out = m->peer[r].in + note_bytes;
    }
    return m;
}

static struct pl_label note_label(uint64_t number) { return (struct pl_label){.step = number, .bucket = PL_CONTROL_BUCKET}; }

/* Messages are the process's: another thread's stays. */
static void take_back_error(void)
{
    const char *text = pl_error_text();
    if (text && strncmp(text, "transport", strlen("transport")) == 0)
        pl_error_clear();
}

static void lose(struct pl_mesh *m, int r)
{
    const char *text = pl_error_text();
    if (m->peer[r].lost)
        return;
    m->peer[r].lost = m->news = true;
    snprintf(m->peer[r].why, sizeof m->peer[r].why, "%.255s", text ? text : "lost");
}

/* With a transport that survives it, what failed with a rank is that rank's end, and no error of ours. */
static pl_status bear(struct pl_mesh *m, int r, pl_status s)
{
    if (s != PL_ERR_PEER || !pl_mesh_survives(m))
        return s;
    lose(m, r);
    take_back_error();
    return PL_OK;
}

static pl_status listen_to(struct pl_mesh *m, int r)
{
    struct peer *p = &m->peer[r];
    return bear(m, r, m->network.table->post_receive(m->network.transport, r, note_label(p->heard), p->in, m->note_bytes, &p->receive));
}

static pl_status choose(struct pl_mesh *m, const struct pl_exchange_options *o)
{
    bool native = o->algorithm && strcmp(o->algorithm, "native") == 0, any = !o->algorithm || strcmp(o->algorithm, "auto") == 0;
    if (native)
        return pl_error(PL_ERR_USAGE, "exchange", "exchange.algorithm native adds up over all ranks, late ones too\n"
                        "leave it auto, or take ring, halving_doubling or tree");
    /* MPI's own is what auto would take on mpi. */
    const char *name = any && !o->table && strcmp(m->network.table->name, "mpi") == 0 ? "ring" : any ? "auto" : o->algorithm;
    PL_TRY(pl_choose(name, o->table, m->network.table->name, m->ranks, &m->choice));
    for (int i = 0; i < m->choice.rows; i++)
        if (m->choice.row[i].pattern == PL_NATIVE)
            m->choice.row[i].pattern = PL_RING;
    pl_choose_describe(&m->choice, m->name, sizeof m->name);
    return PL_OK;
}

/* What needs the open network. */
static pl_status begin(struct pl_mesh *m)
{
    PL_TRY(pl_collectives_create(m->network.table, m->network.transport, &m->network.group, &m->collectives));
    for (int r = 0; r < m->ranks; r++)
        if (r != m->me)
            PL_TRY(listen_to(m, r));
    return PL_OK;
}

pl_status pl_mesh_open_in(const struct pl_network *network, const struct pl_exchange_options *o, size_t note_bytes, struct pl_mesh **out)
{
    struct pl_network own = *network;
    struct pl_mesh *m = make(own.group.me, own.group.members, o, note_bytes);
    if (!m) {
        pl_network_close(&own, true);
        return PL_ERR_MEMORY;
    }
    m->network = own;
    pl_status s = choose(m, o);
    if (s == PL_OK)
        s = begin(m);
    if (s < 0)
        destroy(m, true);
    else
        *out = m;
    return s;
}

pl_status pl_mesh_open(struct pl_world *w, const struct pl_exchange_options *o, size_t note_bytes, struct pl_mesh **out)
{
    char why[1024];
    struct pl_transport_options network = o->network;
    struct pl_mesh *m = make(w->rank, w->ranks, o, note_bytes);
    network.timeout_ms = o->timeout_ms;
    PL_TRY(pl_world_agree(w, m ? PL_OK : PL_ERR_MEMORY));
    pl_status s = pl_world_agree(w, pl_transport_find(w, o->transport, &network, &m->network.table, why, sizeof why));
    if (s == PL_OK)
        s = pl_world_agree(w, choose(m, o));
    if (s == PL_OK) {
        int *all = pl_alloc((size_t)w->ranks * sizeof *all, "the ranks of a mesh");
        for (int r = 0; all && r < w->ranks; r++)
            all[r] = r;
        s = pl_world_agree(w, all ? PL_OK : PL_ERR_MEMORY);
        if (s == PL_OK)
            s = pl_world_agree(w, pl_network_open(w, &network, all, w->ranks, w->nodes == 1, &m->network));
        pl_free(all);
    }
    if (s == PL_OK)
        s = begin(m);
    s = pl_world_agree(w, s);
    if (s < 0) {
        destroy(m, true);
        return s;
    }
    snprintf(m->why, sizeof m->why, "%.900s%s%s", why, m->network.how[0] ? "; by " : "", m->network.how);
    *out = m;
    return PL_OK;
}

void pl_mesh_close(struct pl_mesh *m, bool lost)
{
    if (m)
        destroy(m, lost);
}

const char *pl_mesh_transport(const struct pl_mesh *m) { return m->network.table->name; }
const char *pl_mesh_algorithm(const struct pl_mesh *m) { return m->name; }
const char *pl_mesh_why(const struct pl_mesh *m) { return m->why; }
bool pl_mesh_survives(const struct pl_mesh *m) { return m->network.table->forget != NULL; }

bool pl_mesh_lost(const struct pl_mesh *m, int rank, const char **why)
{
    *why = m->peer[rank].why;
    return m->peer[rank].lost;
}

/* ---- notes ------------------------------------------------------------------------------------------ */

static pl_status test(struct pl_mesh *m, int r, struct pl_request *q, bool *done)
{
    *done = false;
    return q->active ? bear(m, r, m->network.table->test(m->network.transport, q, done)) : PL_OK;
}

/* Those that are gone make room. */
static pl_status sweep_notes(struct pl_mesh *m, int r)
{
    struct peer *p = &m->peer[r];
    bool done = true;
    while (!p->lost && p->sent != (unsigned)p->said && done) {
        PL_TRY(test(m, r, &p->send[p->sent % NOTES], &done));
        p->sent += done;
    }
    return PL_OK;
}

pl_status pl_mesh_say(struct pl_mesh *m, int rank, const void *note)
{
    struct peer *p = &m->peer[rank];
    PL_TRY(sweep_notes(m, rank));
    if (p->lost || (unsigned)p->said - p->sent == NOTES)
        return PL_END;
    unsigned at = (unsigned)(p->said % NOTES);
    memcpy(p->out + at * m->note_bytes, note, m->note_bytes);
    pl_status s = bear(m, rank, m->network.table->post_send(m->network.transport, rank, note_label(p->said), p->out + at * m->note_bytes, m->note_bytes, &p->send[at]));
    if (s == PL_OK && !p->lost)
        p->said++;
    return s;
}

static pl_status sweep_heard(struct pl_mesh *m, int r, bool *came)
{
    struct peer *p = &m->peer[r];
    if (!p->come && p->receive.active)
        PL_TRY(test(m, r, &p->receive, &p->come));
    *came = p->come;
    p->heard += *came;
    p->come = false;
    return PL_OK;
}

bool pl_mesh_hear(struct pl_mesh *m, int *rank, void *note)
{
    for (int i = 0; i < m->ranks; i++) {
        int r = (m->asked + i) % m->ranks;
        bool came = false;
        if (r == m->me || sweep_heard(m, r, &came) < 0 || !came)
            continue;
        memcpy(note, m->peer[r].in, m->note_bytes);
        *rank = r;
        m->asked = r + 1;
        if (!m->peer[r].lost && listen_to(m, r) < 0)
            return true; /* progress tells */
        return true;
    }
    return false;
}

/* ---- sums ------------------------------------------------------------------------------------------- */

static pl_status start_buckets(struct pl_mesh *m)
{
    struct sum *s = &m->sum;
    while (s->started < s->elems) {
        int64_t n = s->elems - s->started < m->bucket_elems ? s->elems - s->started : m->bucket_elems;
        struct pl_reduction r = {.op = PL_SUM_F32, .in = s->in + s->started, .out = s->out + s->started, .n = n, .step = s->round, .bucket = s->buckets};
        pl_choose_pattern(&m->choice, (size_t)n * sizeof(float), &r.pattern);
        pl_status started = pl_collectives_start(m->collectives, &r, &s->last);
        if (started != PL_OK)
            return started < 0 ? started : PL_OK;
        s->started += n;
        s->buckets++;
    }
    return PL_OK;
}

static pl_status go_on_summing(struct pl_mesh *m)
{
    struct sum *s = &m->sum;
    if (s->round == 0 || s->whole || s->failed)
        return PL_OK;
    pl_status r = PL_OK;
    for (bool moved = true; r == PL_OK && moved;) {
        r = start_buckets(m);
        if (r == PL_OK)
            r = pl_collectives_progress(m->collectives, &moved);
        moved = moved && s->started < s->elems; /* what has ended makes room for more, of which the network tells nothing */
    }
    if (r == PL_ERR_PEER && pl_mesh_survives(m)) { /* the lost one's notes fail as well, which names it */
        s->failed = m->news = true;
        take_back_error();
        return PL_OK;
    }
    s->whole = r == PL_OK && s->started == s->elems && pl_collectives_idle(m->collectives);
    m->news = m->news || s->whole;
    return r;
}

pl_status pl_mesh_reduce(struct pl_mesh *m, uint64_t round, const int *members, int n, const float *in, float *out, int64_t elems)
{
    m->sum = (struct sum){.round = round, .in = in, .out = out, .elems = elems};
    if (n == 1) {
        memcpy(out, in, (size_t)elems * sizeof *out);
        m->sum.whole = true;
        return PL_OK;
    }
    PL_TRY(pl_collectives_among(m->collectives, members, n));
    return go_on_summing(m);
}

bool pl_mesh_reduced(const struct pl_mesh *m, uint64_t round) { return m->sum.round == round && m->sum.whole; }

void pl_mesh_forget(struct pl_mesh *m, uint64_t before)
{
    if (!pl_mesh_survives(m))
        return;
    if (m->sum.round != 0 && m->sum.round < before && !m->sum.whole) {
        pl_collectives_abandon(m->collectives);
        m->sum.round = 0;
    }
    for (int r = 0; r < m->ranks; r++)
        if (r != m->me && !m->peer[r].lost)
            m->network.table->forget(m->network.transport, r, before);
}

/* ---- transfers -------------------------------------------------------------------------------------- */

static void end(struct pl_mesh *m, struct pl_transfer *t, bool done)
{
    struct pl_transfer **at = &m->transfers;
    while (*at && *at != t)
        at = &(*at)->next;
    if (*at)
        *at = t->next;
    m->news = true;
    t->active = false;
    t->done = done;
    t->failed = !done;
}

static pl_status post_piece(struct pl_mesh *m, struct pl_transfer *t)
{
    size_t left = t->bytes - t->posted, n = left < PL_TRANSFER_PIECE ? left : PL_TRANSFER_PIECE, piece = t->posted / PL_TRANSFER_PIECE;
    struct pl_label l = {.step = t->id | TRANSFER, .piece = (uint32_t)piece};
    struct pl_request *q = &t->request[piece % PL_TRANSFER_WINDOW];
    void *at = t->memory + t->posted;
    const struct pl_transport_table *table = m->network.table;
    t->posted += n;
    return t->sends ? table->post_send(m->network.transport, t->rank, l, at, n, q) : table->post_receive(m->network.transport, t->rank, l, at, n, q);
}

static pl_status move(struct pl_mesh *m, struct pl_transfer *t)
{
    for (bool done = true; done && t->moved < t->bytes;) {
        while (t->posted < t->bytes && t->posted - t->moved < PL_TRANSFER_WINDOW * (size_t)PL_TRANSFER_PIECE)
            PL_TRY(post_piece(m, t));
        struct pl_request *q = &t->request[t->moved / PL_TRANSFER_PIECE % PL_TRANSFER_WINDOW];
        PL_TRY(m->network.table->test(m->network.transport, q, &done));
        if (done)
            t->moved = t->bytes - t->moved < PL_TRANSFER_PIECE ? t->bytes : t->moved + PL_TRANSFER_PIECE;
    }
    return PL_OK;
}

static pl_status go_on_with(struct pl_mesh *m, struct pl_transfer *t)
{
    pl_status s = m->peer[t->rank].lost ? PL_ERR_PEER : move(m, t);
    if (s == PL_ERR_PEER && pl_mesh_survives(m)) {
        end(m, t, false);
        if (!m->peer[t->rank].lost)
            lose(m, t->rank);
        take_back_error();
        return PL_OK;
    }
    if (s == PL_OK && t->moved == t->bytes)
        end(m, t, true);
    return s;
}

static pl_status transfer(struct pl_mesh *m, struct pl_transfer *t, bool sends, int rank, uint64_t id, void *p, size_t bytes)
{
    for (const struct pl_transfer *u = m->transfers; u; u = u->next)
        if (u == t)
            return pl_error(PL_ERR_USAGE, "exchange", "a transfer with rank %d is begun anew while it is under way", rank);
    *t = (struct pl_transfer){.active = true, .sends = sends, .rank = rank, .id = id, .memory = p, .bytes = bytes, .next = m->transfers};
    m->transfers = t;
    return go_on_with(m, t);
}

pl_status pl_mesh_send(struct pl_mesh *m, struct pl_transfer *t, int rank, uint64_t id, const void *p, size_t bytes)
{
    return transfer(m, t, true, rank, id, (void *)(uintptr_t)p, bytes); /* of a send it is only read */
}

pl_status pl_mesh_receive(struct pl_mesh *m, struct pl_transfer *t, int rank, uint64_t id, void *p, size_t bytes)
{
    return transfer(m, t, false, rank, id, p, bytes);
}

void pl_mesh_forget_transfers(struct pl_mesh *m, int rank, uint64_t before)
{
    bool all = pl_mesh_survives(m);
    if (all && !m->peer[rank].lost)
        m->network.table->forget(m->network.transport, rank, before | TRANSFER);
    for (struct pl_transfer *t = m->transfers, *next; t; t = next) {
        next = t->next;
        if (t->rank != rank || t->id >= before || (!all && t->sends))
            continue;
        if (!all)
            cancel_transfer(m, t);
        end(m, t, false);
    }
}

/* ---- progress --------------------------------------------------------------------------------------- */

pl_status pl_mesh_progress(struct pl_mesh *m, double wait_ms)
{
    PL_TRY(m->network.table->progress(m->network.transport, wait_ms));
    PL_TRY(go_on_summing(m));
    for (struct pl_transfer *t = m->transfers, *next; t; t = next) {
        next = t->next;
        PL_TRY(go_on_with(m, t));
    }
    for (int r = 0; r < m->ranks; r++) {
        struct peer *p = &m->peer[r];
        if (r == m->me || p->lost || p->come)
            continue;
        if (!p->receive.active)
            PL_TRY(listen_to(m, r));
        if (p->receive.active)
            PL_TRY(test(m, r, &p->receive, &p->come));
        m->news = m->news || p->come;
    }
    return PL_OK;
}

bool pl_mesh_news(struct pl_mesh *m)
{
    bool woken = atomic_exchange(&m->woken, false), news = m->news || woken; /* at once: a wake between is not lost */
    m->news = false;
    return news;
}

void pl_mesh_wake(struct pl_mesh *m)
{
    atomic_store(&m->woken, true);
    m->network.table->wake(m->network.transport);
}
