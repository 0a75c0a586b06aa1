/* Delays for trials: each distribution's figures over many draws, by rank and step, and a sleep that is abandoned. */
#include "train/train.h"

#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { DRAWS = 200000 };

static struct pl_job job_of(int distribution, double ms, double shape, double probability)
{
    struct pl_job j = {.train.seed = 7};
    j.debug.delay.distribution = distribution;
    j.debug.delay.ms = ms;
    j.debug.delay.shape = shape;
    j.debug.delay.probability = probability;
    return j;
}

static void near(const char *what, double found, double wanted, double tolerance)
{
    if (!(fabs(found - wanted) <= tolerance))
        fail_msg("%s: %.5f, wanted %.5f within %g", what, found, wanted, tolerance);
}

/* Share of draws above x, over ranks and steps. */
static double above(const struct pl_job *j, double x)
{
    int n = 0;
    for (int i = 0; i < DRAWS; i++)
        n += pl_trial_delay_ms(j, i % 50, i / 50) > x;
    return (double)n / DRAWS;
}

static void test_distributions(void **state)
{
    (void)state;
    struct pl_job fixed = job_of(PL_DELAY_FIXED, 8, 1.5, 0.1), exponential = job_of(PL_DELAY_EXPONENTIAL, 8, 1.5, 1);
    struct pl_job pareto = job_of(PL_DELAY_PARETO, 8, 1.5, 1), rare = job_of(PL_DELAY_PARETO, 8, 1.5, 0.25);
    near("fixed, above 0", above(&fixed, 0), 0.1, 0.003);
    near("fixed, above its time", above(&fixed, 8), 0, 0);
    for (double x = 2; x < 70; x *= 2) {
        near("exponential", above(&exponential, x), exp(-x / 8), 0.005);
        near("pareto", above(&pareto, x), x < 8 ? 1 : pow(8 / x, 1.5), 0.005);
        near("pareto, one in four", above(&rare, x), 0.25 * (x < 8 ? 1 : pow(8 / x, 1.5)), 0.005);
    }
}

/* Equal for the same seed, rank and step, otherwise not. */
static void test_names_of_draws(void **state)
{
    (void)state;
    struct pl_job j = job_of(PL_DELAY_EXPONENTIAL, 8, 1.5, 1);
    double one = pl_trial_delay_ms(&j, 1, 5);
    assert_true(one == pl_trial_delay_ms(&j, 1, 5));
    assert_true(one != pl_trial_delay_ms(&j, 2, 5) && one != pl_trial_delay_ms(&j, 1, 6) && one != pl_trial_delay_ms(&j, 5, 1));
    j.train.seed = 8;
    assert_true(one != pl_trial_delay_ms(&j, 1, 5));
    j.debug.delay.rank = (struct pl_ints){2, {1, 3}};
    for (int rank = 0; rank < 5; rank++)
        if ((pl_trial_delay_ms(&j, rank, 5) > 0) != (rank == 1 || rank == 3))
            fail_msg("rank %d: %g ms", rank, pl_trial_delay_ms(&j, rank, 5));
    assert_int_equal(pl_trial_check(&j, 4), PL_OK);
    assert_int_equal(pl_trial_check(&j, 3), PL_ERR_USAGE);
    pl_error_clear();
    j.debug.delay.ms = 0;
    assert_true(pl_trial_delay_ms(&j, 1, 5) == 0);
    assert_null(pl_trial_describe(&j));
}

static bool after_some(void *arg) { return --*(int *)arg < 0; }

static void test_abandoned(void **state)
{
    (void)state;
    int looks = 3, many = 1 << 30;
    assert_int_equal(pl_trial_sleep(1e6, after_some, &looks), PL_END);
    assert_int_equal(looks, -1);
    double begin = pl_now_ms();
    assert_int_equal(pl_trial_sleep(10, after_some, &many), PL_OK);
    if (pl_now_ms() - begin < 10 || many == 1 << 30)
        fail_msg("slept %g ms instead of 10, and looked %d times", pl_now_ms() - begin, (1 << 30) - many);
    begin = pl_now_ms();
    assert_int_equal(pl_trial_sleep(10, NULL, NULL), PL_OK);
    assert_true(pl_now_ms() - begin >= 10);
    assert_int_equal(pl_trial_sleep(0, after_some, &looks), PL_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_distributions), cmocka_unit_test(test_names_of_draws), cmocka_unit_test(test_abandoned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
