/*
 * T5, T5 v1.1, FLAN-T5 and mT5: an encoder and a decoder of blocks with RMSNorm before each sublayer, a
 * learned bias by the distance of key and query in the place of positions, unscaled scores, an MLP that
 * may be gated, and a head that is the embedding, scaled, or a matrix of its own. Raffel et al. 2020,
 * Shazeer 2020; names as in transformers' models/t5.
 *
 * The dropout that the configurations name (dropout_rate) belongs to pretraining and is not done.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/arch.h"
#include "engine/ops_peft.h"
#include "util/util.h"

/* ---- configuration ------------------------------------------------------------------------- */

/* feed_forward_proj: "relu", "gated-gelu" (which is gelu_new), "gated-silu", … */
static void parse_mlp(struct config_reader *r)
{
	const char *name = json_string_value(json_object_get(r->o, "feed_forward_proj"));
	struct model_config *c = r->c;
	enum activation kind = ACTIVATION_RELU;
	name = name ? name : "relu";
	c->gated_mlp = strncmp(name, "gated-", 6) == 0;
	const char *act = c->gated_mlp ? name + 6 : name;
	if (strcmp(name, "gated-gelu") == 0) {
		act = "gelu_new";
	}
	if (!activation_from_name(act, &kind)) {
		config_fault(r, "'feed_forward_proj' is \"%.40s\"; it must be an activation function, or "
			"gated- and one", name);
	}
	c->hidden_act = (int)kind;
}

static void t5_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	bool tied = true, decoder = true;
	int64_t start = -1;
	c->is_encoder_decoder = true;
	c->max_position_embeddings = CONFIG_MAX_POSITIONS; /* distances have no end */
	c->rms_norm_eps = 1e-6;
	c->head_dim = 64;
	c->relative_attention_num_buckets = 32;
	c->relative_attention_max_distance = 128;
	config_refuse_common(r);
	config_size(r, "vocab_size", CONFIG_MAX_VOCAB, &c->vocab_size);
	config_size(r, "d_model", CONFIG_MAX_WIDTH, &c->hidden_size);
	config_size(r, "d_ff", CONFIG_MAX_WIDTH, &c->intermediate_size);
	config_size(r, "num_layers", MODEL_MAX_LAYERS, &c->num_hidden_layers);
	config_size(r, "num_heads", CONFIG_MAX_HEADS, &c->num_attention_heads);
	config_int(r, "d_kv", 1, CONFIG_MAX_HEAD_DIM, &c->head_dim);
	c->num_key_value_heads = c->num_attention_heads;
	c->num_decoder_layers = c->num_hidden_layers;
	config_int(r, "num_decoder_layers", 1, MODEL_MAX_LAYERS, &c->num_decoder_layers);
	config_int(r, "relative_attention_num_buckets", 4, 65536, &c->relative_attention_num_buckets);
	config_int(r, "relative_attention_max_distance", 1, 65536, &c->relative_attention_max_distance);
	config_real(r, "layer_norm_epsilon", 1e-30, 0.5, &c->rms_norm_eps);
	config_bool(r, "is_encoder_decoder", &decoder);
	if (r->r == 0 && !decoder) {
		config_fault(r, "'is_encoder_decoder' is false; a T5 encoder alone predicts no tokens");
	}
	if (r->r == 0 && c->relative_attention_max_distance <= c->relative_attention_num_buckets / 2) {
		config_fault(r, "'relative_attention_max_distance' must be more than half of "
			"relative_attention_num_buckets");
	}
	parse_mlp(r);
	/* transformers 5 always writes that embeddings are tied, and unties them where the files do not. What
	 * older configurations say of it tells the original T5, which scales, from version 1.1. */
	config_bool(r, "tie_word_embeddings", &tied);
	c->scale_decoder_outputs = tied && strcmp(c->model_type, "t5") == 0;
	config_bool(r, "scale_decoder_outputs", &c->scale_decoder_outputs);
	c->tie_word_embeddings = true;
	config_tokens(r, -1, 1, 0);
	config_int(r, "decoder_start_token_id", 0, c->vocab_size - 1, &start);
	c->decoder_start_token_id = start >= 0 ? (int32_t)start : c->pad_token_id;
	if (r->r == 0 && c->decoder_start_token_id < 0) {
		config_fault(r, "neither 'decoder_start_token_id' nor 'pad_token_id' is given, with which "
			"the decoder begins");
	}
}

/* Copies of the embedding, and a table that files of the first release have and nothing reads. */
static bool t5_ignores(const char *name)
{
	static const char *const names[] = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
		"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strcmp(name, names[i]) == 0) {
			return true;
		}
	}
	return false;
}

/* ---- distances ----------------------------------------------------------------------------- */

/* Row of the table for a key `distance` positions after the query, in f32 step by step as transformers'
 * _relative_position_bucket. */
static int32_t bucket_of(int64_t distance, int64_t buckets, int64_t max_distance, bool both_sides)
{
	int64_t first = 0, n = both_sides ? llabs(distance) : distance < 0 ? -distance : 0;
	if (both_sides) {
		buckets /= 2;
		first = distance > 0 ? buckets : 0;
	}
	int64_t exact = buckets / 2;
	if (n < exact) {
		return (int32_t)(first + n);
	}
	float by = (float)log((double)max_distance / (double)exact);
	float steps = logf((float)n / (float)exact) / by * (float)(buckets - exact);
	return (int32_t)(first + min_i64(exact + (int64_t)steps, buckets - 1));
}

static void set_buckets(struct graph *g)
{
	int64_t n = g->config.relative_attention_num_buckets;
	int64_t reach = g->config.relative_attention_max_distance;
	g->reach = reach;
	for (int side = 0; side < 2; side++) {
		g->buckets[side] = alloc_array((size_t)(2 * reach + 1), sizeof(*g->buckets[side]));
		if (!g->buckets[side]) {
			g->error = -ENOMEM;
			return;
		}
		for (int64_t i = -reach; i <= reach; i++) {
			g->buckets[side][i + reach] = bucket_of(i, n, reach, side == 1);
		}
	}
}

/* ---- graph --------------------------------------------------------------------------------- */

struct stack {
	const char *name; /* "encoder" */
	struct attention_spec spec;
	int x, delta;
};

struct name {
	char s[96];
};

static struct name name_of(const struct stack *s, int64_t block, int layer, const char *module)
{
	struct name n;
	snprintf(n.s, sizeof(n.s), "%s.block.%d.layer.%d.%s", s->name, (int)block, layer, module);
	return n;
}

/* The norm before a sublayer; the stream goes on as its sum. */
static int sublayer_input(struct build *b, struct stack *s, int64_t block, int layer)
{
	struct normed n = build_norm(b, s->x, s->delta, name_of(s, block, layer, "layer_norm").s);
	s->x = n.sum;
	return n.y;
}

/* The sublayer's output joins the stream, after a method has had its say. */
static void sublayer_output(struct build *b, struct stack *s, int64_t block, int layer,
	enum sublayer which, int input, int output)
{
	char module[sizeof(struct name)];
	snprintf(module, sizeof(module), "%s.block.%d.layer.%d", s->name, (int)block, layer);
	s->delta = build_sublayer(b, &(struct sublayer_site){.module = module, .layer = block,
		.which = which, .residual = s->x, .input = input, .output = output});
}

static void self_attention(struct build *b, struct stack *s, int64_t block)
{
	const struct model_config *c = &b->g->config;
	int64_t width = c->num_attention_heads * c->head_dim;
	/* The block's input is what a recomputed block starts from. */
	b->g->region = RECOMPUTE_NEVER;
	int y = sublayer_input(b, s, block, 0);
	b->g->region = RECOMPUTE_BLOCK;
	struct name name = name_of(s, block, 0, "SelfAttention");
	const struct part parts[] = {{"q", width}, {"k", width}, {"v", width}};
	int qkv = build_linear(b, y, name.s, parts, 3, false);
	if (block == 0) {
		s->spec.bias = build_table(b,
			name_of(s, 0, 0, "SelfAttention.relative_attention_bias").s,
			c->relative_attention_num_buckets, c->num_attention_heads);
	}
	const struct attention_site site = {.layer = block, .qkv = qkv, .spec = s->spec};
	const struct part out[] = {{"o", c->hidden_size}};
	int o = build_linear(b, build_attention(b, &site), name.s, out, 1, false);
	sublayer_output(b, s, block, 0, SUBLAYER_ATTENTION, y, o);
}

static void cross_attention(struct build *b, struct stack *s, int64_t block, int kv)
{
	const struct model_config *c = &b->g->config;
	struct attention_spec spec = s->spec;
	spec.causal = false;
	spec.bias = NONE;
	int y = sublayer_input(b, s, block, 1);
	struct name name = name_of(s, block, 1, "EncDecAttention");
	const struct part q[] = {{"q", c->num_attention_heads * c->head_dim}};
	const struct part out[] = {{"o", c->hidden_size}};
	int o = graph_cross_attention(b->g, build_linear(b, y, name.s, q, 1, false), kv, &spec);
	s->delta = build_linear(b, o, name.s, out, 1, false);
}

static void mlp(struct build *b, struct stack *s, int64_t block, int layer)
{
	const struct model_config *c = &b->g->config;
	int y = sublayer_input(b, s, block, layer);
	b->g->region = RECOMPUTE_MLP;
	struct name name = name_of(s, block, layer, "DenseReluDense");
	int64_t inner = c->intermediate_size;
	const struct part gated[] = {{"wi_0", inner}, {"wi_1", inner}}, plain[] = {{"wi", inner}};
	enum activation kind = (enum activation)c->hidden_act;
	int h = c->gated_mlp ? graph_gated(b->g, build_linear(b, y, name.s, gated, 2, false), kind) :
		graph_activation(b->g, build_linear(b, y, name.s, plain, 1, false), kind);
	b->g->region = RECOMPUTE_NEVER;
	const struct part out[] = {{"wo", c->hidden_size}};
	int down = build_linear(b, h, name.s, out, 1, false);
	sublayer_output(b, s, block, layer, SUBLAYER_MLP, y, down);
}

static void t5_build(struct build *b)
{
	struct graph *g = b->g;
	const struct model_config *c = &g->config;
	int64_t width = c->num_attention_heads * c->head_dim;
	set_buckets(g);
	int shared = build_token_table(b, "shared");
	struct stack encoder = {"encoder", attention_spec_of(c), NONE, NONE};
	encoder.spec.scale = 1;
	encoder.spec.causal = false;
	encoder.x = build_embedded(b, shared, graph_source_embedding(g, shared));
	for (int64_t i = 0; i < c->num_hidden_layers; i++) {
		self_attention(b, &encoder, i);
		mlp(b, &encoder, i, 1);
	}
	int source = build_norm(b, encoder.x, encoder.delta, "encoder.final_layer_norm").y;

	/* Keys and values of all blocks of the decoder: a prompt has them once. */
	struct stack decoder = {"decoder", attention_spec_of(c), NONE, NONE};
	decoder.spec.scale = 1;
	int kv[MODEL_MAX_LAYERS];
	g->region = RECOMPUTE_BLOCK;
	for (int64_t i = 0; i < c->num_decoder_layers; i++) {
		const struct part parts[] = {{"k", width}, {"v", width}};
		kv[i] = build_linear(b, source, name_of(&decoder, i, 1, "EncDecAttention").s, parts, 2,
			false);
	}
	if (g->purpose == GRAPH_GENERATE) {
		g->n_source = g->n_nodes;
	}
	decoder.x = build_embedded(b, shared, graph_embedding(g, shared));
	for (int64_t i = 0; i < c->num_decoder_layers; i++) {
		self_attention(b, &decoder, i);
		cross_attention(b, &decoder, i, kv[i]);
		mlp(b, &decoder, i, 2);
	}
	int y = build_norm(b, decoder.x, decoder.delta, "decoder.final_layer_norm").y;
	if (c->scale_decoder_outputs) {
		y = graph_scale_by(g, y, (float)pow((double)c->hidden_size, -0.5));
	}
	build_head(b, y, "lm_head", c->tie_word_embeddings ? "shared" : NULL);
}

static const char *const linear_modules[] = {"q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo", NULL};

const struct arch arch_t5 = {
	.model_type = "t5",
	.parse = t5_parse,
	.build = t5_build,
	.ignores = t5_ignores,
	.head_by_files = true,
	.linear_modules = linear_modules,
};

const struct arch arch_mt5 = {
	.model_type = "mt5",
	.parse = t5_parse,
	.build = t5_build,
	.ignores = t5_ignores,
	.head_by_files = true,
	.linear_modules = linear_modules,
};
