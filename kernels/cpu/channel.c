/* Products with a factor a column, and the norms that DoRA divides by. */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

/* ---- y = x ∘ l ----------------------------------------------------------------------------- */

struct scale_args {
	struct mat y, x;
	const void *l;
};

ALWAYS_INLINE void scale_rows(const struct scale_args *a, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		void *y = mat_row_mut(a->y, i, bf16);
		const void *x = mat_row(a->x, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(y, j, d - j, bf16,
				act_load_n(x, j, d - j, bf16) * act_load_n(a->l, j, d - j, bf16));
		}
	}
}
ACT_PAIR(scale_rows, struct scale_args)

void CPU_FN(scale_columns)(struct backend *b, struct mat y, struct mat x, const void *l)
{
	struct scale_args args = {y, x, l};
	cpu_parallel(b, y.rows, cpu_row_grain(y.cols), ACT_PICK(scale_rows, y.dtype), &args);
}

struct scale_grad_args {
	float *dl;
	struct mat dy, x;
};

/* Columns [begin, end) · VLEN of all rows, in groups as in rmsnorm.c. */
ALWAYS_INLINE void scale_grad(const struct scale_grad_args *a, int64_t begin, int64_t end,
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
					act_load_n(mat_row(a->x, k, bf16), j, n, bf16);
			}
			total += g;
		}
		act_store_n(a->dl, j, n, false, act_load_n(a->dl, j, n, false) + total);
	}
}
ACT_PAIR(scale_grad, struct scale_grad_args)

void CPU_FN(scale_columns_backward)(struct backend *b, struct mat dx, float *dl, struct mat dy,
	struct mat x, const void *l)
{
	if (dl) { /* first: dx may lie where dy or x does */
		struct scale_grad_args args = {dl, dy, x};
		cpu_parallel(b, (dy.cols + VLEN - 1) / VLEN, cpu_row_grain(dy.rows * VLEN),
			ACT_PICK(scale_grad, dy.dtype), &args);
	}
	if (dx.data) {
		CPU_FN(scale_columns)(b, dx, dy, l);
	}
}

/* ---- norms of rows ------------------------------------------------------------------------- */

struct norm_args {
	float *norms;
	const float *w_squares;
	struct mat wa, aa, b;
	float scale;
};

/* Row i of W + s·B·A has the squared norm w² + 2s · b·(A·wᵀ) + s² · b·(A·Aᵀ)·bᵀ with w, b row i of W
 * and B: sums over ranks in f64, because the parts may cancel. */
static void norm_rows(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct norm_args *a = args;
	int64_t r = a->b.cols;
	bool bf16 = a->b.dtype == DTYPE_BF16;
	for (int64_t i = begin; i < end; i++) {
		const void *row = mat_row(a->b, i, bf16);
		double cross = 0, square = 0;
		for (int64_t k = 0; k < r; k++) {
			double bk = bf16 ? (double)bf16_to_f32(((const uint16_t *)row)[k])
							 : (double)((const float *)row)[k];
			const float *aa = (const float *)a->aa.data + k * a->aa.stride;
			double dot = 0;
			for (int64_t l = 0; l < r; l++) {
				dot += (double)aa[l] * (bf16 ? (double)bf16_to_f32(((const uint16_t *)row)[l])
											 : (double)((const float *)row)[l]);
			}
			cross += bk * (double)((const float *)a->wa.data)[k * a->wa.stride + i];
			square += bk * dot;
		}
		double s = (double)a->scale;
		double sum = (double)a->w_squares[i] + 2 * s * cross + s * s * square;
		a->norms[i] = (float)sqrt(sum > 0 ? sum : 0);
	}
}

void CPU_FN(low_rank_row_norms)(struct backend *b, float *norms, const float *w_squares,
	struct mat wa, struct mat aa, struct mat b_, float scale)
{
	struct norm_args args = {norms, w_squares, wa, aa, b_, scale};
	cpu_parallel(b, b_.rows, cpu_row_grain(b_.cols * b_.cols), norm_rows, &args);
}
