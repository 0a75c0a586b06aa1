/* Rules that scale each coordinate by its past squares: AdaGrad (Duchi, Hazan, Singer, JMLR 2011),
 * AdaDelta (Zeiler, arXiv:1212.5701), RMSProp (Tieleman and Hinton, Coursera 2012), each in PyTorch's
 * form. */
#include "optim/rules.h"

#include <math.h>

static void adagrad(const struct pl_rule_args *a)
{
    float epsilon = (float)a->job->optimizer.epsilon, *s = a->slot[0];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        s[i] += g * g;
        a->to[i] = a->from[i] - a->lr * g / (sqrtf(s[i]) + epsilon);
    }
}

static void adadelta(const struct pl_rule_args *a)
{
    float rho = (float)a->job->optimizer.rho, epsilon = (float)a->job->optimizer.epsilon;
    float *s = a->slot[0], *d = a->slot[1];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        s[i] = rho * s[i] + (1 - rho) * g * g;
        float delta = sqrtf(d[i] + epsilon) / sqrtf(s[i] + epsilon) * g;
        d[i] = rho * d[i] + (1 - rho) * delta * delta;
        a->to[i] = a->from[i] - a->lr * delta;
    }
}

static void rmsprop(const struct pl_rule_args *a)
{
    float rho = (float)a->job->optimizer.rho, epsilon = (float)a->job->optimizer.epsilon, *s = a->slot[0];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        s[i] = rho * s[i] + (1 - rho) * g * g;
        a->to[i] = a->from[i] - a->lr * g / (sqrtf(s[i]) + epsilon);
    }
}

const struct pl_rule pl_rule_adagrad = {.name = "adagrad", .slots = 1, .slot_name = {"square_sum"}, .apply = adagrad};
const struct pl_rule pl_rule_adadelta = {.name = "adadelta", .slots = 2, .slot_name = {"square_average", "delta_average"}, .apply = adadelta};
const struct pl_rule pl_rule_rmsprop = {.name = "rmsprop", .slots = 1, .slot_name = {"square_average"}, .apply = rmsprop};
