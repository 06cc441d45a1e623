/*
 * Products of trainable or low-rank factors, and column sums.
 *
 * c is cut into one region a thread; k is never cut between threads, so no sums of threads meet. A
 * region is worked on in blocks of BLOCK_N columns, of BLOCK_M rows, of BLOCK_K of the sum, in this
 * order from the outside. op(b) is packed into panels as wide as a tile of registers, once for all rows
 * where all of k fits the buffer (it does for low ranks), otherwise again for each block of rows. op(a)
 * is read where it lies when its rows are contiguous in k and of the right type, otherwise packed to
 * that form. Sums over several blocks of k wait in f32, and c is touched once.
 *
 * The tall product of a weight gradient, dB[out, r] = dyᵀ·s, is computed as its transpose, so that the
 * long dimension is that of the vectors; the result is turned when it is written.
 */

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

#define BLOCK_M 96
#define BLOCK_N 256
#define BLOCK_K 256
#define B_BYTES ((int64_t)1 << 20)

_Static_assert(BLOCK_M % 12 == 0 && BLOCK_M % 8 == 0 && BLOCK_N % (GEMM_NV * VLEN) == 0,
	"blocks must be made of whole tiles");
_Static_assert(B_BYTES + BLOCK_M * BLOCK_K * 4 + BLOCK_M * BLOCK_N * 4 <= CPU_SCRATCH_BYTES,
	"packing buffers must fit a thread's scratch");

struct product {
	struct mat c, a, b; /* a and b swapped where `turned` */
	bool trans_a, trans_b, turned;
	int64_t m, n, k;
	float alpha, beta;
	int64_t parts_m, parts_n; /* regions */
	bool dot;                 /* bf16 pairs */
	bool direct_a;            /* a is read where it lies */
	struct backend *backend;
};

/* What the loops over tiles need of the blocks they are in. */
struct block {
	const struct product *p;
	struct gemm g;
	float *sums;    /* [BLOCK_M, BLOCK_N] */
	int64_t i0, j0; /* of the block in c */
	int64_t cols;   /* columns of the panel, the last vector perhaps cut */
	int64_t j;      /* first column of the panel in the block */
	bool first, last;
};

/* ---- packing ------------------------------------------------------------------------------- */

static inline float element(struct mat m, int64_t at)
{
	return m.dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)m.data)[at])
								 : ((const float *)m.data)[at];
}

/* dst[rows, BLOCK_K] = op(a)[i0.., l0..], in f32 or (dot) bf16 with an even number of columns. */
static void pack_a(void *dst, const struct product *p, int64_t i0, int64_t rows, int64_t l0,
	int64_t depth)
{
	int64_t stride = p->a.stride;
	for (int64_t i = 0; i < rows; i++) {
		int64_t from = p->trans_a ? l0 * stride + i0 + i : (i0 + i) * stride + l0;
		int64_t step = p->trans_a ? stride : 1;
		if (p->dot) {
			uint16_t *d = (uint16_t *)dst + i * BLOCK_K;
			const uint16_t *s = (const uint16_t *)p->a.data + from;
			for (int64_t l = 0; l < depth; l++) {
				d[l] = s[l * step];
			}
			if (depth % 2) {
				d[depth] = 0;
			}
		} else {
			float *d = (float *)dst + i * BLOCK_K;
			for (int64_t l = 0; l < depth; l++) {
				d[l] = element(p->a, from + l * step);
			}
		}
	}
}

/* One panel of op(b), contiguous rows: dst[depth, width] = op(b)[l0.., j0..], zeros beyond cols. */
static void pack_rows(float *dst, int64_t width, const struct product *p, int64_t l0, int64_t depth,
	int64_t j0, int64_t cols)
{
	bool bf16 = p->b.dtype == DTYPE_BF16;
	for (int64_t l = 0; l < depth; l++) {
		const void *s = act_at(mat_row(p->b, l0 + l, bf16), j0, bf16);
		for (int64_t j = 0; j < cols; j += VLEN) {
			vf_store(dst + l * width + j, bf16 ? act_load_n(s, j, cols - j, true)
											   : act_load_n(s, j, cols - j, false));
		}
	}
}

/* The same in pairs of bf16: dst[depth/2, width], each of rows l and l + 1. */
static void pack_row_pairs(uint32_t *dst, int64_t width, const struct product *p, int64_t l0,
	int64_t depth, int64_t j0, int64_t cols)
{
	static const uint16_t zeros[BLOCK_N] = {0};
	for (int64_t l = 0; l < depth; l += 2) {
		const uint16_t *lo = (const uint16_t *)p->b.data + (l0 + l) * p->b.stride + j0;
		const uint16_t *hi = l + 1 < depth ? lo + p->b.stride : zeros;
		uint32_t *d = dst + l / 2 * width;
		int64_t j = 0;
		for (; j + VLEN <= cols; j += VLEN) {
			vh l16, h16;
			memcpy(&l16, lo + j, sizeof(l16));
			memcpy(&h16, hi + j, sizeof(h16));
			vu pair = vh_pair(l16, h16);
			memcpy(d + j, &pair, sizeof(pair));
		}
		for (; j < cols; j++) {
			d[j] = lo[j] | (uint32_t)hi[j] << 16;
		}
		for (; j < width; j++) {
			d[j] = 0;
		}
	}
}

/* The same two for a transposed b, whose rows run along k. */
static void pack_columns(float *dst, int64_t width, const struct product *p, int64_t l0,
	int64_t depth, int64_t j0, int64_t cols)
{
	for (int64_t j = 0; j < cols; j++) {
		int64_t from = (j0 + j) * p->b.stride + l0;
		for (int64_t l = 0; l < depth; l++) {
			dst[l * width + j] = element(p->b, from + l);
		}
	}
	for (int64_t l = 0; l < depth; l++) {
		for (int64_t j = cols; j < width; j++) {
			dst[l * width + j] = 0;
		}
	}
}

static void pack_column_pairs(uint32_t *dst, int64_t width, const struct product *p, int64_t l0,
	int64_t depth, int64_t j0, int64_t cols)
{
	for (int64_t j = 0; j < cols; j++) {
		const uint16_t *s = (const uint16_t *)p->b.data + (j0 + j) * p->b.stride + l0;
		int64_t l = 0;
		for (; l + 2 <= depth; l += 2) {
			memcpy(&dst[l / 2 * width + j], s + l, sizeof(uint32_t));
		}
		if (l < depth) {
			dst[l / 2 * width + j] = s[l];
		}
	}
	for (int64_t l = 0; l < (depth + 1) / 2; l++) {
		for (int64_t j = cols; j < width; j++) {
			dst[l * width + j] = 0;
		}
	}
}

static int64_t steps_of(const struct product *p, int64_t depth)
{
	return p->dot ? (depth + 1) / 2 : depth;
}

static int64_t round_up(int64_t n, int64_t multiple)
{
	return (n + multiple - 1) / multiple * multiple;
}

/* Vectors of the panel that begins with `cols` columns left. */
static int64_t panel_vectors(int64_t cols)
{
	return min_i64(GEMM_NV, (cols + VLEN - 1) / VLEN);
}

/* All panels of a block of op(b), one behind the other. */
static void pack_b(void *dst, const struct product *p, int64_t l0, int64_t depth, int64_t j0,
	int64_t cols)
{
	for (int64_t j = 0; j < cols;) {
		int64_t width = panel_vectors(cols - j) * VLEN, used = min_i64(width, cols - j);
		if (p->dot) {
			(p->trans_b ? pack_column_pairs : pack_row_pairs)(dst, width, p, l0, depth, j0 + j,
				used);
		} else {
			(p->trans_b ? pack_columns : pack_rows)(dst, width, p, l0, depth, j0 + j, used);
		}
		dst = (char *)dst + steps_of(p, depth) * width * 4;
		j += width;
	}
}

/* ---- tiles --------------------------------------------------------------------------------- */

/* c = alpha · sum + beta · c for one vector, `n` of it real. */
ALWAYS_INLINE void finish_vec(const struct product *p, int64_t i, int64_t j, int64_t n, vf sum,
	bool c_bf16)
{
	void *c = mat_row_mut(p->c, i, c_bf16);
	sum *= p->alpha;
	act_store_n(c, j, n, c_bf16, p->beta != 0 ? sum + act_load_n(c, j, n, c_bf16) : sum);
}

ALWAYS_INLINE void tile(const struct block *b, int nv, bool dot, bool c_bf16, int64_t i, int mr)
{
	gemm_sums sum;
	float *held = b->sums + i * BLOCK_N + b->j;
#pragma GCC unroll 12
	for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
		for (int v = 0; v < nv; v++) {
			sum[r][v] = b->first ? vf_set(0) : vf_load(held + r * BLOCK_N + v * VLEN);
		}
	}
	gemm_tile(sum, &b->g, i, 0, mr, nv, dot);
	if (b->last) {
#pragma GCC unroll 12
		for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
			for (int v = 0; v < nv; v++) {
				finish_vec(b->p, b->i0 + i + r, b->j0 + b->j + v * VLEN, b->cols - v * VLEN,
					sum[r][v], c_bf16);
			}
		}
	} else {
#pragma GCC unroll 12
		for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
			for (int v = 0; v < nv; v++) {
				vf_store(held + r * BLOCK_N + v * VLEN, sum[r][v]);
			}
		}
	}
}

ALWAYS_INLINE void panel(const struct block *b, int64_t rows, int64_t nv, bool dot, bool c_bf16)
{
	switch (nv) {
	case 1:
		GEMM_FOR_ROWS(rows, GEMM_ROWS(1), tile, b, 1, dot, c_bf16);
		break;
	case 2:
		GEMM_FOR_ROWS(rows, GEMM_ROWS(2), tile, b, 2, dot, c_bf16);
		break;
#if GEMM_NV >= 4
	case 3:
		GEMM_FOR_ROWS(rows, GEMM_ROWS(3), tile, b, 3, dot, c_bf16);
		break;
	case 4:
		GEMM_FOR_ROWS(rows, GEMM_ROWS(4), tile, b, 4, dot, c_bf16);
		break;
#endif
	default:
		break;
	}
}

static void panel_f32_f32(const struct block *b, int64_t rows, int64_t nv)
{
	panel(b, rows, nv, false, false);
}

static void panel_f32_bf16(const struct block *b, int64_t rows, int64_t nv)
{
	panel(b, rows, nv, false, true);
}

#if GEMM_HAVE_DOT
static void panel_dot_f32(const struct block *b, int64_t rows, int64_t nv)
{
	panel(b, rows, nv, true, false);
}

static void panel_dot_bf16(const struct block *b, int64_t rows, int64_t nv)
{
	panel(b, rows, nv, true, true);
}
#endif

typedef void panel_fn(const struct block *b, int64_t rows, int64_t nv);

static panel_fn *panel_pick(const struct product *p)
{
	bool c_bf16 = p->c.dtype == DTYPE_BF16;
#if GEMM_HAVE_DOT
	if (p->dot) {
		return c_bf16 ? panel_dot_bf16 : panel_dot_f32;
	}
#endif
	return c_bf16 ? panel_f32_bf16 : panel_f32_f32;
}

/* ---- blocks and regions -------------------------------------------------------------------- */

/* c[j0 + j, i0 + i] from sums[i, j] of a turned product. */
static void finish_turned(const struct product *p, const float *sums, int64_t i0, int64_t rows,
	int64_t j0, int64_t cols)
{
	bool bf16 = p->c.dtype == DTYPE_BF16;
	float line[BLOCK_M];
	for (int64_t j = 0; j < cols; j++) {
		for (int64_t i = 0; i < rows; i++) {
			line[i] = p->alpha * sums[i * BLOCK_N + j];
		}
		void *c = act_at_mut(mat_row_mut(p->c, j0 + j, bf16), i0, bf16);
		for (int64_t i = 0; i < rows; i += VLEN) {
			int64_t n = rows - i;
			vf v = act_load_n(line, i, n, false);
			act_store_n(c, i, n, bf16, p->beta != 0 ? v + act_load_n(c, i, n, bf16) : v);
		}
	}
}

/* One block of rows by one of columns, over all of k. `packed_b`: all of it, or NULL. */
static void block_rows(const struct product *p, char *scratch, const char *packed_b, int64_t i0,
	int64_t rows, int64_t j0, int64_t cols)
{
	char *b_buffer = scratch, *a_buffer = scratch + B_BYTES;
	struct block b = {.p = p, .sums = (float *)(a_buffer + BLOCK_M * BLOCK_K * 4), .i0 = i0, .j0 = j0};
	panel_fn *fn = panel_pick(p);
	int64_t width_all = round_up(cols, VLEN);

	for (int64_t l = 0; l < p->k; l += BLOCK_K) {
		int64_t depth = min_i64(BLOCK_K, p->k - l), steps = steps_of(p, depth);
		int64_t size = p->dot ? 2 : 4;
		if (p->direct_a) {
			b.g.a = (const char *)p->a.data + (i0 * p->a.stride + l) * size;
			b.g.a_row = p->a.stride * size;
		} else {
			pack_a(a_buffer, p, i0, rows, l, depth);
			b.g.a = a_buffer;
			b.g.a_row = BLOCK_K * size;
		}
		b.g.a_step = 4;
		b.g.steps = steps;
		b.g.b = packed_b;
		if (packed_b) {
			packed_b += steps * width_all * 4;
		} else {
			pack_b(b_buffer, p, l, depth, j0, cols);
			b.g.b = b_buffer;
		}
		b.first = l == 0;
		b.last = l + depth == p->k && !p->turned;
		for (b.j = 0; b.j < cols;) {
			int64_t nv = panel_vectors(cols - b.j);
			b.cols = cols - b.j;
			b.g.b_step = nv * VLEN * 4;
			fn(&b, rows, nv);
			b.g.b += steps * nv * VLEN * 4;
			b.j += nv * VLEN;
		}
	}
	if (p->turned) {
		finish_turned(p, b.sums, i0, rows, j0, cols);
	}
}

/* Part `part` of n_parts of [0, n), in whole units. */
static void share(int64_t n, int64_t unit, int64_t n_parts, int64_t part, int64_t *ret_begin,
	int64_t *ret_end)
{
	int64_t units = (n + unit - 1) / unit;
	*ret_begin = min_i64(n, units * part / n_parts * unit);
	*ret_end = min_i64(n, units * (part + 1) / n_parts * unit);
}

#define UNIT_M 12
#define UNIT_N (GEMM_NV * VLEN)

static void region(const struct product *p, int64_t number, char *scratch)
{
	int64_t i0, i1, j0, j1;
	share(p->m, UNIT_M, p->parts_m, number / p->parts_n, &i0, &i1);
	share(p->n, UNIT_N, p->parts_n, number % p->parts_n, &j0, &j1);
	if (i0 == i1 || j0 == j1) {
		return;
	}

	for (int64_t j = j0; j < j1; j += BLOCK_N) {
		int64_t cols = min_i64(BLOCK_N, j1 - j);
		/* Every block of k ends in a whole pair, so this is the size of all of them packed. */
		bool fits = steps_of(p, p->k) * round_up(cols, VLEN) * 4 <= B_BYTES;
		if (fits) {
			char *to = scratch;
			for (int64_t l = 0; l < p->k; l += BLOCK_K) {
				int64_t depth = min_i64(BLOCK_K, p->k - l);
				pack_b(to, p, l, depth, j, cols);
				to += steps_of(p, depth) * round_up(cols, VLEN) * 4;
			}
		}
		for (int64_t i = i0; i < i1; i += BLOCK_M) {
			block_rows(p, scratch, fits ? scratch : NULL, i, min_i64(BLOCK_M, i1 - i), j, cols);
		}
	}
}

static void regions(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct product *p = args;
	for (int64_t i = begin; i < end; i++) {
		region(p, i, cpu_scratch(p->backend, part));
	}
}

/* ---- the operation ------------------------------------------------------------------------- */

#define SERIAL_WORK 65536 /* multiplications below which one thread is faster than several */

/* The grid of regions whose largest has the least work; of equals the one with fewest columns cut,
 * since each row of regions packs b for itself. */
static void cut(struct product *p)
{
	int64_t threads = p->m * p->n * p->k < SERIAL_WORK ? 1 : p->backend->n_threads;
	int64_t units_m = (p->m + UNIT_M - 1) / UNIT_M, units_n = (p->n + UNIT_N - 1) / UNIT_N;
	int64_t best = INT64_MAX;
	for (int64_t parts_n = 1; parts_n <= min_i64(threads, units_n); parts_n++) {
		int64_t parts_m = min_i64(threads / parts_n, units_m);
		int64_t most = ((units_m + parts_m - 1) / parts_m) * ((units_n + parts_n - 1) / parts_n);
		if (most < best) {
			best = most;
			p->parts_m = parts_m;
			p->parts_n = parts_n;
		}
	}
}

void CPU_FN(matmul)(struct backend *b, struct mat c, struct mat a, bool trans_a, struct mat b_,
	bool trans_b, float alpha, float beta)
{
	struct product p = {.c = c, .a = a, .b = b_, .trans_a = trans_a, .trans_b = trans_b, .m = c.rows,
		.n = c.cols, .k = trans_a ? a.rows : a.cols, .alpha = alpha, .beta = beta, .backend = b};
	if (trans_a && p.n <= 64 && p.n < p.m) {
		p.turned = true;
		p.a = b_;
		p.b = a;
		p.trans_a = !trans_b;
		p.trans_b = !trans_a;
		p.m = c.cols;
		p.n = c.rows;
	}
	p.dot = GEMM_HAVE_DOT && a.dtype == DTYPE_BF16;
	p.direct_a = !p.trans_a && (p.dot ? p.k % 2 == 0 : p.a.dtype == DTYPE_F32);
	cut(&p);
	cpu_parallel(b, p.parts_m * p.parts_n, 1, regions, &p);
}

int CPU_FN(matmul_prepare)(struct backend *b, int64_t m, int64_t n, int64_t k, bool trans_a,
	bool trans_b, enum dtype ab_dtype, enum dtype c_dtype, struct errmsg *err)
{
	return 0; /* the packing buffers are the backend's */
}

/* ---- column sums --------------------------------------------------------------------------- */

struct bias_args {
	float *db;
	struct mat dy;
};

/* Columns [begin, end) · VLEN; rows in groups as in rmsnorm.c. */
ALWAYS_INLINE void bias_columns(const struct bias_args *a, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	const int64_t group = 64;
	int64_t rows = a->dy.rows, cols = a->dy.cols;
	for (int64_t j = begin * VLEN; j < min_i64(end * VLEN, cols); j += VLEN) {
		int64_t n = cols - j;
		vf total = vf_set(0);
		for (int64_t i = 0; i < rows; i += group) {
			vf sum = vf_set(0);
			for (int64_t k = i; k < min_i64(i + group, rows); k++) {
				sum += act_load_n(mat_row(a->dy, k, bf16), j, n, bf16);
			}
			total += sum;
		}
		act_store_n(a->db, j, n, false, act_load_n(a->db, j, n, false) + total);
	}
}
ACT_PAIR(bias_columns, struct bias_args)

void CPU_FN(bias_backward)(struct backend *b, float *db, struct mat dy)
{
	struct bias_args args = {db, dy};
	cpu_parallel(b, (dy.cols + VLEN - 1) / VLEN, cpu_row_grain(dy.rows * VLEN),
		ACT_PICK(bias_columns, dy.dtype), &args);
}
