/* Ranks of mpirun that meet over MPI and then talk by a transport: network NAME. Each sends to the next around the
 * ring, for some steps; as the exchange does, but for what is sent. Then steps that are given up half-way, out of
 * registered memory that is used anew at once, and in between whole ones. */
#include "exchange/group.h"

#include <string.h>

enum { STEPS = 5, BYTES = 300000, GIVEN_UP = 40 };
static unsigned char out[BYTES], in[BYTES];

static pl_status finished(const struct pl_network *n, struct pl_request *r)
{
    for (double end = pl_now_ms() + 60000; r->active && pl_now_ms() < end;) {
        bool done;
        PL_TRY(n->table->test(n->transport, r, &done));
        if (!done)
            PL_TRY(n->table->progress(n->transport, 20));
    }
    return r->active ? pl_error(PL_ERR_PEER, "network", "nothing comes") : PL_OK;
}

static pl_status around(const struct pl_network *n, uint64_t step)
{
    const struct pl_group *g = &n->group;
    const struct pl_label l = {step, 0, 0};
    struct pl_request send, receive;
    int before = (g->me + g->members - 1) % g->members;
    memset(out, g->me + (int)step, BYTES);
    PL_TRY(n->table->post_receive(n->transport, before, l, in, BYTES, &receive));
    PL_TRY(n->table->post_send(n->transport, (g->me + 1) % g->members, l, out, BYTES, &send));
    PL_TRY(finished(n, &receive));
    PL_TRY(finished(n, &send));
    memset(out, before + (int)step, BYTES);
    return memcmp(in, out, BYTES) == 0 ? PL_OK : pl_error(PL_ERR_PEER, "network", "step %d: not what was sent", (int)step);
}

/* Whoever is behind still waits for what others have given up. */
static pl_status give_up(const struct pl_network *n, uint64_t step)
{
    const struct pl_group *g = &n->group;
    int next = (g->me + 1) % g->members, before = (g->me + g->members - 1) % g->members;
    struct pl_request send[4], receive[4];
    memset(out, g->me, BYTES);
    for (uint32_t i = 0; i < 4; i++) {
        const struct pl_label l = {step, 0, i};
        PL_TRY(n->table->post_send(n->transport, next, l, out, BYTES - i, &send[i]));
        if ((step + (uint64_t)g->me) % 3 != 0)
            PL_TRY(n->table->post_receive(n->transport, before, l, in, BYTES - i, &receive[i]));
    }
    for (uint64_t i = 0; i < (step + 2 * (uint64_t)g->me) % 4; i++)
        PL_TRY(n->table->progress(n->transport, 1));
    for (int m = 0; m < g->members; m++)
        if (m != g->me)
            n->table->forget(n->transport, m, step + 1);
    for (int i = 0; i < 8; i++) { /* while it is on its way */
        memset(out, 0xEE + i, BYTES);
        PL_TRY(n->table->progress(n->transport, 0));
    }
    return PL_OK;
}

static pl_status give_up_some(const struct pl_network *n)
{
    struct pl_memory *memory;
    pl_status s = PL_OK;
    char why[256];
    PL_TRY(n->table->register_memory(n->transport, out, BYTES, &memory));
    for (uint64_t step = STEPS; s == PL_OK && step < STEPS + GIVEN_UP; step++)
        s = step % 4 == 0 || step + 1 == STEPS + GIVEN_UP ? around(n, step) : give_up(n, step);
    for (int m = 0; s == PL_OK && m < n->group.members; m++)
        if (m != n->group.me && n->table->lost(n->transport, m, why, sizeof why))
            s = pl_error(PL_ERR_PEER, "network", "%s", why);
    n->table->unregister_memory(n->transport, memory);
    return s;
}

static pl_status run(struct pl_world *w, const char *name)
{
    const struct pl_transport_options o = {.channels = 2, .timeout_ms = 30000};
    struct pl_network n = {.transport = NULL};
    int rank[64];
    char why[1024] = "";
    for (int i = 0; i < w->ranks; i++)
        rank[i] = i;
    PL_TRY(pl_transport_find(w, name, &o, &n.table, why, sizeof why));
    pl_status s = pl_world_agree(w, pl_network_open(w, &o, rank, w->ranks, w->nodes == 1, &n));
    for (uint64_t step = 0; s == PL_OK && step < STEPS; step++)
        s = around(&n, step);
    if (s == PL_OK && n.table->forget)
        s = pl_world_agree(w, give_up_some(&n)); /* before the first one closes */
    if (s == PL_OK && w->rank == 0)
        printf("%s: %s; %d ranks, %d steps of %d bytes, %d given up\n", why, n.how, w->ranks, STEPS, BYTES, n.table->forget ? GIVEN_UP : 0);
    pl_network_close(&n, s < 0);
    return s;
}

int main(int argc, char **argv)
{
    struct pl_world w;
    pl_status s = pl_world_start(&argc, &argv, &w);
    if (s == PL_OK && argc == 2 && w.ranks <= 64)
        s = run(&w, argv[1]);
    return pl_world_finish(&w, s);
}
