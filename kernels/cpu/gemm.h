#pragma once
/*
 * The inner loop of our own products: a tile of c = a · b summed in registers over all of k.
 *
 * A step of k is one element of f32, or ("dot", where the processor has it) a pair of bf16 elements
 * next to each other in k, multiplied and added to an f32 sum by one instruction. Of a, each step needs
 * one 4-byte value a row, wherever it is; of b, whole vectors of 4-byte values: for dot, the pair of
 * rows 2l and 2l + 1 interleaved.
 *
 * Tiles are GEMM_ROWS(nv) rows by nv vectors, as many as leave registers for nv vectors of b and a
 * broadcast of a.
 */

#include "kernels/cpu/vec.h"

#if defined(__AVX512F__)
#define GEMM_NV 4
#define GEMM_ROWS(nv) ((nv) <= 2 ? 12 : (nv) == 3 ? 8 : 6)
#else
#define GEMM_NV 2
#define GEMM_ROWS(nv) ((nv) == 1 ? 12 : 6)
#endif
#define GEMM_MAX_ROWS 12

#if defined(__AVX512BF16__)
#define GEMM_HAVE_DOT 1
#else
#define GEMM_HAVE_DOT 0
#endif

struct gemm {
	const char *a;
	int64_t a_row, a_step; /* bytes from row to row, and from step to step */
	const char *b;
	int64_t b_step;
	int64_t steps;
};

typedef vf gemm_sums[GEMM_MAX_ROWS][GEMM_NV];

ALWAYS_INLINE vf gemm_dot(vf sum, vf a, vf b)
{
#if GEMM_HAVE_DOT
	return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
	return sum;
#endif
}

/* sum += rows [i, i + mr) of a times nv vectors of b from column j on; mr, nv and dot are constants. */
ALWAYS_INLINE void gemm_tile(gemm_sums sum, const struct gemm *g, int64_t i, int64_t j, int mr, int nv,
	bool dot)
{
	const char *a = g->a + i * g->a_row, *b = g->b + j * 4;
	int64_t a_row = g->a_row, a_step = g->a_step, b_step = g->b_step;

	for (int64_t l = g->steps; l > 0; l--) {
		vf bv[GEMM_NV];
#pragma GCC unroll 4
		for (int v = 0; v < nv; v++) {
			memcpy(&bv[v], b + v * VLEN * 4, sizeof(bv[v]));
		}
#pragma GCC unroll 12
		for (int r = 0; r < mr; r++) {
			float x;
			memcpy(&x, a + r * a_row, sizeof(x));
			vf av = vf_set(x);
#pragma GCC unroll 4
			for (int v = 0; v < nv; v++) {
				sum[r][v] = dot ? gemm_dot(sum[r][v], av, bv[v]) : sum[r][v] + av * bv[v];
			}
		}
		a += a_step;
		b += b_step;
	}
}

/*
 * Calls fn(ctx, i, mr) for tiles of rows that cover [0, m), with mr constant in each call: whole tiles
 * first, then 4, 2, 1. `fn` must be always inlined.
 */
#define GEMM_FOR_ROWS(m, rows, fn, ...)                  \
	do {                                                 \
		int64_t i_ = 0, m_ = (m);                        \
		for (; i_ + (rows) <= m_; i_ += (rows)) {        \
			fn(__VA_ARGS__, i_, (rows));                 \
		}                                                \
		for (; i_ + 4 <= m_; i_ += 4) {                  \
			fn(__VA_ARGS__, i_, 4);                      \
		}                                                \
		if (i_ + 2 <= m_) {                              \
			fn(__VA_ARGS__, i_, 2);                      \
			i_ += 2;                                     \
		}                                                \
		if (i_ < m_) {                                   \
			fn(__VA_ARGS__, i_, 1);                      \
		}                                                \
	} while (0)
