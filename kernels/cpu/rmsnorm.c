/*
 * RMSNorm and its gradient. With n = sum · rstd (a row, d long) and y = w · n, or (1 + w) · n:
 *
 *	dsum = rstd · (w·dy − n · mean(w·dy·n)),  dw = Σ over rows of dy · n
 */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct forward_args {
	struct mat y, sum, x, delta;
	float *rstd;
	const void *w;
	float eps;
	bool one_plus;
};

/* Elements from j on of what a row is multiplied by. */
ALWAYS_INLINE vf scale_at(const void *w, int64_t j, int64_t n, bool one_plus, bool bf16)
{
	vf v = act_load_n(w, j, n, bf16);
	return one_plus ? v + 1.0f : v;
}

ALWAYS_INLINE void forward_rows(const struct forward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		const void *s = mat_row(a->x, i, bf16);
		vf squares = vf_set(0);
		if (a->delta.data) {
			const void *x = s, *delta = mat_row(a->delta, i, bf16);
			void *sum = mat_row_mut(a->sum, i, bf16);
			for (int64_t j = 0; j < d; j += VLEN) {
				vf v = act_load_n(x, j, d - j, bf16) + act_load_n(delta, j, d - j, bf16);
				v = act_round(v, bf16);
				act_store_n(sum, j, d - j, bf16, v);
				squares += v * v;
			}
			s = sum;
		} else {
			for (int64_t j = 0; j < d; j += VLEN) {
				vf v = act_load_n(s, j, d - j, bf16);
				squares += v * v;
			}
		}

		float rstd = 1 / sqrtf(vf_sum(squares) / (float)d + a->eps);
		a->rstd[i] = rstd;
		void *y = mat_row_mut(a->y, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			vf n = act_load_n(s, j, d - j, bf16) * rstd;
			n = a->one_plus ? n : act_round(n, bf16);
			act_store_n(y, j, d - j, bf16, scale_at(a->w, j, d - j, a->one_plus, bf16) * n);
		}
	}
}
ACT_PAIR(forward_rows, struct forward_args)

void CPU_FN(rmsnorm_forward)(struct backend *b, struct mat y, struct mat sum, float *rstd,
	struct mat x, struct mat delta, const void *w, float eps, bool one_plus)
{
	struct forward_args args = {y, sum, x, delta, rstd, w, eps, one_plus};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols), ACT_PICK(forward_rows, x.dtype), &args);
}

struct backward_args {
	struct mat dx, dy, dsum, sum;
	float *dw;
	const float *rstd;
	const void *w;
	bool one_plus;
};

ALWAYS_INLINE void backward_rows(const struct backward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->dx.cols;
	for (int64_t i = begin; i < end; i++) {
		const void *dy = mat_row(a->dy, i, bf16), *sum = mat_row(a->sum, i, bf16);
		const void *dsum = a->dsum.data ? mat_row(a->dsum, i, bf16) : NULL;
		void *dx = mat_row_mut(a->dx, i, bf16);
		float rstd = a->rstd[i];

		vf dot = vf_set(0);
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			dot += scale_at(a->w, j, n, a->one_plus, bf16) * act_load_n(dy, j, n, bf16) *
				act_load_n(sum, j, n, bf16);
		}
		float mean = vf_sum(dot) * rstd * rstd / (float)d;
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf g = scale_at(a->w, j, n, a->one_plus, bf16) * act_load_n(dy, j, n, bf16);
			vf v = (g - act_load_n(sum, j, n, bf16) * mean) * rstd;
			if (dsum) {
				v += act_load_n(dsum, j, n, bf16);
			}
			act_store_n(dx, j, n, bf16, v);
		}
	}
}
ACT_PAIR(backward_rows, struct backward_args)

/* Columns [begin, end) · VLEN of all rows. Rows are summed in groups, and the groups then, so that
 * rounding errors grow with the group's length only. */
ALWAYS_INLINE void backward_weight(const struct backward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	const int64_t group = 64;
	int64_t rows = a->dy.rows, d = a->dy.cols;
	for (int64_t j = begin * VLEN; j < min_i64(end * VLEN, d); j += VLEN) {
		int64_t n = d - j;
		vf total = vf_set(0);
		for (int64_t i = 0; i < rows; i += group) {
			vf g = vf_set(0);
			for (int64_t k = i; k < min_i64(i + group, rows); k++) {
				g += act_load_n(mat_row(a->dy, k, bf16), j, n, bf16) *
					act_load_n(mat_row(a->sum, k, bf16), j, n, bf16) * a->rstd[k];
			}
			total += g;
		}
		act_store_n(a->dw, j, n, false, act_load_n(a->dw, j, n, false) + total);
	}
}
ACT_PAIR(backward_weight, struct backward_args)

void CPU_FN(rmsnorm_backward)(struct backend *b, struct mat dx, float *dw, struct mat dy,
	struct mat dsum, struct mat sum, const float *rstd, const void *w, bool one_plus)
{
	struct backward_args args = {dx, dy, dsum, sum, dw, rstd, w, one_plus};
	if (dw) { /* first: dx may lie where dy does */
		cpu_parallel(b, (dx.cols + VLEN - 1) / VLEN, cpu_row_grain(dx.rows * VLEN),
			ACT_PICK(backward_weight, dx.dtype), &args);
	}
	cpu_parallel(b, dx.rows, cpu_row_grain(dx.cols), ACT_PICK(backward_rows, dx.dtype), &args);
}
