/* LARS: momentum with a rate for each tensor, trust * |w| / (|g| + decay |w|) (You, Gitman, Ginsburg,
 * arXiv:1708.03888). Tensors without weight decay (biases, normalisation) and zero norms take rate 1. */
#include "optim/rules.h"

static void lars(const struct pl_rule_args *a)
{
    float mu = (float)a->job->optimizer.momentum, rate = a->lr * a->trust, *v = a->slot[0];
    for (int64_t i = 0; i < a->n; i++) {
        float g = a->scale * a->sum[i] + a->decay * a->from[i];
        v[i] = mu * v[i] + rate * g;
        a->to[i] = a->from[i] - v[i];
    }
}

const struct pl_rule pl_rule_lars = {.name = "lars", .slots = 1, .slot_name = {"momentum"}, .per_tensor_norm = true, .apply = lars};
