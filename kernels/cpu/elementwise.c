/*
 * Operations on elements. Work is cut by elements, not rows, so that one long row is shared out too;
 * a range of elements is then walked in pieces of rows.
 */

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "kernels/philox.h"
#include "util/util.h"

#define ELEMENT_GRAIN 16384

/* Elements [i, end) begin with a piece of row *ret_row from column *ret_col on; returns its length. */
ALWAYS_INLINE int64_t row_piece(int64_t i, int64_t end, int64_t cols, int64_t *ret_row,
	int64_t *ret_col)
{
	*ret_row = i / cols;
	*ret_col = i % cols;
	return min_i64(cols - *ret_col, end - i);
}

/* ---- fill_zero, cast, add ------------------------------------------------------------------ */

struct unary_args {
	struct mat y, x;
};

static void fill_zero_range(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct mat *x = args;
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, x->cols, &row, &col);
		size_t size = dtype_size(x->dtype);
		memset((char *)x->data + (size_t)(row * x->stride + col) * size, 0, (size_t)n * size);
	}
}

void CPU_FN(fill_zero)(struct backend *b, struct mat x)
{
	cpu_parallel(b, x.rows * x.cols, ELEMENT_GRAIN, fill_zero_range, &x);
}

static void cast_to_f32(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct unary_args *a = args;
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, a->y.cols, &row, &col);
		const void *x = act_at(mat_row(a->x, row, true), col, true);
		float *y = (float *)a->y.data + row * a->y.stride + col;
		for (int64_t j = 0; j < n; j += VLEN) {
			act_store_n(y, j, n - j, false, act_load_n(x, j, n - j, true));
		}
	}
}

/* To the last bit what bf16_from_f32() gives, subnormals included. */
static void cast_to_bf16(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct unary_args *a = args;
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, a->y.cols, &row, &col);
		const float *x = (const float *)a->x.data + row * a->x.stride + col;
		uint16_t *y = (uint16_t *)a->y.data + row * a->y.stride + col;
		int64_t j = 0;
		for (; j + VLEN <= n; j += VLEN) {
			vh h = vf_to_bf16_exact(vf_load(x + j));
			memcpy(y + j, &h, sizeof(h));
		}
		for (; j < n; j++) {
			y[j] = bf16_from_f32(x[j]);
		}
	}
}

/* Copies do not go through registers of floats: a NaN keeps every bit. */
static void copy_range(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct unary_args *a = args;
	size_t size = dtype_size(a->y.dtype);
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, a->y.cols, &row, &col);
		memmove((char *)a->y.data + (size_t)(row * a->y.stride + col) * size,
			(const char *)a->x.data + (size_t)(row * a->x.stride + col) * size, (size_t)n * size);
	}
}

void CPU_FN(cast)(struct backend *b, struct mat dst, struct mat src)
{
	cpu_range_fn *const fns[2][2] = {{copy_range, cast_to_f32}, {cast_to_bf16, copy_range}};
	struct unary_args args = {dst, src};
	cpu_parallel(b, dst.rows * dst.cols, ELEMENT_GRAIN,
		fns[dst.dtype == DTYPE_BF16][src.dtype == DTYPE_BF16], &args);
}

struct add_args {
	struct mat y, a, c;
};

ALWAYS_INLINE void add_range(const struct add_args *p, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, p->y.cols, &row, &col);
		void *y = act_at_mut(mat_row_mut(p->y, row, bf16), col, bf16);
		const void *a = act_at(mat_row(p->a, row, bf16), col, bf16);
		const void *c = act_at(mat_row(p->c, row, bf16), col, bf16);
		for (int64_t j = 0; j < n; j += VLEN) {
			act_store_n(y, j, n - j, bf16,
				act_load_n(a, j, n - j, bf16) + act_load_n(c, j, n - j, bf16));
		}
	}
}
ACT_PAIR(add_range, struct add_args)

void CPU_FN(add)(struct backend *b, struct mat y, struct mat a, struct mat c)
{
	struct add_args args = {y, a, c};
	cpu_parallel(b, y.rows * y.cols, ELEMENT_GRAIN, ACT_PICK(add_range, y.dtype), &args);
}

struct add_scaled_args {
	struct mat y, a, c;
	float scale;
};

ALWAYS_INLINE void add_scaled_range(const struct add_scaled_args *p, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t row, col, n;
	for (int64_t i = begin; i < end; i += n) {
		n = row_piece(i, end, p->y.cols, &row, &col);
		void *y = act_at_mut(mat_row_mut(p->y, row, bf16), col, bf16);
		const void *c = act_at(mat_row(p->c, row, bf16), col, bf16);
		const void *a = p->a.data ? act_at(mat_row(p->a, row, bf16), col, bf16) : NULL;
		for (int64_t j = 0; j < n; j += VLEN) {
			vf v = act_load_n(c, j, n - j, bf16) * p->scale;
			act_store_n(y, j, n - j, bf16, a ? act_load_n(a, j, n - j, bf16) + v : v);
		}
	}
}
ACT_PAIR(add_scaled_range, struct add_scaled_args)

void CPU_FN(add_scaled)(struct backend *b, struct mat y, struct mat a, struct mat c, float scale)
{
	struct add_scaled_args args = {y, a, c, scale};
	cpu_parallel(b, y.rows * y.cols, ELEMENT_GRAIN, ACT_PICK(add_scaled_range, y.dtype), &args);
}

struct bias_args {
	struct mat y;
	const void *bias;
};

ALWAYS_INLINE void bias_rows(const struct bias_args *p, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	int64_t d = p->y.cols;
	for (int64_t i = begin; i < end; i++) {
		void *y = mat_row_mut(p->y, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(y, j, d - j, bf16,
				act_load_n(y, j, d - j, bf16) + act_load_n(p->bias, j, d - j, bf16));
		}
	}
}
ACT_PAIR(bias_rows, struct bias_args)

void CPU_FN(bias_add)(struct backend *b, struct mat y, const void *bias)
{
	struct bias_args args = {y, bias};
	cpu_parallel(b, y.rows, cpu_row_grain(y.cols), ACT_PICK(bias_rows, y.dtype), &args);
}

/* ---- dropout ------------------------------------------------------------------------------- */

struct dropout_args {
	struct mat y, x;
	float p, scale;
	struct rng_key key;
	bool accumulate;
};

#define DROPOUT_TILE 256 /* elements whose factors are made at a time */
#define DROPOUT_BLOCKS (DROPOUT_TILE / 4)

/* philox4x32_10() on many counters at once, in the form that compilers turn into vectors. out[w][i] is
 * word w for block + i. */
static void philox_blocks(uint32_t out[4][DROPOUT_BLOCKS], struct rng_key key, uint64_t block)
{
	uint32_t *c0 = out[0], *c1 = out[1], *c2 = out[2], *c3 = out[3];
	for (int i = 0; i < DROPOUT_BLOCKS; i++) {
		c0[i] = (uint32_t)(block + (uint64_t)i);
		c1[i] = (uint32_t)((block + (uint64_t)i) >> 32);
		c2[i] = (uint32_t)key.stream;
		c3[i] = (uint32_t)(key.stream >> 32);
	}
	uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
	for (int round = 0; round < PHILOX_ROUNDS; round++) {
		for (int i = 0; i < DROPOUT_BLOCKS; i++) {
			uint64_t p0 = (uint64_t)PHILOX_M0 * c0[i], p1 = (uint64_t)PHILOX_M1 * c2[i];
			uint32_t a = c1[i], b = c3[i];
			c0[i] = (uint32_t)(p1 >> 32) ^ a ^ k0;
			c1[i] = (uint32_t)p1;
			c2[i] = (uint32_t)(p0 >> 32) ^ b ^ k1;
			c3[i] = (uint32_t)p0;
		}
		k0 += PHILOX_W0;
		k1 += PHILOX_W1;
	}
}

/* factors[i] = keep / (1 - p) for elements begin + i, begin a multiple of 4. */
static void dropout_factors(float factors[DROPOUT_TILE], const struct dropout_args *a, int64_t begin)
{
	uint32_t bits[4][DROPOUT_BLOCKS];
	philox_blocks(bits, a->key, (uint64_t)begin / 4);
	for (int i = 0; i < DROPOUT_BLOCKS; i++) {
		for (int w = 0; w < 4; w++) {
			float uniform = (float)(int32_t)(bits[w][i] >> 8) * 0x1p-24f;
			factors[4 * i + w] = uniform >= a->p ? a->scale : 0;
		}
	}
}

ALWAYS_INLINE void dropout_range(const struct dropout_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	float factors[DROPOUT_TILE];
	int64_t row, col, n, made = -1;
	for (int64_t i = begin; i < end; i += n) {
		/* A piece lies within one tile of factors, which begins with a whole block. */
		int64_t tile = i / DROPOUT_TILE * DROPOUT_TILE;
		n = min_i64(row_piece(i, end, a->y.cols, &row, &col), tile + DROPOUT_TILE - i);
		if (tile != made) {
			dropout_factors(factors, a, tile);
			made = tile;
		}
		void *y = act_at_mut(mat_row_mut(a->y, row, bf16), col, bf16);
		const void *x = act_at(mat_row(a->x, row, bf16), col, bf16);
		for (int64_t j = 0; j < n; j += VLEN) {
			int64_t len = min_i64(VLEN, n - j);
			vf v = act_load_n(x, j, len, bf16) * act_load_n(factors, i - tile + j, len, false);
			if (a->accumulate) {
				v += act_load_n(y, j, len, bf16);
			}
			act_store_n(y, j, len, bf16, v);
		}
	}
}
ACT_PAIR(dropout_range, struct dropout_args)

void CPU_FN(dropout)(struct backend *b, struct mat y, struct mat x, float p, struct rng_key key,
	bool accumulate)
{
	struct dropout_args args = {y, x, p, 1 / (1 - p), key, accumulate};
	cpu_parallel(b, y.rows * y.cols, ELEMENT_GRAIN / 8, ACT_PICK(dropout_range, y.dtype), &args);
}
