/* GPT-NeoX and Pythia: LayerNorm, attention and MLP side by side or one after the other, part of each head
 * rotates, queries, keys and values head by head in one module. Black et al. 2022; transformers'
 * models/gpt_neox. */
#include <stdio.h>

#include "engine/model/arch.h"
#include "engine/ops_peft.h"

static void gpt_neox_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = {
		.theta = 10000,
		.theta_key = "rotary_emb_base",
		.partial_key = "rotary_pct",
		.partial = 0.25,
		.scalings = config_rope_rules(0).scalings,
	};
	c->max_position_embeddings = 2048;
	c->rms_norm_eps = 1e-5;
	c->attention_bias = c->parallel_residual = true;
	config_refuse_common(r);
	config_only_real(r, "hidden_dropout", 0);
	config_sizes(r);
	c->num_key_value_heads = c->head_dim = 0;
	config_settle_heads(r);
	config_real(r, "layer_norm_eps", 1e-30, 0.5, &c->rms_norm_eps);
	config_activation(r, "hidden_act", "gelu");
	config_bool(r, "attention_bias", &c->attention_bias);
	c->attention_out_bias = c->attention_bias;
	config_bool(r, "use_parallel_residual", &c->parallel_residual);
	config_tokens(r, 0, 2, -1);
	config_rope(r, &rope);
}

static int attention(struct build *b, int64_t layer, const char *prefix, int x)
{
	const struct model_config *c = &b->g->config;
	const struct part in[] = {{"query_key_value", 3 * c->hidden_size}};
	const struct part out[] = {{"dense", c->hidden_size}};
	int qkv = build_linear(b, x, prefix, in, 1, c->attention_bias);
	qkv = graph_split_heads(b->g, qkv, c->num_attention_heads, 3);
	const struct attention_site site = {
		.layer = layer, .qkv = build_rope(b, layer, qkv), .spec = build_attention_spec(b, layer)};
	return build_linear(b, build_attention(b, &site), prefix, out, 1, c->attention_out_bias);
}

static int mlp(struct build *b, const char *prefix, int x)
{
	const struct model_config *c = &b->g->config;
	const struct part up[] = {{"dense_h_to_4h", c->intermediate_size}};
	const struct part out[] = {{"dense_4h_to_h", c->hidden_size}};
	b->g->region = RECOMPUTE_MLP;
	int h = graph_activation(b->g, build_linear(b, x, prefix, up, 1, true),
		(enum activation)c->hidden_act);
	b->g->region = RECOMPUTE_NEVER;
	return build_linear(b, h, prefix, out, 1, true);
}

static void block(struct build *b, int64_t layer, int *x, int *delta)
{
	struct graph *g = b->g;
	bool parallel = g->config.parallel_residual;
	char prefix[64], name[96];
	snprintf(prefix, sizeof(prefix), "gpt_neox.layers.%lld", (long long)layer);

	g->region = RECOMPUTE_NEVER;
	snprintf(name, sizeof(name), "%s.input_layernorm", prefix);
	struct normed n = build_norm(b, *x, *delta, name);

	g->region = RECOMPUTE_BLOCK;
	snprintf(name, sizeof(name), "%s.attention", prefix);
	int o = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_ATTENTION, .residual = n.sum, .input = n.y,
		.output = attention(b, layer, name, n.y)});

	snprintf(name, sizeof(name), "%s.post_attention_layernorm", prefix);
	n = build_norm(b, n.sum, parallel ? NONE : o, name);
	snprintf(name, sizeof(name), "%s.mlp", prefix);
	int down = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_MLP, .residual = n.sum, .input = n.y,
		.output = mlp(b, name, n.y)});
	*x = n.sum;
	*delta = parallel ? graph_add_scaled(g, down, o, 1) : down;
}

static void gpt_neox_build(struct build *b)
{
	const struct model_config *c = &b->g->config;
	b->norm = NORM_LAYER;
	b->norm_bias = true;
	int x = build_embedding(b, "gpt_neox.embed_in"), delta = NONE;
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		block(b, i, &x, &delta);
	}
	struct normed n = build_norm(b, x, delta, "gpt_neox.final_layer_norm");
	build_head(b, n.y, "lm_head", c->tie_word_embeddings ? "gpt_neox.embed_in" : NULL);
}

/* The causal mask, which older versions stored. */
static bool gpt_neox_ignores(const char *tensor)
{
	return has_suffix(tensor, ".attention.bias") || has_suffix(tensor, ".attention.masked_bias");
}

const struct arch arch_gpt_neox = {
	.model_type = "gpt_neox",
	.parse = gpt_neox_parse,
	.build = gpt_neox_build,
	.linear_modules = (const char *const[]){"query_key_value", "dense", "dense_h_to_4h",
		"dense_4h_to_h", NULL},
	.blocks = "gpt_neox.layers",
	.head_alias = "embed_out",
	.ignores = gpt_neox_ignores,
};
