/* JPEG images of any size to what the network takes: decoded by TurboJPEG, at 1/2, 1/4 or 1/8 of their
 * size where that is still enough, brought to the shorter side that is wanted by a bilinear filter that
 * widens when it makes an image smaller (as Pillow's, so that sets of pixels and of JPEGs agree), of
 * which only the part that is taken is computed. Grey images are given as many channels as the network
 * has; CMYK is taken as Adobe writes it, inverted. What libjpeg warns of is an error, but for stray bytes
 * between two markers, which harm no pixel. */
#include "data/dataset.h"

#include <math.h>
#include <string.h>

#ifdef PL_HAVE_JPEG
#include <turbojpeg.h>

#define MOST_PIXELS (1LL << 28)

struct taps { /* of one line or column of the result: those of the decoded image that make it */
    int64_t first, n;
    float *weight;
};

struct pl_jpeg {
    tjhandle tj;
    int64_t width, height, channels; /* decoded */
    unsigned char *pixel;            /* [height, width, channels] */
    float *line;                     /* [width, channels], one of the result before its columns are made */
    struct taps *column;             /* [columns] */
    float *weight;
    size_t pixel_bytes, line_bytes, column_bytes, weight_bytes;
    char text[200];
};

bool pl_jpeg_available(void) { return true; }

pl_status pl_jpeg_create(struct pl_jpeg **out)
{
    struct pl_jpeg *j = pl_alloc(sizeof *j, "a JPEG decoder");
    if (!j)
        return PL_ERR_MEMORY;
    *out = j;
    j->tj = tjInitDecompress();
    return j->tj ? PL_OK : pl_error(PL_ERR_MEMORY, "data", "TurboJPEG: %s", tjGetErrorStr2(NULL));
}

void pl_jpeg_destroy(struct pl_jpeg *j)
{
    if (!j)
        return;
    if (j->tj)
        tjDestroy(j->tj);
    pl_free(j->pixel);
    pl_free(j->line);
    pl_free(j->column);
    pl_free(j->weight);
    pl_free(j);
}

/* p, or in its place room for `need` bytes with some to spare for the next image. */
static void *room(void *p, size_t *bytes, size_t need)
{
    if (need <= *bytes)
        return p;
    pl_free(p);
    p = pl_alloc(need + need / 4, "a decoded image");
    *bytes = p ? need + need / 4 : 0;
    return p;
}

/* ---- decoding ------------------------------------------------------------------------------------ */

/* The least of 1, 1/2, 1/4, 1/8 that leaves `least_width` x `least_height`: these are fast. */
static void choose_size(struct pl_jpeg *j, int width, int height, int64_t least_width, int64_t least_height)
{
    for (int d = 8; d >= 1; d /= 2) {
        tjscalingfactor f = {1, d};
        j->width = TJSCALED(width, f);
        j->height = TJSCALED(height, f);
        if (j->width >= least_width && j->height >= least_height)
            return;
    }
}

/* Adobe stores 255 - ink; paper is 255 of all four. In place. */
static void cmyk_to_rgb(unsigned char *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        for (int c = 0; c < 3; c++)
            p[3 * i + c] = (unsigned char)((p[4 * i + c] * p[4 * i + 3] + 127) / 255);
}

static void rgb_to_grey(unsigned char *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = (unsigned char)((299 * p[3 * i] + 587 * p[3 * i + 1] + 114 * p[3 * i + 2] + 500) / 1000);
}

static const char *decode(struct pl_jpeg *j, const struct pl_row *row, int colours)
{
    bool cmyk = colours == TJCS_CMYK || colours == TJCS_YCCK;
    int format = cmyk ? TJPF_CMYK : j->channels == 1 ? TJPF_GRAY : TJPF_RGB;
    int64_t stored = cmyk ? 4 : j->channels, n = j->width * j->height;
    j->pixel = room(j->pixel, &j->pixel_bytes, (size_t)(n * stored));
    if (!j->pixel)
        return "no memory for it";
    if (tjDecompress2(j->tj, row->data, (unsigned long)row->bytes, j->pixel, (int)j->width, (int)(j->width * stored),
                      (int)j->height, format, 0) != 0) {
        const char *text = tjGetErrorStr2(j->tj);
        if (tjGetErrorCode(j->tj) != TJERR_WARNING || !strstr(text, "extraneous bytes"))
            return text;
    }
    if (cmyk)
        cmyk_to_rgb(j->pixel, n);
    if (cmyk && j->channels == 1)
        rgb_to_grey(j->pixel, n);
    return NULL;
}

/* ---- scaling ------------------------------------------------------------------------------------- */

/* Place i of an image of `to` made from one of `from`: a triangle over the pixels around its centre. */
static struct taps make_taps(int64_t i, int64_t from, int64_t to, float *weight)
{
    double scale = (double)from / (double)to, reach = scale > 1 ? scale : 1, centre = ((double)i + 0.5) * scale, sum = 0;
    int64_t first = (int64_t)(centre - reach + 0.5), end = (int64_t)(centre + reach + 0.5);
    first = centre - reach + 0.5 < 0 ? 0 : first;
    end = end > from ? from : end;
    for (int64_t k = first; k < end; k++) {
        double w = 1 - fabs(((double)k + 0.5 - centre) / reach);
        weight[k - first] = (float)(w > 0 ? w : 0);
        sum += w > 0 ? w : 0;
    }
    for (int64_t k = first; k < end; k++)
        weight[k - first] = (float)(weight[k - first] / sum);
    return (struct taps){first, end - first, weight};
}

static int64_t most_taps(int64_t from, int64_t to) { return (from > to ? 2 * (from / to + 1) : 2) + 2; }

PL_CLONES static void add_line(const unsigned char *x, int64_t n, float weight, float *restrict y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += (float)x[i] * weight;
}

/* Line y of the scaled image, all that the columns need of it. */
static void make_line(struct pl_jpeg *j, const struct taps *t, int64_t first, int64_t end)
{
    int64_t at = first * j->channels, n = (end - first) * j->channels;
    memset(j->line + at, 0, (size_t)n * sizeof *j->line);
    for (int64_t k = 0; k < t->n; k++)
        add_line(j->pixel + (t->first + k) * j->width * j->channels + at, n, t->weight[k], j->line + at);
}

/* The part of the scaled image that is taken: its place, and what of it lies inside. */
struct part {
    struct pl_place place;
    int64_t width, height;           /* of the whole scaled image */
    int64_t top, bottom, left, right; /* of the result, inside */
};

static bool plan_columns(struct pl_jpeg *j, const struct part *p)
{
    int64_t n = p->right - p->left, most = most_taps(j->width, p->width), rows = most_taps(j->height, p->height);
    j->column = room(j->column, &j->column_bytes, (size_t)n * sizeof *j->column);
    j->weight = room(j->weight, &j->weight_bytes, (size_t)(n * most + rows) * sizeof(float));
    j->line = room(j->line, &j->line_bytes, (size_t)(j->width * j->channels) * sizeof(float));
    if (!j->column || !j->weight || !j->line)
        return false;
    for (int64_t i = 0; i < n; i++)
        j->column[i] = make_taps(p->place.left + p->left + i, j->width, p->width, j->weight + i * most);
    return true;
}

/* The columns of one line for all its channels, each to its plane of `area` values. step -1: mirrored. */
static inline void make_columns(const struct pl_jpeg *j, const struct pl_decoder *d, int64_t n, int channels,
                                int64_t area, int64_t step, float *out)
{
    float scale[3] = {0}, shift[3] = {0};
    for (int c = 0; c < channels; c++)
        pl_decoder_values(d, c, &scale[c], &shift[c]);
    for (int64_t i = 0; i < n; i++) {
        const struct taps *t = &j->column[i];
        const float *x = j->line + t->first * channels;
        float sum[3] = {0};
        for (int64_t k = 0; k < t->n; k++)
            for (int c = 0; c < channels; c++)
                sum[c] += x[k * channels + c] * t->weight[k];
        for (int c = 0; c < channels; c++)
            out[c * area + i * step] = sum[c] * scale[c] + shift[c];
    }
}

static const char *take_part(struct pl_jpeg *j, const struct pl_augment *a, const struct pl_decoder *d,
                             const struct part *p, float *out)
{
    int64_t n = p->right - p->left, area = a->out_height * a->out_width, step = p->place.flip ? -1 : 1;
    memset(out, 0, (size_t)(j->channels * area) * sizeof *out);
    if (n <= 0)
        return NULL; /* padding alone */
    if (!plan_columns(j, p))
        return "no memory for it";
    float *row_weight = j->weight + n * most_taps(j->width, p->width);
    for (int64_t y = p->top; y < p->bottom; y++) {
        struct taps t = make_taps(p->place.top + y, j->height, p->height, row_weight);
        float *first = out + y * a->out_width + (p->place.flip ? a->out_width - 1 - p->left : p->left);
        make_line(j, &t, j->column[0].first, j->column[n - 1].first + j->column[n - 1].n);
        if (j->channels == 3)
            make_columns(j, d, n, 3, area, step, first);
        else
            make_columns(j, d, n, 1, area, step, first);
    }
    return NULL;
}

static struct part find_part(const struct pl_augment *a, int width, int height, int64_t epoch, int64_t sample)
{
    struct part p;
    int64_t least = width < height ? width : height;
    p.width = (width * a->resize + least / 2) / least;
    p.height = (height * a->resize + least / 2) / least;
    p.place = pl_augment_place(a, p.height, p.width, epoch, sample);
    p.top = p.place.top < 0 ? -p.place.top : 0;
    p.left = p.place.left < 0 ? -p.place.left : 0;
    p.bottom = p.height - p.place.top < a->out_height ? p.height - p.place.top : a->out_height;
    p.right = p.width - p.place.left < a->out_width ? p.width - p.place.left : a->out_width;
    return p;
}

const char *pl_jpeg_decode(struct pl_jpeg *j, const struct pl_augment *a, const struct pl_decoder *d,
                           const struct pl_row *row, int64_t epoch, int64_t sample, float *out)
{
    int width = 0, height = 0, subsampling, colours = -1;
    if (row->bytes == 0)
        return "it is empty";
    if (tjDecompressHeader3(j->tj, row->data, (unsigned long)row->bytes, &width, &height, &subsampling, &colours) != 0)
        return tjGetErrorStr2(j->tj);
    if (width < 1 || height < 1)
        return "it has no image in it";
    if ((int64_t)width * height > MOST_PIXELS) {
        snprintf(j->text, sizeof j->text, "its size of %dx%d is beyond belief", width, height);
        return j->text;
    }
    struct part p = find_part(a, width, height, epoch, sample);
    j->channels = a->channels;
    choose_size(j, width, height, p.width, p.height);
    const char *wrong = decode(j, row, colours);
    return wrong ? wrong : take_part(j, a, d, &p, out);
}

#else

bool pl_jpeg_available(void) { return false; }

pl_status pl_jpeg_create(struct pl_jpeg **out)
{
    *out = NULL;
    return pl_error(PL_ERR_DATA, "data", "this build has no TurboJPEG");
}

void pl_jpeg_destroy(struct pl_jpeg *j) { (void)j; }

const char *pl_jpeg_decode(struct pl_jpeg *j, const struct pl_augment *a, const struct pl_decoder *d,
                           const struct pl_row *row, int64_t epoch, int64_t sample, float *out)
{
    (void)j, (void)a, (void)d, (void)row, (void)epoch, (void)sample, (void)out;
    return "this build has no TurboJPEG";
}

#endif
