/* Llama 1 to 3.x and what calls itself so (SmolLM, SmolLM2, TinyLlama, …). Touvron et al. 2023;
 * transformers' models/llama. */
#include "engine/model/arch.h"

static void llama_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(10000);
	c->max_position_embeddings = 2048;
	c->rms_norm_eps = 1e-6;
	config_refuse_common(r);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_bool(r, "attention_bias", &c->attention_bias);
	c->attention_out_bias = c->attention_bias;
	config_bool(r, "mlp_bias", &c->mlp_bias);
	config_tokens(r, 1, 2, -1);
	config_rope(r, &rope);
}

static void llama_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){0});
}

static void llama_gguf(struct gguf_reader *r)
{
	r->c->hidden_act = ACTIVATION_SILU;
}

/* Mistral, too: its files do not tell windows. */
static const struct gguf_family llama_family = {
	.architecture = "llama",
	.top = gguf_usual_top,
	.block = gguf_usual_block,
	.read = llama_gguf,
	.eps_key = "attention.layer_norm_rms_epsilon",
	.interleaved = true,
};

const struct arch arch_llama = {
	.model_type = "llama",
	.parse = llama_parse,
	.build = llama_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
	.gguf = &llama_family,
};
