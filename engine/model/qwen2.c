/* Qwen2 and Qwen2.5: Llama with biases on queries, keys and values. Yang et al. 2024; transformers'
 * models/qwen2. */
#include "engine/model/arch.h"

static void qwen2_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(10000);
	c->max_position_embeddings = 32768;
	c->rms_norm_eps = 1e-6;
	c->attention_bias = true;
	config_refuse_common(r);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_qwen_windows(r);
	config_tokens(r, -1, -1, -1);
	config_rope(r, &rope);
}

static void qwen2_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){0});
}

static void qwen2_gguf(struct gguf_reader *r)
{
	r->c->hidden_act = ACTIVATION_SILU;
	r->c->attention_bias = true;
}

static const struct gguf_family qwen2_family = {
	.architecture = "qwen2",
	.top = gguf_usual_top,
	.block = gguf_usual_block,
	.read = qwen2_gguf,
	.eps_key = "attention.layer_norm_rms_epsilon",
	.yarn = true,
};

const struct arch arch_qwen2 = {
	.model_type = "qwen2",
	.parse = qwen2_parse,
	.build = qwen2_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
	.gguf = &qwen2_family,
};
