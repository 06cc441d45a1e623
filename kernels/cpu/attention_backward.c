/*
 * The backward pass of attention. The probabilities of a block are rebuilt from the saved log-sum-exp,
 * again transposed, a query a lane:
 *
 *	Pᵀ = exp(scale · K·Qᵀ − lse)                      dV += Pᵀ · dO
 *	dSᵀ = scale · Pᵀ ∘ (V·dOᵀ − delta)                dK += dSᵀ · Q       dQᵀ += Kᵀ · dSᵀ
 *
 * with delta the sums of dO ∘ O over head_dim. Query heads that share a key/value head add to its dK
 * and dV in their order. Where scores are capped, dS is multiplied by the cap's derivative; a bias's
 * gradient is the sum of dS without scale, along with dQ.
 *
 * Work is cut in one of two ways. Either an item is one key/value head of one sequence, all of it: five
 * products a pair of blocks, dK and dV summed in the workspace. Or, where such items are too few or too
 * unequal to keep the threads busy, there is one pass for dK and dV by blocks of keys and one for dQ by
 * blocks of queries: seven products, many items. Which one depends on shapes and thread count alone.
 */

#include "kernels/cpu/attention.h"

#include <math.h>

enum { WANT_DKV = 1, WANT_DQ = 2 };

struct head_operands {
	float *q_lanes, *do_lanes; /* right operands, summed over head_dim */
	float *q_rows, *do_rows;   /* right operands, summed over queries */
	float *dq;                 /* [hd, BQ] */
	float *lse, *delta;        /* [BQ]; lse · log2(e) */
};

struct key_operands {
	struct gemm k, v;          /* left, summed over head_dim */
	struct gemm k_transposed;  /* left, summed over keys */
	float *dk, *dv;            /* [keys, …] */
	int64_t stride;            /* of dk and dv */
};

struct backward_scratch {
	struct head_operands heads[GROUP];
	float *temp, *temp_k, *temp_v, *temp_kt;
	float *scores, *grads;           /* [BK, BQ] f32: Pᵀ, dSᵀ */
	float *p_left, *ds_left, *ds_right; /* the same as operands; in f32 the same memory */
	float *dk, *dv;                  /* [BK, hd] */
	float *shaped;                   /* [BK, BQ]: the gradient of shaped scores */
	unsigned part;
};

static struct backward_scratch scratch_cut(const struct attention_args *p, unsigned part)
{
	char *s = cpu_scratch(p->backend, part);
	struct backward_scratch x = {.temp = take(&s, BQ * p->hd), .part = part};
	for (int h = 0; h < GROUP; h++) {
		x.heads[h] = (struct head_operands){take(&s, BQ * p->hd), take(&s, BQ * p->hd),
			take(&s, BQ * p->hd), take(&s, BQ * p->hd), take(&s, BQ * p->hd), take(&s, BQ),
			take(&s, BQ)};
	}
	x.temp_k = take(&s, BK * p->hd);
	x.temp_v = take(&s, BK * p->hd);
	x.temp_kt = take(&s, BK * p->hd);
	x.scores = take(&s, BK * BQ);
	x.grads = take(&s, BK * BQ);
	x.p_left = p->dot ? take(&s, BK * BQ / 2) : x.scores;
	x.ds_left = p->dot ? take(&s, BK * BQ / 2) : x.grads;
	x.ds_right = p->dot ? take(&s, BK * BQ / 2) : x.grads;
	x.dk = take(&s, BK * p->hd);
	x.dv = take(&s, BK * p->hd);
	x.shaped = p->shaped ? take(&s, BK * BQ) : NULL;
	return x;
}

_Static_assert((6 * BK * 256 + GROUP * (5 * 256 + 2) * BQ + 5 * BK * BQ) * 4 <= CPU_SCRATCH_BYTES,
	"blocks must fit a thread's scratch");

/* ---- a pair of blocks ---------------------------------------------------------------------- */

/* From scores and V·dOᵀ to Pᵀ and dSᵀ, in the forms the products want. */
ALWAYS_INLINE void gradients_block(const struct backward_scratch *x, const struct head_operands *head,
	const struct attention *a, const struct attention_block *b, bool masked, bool dot, bool shaped)
{
	int64_t offset = block_distance(a, b);
	float scale = shaped ? 1 : a->scale * LOG2E;
	float by_cap = a->softcap > 0 ? 1 / (a->softcap * LOG2E) : 0;
	float window = a->window > 0 ? (float)a->window : INFINITY;
	vf lane;
	for (int i = 0; i < VLEN; i++) {
		lane[i] = (float)i;
	}
	for (int64_t i = 0; i < b->lanes; i += VLEN) {
		vf lse = vf_load(head->lse + i), delta = vf_load(head->delta + i);
		vf last_key = lane + (float)(i + offset);
		for (int64_t j = 0; j < b->keys; j += 2) {
			vf p[2] = {vf_set(0), vf_set(0)}, ds[2] = {vf_set(0), vf_set(0)};
			for (int k = 0; k < 2 && j + k < b->keys; k++) {
				float *s = x->scores + (j + k) * BQ + i, *g = x->grads + (j + k) * BQ + i;
				vf e = vf_exp2(vf_load(s) * scale - lse);
				if (masked) {
					e = vf_select(last_key < (float)(j + k), vf_set(0), e);
					e = vf_select(last_key - (float)(j + k) >= window, vf_set(0), e);
				}
				p[k] = e;
				if (shaped) {
					vf d = e * (vf_load(g) - delta), u = vf_load(s) * by_cap;
					vf_store(x->shaped + (j + k) * BQ + i, d);
					ds[k] = d * (1.0f - u * u) * a->scale;
				} else {
					ds[k] = e * (vf_load(g) - delta) * a->scale;
				}
				if (dot) {
					act_store(x->p_left, (j + k) * BQ + i, true, p[k]);
					act_store(x->ds_left, (j + k) * BQ + i, true, ds[k]);
				} else {
					vf_store(s, p[k]);
					vf_store(g, ds[k]);
				}
			}
			if (dot) {
				vu pair = vf_bf16_pair(ds[0], ds[1]);
				memcpy(x->ds_right + j / 2 * BQ + i, &pair, sizeof(pair));
			}
		}
	}
}

static void gradients(const struct backward_scratch *x, const struct head_operands *head,
	const struct attention_args *p, const struct attention_block *b)
{
	bool masked = masked_block(p->a, b);
	if (p->shaped) {
		p->dot ? gradients_block(x, head, p->a, b, masked, true, true)
			   : gradients_block(x, head, p->a, b, masked, false, true);
	} else if (p->dot) {
		gradients_block(x, head, p->a, b, masked, true, false);
	} else {
		gradients_block(x, head, p->a, b, masked, false, false);
	}
}

/* c += left · right with left [m, queries or keys] in scratch. */
static void add_product(const struct attention_args *p, float *c, int64_t c_stride, int64_t m,
	int64_t n, const float *left, int64_t sum_over, const float *right, int64_t right_stride)
{
	struct block_product g = {{(const char *)left, BQ * (p->dot ? 2 : 4), 4, (const char *)right,
		right_stride * 4, steps_of(p, sum_over)}, c, c_stride, true};
	CPU_FN(attention_product)(&g, m, n, p->dot);
}

static void backward_pair(const struct attention_args *p, const struct backward_scratch *x,
	const struct attention_block *b, const struct head_operands *head, const struct key_operands *k,
	int want)
{
	struct block_product qk = {k->k, x->scores, BQ, false};
	qk.g.b = (const char *)head->q_lanes;
	qk.g.b_step = BQ * 4;
	CPU_FN(attention_product)(&qk, b->keys, b->lanes, p->dot);
	struct block_product dov = {k->v, x->grads, BQ, false};
	dov.g.b = (const char *)head->do_lanes;
	dov.g.b_step = BQ * 4;
	CPU_FN(attention_product)(&dov, b->keys, b->lanes, p->dot);

	int64_t number = b->head + (head - x->heads);
	if (p->shaped) {
		CPU_FN(attention_shape_scores)(x->scores, p, b, number);
	}
	gradients(x, head, p, b);
	if (p->dbias && (want & WANT_DQ)) {
		CPU_FN(attention_bias_add)(p, b, number, x->shaped, x->part);
	}
	if (want & WANT_DKV) {
		add_product(p, k->dv, k->stride, b->keys, p->hd, x->p_left, b->rows, head->do_rows, p->hd);
		add_product(p, k->dk, k->stride, b->keys, p->hd, x->ds_left, b->rows, head->q_rows, p->hd);
	}
	if (want & WANT_DQ) {
		struct block_product dq = {k->k_transposed, head->dq, BQ, true};
		dq.g.b = (const char *)x->ds_right;
		dq.g.b_step = BQ * 4;
		CPU_FN(attention_product)(&dq, p->a->head_dim, b->lanes, p->dot);
	}
}

/* ---- blocks of queries and of keys --------------------------------------------------------- */

/* Sets b to heads [head, …) and queries from i0 on, and packs them. */
static void queries_load(const struct attention_args *p, struct backward_scratch *x,
	struct attention_block *b, int64_t head, int64_t i0, int want)
{
	const struct attention *a = p->a;
	int64_t ratio = a->n_heads / a->n_kv_heads, row = a->q_start[b->s] + i0;
	b->head = head;
	b->n_heads = min_i64(GROUP, (b->kv_head + 1) * ratio - head);
	b->i0 = i0;
	b->rows = min_i64(BQ, a->q_len[b->s] - i0);
	b->lanes = div_up(b->rows, VLEN) * VLEN;
	for (int64_t h = 0; h < b->n_heads; h++) {
		struct head_operands *o = &x->heads[h];
		CPU_FN(attention_pack_lanes)(o->q_lanes, p, p->q, row, b->rows, b->lanes, head + h, x->temp);
		CPU_FN(attention_pack_lanes)(o->do_lanes, p, p->do_, row, b->rows, b->lanes, head + h,
			x->temp);
		if (want & WANT_DKV) {
			CPU_FN(attention_pack_rows)(o->q_rows, p, p->q, row, b->rows, head + h);
			CPU_FN(attention_pack_rows)(o->do_rows, p, p->do_, row, b->rows, head + h);
		}
		if (want & WANT_DQ) {
			memset(o->dq, 0, (size_t)(p->hd * BQ) * sizeof(float));
		}
		for (int64_t i = 0; i < b->lanes; i++) {
			bool real = i < b->rows;
			int64_t at = (row + i) * a->n_heads + head + h;
			o->lse[i] = real ? p->lse_in[at] * LOG2E : 0;
			o->delta[i] = real ? p->delta[at] : 0;
		}
	}
}

static void queries_store(const struct attention_args *p, const struct backward_scratch *x,
	const struct attention_block *b)
{
	for (int64_t h = 0; h < b->n_heads; h++) {
		CPU_FN(attention_store_transposed)(p->dq, p->a->q_start[b->s] + b->i0, b->rows, b->head + h,
			p->a->head_dim, x->heads[h].dq, NULL);
	}
}

static void keys_at(struct attention_block *b, int64_t k0, int64_t k_end)
{
	b->k0 = k0;
	b->keys = min_i64(BK, k_end - k0);
}

static void keys_load(struct key_operands *k, const struct attention_args *p,
	const struct backward_scratch *x, struct attention_block *b, int64_t k0, int64_t k_end, int want)
{
	int64_t row = b->prefix ? k0 : p->a->k_start[b->s] + k0;
	struct mat km = b->prefix ? p->a->k_prefix : p->k, vm = b->prefix ? p->a->v_prefix : p->v;
	keys_at(b, k0, k_end);
	CPU_FN(attention_left)(&k->k, p, km, row, b->keys, b->kv_head, x->temp_k);
	CPU_FN(attention_left)(&k->v, p, vm, row, b->keys, b->kv_head, x->temp_v);
	if (want & WANT_DQ) {
		CPU_FN(attention_left_transposed)(&k->k_transposed, p, km, row, b->keys, b->kv_head,
			x->temp_kt);
	}
}

/* What the prefix gives to dQ of the queries that are loaded. */
static void prefix_to_queries(const struct attention_args *p, const struct backward_scratch *x,
	struct attention_block *b)
{
	struct key_operands k = {.stride = 0};
	b->prefix = true;
	for (int64_t k0 = 0; k0 < p->a->prefix_len; k0 += BK) {
		keys_at(b, k0, p->a->prefix_len);
		if (outside_window(p->a, b)) {
			continue;
		}
		keys_load(&k, p, x, b, k0, p->a->prefix_len, WANT_DQ);
		for (int64_t h = 0; h < b->n_heads; h++) {
			backward_pair(p, x, b, &x->heads[h], &k, WANT_DQ);
		}
	}
	b->prefix = false;
}

/* One head of rows of m = src, f32. */
static void rows_store(struct mat m, int64_t row, int64_t rows, int64_t head, int64_t head_dim,
	const float *src, int64_t src_stride)
{
	bool bf16 = m.dtype == DTYPE_BF16;
	for (int64_t i = 0; i < rows; i++) {
		char *dst = head_at(m, row + i, head, head_dim);
		for (int64_t j = 0; j < head_dim; j += VLEN) {
			int64_t n = head_dim - j;
			vf v = vf_load(src + i * src_stride + j);
			bf16 ? act_store_n(dst, j, n, true, v) : act_store_n(dst, j, n, false, v);
		}
	}
}

/* One head of rows of m, f32, += src. */
static void rows_add(struct mat m, int64_t row, int64_t rows, int64_t head, int64_t head_dim,
	const float *src, int64_t src_stride)
{
	for (int64_t i = 0; i < rows; i++) {
		char *dst = head_at(m, row + i, head, head_dim);
		for (int64_t j = 0; j < head_dim; j += VLEN) {
			int64_t n = head_dim - j;
			act_store_n(dst, j, n, false,
				act_load_n(dst, j, n, false) + vf_load(src + i * src_stride + j));
		}
	}
}

/* ---- items --------------------------------------------------------------------------------- */

/* One key/value head of one sequence, all of it. */
static void backward_whole(const void *args, int64_t item, int64_t end, unsigned part)
{
	const struct attention_args *p = args;
	const struct attention *a = p->a;
	struct backward_scratch x = scratch_cut(p, part);
	struct attention_block b = {.s = item / a->n_kv_heads, .kv_head = item % a->n_kv_heads};
	struct key_operands k = {.stride = a->n_kv_heads * p->hd};
	int64_t ratio = a->n_heads / a->n_kv_heads, k_row = a->k_start[b.s];
	int64_t sums = k_row * k.stride + b.kv_head * p->hd;

	for (int64_t j = 0; j < a->k_len[b.s]; j++) {
		memset(p->dk_sum + sums + j * k.stride, 0, (size_t)p->hd * sizeof(float));
		memset(p->dv_sum + sums + j * k.stride, 0, (size_t)p->hd * sizeof(float));
	}
	for (int64_t head = b.kv_head * ratio; head < (b.kv_head + 1) * ratio; head += GROUP) {
		for (int64_t i0 = 0; i0 < a->q_len[b.s]; i0 += BQ) {
			queries_load(p, &x, &b, head, i0, WANT_DKV | WANT_DQ);
			int64_t k_end = visible_keys(a, b.s, i0 + b.rows - 1);
			for (int64_t k0 = 0; k0 < k_end; k0 += BK) {
				keys_at(&b, k0, k_end);
				if (outside_window(a, &b)) {
					continue;
				}
				keys_load(&k, p, &x, &b, k0, k_end, WANT_DKV | WANT_DQ);
				k.dk = p->dk_sum + sums + k0 * k.stride;
				k.dv = p->dv_sum + sums + k0 * k.stride;
				for (int64_t h = 0; h < b.n_heads; h++) {
					backward_pair(p, &x, &b, &x.heads[h], &k, WANT_DKV | WANT_DQ);
				}
			}
			prefix_to_queries(p, &x, &b);
			queries_store(p, &x, &b);
		}
	}
	rows_store(p->dk, k_row, a->k_len[b.s], b.kv_head, a->head_dim, p->dk_sum + sums, k.stride);
	rows_store(p->dv, k_row, a->k_len[b.s], b.kv_head, a->head_dim, p->dv_sum + sums, k.stride);
}

/* dK and dV of a block of keys. */
static void backward_keys(const void *args, int64_t item, int64_t end, unsigned part)
{
	const struct attention_args *p = args;
	const struct attention *a = p->a;
	struct backward_scratch x = scratch_cut(p, part);
	struct attention_block b = {.s = CPU_FN(attention_sequence)(p, item)};
	struct key_operands k = {.dk = x.dk, .dv = x.dv, .stride = p->hd};
	int64_t rest = item - p->first[b.s], k0 = rest / a->n_kv_heads * BK;
	int64_t ratio = a->n_heads / a->n_kv_heads;
	b.kv_head = rest % a->n_kv_heads;

	memset(x.dk, 0, (size_t)(BK * p->hd) * sizeof(float));
	memset(x.dv, 0, (size_t)(BK * p->hd) * sizeof(float));
	keys_load(&k, p, &x, &b, k0, a->k_len[b.s], WANT_DKV);
	for (int64_t head = b.kv_head * ratio; head < (b.kv_head + 1) * ratio; head += GROUP) {
		int64_t i0 = first_query(a, b.s, k0) / BQ * BQ;
		for (; i0 < a->q_len[b.s]; i0 += BQ) {
			b.i0 = i0;
			if (outside_window(a, &b)) {
				break; /* and so are those that follow */
			}
			queries_load(p, &x, &b, head, i0, WANT_DKV);
			for (int64_t h = 0; h < b.n_heads; h++) {
				backward_pair(p, &x, &b, &x.heads[h], &k, WANT_DKV);
			}
		}
	}
	rows_store(p->dk, a->k_start[b.s] + k0, b.keys, b.kv_head, a->head_dim, x.dk, p->hd);
	rows_store(p->dv, a->k_start[b.s] + k0, b.keys, b.kv_head, a->head_dim, x.dv, p->hd);
}

/* dQ of a block of queries of some heads. */
static void backward_queries(const void *args, int64_t item, int64_t end, unsigned part)
{
	const struct attention_args *p = args;
	const struct attention *a = p->a;
	struct backward_scratch x = scratch_cut(p, part);
	struct attention_block b = {.s = CPU_FN(attention_sequence)(p, item)};
	struct key_operands k = {.stride = 0};
	int64_t ratio = a->n_heads / a->n_kv_heads, groups = div_up(ratio, GROUP);
	int64_t rest = item - p->first[b.s], i0 = rest / (groups * a->n_kv_heads) * BQ;
	b.kv_head = rest % (groups * a->n_kv_heads) / groups;

	queries_load(p, &x, &b, b.kv_head * ratio + rest % groups * GROUP, i0, WANT_DQ);
	int64_t k_end = visible_keys(a, b.s, i0 + b.rows - 1);
	for (int64_t k0 = 0; k0 < k_end; k0 += BK) {
		keys_at(&b, k0, k_end);
		if (outside_window(a, &b)) {
			continue;
		}
		keys_load(&k, p, &x, &b, k0, k_end, WANT_DQ);
		for (int64_t h = 0; h < b.n_heads; h++) {
			backward_pair(p, &x, &b, &x.heads[h], &k, WANT_DQ);
		}
	}
	prefix_to_queries(p, &x, &b);
	queries_store(p, &x, &b);
}

/* dK and dV of a block of the prefix, from all sequences in their order. */
static void backward_prefix(const void *args, int64_t item, int64_t end, unsigned part)
{
	const struct attention_args *p = args;
	const struct attention *a = p->a;
	struct backward_scratch x = scratch_cut(p, part);
	struct attention_block b = {.prefix = true, .kv_head = item % a->n_kv_heads};
	struct key_operands k = {.dk = x.dk, .dv = x.dv, .stride = p->hd};
	int64_t ratio = a->n_heads / a->n_kv_heads, k0 = item / a->n_kv_heads * BK;

	memset(x.dk, 0, (size_t)(BK * p->hd) * sizeof(float));
	memset(x.dv, 0, (size_t)(BK * p->hd) * sizeof(float));
	keys_load(&k, p, &x, &b, k0, a->prefix_len, WANT_DKV);
	for (; b.s < a->n_seqs; b.s++) {
		for (int64_t head = b.kv_head * ratio; head < (b.kv_head + 1) * ratio; head += GROUP) {
			for (int64_t i0 = 0; i0 < a->q_len[b.s]; i0 += BQ) {
				b.i0 = i0;
				if (outside_window(a, &b)) {
					break;
				}
				queries_load(p, &x, &b, head, i0, WANT_DKV);
				for (int64_t h = 0; h < b.n_heads; h++) {
					backward_pair(p, &x, &b, &x.heads[h], &k, WANT_DKV);
				}
			}
		}
	}
	rows_add(a->dk_prefix, k0, b.keys, b.kv_head, a->head_dim, x.dk, p->hd);
	rows_add(a->dv_prefix, k0, b.keys, b.kv_head, a->head_dim, x.dv, p->hd);
}

ALWAYS_INLINE void delta_rows(const struct attention_args *p, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t dim = p->a->head_dim;
	for (int64_t i = begin; i < end; i++) {
		for (int64_t h = 0; h < p->a->n_heads; h++) {
			const void *o = act_at(mat_row(p->o, i, bf16), h * dim, bf16);
			const void *d = act_at(mat_row(p->do_, i, bf16), h * dim, bf16);
			vf sum = vf_set(0);
			for (int64_t j = 0; j < dim; j += VLEN) {
				sum += act_load_n(o, j, dim - j, bf16) * act_load_n(d, j, dim - j, bf16);
			}
			p->delta[i * p->a->n_heads + h] = vf_sum(sum);
		}
	}
}
ACT_PAIR(delta_rows, struct attention_args)

/* Whether whole heads keep the threads busy: the longest share of five products against an even share
 * of seven. */
static bool whole_heads_pay(const struct attention *a, unsigned n_threads)
{
	int64_t load[CPU_MAX_THREADS] = {0}, total = 0, longest = 0, item = 0;
	for (int64_t s = 0; s < a->n_seqs; s++) {
		for (int64_t h = 0; h < a->n_kv_heads; h++, item++) {
			int64_t cost = (int64_t)a->q_len[s] * a->k_len[s];
			load[item % n_threads] += cost;
			total += cost;
			longest = max_i64(longest, load[item % n_threads]);
		}
	}
	return longest * 5 * n_threads <= total * 7;
}

void CPU_FN(attention_backward)(struct backend *b, struct mat dq, struct mat dk, struct mat dv,
	struct mat do_, struct mat o, const float *lse, struct mat q, struct mat k, struct mat v,
	const struct attention *a, void *workspace)
{
	struct attention_args args = {.o = o, .q = q, .k = k, .v = v, .dq = dq, .dk = dk, .dv = dv,
		.do_ = do_, .lse_in = lse, .a = a, .backend = b,
		.dot = GEMM_HAVE_DOT && q.dtype == DTYPE_BF16 && a->head_dim % 2 == 0,
		.hd = padded_dim(a->head_dim)};
	CPU_FN(attention_cut)(&args, workspace, q.rows, k.rows);
	cpu_parallel(b, q.rows, cpu_row_grain(q.cols), ACT_PICK(delta_rows, q.dtype), &args);
	if (a->dk_prefix.data) {
		cpu_parallel_cyclic(b, div_up(a->prefix_len, BK) * a->n_kv_heads, backward_prefix, &args);
	}
	if (whole_heads_pay(a, b->n_threads)) {
		cpu_parallel_cyclic(b, a->n_seqs * a->n_kv_heads, backward_whole, &args);
	} else {
		int64_t groups = div_up(a->n_heads / a->n_kv_heads, GROUP);
		int64_t n = CPU_FN(attention_number)(&args, a->k_len, BK, a->n_kv_heads);
		cpu_parallel_cyclic(b, n, backward_keys, &args);
		n = CPU_FN(attention_number)(&args, a->q_len, BQ, groups * a->n_kv_heads);
		cpu_parallel_cyclic(b, n, backward_queries, &args);
	}
	if (args.dbias) {
		CPU_FN(attention_bias_finish)(&args);
	}
}
