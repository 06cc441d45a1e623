/* Gemma 2 and the text model of Gemma 3 (Gemma Team 2024, 2025): norms before and after each sublayer
 * that multiply by 1 + w, scaled embeddings, a gated MLP with GELU, alternating windows; soft-capping in
 * the former, norms of heads and a second rotary table in the latter. transformers' models/gemma2 and
 * models/gemma3. */
#include <math.h>
#include <stdio.h>

#include "engine/model/arch.h"

/* ---- configuration ------------------------------------------------------------------------- */

/* null is none; a missing field the fallback. */
static void read_softcap(struct config_reader *r, const char *key, double fallback, double *ret)
{
	*ret = json_object_get(r->o, key) ? 0 : fallback;
	config_real(r, key, 1e-3, 1e6, ret);
}

static void parse_common(struct config_reader *r, int64_t max_positions)
{
	struct model_config *c = r->c;
	double scalar = 256;
	c->max_position_embeddings = max_positions;
	c->rms_norm_eps = 1e-6;
	c->num_key_value_heads = 4;
	c->head_dim = 256;
	c->tie_word_embeddings = true;
	config_refuse_common(r);
	config_only_bool(r, "use_bidirectional_attention", false);
	config_sizes(r);
	config_activation(r, "hidden_activation", "gelu_pytorch_tanh");
	config_bool(r, "attention_bias", &c->attention_bias);
	c->attention_out_bias = c->attention_bias;
	config_real(r, "query_pre_attn_scalar", 1e-3, 1e6, &scalar);
	c->attention_scale = 1 / sqrt(scalar);
	c->embedding_scale = sqrt((double)c->hidden_size);
	config_window(r, "sliding_window", 4096);
	config_tokens(r, 2, 1, 0);
}

/* Where the layers are not named, every period-th is a full one. */
static void alternate(struct config_reader *r, int64_t period)
{
	struct model_config *c = r->c;
	if (config_layer_types(r)) {
		return;
	}
	for (int64_t i = 0; i < c->num_hidden_layers && c->sliding_window > 0; i++) {
		c->layer_flags[i] |= (i + 1) % period != 0 ? LAYER_SLIDES : 0;
	}
}

static void gemma2_parse(struct config_reader *r)
{
	const struct rope_rules rope = config_rope_rules(10000);
	parse_common(r, 8192);
	read_softcap(r, "attn_logit_softcapping", 50, &r->c->attn_logit_softcapping);
	read_softcap(r, "final_logit_softcapping", 30, &r->c->final_logit_softcapping);
	alternate(r, 2);
	config_rope(r, &rope);
}

/* rope_parameters by kind of layer (transformers 5); or rope_theta and rope_scaling for the full layers,
 * rope_local_base_freq for the others (before). */
static void gemma3_rope(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(1000000);
	const json_t *parameters = json_object_get(r->o, "rope_parameters");
	c->rope_local_theta = 10000;
	if (!parameters || json_is_null(parameters)) {
		config_rope(r, &rope);
		config_real(r, "rope_local_base_freq", 1, 1e12, &c->rope_local_theta);
		return;
	}
	const json_t *full = json_object_get(parameters, "full_attention");
	const json_t *sliding = json_object_get(parameters, "sliding_attention");
	if (!json_is_object(full) || !json_is_object(sliding)) {
		config_fault(r, "'rope_parameters' must hold an object for full_attention and one for "
			"sliding_attention");
		return;
	}
	c->rope_theta = c->rope_local_theta;
	config_rope_object(r, sliding, "rope_parameters.sliding_attention",
		&(struct rope_rules){.scalings = 0});
	c->rope_local_theta = c->rope_theta;
	c->rope_theta = rope.theta;
	config_rope_object(r, full, "rope_parameters.full_attention", &rope);
}

static void gemma3_parse(struct config_reader *r)
{
	int64_t period = 6;
	double capped = 0;
	parse_common(r, 131072);
	read_softcap(r, "attn_logit_softcapping", 0, &capped);
	if (capped > 0) {
		config_fault(r, "'attn_logit_softcapping' is %g; transformers' gemma3_text does not apply it. "
			"Set it to null", capped);
	}
	read_softcap(r, "final_logit_softcapping", 0, &r->c->final_logit_softcapping);
	config_int(r, "sliding_window_pattern", 1, MODEL_MAX_LAYERS, &period);
	alternate(r, period);
	gemma3_rope(r);
}

/* ---- graph --------------------------------------------------------------------------------- */

static int attention(struct build *b, int64_t layer, const char *prefix, int x, bool head_norms)
{
	const struct model_config *c = &b->g->config;
	int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
	char q_norm[128], k_norm[128];
	const struct part parts[] = {{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}};
	int qkv = build_linear(b, x, prefix, parts, 3, c->attention_bias);
	if (head_norms) {
		snprintf(q_norm, sizeof(q_norm), "%s.q_norm", prefix);
		snprintf(k_norm, sizeof(k_norm), "%s.k_norm", prefix);
		qkv = build_head_norms(b, qkv, q_norm, k_norm);
	}
	const struct attention_site site = {
		.layer = layer, .qkv = build_rope(b, layer, qkv), .spec = build_attention_spec(b, layer)};
	int o = build_attention(b, &site);
	const struct part out[] = {{"o_proj", c->hidden_size}};
	return build_linear(b, o, prefix, out, 1, c->attention_out_bias);
}

/* The norm PREFIX.name of what a sublayer made, before it joins the stream. */
static int after(struct build *b, int x, const char *prefix, const char *name)
{
	char module[128];
	snprintf(module, sizeof(module), "%s.%s", prefix, name);
	return build_norm(b, x, NONE, module).y;
}

static void block(struct build *b, int64_t layer, bool head_norms, int *x, int *delta)
{
	struct graph *g = b->g;
	const struct model_config *c = &g->config;
	char prefix[64], name[96];
	snprintf(prefix, sizeof(prefix), "model.layers.%lld", (long long)layer);

	g->region = RECOMPUTE_NEVER;
	snprintf(name, sizeof(name), "%s.input_layernorm", prefix);
	struct normed n = build_norm(b, *x, *delta, name);

	g->region = RECOMPUTE_BLOCK;
	snprintf(name, sizeof(name), "%s.self_attn", prefix);
	int o = attention(b, layer, name, n.y, head_norms);
	o = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_ATTENTION, .residual = n.sum, .input = n.y,
		.output = after(b, o, prefix, "post_attention_layernorm")});

	snprintf(name, sizeof(name), "%s.pre_feedforward_layernorm", prefix);
	n = build_norm(b, n.sum, o, name);
	g->region = RECOMPUTE_MLP;
	snprintf(name, sizeof(name), "%s.mlp", prefix);
	const struct part gate_up[] = {{"gate_proj", c->intermediate_size},
		{"up_proj", c->intermediate_size}};
	const struct part out[] = {{"down_proj", c->hidden_size}};
	int h = build_gated(b, build_linear(b, n.y, name, gate_up, 2, false));
	/* To have x·Aᵀ of this product again would take the product itself. */
	g->region = RECOMPUTE_NEVER;
	int down = build_linear(b, h, name, out, 1, false);
	*x = n.sum;
	*delta = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_MLP, .residual = n.sum, .input = n.y,
		.output = after(b, down, prefix, "post_feedforward_layernorm")});
}

static void build(struct build *b, bool head_norms)
{
	const struct model_config *c = &b->g->config;
	b->norm = NORM_RMS_ONE_PLUS;
	int x = build_embedding(b, "model.embed_tokens"), delta = NONE;
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		block(b, i, head_norms, &x, &delta);
	}
	struct normed n = build_norm(b, x, delta, "model.norm");
	build_head(b, n.y, "lm_head", c->tie_word_embeddings ? "model.embed_tokens" : NULL);
}

static void gemma2_build(struct build *b)
{
	build(b, false);
}

static void gemma3_build(struct build *b)
{
	build(b, true);
}

/* ---- GGUF ---------------------------------------------------------------------------------- */

/* The format does not tell query_pre_attn_scalar: it is head_dim in all but the largest of each, which
 * llama.cpp knows by their numbers of layers. */
static void gguf_common(struct gguf_reader *r, int64_t largest, int64_t period)
{
	struct model_config *c = r->c;
	double scalar = c->num_hidden_layers == largest ?
		(double)c->hidden_size / (double)c->num_attention_heads : (double)c->head_dim;
	c->hidden_act = ACTIVATION_GELU_NEW;
	c->attention_scale = 1 / sqrt(scalar);
	c->embedding_scale = sqrt((double)c->hidden_size);
	gguf_read_int(r, "attention.sliding_window", 1, INT32_MAX, &c->sliding_window);
	gguf_read_real(r, "final_logit_softcapping", &c->final_logit_softcapping);
	for (int64_t i = 0; i < c->num_hidden_layers && c->sliding_window > 0; i++) {
		c->layer_flags[i] |= (i + 1) % period != 0 ? LAYER_SLIDES : 0;
	}
}

static void gemma2_gguf(struct gguf_reader *r)
{
	gguf_read_real(r, "attn_logit_softcapping", &r->c->attn_logit_softcapping);
	gguf_common(r, 46, 2);
}

static void gemma3_gguf(struct gguf_reader *r)
{
	r->c->rope_local_theta = 10000;
	gguf_read_real(r, "rope.freq_base_swa", &r->c->rope_local_theta);
	gguf_common(r, 62, 6);
}

static const struct gguf_name gemma_block[] = {
	GGUF_USUAL_ATTENTION,
	{"attn_q_norm", "self_attn.q_norm"},
	{"attn_k_norm", "self_attn.k_norm"},
	{"post_attention_norm", "post_attention_layernorm"},
	{"ffn_norm", "pre_feedforward_layernorm"},
	{"post_ffw_norm", "post_feedforward_layernorm"},
	GGUF_USUAL_MLP,
	{0},
};
static const char *const gemma_keys[] = {"attention.sliding_window", "attn_logit_softcapping",
	"final_logit_softcapping", NULL};
static const char *const gemma3_keys[] = {"attention.sliding_window", "final_logit_softcapping",
	"rope.freq_base_swa", NULL};

static const struct gguf_family gemma2_family = {
	.architecture = "gemma2",
	.top = gguf_usual_top,
	.block = gemma_block,
	.keys = gemma_keys,
	.read = gemma2_gguf,
	.eps_key = "attention.layer_norm_rms_epsilon",
	.one_plus = true,
};

static const struct gguf_family gemma3_family = {
	.architecture = "gemma3",
	.top = gguf_usual_top,
	.block = gemma_block,
	.keys = gemma3_keys,
	.read = gemma3_gguf,
	.eps_key = "attention.layer_norm_rms_epsilon",
	.one_plus = true,
};

const struct arch arch_gemma2 = {
	.model_type = "gemma2",
	.parse = gemma2_parse,
	.build = gemma2_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
	.gguf = &gemma2_family,
};

const struct arch arch_gemma3 = {
	.model_type = "gemma3_text",
	.parse = gemma3_parse,
	.build = gemma3_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
	.gguf = &gemma3_family,
};
