/*
 * LayerNorm and its gradient. With n = (sum − mean) · rstd (a row, d long) and y = w · n + bias:
 *
 *	dsum = rstd · (w·dy − mean(w·dy) − n · mean(w·dy·n)),  dw = Σ over rows of dy · n,  dbias = Σ dy
 *
 * The variance is taken from the differences to the mean, or it would vanish in rounding where the mean is
 * large.
 */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct forward_args {
	struct mat y, sum, x, delta;
	float *stats;
	const void *w, *bias;
	float eps;
};

/* v with 0 in the lanes from n on. */
ALWAYS_INLINE vf first_lanes(vf v, int64_t n)
{
	if (n < VLEN) {
		float a[VLEN];
		vf_store(a, v);
		for (int64_t i = n; i < VLEN; i++) {
			a[i] = 0;
		}
		v = vf_load(a);
	}
	return v;
}

/* The row whose norm is taken, written where there is a delta; returns it and the sum of its elements. */
ALWAYS_INLINE const void *sum_row(const struct forward_args *a, int64_t i, float *ret_sum, bool bf16)
{
	int64_t d = a->x.cols;
	const void *x = mat_row(a->x, i, bf16);
	vf total = vf_set(0);
	if (!a->delta.data) {
		for (int64_t j = 0; j < d; j += VLEN) {
			total += act_load_n(x, j, d - j, bf16);
		}
		*ret_sum = vf_sum(total);
		return x;
	}
	const void *delta = mat_row(a->delta, i, bf16);
	void *sum = mat_row_mut(a->sum, i, bf16);
	for (int64_t j = 0; j < d; j += VLEN) {
		vf v = act_load_n(x, j, d - j, bf16) + act_load_n(delta, j, d - j, bf16);
		v = act_round(v, bf16);
		act_store_n(sum, j, d - j, bf16, v);
		total += v;
	}
	*ret_sum = vf_sum(total);
	return sum;
}

ALWAYS_INLINE void forward_rows(const struct forward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		float total;
		const void *s = sum_row(a, i, &total, bf16);
		float mean = total / (float)d;
		vf squares = vf_set(0);
		for (int64_t j = 0; j < d; j += VLEN) {
			vf v = first_lanes(act_load_n(s, j, d - j, bf16) - mean, d - j);
			squares += v * v;
		}
		float rstd = 1 / sqrtf(vf_sum(squares) / (float)d + a->eps);
		a->stats[2 * i] = mean;
		a->stats[2 * i + 1] = rstd;
		void *y = mat_row_mut(a->y, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf v = (act_load_n(s, j, n, bf16) - mean) * rstd * act_load_n(a->w, j, n, bf16);
			if (a->bias) {
				v += act_load_n(a->bias, j, n, bf16);
			}
			act_store_n(y, j, n, bf16, v);
		}
	}
}
ACT_PAIR(forward_rows, struct forward_args)

void CPU_FN(layernorm_forward)(struct backend *b, struct mat y, struct mat sum, float *stats,
	struct mat x, struct mat delta, const void *w, const void *bias, float eps)
{
	struct forward_args args = {y, sum, x, delta, stats, w, bias, eps};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols), ACT_PICK(forward_rows, x.dtype), &args);
}

struct backward_args {
	struct mat dx, dy, dsum, sum;
	float *dw, *dbias;
	const float *stats;
	const void *w;
};

ALWAYS_INLINE void backward_rows(const struct backward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->dx.cols;
	for (int64_t i = begin; i < end; i++) {
		const void *dy = mat_row(a->dy, i, bf16), *sum = mat_row(a->sum, i, bf16);
		const void *dsum = a->dsum.data ? mat_row(a->dsum, i, bf16) : NULL;
		void *dx = mat_row_mut(a->dx, i, bf16);
		float mean = a->stats[2 * i], rstd = a->stats[2 * i + 1];

		/* w and dy are 0 beyond the end of a row. */
		vf total = vf_set(0), dot = vf_set(0);
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf g = act_load_n(a->w, j, n, bf16) * act_load_n(dy, j, n, bf16);
			total += g;
			dot += g * (act_load_n(sum, j, n, bf16) - mean);
		}
		float mean_g = vf_sum(total) / (float)d, mean_gn = vf_sum(dot) * rstd * rstd / (float)d;
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf g = act_load_n(a->w, j, n, bf16) * act_load_n(dy, j, n, bf16);
			vf v = (g - mean_g - (act_load_n(sum, j, n, bf16) - mean) * mean_gn) * rstd;
			if (dsum) {
				v += act_load_n(dsum, j, n, bf16);
			}
			act_store_n(dx, j, n, bf16, v);
		}
	}
}
ACT_PAIR(backward_rows, struct backward_args)

/* Columns [begin, end) · VLEN of all rows, in groups of rows as in rmsnorm.c. */
ALWAYS_INLINE void backward_params(const struct backward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	const int64_t group = 64;
	int64_t rows = a->dy.rows, d = a->dy.cols;
	for (int64_t j = begin * VLEN; j < min_i64(end * VLEN, d); j += VLEN) {
		int64_t n = d - j;
		vf dw = vf_set(0), db = vf_set(0);
		for (int64_t i = 0; i < rows; i += group) {
			vf gw = vf_set(0), gb = vf_set(0);
			for (int64_t k = i; k < min_i64(i + group, rows); k++) {
				vf dy = act_load_n(mat_row(a->dy, k, bf16), j, n, bf16);
				gb += dy;
				gw += dy * (act_load_n(mat_row(a->sum, k, bf16), j, n, bf16) - a->stats[2 * k]) *
					a->stats[2 * k + 1];
			}
			dw += gw;
			db += gb;
		}
		if (a->dw) {
			act_store_n(a->dw, j, n, false, act_load_n(a->dw, j, n, false) + dw);
		}
		if (a->dbias) {
			act_store_n(a->dbias, j, n, false, act_load_n(a->dbias, j, n, false) + db);
		}
	}
}
ACT_PAIR(backward_params, struct backward_args)

void CPU_FN(layernorm_backward)(struct backend *b, struct mat dx, float *dw, float *dbias,
	struct mat dy, struct mat dsum, struct mat sum, const float *stats, const void *w)
{
	struct backward_args args = {dx, dy, dsum, sum, dw, dbias, stats, w};
	if (dw || dbias) { /* first: dx may lie where dy does */
		cpu_parallel(b, (dx.cols + VLEN - 1) / VLEN, cpu_row_grain(dx.rows * VLEN),
			ACT_PICK(backward_params, dx.dtype), &args);
	}
	cpu_parallel(b, dx.rows, cpu_row_grain(dx.cols), ACT_PICK(backward_rows, dx.dtype), &args);
}
