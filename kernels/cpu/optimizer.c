/* Flat f32 buffers: sum of squares, AdamW. */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "util/util.h"

#define FLAT_GRAIN 16384

/* ---- sum of squares ------------------------------------------------------------------------ */

/* Blocks of a fixed length are summed each by itself and their sums in order, so the result does not
 * even depend on the thread count. Blocks come in rounds, their sums held on the stack. */
#define SQUARES_BLOCK 8192
#define SQUARES_ROUND 256

struct squares_args {
	const float *x;
	int64_t n;
	double *sums;
};

static void squares_blocks(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct squares_args *a = args;
	for (int64_t block = begin; block < end; block++) {
		const float *x = a->x + block * SQUARES_BLOCK;
		int64_t n = min_i64(SQUARES_BLOCK, a->n - block * SQUARES_BLOCK);
		double lanes[8] = {0};
		for (int64_t i = 0; i + 8 <= n; i += 8) {
			for (int k = 0; k < 8; k++) {
				lanes[k] += (double)x[i + k] * x[i + k];
			}
		}
		double sum = 0;
		for (int64_t i = n / 8 * 8; i < n; i++) {
			sum += (double)x[i] * x[i];
		}
		for (int k = 0; k < 8; k++) {
			sum += lanes[k];
		}
		a->sums[block] = sum;
	}
}

double CPU_FN(sum_squares)(struct backend *b, const float *x, int64_t n)
{
	double total = 0;
	double sums[SQUARES_ROUND];
	for (int64_t i = 0; i < n; i += SQUARES_ROUND * SQUARES_BLOCK) {
		struct squares_args args = {x + i, min_i64(n - i, SQUARES_ROUND * SQUARES_BLOCK), sums};
		int64_t blocks = (args.n + SQUARES_BLOCK - 1) / SQUARES_BLOCK;
		cpu_parallel(b, blocks, 4, squares_blocks, &args);
		for (int64_t k = 0; k < blocks; k++) {
			total += sums[k];
		}
	}
	return total;
}

/* ---- AdamW --------------------------------------------------------------------------------- */

/* The order of operations is that of torch.optim.AdamW, one tensor at a time, with the scalars
 * computed in double and then rounded. */
struct adamw_args {
	float *p, *m, *v;
	const float *g;
	float grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, bias2_sqrt, eps, step_size;
};

static void adamw_range(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct adamw_args a = *(const struct adamw_args *)args;
	float *restrict p = a.p, *restrict m = a.m, *restrict v = a.v;
	const float *restrict grad = a.g;
	for (int64_t i = begin; i < end; i++) {
		float g = grad[i] * a.grad_scale;
		float decayed = p[i] * a.decay;
		float m_new = m[i] + a.one_minus_beta1 * (g - m[i]);
		float v_new = v[i] * a.beta2 + a.one_minus_beta2 * g * g;
		float denom = sqrtf(v_new) / a.bias2_sqrt + a.eps;
		m[i] = m_new;
		v[i] = v_new;
		p[i] = decayed - a.step_size * m_new / denom;
	}
}

void CPU_FN(adamw_step)(struct backend *b, float *p, float *m, float *v, const float *g, int64_t n,
	const struct adamw *a)
{
	double bias1 = 1 - pow(a->beta1, (double)a->step);
	double bias2 = 1 - pow(a->beta2, (double)a->step);
	struct adamw_args args = {
		.p = p, .m = m, .v = v, .g = g,
		.grad_scale = (float)a->grad_scale,
		.decay = (float)(1 - a->lr * a->weight_decay),
		.one_minus_beta1 = (float)(1 - a->beta1),
		.beta2 = (float)a->beta2,
		.one_minus_beta2 = (float)(1 - a->beta2),
		.bias2_sqrt = (float)sqrt(bias2),
		.eps = (float)a->eps,
		.step_size = (float)(a->lr / bias1),
	};
	cpu_parallel(b, n, FLAT_GRAIN, adamw_range, &args);
}
