/* The speed of large products, as the yardstick for everything else. */

#include <stdlib.h>

#include "kernels/cpu/cpu.h"
#include "util/cleanup.h"
#include "util/util.h"

#define MEASURE_SIZE 1024
#define MEASURE_NS 50000000

DEFINE_CLEANUP(struct packed_weight *, packed_weight_free);

double cpu_measure_gflops(struct backend *b, enum dtype dtype)
{
	const int64_t n = MEASURE_SIZE;
	_cleanup_(freep) float *random = alloc_array((size_t)(n * n), sizeof(float));
	_cleanup_(freep) void *x = alloc_array((size_t)(n * n), sizeof(float));
	_cleanup_(freep) void *y = alloc_array((size_t)(n * n), sizeof(float));
	_cleanup_(packed_weight_freep) struct packed_weight *w = NULL;
	if (!random || !x || !y) {
		return 0;
	}
	/* Random bits: zeros would run faster than life. */
	for (int64_t i = 0; i < n * n; i++) {
		random[i] = (float)rng_bits((struct rng_key){1, 2}, (uint64_t)i) * 0x1p-31f - 1;
	}
	if (linear_prepare(b, n, n, dtype, PACKED_FORWARD, n, NULL) ||
		packed_weight_new(&w, b, random, n, n, dtype, PACKED_FORWARD, NULL)) {
		return 0;
	}
	struct mat from = {random, DTYPE_F32, n, n, n};
	struct mat mx = {x, dtype, n, n, n}, my = {y, dtype, n, n, n};
	cast(b, mx, from);

	linear_forward(b, my, mx, w, NULL);
	int64_t best = INT64_MAX, start = clock_monotonic_ns(), now = start;
	do {
		linear_forward(b, my, mx, w, NULL);
		int64_t then = clock_monotonic_ns();
		best = min_i64(best, then - now);
		now = then;
	} while (now - start < MEASURE_NS);
	return 2.0 * (double)(n * n * n) / (double)max_i64(best, 1);
}
