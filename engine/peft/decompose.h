#pragma once
/* Leading factors of a matrix, for LoRA that starts from the base's own weights. Host memory, f64
 * inside; the same bits for the same input. */

#include <stdint.h>

/* W[out, in] ≈ B·A with the r largest singular values shared between both: A[r, in] = √S·Uᵀ, B[out, r] =
 * V·√S (Meng et al. 2024). r <= min(out, in). -ENOMEM. */
int decompose_svd(const float *w, int64_t out, int64_t in, int64_t r, float *a, float *b);
/* The same by subspace iteration from random numbers, `niter` times (Halko et al. 2011): faster for
 * large matrices, not exact. */
int decompose_svd_random(const float *w, int64_t out, int64_t in, int64_t r, int64_t niter,
	uint64_t seed, float *a, float *b);
/* W = Q·R: A = the first r rows of R, B = the first r columns of Q (Büyükakyüz 2024). */
int decompose_qr(const float *w, int64_t out, int64_t in, int64_t r, float *a, float *b);
