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
	struct bottleneck_config bottleneck;
	bool is_prefix;
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

static struct ref_model *base_new(const struct fixture *f)
{
	static const char *const parts[] = {"input_layernorm", "post_attention_layernorm",
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
		"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
	struct ref_model *m = calloc(1, sizeof(*m));
	assert_non_null(m);
	m->config = *model_files_config(f->files);
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
	return m;
}

struct ref_model *ref_model_new(const struct fixture *f)
{
	struct errmsg err = {0};
	struct ref_model *m = base_new(f);
	m->scale = f->adapter.config.lora.lora_alpha / (double)f->adapter.config.lora.r;
	for (size_t i = 0; i < f->adapter.tensors.n_tensors; i++) {
		const struct st_tensor *t = &f->adapter.tensors.tensors[i];
		_cleanup_(freep) float *values =
			malloc((size_t)(t->dims[0] * t->dims[1]) * sizeof(float));
		OK(st_tensor_read_f32(t, values, &err));
		add_tensor(m, t->name, t->dims[0], t->dims[1], values);
	}
	return m;
}

static struct ref_tensor *find_exact(struct ref_model *m, const char *name)
{
	for (size_t i = 0; i < m->n; i++) {
		if (strcmp(m->tensors[i].name, name) == 0) {
			return &m->tensors[i];
		}
	}
	return NULL;
}

struct ref_model *ref_model_of(const struct fixture *f, struct train_session *s)
{
	struct ref_model *m = base_new(f);
	const struct graph *g = s->job.g;
	_cleanup_(freep) float *flat = malloc(g->param_elements * sizeof(float));
	assert_non_null(flat);
	backend_download(f->backend, flat, s->arena + s->job.layout.masters,
		g->param_elements * sizeof(float));
	m->bottleneck = f->method.bottleneck;
	m->is_prefix = strcmp(f->method.method, "prefix_tuning") == 0;
	m->scale = f->method.lora.r > 0 ? f->method.lora.lora_alpha / (double)f->method.lora.r : 0;
	for (size_t i = 0; i < peft_n_tensors(s->peft, g); i++) {
		struct peft_tensor t;
		peft_tensor(s->peft, g, i, &t);
		struct ref_tensor *old = find_exact(m, t.name);
		if (old) { /* a parameter of the base */
			free(old->data);
			*old = m->tensors[--m->n];
		}
		add_tensor(m, t.name, t.dims[0], t.n_dims > 1 ? t.dims[1] : 1, flat + t.offset);
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

/* x[n, d] ∘ l in every row, into memory of its own. */
static double *times(const double *x, const double *l, int64_t n, int64_t d)
{
	double *y = alloc(n * d);
	for (int64_t i = 0; i < n * d; i++) {
		y[i] = x[i] * l[i % d];
	}
	return y;
}

static double *linear(const struct ref_model *m, const char *module, const double *x, int64_t n)
{
	const struct ref_tensor *ia3 = find(m, "base_model.model.%s.ia3_l", module);
	const struct ref_tensor *beft = find(m, "base_model.model.%s.beft_bias", module);
	const struct ref_tensor *w = find(m, "%s.weight", module), *bias = find(m, "%s.bias", module);
	const struct ref_tensor *a = find(m, "base_model.model.%s.lora_A.weight", module);
	const struct ref_tensor *b = find(m, "base_model.model.%s.lora_B.weight", module);
	double *y = alloc(n * w->rows);
	bool of_input = ia3 && ia3->rows == 1;
	_cleanup_(freep) double *scaled = of_input ? times(x, ia3->data, n, w->cols) : NULL;
	product(y, of_input ? scaled : x, n, w, 1);
	for (int64_t i = 0; bias && i < n * w->rows; i++) {
		y[i] += bias->data[i % w->rows];
	}
	if (a) {
		double *h = alloc(n * a->rows);
		product(h, x, n, a, 1);
		product(y, h, n, b, m->scale);
		free(h);
	}
	for (int64_t i = 0; beft && i < n * w->rows; i++) {
		y[i] += beft->data[i % w->rows];
	}
	for (int64_t i = 0; ia3 && !of_input && i < n * w->rows; i++) {
		y[i] *= ia3->data[i % w->rows];
	}
	return y;
}

static double *norm(const struct ref_model *m, const char *module, const double *x, int64_t n)
{
	const struct ref_tensor *own = find(m, "base_model.model.%s.ln_tuning_layers.weight", module);
	const struct ref_tensor *w = own ? own : find(m, "%s.weight", module);
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

static void rotate(const struct model_config *c, double *x, int64_t n, int64_t heads, int64_t from)
{
	int64_t d = c->head_dim, half = d / 2;
	for (int64_t i = 0; i < n * heads; i++) {
		for (int64_t k = 0; k < half; k++) {
			double angle = (double)(from + i / heads) * inverse_frequency(c, k);
			double *p = x + i * d, a = p[k], b = p[k + half];
			p[k] = a * cos(angle) - b * sin(angle);
			p[k + half] = b * cos(angle) + a * sin(angle);
		}
	}
}

/* The first `before` rows of k and v are a prefix. */
static double *attend(const struct model_config *c, const double *q, const double *k,
	const double *v, int64_t n, int64_t before)
{
	int64_t d = c->head_dim, heads = c->num_attention_heads, kv = c->num_key_value_heads;
	double *o = alloc(n * heads * d), *p = alloc(before + n);
	for (int64_t i = 0; i < n; i++) {
		for (int64_t h = 0; h < heads; h++) {
			int64_t g = h / (heads / kv);
			double sum = 0;
			for (int64_t j = 0; j <= before + i; j++) {
				double s = 0;
				for (int64_t e = 0; e < d; e++) {
					s += q[(i * heads + h) * d + e] * k[(j * kv + g) * d + e];
				}
				p[j] = exp(s / sqrt((double)d));
				sum += p[j];
			}
			for (int64_t j = 0; j <= before + i; j++) {
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

/* A linear layer by its keys, where there is no module of the base. */
static double *dense(const struct ref_model *m, const char *key, const double *x, int64_t n)
{
	const struct ref_tensor *w = find(m, "%s.weight", key), *b = find(m, "%s.bias", key);
	double *y = alloc(n * w->rows);
	product(y, x, n, w, 1);
	for (int64_t i = 0; i < n * w->rows; i++) {
		y[i] += b->data[i % w->rows];
	}
	return y;
}

static double activation(double x, enum activation kind)
{
	switch (kind) {
	case ACTIVATION_RELU:
		return fmax(x, 0);
	case ACTIVATION_GELU:
		return 0.5 * x * (1 + erf(x / sqrt(2)));
	case ACTIVATION_GELU_NEW:
		return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
	case ACTIVATION_SILU:
		return x / (1 + exp(-x));
	case ACTIVATION_TANH:
		return tanh(x);
	case ACTIVATION_SIGMOID:
		return 1 / (1 + exp(-x));
	case ACTIVATION_LEAKY_RELU:
		return x > 0 ? x : 0.01 * x;
	}
	return NAN;
}

/* y[n, d], the output of a sublayer, with its adapter's added; r is the residual stream. */
static double *adapt(const struct ref_model *m, int64_t i, const char *place, const double *r, double *y,
	int64_t n)
{
	const struct bottleneck_config *b = &m->bottleneck;
	int64_t d = m->config.hidden_size;
	char key[128];
	snprintf(key, sizeof(key), "model.layers.%lld.%s.adapters.default.adapter_down.0", (long long)i,
		place);
	const struct ref_tensor *down = find(m, "%s.weight", key);
	if (!down) {
		return y;
	}
	_cleanup_(freep) double *z = alloc(n * d);
	for (int64_t k = 0; k < n * d; k++) {
		z[k] = b->is_parallel ? r[k] : y[k] + (b->original_ln_before ? r[k] : 0);
	}
	_cleanup_(freep) double *h = dense(m, key, z, n);
	for (int64_t k = 0; k < n * down->rows; k++) {
		h[k] = activation(h[k], b->non_linearity);
	}
	snprintf(key, sizeof(key), "model.layers.%lld.%s.adapters.default.adapter_up", (long long)i,
		place);
	_cleanup_(freep) double *up = dense(m, key, h, n);
	for (int64_t k = 0; k < n * d; k++) {
		y[k] += b->scaling * up[k];
	}
	return y;
}

/* One direction of a layer of LSTM into columns [at, at + d) of h[n, 2d]. */
static void lstm(const struct ref_model *m, int64_t l, bool reverse, const double *x, int64_t n,
	double *h, int64_t at)
{
	const char *way = reverse ? "_reverse" : "";
	const struct ref_tensor *w[4];
	static const char *const names[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"};
	for (int i = 0; i < 4; i++) {
		w[i] = find(m, "prompt_encoder.lstm_head.%s_l%lld%s", names[i], (long long)l, way);
	}
	int64_t d = w[1]->cols;
	_cleanup_(freep) double *a = alloc(n * 4 * d), *c = alloc(d), *last = alloc(d);
	product(a, x, n, w[0], 1);
	for (int64_t k = 0; k < n; k++) {
		int64_t t = reverse ? n - 1 - k : k;
		product(a + t * 4 * d, last, 1, w[1], 1);
		for (int64_t j = 0; j < 4 * d; j++) {
			a[t * 4 * d + j] += w[2]->data[j] + w[3]->data[j];
		}
		for (int64_t j = 0; j < d; j++) {
			const double *g = a + t * 4 * d + j;
			c[j] = c[j] / (1 + exp(-g[d])) + tanh(g[2 * d]) / (1 + exp(-g[0]));
			last[j] = tanh(c[j]) / (1 + exp(-g[3 * d]));
			h[t * 2 * d + at + j] = last[j];
		}
	}
}

/* The soft prompt or prefix, from what is trained: itself, or its encoder. NULL: there is none. */
static double *prompt(const struct ref_model *m, int64_t *ret_n)
{
	const struct ref_tensor *plain = find(m, "prompt_embeddings");
	const struct ref_tensor *e = find(m, "prompt_encoder.embedding.weight");
	const struct ref_tensor *t = plain ? plain : e;
	*ret_n = t ? t->rows : 0;
	double *x = t ? alloc(t->rows * t->cols) : NULL;
	if (!t) {
		return NULL;
	}
	memcpy(x, t->data, (size_t)(t->rows * t->cols) * sizeof(double));
	for (int64_t l = 0; e && find(m, "prompt_encoder.lstm_head.weight_hh_l%lld", (long long)l); l++) {
		int64_t d = find(m, "prompt_encoder.lstm_head.weight_hh_l%lld", (long long)l)->cols;
		double *h = alloc(e->rows * 2 * d);
		lstm(m, l, false, x, e->rows, h, 0);
		lstm(m, l, true, x, e->rows, h, d);
		free(x);
		x = h;
	}
	const char *head = m->is_prefix ? "transform" : "mlp_head";
	for (int i = 0; e && find(m, "prompt_encoder.%s.%d.weight", head, i); i += 2) {
		char key[64];
		snprintf(key, sizeof(key), "prompt_encoder.%s.%d", head, i);
		double *y = dense(m, key, x, e->rows);
		int64_t n = e->rows * find(m, "%s.weight", key)->rows;
		bool last = !find(m, "prompt_encoder.%s.%d.weight", head, i + 2);
		for (int64_t k = 0; k < n && !last; k++) {
			y[k] = m->is_prefix ? tanh(y[k]) : fmax(y[k], 0);
		}
		free(x);
		x = y;
	}
	return x;
}

/* own[n, kv] after the layer's keys (which 0) or values (1) of a prefix; frees own. */
static double *after_prefix(const struct model_config *c, const double *prefix, int64_t before,
	int64_t i, int64_t which, double *own, int64_t n)
{
	int64_t kv = c->num_key_value_heads * c->head_dim;
	double *x = alloc((before + n) * kv);
	for (int64_t k = 0; k < before; k++) {
		memcpy(x + k * kv, prefix + (k * c->num_hidden_layers * 2 + 2 * i + which) * kv,
			(size_t)kv * sizeof(double));
	}
	memcpy(x + before * kv, own, (size_t)(n * kv) * sizeof(double));
	free(own);
	return x;
}

static void layer(const struct ref_model *m, int64_t i, double *x, int64_t n, const double *prefix,
	int64_t before)
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
	rotate(c, q, n, c->num_attention_heads, before);
	rotate(c, k, n, c->num_key_value_heads, before);
	k = after_prefix(c, prefix, before, i, 0, k, n);
	v = after_prefix(c, prefix, before, i, 1, v, n);
	_cleanup_(freep) double *o = attend(c, q, k, v, n, before);
	double *out = linear(m, name[5], o, n);
	add_to(x, adapt(m, i, "attention_adapters", x, out, n), n * c->hidden_size);

	_cleanup_(freep) double *z = norm(m, name[1], x, n);
	_cleanup_(freep) double *gate = linear(m, name[6], z, n);
	_cleanup_(freep) double *up = linear(m, name[7], z, n);
	for (int64_t e = 0; e < n * c->intermediate_size; e++) {
		gate[e] = gate[e] / (1 + exp(-gate[e])) * up[e];
	}
	out = linear(m, name[8], gate, n);
	add_to(x, adapt(m, i, "output_adapters", x, out, n), n * c->hidden_size);
}

/* logits[*ret_first + n, vocab] of a sequence after its virtual tokens; the caller frees it. */
static double *forward(const struct ref_model *m, const int32_t *ids, int64_t n, int64_t *ret_first)
{
	const struct model_config *c = &m->config;
	const struct ref_tensor *embed = find(m, "model.embed_tokens.weight");
	const struct ref_tensor *head = c->tie_word_embeddings ? embed : find(m, "lm_head.weight");
	int64_t d = c->hidden_size, n_soft;
	_cleanup_(freep) double *soft = prompt(m, &n_soft);
	int64_t before = m->is_prefix ? n_soft : 0, first = n_soft - before;
	_cleanup_(freep) double *x = alloc((first + n) * d);
	if (first > 0) {
		memcpy(x, soft, (size_t)(first * d) * sizeof(double));
	}
	for (int64_t i = 0; i < n; i++) {
		memcpy(x + (first + i) * d, embed->data + ids[i] * d, (size_t)d * sizeof(double));
	}
	n += first;
	*ret_first = first;
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		layer(m, i, x, n, soft, before);
	}
	_cleanup_(freep) double *y = norm(m, "model.norm", x, n);
	double *logits = alloc(n * c->vocab_size);
	product(logits, y, n, head, 1);
	return logits;
}

/* Sum of -log p over a sequence's targets; the last virtual token predicts the first label. */
static double sequence_loss(const struct ref_model *m, const int32_t *ids, const int32_t *labels,
	int64_t n, int64_t *targets)
{
	int64_t vocab = m->config.vocab_size, first;
	_cleanup_(freep) double *logits = forward(m, ids, n, &first);
	double loss = 0;
	for (int64_t i = first > 0 ? 0 : 1; i < n; i++) {
		if (labels[i] >= 0) {
			const double *row = logits + (first + i - 1) * vocab;
			double sum = 0;
			for (int64_t k = 0; k < vocab; k++) {
				sum += exp(row[k]);
			}
			loss += log(sum) - row[labels[i]];
			++*targets;
		}
	}
	return loss;
}

void ref_logits(const struct ref_model *m, const int32_t *ids, int64_t n, double *out)
{
	int64_t vocab = m->config.vocab_size, first;
	_cleanup_(freep) double *logits = forward(m, ids, n, &first);
	memcpy(out, logits + (first + n - 1) * vocab, (size_t)vocab * sizeof(double));
}

double ref_loss(const struct ref_model *m, const struct samples *s, uint64_t first, uint64_t end)
{
	double sum = 0;
	int64_t targets = 0;
	for (uint64_t i = first; i < end; i++) {
		int64_t at = s->start[i];
		sum += sequence_loss(m, s->ids + at, s->labels + at, s->start[i + 1] - at, &targets);
	}
	return sum / (double)targets;
}
