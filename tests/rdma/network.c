/* Ranks of mpirun that meet over MPI and then talk by a transport: network NAME. Each sends to the next around the
 * ring, for some steps; as the exchange does, but for what is sent. */
#include "exchange/group.h"

#include <string.h>

enum { STEPS = 5, BYTES = 300000 };
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
    if (s == PL_OK && w->rank == 0)
        printf("%s: %s; %d ranks, %d steps of %d bytes\n", why, n.how, w->ranks, STEPS, BYTES);
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
