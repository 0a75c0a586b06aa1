/* Internal to optim/: one update rule, applied to a range of one tensor. */
#ifndef PL_OPTIM_RULES_H
#define PL_OPTIM_RULES_H

#include "optim/optim.h"

struct pl_rule_args {
    const struct pl_job *job;
    float lr;          /* multiplier of the tensor included */
    float decay;       /* weight decay, multiplier included */
    float scale;       /* mean gradient = scale * sum */
    int64_t step;      /* 1-based */
    float trust;       /* lars: ratio of this tensor */
    const float *sum;  /* [n] summed gradient */
    const float *from; /* [n] parameters */
    float *to;         /* [n] */
    float *slot[2];    /* [n] each */
    int64_t n;
};
struct pl_rule {
    const char *name;
    int slots;
    const char *slot_name[2];
    bool per_tensor_norm; /* needs norms of the whole tensor first (lars) */
    void (*apply)(const struct pl_rule_args *a);
};
extern const struct pl_rule pl_rule_sgd, pl_rule_momentum, pl_rule_nesterov, pl_rule_adagrad, pl_rule_adadelta,
    pl_rule_rmsprop, pl_rule_adam, pl_rule_adamw, pl_rule_lars;

#endif
