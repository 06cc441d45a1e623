/* Phi-3 and Phi-3.5 (mini and medium), Phi-4: Llama with queries, keys and values in one module, gate
 * and up in another. Abdin et al. 2024; transformers' models/phi3. */
#include "engine/model/arch.h"

static void phi3_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = {
		.theta = 10000,
		.theta_key = "rope_theta",
		.partial_key = "partial_rotary_factor",
		.partial = 1,
		.scalings = 1u << ROPE_SCALING_LONGROPE,
		.yarn_is_longrope = true,
	};
	c->max_position_embeddings = 4096;
	c->rms_norm_eps = 1e-5;
	config_refuse_common(r);
	config_only_real(r, "resid_pdrop", 0);
	config_only_real(r, "embd_pdrop", 0);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_window(r, "sliding_window", 0);
	config_slide_from(r, c->sliding_window > 0 ? 0 : c->num_hidden_layers);
	config_tokens(r, 1, 32000, 32000);
	config_rope(r, &rope);
}

static void phi3_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){.fused = true});
}

const struct arch arch_phi3 = {
	.model_type = "phi3",
	.parse = phi3_parse,
	.build = phi3_build,
	.linear_modules = decoder_fused_modules,
	.blocks = "model.layers",
};
