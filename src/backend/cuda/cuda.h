/* cuda: the backend on an NVIDIA GPU, one a rank. What its files share; other rooms see backend.h only.
 *
 * It is a module of its own, opened at run time (backend/module.c), so that one binary also starts where CUDA's libraries
 * are missing. NVIDIA's headers are included by runtime.c (CUDA runtime), matmul.c (cuBLASLt), convolve.c (cuDNN) and
 * reduce.c (NCCL) alone; *.cu hold kernels behind the plain functions of kernels.h; everything else is C over those. The tests
 * build all of it for the host, over stand-ins for NVIDIA's libraries (tests/cuda), whose device memory is closed to the host
 * now and then.
 *
 * All work goes to one stream in the order of the calls, copies of results to the host to a second one, those of the batch
 * after the present one to a third. A plan's forward and backward only start work: they neither wait for it nor allocate, so
 * that a pass can be captured in a CUDA graph. What changes from pass to pass without a change of shapes (rows, seeds) kernels
 * read from device memory (struct pl_cuda_pass). */
#ifndef PL_BACKEND_CUDA_H
#define PL_BACKEND_CUDA_H

#include "backend/backend.h"
#include "backend/cuda/kernels.h"

static inline size_t pl_cuda_element_bytes(const struct pl_cuda_view *v) { return v->bf16 ? sizeof(uint16_t) : sizeof(float); }
/* Of n elements, such that what lies behind them is aligned as memory of its own would be. */
static inline size_t pl_cuda_copy_bytes(int64_t n, bool bf16) { return ((size_t)n * (bf16 ? sizeof(uint16_t) : sizeof(float)) + 255) / 256 * 256; }

extern const struct pl_backend_table pl_backend_cuda;

struct pl_cuda_device; /* runtime.c: the device, its streams and events */

struct pl_backend {
    struct pl_cuda_device *device;
    struct pl_device_options options;
    pl_cuda_stream stream;         /* for kernels.h */
    struct pl_cuda_pass pass;      /* as it is on the device */
    struct pl_cuda_pass *pass_far; /* device memory */
    struct pl_cuda_blas *blas;     /* matmul.c; made by the first plan that needs it */
    struct pl_cuda_dnn *dnn;       /* convolve.c; likewise */
    void *scratch;                 /* device memory, one for all plans: they run one after the other */
    size_t scratch_bytes;
    void *copies;                  /* device memory, likewise, for tensors in another layout than they came in: scratch is in use beside it */
    size_t copies_bytes;
    int recordings;                /* that are there */
    struct pl_cuda_retired *retired; /* memory that one of them may use */
};

struct pl_cuda_retired { void *memory; struct pl_cuda_retired *next; };

struct pl_cuda_kind {
    bool rectifies;                       /* does op.relu itself, forward and backward */
    bool any_layout;                      /* takes lx and ly as they are: canonical or channels last; otherwise the inputs
                                             are brought into canonical order before, and dx back after */
    bool by_channels;                     /* any_layout, but not of a flattened tensor, whose channels are others */
    bool takes_bf16;                      /* without any_layout: an input in canonical order may be of bf16, and the output too */
    pl_status (*plan)(struct pl_plan *p); /* checks, and makes p->state; p->op is set */
    void (*destroy)(struct pl_plan *p);   /* also after a plan that failed half way */
    pl_status (*forward)(struct pl_plan *p, const struct pl_io *io);
    pl_status (*backward)(struct pl_plan *p, const struct pl_io *io);
    pl_status (*sums)(struct pl_plan *p, const struct pl_io *io); /* of a loss: downloads what its last forward found, adds it to io->sums */
};

struct pl_plan {
    struct pl_op op;
    struct pl_backend *backend;
    const struct pl_cuda_kind *kind;
    void *state;             /* host memory of pl_alloc */
    void *far;               /* device memory of pl_cuda_alloc */
    bool converts;           /* the input comes as the kind does not take it: a copy of it is brought into canonical order before */
    struct pl_cuda_view came; /* then: as it came; x is of the copy */
    size_t converted_bytes;  /* of the backend's copies, that it takes */
    struct pl_cuda_view x[PL_MAX_INPUTS], y; /* how they lie: from op by pl_cuda_view_of */
};

/* cuda.c */
void pl_cuda_destroy_state(struct pl_plan *p); /* frees state and far */
pl_status pl_cuda_refuse(const struct pl_op *op, const char *why); /* PL_ERR_USAGE, names the layer and the backend */
struct pl_cuda_view pl_cuda_view_of(const struct pl_shape *s, const struct pl_layout *l);
/* Makes the shared scratch at least this large. At plan time; read b->scratch at run time only. */
pl_status pl_cuda_scratch(struct pl_backend *b, size_t bytes);
pl_status pl_cuda_copies(struct pl_backend *b, size_t bytes); /* the same for b->copies */
/* Brings samples and seeds to the device where they differ from those there. positions: rows of io that are a sample. */
pl_status pl_cuda_begin(struct pl_backend *b, const struct pl_io *io, int64_t positions);

/* runtime.c; every error is PL_ERR_MEMORY (exit 7) and says which call failed, on which device, and what to do. */
pl_status pl_cuda_device_open(const struct pl_device_options *o, struct pl_cuda_device **out, pl_cuda_stream *stream);
void pl_cuda_device_close(struct pl_cuda_device *d);
void pl_cuda_device_describe(const struct pl_cuda_device *d, char *text, size_t bytes);
void pl_cuda_devices_describe(char *text, size_t bytes); /* all that are visible, or why there is none */
int pl_cuda_toolkit_version(void); /* 13000: 13.0 */
void *pl_cuda_alloc(struct pl_cuda_device *d, size_t bytes, const char *what); /* zeroed */
void pl_cuda_free(struct pl_cuda_device *d, void *p);
pl_status pl_cuda_fill(struct pl_cuda_device *d, void *p, int byte, size_t bytes);
size_t pl_cuda_memory_bytes(const struct pl_cuda_device *d); /* of the device, or what a rank may take of it */
/* In the stream's order. upload: `host` may be used again on return; download: waits. */
pl_status pl_cuda_upload(struct pl_cuda_device *d, void *far, const void *host, size_t bytes);
pl_status pl_cuda_download(struct pl_cuda_device *d, void *host, const void *far, size_t bytes);
pl_status pl_cuda_finish(struct pl_cuda_device *d);
/* backend.h's fetch and fetched; host memory that is not pinned makes fetch wait. */
pl_status pl_cuda_fetch(struct pl_cuda_device *d, void *host, const void *far, size_t bytes, uint64_t *ticket);
pl_status pl_cuda_fetched(struct pl_cuda_device *d, uint64_t ticket, bool wait, bool *done);
/* backend.h's ahead, ahead_wait, ahead_taken and copy; host memory that is not pinned makes ahead wait. */
pl_status pl_cuda_ahead(struct pl_cuda_device *d, void *far, const void *host, size_t bytes);
pl_status pl_cuda_ahead_wait(struct pl_cuda_device *d);
pl_status pl_cuda_ahead_taken(struct pl_cuda_device *d);
pl_status pl_cuda_duplicate(struct pl_cuda_device *d, void *to, const void *from, size_t bytes);
void pl_cuda_pin(struct pl_cuda_device *d, void *host, size_t bytes);
void pl_cuda_unpin(struct pl_cuda_device *d, void *host);
/* What work gives to the stream becomes a CUDA graph instead. It may start work and copies within the device, nothing else. */
pl_status pl_cuda_record(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, struct pl_recording **out);
pl_status pl_cuda_replay(struct pl_cuda_device *d, struct pl_recording *r);
void pl_cuda_recording_destroy(struct pl_cuda_device *d, struct pl_recording *r);
pl_status pl_cuda_failed(const struct pl_cuda_device *d, int error, const char *call); /* of a call that was not its own */
pl_status pl_cuda_launched(struct pl_cuda_device *d, const char *what); /* after launches of kernels.h: whether they could be */
/* Median ms of work(arg), for choosing algorithms at set-up; PL_END where work gives that: it does not run. The best so far,
 * negative: none, is left for one that is clearly faster only, so that two runs, whose measurements differ a little, choose the
 * same. */
pl_status pl_cuda_time(struct pl_cuda_device *d, pl_status (*work)(void *arg), void *arg, double *ms);
static inline bool pl_cuda_is_faster(double ms, double best) { return best < 0 || (ms < 0.9 * best && best - ms > 0.02); }

/* ledger.c: what has been allocated on the device, within `limit` bytes (0: any). ask: PL_ERR_MEMORY, with what was asked for and
 * is held, beyond it. */
struct pl_cuda_ledger;
pl_status pl_cuda_ledger_create(double limit, struct pl_cuda_ledger **out);
void pl_cuda_ledger_destroy(struct pl_cuda_ledger *l); /* NULL is fine */
double pl_cuda_ledger_limit(const struct pl_cuda_ledger *l);
pl_status pl_cuda_ledger_ask(struct pl_cuda_ledger *l, size_t bytes, const char *what);
pl_status pl_cuda_ledger_enter(struct pl_cuda_ledger *l, void *p, size_t bytes);
void pl_cuda_ledger_strike(struct pl_cuda_ledger *l, const void *p);

/* matmul.c: row-major C[m,n] = op(A) op(B) (+ C); with bias[n], of float, and a rectifier at the end where the plan says so.
 * bf16: A and B are, and bf16_out: C; all else, and the sums, are float. batch: so many products, 0: one, of matrices that lie one
 * behind the other, without a bias. The algorithm is chosen by measurement when the plan is made. */
struct pl_cuda_matmul_shape { bool ta, tb; int64_t m, n, k, batch; bool accumulate, bias, relu, bf16, bf16_out; uint32_t aligned; }; /* aligned: A, B and C begin at multiples of so many bytes; 0: 64 */
struct pl_cuda_matmul;
pl_status pl_cuda_matmul_create(struct pl_backend *b, const struct pl_cuda_matmul_shape *s, struct pl_cuda_matmul **out);
void pl_cuda_matmul_destroy(struct pl_cuda_matmul *m); /* NULL is fine */
pl_status pl_cuda_matmul_run(struct pl_cuda_matmul *m, const void *a, const void *b, const float *bias, void *c);
void pl_cuda_blas_close(struct pl_cuda_blas *blas);
int pl_cuda_blas_version(void); /* 130002: 13.0.2 */

/* convolve.c: the three products of a convolution. x and y lie as the views say: both canonical, or both channels last, and
 * then weights and their gradients are [out, kh, kw, in/groups] (the caller reorders). bf16: all tensors are, the weights'
 * gradient too, as cuDNN has no other kind; sums are float. Deterministic algorithms only, chosen by measurement when it is
 * made. */
struct pl_cuda_convolve;
pl_status pl_cuda_convolve_create(struct pl_backend *b, const struct pl_op *op, bool channels_last, bool bf16, struct pl_cuda_convolve **out);
void pl_cuda_convolve_destroy(struct pl_cuda_convolve *c); /* NULL is fine */
pl_status pl_cuda_convolve_forward(struct pl_cuda_convolve *c, const void *x, const void *w, void *y);
pl_status pl_cuda_convolve_data(struct pl_cuda_convolve *c, const void *dy, const void *w, void *dx);
pl_status pl_cuda_convolve_weights(struct pl_cuda_convolve *c, const void *x, const void *dy, bool accumulate, void *dw);
void pl_cuda_dnn_close(struct pl_cuda_dnn *dnn);
int pl_cuda_dnn_version(void); /* 91900: 9.19.0 */

/* conv.c: whether it would rather have its tensors channels last */
bool pl_cuda_conv_wants_last(const struct pl_backend *b, const struct pl_op *op);

/* reduce.c: backend.h's */
pl_status pl_cuda_reducer_open(struct pl_backend *b, double timeout_ms, struct pl_reducer **out);
pl_status pl_cuda_reducer_id(struct pl_reducer *r, void *id);
pl_status pl_cuda_reducer_join(struct pl_reducer *r, const void *id, int rank, int ranks);
void pl_cuda_reducer_describe(const struct pl_reducer *r, char *text, size_t bytes);
pl_status pl_cuda_reduce(struct pl_reducer *r, float *v, int64_t n);
pl_status pl_cuda_reduced(struct pl_reducer *r, bool *done);
void pl_cuda_reducer_close(struct pl_reducer *r);
void pl_cuda_nccl_describe(char *text, size_t bytes); /* its version, or why there is none */

/* optimizer.c: backend.h's */
pl_status pl_cuda_optimizer_create(struct pl_backend *b, const struct pl_job *job, const struct pl_slab_tensor *t, int n, struct pl_slab_optimizer **out);
void pl_cuda_optimizer_destroy(struct pl_slab_optimizer *o);
pl_status pl_cuda_optimizer_square_sum(struct pl_slab_optimizer *o, const float *sum, double *out);
pl_status pl_cuda_optimizer_update(struct pl_slab_optimizer *o, const struct pl_slab_update *u);

extern const struct pl_cuda_kind pl_cuda_dense, pl_cuda_conv, pl_cuda_maxpool, pl_cuda_avgpool, pl_cuda_relu, pl_cuda_sigmoid,
    pl_cuda_tanh, pl_cuda_gelu, pl_cuda_embedding, pl_cuda_position_embedding, pl_cuda_recurrent, pl_cuda_attention, pl_cuda_dropout, pl_cuda_batchnorm,
    pl_cuda_layernorm, pl_cuda_lrn, pl_cuda_concat, pl_cuda_add, pl_cuda_softmax_loss, pl_cuda_sigmoid_loss, pl_cuda_euclidean_loss;

#endif
