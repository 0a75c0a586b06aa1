/* Every operation of the cuda backend's module, on a GPU, against `reference`: in fp32, with products in tf32, and in bf16. */
static int rounds = 40; /* of each kind; PL_TEST_ROUNDS, for a tool that makes them slow */
#define ROUNDS rounds
#define PL_ON_GPU
#include "../cuda/test_ops.c"

#define SKIPPED 77

/* PL_TEST_LESS: networks' convolutions smaller by so much, where a processor computes them. */
int main(void)
{
    const char *given = getenv("PL_TEST_SEED"), *fewer = getenv("PL_TEST_ROUNDS");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_canonical), cmocka_unit_test(test_channels_last), cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_few), cmocka_unit_test(test_extremes), cmocka_unit_test(test_alone), cmocka_unit_test(test_without_backward), cmocka_unit_test(test_flattened),
                                       cmocka_unit_test(test_networks), cmocka_unit_test(test_wrong_label),
                                       cmocka_unit_test(test_ahead), cmocka_unit_test(test_reducer), cmocka_unit_test(test_over_ranks)};
    seed = given ? strtoull(given, NULL, 10) : 1;
    rng = pl_rng_make(seed, 0, 0, 0);
    rounds = fewer ? atoi(fewer) : rounds;
    cmocka_set_test_filter(getenv("PL_TEST_ONLY"));
    cuda = pl_backend_find("cuda");
    if (!cuda || cuda->open(&(struct pl_device_options){.threads = 1}, &cuda_backend) < 0) {
        printf("skipped: %s\n", pl_error_text());
        return SKIPPED;
    }
    cuda->close(cuda_backend);
    tf32 = false;
    int failures = cmocka_run_group_tests_name("fp32", tests, open_all, close_all);
    tf32 = true;
    allowed = 1e-5; /* of squares: inputs have 10 bits of mantissa */
    failures += cmocka_run_group_tests_name("tf32", tests, open_all, close_all);
    const struct CMUnitTest in_bf16[] = {cmocka_unit_test(test_bf16), cmocka_unit_test(test_networks)};
    tf32 = false;
    return failures + cmocka_run_group_tests_name("bf16", in_bf16, open_bf16, close_all);
}
