/* See attention.h. */

#include "kernels/cpu/attention.h"

void CPU_FN(attention_product)(const struct block_product *p, int64_t m, int64_t n, bool dot)
{
#if GEMM_HAVE_DOT
	if (dot) {
		block_columns(p, m, n, true);
		return;
	}
#endif
	block_columns(p, m, n, false);
}

/* ---- blocks -------------------------------------------------------------------------------- */

/* dst[j, i] = src[i, j], 4-byte values, in squares that stay in the first cache. */
static void transpose(uint32_t *dst, int64_t dst_stride, const char *src, int64_t src_stride,
	int64_t rows, int64_t cols)
{
	const int64_t side = 16;
	for (int64_t i0 = 0; i0 < rows; i0 += side) {
		int64_t n = min_i64(side, rows - i0);
		for (int64_t j = 0; j < cols; j++) {
			for (int64_t i = 0; i < n; i++) {
				memcpy(&dst[j * dst_stride + i0 + i], src + (i0 + i) * src_stride + j * 4, 4);
			}
		}
	}
}

/* dst[rows, hd] = one head of rows of m in f32, zeros beyond head_dim. */
static void load_f32(float *dst, int64_t hd, struct mat m, int64_t row, int64_t rows, int64_t head,
	int64_t head_dim)
{
	bool bf16 = m.dtype == DTYPE_BF16;
	for (int64_t i = 0; i < rows; i++) {
		const char *src = head_at(m, row + i, head, head_dim);
		for (int64_t j = 0; j < head_dim; j += VLEN) {
			vf_store(dst + i * hd + j, bf16 ? act_load_n(src, j, head_dim - j, true)
											: act_load_n(src, j, head_dim - j, false));
		}
	}
}

void CPU_FN(attention_pack_lanes)(float *dst, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t lanes, int64_t head, float *temp)
{
	int64_t head_dim = p->a->head_dim, steps = steps_of(p, head_dim);
	if (p->dot) {
		transpose((uint32_t *)dst, BQ, head_at(m, row, head, head_dim), m.stride * 2, rows, steps);
	} else {
		load_f32(temp, p->hd, m, row, rows, head, head_dim);
		transpose((uint32_t *)dst, BQ, (const char *)temp, p->hd * 4, rows, steps);
	}
	for (int64_t l = 0; l < steps && rows < lanes; l++) {
		memset(dst + l * BQ + rows, 0, (size_t)(lanes - rows) * sizeof(float));
	}
}

/* dst[n] = pairs of lo and hi. */
static void interleave(uint32_t *dst, const uint16_t *lo, const uint16_t *hi, int64_t n)
{
	int64_t j = 0;
	for (; j + VLEN <= n; j += VLEN) {
		vh l16, h16;
		memcpy(&l16, lo + j, sizeof(l16));
		memcpy(&h16, hi + j, sizeof(h16));
		vu pair = vh_pair(l16, h16);
		memcpy(dst + j, &pair, sizeof(pair));
	}
	for (; j < n; j++) {
		dst[j] = lo[j] | (uint32_t)hi[j] << 16;
	}
}

void CPU_FN(attention_pack_rows)(float *dst, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head)
{
	int64_t head_dim = p->a->head_dim;
	if (!p->dot) {
		load_f32(dst, p->hd, m, row, rows, head, head_dim);
		return;
	}
	static const uint16_t zeros[256] = {0}; /* the longest head_dim */
	for (int64_t i = 0; i < rows; i += 2) {
		uint32_t *d = (uint32_t *)dst + i / 2 * p->hd;
		const char *hi = (const char *)zeros;
		if (i + 1 < rows) {
			hi = head_at(m, row + i + 1, head, head_dim);
		}
		interleave(d, (const uint16_t *)head_at(m, row + i, head, head_dim), (const uint16_t *)hi,
			head_dim);
		for (int64_t j = head_dim; j < p->hd; j++) {
			d[j] = 0;
		}
	}
}

void CPU_FN(attention_left)(struct gemm *g, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head, float *temp)
{
	g->steps = steps_of(p, p->a->head_dim);
	g->a_step = 4;
	if (p->dot || m.dtype == DTYPE_F32) {
		g->a = head_at(m, row, head, p->a->head_dim);
		g->a_row = m.stride * (int64_t)dtype_size(m.dtype);
	} else {
		load_f32(temp, p->hd, m, row, rows, head, p->a->head_dim);
		g->a = (const char *)temp;
		g->a_row = p->hd * 4;
	}
}

void CPU_FN(attention_left_transposed)(struct gemm *g, const struct attention_args *p, struct mat m,
	int64_t row, int64_t rows, int64_t head, float *temp)
{
	int64_t head_dim = p->a->head_dim;
	g->steps = steps_of(p, rows);
	g->a = (const char *)temp;
	if (p->dot) {
		/* temp[head_dim, BK] in bf16: pairs of rows side by side. */
		uint32_t *d = (uint32_t *)temp;
		uint32_t pairs[256];
		static const uint16_t zeros[256] = {0};
		for (int64_t i = 0; i < rows; i += 2) {
			const char *hi = (const char *)zeros;
			if (i + 1 < rows) {
				hi = head_at(m, row + i + 1, head, head_dim);
			}
			interleave(pairs, (const uint16_t *)head_at(m, row + i, head, head_dim),
				(const uint16_t *)hi, head_dim);
			for (int64_t j = 0; j < head_dim; j++) {
				d[j * (BK / 2) + i / 2] = pairs[j];
			}
		}
		g->a_row = BK * 2;
		g->a_step = 4;
	} else {
		load_f32(temp, p->hd, m, row, rows, head, head_dim);
		g->a_row = 4;
		g->a_step = p->hd * 4;
	}
}

void CPU_FN(attention_store_transposed)(struct mat m, int64_t row, int64_t rows, int64_t head,
	int64_t head_dim, const float *src, const float *factor)
{
	bool bf16 = m.dtype == DTYPE_BF16;
	float block[VLEN * VLEN];
	for (int64_t i0 = 0; i0 < rows; i0 += VLEN) {
		int64_t n = min_i64(VLEN, rows - i0);
		for (int64_t j0 = 0; j0 < head_dim; j0 += VLEN) {
			int64_t cols = min_i64(VLEN, head_dim - j0);
			transpose((uint32_t *)block, VLEN, (const char *)(src + j0 * BQ + i0), BQ * 4, cols, n);
			for (int64_t i = 0; i < n; i++) {
				vf v = vf_load(block + i * VLEN);
				char *dst = head_at(m, row + i0 + i, head, head_dim);
				v = factor ? v * factor[i0 + i] : v;
				bf16 ? act_store_n(dst, j0, cols, true, v) : act_store_n(dst, j0, cols, false, v);
			}
		}
	}
}

/* ---- items and workspace ------------------------------------------------------------------- */

int64_t CPU_FN(attention_number)(const struct attention_args *p, const int32_t *lengths,
	int64_t block, int64_t per_block)
{
	int64_t n = 0;
	for (int64_t s = 0; s < p->a->n_seqs; s++) {
		p->first[s] = n;
		n += div_up(lengths[s], block) * per_block;
	}
	p->first[p->a->n_seqs] = n;
	return n;
}

int64_t CPU_FN(attention_sequence)(const struct attention_args *p, int64_t item)
{
	/* The last one whose first item is not after it; sequences without items come before it. */
	int64_t lo = 0, hi = p->a->n_seqs;
	while (hi - lo > 1) {
		int64_t mid = (lo + hi) / 2;
		if (p->first[mid] <= item) {
			lo = mid;
		} else {
			hi = mid;
		}
	}
	return lo;
}

/* Item numbers, delta, what the bias needs, and the sums of dk and dv. */
size_t CPU_FN(attention_workspace)(struct backend *b, const struct attention *a, int64_t max_rows,
	int64_t max_seqs)
{
	size_t rows = (size_t)max_rows;
	size_t kv = (size_t)(a->n_kv_heads * padded_dim(a->head_dim)) * sizeof(float);
	return align_up((size_t)(max_seqs + 1) * sizeof(int64_t), 64) +
		align_up(rows * (size_t)a->n_heads * sizeof(float), 64) + 2 * align_up(rows * kv, 64) +
		align_up(CPU_FN(attention_bias_bytes)(b, a), 64);
}

void CPU_FN(attention_cut)(struct attention_args *p, void *workspace, int64_t q_rows,
	int64_t k_rows)
{
	size_t kv = (size_t)(p->a->n_kv_heads * p->hd) * sizeof(float);
	char *w = workspace;
	p->first = (int64_t *)w;
	w += align_up((size_t)(p->a->n_seqs + 1) * sizeof(int64_t), 64);
	p->delta = (float *)w;
	w += align_up((size_t)(q_rows * p->a->n_heads) * sizeof(float), 64);
	CPU_FN(attention_bias_begin)(p, w);
	w += align_up(CPU_FN(attention_bias_bytes)(p->backend, p->a), 64);
	/* Last: without a backward pass the keys may be those of a cache, with more rows than planned. */
	p->dk_sum = (float *)w;
	w += align_up((size_t)k_rows * kv, 64);
	p->dv_sum = (float *)w;
}
