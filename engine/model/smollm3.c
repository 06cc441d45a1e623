/* SmolLM3: Llama of which some layers rotate nothing (NoPE, Yang et al. 2025); transformers'
 * models/smollm3. */
#include "engine/model/arch.h"
#include "util/json.h"

/* no_rope_layers: 0 for a layer that rotates nothing, whatever the name says; else one such layer every
 * no_rope_layer_interval. */
static void read_nope(struct config_reader *r)
{
	struct model_config *c = r->c;
	const json_t *list = json_object_get(r->o, "no_rope_layers");
	int64_t interval = 4;
	config_int(r, "no_rope_layer_interval", 1, MODEL_MAX_LAYERS, &interval);
	bool given = list && !json_is_null(list);
	if (given && json_array_size(list) < (size_t)c->num_hidden_layers) {
		config_fault(r, "'no_rope_layers' must be a list with 0 or 1 for each layer");
	}
	for (int64_t i = 0; i < c->num_hidden_layers && r->r == 0; i++) {
		const json_t *v = given ? json_array_get(list, (size_t)i) : NULL;
		bool rotates = given ? json_integer_value(v) != 0 : (i + 1) % interval != 0;
		if (given && !json_is_integer(v)) {
			config_fault(r, "'no_rope_layers' holds %s; it must hold 0 or 1", json_short(v).s);
		}
		c->layer_flags[i] |= rotates ? 0 : LAYER_NO_ROPE;
	}
}

static void smollm3_parse(struct config_reader *r)
{
	struct model_config *c = r->c;
	const struct rope_rules rope = config_rope_rules(2000000);
	bool use_window = false;
	c->max_position_embeddings = 32768;
	c->rms_norm_eps = 1e-6;
	c->num_key_value_heads = 4;
	c->tie_word_embeddings = true;
	config_refuse_common(r);
	config_sizes(r);
	config_activation(r, "hidden_act", "silu");
	config_bool(r, "attention_bias", &c->attention_bias);
	c->attention_out_bias = c->attention_bias;
	config_bool(r, "mlp_bias", &c->mlp_bias);
	read_nope(r);
	config_bool(r, "use_sliding_window", &use_window);
	if (use_window) {
		config_window(r, "sliding_window", 0);
	}
	/* A window is for the layers without positions, where none are named. */
	if (!config_layer_types(r) && c->sliding_window > 0) {
		for (int64_t i = 0; i < c->num_hidden_layers; i++) {
			c->layer_flags[i] |= c->layer_flags[i] & LAYER_NO_ROPE ? LAYER_SLIDES : 0;
		}
	}
	config_tokens(r, 128000, 128001, 128004);
	config_rope(r, &rope);
}

static void smollm3_build(struct build *b)
{
	build_decoder(b, &(struct decoder_kind){0});
}

const struct arch arch_smollm3 = {
	.model_type = "smollm3",
	.parse = smollm3_parse,
	.build = smollm3_build,
	.linear_modules = decoder_linear_modules,
	.blocks = "model.layers",
};
