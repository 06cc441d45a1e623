/*
 * A layer of LSTM in one direction over a short sequence, as torch.nn.LSTM has it:
 *
 *	a = xg[t] + W·h[t−1] + b, cut into i, f, g, o;  c[t] = σ(f)·c[t−1] + σ(i)·tanh(g)
 *	h[t] = σ(o)·tanh(c[t])
 *
 * It encodes a soft prompt, some tens of rows once a microbatch, so one thread does it.
 */

#include <math.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

static float logistic(float x)
{
	return 1 / (1 + expf(-x));
}

static float element(struct mat m, int64_t i, int64_t j)
{
	return m.dtype == DTYPE_BF16 ? bf16_to_f32(((const uint16_t *)m.data)[i * m.stride + j])
								 : ((const float *)m.data)[i * m.stride + j];
}

static void set_element(struct mat m, int64_t i, int64_t j, float v)
{
	if (m.dtype == DTYPE_BF16) {
		((uint16_t *)m.data)[i * m.stride + j] = bf16_from_f32(v);
	} else {
		((float *)m.data)[i * m.stride + j] = v;
	}
}

static float *f32_row(struct mat m, int64_t i)
{
	return (float *)m.data + i * m.stride;
}

/* Row i of w times h. */
ALWAYS_INLINE float row_dot(struct mat w, int64_t i, const float *h, bool bf16)
{
	const void *row = mat_row(w, i, bf16);
	vf sum = vf_set(0);
	for (int64_t j = 0; j < w.cols; j += VLEN) {
		int64_t n = w.cols - j;
		sum += act_load_n(row, j, n, bf16) * act_load_n(h, j, n, false);
	}
	return vf_sum(sum);
}

/* out += s · row i of w. */
ALWAYS_INLINE void add_row(float *out, struct mat w, int64_t i, float s, bool bf16)
{
	const void *row = mat_row(w, i, bf16);
	for (int64_t j = 0; j < w.cols; j += VLEN) {
		int64_t n = w.cols - j;
		act_store_n(out, j, n, false,
			act_load_n(out, j, n, false) + act_load_n(row, j, n, bf16) * s);
	}
}

void CPU_FN(lstm_forward)(struct backend *b, struct mat h, struct mat gates, struct mat cell,
	struct mat xg, struct mat w, struct mat bias, bool reverse)
{
	int64_t n = h.rows, d = h.cols;
	bool bf16 = w.dtype == DTYPE_BF16;
	float *last = cpu_scratch(b, 0); /* h[t−1] */
	memset(last, 0, (size_t)d * sizeof(*last));
	for (int64_t k = 0; k < n; k++) {
		int64_t t = reverse ? n - 1 - k : k, before = reverse ? t + 1 : t - 1;
		float *a = f32_row(gates, t), *c = f32_row(cell, t);
		for (int64_t j = 0; j < 4 * d; j++) {
			float dot = bf16 ? row_dot(w, j, last, true) : row_dot(w, j, last, false);
			float v = element(xg, t, j) + dot + element(bias, 0, j);
			a[j] = j / d == 2 ? tanhf(v) : logistic(v);
		}
		for (int64_t j = 0; j < d; j++) {
			float old = k > 0 ? f32_row(cell, before)[j] : 0;
			c[j] = a[d + j] * old + a[j] * a[2 * d + j];
			set_element(h, t, j, a[3 * d + j] * tanhf(c[j]));
			last[j] = element(h, t, j);
		}
	}
}

void CPU_FN(lstm_backward)(struct backend *b, struct mat dxg, struct mat dw, struct mat dbias,
	struct mat dh, struct mat h, struct mat gates, struct mat cell, struct mat w, bool reverse)
{
	int64_t n = h.rows, d = h.cols;
	bool bf16 = w.dtype == DTYPE_BF16;
	float *next_h = cpu_scratch(b, 0), *next_c = next_h + d, *da = next_c + d;
	memset(next_h, 0, 2 * (size_t)d * sizeof(*next_h));
	for (int64_t k = n - 1; k >= 0; k--) {
		int64_t t = reverse ? n - 1 - k : k, before = reverse ? t + 1 : t - 1;
		const float *a = f32_row(gates, t), *c = f32_row(cell, t);
		for (int64_t j = 0; j < d; j++) {
			float i = a[j], f = a[d + j], g = a[2 * d + j], o = a[3 * d + j], tc = tanhf(c[j]);
			float old = k > 0 ? f32_row(cell, before)[j] : 0;
			float dhj = element(dh, t, j) + next_h[j];
			float dc = next_c[j] + dhj * o * (1 - tc * tc);
			da[j] = dc * g * i * (1 - i);
			da[d + j] = dc * old * f * (1 - f);
			da[2 * d + j] = dc * i * (1 - g * g);
			da[3 * d + j] = dhj * tc * o * (1 - o);
			next_c[j] = dc * f;
		}
		memset(next_h, 0, (size_t)d * sizeof(*next_h));
		for (int64_t j = 0; j < 4 * d; j++) {
			set_element(dxg, t, j, da[j]);
			((float *)dbias.data)[j] += da[j];
			for (int64_t l = 0; k > 0 && l < d; l++) {
				f32_row(dw, j)[l] += da[j] * element(h, before, l);
			}
			bf16 ? add_row(next_h, w, j, da[j], true) : add_row(next_h, w, j, da[j], false);
		}
	}
}
