#include "tests/kernels/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ref_matmul(double *c, double *magnitude, const double *a, bool trans_a, const double *b,
	bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, double beta)
{
	for (int64_t i = 0; i < m; i++) {
		for (int64_t j = 0; j < n; j++) {
			double sum = 0, abs_sum = 0;
			for (int64_t l = 0; l < k; l++) {
				double av = trans_a ? a[l * m + i] : a[i * k + l];
				double bv = trans_b ? b[j * k + l] : b[l * n + j];
				sum += av * bv;
				abs_sum += fabs(av * bv);
			}
			double old = beta != 0 ? beta * c[i * n + j] : 0;
			c[i * n + j] = alpha * sum + old;
			if (magnitude) {
				magnitude[i * n + j] = fabs(alpha) * abs_sum + fabs(old);
			}
		}
	}
}

/* ---- RMSNorm ------------------------------------------------------------------------------- */

void ref_rmsnorm_forward(double *y, double *sum, double *rstd, const double *x,
	const double *delta, const double *w, int64_t rows, int64_t d, double eps)
{
	for (int64_t i = 0; i < rows; i++) {
		double squares = 0;
		for (int64_t j = 0; j < d; j++) {
			sum[i * d + j] = x[i * d + j] + (delta ? delta[i * d + j] : 0);
			squares += sum[i * d + j] * sum[i * d + j];
		}
		rstd[i] = 1 / sqrt(squares / (double)d + eps);
		for (int64_t j = 0; j < d; j++) {
			y[i * d + j] = w[j] * sum[i * d + j] * rstd[i];
		}
	}
}

void ref_rmsnorm_backward(double *dx, double *dw, const double *dy, const double *dsum,
	const double *sum, const double *w, int64_t rows, int64_t d, double eps)
{
	for (int64_t i = 0; i < rows; i++) {
		double squares = 0, dot = 0;
		for (int64_t j = 0; j < d; j++) {
			squares += sum[i * d + j] * sum[i * d + j];
		}
		double rstd = 1 / sqrt(squares / (double)d + eps);
		for (int64_t j = 0; j < d; j++) {
			dot += w[j] * dy[i * d + j] * sum[i * d + j] * rstd;
		}
		for (int64_t j = 0; j < d; j++) {
			double n = sum[i * d + j] * rstd;
			if (dw) {
				dw[j] += dy[i * d + j] * n;
			}
			dx[i * d + j] = rstd * (w[j] * dy[i * d + j] - n * dot / (double)d) +
				(dsum ? dsum[i * d + j] : 0);
		}
	}
}

/* ---- LayerNorm ----------------------------------------------------------------------------- */

static void row_stats(double *ret_mean, double *ret_rstd, const double *row, int64_t d, double eps)
{
	double sum = 0, squares = 0;
	for (int64_t j = 0; j < d; j++) {
		sum += row[j];
	}
	*ret_mean = sum / (double)d;
	for (int64_t j = 0; j < d; j++) {
		squares += (row[j] - *ret_mean) * (row[j] - *ret_mean);
	}
	*ret_rstd = 1 / sqrt(squares / (double)d + eps);
}

void ref_layernorm_forward(double *y, double *sum, double *stats, const double *x,
	const double *delta, const double *w, const double *bias, int64_t rows, int64_t d, double eps)
{
	for (int64_t i = 0; i < rows; i++) {
		for (int64_t j = 0; j < d; j++) {
			sum[i * d + j] = x[i * d + j] + (delta ? delta[i * d + j] : 0);
		}
		row_stats(&stats[2 * i], &stats[2 * i + 1], sum + i * d, d, eps);
		for (int64_t j = 0; j < d; j++) {
			y[i * d + j] = w[j] * (sum[i * d + j] - stats[2 * i]) * stats[2 * i + 1] +
				(bias ? bias[j] : 0);
		}
	}
}

void ref_layernorm_backward(double *dx, double *dw, double *dbias, const double *dy,
	const double *dsum, const double *sum, const double *w, int64_t rows, int64_t d, double eps)
{
	for (int64_t i = 0; i < rows; i++) {
		double mean, rstd, total = 0, dot = 0;
		row_stats(&mean, &rstd, sum + i * d, d, eps);
		for (int64_t j = 0; j < d; j++) {
			double g = w[j] * dy[i * d + j];
			total += g;
			dot += g * (sum[i * d + j] - mean) * rstd;
		}
		for (int64_t j = 0; j < d; j++) {
			double n = (sum[i * d + j] - mean) * rstd;
			if (dw) {
				dw[j] += dy[i * d + j] * n;
				dbias[j] += dy[i * d + j];
			}
			dx[i * d + j] = rstd * (w[j] * dy[i * d + j] - total / (double)d - n * dot / (double)d) +
				(dsum ? dsum[i * d + j] : 0);
		}
	}
}

/* ---- RoPE, SwiGLU -------------------------------------------------------------------------- */

void ref_rope(double *x, const int32_t *positions, const double *cos_sin, int64_t rows,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse)
{
	int64_t half = rotary_dim / 2;
	for (int64_t i = 0; i < rows; i++) {
		for (int64_t h = 0; h < n_heads; h++) {
			double *p = x + (i * n_heads + h) * head_dim;
			for (int64_t j = 0; j < half; j++) {
				double c = cos_sin[positions[i] * rotary_dim + j];
				double s = cos_sin[positions[i] * rotary_dim + half + j];
				double lo = p[j], hi = p[half + j];
				s = inverse ? -s : s;
				p[j] = lo * c - hi * s;
				p[half + j] = hi * c + lo * s;
			}
		}
	}
}

void ref_swiglu_forward(double *h, const double *gate, const double *up, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		h[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
	}
}

void ref_swiglu_backward(double *dgate, double *dup, const double *dh, const double *gate,
	const double *up, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		double s = 1 / (1 + exp(-gate[i]));
		dup[i] = dh[i] * gate[i] * s;
		dgate[i] = dh[i] * up[i] * (s + gate[i] * s * (1 - s));
	}
}

/* ---- activation functions ------------------------------------------------------------------ */

static double logistic(double x)
{
	return 1 / (1 + exp(-x));
}

double ref_activation(double x, enum activation kind)
{
	switch (kind) {
	case ACTIVATION_RELU:
		return x > 0 ? x : 0;
	case ACTIVATION_GELU:
		return 0.5 * x * erfc(-x * M_SQRT1_2);
	case ACTIVATION_GELU_NEW:
		/* 1 + tanh(u), without what 1 loses of it where u is far below 0 */
		return x * logistic(2 * sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
	case ACTIVATION_SILU:
		return x * logistic(x);
	case ACTIVATION_TANH:
		return tanh(x);
	case ACTIVATION_SIGMOID:
		return logistic(x);
	case ACTIVATION_LEAKY_RELU:
		return x > 0 ? x : 0.01 * x;
	}
	return NAN;
}

double ref_activation_derivative(double x, enum activation kind)
{
	double s, u;
	switch (kind) {
	case ACTIVATION_RELU:
		return x > 0;
	case ACTIVATION_GELU:
		return 0.5 * erfc(-x * M_SQRT1_2) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
	case ACTIVATION_GELU_NEW:
		u = sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
		return 0.5 * (1 + tanh(u)) + 0.5 * x * (1 - tanh(u) * tanh(u)) * sqrt(2 / M_PI) *
			(1 + 3 * 0.044715 * x * x);
	case ACTIVATION_SILU:
		s = logistic(x);
		return s + x * s * (1 - s);
	case ACTIVATION_TANH:
		return 1 - tanh(x) * tanh(x);
	case ACTIVATION_SIGMOID:
		s = logistic(x);
		return s * (1 - s);
	case ACTIVATION_LEAKY_RELU:
		return x > 0 ? 1 : 0.01;
	}
	return NAN;
}

/* ---- LSTM ---------------------------------------------------------------------------------- */

void ref_lstm_forward(double *h, double *gates, double *cell, const double *xg, const double *w,
	const double *bias, int64_t n, int64_t d, bool reverse)
{
	for (int64_t k = 0; k < n; k++) {
		int64_t t = reverse ? n - 1 - k : k, before = reverse ? t + 1 : t - 1;
		for (int64_t j = 0; j < 4 * d; j++) {
			double a = xg[t * 4 * d + j] + bias[j];
			for (int64_t l = 0; l < d && k > 0; l++) {
				a += w[j * d + l] * h[before * d + l];
			}
			gates[t * 4 * d + j] = j / d == 2 ? tanh(a) : logistic(a);
		}
		for (int64_t j = 0; j < d; j++) {
			const double *g = gates + t * 4 * d;
			double old = k > 0 ? cell[before * d + j] : 0;
			cell[t * d + j] = g[d + j] * old + g[j] * g[2 * d + j];
			h[t * d + j] = g[3 * d + j] * tanh(cell[t * d + j]);
		}
	}
}

/* ---- attention ----------------------------------------------------------------------------- */

/* Row of the table of biases for key j and query i. */
static int64_t bias_row(const struct attention *a, int64_t s, int64_t i, int64_t j)
{
	int64_t distance = j - (i + a->k_len[s] - a->q_len[s]), reach = a->bias.reach;
	distance = distance < -reach ? -reach : distance > reach ? reach : distance;
	return a->bias.bucket[distance + reach];
}

/* Probabilities of query i of sequence s under head h into p[k_len], and into slope[k_len] the derivative
 * of a score by its scaled product; returns the log-sum-exp. */
static double attention_row(double *p, double *slope, const double *q, const double *k,
	const double *bias, const struct attention *a, int64_t s, int64_t i, int64_t h)
{
	int64_t kv_head = h / (a->n_heads / a->n_kv_heads), n = a->k_len[s];
	const double *qi = q + ((a->q_start[s] + i) * a->n_heads + h) * a->head_dim;
	double max = -INFINITY, sum = 0;

	for (int64_t j = 0; j < n; j++) {
		const double *kj = k + ((a->k_start[s] + j) * a->n_kv_heads + kv_head) * a->head_dim;
		int64_t behind = i + a->k_len[s] - a->q_len[s] - j;
		p[j] = -INFINITY;
		slope[j] = 1;
		if ((!a->causal || behind >= 0) && (a->window == 0 || behind < a->window)) {
			p[j] = 0;
			for (int64_t l = 0; l < a->head_dim; l++) {
				p[j] += qi[l] * kj[l] * a->scale;
			}
			if (a->softcap > 0) {
				double t = tanh(p[j] / (double)a->softcap);
				p[j] = (double)a->softcap * t;
				slope[j] = 1 - t * t;
			}
			p[j] += bias ? bias[bias_row(a, s, i, j) * a->n_heads + h] : 0;
		}
		max = fmax(max, p[j]);
	}
	for (int64_t j = 0; j < n; j++) {
		sum += exp(p[j] - max);
	}
	for (int64_t j = 0; j < n; j++) {
		p[j] = exp(p[j] - max) / sum;
	}
	return max + log(sum);
}

static int64_t longest_keys(const struct attention *a)
{
	int64_t n = 1;
	for (int64_t s = 0; s < a->n_seqs; s++) {
		n = a->k_len[s] > n ? a->k_len[s] : n;
	}
	return n;
}

void ref_attention_forward(double *o, double *lse, const double *q, const double *k, const double *v,
	const double *bias, const struct attention *a)
{
	double *p = calloc((size_t)longest_keys(a), sizeof(*p));
	double *slope = calloc((size_t)longest_keys(a), sizeof(*slope));
	int64_t ratio = a->n_heads / a->n_kv_heads;
	for (int64_t s = 0; s < a->n_seqs; s++) {
		for (int64_t i = 0; i < a->q_len[s]; i++) {
			for (int64_t h = 0; h < a->n_heads; h++) {
				int64_t at = (a->q_start[s] + i) * a->n_heads + h;
				lse[at] = attention_row(p, slope, q, k, bias, a, s, i, h);
				for (int64_t l = 0; l < a->head_dim; l++) {
					double sum = 0;
					for (int64_t j = 0; j < a->k_len[s]; j++) {
						sum += p[j] * v[((a->k_start[s] + j) * a->n_kv_heads + h / ratio) *
							a->head_dim + l];
					}
					o[at * a->head_dim + l] = sum;
				}
			}
		}
	}
	free(slope);
	free(p);
}

void ref_attention_backward(double *dq, double *dk, double *dv, double *dbias, const double *do_,
	const double *q, const double *k, const double *v, const double *bias,
	const struct attention *a)
{
	double *p = calloc((size_t)longest_keys(a), sizeof(*p));
	double *slope = calloc((size_t)longest_keys(a), sizeof(*slope));
	double *dp = calloc((size_t)longest_keys(a), sizeof(*dp));
	int64_t ratio = a->n_heads / a->n_kv_heads, d = a->head_dim;

	for (int64_t s = 0; s < a->n_seqs; s++) {
		memset(dq + a->q_start[s] * a->n_heads * d, 0,
			(size_t)(a->q_len[s] * a->n_heads * d) * sizeof(*dq));
		memset(dk + a->k_start[s] * a->n_kv_heads * d, 0,
			(size_t)(a->k_len[s] * a->n_kv_heads * d) * sizeof(*dk));
		memset(dv + a->k_start[s] * a->n_kv_heads * d, 0,
			(size_t)(a->k_len[s] * a->n_kv_heads * d) * sizeof(*dv));
		for (int64_t i = 0; i < a->q_len[s]; i++) {
			for (int64_t h = 0; h < a->n_heads; h++) {
				int64_t qi = ((a->q_start[s] + i) * a->n_heads + h) * d;
				double dot = 0;
				attention_row(p, slope, q, k, bias, a, s, i, h);
				for (int64_t j = 0; j < a->k_len[s]; j++) {
					int64_t kj = ((a->k_start[s] + j) * a->n_kv_heads + h / ratio) * d;
					dp[j] = 0;
					for (int64_t l = 0; l < d; l++) {
						dp[j] += do_[qi + l] * v[kj + l];
						dv[kj + l] += p[j] * do_[qi + l];
					}
					dot += p[j] * dp[j];
				}
				for (int64_t j = 0; j < a->k_len[s]; j++) {
					int64_t kj = ((a->k_start[s] + j) * a->n_kv_heads + h / ratio) * d;
					double ds = p[j] * (dp[j] - dot);
					if (dbias) {
						dbias[bias_row(a, s, i, j) * a->n_heads + h] += ds;
					}
					ds *= slope[j] * a->scale;
					for (int64_t l = 0; l < d; l++) {
						dq[qi + l] += ds * k[kj + l];
						dk[kj + l] += ds * q[qi + l];
					}
				}
			}
		}
	}
	free(dp);
	free(slope);
	free(p);
}

/* ---- head, optimizer, random numbers ------------------------------------------------------- */

double ref_lm_head(double *dx, double *dw, const double *x, const int32_t *targets, const double *w,
	int64_t rows, int64_t vocab, int64_t d, double cap, double grad_scale)
{
	double *logits = calloc((size_t)vocab, sizeof(*logits)), loss = 0;
	for (int64_t i = 0; i < rows; i++) {
		if (dx) {
			memset(dx + i * d, 0, (size_t)d * sizeof(*dx));
		}
		if (targets[i] < 0) {
			continue;
		}
		double max = -INFINITY, sum = 0;
		for (int64_t t = 0; t < vocab; t++) {
			logits[t] = 0;
			for (int64_t j = 0; j < d; j++) {
				logits[t] += x[i * d + j] * w[t * d + j];
			}
			logits[t] = cap > 0 ? cap * tanh(logits[t] / cap) : logits[t];
			max = fmax(max, logits[t]);
		}
		for (int64_t t = 0; t < vocab; t++) {
			sum += exp(logits[t] - max);
		}
		loss += max + log(sum) - logits[targets[i]];
		for (int64_t t = 0; t < vocab; t++) {
			double u = cap > 0 ? logits[t] / cap : 0;
			double g = grad_scale * (exp(logits[t] - max) / sum - (t == targets[i])) * (1 - u * u);
			for (int64_t j = 0; j < d && dx; j++) {
				dx[i * d + j] += g * w[t * d + j];
			}
			for (int64_t j = 0; j < d && dw; j++) {
				dw[t * d + j] += g * x[i * d + j];
			}
		}
	}
	free(logits);
	return loss;
}

void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const struct adamw *a)
{
	for (int64_t i = 0; i < n; i++) {
		double grad = g[i] * a->grad_scale;
		p[i] *= 1 - a->lr * a->weight_decay;
		m[i] = a->beta1 * m[i] + (1 - a->beta1) * grad;
		v[i] = a->beta2 * v[i] + (1 - a->beta2) * grad * grad;
		double m_hat = m[i] / (1 - pow(a->beta1, (double)a->step));
		double v_hat = v[i] / (1 - pow(a->beta2, (double)a->step));
		p[i] -= a->lr * m_hat / (sqrt(v_hat) + a->eps);
	}
}

void ref_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
	uint32_t k[2] = {key[0], key[1]};
	memcpy(out, counter, 4 * sizeof(*out));
	for (int round = 0; round < 10; round++) {
		if (round > 0) {
			k[0] += 0x9E3779B9u;
			k[1] += 0xBB67AE85u;
		}
		uint64_t a = (uint64_t)0xD2511F53u * out[0], b = (uint64_t)0xCD9E8D57u * out[2];
		uint32_t next[4] = {(uint32_t)(b >> 32) ^ out[1] ^ k[0], (uint32_t)b,
			(uint32_t)(a >> 32) ^ out[3] ^ k[1], (uint32_t)a};
		memcpy(out, next, sizeof(next));
	}
}
