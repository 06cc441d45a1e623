/*
 * Language-model head and cross-entropy. Rows that have a target are gathered, a chunk at a time, and
 * multiplied with the head; softmax and its gradient go over a chunk's logits where they lie. Losses of
 * rows are f64 and summed in order.
 */

#include <math.h>

#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

#define CHUNK 256 /* rows at most; fewer where the vocabulary is large */
#define CHUNK_BYTES ((int64_t)64 << 20)

struct head_plan {
	int64_t chunk;
	size_t logits, dlogits, x, dx, losses, rows; /* offsets of pieces of the workspace */
	size_t low, dlow;                            /* x·Aᵀ and its gradient */
	size_t bytes;
};

static size_t piece(size_t *bytes, int64_t n, size_t size)
{
	size_t at = *bytes;
	*bytes += align_up((size_t)n * size, 64);
	return at;
}

static struct head_plan head_plan(int64_t vocab, int64_t hidden, enum dtype dtype, int64_t rank)
{
	struct head_plan p = {0};
	p.chunk = CHUNK;
	while (p.chunk > 16 && p.chunk * vocab * 4 > CHUNK_BYTES) {
		p.chunk /= 2;
	}
	size_t act = dtype_size(dtype);
	p.logits = piece(&p.bytes, p.chunk * vocab, 4);
	p.dlogits = p.logits;
	if (dtype == DTYPE_BF16) {
		p.dlogits = piece(&p.bytes, p.chunk * vocab, act);
	}
	p.x = piece(&p.bytes, p.chunk * hidden, act);
	p.dx = piece(&p.bytes, p.chunk * hidden, act);
	p.losses = piece(&p.bytes, p.chunk, sizeof(double));
	p.rows = piece(&p.bytes, p.chunk, sizeof(int64_t));
	p.low = piece(&p.bytes, p.chunk * rank, act);
	p.dlow = piece(&p.bytes, p.chunk * rank, act);
	return p;
}

size_t CPU_FN(lm_head_workspace)(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows, int64_t rank)
{
	return head_plan(vocab_size, hidden_size, dtype, rank).bytes;
}

struct softmax_args {
	struct mat logits, dlogits; /* dlogits.data NULL: loss only */
	const int32_t *targets;
	const int64_t *rows;
	double *losses;
	float grad_scale;
	float softcap; /* of the logits, which are capped already; 0: none */
};

/* Softmax of capped logits: their derivative is one of their value, so this is kept until the gradient. */
ALWAYS_INLINE void capped_gradient(const struct softmax_args *a, int64_t i, float max, double sum,
	bool bf16)
{
	const float *logits = mat_row(a->logits, i, false);
	int32_t target = a->targets[a->rows[i]];
	void *d = mat_row_mut(a->dlogits, i, bf16);
	float scale = (float)(a->grad_scale / sum), by_cap = 1 / a->softcap;
	int64_t vocab = a->logits.cols;
	for (int64_t j = 0; j < vocab; j += VLEN) {
		int64_t n = vocab - j;
		vf t = act_load_n(logits, j, n, false);
		vf e = vf_exp(t - max) * scale;
		if (target >= j && target < j + VLEN) {
			e[target - j] -= a->grad_scale;
		}
		vf u = t * by_cap;
		act_store_n(d, j, n, bf16, e * (1.0f - u * u));
	}
}

/* Rows of a chunk: losses[i] = log-sum-exp − logit of the target; dlogits = grad_scale · (softmax −
 * one-hot), which may lie where the logits do. */
ALWAYS_INLINE void softmax_rows(const struct softmax_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t vocab = a->logits.cols;
	bool capped = a->softcap > 0;
	for (int64_t i = begin; i < end; i++) {
		float *logits = mat_row_mut(a->logits, i, false);
		int32_t target = a->targets[a->rows[i]];
		vf vmax = vf_set(-INFINITY);
		for (int64_t j = 0; j + VLEN <= vocab; j += VLEN) {
			vmax = vf_max(vf_load(logits + j), vmax);
		}
		float max = vf_hmax(vmax);
		for (int64_t j = vocab / VLEN * VLEN; j < vocab; j++) {
			max = logits[j] > max ? logits[j] : max;
		}

		double target_logit = logits[target];
		double sum = 0;
		for (int64_t j = 0; j < vocab;) {
			/* A block in f32, blocks in f64. */
			vf part_sum = vf_set(0);
			int64_t stop = min_i64(vocab, j + 64 * VLEN);
			for (; j + VLEN <= stop; j += VLEN) {
				vf e = vf_exp(vf_load(logits + j) - max);
				if (!capped) {
					vf_store(logits + j, e);
				}
				part_sum += e;
			}
			if (j < stop) {
				int64_t n = stop - j;
				float tail[VLEN];
				vf_store(tail, vf_exp(act_load_n(logits, j, n, false) - max));
				for (int64_t k = 0; k < n; k++) {
					logits[j + k] = capped ? logits[j + k] : tail[k];
					sum += tail[k];
				}
				j = stop;
			}
			sum += vf_sum(part_sum);
		}
		a->losses[i] = log(sum) + max - target_logit;

		if (a->dlogits.data && capped) {
			capped_gradient(a, i, max, sum, bf16);
		} else if (a->dlogits.data) {
			void *d = mat_row_mut(a->dlogits, i, bf16);
			float scale = (float)(a->grad_scale / sum);
			logits[target] -= (float)sum;
			for (int64_t j = 0; j < vocab; j += VLEN) {
				int64_t n = vocab - j;
				act_store_n(d, j, n, bf16, act_load_n(logits, j, n, false) * scale);
			}
		}
	}
}
ACT_PAIR(softmax_rows, struct softmax_args)

/* A chunk of rows that have targets, gathered. */
struct chunk {
	struct mat x, dx, logits, dlogits, low, dlow;
};

static void chunk_forward(struct backend *b, const struct lm_head *h, const struct chunk *c)
{
	if (h->packed) {
		cpu_linear_forward(b, c->logits, c->x, h->packed, NULL);
	} else {
		CPU_FN(matmul)(b, c->logits, c->x, false, h->w, true, 1, 0);
	}
	if (h->a.data) {
		CPU_FN(matmul)(b, c->low, c->x, false, h->a, true, 1, 0);
		CPU_FN(matmul)(b, c->logits, c->low, false, h->b, true, h->scale, 1);
	}
	if (h->softcap > 0) {
		CPU_FN(softcap)(b, c->logits, h->softcap);
	}
}

static void chunk_backward(struct backend *b, const struct lm_head *h, const struct chunk *c,
	bool want_dx)
{
	if (h->dw.data) {
		CPU_FN(matmul)(b, h->dw, c->dlogits, true, c->x, false, 1, 1);
	}
	if (want_dx) {
		if (h->packed) {
			cpu_linear_backward(b, c->dx, c->dlogits, h->packed, false);
		} else {
			CPU_FN(matmul)(b, c->dx, c->dlogits, false, h->w, false, 1, 0);
		}
	}
	if (h->a.data) {
		CPU_FN(matmul)(b, c->dlow, c->dlogits, false, h->b, false, h->scale, 0);
		if (h->da.data) {
			CPU_FN(matmul)(b, h->db, c->dlogits, true, c->low, false, h->scale, 1);
			CPU_FN(matmul)(b, h->da, c->dlow, true, c->x, false, 1, 1);
		}
		if (want_dx) {
			CPU_FN(matmul)(b, c->dx, c->dlow, false, h->a, false, 1, 1);
		}
	}
}

void CPU_FN(lm_head_loss)(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct lm_head *h, float grad_scale, bool loss_only,
	void *workspace)
{
	int64_t vocab = h->packed ? h->packed->out : h->w.rows, d = x.cols, rank = h->a.rows;
	struct head_plan p = head_plan(vocab, d, x.dtype, rank);
	size_t act = dtype_size(x.dtype), row_bytes = (size_t)d * act;
	char *ws = workspace;
	int64_t *rows = (int64_t *)(ws + p.rows);
	double *losses = (double *)(ws + p.losses);
	double total = 0;
	bool want_dx = dx.data && !loss_only;
	bool grads = !loss_only && (dx.data || h->dw.data || h->da.data);

	for (int64_t i = 0; i < x.rows;) {
		int64_t n = 0;
		for (; i < x.rows && n < p.chunk; i++) {
			if (targets[i] >= 0) {
				memcpy(ws + p.x + (size_t)n * row_bytes,
					(const char *)x.data + (size_t)(i * x.stride) * act, row_bytes);
				rows[n++] = i;
			} else if (want_dx) {
				memset((char *)dx.data + (size_t)(i * dx.stride) * act, 0, row_bytes);
			}
		}
		if (n == 0) {
			break;
		}

		struct chunk c = {
			.x = {ws + p.x, x.dtype, n, d, d},
			.dx = {ws + p.dx, x.dtype, n, d, d},
			.logits = {ws + p.logits, DTYPE_F32, n, vocab, vocab},
			.dlogits = {grads ? ws + p.dlogits : NULL, x.dtype, n, vocab, vocab},
			.low = {ws + p.low, x.dtype, n, rank, rank},
			.dlow = {ws + p.dlow, x.dtype, n, rank, rank},
		};
		struct softmax_args args = {c.logits, c.dlogits, targets, rows, losses, grad_scale,
			h->softcap};
		chunk_forward(b, h, &c);
		cpu_parallel(b, n, cpu_row_grain(vocab * 4), ACT_PICK(softmax_rows, x.dtype), &args);
		for (int64_t k = 0; k < n; k++) {
			total += losses[k];
		}
		if (grads) {
			chunk_backward(b, h, &c, want_dx);
		}
		for (int64_t k = 0; k < n && want_dx; k++) {
			memcpy((char *)dx.data + (size_t)(rows[k] * dx.stride) * act,
				ws + p.dx + (size_t)k * row_bytes, row_bytes);
		}
	}
	*loss_sum += total;
}
