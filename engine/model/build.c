#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/model/arch.h"
#include "engine/model/model-internal.h"
#include "engine/ops_peft.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct graph *, graph_free);

static const struct arch *const archs[] = {
	&arch_gemma2,
	&arch_gemma3,
	&arch_gpt2,
	&arch_gpt_neox,
	&arch_llama,
	&arch_mistral,
	&arch_phi3,
	&arch_qwen2,
	&arch_qwen3,
	&arch_smollm3,
	&arch_t5,
	&arch_mt5,
};

const struct arch *arch_by_type(const char *model_type)
{
	for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
		if (strcmp(archs[i]->model_type, model_type) == 0) {
			return archs[i];
		}
	}
	return NULL;
}

const struct arch *arch_by_gguf(const char *architecture)
{
	for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
		if (archs[i]->gguf && strcmp(archs[i]->gguf->architecture, architecture) == 0) {
			return archs[i];
		}
	}
	return NULL;
}

struct architectures gguf_architectures(void)
{
	struct architectures all = {""};
	for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
		size_t n = strlen(all.s);
		if (archs[i]->gguf) {
			snprintf(all.s + n, sizeof(all.s) - n, "%s%s", n > 0 ? ", " : "",
				archs[i]->gguf->architecture);
		}
	}
	return all;
}

struct architectures model_architectures(void)
{
	struct architectures all = {""};
	for (size_t i = 0; i < ARRAY_LEN(archs); i++) {
		size_t n = strlen(all.s);
		snprintf(all.s + n, sizeof(all.s) - n, "%s%s", i > 0 ? ", " : "", archs[i]->model_type);
	}
	return all;
}

int arch_find(const struct arch **ret, const struct model_config *c, struct errmsg *err)
{
	const struct arch *arch = arch_by_type(c->model_type);
	if (!arch) {
		return errmsg_set(err, STATUS_INVALID, "model_type: \"%s\" is not supported; there are: %s",
			c->model_type, model_architectures().s);
	}
	*ret = arch;
	return 0;
}

const char *const *model_linear_modules(const struct model_config *c)
{
	static const char *const none[] = {NULL};
	const struct arch *arch;
	return arch_find(&arch, c, NULL) == 0 ? arch->linear_modules : none;
}

const char *model_blocks(const struct model_config *c)
{
	const struct arch *arch = arch_by_type(c->model_type);
	return arch && arch->blocks ? arch->blocks : "model.layers";
}

int model_graph(struct graph **ret, const struct graph_request *q, struct peft *peft,
	struct errmsg *err)
{
	const struct arch *arch;
	int r = arch_find(&arch, q->config, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(graph_freep) struct graph *g = NULL;
	r = graph_new(&g, q->config, q->purpose, q->backend, q->dtype, q->tokens, q->max_seqs,
		q->trainable);
	if (r < 0) {
		return r;
	}
	g->context = q->context;
	if (peft && peft->method->virtual_tokens) {
		g->virtual_tokens = g->position_offset = peft->method->virtual_tokens(peft);
	}
	if (peft && peft->method->position_offset) {
		g->position_offset = peft->method->position_offset(peft);
	}
	if (peft && peft->method->begin) {
		peft->method->begin(peft, g);
	}
	struct build b = {.g = g, .peft = peft};
	arch->build(&b);
	g->n_forward = g->n_nodes;
	if (g->error) {
		return g->error;
	}
	*ret = steal_ptr(g);
	return 0;
}

/* Adds a slot and lets the method say what of it is trained. */
static int add_weight(struct build *b, const struct weight *w)
{
	int slot = graph_weight(b->g, w);
	if (b->peft && b->peft->method->weight) {
		b->peft->method->weight(b->peft, b->g, slot);
	}
	return slot;
}

static struct weight table_of(int64_t rows, int64_t cols, const char *module)
{
	struct weight w = {.kind = WEIGHT_TABLE, .n_parts = 1, .rows = rows, .cols = cols};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = rows;
	return w;
}

int build_token_table(struct build *b, const char *module)
{
	struct weight w = table_of(b->g->config.vocab_size, b->g->config.hidden_size, module);
	w.tokens = true;
	return add_weight(b, &w);
}

int build_table(struct build *b, const char *module, int64_t rows, int64_t cols)
{
	const struct weight w = table_of(rows, cols, module);
	return add_weight(b, &w);
}

int build_embedding(struct build *b, const char *module)
{
	int slot = build_token_table(b, module);
	return build_embedded(b, slot, graph_embedding(b->g, slot));
}

int build_embedded(struct build *b, int slot, int x)
{
	struct graph *g = b->g;
	if (b->peft && b->peft->method->embedding) {
		x = b->peft->method->embedding(b->peft, g, slot, x);
	}
	if (g->config.embedding_scale != 0) {
		x = graph_scale_by(g, x, (float)g->config.embedding_scale);
	}
	bool hooked = b->peft && b->peft->method->inputs;
	return hooked ? b->peft->method->inputs(b->peft, g, slot, x) : x;
}

int build_positions(struct build *b, int x, const char *module)
{
	const struct model_config *c = &b->g->config;
	int slot = build_table(b, module, c->max_position_embeddings, c->hidden_size);
	return graph_add_scaled(b->g, x, graph_position_embedding(b->g, slot), 1);
}

static int norm_slot(struct build *b, const char *module, int64_t cols)
{
	struct weight w = {
		.kind = WEIGHT_VECTOR,
		.n_parts = 1,
		.rows = 1,
		.cols = cols,
		.bias = b->norm_bias,
	};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = 1;
	return add_weight(b, &w);
}

struct normed build_norm(struct build *b, int x, int delta, const char *module)
{
	struct graph *g = b->g;
	int slot = norm_slot(b, module, g->config.hidden_size);
	struct normed n = graph_norm(g, x, delta, slot, b->norm);
	if (b->peft && b->peft->method->norm) {
		n.y = b->peft->method->norm(b->peft, g, slot, n.y);
	}
	return n;
}

int build_head_norms(struct build *b, int qkv, const char *q_module, const char *k_module)
{
	const struct model_config *c = &b->g->config;
	int q = norm_slot(b, q_module, c->head_dim), k = norm_slot(b, k_module, c->head_dim);
	return graph_head_norm(b->g, qkv, c->num_attention_heads, q, c->num_key_value_heads, k, b->norm);
}

int build_linear(struct build *b, int x, const char *prefix, const struct part *parts, int n_parts,
	bool bias)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_LINEAR,
		.n_parts = n_parts,
		.cols = g->tensors[x].cols,
		.bias = bias,
		.adaptable = true,
		.transposed = g->config.fan_in_fan_out,
	};
	for (int i = 0; i < n_parts; i++) {
		snprintf(w.parts[i].module, sizeof(w.parts[i].module), "%s.%s", prefix, parts[i].name);
		w.parts[i].rows = parts[i].rows;
		w.rows += parts[i].rows;
	}
	struct linear_site site = {.weight = add_weight(b, &w), .x = x};
	if (b->peft && b->peft->method->linear_input) {
		site.x = b->peft->method->linear_input(b->peft, g, site.weight, x);
	}
	site.y = graph_linear(g, site.x, site.weight);
	bool hooked = b->peft && b->peft->method->linear;
	return hooked ? b->peft->method->linear(b->peft, g, &site) : site.y;
}

int build_rope(struct build *b, int64_t layer, int qkv)
{
	const struct model_config *c = &b->g->config;
	int flags = c->layer_flags[layer];
	int table = flags & LAYER_SLIDES && c->rope_local_theta > 0 ? 1 : 0;
	return flags & LAYER_NO_ROPE ? qkv :
		graph_rope(b->g, qkv, c->num_attention_heads + c->num_key_value_heads, table);
}

int build_gated(struct build *b, int gate_up)
{
	return graph_gated(b->g, gate_up, (enum activation)b->g->config.hidden_act);
}

struct attention_spec build_attention_spec(const struct build *b, int64_t layer)
{
	const struct model_config *c = &b->g->config;
	struct attention_spec spec = attention_spec_of(c);
	if (c->attention_scale > 0) {
		spec.scale = (float)c->attention_scale;
	}
	if (c->attention_scale_by_layer) {
		spec.scale /= (float)(layer + 1);
	}
	spec.softcap = (float)c->attn_logit_softcapping;
	spec.window = c->layer_flags[layer] & LAYER_SLIDES ? c->sliding_window : 0;
	return spec;
}

int build_attention(struct build *b, const struct attention_site *site)
{
	bool hooked = b->peft && b->peft->method->attention;
	return hooked ? b->peft->method->attention(b->peft, b->g, site) :
		graph_attention(b->g, site->qkv, &site->spec);
}

int build_sublayer(struct build *b, const struct sublayer_site *site)
{
	bool hooked = b->peft && b->peft->method->sublayer;
	return hooked ? b->peft->method->sublayer(b->peft, b->g, site) : site->output;
}

void build_head(struct build *b, int x, const char *module, const char *stored_as)
{
	struct graph *g = b->g;
	struct weight w = {
		.kind = WEIGHT_LINEAR,
		.n_parts = 1,
		.rows = g->config.vocab_size,
		.cols = g->config.hidden_size,
		.head = true,
		.stored_as = stored_as,
	};
	snprintf(w.parts[0].module, sizeof(w.parts[0].module), "%s", module);
	w.parts[0].rows = w.rows;
	int slot = add_weight(b, &w);
	struct low_rank l = {.a = NONE};
	bool adapted = b->peft && b->peft->method->head &&
		b->peft->method->head(b->peft, g, slot, &l);
	graph_head(g, x, slot, adapted ? &l : NULL);
}
