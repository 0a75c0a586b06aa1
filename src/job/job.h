/* job: YAML to a checked struct. Every key has its type, default and meaning in one table
 * (keys.c); a layer kind's keys stand in a table of the same form beside the layer. Every message
 * names file:line:column; an unknown key is refused with the nearest known name. */
#ifndef PL_JOB_H
#define PL_JOB_H

#include "base/base.h"

enum pl_key_type {
    PL_KEY_INT,    /* int64_t */
    PL_KEY_DOUBLE, /* double */
    PL_KEY_BOOL,   /* bool */
    PL_KEY_TEXT,   /* char *, owned; without a default NULL, also when written as none */
    PL_KEY_CHOICE, /* int: index into choices */
    PL_KEY_PERIOD, /* struct pl_period: "50 steps", "1 epoch", "10 min", "30 s", a bare number is steps */
    PL_KEY_MS,     /* double: "60 s", "500 ms", "10 min"; a bare number is seconds */
    PL_KEY_BYTES,  /* double: "500 MB", "8 GB", "16 GiB"; "none" is 0 */
    PL_KEY_INTS,   /* struct pl_ints; a scalar is a list of one */
    PL_KEY_DOUBLES,/* struct pl_doubles; a scalar is a list of one */
    PL_KEY_TEXTS   /* struct pl_texts; a scalar is a list of one */
};
#define PL_LIST_MAX 16
struct pl_ints { int n; int64_t v[PL_LIST_MAX]; };
struct pl_doubles { int n; double v[PL_LIST_MAX]; };
#define PL_TEXTS_MAX 256
struct pl_texts { int n; char *v[PL_TEXTS_MAX]; };
enum pl_unit { PL_NEVER, PL_STEPS, PL_EPOCHS, PL_MS };
struct pl_period { double n; enum pl_unit unit; };

struct pl_key {
    const char *name;    /* dotted below the job's root; plain for a layer */
    enum pl_key_type type;
    size_t offset;       /* into the struct that is filled */
    const char *def;     /* default, as it would be written; NULL: none (0, NULL, empty) */
    const char *choices; /* PL_KEY_CHOICE: "a|b|c" */
    double min, max;     /* of numbers, periods and list members; both 0: any */
    const char *help;    /* one line */
};

/* A parsed YAML node; keeps its place for messages. */
struct pl_node;

struct pl_job_layer {
    char *name, *kind;
    struct pl_texts from;      /* empty: the layer above, or `data` for the first */
    struct pl_node *node;      /* its own keys; owned by the job */
};
struct pl_job_input { /* input: {data: [1, 28, 28], label: int}; label: int (a class), [int, K] (K of them), or a number K of floats */
    int dims; int64_t dim[PL_MAX_DIMS]; /* of one sample */
    int64_t label_floats;  /* 0: integer classes */
    int64_t label_classes; /* so many of them; 0: one */
};
/* Values of a sample's label. */
static inline int64_t pl_input_labels(const struct pl_job_input *in)
{
    return in->label_floats > 0 ? in->label_floats : in->label_classes > 0 ? in->label_classes : 1;
}
struct pl_memory_set; /* data/ */
struct pl_job_set { /* one of data.train, data.test */
    char *file;              /* resolved path; NULL: none, or files */
    const struct pl_memory_set *memory; /* instead of files, of a program that has the samples; borrowed. No key */
    const char *stage;       /* data.stage; borrowed, NULL: read where the files are */
    struct pl_texts files;   /* resolved paths and patterns, one set in this order */
    char *data, *label;      /* dataset names */
    double scale;
    struct pl_doubles mean, std; /* per channel, in scaled units' input: (x*scale - mean) / std */
    bool shuffle;
    int cache;               /* 0 auto, 1 memory, 2 none */
    bool flip; int64_t crop; int64_t pad; /* augment.flip, .crop (side), .pad (zeros on each side before the crop) */
    int64_t resize;          /* augment.resize: shorter side of a JPEG image before the crop; 0: by the crop */
    int64_t limit;           /* first n samples only; 0: all */
};

enum { PL_FP32, PL_TF32, PL_BF16 };
enum { PL_SYNC_ALLREDUCE, PL_SYNC_LOCAL_SGD, PL_SYNC_DOWNPOUR, PL_SYNC_SANDBLASTER };
enum { PL_TWO_LEVEL_AUTO, PL_TWO_LEVEL_NEVER };
enum { PL_OPTIMIZER_WHOLE, PL_OPTIMIZER_NODE };
enum { PL_DEVICE_AUTO, PL_DEVICE_CPU, PL_DEVICE_REFERENCE, PL_DEVICE_CUDA };
enum pl_optimizer_kind { PL_SGD, PL_MOMENTUM, PL_NESTEROV, PL_ADAGRAD, PL_ADADELTA, PL_RMSPROP, PL_ADAM, PL_ADAMW, PL_LARS };
enum pl_schedule_kind { PL_FIXED, PL_STEP, PL_MULTISTEP, PL_EXP, PL_INV, PL_POLY, PL_COSINE };
enum { PL_DELAY_FIXED, PL_DELAY_EXPONENTIAL, PL_DELAY_PARETO };
enum { PL_RESUME_AUTO, PL_RESUME_NEVER, PL_RESUME_DIR };

struct pl_job {
    char *path;               /* of the job file */
    char *text;               /* whole effective job as YAML, overrides and model included: goes into checkpoints */
    char *model_name;
    struct pl_job_input input;
    int layers; struct pl_job_layer *layer;
    struct pl_job_set train_set, test_set;
    struct { char *stage; int64_t threads; } data; /* threads: of each loader */
    struct {
        double epochs; int64_t steps;       /* exactly one > 0 */
        int64_t batch, global_batch;        /* exactly one > 0 */
        int64_t seed, accumulate, threads;  /* threads 0: world's */
        int precision;
        bool reproducible; int64_t micro_shards; bool sync_bn;
        struct pl_period eval_every;
        int stop_metric; bool stop_on; double stop_above, stop_below; /* metric: accuracy|top5|loss */
        char *init;
    } train;
    struct {
        int kind; double lr, momentum, weight_decay, beta1, beta2, epsilon, rho, trust, clip_norm;
        struct { int kind; double gamma, power, min; struct pl_ints at; int64_t every, total; } schedule; /* steps */
        struct pl_period warmup;
    } optimizer;
    struct { int kind; int64_t backup_workers, tau; bool average_momentum; double grace_ms, suspect_ms, lost_ms; /* tau: 0 if not given and not local_sgd */
             int64_t n_fetch, n_push, max_staleness; struct pl_period warmup; /* 0 if not given and not downpour; max_staleness 0: any */
             int64_t history; double tolerance; } sync; /* 0 if not given and not sandblaster */
    struct { int transport, algorithm, two_level, compress; double compress_ratio; char *table, *interface; int64_t channels; double bucket_mb, timeout_ms; } exchange;
    struct { int64_t pipeline, tensor, microbatches; struct pl_texts at; int optimizer; } split;
    struct { int kind; double memory_limit; /* bytes; 0: none */ } device;
    struct { char *dir; struct pl_period every; int64_t keep; char *resume; bool keep_best, background; int on_error; struct pl_texts signals; } checkpoint;
    struct { char *dir; struct pl_period every; bool timeline; int64_t timeline_steps; } report;
    struct { char *fault; double compute_ms; struct { struct pl_ints rank; double ms, probability, shape; int distribution; } delay; } debug; /* rank: empty: all */
    struct pl_node *root; /* owned */
};

/* Reads the job file and its model, applies overrides ("a.b=c"), checks everything that needs no
 * data. PL_ERR_USAGE with one message. Not collective: rank 0 or all ranks may call. */
pl_status pl_job_read(const char *path, int overrides, char *const *override, struct pl_job **out);
/* The same from the text kept in a checkpoint. */
pl_status pl_job_parse(const char *text, const char *name, struct pl_job **out);
void pl_job_destroy(struct pl_job *j);

/* Fills `config` from a layer's node by its key table (no name, kind, from). */
pl_status pl_job_layer_config(const struct pl_job_layer *l, const struct pl_key *keys, void *config);
void pl_job_layer_config_free(const struct pl_key *keys, void *config);
/* "file:line:column: text" as the error, at a layer. Returns PL_ERR_USAGE. */
pl_status pl_job_layer_error(const struct pl_job_layer *l, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

bool pl_job_set_given(const struct pl_job_set *s); /* by file or files, or in memory */
bool pl_job_given(const struct pl_job *j, const char *key); /* in the job file or on the command line, not by default */

/* The names that sync.kind, train.precision and exchange.transport, .algorithm and .compress give, "auto" and "none" included. */
const char *pl_job_sync_name(const struct pl_job *j);
const char *pl_job_precision_name(const struct pl_job *j);
const char *pl_job_transport_name(const struct pl_job *j);
const char *pl_job_algorithm_name(const struct pl_job *j);
const char *pl_job_compress_name(const struct pl_job *j);

extern const struct pl_key pl_job_keys[]; /* ends with name NULL */
/* One line a key: name, type, default, meaning. To stdout. */
void pl_job_print_keys(const char *prefix, const struct pl_key *keys);
/* Adds "optimizer.lr 0.1 (was 0.01), ..." of the keys that shape what is learnt, where the two jobs differ. Nothing of the
 * model, of what has notes of its own (precision, seed), and of how a run is carried out. */
void pl_job_changes(const struct pl_job *was, const struct pl_job *is, struct pl_text *out);
/* Adds what all ranks of a run need alike: key=VALUE, a line each, then the model. Of paths only whether there is one; nothing of what
 * a node may need otherwise (threads, an interface, memory), and of faults for trials. */
void pl_job_common(const struct pl_job *j, struct pl_text *out);
/* The value of a key in this job, a line, to stdout. PL_ERR_USAGE: there is no such key. */
pl_status pl_job_print_value(const struct pl_job *j, const char *key);

#endif
