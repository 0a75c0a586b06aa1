# Sourced by run_test and the test scripts: how ranks are started here, and the sanitizers' options.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export OMP_WAIT_POLICY=passive # ranks share the cores: a thread that spins keeps another rank from what it waits for
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
PL_MPIRUN=("${PL_MPIEXEC:-mpirun}")
case $("${PL_MPIRUN[@]}" --version 2>&1) in *"Open MPI"* | *OpenRTE*) PL_MPIRUN+=(--oversubscribe --bind-to none) ;; esac
# Stacks by frame pointers, which our code has and other libraries have not: a fifth of the time. fast_unwind_on_malloc=0 shows
# more of a leak below a library.
# verify_asan_link_order=0: run_test loads a library before it, of one function (sleep_to_yield.c).
# intercept_tls_get_addr: up to GCC 13 it takes thread-local memory of an opened library, by the address that it happens to have,
# for an old glibc's, and the search for leaks then dies of it ("Tracer caught signal 11").
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0:intercept_tls_get_addr=0:verify_asan_link_order=0}
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export LSAN_OPTIONS=suppressions=$PL_SOURCE_DIR/tests/lsan.supp:print_suppressions=0
