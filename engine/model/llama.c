/* Llama: RMSNorm before each sublayer, rotary positions, grouped-query attention, SwiGLU.
 * Touvron et al. 2023; names and biases as in transformers' modeling_llama. */
#include <stdio.h>

#include "engine/model/arch.h"
#include "util/util.h"

static void block(struct build *b, int64_t layer, int *x, int *delta)
{
	struct graph *g = b->g;
	const struct model_config *c = &g->config;
	int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
	char prefix[64], name[96];
	snprintf(prefix, sizeof(prefix), "model.layers.%lld", (long long)layer);

	/* The block's input is what a recomputed block starts from. */
	g->region = RECOMPUTE_NEVER;
	snprintf(name, sizeof(name), "%s.input_layernorm", prefix);
	struct normed n = build_norm(b, *x, *delta, name);

	g->region = RECOMPUTE_BLOCK;
	snprintf(name, sizeof(name), "%s.self_attn", prefix);
	const struct part qkv_parts[] = {{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}};
	int qkv = build_linear(b, n.y, name, qkv_parts, 3, c->attention_bias);
	qkv = graph_rope(g, qkv, c->num_attention_heads + c->num_key_value_heads);
	int o = build_attention(b, layer, qkv);
	const struct part o_part[] = {{"o_proj", c->hidden_size}};
	o = build_linear(b, o, name, o_part, 1, c->attention_bias);
	o = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_ATTENTION, .residual = n.sum, .input = n.y, .output = o});

	snprintf(name, sizeof(name), "%s.post_attention_layernorm", prefix);
	n = build_norm(b, n.sum, o, name);

	g->region = RECOMPUTE_MLP;
	snprintf(name, sizeof(name), "%s.mlp", prefix);
	int64_t inner = c->intermediate_size;
	const struct part gate_up_parts[] = {{"gate_proj", inner}, {"up_proj", inner}};
	int h = graph_swiglu(g, build_linear(b, n.y, name, gate_up_parts, 2, c->mlp_bias));

	/* To have x·Aᵀ of this product again would take the product itself. */
	g->region = RECOMPUTE_NEVER;
	const struct part down_part[] = {{"down_proj", c->hidden_size}};
	int down = build_linear(b, h, name, down_part, 1, c->mlp_bias);
	*x = n.sum;
	*delta = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_MLP, .residual = n.sum, .input = n.y, .output = down});
}

static void llama_build(struct build *b)
{
	const struct model_config *c = &b->g->config;
	int x = build_embedding(b, "model.embed_tokens"), delta = NONE;
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		block(b, i, &x, &delta);
	}
	struct normed n = build_norm(b, x, delta, "model.norm");
	build_head(b, n.y, "lm_head", c->tie_word_embeddings ? "model.embed_tokens" : NULL);
}

const struct arch arch_llama = {
	.model_type = "llama",
	.build = llama_build,
	.linear_modules = (const char *const[]){"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
		"up_proj", "down_proj", NULL},
};
