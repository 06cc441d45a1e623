/*
 * Threads. All work runs in OpenMP teams of one size, the backend's, shared with the product library:
 * two pools would fight for the cores, and a team of another size would make the runtime build and
 * drop threads. Idle threads spin for some milliseconds, then sleep, as long as OMP_WAIT_POLICY is
 * not set to "active".
 */

#include "kernels/cpu/cpu.h"

#include <omp.h>

#include "util/util.h"

void cpu_enter(struct backend *b)
{
	/* These are settings of the calling thread, and a backend may move from thread to thread. */
	if (omp_get_max_threads() != (int)b->n_threads) {
		omp_set_num_threads((int)b->n_threads);
	}
	if (omp_get_dynamic()) {
		omp_set_dynamic(0);
	}
}

void cpu_parallel(struct backend *b, int64_t n, int64_t grain, cpu_range_fn *fn, const void *args)
{
	int64_t n_parts = min_i64(b->n_threads, n / max_i64(grain, 1));
	if (n_parts <= 1) {
		fn(args, 0, n, 0);
		return;
	}

	cpu_enter(b);
#pragma omp parallel for schedule(static, 1)
	for (int64_t part = 0; part < n_parts; part++) {
		int64_t begin = n / n_parts * part + min_i64(part, n % n_parts);
		int64_t end = begin + n / n_parts + (part < n % n_parts);
		fn(args, begin, end, (unsigned)part);
	}
}

void cpu_parallel_cyclic(struct backend *b, int64_t n, cpu_range_fn *fn, const void *args)
{
	int64_t n_parts = min_i64(b->n_threads, n);
	if (n_parts <= 1) {
		for (int64_t i = 0; i < n; i++) {
			fn(args, i, i + 1, 0);
		}
		return;
	}

	cpu_enter(b);
#pragma omp parallel for schedule(static, 1)
	for (int64_t part = 0; part < n_parts; part++) {
		for (int64_t i = part; i < n; i += n_parts) {
			fn(args, i, i + 1, (unsigned)part);
		}
	}
}
