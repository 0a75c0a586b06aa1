/* base: what every room stands on. Status and messages, memory, threads and queues, the clock, a
 * counter-based random generator, hashes, fault points, and the only door to HDF5.
 * Includes nothing else of ours. Thread-safe unless a line says otherwise. */
#ifndef PL_BASE_H
#define PL_BASE_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PL_VERSION "0.1.0"

/* One function compiled for several instruction sets, chosen when the program is loaded (an ifunc,
 * which the sanitizers' start-up cannot bear; clang 14 has no target_clones worth the name). */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define PL_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define PL_CLONES
#endif
/* What such a function calls must be compiled into it: alone it would have the least instruction set. */
#define PL_WITHIN static inline __attribute__((always_inline))

/* Between two looks at memory that another core is about to write. */
#if defined(__x86_64__)
#define pl_relax() __builtin_ia32_pause()
#else
#define pl_relax() ((void)0)
#endif

/* ---- status.c: what a function returns, and the one message of a failure -------------------- */

/* 0 is success, a negative value an error whose message was recorded by whoever found it, a positive
 * value news. An error maps to the exit code of the design, section 10. */
typedef int pl_status;
enum {
    PL_OK = 0,
    PL_ERR_USAGE = -2,      /* exit 2: usage or job file */
    PL_ERR_DATA = -3,       /* exit 3: data */
    PL_ERR_NOT_FINITE = -4, /* exit 4: the loss is not finite */
    PL_ERR_PEER = -5,       /* exit 5: a peer or the network */
    PL_ERR_CHECKPOINT = -6, /* exit 6: checkpoint, or anything else that is written */
    PL_ERR_MEMORY = -7,     /* exit 7: out of memory or compute device */
    PL_ERR_ECHO = -100,     /* a consequence of another rank's failure: no message of its own, exit 5 */
    PL_END = 1,             /* no more items */
    PL_STOPPED = 75         /* stopped on a signal after a checkpoint: exit 75 */
};

/* Returns at once with the error of `call`. For functions without clean-up. */
#define PL_TRY(call)                  \
    do {                              \
        pl_status pl_try_s_ = (call); \
        if (pl_try_s_ < 0)            \
            return pl_try_s_;         \
    } while (0)

/* The process's exit code of a status. */
int pl_exit_code(pl_status s);

/* Records "ROOM: text" as this process's error if none is recorded yet, and returns `s`. A '\n' in
 * the text starts the line that says what to do. Any thread. */
pl_status pl_error(pl_status s, const char *room, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The recorded message, or NULL. Valid until pl_error_clear. */
const char *pl_error_text(void);
void pl_error_clear(void); /* for tests and for probes that may fail */

/* ---- log.c: stderr for people; stdout belongs to results --------------------------------------- */

/* Which rank of how many speaks, and the step it is in; printed before a message. */
void pl_log_identity(int rank, int ranks, const char *host);
void pl_log_step(int64_t step); /* -1: not in a step */
/* "[rank 3/64 node17 step 1200] text\n" in one write. */
void pl_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same, only on rank 0 and without the prefix. */
void pl_log_root(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- memory.c: 64-byte aligned, zeroed, counted ------------------------------------------------ */

/* Memory of at least `bytes`, zeroed, aligned to 64. NULL (with the error recorded, naming `what`)
 * where there is none. Owner: the caller, pl_free. */
void *pl_alloc(size_t bytes, const char *what);
/* The same in whole pages, which nothing else is in: for what is pinned. */
void *pl_alloc_pages(size_t bytes, const char *what);
/* So many processes of this machine, 1 before, will ask for the same: of pieces of 64 MB or more what the machine, or the
 * cgroup, could not give them all is refused, before the system ends one of them without a word. */
void pl_alloc_sharers(int processes);
/* Counts with them memory that is not theirs: this process's share of what it maps together with others. false: that is more than
 * there is. */
bool pl_memory_hold(size_t bytes);
void pl_memory_release(size_t bytes);
/* From here on this process has at most so many bytes of its own, 0: any; name: of the setting, for messages, kept. Memory of
 * libraries is not counted. */
void pl_memory_limit(double bytes, const char *name);
double pl_memory_left(void); /* bytes, under that limit; infinite: there is none */
double pl_memory_info(const char *name); /* bytes, by a name in /proc/meminfo; infinite: it does not say */
void *pl_alloc_alone(size_t bytes, const char *what); /* as pl_alloc, where the others do not ask for the same */
void *pl_realloc(void *p, size_t old_bytes, size_t new_bytes, const char *what);
void pl_free(void *p); /* NULL is fine */
char *pl_strdup(const char *s);
char *pl_strdupf(const char *fmt, ...) __attribute__((format(printf, 1, 2), nonnull(1)));
/* Calls of pl_alloc so far in this process: a test counts that a step makes none. */
uint64_t pl_alloc_count(void);
/* Size arithmetic that refuses to wrap: false on overflow. */
bool pl_mul_size(size_t a, size_t b, size_t *out);
/* n as MPI's or BLAS's int; aborts the call with PL_ERR_USAGE when it does not fit. */
pl_status pl_narrow_int(int64_t n, const char *what, int *out);

/* ---- clock.c ------------------------------------------------------------------------------------ */

double pl_now_ms(void); /* monotonic, since an arbitrary start */
void pl_sleep_ms(double ms);
void pl_sleep_until_ms(double when_ms); /* on pl_now_ms's clock */
/* Absolute CLOCK_REALTIME time `ms` from now, for pthread_cond_timedwait. */
struct timespec;
void pl_deadline(double ms, struct timespec *out);

/* ---- trace.c: what the threads of this process do, when (report.timeline) ----------------------- */

enum { PL_TRACE_THREADS = 64 }; /* told apart */
struct pl_trace_event {
    const char *what, *name; /* kind of work, and of what; they live until the event is taken */
    int64_t number;          /* of a step, a bucket ...; -1: none */
    double begin_ms, end_ms; /* pl_now_ms */
    int thread;
    bool beside;             /* others of its kind are under way at the same time */
};
pl_status pl_trace_start(void);
void pl_trace_stop(void); /* what was not taken is gone */
/* Any thread; end with what begin gave, which is 0 where nothing is traced, and end does nothing then. */
double pl_trace_begin(void);
void pl_trace_end(double begin_ms, const char *what, const char *name, int64_t number);
void pl_trace_end_beside(double begin_ms, const char *what, const char *name, int64_t number);
/* The oldest, `most` at most; how many. missing: for which there was no room. Main thread. */
int pl_trace_take(struct pl_trace_event *out, int most, int64_t *missing);
const char *pl_trace_thread(int thread); /* what it is called */

/* ---- rng.c: Philox-4x32-10 (Salmon et al., SC'11): a pure function of key and counter -------- */

/* A stream is named by a seed and up to three numbers (say epoch, sample, layer): the same name
 * gives the same numbers on every rank and after every restart. */
struct pl_rng {
    uint32_t key[2], counter[4], out[4];
    int used; /* of out[] */
};
struct pl_rng pl_rng_make(uint64_t seed, uint64_t a, uint64_t b, uint32_t c);
uint32_t pl_rng_u32(struct pl_rng *r);
void pl_rng_skip(struct pl_rng *r, int64_t n);           /* of a stream just made: the first n of pl_rng_u32 */
double pl_rng_uniform(struct pl_rng *r);                 /* [0, 1) */
void pl_rng_normals(struct pl_rng *r, float *out, int64_t n); /* mean 0, deviation 1 */
uint64_t pl_rng_below(struct pl_rng *r, uint64_t bound); /* [0, bound), unbiased; bound > 0 */

/* ---- hash.c ------------------------------------------------------------------------------------- */

/* FNV-1a, 64 bits; start with PL_HASH_START and chain. Not for strangers. */
#define PL_HASH_START 0xcbf29ce484222325ull
uint64_t pl_hash(uint64_t h, const void *data, size_t bytes);
/* Of large arrays, eight times as fast; bytes: a multiple of 8. Not the same number. */
uint64_t pl_hash_words(uint64_t h, const void *data, size_t bytes);
uint32_t pl_crc32(uint32_t crc, const void *data, size_t bytes); /* start with 0 */

/* ---- thread.c: threads, a bounded queue, a pool ------------------------------------------------ */

/* A FIFO of pointers with a fixed capacity; handing a pointer over hands its ownership over. */
struct pl_queue;
struct pl_queue *pl_queue_create(int capacity);
void pl_queue_destroy(struct pl_queue *q); /* contents are not freed */
/* Blocks while full. PL_END once closed. */
pl_status pl_queue_put(struct pl_queue *q, void *item);
/* Blocks while empty. PL_END once closed and empty; timeout_ms < 0 waits without limit, otherwise
 * PL_END with *item NULL after the time. */
pl_status pl_queue_get(struct pl_queue *q, double timeout_ms, void **item);
void pl_queue_close(struct pl_queue *q); /* wakes all; idempotent */

pl_status pl_thread_start(pthread_t *t, const char *name, void *(*run)(void *), void *arg);

/* The process's pool for our own loops: `threads` in all, the caller's included. Main thread only. Started while it runs it must
 * be with as many (PL_ERR_USAGE); it ends with as many stops as starts. A stop without a start is fine. */
pl_status pl_pool_start(int threads);
void pl_pool_stop(void);
int pl_pool_threads(void);
/* Calls body(arg, begin, end) over a partition of [0, n) in pieces of at least `grain`; returns when
 * all are done. The partition depends on n, grain and the threads alone. Not nested. */
void pl_parallel_for(int64_t n, int64_t grain, void (*body)(void *arg, int64_t begin, int64_t end),
                     void *arg);
/* Where a library brings as many threads of its own, which hold the cores for a while after their work: loops go there from now
 * on, cut as ever. run calls part(arg, i) for every i of [0, parts). NULL: back to the pool. */
typedef void pl_pool_run(int threads, int parts, void (*part)(void *arg, int i), void *arg);
void pl_pool_delegate(pl_pool_run *run);

/* ---- fault.c: faults at named points, for trials and tests (debug.fault) ---------------------- */

/* spec: "POINT[@rank=R][@step=S][@count=K]:ACTION", several joined by ','. ACTION: fail, exit, kill,
 * hang, delay=MS. PL_ERR_USAGE where it does not parse. Loud on stderr when one is set. */
pl_status pl_fault_configure(const char *spec, int rank);
/* 1 when the caller at POINT has to fail now; carries out the other actions itself. Costs one load
 * when nothing is configured. */
int pl_fault(const char *point, int64_t step);

/* ---- text.c ------------------------------------------------------------------------------------- */

/* A growing string. */
struct pl_text {
    char *s; /* NUL-terminated, NULL while empty */
    size_t len, cap;
};
void pl_text_add(struct pl_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void pl_text_free(struct pl_text *t);
/* Adds s as a JSON string, quotes and escapes included. */
void pl_text_add_json(struct pl_text *t, const char *s);
/* Edit distance, for "did you mean". */
int pl_text_distance(const char *a, const char *b);
/* Whole file into memory, NUL-terminated; status `err` where it cannot be read. Owner: the caller. */
pl_status pl_read_file(const char *path, const char *room, pl_status err, char **out, size_t *bytes);
/* mkdir -p; status PL_ERR_CHECKPOINT where it cannot. */
pl_status pl_make_dirs(const char *path, const char *room);
/* "dir/file" of the folder of `beside` and the relative `path`; an absolute path as it is. Owner:
 * the caller. */
char *pl_path_beside(const char *beside, const char *path);

/* ---- h5.c: HDF5, one mutex around every call (builds differ in thread safety) ------------------ */

enum pl_dtype { PL_F32, PL_F64, PL_U8, PL_I8, PL_I16, PL_U16, PL_I32, PL_U32, PL_I64, PL_U64, PL_OTHER };
size_t pl_dtype_bytes(enum pl_dtype t); /* 0 for PL_OTHER */
const char *pl_dtype_name(enum pl_dtype t);

#define PL_MAX_DIMS 8
struct pl_h5_info {
    enum pl_dtype dtype;          /* of the memory type nearest to what is stored */
    bool bytes_each;              /* dtype PL_OTHER: every element is a variable number of uint8 */
    bool native;                  /* stored exactly as dtype in this machine's byte order */
    int dims;
    int64_t dim[PL_MAX_DIMS];     /* extent */
    bool chunked;
    int64_t chunk[PL_MAX_DIMS];   /* extent of a chunk, if chunked */
    bool raw_chunks;              /* only shuffle, deflate, fletcher32: pl_h5_read_rows inflates outside the lock */
    int64_t bytes_stored;
    bool elsewhere;               /* shows what is stored in other files, or other data sets of this one */
};

struct pl_h5;   /* an open file */
struct pl_h5ds; /* an open dataset */

/* All return `err` given at open with the path, the dataset and HDF5's own text in the message. */
pl_status pl_h5_open(const char *path, const char *room, pl_status err, struct pl_h5 **out); /* read-only, no file lock */
pl_status pl_h5_create(const char *path, const char *room, pl_status err, struct pl_h5 **out); /* new, must not exist */
pl_status pl_h5_create_in_memory(const char *name, const char *room, pl_status err, struct pl_h5 **out); /* nothing of it is on disk */
/* Flushes and closes; the first error wins. NULL is fine. */
pl_status pl_h5_close(struct pl_h5 *f);
bool pl_h5_exists(struct pl_h5 *f, const char *name);
pl_status pl_h5_dataset(struct pl_h5 *f, const char *name, struct pl_h5ds **out);
void pl_h5_dataset_close(struct pl_h5ds *d);
const struct pl_h5_info *pl_h5_dataset_info(const struct pl_h5ds *d);
/* Rows [first, first + rows) along the first dimension, converted to `to`, into out (dense). Chunked
 * data goes by raw chunks where it can, the filters undone outside the lock, the last chunk cached. */
pl_status pl_h5_read_rows(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype to, void *out);
/* Elements [first, first + rows) of bytes_each, one behind the other in *out, which grows as needed (pl_free);
 * element first + i is bytes [offset[i], offset[i + 1]). */
pl_status pl_h5_read_bytes(struct pl_h5ds *d, int64_t first, int64_t rows, unsigned char **out, size_t *capacity,
                           size_t *offset /* [rows + 1] */);
/* Makes a dataset (groups in between too). chunk_rows 0: contiguous; deflate 0: none. */
pl_status pl_h5_make_dataset(struct pl_h5 *f, const char *name, enum pl_dtype t, int dims,
                             const int64_t *dim, int64_t chunk_rows, int deflate,
                             struct pl_h5ds **out);
/* Writes rows in pieces of at most 4 MB, the lock let go between them. */
pl_status pl_h5_write_rows(struct pl_h5ds *d, int64_t first, int64_t rows, enum pl_dtype from,
                           const void *data);
/* Makes a dataset that shows those of the same name, each of this shape and type, in file[files], paths from the folder of f: the
 * rows of the first, then of the next. They are there when it is opened, or that fails. */
pl_status pl_h5_make_virtual(struct pl_h5 *f, const char *name, const struct pl_h5_info *like, const char *const *file, int files);
pl_status pl_h5_copy(struct pl_h5 *from, const char *name, struct pl_h5 *to); /* a group with its attributes and what is in it */
/* Attributes of the group or dataset `name` ("/" is the file; a missing group is made on write). */
pl_status pl_h5_set_int(struct pl_h5 *f, const char *name, const char *attr, int64_t v);
pl_status pl_h5_set_double(struct pl_h5 *f, const char *name, const char *attr, double v);
pl_status pl_h5_set_text(struct pl_h5 *f, const char *name, const char *attr, const char *v);
pl_status pl_h5_get_int(struct pl_h5 *f, const char *name, const char *attr, int64_t *v);
pl_status pl_h5_get_double(struct pl_h5 *f, const char *name, const char *attr, double *v);
pl_status pl_h5_get_text(struct pl_h5 *f, const char *name, const char *attr, char **v); /* owner: the caller */
/* Calls visit(arg, path, is_dataset) for everything below `name`, in name order. */
pl_status pl_h5_walk(struct pl_h5 *f, const char *name,
                     void (*visit)(void *arg, const char *path, bool is_dataset), void *arg);
const char *pl_h5_version(void); /* and what undoes deflate */

#endif
