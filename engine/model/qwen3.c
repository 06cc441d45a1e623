/* Qwen3: Llama with norms over each head of queries and keys. Yang et al. 2025; transformers'
 * models/qwen3. */
#include "engine/model/arch.h"

static void qwen3_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(10000);
	c->max_position_embeddings = 32768;
	c->rms_norm_eps = 1e-6;
	c->head_dim = 128;
	config_refuse_common(r);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_bool(r, "attention_bias", &c->attention_bias);
	c->attention_out_bias = c->attention_bias;
	config_qwen_windows(r);
	config_tokens(r, -1, -1, -1);
	config_rope(r, &rope);
}

static void qwen3_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){.head_norms = true});
}

static void qwen3_gguf(struct gguf_reader *r)
{
	r->c->hidden_act = ACTIVATION_SILU;
}

static const struct gguf_name qwen3_block[] = {
	GGUF_USUAL_ATTENTION,
	{"attn_q_norm", "self_attn.q_norm"},
	{"attn_k_norm", "self_attn.k_norm"},
	{"ffn_norm", "post_attention_layernorm"},
	GGUF_USUAL_MLP,
	{0},
};

static const struct gguf_family qwen3_family = {
	.architecture = "qwen3",
	.top = gguf_usual_top,
	.block = qwen3_block,
	.read = qwen3_gguf,
	.eps_key = "attention.layer_norm_rms_epsilon",
	.yarn = true,
};

const struct arch arch_qwen3 = {
	.model_type = "qwen3",
	.parse = qwen3_parse,
	.build = qwen3_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
	.gguf = &qwen3_family,
};
