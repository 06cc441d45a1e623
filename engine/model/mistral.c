/* Mistral: Llama with a sliding window in every layer. Jiang et al. 2023; transformers'
 * models/mistral. */
#include "engine/model/arch.h"

static void mistral_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(10000);
	c->max_position_embeddings = 4096 * 32;
	c->rms_norm_eps = 1e-6;
	c->num_key_value_heads = 8;
	config_refuse_common(r);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_window(r, "sliding_window", 4096);
	if (config_layer_types(r)) {
		/* transformers leaves them unread here: one window for all, or none. */
		for (int64_t i = 0; i < c->num_hidden_layers; i++) {
			if (!(c->layer_flags[i] & LAYER_SLIDES) != (c->sliding_window == 0)) {
				config_fault(r, "'layer_types' differ; in a mistral all layers have the "
					"sliding_window, or none");
			}
		}
	} else if (c->sliding_window > 0) {
		config_slide_from(r, 0);
	}
	config_tokens(r, 1, 2, -1);
	config_rope(r, &rope);
}

static void mistral_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){0});
}

const struct arch arch_mistral = {
	.model_type = "mistral",
	.parse = mistral_parse,
	.build = mistral_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
};
