/*
 * Language-model head and cross-entropy. Rows that have a target are gathered, a chunk at a time, and
 * multiplied with the head; softmax and its gradient go over a chunk's logits where they lie. Losses of
 * rows are f64 and summed in order.
 */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

#define CHUNK 256 /* rows at most; fewer where the vocabulary is large */
#define CHUNK_BYTES ((int64_t)64 << 20)

struct head_plan {
	int64_t chunk;
	size_t logits, dlogits, x, dx, losses, rows; /* offsets of pieces of the workspace */
	size_t bytes;
};

static size_t piece(size_t *bytes, int64_t n, size_t size)
{
	size_t at = *bytes;
	*bytes += align_up((size_t)n * size, 64);
	return at;
}

static struct head_plan head_plan(int64_t vocab, int64_t hidden, enum dtype dtype)
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
	return p;
}

size_t CPU_FN(lm_head_workspace)(struct backend *b, int64_t vocab_size, int64_t hidden_size,
	enum dtype dtype, int64_t max_rows)
{
	return head_plan(vocab_size, hidden_size, dtype).bytes;
}

struct softmax_args {
	struct mat logits, dlogits; /* dlogits.data NULL: loss only */
	const int32_t *targets;
	const int64_t *rows;
	double *losses;
	float grad_scale;
};

/* Rows of a chunk: losses[i] = log-sum-exp − logit of the target; dlogits = grad_scale · (softmax −
 * one-hot), which may lie where the logits do. */
ALWAYS_INLINE void softmax_rows(const struct softmax_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t vocab = a->logits.cols;
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
				vf_store(logits + j, e);
				part_sum += e;
			}
			if (j < stop) {
				int64_t n = stop - j;
				float tail[VLEN];
				vf_store(tail, vf_exp(act_load_n(logits, j, n, false) - max));
				for (int64_t k = 0; k < n; k++) {
					logits[j + k] = tail[k];
					sum += tail[k];
				}
				j = stop;
			}
			sum += vf_sum(part_sum);
		}
		a->losses[i] = log(sum) + max - target_logit;

		if (a->dlogits.data) {
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

void CPU_FN(lm_head_loss)(struct backend *b, struct mat dx, double *loss_sum, struct mat x,
	const int32_t *targets, const struct packed_weight *w, float grad_scale, void *workspace)
{
	struct head_plan p = head_plan(w->out, w->in, w->dtype);
	size_t act = dtype_size(w->dtype), row_bytes = (size_t)w->in * act;
	char *ws = workspace;
	int64_t *rows = (int64_t *)(ws + p.rows);
	double *losses = (double *)(ws + p.losses);
	double total = 0;

	for (int64_t i = 0; i < x.rows;) {
		int64_t n = 0;
		for (; i < x.rows && n < p.chunk; i++) {
			if (targets[i] >= 0) {
				memcpy(ws + p.x + (size_t)n * row_bytes,
					(const char *)x.data + (size_t)(i * x.stride) * act, row_bytes);
				rows[n++] = i;
			} else if (dx.data) {
				memset((char *)dx.data + (size_t)(i * dx.stride) * act, 0, row_bytes);
			}
		}
		if (n == 0) {
			break;
		}

		struct mat xs = {ws + p.x, w->dtype, n, w->in, w->in};
		struct mat dxs = {ws + p.dx, w->dtype, n, w->in, w->in};
		struct mat logits = {ws + p.logits, DTYPE_F32, n, w->out, w->out};
		struct mat dlogits = {dx.data ? ws + p.dlogits : NULL, w->dtype, n, w->out, w->out};
		struct softmax_args args = {logits, dlogits, targets, rows, losses, grad_scale};
		cpu_linear_forward(b, logits, xs, w, NULL);
		cpu_parallel(b, n, cpu_row_grain(w->out * 4), ACT_PICK(softmax_rows, w->dtype), &args);
		for (int64_t k = 0; k < n; k++) {
			total += losses[k];
		}
		if (dx.data) {
			cpu_linear_backward(b, dxs, dlogits, w, false);
			for (int64_t k = 0; k < n; k++) {
				memcpy((char *)dx.data + (size_t)(rows[k] * dx.stride) * act,
					ws + p.dx + (size_t)k * row_bytes, row_bytes);
			}
		}
	}
	*loss_sum += total;
}
