/* cuda: the backend's table, the making of plans, and the layouts between them. What an operation does is in the file of its
 * name; the list that maps operations to them is below. */
#include "backend/cuda/cuda.h"

static const struct pl_cuda_kind *const kinds[PL_OP_EUCLIDEAN_LOSS + 1] = {
    [PL_OP_DENSE] = &pl_cuda_dense,
    [PL_OP_CONV] = &pl_cuda_conv,
    [PL_OP_MAXPOOL] = &pl_cuda_maxpool,
    [PL_OP_AVGPOOL] = &pl_cuda_avgpool,
    [PL_OP_RELU] = &pl_cuda_relu,
    [PL_OP_SIGMOID] = &pl_cuda_sigmoid,
    [PL_OP_TANH] = &pl_cuda_tanh,
    [PL_OP_GELU] = &pl_cuda_gelu,
    [PL_OP_EMBEDDING] = &pl_cuda_embedding,
    [PL_OP_POSITION_EMBEDDING] = &pl_cuda_position_embedding,
    [PL_OP_LSTM] = &pl_cuda_recurrent,
    [PL_OP_GRU] = &pl_cuda_recurrent,
    [PL_OP_ATTENTION] = &pl_cuda_attention,
    [PL_OP_DROPOUT] = &pl_cuda_dropout,
    [PL_OP_BATCHNORM] = &pl_cuda_batchnorm,
    [PL_OP_LAYERNORM] = &pl_cuda_layernorm,
    [PL_OP_LRN] = &pl_cuda_lrn,
    [PL_OP_CONCAT] = &pl_cuda_concat,
    [PL_OP_ADD] = &pl_cuda_add,
    [PL_OP_SOFTMAX_LOSS] = &pl_cuda_softmax_loss,
    [PL_OP_SIGMOID_LOSS] = &pl_cuda_sigmoid_loss,
    [PL_OP_EUCLIDEAN_LOSS] = &pl_cuda_euclidean_loss,
};

/* ---- the device --------------------------------------------------------------------------------- */

static void cuda_close(struct pl_backend *b)
{
    if (!b)
        return;
    pl_cuda_blas_close(b->blas);
    pl_cuda_dnn_close(b->dnn);
    if (b->device) {
        pl_cuda_free(b->device, b->scratch);
        pl_cuda_free(b->device, b->copies);
        pl_cuda_free(b->device, b->pass_far);
        for (struct pl_cuda_retired *r = b->retired, *next; r; r = next) {
            next = r->next;
            pl_cuda_free(b->device, r->memory);
            pl_free(r);
        }
    }
    pl_cuda_device_close(b->device);
    pl_free(b);
}

static pl_status cuda_open(const struct pl_device_options *o, struct pl_backend **out)
{
    *out = NULL;
    struct pl_backend *b = pl_alloc(sizeof *b, "the cuda backend");
    if (!b)
        return PL_ERR_MEMORY;
    b->options = *o;
    pl_status s = pl_cuda_device_open(o, &b->device, &b->stream);
    if (s == PL_OK && !(b->pass_far = pl_cuda_alloc(b->device, sizeof b->pass, "the cuda backend")))
        s = PL_ERR_MEMORY;
    if (s < 0)
        cuda_close(b);
    else
        *out = b;
    return s;
}

static void cuda_describe(struct pl_backend *b, char *text, size_t bytes) { pl_cuda_device_describe(b->device, text, bytes); }
static void *cuda_alloc(struct pl_backend *b, size_t bytes, const char *what) { return pl_cuda_alloc(b->device, bytes, what); }
static void cuda_free(struct pl_backend *b, void *p) { pl_cuda_free(b->device, p); }
static pl_status cuda_upload(struct pl_backend *b, void *far, const void *host, size_t bytes) { return pl_cuda_upload(b->device, far, host, bytes); }
static pl_status cuda_download(struct pl_backend *b, void *host, const void *far, size_t bytes) { return pl_cuda_download(b->device, host, far, bytes); }
static pl_status cuda_finish(struct pl_backend *b) { return pl_cuda_finish(b->device); }

static pl_status cuda_fetch(struct pl_backend *b, void *host, const void *far, size_t bytes, uint64_t *ticket)
{
    return pl_cuda_fetch(b->device, host, far, bytes, ticket);
}

static pl_status cuda_fetched(struct pl_backend *b, uint64_t ticket, bool wait, bool *done) { return pl_cuda_fetched(b->device, ticket, wait, done); }
static pl_status cuda_ahead(struct pl_backend *b, void *far, const void *host, size_t bytes) { return pl_cuda_ahead(b->device, far, host, bytes); }
static pl_status cuda_ahead_wait(struct pl_backend *b) { return pl_cuda_ahead_wait(b->device); }
static pl_status cuda_ahead_taken(struct pl_backend *b) { return pl_cuda_ahead_taken(b->device); }
static pl_status cuda_copy(struct pl_backend *b, void *to, const void *from, size_t bytes) { return pl_cuda_duplicate(b->device, to, from, bytes); }
static void cuda_pin(struct pl_backend *b, void *host, size_t bytes) { pl_cuda_pin(b->device, host, bytes); }
static void cuda_unpin(struct pl_backend *b, void *host) { pl_cuda_unpin(b->device, host); }

_Static_assert(sizeof(struct pl_cuda_place) == sizeof(struct pl_pixel_place), "places are the same for both");

static pl_status cuda_pixels(struct pl_backend *b, const struct pl_pixels *p, float *data)
{
    pl_cuda_widen(b->stream, (struct pl_cuda_pixels){.n = p->capacity, .channels = p->channels, .height = p->height, .width = p->width, .value = p->value,
                                                      .place = (const struct pl_cuda_place *)(const void *)p->place, .factor = p->factor}, data);
    return pl_cuda_launched(b->device, "a batch");
}

/* ---- recorded passes ---------------------------------------------------------------------------- */

static pl_status cuda_record(struct pl_backend *b, const struct pl_io *io, pl_status (*work)(void *arg), void *arg, struct pl_recording **out)
{
    PL_TRY(pl_cuda_begin(b, io, 1)); /* so that none of the work has to bring it */
    PL_TRY(pl_cuda_record(b->device, work, arg, out));
    b->recordings++;
    return PL_OK;
}

static pl_status cuda_replay(struct pl_backend *b, struct pl_recording *r, const struct pl_io *io)
{
    PL_TRY(pl_cuda_begin(b, io, 1));
    return pl_cuda_replay(b->device, r);
}

static void cuda_recording_destroy(struct pl_backend *b, struct pl_recording *r)
{
    pl_cuda_recording_destroy(b->device, r);
    b->recordings--;
}

/* ---- what the files of the operations use ------------------------------------------------------- */

void pl_cuda_destroy_state(struct pl_plan *p)
{
    pl_free(p->state);
    pl_cuda_free(p->backend->device, p->far);
}

pl_status pl_cuda_refuse(const struct pl_op *op, const char *why)
{
    return pl_error(PL_ERR_USAGE, "backend", "cuda cannot compute layer %s: %s", op->name ? op->name : "?", why);
}

static bool last(const struct pl_layout *l) { return l->block > 1 && l->plane > 1; }

struct pl_cuda_view pl_cuda_view_of(const struct pl_shape *s, const struct pl_layout *l)
{
    struct pl_cuda_view v = {.n = s->dim[0], .c = s->dims > 1 ? s->dim[1] : 1, .h = s->dims > 2 ? s->dim[2] : 1, .w = 1};
    for (int k = 3; k < s->dims; k++)
        v.w *= s->dim[k];
    if (last(l) && v.c != l->block) { /* flattened: what it looks at has these channels */
        v.c = l->block;
        v.h = l->plane;
        v.w = 1;
    }
    v.sn = v.c * v.h * v.w;
    v.sc = last(l) ? 1 : v.h * v.w;
    v.sp = last(l) ? v.c : 1;
    v.bf16 = l->bf16;
    return v;
}

/* A recorded pass goes on using the memory that was there when it was recorded. */
static pl_status retire(struct pl_backend *b, void *memory)
{
    struct pl_cuda_retired *r = b->recordings > 0 && memory ? pl_alloc(sizeof *r, "memory that is still in use") : NULL;
    if (!r && b->recordings > 0 && memory)
        return PL_ERR_MEMORY;
    if (!r) {
        pl_cuda_free(b->device, memory);
        return PL_OK;
    }
    *r = (struct pl_cuda_retired){memory, b->retired};
    b->retired = r;
    return PL_OK;
}

static pl_status grow(struct pl_backend *b, void **memory, size_t *have, size_t bytes, const char *what)
{
    if (bytes <= *have)
        return PL_OK;
    PL_TRY(retire(b, *memory));
    *have = 0;
    *memory = pl_cuda_alloc(b->device, bytes, what);
    if (!*memory)
        return PL_ERR_MEMORY;
    *have = bytes;
    return PL_OK;
}

pl_status pl_cuda_scratch(struct pl_backend *b, size_t bytes) { return grow(b, &b->scratch, &b->scratch_bytes, bytes, "the cuda backend's scratch memory"); }

pl_status pl_cuda_copies(struct pl_backend *b, size_t bytes) { return grow(b, &b->copies, &b->copies_bytes, bytes, "the cuda backend's copies in another layout"); }

pl_status pl_cuda_begin(struct pl_backend *b, const struct pl_io *io, int64_t positions)
{
    const struct pl_cuda_pass pass = {.rows = io->rows / positions, .seed = io->seed, .step_key = io->step_key};
    if (pass.rows == b->pass.rows && pass.seed == b->pass.seed && pass.step_key == b->pass.step_key)
        return PL_OK;
    PL_TRY(pl_cuda_upload(b->device, b->pass_far, &pass, sizeof pass));
    b->pass = pass;
    return PL_OK;
}

/* ---- layouts ------------------------------------------------------------------------------------ */

static bool all_last(const struct pl_op *op)
{
    for (int i = 0; i < op->inputs; i++)
        if (!last(&op->lx[i]) || op->x[i].dims != 4)
            return false;
    return op->inputs > 0;
}

static bool all_bf16(const struct pl_op *op)
{
    for (int i = 0; i < op->inputs; i++)
        if (!op->lx[i].bf16)
            return false;
    return op->inputs > 0;
}

/* Channels last begins at a convolution that wants it, goes through all that takes any layout, and ends at what does not. bf16
 * begins at a product and ends before a loss. */
static struct pl_layout cuda_layout(struct pl_backend *b, const struct pl_op *op)
{
    bool product = op->kind == PL_OP_CONV || op->kind == PL_OP_DENSE, any = kinds[op->kind]->any_layout;
    struct pl_layout l = {.bf16 = product ? b->options.bf16 : any && all_bf16(op)};
    if (op->y.dims != 4 || op->y.dim[2] * op->y.dim[3] == 1) /* one element a channel: both orders are the same */
        return l;
    if (op->kind == PL_OP_CONV ? pl_cuda_conv_wants_last(b, op) : any && all_last(op)) {
        l.block = op->y.dim[1];
        l.plane = op->y.dim[2] * op->y.dim[3];
    }
    return l;
}

/* Kinds that do not take any layout have one input: its copy in canonical order, and behind it that of its gradient. So have
 * those that go by channels where a flattened tensor lies by those of what it looks at. */
static pl_status plan_conversion(struct pl_plan *p)
{
    bool any = p->kind->any_layout, flattened = p->kind->by_channels && p->op.x[0].dims != 4, bf16 = any || p->kind->takes_bf16;
    p->converts = (last(&p->op.lx[0]) && (!any || flattened)) || (p->op.lx[0].bf16 && !bf16);
    if (!p->converts)
        return PL_OK;
    p->came = p->x[0];
    p->x[0] = pl_cuda_view_of(&p->op.x[0], &(struct pl_layout){.bf16 = p->came.bf16 && bf16});
    p->converted_bytes = 2 * pl_cuda_copy_bytes(pl_shape_elems(&p->op.x[0]), p->x[0].bf16);
    return pl_cuda_copies(p->backend, p->converted_bytes);
}

/* The copy, seen with the channels of what came. */
static struct pl_cuda_view converted(const struct pl_plan *p)
{
    struct pl_cuda_view v = p->came;
    v.sc = v.h * v.w;
    v.sp = 1;
    v.bf16 = p->x[0].bf16;
    return v;
}

static void *converted_dx(const struct pl_plan *p) { return (char *)p->backend->copies + p->converted_bytes / 2; }

static struct pl_io convert_in(const struct pl_plan *p, const struct pl_io *io)
{
    struct pl_io in = *io;
    pl_cuda_copy(p->backend->stream, io->x[0], p->came, p->backend->copies, converted(p), false);
    in.x[0] = p->backend->copies;
    if (io->dx[0])
        in.dx[0] = converted_dx(p);
    return in;
}

static void convert_out(const struct pl_plan *p, const struct pl_io *io)
{
    if (p->op.need_dx[0] && io->dx[0])
        pl_cuda_copy(p->backend->stream, converted_dx(p), converted(p), io->dx[0], p->came, false);
}

/* ---- plans -------------------------------------------------------------------------------------- */

static bool cuda_fuses_relu(enum pl_op_kind kind)
{
    return kind == PL_OP_CONV || kind == PL_OP_BATCHNORM || kind == PL_OP_ADD || kind == PL_OP_DENSE;
}

static void cuda_plan_destroy(struct pl_plan *p)
{
    if (!p)
        return;
    p->kind->destroy(p);
    pl_free(p);
}

static pl_status cuda_plan(struct pl_backend *b, const struct pl_op *op, struct pl_plan **out)
{
    *out = NULL;
    if ((size_t)op->kind >= sizeof kinds / sizeof *kinds || !kinds[op->kind])
        return pl_cuda_refuse(op, "this kind of operation is unknown to it");
    struct pl_plan *p = pl_alloc(sizeof *p, "a plan");
    if (!p)
        return PL_ERR_MEMORY;
    p->op = *op;
    p->backend = b;
    p->kind = kinds[op->kind];
    for (int i = 0; i < op->inputs; i++)
        p->x[i] = pl_cuda_view_of(&op->x[i], &op->lx[i]);
    p->y = pl_cuda_view_of(&op->y, &op->ly);
    pl_status s = plan_conversion(p);
    if (s == PL_OK)
        s = p->kind->plan(p);
    if (s < 0)
        cuda_plan_destroy(p);
    else
        *out = p;
    return s;
}

static pl_status cuda_forward(struct pl_plan *p, const struct pl_io *io)
{
    PL_TRY(pl_cuda_begin(p->backend, io, pl_op_positions(&p->op)));
    struct pl_io in = p->converts ? convert_in(p, io) : *io;
    PL_TRY(p->kind->forward(p, &in));
    if (p->op.relu && !p->kind->rectifies)
        pl_cuda_bias(p->backend->stream, io->y, p->y, NULL, true);
    return pl_cuda_launched(p->backend->device, p->op.name);
}

static pl_status cuda_backward(struct pl_plan *p, const struct pl_io *io)
{
    PL_TRY(pl_cuda_begin(p->backend, io, pl_op_positions(&p->op)));
    if (p->op.relu && !p->kind->rectifies)
        pl_cuda_relu_mask(p->backend->stream, io->y, (float *)(uintptr_t)io->dy, p->y);
    struct pl_io in = p->converts ? convert_in(p, io) : *io;
    PL_TRY(p->kind->backward(p, &in));
    if (p->converts)
        convert_out(p, io);
    return pl_cuda_launched(p->backend->device, p->op.name);
}

static pl_status cuda_loss_sums(struct pl_plan *p, const struct pl_io *io) { return p->kind->sums(p, io); }

const struct pl_backend_table pl_backend_cuda = {
    .name = "cuda",
    .far = true,
    .open = cuda_open,
    .close = cuda_close,
    .describe = cuda_describe,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .upload = cuda_upload,
    .download = cuda_download,
    .finish = cuda_finish,
    .fetch = cuda_fetch,
    .fetched = cuda_fetched,
    .ahead = cuda_ahead,
    .ahead_wait = cuda_ahead_wait,
    .ahead_taken = cuda_ahead_taken,
    .copy = cuda_copy,
    .pin = cuda_pin,
    .unpin = cuda_unpin,
    .pixels = cuda_pixels,
    .record = cuda_record,
    .replay = cuda_replay,
    .recording_destroy = cuda_recording_destroy,
    .layout = cuda_layout,
    .fuses_relu = cuda_fuses_relu,
    .plan = cuda_plan,
    .plan_destroy = cuda_plan_destroy,
    .forward = cuda_forward,
    .backward = cuda_backward,
    .loss_sums = cuda_loss_sums,
    .reducer_open = pl_cuda_reducer_open,
    .reducer_id = pl_cuda_reducer_id,
    .reducer_join = pl_cuda_reducer_join,
    .reducer_describe = pl_cuda_reducer_describe,
    .reduce = pl_cuda_reduce,
    .reduced = pl_cuda_reduced,
    .reducer_close = pl_cuda_reducer_close,
    .optimizer = pl_cuda_optimizer_create,
    .optimizer_destroy = pl_cuda_optimizer_destroy,
    .square_sum = pl_cuda_optimizer_square_sum,
    .update = pl_cuda_optimizer_update,
};
