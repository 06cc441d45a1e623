/*
 * Scores that are more than scaled products: capped, or with a bias by the distance of key and query.
 *
 * The biases of a head are laid out by distance once a call. A block of queries and keys has BQ + BK - 1
 * distances; those are laid out so that each key's run over the queries is contiguous, and the gradient
 * goes the same way back.
 */

#include "kernels/cpu/activation.h"
#include "kernels/cpu/attention.h"

#define DISTANCES (BQ + BK)

static int64_t table_width(const struct attention *a)
{
	return 2 * a->bias.reach + 1;
}

size_t CPU_FN(attention_bias_bytes)(const struct backend *b, const struct attention *a)
{
	size_t heads = (size_t)a->n_heads, buckets = (size_t)a->bias.bias.rows;
	return buckets == 0 ? 0 : align_up(heads * (size_t)table_width(a) * sizeof(float), 64) +
		b->n_threads * heads * buckets * sizeof(double);
}

void CPU_FN(attention_bias_begin)(struct attention_args *p, void *at)
{
	const struct attention_bias *s = &p->a->bias;
	int64_t heads = p->a->n_heads, width = table_width(p->a);
	p->shaped = p->a->softcap > 0 || s->bias.data;
	if (!s->bias.data) {
		return;
	}
	bool bf16 = s->bias.dtype == DTYPE_BF16;
	p->by_distance = at;
	for (int64_t h = 0; h < heads; h++) {
		for (int64_t i = 0; i < width; i++) {
			const void *v = act_at(mat_row(s->bias, s->bucket[i], bf16), h, bf16);
			uint16_t half;
			float x;
			if (bf16) {
				memcpy(&half, v, sizeof(half));
				x = bf16_to_f32(half);
			} else {
				memcpy(&x, v, sizeof(x));
			}
			p->by_distance[h * width + i] = x * LOG2E;
		}
	}
	if (s->dbias.data) {
		size_t n = p->backend->n_threads * (size_t)heads * (size_t)s->bias.rows;
		p->dbias = (double *)(void *)((char *)at +
			align_up((size_t)(heads * width) * sizeof(float), 64));
		memset(p->dbias, 0, n * sizeof(*p->dbias));
	}
}

/* The place in a head's table of distance number t of a block: key j and query i are i - j + BK - 1. */
static int64_t table_place(const struct attention *a, int64_t distance, int64_t t)
{
	int64_t key_minus_query = BK - 1 - t - distance;
	return max_i64(-a->bias.reach, min_i64(a->bias.reach, key_minus_query)) + a->bias.reach;
}

static void add_bias(float *scores, const struct attention_args *p, const struct attention_block *b,
	int64_t head)
{
	const float *table = p->by_distance + head * table_width(p->a);
	int64_t distance = block_distance(p->a, b);
	float run[DISTANCES], scale = p->a->scale * LOG2E;
	for (int64_t t = 0; t < DISTANCES; t++) {
		run[t] = table[table_place(p->a, distance, t)];
	}
	for (int64_t j = 0; j < b->keys; j++) {
		for (int64_t i = 0; i < b->lanes; i += VLEN) {
			float *s = scores + j * BQ + i;
			vf_store(s, vf_load(s) * scale + vf_load(run + BK - 1 - j + i));
		}
	}
}

void CPU_FN(attention_shape_scores)(float *scores, const struct attention_args *p,
	const struct attention_block *b, int64_t head)
{
	if (p->by_distance) {
		add_bias(scores, p, b, head);
		return;
	}
	float scale = p->a->scale, cap = p->a->softcap;
	for (int64_t j = 0; j < b->keys; j++) {
		for (int64_t i = 0; i < b->lanes; i += VLEN) {
			float *s = scores + j * BQ + i;
			vf_store(s, softcap_vec(vf_load(s) * scale, cap) * LOG2E);
		}
	}
}

void CPU_FN(attention_bias_add)(const struct attention_args *p, const struct attention_block *b,
	int64_t head, const float *d, unsigned part)
{
	const struct attention *a = p->a;
	int64_t distance = block_distance(a, b), buckets = a->bias.bias.rows;
	double *sums = p->dbias + ((int64_t)part * a->n_heads + head) * buckets;
	float run[DISTANCES] = {0};
	for (int64_t j = 0; j < b->keys; j++) {
		for (int64_t i = 0; i < b->lanes; i += VLEN) {
			float *r = run + BK - 1 - j + i;
			vf_store(r, vf_load(r) + vf_load(d + j * BQ + i));
		}
	}
	for (int64_t t = 0; t < DISTANCES; t++) {
		sums[a->bias.bucket[table_place(a, distance, t)]] += (double)run[t];
	}
}

void CPU_FN(attention_bias_finish)(const struct attention_args *p)
{
	const struct attention *a = p->a;
	int64_t heads = a->n_heads, buckets = a->bias.bias.rows;
	for (int64_t k = 0; k < buckets; k++) {
		float *row = mat_row_mut(a->bias.dbias, k, false);
		for (int64_t h = 0; h < heads; h++) {
			double sum = 0;
			for (int64_t t = 0; t < (int64_t)p->backend->n_threads; t++) {
				sum += p->dbias[(t * heads + h) * buckets + k];
			}
			row[h] += (float)sum;
		}
	}
}
