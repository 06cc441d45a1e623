#pragma once
/*
 * The parity suite: every operation of kernels.h, on any backend, against the float64 reference, over
 * dtypes and shapes. A backend under test is a constructor; the suite touches its memory only through
 * backend_alloc(), backend_upload() and backend_download().
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/kernels.h"

struct parity_target {
	const char *name; /* for people: "avx2, 2 threads" */
	/* STATUS_UNAVAILABLE: not on this machine; its tests are then skipped. */
	int (*new)(struct backend **ret, const struct parity_target *target, struct errmsg *err);
	const char *isa;
	unsigned n_threads;
};

/* Runs every test on every target; returns what main() returns. */
int parity_main(const struct parity_target *targets, size_t n_targets);

/* ---- inside the suite ---------------------------------------------------------------------- */

struct tensor {
	struct mat m;
	double *v;   /* [rows · cols], the values as the dtype holds them */
	char *bytes; /* image of the memory, gaps between rows included */
	size_t size;
};

#define PARITY_TENSORS 32
#define PARITY_ARRAYS 64

struct parity {
	struct backend *b;
	uint64_t seed;
	char context[256]; /* operation, dtype and shape, for failures */
	struct tensor tensors[PARITY_TENSORS];
	size_t n_tensors;
	void *arrays[PARITY_ARRAYS];
	size_t n_arrays;
};

/* The tests, each over its own table of shapes. */
extern const struct parity_test {
	const char *name;
	void (*run)(struct parity *p);
} parity_tests_products[], parity_tests_rows[], parity_tests_attention[], parity_tests_adapters[];

/* Starts a case: frees all tensors and sets what a failure says. */
void parity_case(struct parity *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* A tensor of random values in [-scale, scale), rows `gap` elements apart; valid until the next
 * case. */
struct tensor *tensor_random(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols,
	int64_t gap, double scale);

/* Zeros; and given values, rounded to the dtype. */
struct tensor *tensor_zero(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols, int64_t gap);
struct tensor *tensor_from(struct parity *p, enum dtype dtype, int64_t rows, int64_t cols,
	const double *values);
/* int32 values on the device; .data is what to pass on. */
struct tensor *tensor_i32(struct parity *p, const int32_t *values, int64_t n);

/* A random number in [0, n). */
int64_t parity_random(struct parity *p, int64_t n);

/* Calls fn(ctx) and leaves in each output's v what the device then holds; calls it a second time from
 * the same start and fails unless every bit is equal; fails where a gap has been written to. Ends
 * with a NULL output. */
void parity_run(struct parity *p, void (*fn)(struct backend *b, void *ctx), void *ctx,
	struct tensor *output, ...) __attribute__((sentinel));

/* Fails unless t->v agrees with want. `rtol` is for f32; bf16 outputs are given one and a half units
 * in the last place besides. */
void parity_check(struct parity *p, const char *name, const struct tensor *t, const double *want,
	double rtol, double atol, const double *bound);

/* n zeroed doubles, or a copy of n; valid until the next case. */
double *parity_doubles(struct parity *p, int64_t n);
double *parity_copy(struct parity *p, const double *src, int64_t n);
