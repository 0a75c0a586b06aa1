/* The HDF5 wrappers: every way a dataset may be stored reads the same, and damage is found. Files are made
 * with HDF5 itself. */
#include "base/base.h"

#include <hdf5.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ROWS 103
#define WIDTH 12

static int16_t value(int64_t i) { return (int16_t)(i * 37 % 2003 - 1000); }

struct layout { const char *name; hsize_t chunk[2]; bool shuffle, deflate, fletcher; hid_t type; bool raw; };

static void make(hid_t f, const struct layout *l)
{
    int16_t v[ROWS * WIDTH];
    hsize_t dim[2] = {ROWS, WIDTH};
    hid_t space = H5Screate_simple(2, dim, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    for (int64_t i = 0; i < ROWS * WIDTH; i++)
        v[i] = value(i);
    if (l->chunk[0])
        H5Pset_chunk(plist, 2, l->chunk);
    if (l->shuffle)
        H5Pset_shuffle(plist);
    if (l->deflate)
        H5Pset_deflate(plist, 4);
    if (l->fletcher)
        H5Pset_fletcher32(plist);
    hid_t d = H5Dcreate2(f, l->name, l->type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(d >= 0 && H5Dwrite(d, H5T_NATIVE_INT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) >= 0);
    H5Dclose(d), H5Sclose(space), H5Pclose(plist);
}

static void check_reads(struct pl_h5 *f, const struct layout *l)
{
    struct pl_h5ds *d;
    int16_t v[ROWS * WIDTH];
    float x[ROWS * WIDTH];
    assert_int_equal(pl_h5_dataset(f, l->name, &d), PL_OK);
    const struct pl_h5_info *info = pl_h5_dataset_info(d);
    if (info->raw_chunks != l->raw)
        fail_msg("%s: raw chunks %d, wanted %d", l->name, info->raw_chunks, l->raw);
    for (int64_t first = 0; first < ROWS; first += 13)
        for (int64_t rows = 0; first + rows <= ROWS; rows += 11) {
            assert_int_equal(pl_h5_read_rows(d, first, rows, PL_I16, v), PL_OK);
            assert_int_equal(pl_h5_read_rows(d, first, rows, PL_F32, x), PL_OK);
            for (int64_t i = 0; i < rows * WIDTH; i++)
                if (v[i] != value(first * WIDTH + i) || x[i] != (float)v[i])
                    fail_msg("%s: rows %lld+%lld element %lld is %d and %g, wanted %d", l->name, (long long)first, (long long)rows,
                             (long long)i, v[i], x[i], value(first * WIDTH + i));
        }
    assert_int_equal(pl_h5_read_rows(d, ROWS - 1, 2, PL_I16, v), PL_ERR_DATA);
    pl_error_clear();
    pl_h5_dataset_close(d);
}

static void test_layouts(void **state)
{
    (void)state;
    const struct layout layouts[] = {
        {"contiguous", {0, 0}, false, false, false, H5T_NATIVE_INT16, false},
        {"chunked", {10, WIDTH}, false, false, false, H5T_NATIVE_INT16, true},
        {"deflated", {10, WIDTH}, false, true, false, H5T_NATIVE_INT16, true},
        {"all_three", {7, WIDTH}, true, true, true, H5T_NATIVE_INT16, true},
        {"summed", {16, WIDTH}, false, false, true, H5T_NATIVE_INT16, true},
        {"inner", {10, 5}, true, true, false, H5T_NATIVE_INT16, false},
        {"big_endian", {10, WIDTH}, true, true, false, H5T_STD_I16BE, false}};
    const size_t n = sizeof layouts / sizeof *layouts;
    struct pl_h5 *f;
    unlink("layouts.h5");
    hid_t h = H5Fcreate("layouts.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    for (size_t i = 0; i < n; i++)
        make(h, &layouts[i]);
    H5Fclose(h);
    assert_int_equal(pl_h5_open("layouts.h5", "data", PL_ERR_DATA, &f), PL_OK);
    for (size_t i = 0; i < n; i++)
        check_reads(f, &layouts[i]);
    assert_false(pl_h5_exists(f, "/no/such"));
    pl_h5_close(f);
}

/* Chunk 0 written with its deflate skipped, chunk 1 never written (reads as the fill value), the rest usual. */
static void test_masks_and_holes(void **state)
{
    (void)state;
    hsize_t dim[2] = {30, WIDTH}, chunk[2] = {10, WIDTH}, start[2] = {20, 0}, zero[2] = {0, 0};
    int16_t v[10 * WIDTH], out[30 * WIDTH], fill = -7;
    struct pl_h5 *f;
    struct pl_h5ds *d;
    for (int i = 0; i < 10 * WIDTH; i++)
        v[i] = value(i);
    hid_t h = H5Fcreate("holes.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), space = H5Screate_simple(2, dim, NULL), memory = H5Screate_simple(2, chunk, NULL);
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(plist, 2, chunk), H5Pset_deflate(plist, 1), H5Pset_fill_value(plist, H5T_NATIVE_INT16, &fill);
    hid_t ds = H5Dcreate2(h, "x", H5T_NATIVE_INT16, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(H5Dwrite_chunk(ds, H5P_DEFAULT, 1, zero, sizeof v, v) >= 0);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, chunk, NULL);
    assert_true(H5Dwrite(ds, H5T_NATIVE_INT16, memory, space, H5P_DEFAULT, v) >= 0);
    H5Dclose(ds), H5Pclose(plist), H5Sclose(space), H5Sclose(memory), H5Fclose(h);
    assert_int_equal(pl_h5_open("holes.h5", "data", PL_ERR_DATA, &f), PL_OK);
    assert_int_equal(pl_h5_dataset(f, "x", &d), PL_OK);
    assert_true(pl_h5_dataset_info(d)->raw_chunks);
    assert_int_equal(pl_h5_read_rows(d, 0, 30, PL_I16, out), PL_OK);
    for (int i = 0; i < 30 * WIDTH; i++)
        assert_int_equal(out[i], i / (10 * WIDTH) == 1 ? fill : value(i % (10 * WIDTH)));
    pl_h5_dataset_close(d);
    pl_h5_close(f);
}

static void test_damage(void **state)
{
    (void)state;
    const struct layout l = {"sum", {ROWS, WIDTH}, false, false, true, H5T_NATIVE_INT16, true};
    struct pl_h5 *f;
    struct pl_h5ds *d;
    int16_t v[ROWS * WIDTH];
    hid_t h = H5Fcreate("damaged.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    make(h, &l);
    hid_t ds = H5Dopen2(h, "sum", H5P_DEFAULT);
    hsize_t size, zero[2] = {0, 0};
    haddr_t at;
    unsigned mask;
    assert_true(H5Dget_chunk_info_by_coord(ds, zero, &mask, &at, &size) >= 0);
    H5Dclose(ds), H5Fclose(h);
    FILE *file = fopen("damaged.h5", "r+b");
    fseek(file, (long)at + 100, SEEK_SET), fputc(0x5a, file), fclose(file);
    assert_int_equal(pl_h5_open("damaged.h5", "data", PL_ERR_DATA, &f), PL_OK);
    assert_int_equal(pl_h5_dataset(f, "sum", &d), PL_OK);
    assert_int_equal(pl_h5_read_rows(d, 0, ROWS, PL_I16, v), PL_ERR_DATA);
    assert_non_null(strstr(pl_error_text(), "damaged.h5:/sum: the chunk of rows 0 to 102 is damaged: its checksum"));
    pl_error_clear();
    pl_h5_dataset_close(d);
    pl_h5_close(f);
}

static void test_write(void **state)
{
    (void)state;
    struct pl_h5 *f;
    struct pl_h5ds *d;
    int64_t dim[2] = {70000, 24}, n;
    double x;
    char *text;
    float *v = calloc(70000 * 24, sizeof *v), *w = calloc(70000 * 24, sizeof *w);
    for (int i = 0; i < 70000 * 24; i++)
        v[i] = (float)i * 0.5f;
    unlink("written.h5");
    assert_int_equal(pl_h5_create("written.h5", "test", PL_ERR_CHECKPOINT, &f), PL_OK);
    assert_int_equal(pl_h5_make_dataset(f, "/a/b/c", PL_F32, 2, dim, 0, 0, &d), PL_OK);
    assert_int_equal(pl_h5_write_rows(d, 0, 70000, PL_F32, v), PL_OK); /* 6.7 MB: two pieces */
    pl_h5_dataset_close(d);
    assert_int_equal(pl_h5_set_int(f, "/run", "step", 12), PL_OK);
    assert_int_equal(pl_h5_set_int(f, "/run", "step", 13), PL_OK);
    assert_int_equal(pl_h5_set_double(f, "/run", "x", 0.25), PL_OK);
    assert_int_equal(pl_h5_set_text(f, "/run", "t", "two\nlines"), PL_OK);
    assert_int_equal(pl_h5_close(f), PL_OK);
    assert_int_equal(pl_h5_create("written.h5", "test", PL_ERR_CHECKPOINT, &f), PL_ERR_CHECKPOINT); /* never overwritten */
    pl_error_clear();
    assert_int_equal(pl_h5_open("written.h5", "test", PL_ERR_CHECKPOINT, &f), PL_OK);
    assert_int_equal(pl_h5_dataset(f, "/a/b/c", &d), PL_OK);
    assert_int_equal(pl_h5_read_rows(d, 0, 70000, PL_F32, w), PL_OK);
    assert_memory_equal(v, w, 70000 * 24 * sizeof *v);
    assert_true(pl_h5_get_int(f, "/run", "step", &n) == PL_OK && n == 13);
    assert_true(pl_h5_get_double(f, "/run", "x", &x) == PL_OK && x == 0.25);
    assert_true(pl_h5_get_text(f, "/run", "t", &text) == PL_OK && strcmp(text, "two\nlines") == 0);
    pl_free(text);
    pl_h5_dataset_close(d);
    pl_h5_close(f);
    free(v);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts), cmocka_unit_test(test_masks_and_holes),
                                       cmocka_unit_test(test_damage), cmocka_unit_test(test_write)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
