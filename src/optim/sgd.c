/* Stochastic gradient descent, plain, with momentum (v = mu v + g; w -= lr v, the form of PyTorch and of
 * Sutskever et al., ICML 2013, with the learning rate outside), and Nesterov's. Weight decay is added to
 * the gradient. */
#include "optim/rules.h"

static void sgd(const struct pl_rule_args *a)
{
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        a->to[i] = a->from[i] - a->lr * g;
    }
}

static void momentum(const struct pl_rule_args *a)
{
    float mu = (float)a->job->optimizer.momentum, *v = a->slot[0];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        v[i] = mu * v[i] + g;
        a->to[i] = a->from[i] - a->lr * v[i];
    }
}

static void nesterov(const struct pl_rule_args *a)
{
    float mu = (float)a->job->optimizer.momentum, *v = a->slot[0];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        v[i] = mu * v[i] + g;
        a->to[i] = a->from[i] - a->lr * (g + mu * v[i]);
    }
}

const struct pl_rule pl_rule_sgd = {.name = "sgd", .apply = sgd};
const struct pl_rule pl_rule_momentum = {.name = "momentum", .slots = 1, .slot_name = {"momentum"}, .apply = momentum};
const struct pl_rule pl_rule_nesterov = {.name = "nesterov", .slots = 1, .slot_name = {"momentum"}, .apply = nesterov};
