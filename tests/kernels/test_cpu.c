/* The parity suite on the CPU backend: every instruction set, one thread and two. */

#include "kernels/backend.h"
#include "tests/kernels/parity.h"
#include "util/util.h"

static int cpu_new(struct backend **ret, const struct parity_target *t, struct errmsg *err)
{
	return backend_cpu_new_isa(ret, t->isa, t->n_threads, err);
}

int main(void)
{
	static const struct parity_target targets[] = {
		{"baseline, 1 thread", cpu_new, "baseline", 1},
		{"baseline, 2 threads", cpu_new, "baseline", 2},
		{"avx2, 1 thread", cpu_new, "avx2", 1},
		{"avx2, 2 threads", cpu_new, "avx2", 2},
		{"avx512, 1 thread", cpu_new, "avx512", 1},
		{"avx512, 2 threads", cpu_new, "avx512", 2},
		{"avx512bf16, 1 thread", cpu_new, "avx512bf16", 1},
		{"avx512bf16, 2 threads", cpu_new, "avx512bf16", 2},
	};
	return parity_main(targets, ARRAY_LEN(targets));
}
