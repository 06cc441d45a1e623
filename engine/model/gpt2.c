/* GPT-2: LayerNorm, learned positions, one module for queries, keys and values, linear layers stored
 * transposed (Conv1D). Radford et al. 2019; transformers' models/gpt2. */
#include <stdio.h>

#include "engine/model/arch.h"
#include "engine/ops_peft.h"

/* Dropout of the base (attn_pdrop and the like) is read by nobody: what is trained here are adapters with
 * a dropout of their own. */
static void gpt2_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	bool scale = true;
	c->rms_norm_eps = 1e-5;
	c->tie_word_embeddings = true;
	config_refuse_common(r);
	config_only_bool(r, "add_cross_attention", false);
	config_size(r, "vocab_size", CONFIG_MAX_VOCAB, &c->vocab_size);
	config_size(r, "n_embd", CONFIG_MAX_WIDTH, &c->hidden_size);
	config_size(r, "n_layer", MODEL_MAX_LAYERS, &c->num_hidden_layers);
	config_size(r, "n_head", CONFIG_MAX_HEADS, &c->num_attention_heads);
	config_size(r, "n_positions", CONFIG_MAX_WIDTH, &c->max_position_embeddings);
	c->intermediate_size = 4 * c->hidden_size;
	config_int(r, "n_inner", 1, CONFIG_MAX_WIDTH, &c->intermediate_size);
	config_settle_heads(r);
	config_activation(r, "activation_function", "gelu_new");
	config_real(r, "layer_norm_epsilon", 1e-30, 0.5, &c->rms_norm_eps);
	config_bool(r, "tie_word_embeddings", &c->tie_word_embeddings);
	config_bool(r, "scale_attn_weights", &scale);
	c->attention_scale = scale ? 0 : 1;
	config_bool(r, "scale_attn_by_inverse_layer_idx", &c->attention_scale_by_layer);
	config_tokens(r, 50256, 50256, -1);
	c->fan_in_fan_out = true;
	c->max_sequence = c->max_position_embeddings;
}

static void block(struct build *b, int64_t layer, int *x, int *delta)
{
	struct graph *g = b->g;
	const struct model_config *c = &g->config;
	char prefix[64], name[96];
	snprintf(prefix, sizeof(prefix), "transformer.h.%lld", (long long)layer);

	g->region = RECOMPUTE_NEVER;
	snprintf(name, sizeof(name), "%s.ln_1", prefix);
	struct normed n = build_norm(b, *x, *delta, name);

	g->region = RECOMPUTE_BLOCK;
	snprintf(name, sizeof(name), "%s.attn", prefix);
	const struct part qkv[] = {{"c_attn", 3 * c->hidden_size}}, out[] = {{"c_proj", c->hidden_size}};
	const struct attention_site site = {
		.layer = layer,
		.qkv = build_linear(b, n.y, name, qkv, 1, true),
		.spec = build_attention_spec(b, layer),
	};
	int o = build_linear(b, build_attention(b, &site), name, out, 1, true);
	o = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_ATTENTION, .residual = n.sum, .input = n.y, .output = o});

	snprintf(name, sizeof(name), "%s.ln_2", prefix);
	n = build_norm(b, n.sum, o, name);
	g->region = RECOMPUTE_MLP;
	snprintf(name, sizeof(name), "%s.mlp", prefix);
	const struct part up[] = {{"c_fc", c->intermediate_size}};
	int h = graph_activation(g, build_linear(b, n.y, name, up, 1, true),
		(enum activation)c->hidden_act);
	g->region = RECOMPUTE_NEVER;
	int down = build_linear(b, h, name, out, 1, true);
	*x = n.sum;
	*delta = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_MLP, .residual = n.sum, .input = n.y, .output = down});
}

static void gpt2_build(struct build *b)
{
	const struct model_config *c = &b->g->config;
	b->norm = NORM_LAYER;
	b->norm_bias = true;
	int x = build_embedding(b, "transformer.wte"), delta = NONE;
	x = build_positions(b, x, "transformer.wpe");
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		block(b, i, &x, &delta);
	}
	struct normed n = build_norm(b, x, delta, "transformer.ln_f");
	build_head(b, n.y, "lm_head", c->tie_word_embeddings ? "transformer.wte" : NULL);
}

/* The causal mask, which older versions stored. */
static bool gpt2_ignores(const char *tensor)
{
	return has_suffix(tensor, ".attn.bias") || has_suffix(tensor, ".attn.masked_bias");
}

static void gpt2_gguf(struct gguf_reader *r)
{
	r->c->hidden_act = ACTIVATION_GELU_NEW;
	r->c->fan_in_fan_out = true;
	r->c->max_sequence = r->c->max_position_embeddings;
}

static const struct gguf_name gpt2_top[] = {
	{"token_embd", "transformer.wte"},
	{"position_embd", "transformer.wpe"},
	{"output_norm", "transformer.ln_f"},
	{"output", "lm_head"},
	{0},
};

static const struct gguf_name gpt2_block[] = {
	{"attn_norm", "ln_1"},
	{"attn_qkv", "attn.c_attn"},
	{"attn_output", "attn.c_proj"},
	{"ffn_norm", "ln_2"},
	{"ffn_up", "mlp.c_fc"},
	{"ffn_down", "mlp.c_proj"},
	{0},
};

static const struct gguf_family gpt2_family = {
	.architecture = "gpt2",
	.top = gpt2_top,
	.block = gpt2_block,
	.read = gpt2_gguf,
	.eps_key = "attention.layer_norm_epsilon",
	.transposed = true,
	.copies_head = true,
	.no_rope = true,
};

const struct arch arch_gpt2 = {
	.model_type = "gpt2",
	.parse = gpt2_parse,
	.build = gpt2_build,
	.linear_modules = (const char *const[]){"c_attn", "c_proj", "c_fc", NULL},
	.blocks = "transformer.h",
	.gguf = &gpt2_family,
	.ignores = gpt2_ignores,
};
