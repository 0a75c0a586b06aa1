/* cpu: the backend on the node's own cores. What its files share; other rooms see backend.h only.
 *
 * Threads: every operation, the matrix products too, is cut into parts here and each part runs on
 * one thread of the process's pool, BLAS inside it single-threaded. So there is one team of threads
 * and not two that fight for the cores, and the cut, thus every rounding, depends on the shapes and
 * the number of threads alone. oneDNN brings an OpenMP team of its own; once a plan uses it the pool's
 * loops run on that team. */
#ifndef PL_BACKEND_CPU_H
#define PL_BACKEND_CPU_H

#include "backend/backend.h"

extern const struct pl_backend_table pl_backend_cpu;

struct pl_cpu_dnnl;  /* dnnl.c: oneDNN's engine and stream */
struct pl_cpu_lanes; /* lanes.h: our own products */

struct pl_backend {
    int threads;
    bool blas_parallel;    /* several threads may be inside BLAS at once */
    char *scratch;         /* one for all plans: only one runs at a time */
    size_t scratch_bytes;
    char *canonical;       /* one for all plans that cannot read what is blocked (layout.c) */
    size_t canonical_bytes;
    const struct pl_cpu_lanes *lanes; /* NULL: none for this processor */
    struct pl_cpu_dnnl *dnnl; /* NULL: not built in */
    bool bf16;                /* activations, where they have blocks or are rows, and what is multiplied */
};

/* What a kind of operation makes of blocked inputs: it has them brought into canonical order; it goes
 * through them as they lie, if they all lie alike; or it says itself. */
enum pl_cpu_layouts { PL_CPU_CANONICAL, PL_CPU_SAME, PL_CPU_OWN };
/* Where it goes through bf16, inputs and output alike: nowhere, in blocks, everywhere. Mixed: in canonical order each may be either. */
enum pl_cpu_halves { PL_CPU_FLOATS, PL_CPU_HALF_BLOCKS, PL_CPU_HALVES, PL_CPU_MIXED };

struct pl_cpu_kind {
    enum pl_cpu_layouts layouts;
    enum pl_cpu_halves halves;
    bool rectifies; /* does op.relu in its own loops */
    pl_status (*plan)(struct pl_plan *p); /* checks, and makes p->state; p->op is set */
    void (*destroy)(struct pl_plan *p);   /* also after a plan that failed half way */
    pl_status (*forward)(struct pl_plan *p, const struct pl_io *io);
    pl_status (*backward)(struct pl_plan *p, const struct pl_io *io);
};

struct pl_plan {
    struct pl_op op;
    struct pl_backend *backend;
    const struct pl_cpu_kind *kind;
    void *state; /* the kind's own, of pl_alloc */
    bool converts; /* its inputs come blocked or bf16, and it wants them canonical */
};

/* cpu.c: for kinds without state, or whose state is one allocation. */
pl_status pl_cpu_plan_nothing(struct pl_plan *p);
void pl_cpu_destroy_state(struct pl_plan *p);
/* Makes the shared scratch at least this large. At plan time; read b->scratch at run time only. */
pl_status pl_cpu_scratch(struct pl_backend *b, size_t bytes);
/* PL_ERR_USAGE that names the layer and the backend. */
pl_status pl_cpu_refuse(const struct pl_op *op, const char *why);

/* The channels view of an activation [N, C, H, W] or [N, C]. */
struct pl_cpu_dims {
    int64_t n, c, h, w;
};
struct pl_cpu_dims pl_cpu_dims(const struct pl_shape *s); /* missing dims are 1; w takes the rest */

/* layout.c */
struct pl_layout pl_cpu_layout(struct pl_backend *b, const struct pl_op *op);
pl_status pl_cpu_convert_plan(struct pl_plan *p); /* sets converts, with the memory for it */
/* io with canonical copies of the blocked inputs, and dx to be written in canonical order. */
struct pl_io pl_cpu_convert_in(struct pl_plan *p, const struct pl_io *io);
/* A tensor from canonical order into blocks, the last one filled up with zeros, or back. */
void pl_cpu_copy_blocks(const struct pl_backend *b, const struct pl_cpu_dims *d, int64_t block, const float *from, float *to, bool into_blocks);
void pl_cpu_convert_out(struct pl_plan *p, const struct pl_io *io); /* dx back into its blocks */
/* n elements from float to bf16, or back; here: by the calling thread. */
void pl_cpu_round_here(const float *from, void *to, int64_t n);
void pl_cpu_round(const struct pl_backend *b, const float *from, void *to, int64_t n);
void pl_cpu_widen(const struct pl_backend *b, const void *from, float *to, int64_t n);

/* activation.c: of a plan that ends with a rectifier: y itself, and dy where y is 0. */
void pl_cpu_relu_end(const struct pl_backend *b, void *y, bool half, int64_t n);
void pl_cpu_relu_mask(const struct pl_backend *b, const void *y, void *dy, bool half, int64_t n);

/* parts.c: n items in at most `threads` parts of at least `grain`, part p from n*p/parts on. */
typedef void pl_cpu_part_fn(void *arg, int part, int64_t begin, int64_t end);
int pl_cpu_part_count(const struct pl_backend *b, int64_t n, int64_t grain);
void pl_cpu_parts(const struct pl_backend *b, int64_t n, int64_t grain, pl_cpu_part_fn *body,
                  void *arg);
void pl_cpu_take_team(void); /* at plan time: a plan uses oneDNN */
#define PL_CPU_GRAIN 16384 /* elements below which a second thread costs more than it brings */

/* blas.c: C[m,n] = alpha A B + beta C, row-major, on the calling thread alone. */
struct pl_cpu_gemm {
    bool ta, tb; /* a is stored [k, m]; b is stored [n, k] */
    int64_t m, n, k;
    const float *a;
    int64_t lda;
    const float *b;
    int64_t ldb;
    float beta;
    float *c;
    int64_t ldc;
};
void pl_cpu_gemm_here(const struct pl_cpu_gemm *g);
void pl_cpu_gemm(const struct pl_backend *b, const struct pl_cpu_gemm *g); /* cut over the pool */
pl_status pl_cpu_gemm_check(const struct pl_op *op, int64_t m, int64_t n, int64_t k);
bool pl_cpu_blas_open(int threads); /* true: several threads may be inside BLAS at once */
void pl_cpu_blas_describe(char *text, size_t bytes);
const char *pl_cpu_instructions(void); /* the widest vectors of this processor that our own loops know, by name */

/* dnnl.c and conv_dnnl.c; without PL_HAVE_DNNL none of them exists. */
struct pl_cpu_dnnl *pl_cpu_dnnl_open(void); /* NULL with the error recorded */
void pl_cpu_dnnl_close(struct pl_cpu_dnnl *d);
bool pl_cpu_dnnl_bf16(void); /* the processor multiplies bf16, and oneDNN knows how */
bool pl_cpu_dnnl_amx(void);  /* whole tiles of it at once */
/* Which of a convolution's three passes oneDNN takes; the others are im2col's. */
struct pl_cpu_conv_dnnl;
/* The blocked layout in which it takes all passes of op, or canonical. */
struct pl_layout pl_cpu_conv_dnnl_layout(struct pl_backend *b, const struct pl_op *op);
struct pl_cpu_conv_dnnl *pl_cpu_conv_dnnl_create(const struct pl_plan *p); /* NULL: none of them */
bool pl_cpu_conv_dnnl_whole(const struct pl_cpu_conv_dnnl *d, const struct pl_op *op); /* has all passes that op needs */
void pl_cpu_conv_dnnl_destroy(struct pl_cpu_conv_dnnl *d);
/* false: not taken, nothing done. */
bool pl_cpu_conv_dnnl_forward(struct pl_cpu_conv_dnnl *d, const struct pl_io *io, pl_status *s);
bool pl_cpu_conv_dnnl_weights(struct pl_cpu_conv_dnnl *d, const struct pl_io *io, pl_status *s);
bool pl_cpu_conv_dnnl_data(struct pl_cpu_conv_dnnl *d, const struct pl_io *io, pl_status *s);

/* dense.c: to[columns] = or += the sums over rows of from, which is of floats or bf16; a row begins `stride` elements behind the one
 * before. Every sum in the order of the rows. */
void pl_cpu_sum_rows(const struct pl_backend *b, const void *from, bool half, int64_t rows, int64_t columns, int64_t stride, float *to, bool accumulate);

/* dense_narrow.c: a dense layer's products for a batch that is narrow against the weights */
pl_status pl_cpu_dense_narrow_plan(const struct pl_plan *p, bool *narrow);
void pl_cpu_dense_narrow_forward(struct pl_plan *p, const struct pl_io *io);
void pl_cpu_dense_narrow_weights(struct pl_plan *p, const struct pl_io *io);

/* dense_bf16.c; NULL: the backend's precision is another. forward and backward: but for the gradient of the bias. */
struct pl_cpu_dense_bf16;
pl_status pl_cpu_dense_bf16_create(const struct pl_plan *p, struct pl_cpu_dense_bf16 **out);
void pl_cpu_dense_bf16_destroy(struct pl_cpu_dense_bf16 *d);
pl_status pl_cpu_dense_bf16_forward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io);
pl_status pl_cpu_dense_bf16_backward(struct pl_cpu_dense_bf16 *d, const struct pl_io *io);

/* conv_winograd.c */
struct pl_cpu_winograd;
struct pl_cpu_winograd *pl_cpu_winograd_create(const struct pl_plan *p); /* NULL: not for this convolution */
void pl_cpu_winograd_destroy(struct pl_cpu_winograd *g);
void pl_cpu_winograd_forward(struct pl_cpu_winograd *g, const struct pl_io *io);
bool pl_cpu_winograd_backward(struct pl_cpu_winograd *g, const struct pl_io *io); /* false: dx, if it is wanted, is not done */

extern const struct pl_cpu_kind *const pl_cpu_kinds[PL_OP_EUCLIDEAN_LOSS + 1];
extern const struct pl_cpu_kind pl_cpu_dense, pl_cpu_conv, pl_cpu_maxpool, pl_cpu_avgpool,
    pl_cpu_relu, pl_cpu_sigmoid, pl_cpu_tanh, pl_cpu_gelu, pl_cpu_embedding, pl_cpu_position_embedding, pl_cpu_recurrent,
    pl_cpu_attention, pl_cpu_dropout, pl_cpu_batchnorm, pl_cpu_layernorm, pl_cpu_lrn,
    pl_cpu_concat, pl_cpu_add, pl_cpu_softmax_loss, pl_cpu_sigmoid_loss, pl_cpu_euclidean_loss;

#endif
