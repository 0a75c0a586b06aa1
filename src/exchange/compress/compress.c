/* The list of codecs. */
#include "exchange/compress/compress.h"

#include <string.h>

const struct pl_codec *const pl_codecs[] = {&pl_codec_bf16, &pl_codec_one_bit, &pl_codec_top_k, NULL};

size_t pl_codec_no_scratch(int64_t n, double ratio)
{
    (void)n, (void)ratio;
    return 0;
}

const struct pl_codec *pl_codec_find(const char *name)
{
    for (int i = 0; pl_codecs[i] != NULL; i++)
        if (strcmp(pl_codecs[i]->name, name) == 0)
            return pl_codecs[i];
    return NULL;
}
