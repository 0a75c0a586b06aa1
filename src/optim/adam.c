/* Adam (Kingma and Ba, ICLR 2015) and AdamW, whose decay shrinks the weights directly instead of going
 * through the moments (Loshchilov and Hutter, ICLR 2019). Bias-corrected, in PyTorch's form. */
#include "optim/rules.h"

#include <math.h>

static void moments(const struct pl_rule_args *a, float l2, float shrink)
{
    float b1 = (float)a->job->optimizer.beta1, b2 = (float)a->job->optimizer.beta2, epsilon = (float)a->job->optimizer.epsilon;
    float rate = (float)(a->lr / (1 - pow(a->job->optimizer.beta1, (double)a->step)));
    float root = (float)sqrt(1 - pow(a->job->optimizer.beta2, (double)a->step));
    float *m = a->slot[0], *v = a->slot[1];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + l2 * a->from[i];
        m[i] = b1 * m[i] + (1 - b1) * g;
        v[i] = b2 * v[i] + (1 - b2) * g * g;
        a->to[i] = shrink * a->from[i] - rate * m[i] / (sqrtf(v[i]) / root + epsilon);
    }
}

static void adam(const struct pl_rule_args *a) { moments(a, a->decay, 1); }
static void adamw(const struct pl_rule_args *a) { moments(a, 0, 1 - a->lr * a->decay); }

const struct pl_rule pl_rule_adam = {.name = "adam", .slots = 2, .slot_name = {"moment1", "moment2"}, .apply = adam};
const struct pl_rule pl_rule_adamw = {.name = "adamw", .slots = 2, .slot_name = {"moment1", "moment2"}, .apply = adamw};
