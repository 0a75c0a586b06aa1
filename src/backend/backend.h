/* backend: where numbers are crunched. A plan is made once per layer at set-up from an operation's
 * shapes and run every step without allocating, looking up or logging. A layer never names a
 * backend and a backend never names a layer kind: they meet in struct pl_op. Activations, parameters
 * and gradients are float32 in canonical layout (channels first, weights [out, in/groups, kh, kw]),
 * but for activations between two plans of a backend, which may be blocked or bf16 (struct pl_layout). */
#ifndef PL_BACKEND_H
#define PL_BACKEND_H

#include "data/data.h"

#define PL_MAX_INPUTS 16
#define PL_MAX_PARAMS 4

struct pl_shape { int dims; int64_t dim[PL_MAX_DIMS]; }; /* dim[0] is the batch's capacity */
int64_t pl_shape_elems(const struct pl_shape *s);
int64_t pl_shape_row_elems(const struct pl_shape *s); /* of one sample */

/* How the channels of a sample lie: canonical, [C, plane], or in blocks beside each other, [C / block,
 * plane, block], as oneDNN's convolutions want them (Georganas et al., SC 2018). The channels fill the
 * blocks, so both take the same memory. A flattened tensor keeps the layout of what it looks at. bf16: an element is the upper
 * half of a float, uint16_t; the pointers of struct pl_io to it are float's all the same. */
struct pl_layout { int64_t block, plane; bool bf16; }; /* block 0: canonical; plane: elements of a channel */
size_t pl_layout_bytes(const struct pl_layout *l, const struct pl_shape *s);

enum pl_op_kind {
    PL_OP_DENSE,          /* y[N,O] = x[N,I] W^T + b; params W [O,I], b [O] (if bias) */
    PL_OP_CONV,           /* params W [O, C/groups, kh, kw], b [O] (if bias) */
    PL_OP_MAXPOOL, PL_OP_AVGPOOL, /* padding counts in neither, but in an average with count_pad as zeros */
    PL_OP_RELU, PL_OP_SIGMOID, PL_OP_TANH,
    PL_OP_GELU,           /* y = x * P(a standard normal number is below x) (Hendrycks and Gimpel 2016), exact; backward reads x */
    PL_OP_EMBEDDING,      /* y[N,T,D]: rows of the param W [entries, D], by x[N,T] (any shape of T numbers), integers below entries */
    PL_OP_POSITION_EMBEDDING, /* y[N,T,F] = x[N,T,F] + the param W [T,F] */
    /* Recurrent cells over the positions of x[N,T,I]; h and c begin with 0. Params W [G*H, I], U [G*H, H] and, if bias, b and bu
     * [G*H], with the gates one below the other as in cuDNN and PyTorch. y[N,T,H] is h at each position; last: y[N,H] at the last one. */
    PL_OP_LSTM,           /* G = 4: i f g o (Hochreiter and Schmidhuber 1997, Gers et al. 2000) */
    PL_OP_GRU,            /* G = 3: r z n, n = tanh(W x + b + r * (U h + bu)) (Cho et al. 2014) */
    /* Scaled dot-product attention of a sequence to itself (Vaswani et al. 2017). x[N,T,3F] is queries, keys and values side by side, of
     * F features each, which are `heads` of D = F / heads features behind one another: y[N,T,F] = softmax(Q K^T / sqrt(D)) V in
     * each head. causal: a position sees itself and those before it. */
    PL_OP_ATTENTION,
    PL_OP_DROPOUT,        /* keeps with 1 - rate, scales by 1 / (1 - rate) in training; identity in evaluation */
    PL_OP_BATCHNORM,      /* over N, H, W of the real rows, with sync those of all ranks; params scale, shift, running mean, running variance [C] */
    PL_OP_LAYERNORM,      /* each row of x[R,F] to mean 0 and variance 1 (Ba et al. 2016); params scale, shift [F], or none */
    PL_OP_LRN,            /* across channels: y = x / (k + alpha/size * sum x^2)^beta (Krizhevsky 2012, Caffe's form) */
    PL_OP_CONCAT,         /* along channels (axis 1) */
    PL_OP_ADD,            /* sum of the inputs; y may be x[0] */
    PL_OP_SOFTMAX_LOSS,   /* x[N,C] (further dims must be 1), int32 label[N], with positions also PL_NO_LABEL; y = probabilities */
    PL_OP_SIGMOID_LOSS,   /* x[N,K], float label[N,K] in [0,1] or int32 label with K = 1; y = probabilities */
    PL_OP_EUCLIDEAN_LOSS  /* x[N,K], float label[N,K]; loss of a sample = sum of squares / 2; y = x */
};

struct pl_op {
    enum pl_op_kind kind;
    const char *name;              /* the layer's, for messages; lives as long as the plan */
    int inputs;
    struct pl_shape x[PL_MAX_INPUTS], y;
    struct pl_layout lx[PL_MAX_INPUTS], ly; /* of x, dx; of y, dy */
    int params;
    struct pl_shape p[PL_MAX_PARAMS];
    bool bias;
    int64_t kernel[2], stride[2], pad_begin[2], pad_end[2], dilation[2], groups; /* h, w */
    bool count_pad;                /* avgpool */
    double rate;                   /* dropout */
    bool last;                     /* recurrent cells */
    int64_t heads; bool causal;    /* attention */
    /* Where not 0: every sample is so many rows of this operation, which dim[0] of x and y counts, and so does io.rows. */
    int64_t positions;
    int64_t first;                 /* dropout: the place of y's first number among a sample's, where only a part of them is here */
    double epsilon, momentum;      /* layernorm: added to the variance; batchnorm: running = momentum * running + (1 - momentum) * batch */
    bool sync;                     /* batchnorm: in training statistics are those of all ranks' rows (io.sum) */
    int64_t size; double alpha, beta, k; /* lrn */
    int64_t label_floats;          /* losses: 0 = int32 classes, one a row */
    double weight;                 /* losses: times the loss in what is trained on */
    double smoothing;              /* softmax_loss: this part of the target is shared by all classes (Szegedy 2016) */
    bool need_dx[PL_MAX_INPUTS];   /* backward must write dx[i] */
    bool train;                    /* backward will be called */
    bool p_bf16;                   /* p[0] comes in bf16 too, only where wants_bf16 says so */
    bool relu;                     /* y = max(y, 0) at the end, only where fuses_relu says so; backward may overwrite dy */
};

static inline int64_t pl_op_positions(const struct pl_op *op) { return op->positions > 0 ? op->positions : 1; }

/* A position whose label is PL_NO_LABEL counts in no sum, and its dx is 0. What the others of its sample count, so that they stand
 * for all of them; label: of its first position. */
#define PL_NO_LABEL (-1)
static inline double pl_label_share(const int32_t *label, int64_t positions)
{
    int64_t labelled = 0;
    for (int64_t i = 0; i < positions; i++)
        labelled += label[i] != PL_NO_LABEL;
    return labelled > 0 ? (double)positions / (double)labelled : 0;
}

/* Two sums a channel, and the rows that they are over. 0: the operation sums nothing over ranks. */
static inline int64_t pl_op_sync_values(const struct pl_op *op) { return op->sync ? 2 * op->x[0].dim[1] + 1 : 0; }

/* Sums over the real rows of one forward pass, added to by a loss plan; total is the weight times the loss. */
struct pl_loss_sums { double loss, total, correct, correct5; int64_t rows; };

/* What one run of a plan works on. All buffers have the op's shapes; those not needed are NULL.
 * Rows from `rows` up to the batch's capacity are padding: their inputs are finite, a loss gives
 * them dx = 0, batchnorm leaves them out of its statistics (y and dx of padding rows: 0). */
struct pl_io {
    int64_t rows;                  /* real samples, 0 .. capacity */
    bool train;                    /* training or evaluation behaviour */
    bool accumulate;               /* dp += instead of dp = (dx is always overwritten) */
    const float *x[PL_MAX_INPUTS];
    float *y;
    const float *p[PL_MAX_PARAMS];
    void *p_bf16;                  /* where op.p_bf16: p[0] in bf16, made by forward unless p_bf16_made */
    bool p_bf16_made;
    const void *label;             /* int32_t[N] or float[N, K]; NULL: a loss only writes y */
    struct pl_loss_sums *sums;     /* losses, forward */
    const float *dy;               /* NULL at a loss */
    float *dx[PL_MAX_INPUTS];
    /* Sums over rows, never means. Batchnorm's p[2], p[3] get rows * (batch mean, unbiased variance). */
    float *dp[PL_MAX_PARAMS];
    /* Where op.sync and train: v[n] becomes its sum over all ranks; by the thread that runs the plan, and by every rank, with 0
     * rows too. NULL: there is one rank. n is at most pl_op_sync_values. */
    pl_status (*sum)(void *arg, double *v, int64_t n);
    void *sum_arg;
    uint64_t seed, step_key;       /* dropout: with row_key[], names the random stream */
    uint32_t layer_key;
    const int64_t *row_key;        /* [N] index of the sample in its data set */
};

struct pl_backend; /* a device that was opened */
struct pl_plan;

struct pl_device_options {
    int threads;
    int local_rank, local_ranks; /* among the ranks of this node */
    bool tf32;                   /* matrix products may round their inputs to tf32, where the device has it */
    double memory_limit;         /* of a far backend's memory, bytes; 0: none. For the others' see pl_memory_limit */
    bool bf16;                   /* activations and what is multiplied are bf16; sums, statistics, losses and gradients of parameters float32 */
};

/* The optimizer's pass over slabs that lie with a far backend; the rules are optim's, by job.optimizer. */
struct pl_slab_tensor {
    int64_t offset, elems;
    double lr_mult, decay_mult;
    bool statistic;  /* is averaged instead: momentum * before + (1 - momentum) * sum / samples */
    double momentum;
};
struct pl_slab_update {
    double lr, samples, clip;
    int64_t step;    /* 0-based */
    const float *sum;
    float *params, *slot[2];
};
struct pl_slab_optimizer;
struct pl_reducer; /* sums over ranks, made by the device's own library */
enum { PL_REDUCER_ID_BYTES = 128 };
struct pl_recording; /* a pass that was recorded, to be started as one */

struct pl_backend_table {
    const char *name;
    bool far; /* memory of alloc is not the host's: only upload and download reach it */
    pl_status (*open)(const struct pl_device_options *o, struct pl_backend **out);
    void (*close)(struct pl_backend *b);
    void (*describe)(struct pl_backend *b, char *text, size_t bytes); /* one line for people */
    void *(*alloc)(struct pl_backend *b, size_t bytes, const char *what); /* zeroed; NULL: error recorded */
    void (*free)(struct pl_backend *b, void *p);
    /* In the order of the work that is started. upload: `host` may be used again when it returns; download waits. */
    pl_status (*upload)(struct pl_backend *b, void *device, const void *host, size_t bytes);
    pl_status (*download)(struct pl_backend *b, void *host, const void *device, size_t bytes);
    pl_status (*finish)(struct pl_backend *b); /* waits for all that was started */
    /* Of far ones only. fetch: begins a copy to the host of what the work started so far leaves there; fetched: whether it is
     * there, wait: once it is. Tickets rise by one, and copies end in their order. */
    pl_status (*fetch)(struct pl_backend *b, void *host, const void *far, size_t bytes, uint64_t *ticket);
    pl_status (*fetched)(struct pl_backend *b, uint64_t ticket, bool wait, bool *done);
    /* Of far ones, NULL: none can. Begins a copy there that goes on beside the work that was started, once what was last said to be
     * taken is done with. The host memory stays as it is until ahead_wait, which waits for all such copies; work started
     * after it finds them. ahead_taken: what was sent so has been used by the work started so far and may be overwritten. */
    pl_status (*ahead)(struct pl_backend *b, void *far, const void *host, size_t bytes);
    pl_status (*ahead_wait)(struct pl_backend *b);
    pl_status (*ahead_taken)(struct pl_backend *b);
    pl_status (*copy)(struct pl_backend *b, void *to, const void *from, size_t bytes); /* there, as work is started */
    /* fetch to, and ahead from, this host memory go on by themselves, until it is unpinned. Where it cannot be they are slower. */
    void (*pin)(struct pl_backend *b, void *host, size_t bytes);
    void (*unpin)(struct pl_backend *b, void *host);
    /* Of far ones, NULL: none can. Starts to make what the network takes, in float and canonical order, of pixels that lie there. */
    pl_status (*pixels)(struct pl_backend *b, const struct pl_pixels *p, float *data);
    /* Of a loss plan, after a forward with the same io but without sums: what it found. NULL: forward alone tells. */
    pl_status (*loss_sums)(struct pl_plan *p, const struct pl_io *io);
    /* Of far ones, NULL: none can. What work starts is recorded and not run; then it is started as often as wanted, each time
     * on the same memory, with the rows and keys of io. */
    pl_status (*record)(struct pl_backend *b, const struct pl_io *io, pl_status (*work)(void *arg), void *arg, struct pl_recording **out);
    pl_status (*replay)(struct pl_backend *b, struct pl_recording *r, const struct pl_io *io);
    void (*recording_destroy)(struct pl_backend *b, struct pl_recording *r);
    /* Of far ones, NULL: none can. Who sums is named by an id that one rank makes and all have when they join, which is
     * collective over them, and from then on every rank makes the same calls; no wait for others takes longer than timeout_ms.
     * reduce: starts to sum v[n] over the ranks, in place, once the work started so far is done, and beside what is started
     * after it. reduced: whether all such sums are there; PL_ERR_PEER once they cannot be. */
    pl_status (*reducer_open)(struct pl_backend *b, double timeout_ms, struct pl_reducer **out);
    pl_status (*reducer_id)(struct pl_reducer *r, void *id);
    pl_status (*reducer_join)(struct pl_reducer *r, const void *id, int rank, int ranks);
    void (*reducer_describe)(const struct pl_reducer *r, char *text, size_t bytes);
    pl_status (*reduce)(struct pl_reducer *r, float *v, int64_t n);
    pl_status (*reduced)(struct pl_reducer *r, bool *done);
    void (*reducer_close)(struct pl_reducer *r); /* NULL is fine */
    /* Of far ones, NULL: none can. square_sum: of the trainable gradient, in double, in a fixed order. */
    pl_status (*optimizer)(struct pl_backend *b, const struct pl_job *job, const struct pl_slab_tensor *t, int n, struct pl_slab_optimizer **out);
    void (*optimizer_destroy)(struct pl_slab_optimizer *o);
    pl_status (*square_sum)(struct pl_slab_optimizer *o, const float *sum, double *out);
    pl_status (*update)(struct pl_slab_optimizer *o, const struct pl_slab_update *u);
    /* The layout that the operation's output should have, inputs being laid out as lx says; NULL: the backend
     * knows canonical only. Whatever it answers, a plan takes ly canonical as well. */
    struct pl_layout (*layout)(struct pl_backend *b, const struct pl_op *op);
    /* Whether a plan of this kind can end with a rectifier; NULL: none can. */
    bool (*fuses_relu)(enum pl_op_kind kind);
    /* Whether plans of this kind multiply p[0] as it lies, in bf16, and can have it so from outside; NULL: none can. Then
     * round: n elements to bf16, by the calling thread alone. */
    bool (*wants_bf16)(const struct pl_backend *b, enum pl_op_kind kind);
    void (*round)(const float *from, void *to, int64_t n);
    /* Makes a plan. PL_ERR_USAGE naming op->name and the backend where it cannot. */
    pl_status (*plan)(struct pl_backend *b, const struct pl_op *op, struct pl_plan **out);
    void (*plan_destroy)(struct pl_plan *p);
    pl_status (*forward)(struct pl_plan *p, const struct pl_io *io);
    pl_status (*backward)(struct pl_plan *p, const struct pl_io *io); /* uses what forward left; same x, y, p */
};

/* By device.kind: auto takes cpu. The array of those built in is in backend.c; reference is the oracle. cuda is a module
 * (module.c), opened when it is asked for. */
const struct pl_backend_table *pl_backend_find(const char *name); /* NULL: error recorded */
const struct pl_backend_table *const *pl_backend_list(void);      /* those built in, NULL-terminated, by preference */
/* What the cuda module is built with and sees on this machine; false: why there is none. For doctor. */
bool pl_backend_cuda_describe(char *text, size_t bytes);
/* What of the cpu backend this build and machine have, for doctor and the start event. */
void pl_backend_cpu_describe(char *text, size_t bytes);
/* C[m,n] = A[m,k] B[k,n] with the cpu backend's own matrix product; for bench's peak. */
void pl_backend_cpu_sgemm(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c);

/* True with the name to put into OPENBLAS_CORETYPE where OpenBLAS took this processor for a lesser one. */
bool pl_backend_cpu_core_override(const char **coretype);

#endif
