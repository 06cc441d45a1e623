/* DoRA's rescaled columns, and LoRA's factor on an embedding: columns of a table by token id. */

#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

/* ---- y = (m / n) ∘ u + (1 - m / n) ∘ bias -------------------------------------------------- */

struct dora_args {
	struct mat y, u;
	const void *m, *bias; /* bias NULL: none */
	const float *norms;
};

ALWAYS_INLINE vf ratio_at(const void *m, const float *norms, int64_t j, int64_t n, bool bf16)
{
	/* Beyond the last column norms are loaded as 0: the quotient there is never stored. */
	return act_load_n(m, j, n, bf16) / act_load_n(norms, j, n, false);
}

ALWAYS_INLINE void dora_rows(const struct dora_args *a, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	int64_t d = a->u.cols;
	for (int64_t i = begin; i < end; i++) {
		void *y = mat_row_mut(a->y, i, bf16);
		const void *u = mat_row(a->u, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			vf g = ratio_at(a->m, a->norms, j, d - j, bf16);
			vf v = act_load_n(u, j, d - j, bf16) * g;
			if (a->bias) {
				v += act_load_n(a->bias, j, d - j, bf16) * (vf_set(1) - g);
			}
			act_store_n(y, j, d - j, bf16, v);
		}
	}
}
ACT_PAIR(dora_rows, struct dora_args)

void CPU_FN(dora_forward)(struct backend *b, struct mat y, struct mat u, const void *m,
	const float *norms, const void *bias)
{
	struct dora_args args = {y, u, m, bias, norms};
	cpu_parallel(b, y.rows, cpu_row_grain(y.cols), ACT_PICK(dora_rows, y.dtype), &args);
}

struct dora_grad_args {
	float *dm, *dbias;
	struct mat dy, u;
	const void *m, *bias;
	const float *norms;
};

/* Columns [begin, end) · VLEN of all rows, in groups as in rmsnorm.c. */
ALWAYS_INLINE void dora_grad(const struct dora_grad_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	const int64_t group = 64;
	int64_t rows = a->dy.rows, d = a->dy.cols;
	for (int64_t j = begin * VLEN; j < min_i64(end * VLEN, d); j += VLEN) {
		int64_t n = d - j;
		vf bias = a->bias ? act_load_n(a->bias, j, n, bf16) : vf_set(0);
		vf by_m = vf_set(0), by_bias = vf_set(0);
		for (int64_t i = 0; i < rows; i += group) {
			vf gm = vf_set(0), gb = vf_set(0);
			for (int64_t k = i; k < min_i64(i + group, rows); k++) {
				vf dy = act_load_n(mat_row(a->dy, k, bf16), j, n, bf16);
				gm += dy * (act_load_n(mat_row(a->u, k, bf16), j, n, bf16) - bias);
				gb += dy;
			}
			by_m += gm;
			by_bias += gb;
		}
		act_store_n(a->dm, j, n, false, act_load_n(a->dm, j, n, false) +
			by_m / act_load_n(a->norms, j, n, false));
		if (a->dbias) {
			act_store_n(a->dbias, j, n, false, act_load_n(a->dbias, j, n, false) +
				by_bias * (vf_set(1) - ratio_at(a->m, a->norms, j, n, bf16)));
		}
	}
}
ACT_PAIR(dora_grad, struct dora_grad_args)

void CPU_FN(dora_backward)(struct backend *b, struct mat du, float *dm, float *dbias, struct mat dy,
	struct mat u, const void *m, const float *norms, const void *bias)
{
	/* First: du may lie where dy or u does. */
	struct dora_grad_args args = {dm, dbias, dy, u, m, bias, norms};
	cpu_parallel(b, (dy.cols + VLEN - 1) / VLEN, cpu_row_grain(dy.rows * VLEN),
		ACT_PICK(dora_grad, dy.dtype), &args);
	CPU_FN(dora_forward)(b, du, dy, m, norms, NULL);
}

/* ---- columns of a table -------------------------------------------------------------------- */

struct columns_args {
	struct mat h, a;
	const int32_t *ids;
};

static void gather_columns(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct columns_args *c = args;
	for (int64_t i = begin; i < end; i++) {
		assert(c->ids[i] < c->a.cols);
		for (int64_t k = 0; k < c->h.cols; k++) {
			int64_t from = k * c->a.stride + c->ids[i], to = i * c->h.stride + k;
			if (c->h.dtype == DTYPE_BF16) {
				((uint16_t *)c->h.data)[to] = c->ids[i] < 0 ? 0 :
					((const uint16_t *)c->a.data)[from];
			} else {
				((float *)c->h.data)[to] = c->ids[i] < 0 ? 0 : ((const float *)c->a.data)[from];
			}
		}
	}
}

void CPU_FN(embedding_columns_forward)(struct backend *b, struct mat h, const int32_t *ids,
	struct mat a)
{
	struct columns_args args = {h, a, ids};
	cpu_parallel(b, h.rows, cpu_row_grain(h.cols), gather_columns, &args);
}

/* Rows [begin, end) of the table, each by one thread, in the order of tokens. */
static void scatter_columns(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct columns_args *c = args;
	for (int64_t k = begin; k < end; k++) {
		float *row = (float *)c->a.data + k * c->a.stride;
		for (int64_t i = 0; i < c->h.rows; i++) {
			int64_t from = i * c->h.stride + k;
			if (c->ids[i] >= 0) {
				row[c->ids[i]] += c->h.dtype == DTYPE_BF16
					? bf16_to_f32(((const uint16_t *)c->h.data)[from])
					: ((const float *)c->h.data)[from];
			}
		}
	}
}

void CPU_FN(embedding_columns_backward)(struct backend *b, struct mat da, const int32_t *ids,
	struct mat dh)
{
	struct columns_args args = {dh, da, ids};
	cpu_parallel(b, da.rows, cpu_row_grain(dh.rows), scatter_columns, &args);
}
