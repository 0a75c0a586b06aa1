/* From a YAML scalar or list to the C value that a key's type asks for; every refusal says what was
 * wanted and what was found. */
#include "job/node.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool to_double(const char *s, double *v)
{
    char *end;
    *v = strtod(s, &end);
    return end != s && *end == '\0' && !isnan(*v);
}

static bool to_int(const char *s, int64_t *v)
{
    char *end;
    double d;
    *v = strtoll(s, &end, 10);
    if (end != s && *end == '\0')
        return true;
    if (!to_double(s, &d) || d != floor(d) || fabs(d) > 9e15) /* 1e6 is an integer too */
        return false;
    *v = (int64_t)d;
    return true;
}

static bool in_range(const struct pl_key *k, double v)
{
    return (k->min == 0 && k->max == 0) || (v >= k->min && v <= k->max);
}

/* A limit that is as good as none is named only to who passed it. */
static const char *range_text(const struct pl_key *k, const char *found, char *text, size_t bytes)
{
    double v;
    bool above = to_double(found, &v) && v > k->max;
    text[0] = '\0';
    if (k->max >= 1e15 && !above && (k->min != 0 || k->max != 0))
        snprintf(text, bytes, ", at least %g", k->min);
    else if (k->min != 0 || k->max != 0)
        snprintf(text, bytes, ", from %g to %g", k->min, k->max);
    return text;
}

/* "50 steps", "1 epoch", "10 min", "never"; a bare number is steps. */
static bool to_period(const char *s, struct pl_period *p)
{
    static const struct { const char *name; enum pl_unit unit; double factor; } units[] = {
        {"", PL_STEPS, 1}, {"step", PL_STEPS, 1}, {"steps", PL_STEPS, 1}, {"epoch", PL_EPOCHS, 1},
        {"epochs", PL_EPOCHS, 1}, {"ms", PL_MS, 1}, {"s", PL_MS, 1e3}, {"min", PL_MS, 6e4}, {"h", PL_MS, 3.6e6}};
    char *end;
    if (strcmp(s, "never") == 0) {
        *p = (struct pl_period){0, PL_NEVER};
        return true;
    }
    double n = strtod(s, &end);
    if (end == s || !(n >= 0) || isinf(n))
        return false;
    while (*end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].name) == 0) {
            *p = (struct pl_period){n * units[i].factor, n > 0 ? units[i].unit : PL_NEVER};
            return true;
        }
    return false;
}

static bool to_ms(const char *s, double *v)
{
    struct pl_period p;
    double seconds;
    if (to_double(s, &seconds)) {
        *v = seconds * 1e3;
        return seconds >= 0;
    }
    if (!to_period(s, &p) || (p.unit != PL_MS && p.n != 0))
        return false;
    *v = p.n;
    return true;
}

/* "500 MB", "8 GB", "16 GiB", from 1 MB to 10^18 bytes; a bare number says too little. */
static bool to_bytes(const char *s, double *v)
{
    static const struct { const char *name; double factor; } units[] = {
        {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
    char *end;
    *v = 0;
    if (strcmp(s, "none") == 0)
        return true;
    double n = strtod(s, &end);
    while (end != s && *end == ' ')
        end++;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (end != s && strcmp(end, units[i].name) == 0)
            *v = n * units[i].factor;
    return *v >= 1e6 && *v <= 1e18;
}

/* Index of s in "a|b|c"; -1: it is none of them. */
static int to_choice(const char *choices, const char *s)
{
    int index = 0;
    size_t n = strlen(s);
    for (const char *p = choices; *p;) {
        size_t len = strcspn(p, "|");
        if (len == n && strncmp(p, s, n) == 0)
            return index;
        index++;
        p += len + (p[len] ? 1 : 0);
    }
    return -1;
}

static const char *type_text(enum pl_key_type t)
{
    static const char *const names[] = {
        [PL_KEY_INT] = "an integer", [PL_KEY_DOUBLE] = "a number", [PL_KEY_BOOL] = "true or false", [PL_KEY_TEXT] = "a text that is not empty",
        [PL_KEY_CHOICE] = "one of", [PL_KEY_PERIOD] = "a period such as 50 steps, 1 epoch, 10 min or never",
        [PL_KEY_MS] = "a time such as 60 s, 500 ms or 10 min", [PL_KEY_BYTES] = "a size such as 500 MB, 8 GB, 16 GiB or none", [PL_KEY_INTS] = "an integer or a list of integers",
        [PL_KEY_DOUBLES] = "a number or a list of numbers", [PL_KEY_TEXTS] = "a text or a list of texts"};
    return names[t];
}

static bool to_bool(const char *s, bool *v)
{
    *v = strcmp(s, "true") == 0 || strcmp(s, "yes") == 0 || strcmp(s, "on") == 0;
    return *v || strcmp(s, "false") == 0 || strcmp(s, "no") == 0 || strcmp(s, "off") == 0;
}

/* One scalar into v (index: into a list). False where it does not fit the type. */
static bool set_scalar(const struct pl_key *k, const char *s, void *v, int index, double *number)
{
    *number = NAN;
    switch (k->type) {
    case PL_KEY_INT:
    case PL_KEY_INTS: {
        int64_t n;
        if (!to_int(s, &n))
            return false;
        *number = (double)n;
        if (k->type == PL_KEY_INT)
            *(int64_t *)v = n;
        else
            ((struct pl_ints *)v)->v[index] = n;
        return true;
    }
    case PL_KEY_DOUBLE: return to_double(s, (double *)v) && (*number = *(double *)v, true);
    case PL_KEY_DOUBLES: return to_double(s, &((struct pl_doubles *)v)->v[index]) && (*number = ((struct pl_doubles *)v)->v[index], true);
    case PL_KEY_BOOL: return to_bool(s, v);
    case PL_KEY_TEXT:
        if (!*s)
            return false; /* a shell variable that is not set */
        pl_free(*(char **)v);
        *(char **)v = !k->def && strcmp(s, "none") == 0 ? NULL : pl_strdup(s);
        return true;
    case PL_KEY_TEXTS:
        if (!*s)
            return false;
        ((struct pl_texts *)v)->v[index] = pl_strdup(s);
        return true;
    case PL_KEY_PERIOD: return to_period(s, v) && (*number = ((struct pl_period *)v)->n, true);
    case PL_KEY_MS: return to_ms(s, v) && (*number = *(double *)v, true);
    case PL_KEY_BYTES: return to_bytes(s, v);
    case PL_KEY_CHOICE: return (*(int *)v = to_choice(k->choices, s)) >= 0;
    }
    return false;
}

static bool is_list(enum pl_key_type t) { return t == PL_KEY_INTS || t == PL_KEY_DOUBLES || t == PL_KEY_TEXTS; }
static int *list_count(void *v) { return v; } /* n is the first member of all three */

static pl_status refuse(const struct pl_key *k, const struct pl_node *n, const char *found)
{
    char range[64];
    return pl_node_error(n, "%s: wanted %s%s%s%s, found \"%s\"", k->name, type_text(k->type), k->choices ? " " : "",
                         k->choices ? k->choices : "", range_text(k, found, range, sizeof range), found);
}

static pl_status set_one(const struct pl_key *k, const struct pl_node *n, void *v, int index)
{
    double number;
    if (n->kind != PL_SCALAR)
        return refuse(k, n, n->kind == PL_LIST ? "a list" : "a map");
    if (!set_scalar(k, n->text, v, index, &number) || (!isnan(number) && !in_range(k, number)))
        return refuse(k, n, n->text);
    return PL_OK;
}

void pl_value_free(const struct pl_key *k, void *base)
{
    void *v = (char *)base + k->offset;
    if (k->type == PL_KEY_TEXT) {
        pl_free(*(char **)v);
        *(char **)v = NULL;
    } else if (k->type == PL_KEY_TEXTS) {
        struct pl_texts *t = v;
        for (int i = 0; i < t->n; i++)
            pl_free(t->v[i]);
        t->n = 0;
    }
}

pl_status pl_value_set(const struct pl_key *k, const struct pl_node *n, void *base)
{
    void *v = (char *)base + k->offset;
    if (!is_list(k->type))
        return set_one(k, n, v, 0);
    pl_value_free(k, base);
    int count = n->kind == PL_LIST ? n->n : 1;
    int most = k->type == PL_KEY_TEXTS ? PL_TEXTS_MAX : PL_LIST_MAX;
    if (count > most)
        return pl_node_error(n, "%s: %d entries, at most %d", k->name, count, most);
    *list_count(v) = 0;
    for (int i = 0; i < count; i++) {
        PL_TRY(set_one(k, n->kind == PL_LIST ? n->child[i] : n, v, i));
        *list_count(v) = i + 1;
    }
    return PL_OK;
}

pl_status pl_value_default(const struct pl_key *k, void *base)
{
    struct pl_node *n = NULL;
    if (!k->def)
        return PL_OK;
    PL_TRY(pl_node_parse(k->def, strlen(k->def), "default", &n));
    struct pl_key any = *k;
    any.min = any.max = 0;
    pl_status s = pl_value_set(&any, n, base);
    pl_node_free(n);
    return s;
}

const char *pl_key_nearest(const struct pl_key *keys, const char *name)
{
    const char *best = NULL, *tail = strrchr(name, '.');
    int least = (int)strlen(name) / 3 + 2;
    for (; keys->name; keys++) {
        int d = pl_text_distance(name, keys->name);
        const char *last = strrchr(keys->name, '.');
        if (d >= least && tail && last && strcmp(tail, last) == 0)
            d = least - 1; /* the right word under another room */
        if (d < least) {
            least = d;
            best = keys->name;
        }
    }
    return best;
}

/* As short as it can be read back. */
static void add_number(struct pl_text *t, double v)
{
    char text[32];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    pl_text_add(t, "%s", text);
}

/* Of a list its i-th; otherwise the value. */
static void add_one(struct pl_text *t, const struct pl_key *k, const void *v, int i)
{
    static const char *const units[] = {[PL_NEVER] = "", [PL_STEPS] = " steps", [PL_EPOCHS] = " epochs", [PL_MS] = " ms"};
    const struct pl_period *period = v;
    const char *choice = k->choices;
    switch (k->type) {
    case PL_KEY_INT: pl_text_add(t, "%lld", (long long)*(const int64_t *)v); break;
    case PL_KEY_INTS: pl_text_add(t, "%lld", (long long)((const struct pl_ints *)v)->v[i]); break;
    case PL_KEY_DOUBLE: add_number(t, *(const double *)v); break;
    case PL_KEY_DOUBLES: add_number(t, ((const struct pl_doubles *)v)->v[i]); break;
    case PL_KEY_BOOL: pl_text_add(t, "%s", *(const bool *)v ? "true" : "false"); break;
    case PL_KEY_TEXT: pl_text_add(t, "%s", *(char *const *)v ? *(char *const *)v : "none"); break;
    case PL_KEY_TEXTS: pl_text_add(t, "%s", ((const struct pl_texts *)v)->v[i]); break;
    case PL_KEY_MS:
        add_number(t, *(const double *)v);
        pl_text_add(t, " ms");
        break;
    case PL_KEY_BYTES:
        if (*(const double *)v > 0)
            add_number(t, *(const double *)v / 1e6);
        pl_text_add(t, "%s", *(const double *)v > 0 ? " MB" : "none");
        break;
    case PL_KEY_PERIOD:
        if (period->unit == PL_NEVER) {
            pl_text_add(t, "never");
            break;
        }
        add_number(t, period->n);
        pl_text_add(t, "%s", units[period->unit]);
        break;
    case PL_KEY_CHOICE:
        for (int n = *(const int *)v; n > 0; n--)
            choice += strcspn(choice, "|") + 1;
        pl_text_add(t, "%.*s", (int)strcspn(choice, "|"), choice);
        break;
    }
}

void pl_value_text(const struct pl_key *k, const void *base, struct pl_text *t)
{
    const void *v = (const char *)base + k->offset;
    int n = is_list(k->type) ? *(const int *)v : 1; /* n is the first member of all three */
    pl_text_add(t, "%s", is_list(k->type) ? "[" : "");
    for (int i = 0; i < n; i++) {
        pl_text_add(t, "%s", i > 0 ? ", " : "");
        add_one(t, k, v, i);
    }
    pl_text_add(t, "%s", is_list(k->type) ? "]" : "");
}
