/* The decoder that Llama made usual (Touvron et al. 2023); names as in transformers' modeling_llama. */
#include <stdio.h>

#include "engine/model/arch.h"
#include "util/util.h"

const char *const decoder_linear_modules[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
	"up_proj", "down_proj", NULL};
const char *const decoder_fused_modules[] = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj", NULL};

static int attention(struct build *b, const struct decoder_kind *d, int64_t layer, const char *prefix,
	int x)
{
	const struct model_config *c = &b->g->config;
	int64_t q = c->num_attention_heads * c->head_dim, kv = c->num_key_value_heads * c->head_dim;
	const struct part parts[] = {{"q_proj", q}, {"k_proj", kv}, {"v_proj", kv}};
	const struct part fused[] = {{"qkv_proj", q + 2 * kv}};
	int qkv = d->fused ? build_linear(b, x, prefix, fused, 1, c->attention_bias) :
		build_linear(b, x, prefix, parts, 3, c->attention_bias);
	if (d->head_norms) {
		char q_norm[128], k_norm[128];
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

static int mlp(struct build *b, const struct decoder_kind *d, const char *prefix, int x)
{
	const struct model_config *c = &b->g->config;
	int64_t inner = c->intermediate_size;
	const struct part parts[] = {{"gate_proj", inner}, {"up_proj", inner}};
	const struct part fused[] = {{"gate_up_proj", 2 * inner}};
	int h = d->fused ? build_linear(b, x, prefix, fused, 1, c->mlp_bias) :
		build_linear(b, x, prefix, parts, 2, c->mlp_bias);
	h = build_gated(b, h);

	/* To have x·Aᵀ of this product again would take the product itself. */
	b->g->region = RECOMPUTE_NEVER;
	const struct part out[] = {{"down_proj", c->hidden_size}};
	return build_linear(b, h, prefix, out, 1, c->mlp_bias);
}

static void block(struct build *b, const struct decoder_kind *d, int64_t layer, int *x, int *delta)
{
	struct graph *g = b->g;
	char prefix[64], name[96];
	snprintf(prefix, sizeof(prefix), "model.layers.%lld", (long long)layer);

	/* The block's input is what a recomputed block starts from. */
	g->region = RECOMPUTE_NEVER;
	snprintf(name, sizeof(name), "%s.input_layernorm", prefix);
	struct normed n = build_norm(b, *x, *delta, name);

	g->region = RECOMPUTE_BLOCK;
	snprintf(name, sizeof(name), "%s.self_attn", prefix);
	int o = attention(b, d, layer, name, n.y);
	o = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_ATTENTION, .residual = n.sum, .input = n.y, .output = o});

	snprintf(name, sizeof(name), "%s.post_attention_layernorm", prefix);
	n = build_norm(b, n.sum, o, name);

	g->region = RECOMPUTE_MLP;
	snprintf(name, sizeof(name), "%s.mlp", prefix);
	int down = mlp(b, d, name, n.y);
	*x = n.sum;
	*delta = build_sublayer(b, &(struct sublayer_site){
		.layer = layer, .which = SUBLAYER_MLP, .residual = n.sum, .input = n.y, .output = down});
}

void build_decoder(struct build *b, const struct decoder_kind *d)
{
	const struct model_config *c = &b->g->config;
	int x = build_embedding(b, "model.embed_tokens"), delta = NONE;
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		block(b, d, i, &x, &delta);
	}
	struct normed n = build_norm(b, x, delta, "model.norm");
	build_head(b, n.y, "lm_head", c->tie_word_embeddings ? "model.embed_tokens" : NULL);
}
