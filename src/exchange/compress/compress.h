/* Internal to exchange/ (and its tests): codecs that make gradients smaller on the wire, with the error of one step
 * carried into the next. They serve the two-pass, error-compensated all-reduce of Tang et al. (DoubleSqueeze, ICML
 * 2019): rank c decodes and adds up, in rank order, what all ranks sent of part c, encodes the sum with a residual
 * of its own and sends that to all.
 *
 * Deterministic: the same input gives the same code on every kind of CPU. Numbers in a code have the byte order of
 * the machine. No allocation, no state: any thread, as long as the buffers differ.
 *
 * Not finite: where value + residual is NaN or infinite, or overflows, at least one decoded element of the range is
 * NaN or infinite too, so every receiver sees it in the same step. A residual is finite after every encode: elements
 * that were not finite, or were sent as not finite, leave 0 behind, and the next step starts clean.
 *   bf16     NaN stays NaN, an infinity stays; neighbours are not touched.
 *   one_bit  the mean of that side of the block is NaN or infinite, and with it all elements of that side.
 *   top_k    NaN ranks above infinity, infinity above all numbers: they are the first to be sent, as they are. Those
 *            beyond k are not sent, but then k others were. */
#ifndef PL_EXCHANGE_COMPRESS_H
#define PL_EXCHANGE_COMPRESS_H

#include "base/base.h"

/* 0 <= n < 2^31 elements in one call; 0 < ratio <= 1 is the part that top_k sends, the others ignore it. Buffers do
 * not overlap; code needs no alignment, scratch that of pl_alloc. Sender and receiver give the same n and ratio. */
struct pl_codec {
    const char *name;
    /* The exact size of n elements encoded, fixed by n and ratio so that frames have known lengths; 0 for n 0. */
    size_t (*bytes)(int64_t n, double ratio);
    /* Encodes value[n] + residual[n] (rounded to fp32) into code; residual becomes what was lost. residual NULL: no
     * feedback. value is left alone. */
    void (*encode)(const float *value, float *residual, int64_t n, double ratio, void *code, void *scratch);
    /* Writes the decoded values to out[n], or adds them to it. false: the code is malformed; out is undefined then, but
     * nothing outside of it was touched. */
    bool (*decode)(const void *code, int64_t n, double ratio, bool add, float *out);
    /* What encode needs; 0: scratch may be NULL. */
    size_t (*scratch_bytes)(int64_t n, double ratio);
};

size_t pl_codec_no_scratch(int64_t n, double ratio); /* 0, for codecs that need none */
extern const struct pl_codec pl_codec_bf16, pl_codec_one_bit, pl_codec_top_k;

/* All of them, ended by NULL. */
extern const struct pl_codec *const pl_codecs[];
/* NULL: there is none of that name ("none" has none). */
const struct pl_codec *pl_codec_find(const char *name);

#endif
