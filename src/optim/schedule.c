/* The learning rate of a step: Caffe's policies (fixed, step, multistep, exp, inv, poly) and the cosine
 * of Loshchilov and Hutter (ICLR 2017), under a linear warm-up from 0 (Goyal et al., 2017). */
#include "optim/optim.h"

#include <math.h>

static double steps_of(struct pl_period p, int64_t steps_per_epoch)
{
    return p.unit == PL_EPOCHS ? p.n * (double)steps_per_epoch : p.unit == PL_STEPS ? p.n : 0;
}

static double rate(const struct pl_job *job, double step, int64_t total_steps)
{
    double lr = job->optimizer.lr, least = job->optimizer.schedule.min;
    double gamma = job->optimizer.schedule.gamma, power = job->optimizer.schedule.power;
    double total = (double)(job->optimizer.schedule.total > 0 ? job->optimizer.schedule.total : total_steps);
    double part = total > 0 && step < total ? step / total : 1;
    int passed = 0;
    switch (job->optimizer.schedule.kind) {
    case PL_STEP: return lr * pow(gamma, floor(step / (double)job->optimizer.schedule.every));
    case PL_MULTISTEP:
        for (int i = 0; i < job->optimizer.schedule.at.n; i++)
            passed += step >= (double)job->optimizer.schedule.at.v[i];
        return lr * pow(gamma, passed);
    case PL_EXP: return lr * pow(gamma, step);
    case PL_INV: return lr * pow(1 + gamma * step, -power);
    case PL_POLY: return lr * pow(1 - part, power);
    case PL_COSINE: return least + (lr - least) * 0.5 * (1 + cos(M_PI * part));
    default: return lr;
    }
}

double pl_schedule_lr(const struct pl_job *job, int64_t step, int64_t steps_per_epoch, int64_t total_steps)
{
    double warm = steps_of(job->optimizer.warmup, steps_per_epoch);
    double rise = (double)(step + 1) < warm ? (double)(step + 1) / warm : 1;
    return rise * rate(job, (double)step, total_steps);
}
