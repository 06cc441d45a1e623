/*
 * Softmax attention in blocks, forward, after Dao 2023 ("FlashAttention-2").
 *
 * Scores exist for one block of queries and one of keys at a time, in a thread's scratch. For each
 * query are kept the largest score so far, the sum of exponentials relative to it and the output, scaled
 * alike. Scores, probabilities and outputs of a block are held transposed, a query a lane:
 *
 *	Sᵀ[keys, queries] = K · Qᵀ        Oᵀ[head_dim, queries] += Vᵀ · Pᵀ
 *
 * so that maxima, sums and masks are vector operations without any across lanes, and a pair of rows of
 * Pᵀ interleaved is just what the bf16 product wants. In bf16 with such a product, P is rounded to bf16
 * for it, as FlashAttention does; its sum is not. Otherwise blocks are f32.
 *
 * An item of work is a block of queries of up to GROUP heads of one key/value head of one sequence:
 * keys and values are packed once for those heads.
 */

#include "kernels/cpu/attention.h"

#include <math.h>

struct head_state {
	float *q;             /* right operand [steps of head_dim, BQ] */
	float *o;             /* [hd, BQ] */
	float *max, *sum;     /* [BQ]; max of scores · scale · log2(e) */
};

/* Sets to -inf the scores of what causality and window hide: query lane i sees key j when
 * 0 <= distance + i - j < window. */
static void mask_scores(float *scores, const struct attention *a, const struct attention_block *b)
{
	int64_t distance = block_distance(a, b);
	for (int64_t j = max_i64(0, distance + 1); j < b->keys; j++) {
		int64_t hidden = min_i64(b->lanes, j - distance);
		for (int64_t i = 0; i < hidden; i++) {
			scores[j * BQ + i] = -INFINITY;
		}
	}
	for (int64_t j = 0; a->window > 0 && j < b->keys; j++) {
		for (int64_t i = max_i64(0, a->window - distance + j); i < b->lanes; i++) {
			scores[j * BQ + i] = -INFINITY;
		}
	}
}

/*
 * From scores[keys, BQ] to exponentials relative to each query's new maximum, written to `out` in the
 * form of a right operand summed over keys; sums and outputs so far are brought to the new maximum.
 */
ALWAYS_INLINE void softmax_block(const float *scores, float *out, const struct head_state *st,
	const struct attention_block *b, int64_t hd, float scale, bool dot)
{
	for (int64_t i = 0; i < b->lanes; i += VLEN) {
		vf top = vf_load(scores + i);
		for (int64_t j = 1; j < b->keys; j++) {
			top = vf_max_or_b(top, vf_load(scores + j * BQ + i));
		}
		vf old = vf_load(st->max + i);
		vf max = vf_max_or_b(top * scale, old);
		/* A query that has seen no key yet keeps -inf; relative to 0 its exponentials are 0. */
		vf base = vf_select(max == -INFINITY, vf_set(0), max);

		vf sum = vf_set(0);
		for (int64_t j = 0; j < b->keys; j += 2) {
			vf lo = vf_exp2(vf_load(scores + j * BQ + i) * scale - base), hi = vf_set(0);
			sum += lo;
			if (j + 1 < b->keys) {
				hi = vf_exp2(vf_load(scores + (j + 1) * BQ + i) * scale - base);
				sum += hi;
			}
			if (dot) {
				vu pair = vf_bf16_pair(lo, hi);
				memcpy(out + j / 2 * BQ + i, &pair, sizeof(pair));
			} else {
				vf_store(out + j * BQ + i, lo);
				if (j + 1 < b->keys) {
					vf_store(out + (j + 1) * BQ + i, hi);
				}
			}
		}

		vf shrink = vf_exp2(old - base);
		vf_store(st->sum + i, vf_load(st->sum + i) * shrink + sum);
		vf_store(st->max + i, max);
		if (vf_any(shrink != 1.0f)) {
			for (int64_t l = 0; l < hd; l++) {
				vf_store(st->o + l * BQ + i, vf_load(st->o + l * BQ + i) * shrink);
			}
		}
	}
}

static void softmax_f32(float *scores, const struct head_state *st, const struct attention_block *b,
	int64_t hd, float scale)
{
	softmax_block(scores, scores, st, b, hd, scale, false);
}

static void softmax_dot(float *scores, float *out, const struct head_state *st,
	const struct attention_block *b, int64_t hd, float scale)
{
	softmax_block(scores, out, st, b, hd, scale, true);
}

static void forward_keys(const struct attention_args *p, const struct attention_block *b,
	const struct head_state *heads, float *scores, float *probs, const struct gemm *k,
	const struct gemm *v)
{
	const struct attention *a = p->a;
	int64_t dim = a->head_dim;
	float scale = p->shaped ? 1 : a->scale * LOG2E;
	bool masked = masked_block(a, b);
	for (int64_t h = 0; h < b->n_heads; h++) {
		struct block_product qk = {*k, scores, BQ, false};
		qk.g.b = (const char *)heads[h].q;
		qk.g.b_step = BQ * 4;
		CPU_FN(attention_product)(&qk, b->keys, b->lanes, p->dot);
		if (p->shaped) {
			CPU_FN(attention_shape_scores)(scores, p, b, b->head + h);
		}
		if (masked) {
			mask_scores(scores, a, b);
		}
		if (p->dot) {
			softmax_dot(scores, probs, &heads[h], b, dim, scale);
		} else {
			softmax_f32(scores, &heads[h], b, dim, scale);
		}
		struct block_product pv = {*v, heads[h].o, BQ, true};
		pv.g.b = (const char *)(p->dot ? probs : scores);
		pv.g.b_step = BQ * 4;
		CPU_FN(attention_product)(&pv, dim, b->lanes, p->dot);
	}
}

struct forward_scratch {
	float *temp, *temp_v, *scores, *probs;
	struct head_state heads[GROUP];
};

/* All blocks of the keys [0, k_end) that begin at row `row` of k and v. */
static void forward_range(const struct attention_args *p, struct attention_block *b,
	const struct forward_scratch *x, struct mat k, struct mat v, int64_t row, int64_t k_end)
{
	const struct attention *a = p->a;
	for (b->k0 = 0; b->k0 < k_end; b->k0 += BK) {
		struct gemm gk, gv;
		b->keys = min_i64(BK, k_end - b->k0);
		if (outside_window(a, b)) {
			continue;
		}
		CPU_FN(attention_left)(&gk, p, k, row + b->k0, b->keys, b->kv_head, x->temp);
		CPU_FN(attention_left_transposed)(&gv, p, v, row + b->k0, b->keys, b->kv_head, x->temp_v);
		forward_keys(p, b, x->heads, x->scores, x->probs, &gk, &gv);
	}
}

static void forward_finish(const struct attention_args *p, const struct attention_block *b,
	const struct head_state *heads)
{
	const struct attention *a = p->a;
	int64_t row = a->q_start[b->s] + b->i0;
	for (int64_t h = 0; h < b->n_heads; h++) {
		float factor[BQ];
		for (int64_t i = 0; i < b->rows; i++) {
			factor[i] = 1 / heads[h].sum[i];
			if (p->lse) {
				p->lse[(row + i) * a->n_heads + b->head + h] = (float)(heads[h].max[i] / (double)LOG2E +
					log(heads[h].sum[i]));
			}
		}
		CPU_FN(attention_store_transposed)(p->o, row, b->rows, b->head + h, a->head_dim, heads[h].o,
			factor);
	}
}

static void forward_item(const void *args, int64_t item, int64_t end, unsigned part)
{
	const struct attention_args *p = args;
	const struct attention *a = p->a;
	int64_t ratio = a->n_heads / a->n_kv_heads, groups = div_up(ratio, GROUP);
	struct attention_block b = {.s = CPU_FN(attention_sequence)(p, item)};
	int64_t rest = item - p->first[b.s], block = rest / (groups * a->n_kv_heads);
	b.kv_head = rest % (groups * a->n_kv_heads) / groups;
	b.head = b.kv_head * ratio + rest % groups * GROUP;
	b.n_heads = min_i64(GROUP, (b.kv_head + 1) * ratio - b.head);
	b.i0 = (div_up(a->q_len[b.s], BQ) - 1 - block) * BQ; /* those with most keys first */
	b.rows = min_i64(BQ, a->q_len[b.s] - b.i0);
	b.lanes = div_up(b.rows, VLEN) * VLEN;

	char *scratch = cpu_scratch(p->backend, part);
	struct forward_scratch x = {.temp = take(&scratch, BQ * p->hd)};
	struct head_state *heads = x.heads;
	x.temp_v = take(&scratch, BK * p->hd);
	x.scores = take(&scratch, BK * BQ);
	x.probs = take(&scratch, BK * BQ);
	for (int64_t h = 0; h < b.n_heads; h++) {
		heads[h] = (struct head_state){take(&scratch, p->hd * BQ), take(&scratch, p->hd * BQ),
			take(&scratch, BQ), take(&scratch, BQ)};
		CPU_FN(attention_pack_lanes)(heads[h].q, p, p->q, a->q_start[b.s] + b.i0, b.rows, b.lanes,
			b.head + h, x.temp);
		memset(heads[h].o, 0, (size_t)(p->hd * BQ) * sizeof(float));
		for (int64_t i = 0; i < BQ; i++) {
			heads[h].max[i] = -INFINITY;
			heads[h].sum[i] = 0;
		}
	}

	b.prefix = true;
	forward_range(p, &b, &x, a->k_prefix, a->v_prefix, 0, a->prefix_len);
	b.prefix = false;
	forward_range(p, &b, &x, p->k, p->v, a->k_start[b.s],
		visible_keys(a, b.s, b.i0 + b.rows - 1));
	forward_finish(p, &b, heads);
}

_Static_assert((2 * BK * 256 + 2 * BK * BQ + GROUP * (2 * 256 + 2) * BQ) * 4 + 8192 <=
	CPU_SCRATCH_BYTES, "blocks must fit a thread's scratch");

void CPU_FN(attention_forward)(struct backend *b, struct mat o, float *lse, struct mat q,
	struct mat k, struct mat v, const struct attention *a, void *workspace)
{
	struct attention_args args = {.o = o, .q = q, .k = k, .v = v, .lse = lse, .a = a, .backend = b,
		.dot = GEMM_HAVE_DOT && q.dtype == DTYPE_BF16 && a->head_dim % 2 == 0,
		.hd = padded_dim(a->head_dim)};
	CPU_FN(attention_cut)(&args, workspace, q.rows, k.rows);
	int64_t groups = div_up(a->n_heads / a->n_kv_heads, GROUP);
	int64_t n = CPU_FN(attention_number)(&args, a->q_len, BQ, groups * a->n_kv_heads);
	cpu_parallel_cyclic(b, n, forward_item, &args);
}
