/* L-BFGS by itself: quadratics in about as many iterations as they have unknowns, Rosenbrock's valley, a wall behind which
 * nothing is finite; the strong Wolfe conditions at every point it goes to; sharded over threads in the place of ranks the
 * same way down as whole; and what it does where there is no way down, or the ranks give a point up. */
#include "optim/optim.h"

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

enum { MOST = 64, RANKS = 4, STEPS = 200 };

/* Of n unknowns: value and gradient at x. */
typedef double function(int n, const double *x, double *g);

static double quadratic(int n, const double *x, double *g)
{
    double f = 0;
    for (int i = 0; i < n; i++) {
        double k = 1 + i * i, d = x[i] - i;
        f += k * d * d / 2;
        g[i] = k * d;
    }
    return f;
}

static double rosenbrock(int n, const double *x, double *g)
{
    double f = 0;
    memset(g, 0, (size_t)n * sizeof *g);
    for (int i = 0; i + 1 < n; i++) {
        double a = 1 - x[i], b = x[i + 1] - x[i] * x[i];
        f += a * a + 100 * b * b;
        g[i] += -2 * a - 400 * x[i] * b;
        g[i + 1] += 200 * b;
    }
    return f;
}

/* x - log x, and no value for x of 0 or less. */
static double walls(int n, const double *x, double *g)
{
    double f = 0;
    for (int i = 0; i < n; i++) {
        f += 1e3 * (x[i] - log(x[i]));
        g[i] = 1e3 * (1 - 1 / x[i]);
    }
    return f;
}

static double slope(int n, const double *x, double *g)
{
    for (int i = 0; i < n; i++)
        g[i] = 1;
    return n > 0 ? x[0] + NAN : 0;
}

/* A gradient that points up. */
static double liar(int n, const double *x, double *g)
{
    double f = 0;
    for (int i = 0; i < n; i++) {
        f += x[i] * x[i];
        g[i] = -2 * x[i];
    }
    return f;
}

/* Threads in the place of ranks. */
struct all {
    function *f;
    int n, ranks, history, steps, give_up; /* give_up: at this evaluation, counted from 1; 0: never */
    double tolerance;
    float start[MOST];
    pthread_barrier_t barrier;
    double sums[RANKS][8 * MOST];
    float x[MOST];
    /* what came of it */
    struct pl_iteration last;
    int evaluations, iterations;
    double value[STEPS];
    float at[STEPS][MOST];
    pl_status status;
};
struct one { struct all *all; int rank; int64_t begin, end; int asked; };

static pl_status evaluate(void *arg, const float *x, double *value, float *gradient)
{
    struct one *o = arg;
    struct all *a = o->all;
    double at[MOST], g[MOST];
    memcpy(a->x + o->begin, x, (size_t)(o->end - o->begin) * sizeof *x);
    pthread_barrier_wait(&a->barrier);
    for (int i = 0; i < a->n; i++)
        at[i] = a->x[i];
    double f = a->f(a->n, at, g);
    *value = o->rank == 0 ? f : 0;
    for (int64_t i = o->begin; i < o->end; i++)
        gradient[i - o->begin] = (float)g[i];
    pthread_barrier_wait(&a->barrier);
    return ++o->asked == a->give_up ? PL_END : PL_OK;
}

static pl_status sum(void *arg, double *v, int n)
{
    struct one *o = arg;
    struct all *a = o->all;
    memcpy(a->sums[o->rank], v, (size_t)n * sizeof *v);
    pthread_barrier_wait(&a->barrier);
    for (int i = 0; i < n; i++) {
        v[i] = 0;
        for (int r = 0; r < a->ranks; r++)
            v[i] += a->sums[r][i];
    }
    pthread_barrier_wait(&a->barrier);
    return PL_OK;
}

/* Rank 0 takes notes. */
static void note(struct one *o, pl_status s, const struct pl_iteration *i, const float *x)
{
    struct all *a = o->all;
    memcpy(a->x + o->begin, x, (size_t)(o->end - o->begin) * sizeof *x);
    pthread_barrier_wait(&a->barrier);
    if (o->rank == 0) {
        memcpy(a->at[a->iterations], a->x, sizeof a->x);
        a->value[a->iterations++] = i->value;
        a->last = *i;
        a->evaluations += i->evaluations;
        a->status = s;
    }
    pthread_barrier_wait(&a->barrier);
}

static void *descend(void *arg)
{
    struct one *o = arg;
    const struct pl_objective objective = {evaluate, sum, o};
    struct pl_iteration i = {.how = PL_DESCENT_MADE};
    struct pl_lbfgs *l;
    float x[MOST];
    memcpy(x, o->all->start + o->begin, (size_t)(o->end - o->begin) * sizeof *x);
    pl_status s = pl_lbfgs_create(o->end - o->begin, o->all->history, o->all->tolerance, &l);
    for (int k = 0; k < o->all->steps && s == PL_OK && i.how == PL_DESCENT_MADE; k++) {
        s = pl_lbfgs_iterate(l, &objective, x, &i);
        note(o, s, &i, x);
    }
    pl_lbfgs_destroy(l);
    return NULL;
}

static void run(struct all *a, function *f, int n, double start, int ranks)
{
    pthread_t thread[RANKS];
    struct one one[RANKS];
    a->f = f;
    a->n = n;
    a->ranks = ranks;
    a->history = a->history ? a->history : 10;
    a->steps = a->steps ? a->steps : STEPS;
    a->tolerance = a->tolerance > 0 ? a->tolerance : 1e-4;
    for (int i = 0; i < n; i++)
        a->start[i] = (float)start;
    pthread_barrier_init(&a->barrier, NULL, (unsigned)ranks);
    for (int r = 0; r < ranks; r++) {
        one[r] = (struct one){a, r, (int64_t)n * r / ranks, (int64_t)n * (r + 1) / ranks, 0};
        assert_int_equal(pthread_create(&thread[r], NULL, descend, &one[r]), 0);
    }
    for (int r = 0; r < ranks; r++)
        pthread_join(thread[r], NULL);
    pthread_barrier_destroy(&a->barrier);
    assert_int_equal(a->status, a->give_up ? PL_END : PL_OK);
}

static void check_near(const struct all *a, double wanted, double step)
{
    for (int i = 0; i < a->n; i++)
        if (!(fabs(a->at[a->iterations - 1][i] - (wanted + step * i)) < 1e-3))
            fail_msg("unknown %d is %.6f, wanted %.6f, after %d iterations", i, (double)a->at[a->iterations - 1][i], wanted + step * i, a->iterations);
}

static void a_quadratic_ends_in_about_2n_steps(void **state)
{
    (void)state;
    for (int n = 1; n <= 10; n++) {
        struct all a = {.history = 12};
        run(&a, quadratic, n, 3, 1);
        assert_int_equal(a.last.how, PL_DESCENT_CONVERGED);
        check_near(&a, 0, 1);
        if (a.iterations > 2 * n + 8)
            fail_msg("%d iterations for %d unknowns", a.iterations, n);
    }
}

static void it_goes_through_the_valley(void **state)
{
    (void)state;
    for (int n = 2; n <= 32; n *= 2)
        for (int history = 1; history <= 9; history += 4) {
            struct all a = {.history = history, .tolerance = 1e-3};
            run(&a, rosenbrock, n, -1.2, 1);
            if (history > 1 || n < 32)
                assert_int_equal(a.last.how, PL_DESCENT_CONVERGED);
            if (!(a.last.value < (history > 1 || n < 32 ? 1e-6 : 4)))
                fail_msg("%g left of %d unknowns with a history of %d", a.last.value, n, history);

            for (int i = 1; i < a.iterations; i++)
                if (a.value[i] > a.value[i - 1])
                    fail_msg("up from %.9g to %.9g", a.value[i - 1], a.value[i]);
            if (history > 1 && a.evaluations > 6 * n + 50)
                fail_msg("%d evaluations for %d unknowns with a history of %d", a.evaluations, n, history);
        }
}

/* From each point to the next: less by enough, and flatter. The gradients are taken anew, in double. */
static void every_step_is_of_strong_wolfe(void **state)
{
    (void)state;
    struct all a = {.tolerance = 1e-2};
    double from[MOST], to[MOST], g[MOST], h[MOST];
    run(&a, rosenbrock, 8, -1.2, 1);
    assert_true(a.iterations > 10);
    for (int k = 1; k + 1 < a.iterations; k++) {
        double begin = 0, end = 0;
        for (int i = 0; i < 8; i++) {
            from[i] = a.at[k - 1][i];
            to[i] = a.at[k][i];
        }
        double f = rosenbrock(8, from, g), less = rosenbrock(8, to, h);
        for (int i = 0; i < 8; i++) {
            begin += g[i] * (to[i] - from[i]);
            end += h[i] * (to[i] - from[i]);
        }
        if (!(less <= f + 0.99e-4 * begin) || !(fabs(end) <= -0.901 * begin))
            fail_msg("iteration %d: from %.6g to %.6g, slopes %.6g and %.6g", k, f, less, begin, end);
    }
}

static void shards_go_the_same_way(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= RANKS; ranks++) {
        struct all whole = {.steps = 30, .tolerance = 1e-3}, parts = whole;
        run(&whole, rosenbrock, 22, -1.2, 1);
        run(&parts, rosenbrock, 22, -1.2, ranks);
        assert_int_equal(whole.iterations, parts.iterations);
        for (int k = 0; k < 8; k++) /* later what is rounded otherwise grows */
            if (fabs(whole.value[k] - parts.value[k]) > 1e-4 * whole.value[k])
                fail_msg("%d ranks, iteration %d: %.9g, by one %.9g", ranks, k, parts.value[k], whole.value[k]);
        if (!(parts.value[29] < 0.1 * parts.value[0]))
            fail_msg("%d ranks: from %.6g only to %.6g", ranks, parts.value[0], parts.value[29]);
    }
    struct all few = {.steps = STEPS};
    run(&few, quadratic, 2, 3, RANKS); /* two of them have nothing */
    check_near(&few, 0, 1);
}

static void it_turns_back_from_what_is_not_finite(void **state)
{
    (void)state;
    struct all a = {0};
    run(&a, walls, 5, 30, 1);
    check_near(&a, 1, 0);
    struct all none = {0};
    run(&none, slope, 3, 1, 1);
    assert_int_equal(none.last.how, PL_DESCENT_NOT_FINITE);
    assert_int_equal(none.last.evaluations, 1);
}

static void without_a_way_down_it_says_so(void **state)
{
    (void)state;
    struct all a = {0};
    run(&a, liar, 4, 1, 2);
    assert_int_equal(a.last.how, PL_DESCENT_NONE);
    check_near(&a, 1, 0);
    struct all there = {0};
    run(&there, walls, 4, 1, 2);
    assert_int_equal(there.last.how, PL_DESCENT_CONVERGED);
    assert_int_equal(there.last.evaluations, 1);
}

static void a_point_given_up_moves_nothing(void **state)
{
    (void)state;
    for (int at = 1; at < 9; at += 3) {
        struct all a = {.give_up = at}, b = {.give_up = 0, .steps = STEPS};
        run(&a, rosenbrock, 6, -1.2, 2);
        run(&b, rosenbrock, 6, -1.2, 2);
        const float *wanted = a.iterations > 1 ? b.at[a.iterations - 2] : b.start;
        assert_memory_equal(a.at[a.iterations - 1], wanted, 6 * sizeof(float));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_quadratic_ends_in_about_2n_steps), cmocka_unit_test(it_goes_through_the_valley),
        cmocka_unit_test(every_step_is_of_strong_wolfe), cmocka_unit_test(shards_go_the_same_way),
        cmocka_unit_test(it_turns_back_from_what_is_not_finite), cmocka_unit_test(without_a_way_down_it_says_so),
        cmocka_unit_test(a_point_given_up_moves_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
