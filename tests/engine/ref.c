#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/engine/ref.h"
#include "util/cleanup.h"
#include "util/util.h"

struct ref_tensor {
	char name[256];
	int64_t rows, cols;
	double *data;
};

struct ref_model {
	struct model_config config;
	double scale; /* of LoRA */
	struct ref_tensor tensors[256]; /* weights by their names, adapter tensors by their keys */
	size_t n;
};

static double *alloc(int64_t n)
{
	double *p = calloc((size_t)n, sizeof(*p));
	assert_non_null(p);
	return p;
}

static void add_tensor(struct ref_model *m, const char *name, int64_t rows, int64_t cols,
	const float *values)
{
	assert_true(m->n < ARRAY_LEN(m->tensors));
	struct ref_tensor *t = &m->tensors[m->n++];
	snprintf(t->name, sizeof(t->name), "%s", name);
	t->rows = rows;
	t->cols = cols;
	t->data = alloc(rows * cols);
	for (int64_t i = 0; i < rows * cols; i++) {
		t->data[i] = values[i];
	}
}

static void add_weight(struct ref_model *m, const struct fixture *f, const char *name)
{
	struct errmsg err = {0};
	int64_t rows, cols;
	if (!model_files_shape(f->files, name, &rows, &cols)) {
		return;
	}
	_cleanup_(freep) float *values = malloc((size_t)(rows * cols) * sizeof(float));
	OK(model_files_read(f->files, name, values, &err));
	add_tensor(m, name, rows, cols, values);
}

struct ref_model *ref_model_new(const struct fixture *f)
{
	static const char *const parts[] = {"input_layernorm", "post_attention_layernorm",
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
		"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
	struct errmsg err = {0};
	struct ref_model *m = calloc(1, sizeof(*m));
	assert_non_null(m);
	m->config = *model_files_config(f->files);
	m->scale = f->adapter.config.lora_alpha / (double)f->adapter.config.r;
	char name[256];
	for (int64_t i = 0; i < m->config.num_hidden_layers; i++) {
		for (size_t k = 0; k < ARRAY_LEN(parts); k++) {
			snprintf(name, sizeof(name), "model.layers.%lld.%s.weight", (long long)i, parts[k]);
			add_weight(m, f, name);
			snprintf(name, sizeof(name), "model.layers.%lld.%s.bias", (long long)i, parts[k]);
			add_weight(m, f, name);
		}
	}
	add_weight(m, f, "model.embed_tokens.weight");
	add_weight(m, f, "model.norm.weight");
	add_weight(m, f, "lm_head.weight");
	for (size_t i = 0; i < f->adapter.tensors.n_tensors; i++) {
		const struct st_tensor *t = &f->adapter.tensors.tensors[i];
		_cleanup_(freep) float *values =
			malloc((size_t)(t->dims[0] * t->dims[1]) * sizeof(float));
		OK(st_tensor_read_f32(t, values, &err));
		add_tensor(m, t->name, t->dims[0], t->dims[1], values);
	}
	return m;
}

void ref_model_free(struct ref_model *m)
{
	for (size_t i = 0; i < m->n; i++) {
		free(m->tensors[i].data);
	}
	free(m);
}

static const struct ref_tensor *find(const struct ref_model *m, const char *fmt, ...)
{
	char name[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(name, sizeof(name), fmt, ap);
	va_end(ap);
	for (size_t i = 0; i < m->n; i++) {
		if (strcmp(m->tensors[i].name, name) == 0) {
			return &m->tensors[i];
		}
	}
	return NULL;
}

double *ref_model_tensor(struct ref_model *m, const char *key, size_t *ret_n)
{
	const struct ref_tensor *t = find(m, "%s", key);
	*ret_n = t ? (size_t)(t->rows * t->cols) : 0;
	return t ? t->data : NULL;
}

/* y[n, w.rows] += scale · x[n, w.cols]·wᵀ */
static void product(double *y, const double *x, int64_t n, const struct ref_tensor *w, double scale)
{
	for (int64_t i = 0; i < n; i++) {
		for (int64_t j = 0; j < w->rows; j++) {
			double sum = 0;
			for (int64_t k = 0; k < w->cols; k++) {
				sum += x[i * w->cols + k] * w->data[j * w->cols + k];
			}
			y[i * w->rows + j] += scale * sum;
		}
	}
}

static double *linear(const struct ref_model *m, const char *module, const double *x, int64_t n)
{
	const struct ref_tensor *w = find(m, "%s.weight", module), *bias = find(m, "%s.bias", module);
	const struct ref_tensor *a = find(m, "base_model.model.%s.lora_A.weight", module);
	const struct ref_tensor *b = find(m, "base_model.model.%s.lora_B.weight", module);
	double *y = alloc(n * w->rows);
	product(y, x, n, w, 1);
	for (int64_t i = 0; bias && i < n * w->rows; i++) {
		y[i] += bias->data[i % w->rows];
	}
	if (a) {
		double *h = alloc(n * a->rows);
		product(h, x, n, a, 1);
		product(y, h, n, b, m->scale);
		free(h);
	}
	return y;
}

static double *norm(const struct ref_model *m, const char *module, const double *x, int64_t n)
{
	const struct ref_tensor *w = find(m, "%s.weight", module);
	int64_t d = m->config.hidden_size;
	double *y = alloc(n * d);
	for (int64_t i = 0; i < n; i++) {
		double sum = 0;
		for (int64_t k = 0; k < d; k++) {
			sum += x[i * d + k] * x[i * d + k];
		}
		double r = 1 / sqrt(sum / (double)d + m->config.rms_norm_eps);
		for (int64_t k = 0; k < d; k++) {
			y[i * d + k] = x[i * d + k] * r * w->data[k];
		}
	}
	return y;
}

static double inverse_frequency(const struct model_config *c, int64_t i)
{
	double f = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim);
	if (c->rope_scaling == ROPE_SCALING_LINEAR) {
		return f / c->rope.factor;
	}
	if (c->rope_scaling == ROPE_SCALING_LLAMA3) {
		double len = (double)c->rope.original_max_position_embeddings;
		double turns = len * f / (2 * M_PI); /* over the original context */
		double low = c->rope.low_freq_factor, high = c->rope.high_freq_factor;
		double keep = turns < low ? 0 : turns > high ? 1 : (turns - low) / (high - low);
		return keep * f + (1 - keep) * f / c->rope.factor;
	}
	return f;
}

static void rotate(const struct model_config *c, double *x, int64_t n, int64_t heads)
{
	int64_t d = c->head_dim, half = d / 2;
	for (int64_t i = 0; i < n * heads; i++) {
		for (int64_t k = 0; k < half; k++) {
			double angle = (double)(i / heads) * inverse_frequency(c, k);
			double *p = x + i * d, a = p[k], b = p[k + half];
			p[k] = a * cos(angle) - b * sin(angle);
			p[k + half] = b * cos(angle) + a * sin(angle);
		}
	}
}

static double *attend(const struct model_config *c, const double *q, const double *k,
	const double *v, int64_t n)
{
	int64_t d = c->head_dim, heads = c->num_attention_heads, kv = c->num_key_value_heads;
	double *o = alloc(n * heads * d), *p = alloc(n);
	for (int64_t i = 0; i < n; i++) {
		for (int64_t h = 0; h < heads; h++) {
			int64_t g = h / (heads / kv);
			double sum = 0;
			for (int64_t j = 0; j <= i; j++) {
				double s = 0;
				for (int64_t e = 0; e < d; e++) {
					s += q[(i * heads + h) * d + e] * k[(j * kv + g) * d + e];
				}
				p[j] = exp(s / sqrt((double)d));
				sum += p[j];
			}
			for (int64_t j = 0; j <= i; j++) {
				for (int64_t e = 0; e < d; e++) {
					o[(i * heads + h) * d + e] += p[j] / sum * v[(j * kv + g) * d + e];
				}
			}
		}
	}
	free(p);
	return o;
}

static void add_to(double *x, double *y, int64_t n)
{
	for (int64_t i = 0; i < n; i++) {
		x[i] += y[i];
	}
	free(y);
}

static void layer(const struct ref_model *m, int64_t i, double *x, int64_t n)
{
	const struct model_config *c = &m->config;
	char name[9][96];
	static const char *const parts[] = {"input_layernorm", "post_attention_layernorm",
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
		"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
	for (int p = 0; p < 9; p++) {
		snprintf(name[p], sizeof(name[p]), "model.layers.%lld.%s", (long long)i, parts[p]);
	}
	_cleanup_(freep) double *y = norm(m, name[0], x, n);
	_cleanup_(freep) double *q = linear(m, name[2], y, n);
	_cleanup_(freep) double *k = linear(m, name[3], y, n);
	_cleanup_(freep) double *v = linear(m, name[4], y, n);
	rotate(c, q, n, c->num_attention_heads);
	rotate(c, k, n, c->num_key_value_heads);
	_cleanup_(freep) double *o = attend(c, q, k, v, n);
	add_to(x, linear(m, name[5], o, n), n * c->hidden_size);

	_cleanup_(freep) double *z = norm(m, name[1], x, n);
	_cleanup_(freep) double *gate = linear(m, name[6], z, n);
	_cleanup_(freep) double *up = linear(m, name[7], z, n);
	for (int64_t e = 0; e < n * c->intermediate_size; e++) {
		gate[e] = gate[e] / (1 + exp(-gate[e])) * up[e];
	}
	add_to(x, linear(m, name[8], gate, n), n * c->hidden_size);
}

/* logits[n, vocab] of a sequence; the caller frees it. */
static double *forward(const struct ref_model *m, const int32_t *ids, int64_t n)
{
	const struct model_config *c = &m->config;
	const struct ref_tensor *embed = find(m, "model.embed_tokens.weight");
	const struct ref_tensor *head = c->tie_word_embeddings ? embed : find(m, "lm_head.weight");
	int64_t d = c->hidden_size;
	_cleanup_(freep) double *x = alloc(n * d);
	for (int64_t i = 0; i < n; i++) {
		memcpy(x + i * d, embed->data + ids[i] * d, (size_t)d * sizeof(double));
	}
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		layer(m, i, x, n);
	}
	_cleanup_(freep) double *y = norm(m, "model.norm", x, n);
	double *logits = alloc(n * c->vocab_size);
	product(logits, y, n, head, 1);
	return logits;
}

/* Sum of -log p over a sequence's targets. */
static double sequence_loss(const struct ref_model *m, const int32_t *ids, const int32_t *labels,
	int64_t n)
{
	int64_t vocab = m->config.vocab_size;
	_cleanup_(freep) double *logits = forward(m, ids, n);
	double loss = 0;
	for (int64_t i = 0; i + 1 < n; i++) {
		if (labels[i + 1] >= 0) {
			double sum = 0;
			for (int64_t k = 0; k < vocab; k++) {
				sum += exp(logits[i * vocab + k]);
			}
			loss += log(sum) - logits[i * vocab + labels[i + 1]];
		}
	}
	return loss;
}

void ref_logits(const struct ref_model *m, const int32_t *ids, int64_t n, double *out)
{
	int64_t vocab = m->config.vocab_size;
	_cleanup_(freep) double *logits = forward(m, ids, n);
	memcpy(out, logits + (n - 1) * vocab, (size_t)vocab * sizeof(double));
}

double ref_loss(const struct ref_model *m, const struct samples *s, uint64_t first, uint64_t end)
{
	double sum = 0;
	int64_t targets = 0;
	for (uint64_t i = first; i < end; i++) {
		int64_t at = s->start[i];
		sum += sequence_loss(m, s->ids + at, s->labels + at, s->start[i + 1] - at);
		for (int64_t k = at + 1; k < s->start[i + 1]; k++) {
			targets += s->labels[k] >= 0;
		}
	}
	return sum / (double)targets;
}
