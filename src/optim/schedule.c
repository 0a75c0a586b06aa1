/* The learning rate of a step: Caffe's policies (fixed, step, multistep, exp, inv, poly) and the cosine
 * of Loshchilov and Hutter (ICLR 2017), under a linear warm-up from 0 (Goyal et al., 2017). */
#include "optim/optim.h"

#include <math.h>

static double steps_of(struct pl_period p, int64_t steps_per_epoch)
{
    return p.unit == PL_EPOCHS ? p.n * (double)steps_per_epoch : p.unit == PL_STEPS ? p.n : 0;
}

static double factor(const struct pl_job *job, double step, int64_t total_steps)
{
    double gamma = job->optimizer.schedule.gamma, power = job->optimizer.schedule.power;
    double total = (double)(job->optimizer.schedule.total > 0 ? job->optimizer.schedule.total : total_steps);
    double part = total > 0 && step < total ? step / total : 1;
    int passed = 0;
    switch (job->optimizer.schedule.kind) {
    case PL_STEP: return pow(gamma, floor(step / (double)job->optimizer.schedule.every));
    case PL_MULTISTEP:
        for (int i = 0; i < job->optimizer.schedule.at.n; i++)
            passed += step >= (double)job->optimizer.schedule.at.v[i];
        return pow(gamma, passed);
    case PL_EXP: return pow(gamma, step);
    case PL_INV: return pow(1 + gamma * step, -power);
    case PL_POLY: return pow(1 - part, power);
    case PL_COSINE: {
        double least = job->optimizer.schedule.min / job->optimizer.lr;
        return least + (1 - least) * 0.5 * (1 + cos(M_PI * part));
    }
    default: return 1;
    }
}

double pl_schedule_lr(const struct pl_job *job, int64_t step, int64_t steps_per_epoch, int64_t total_steps)
{
    double warm = steps_of(job->optimizer.warmup, steps_per_epoch);
    double rise = (double)(step + 1) < warm ? (double)(step + 1) / warm : 1;
    return job->optimizer.lr * rise * factor(job, (double)step, total_steps);
}
