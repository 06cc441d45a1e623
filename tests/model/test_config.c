#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/model-internal.h"
#include "util/util.h"

#define SIZES "\"vocab_size\":100,\"hidden_size\":32,\"intermediate_size\":48," \
	"\"num_hidden_layers\":2,\"num_attention_heads\":4"
#define LLAMA "\"model_type\":\"llama\"," SIZES

#define OF(type) "\"model_type\":\"" type "\"," SIZES
#define GPT2 "\"model_type\":\"gpt2\",\"vocab_size\":9,\"n_embd\":8,\"n_layer\":1,\"n_positions\":16"

static int parse(struct model_config *c, const char *json, struct errmsg *err)
{
	return model_config_parse(c, json, strlen(json), "config.json", err);
}

static void test_defaults(void **state)
{
	struct model_config c;
	struct errmsg err = {0};
	assert_int_equal(parse(&c, "{" LLAMA "}", &err), 0);
	assert_string_equal(c.model_type, "llama");
	assert_int_equal(c.vocab_size, 100);
	assert_int_equal(c.num_key_value_heads, 4);
	assert_int_equal(c.head_dim, 8);
	assert_int_equal(c.max_position_embeddings, 2048);
	assert_true(c.rms_norm_eps == 1e-6);
	assert_true(c.rope_theta == 10000);
	assert_int_equal(c.rope_scaling, ROPE_SCALING_NONE);
	assert_false(c.tie_word_embeddings);
	assert_false(c.attention_bias);
	assert_false(c.mlp_bias);
	assert_int_equal(c.bos_token_id, 1);
	assert_int_equal(c.eos_token_id, 2);
	assert_int_equal(c.pad_token_id, -1);
}

static void test_fields(void **state)
{
	struct model_config c;
	struct errmsg err = {0};
	assert_int_equal(parse(&c, "{" LLAMA ",\"num_key_value_heads\":2,\"head_dim\":16,"
		"\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05,\"rope_theta\":500000.0,"
		"\"tie_word_embeddings\":true,\"attention_bias\":true,\"mlp_bias\":true,"
		"\"bos_token_id\":null,\"eos_token_id\":[7,8],\"pad_token_id\":-1,\"hidden_act\":\"silu\","
		"\"attention_dropout\":0.0,\"rope_scaling\":null,\"quantization_config\":null,"
		"\"use_cache\":true,\"anything\":{\"else\":[1]}}", &err), 0);
	assert_int_equal(c.num_key_value_heads, 2);
	assert_int_equal(c.head_dim, 16);
	assert_int_equal(c.max_position_embeddings, 512);
	assert_true(c.rms_norm_eps == 1e-5);
	assert_true(c.rope_theta == 500000);
	assert_true(c.tie_word_embeddings && c.attention_bias && c.mlp_bias);
	assert_int_equal(c.bos_token_id, -1);
	assert_int_equal(c.eos_token_id, 7);
	assert_int_equal(c.pad_token_id, -1);
}

static void test_rope(void **state)
{
	static const struct {
		const char *json;
		enum rope_scaling kind;
		double theta, factor, low, high;
		int64_t original;
	} cases[] = {
		/* transformers up to 4 */
		{"\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}",
			ROPE_SCALING_LINEAR, 5e5, 2.5, 0, 0, 0},
		{"\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
			"\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
			"\"original_max_position_embeddings\":8192}", ROPE_SCALING_LLAMA3, 5e5, 8, 1, 4, 8192},
		{"\"rope_scaling\":{\"rope_type\":\"default\"}", ROPE_SCALING_NONE, 1e4, 0, 0, 0, 0},
		{"\"rope_scaling\":{\"rope_type\":\"linear\",\"type\":\"yarn\",\"factor\":4}",
			ROPE_SCALING_LINEAR, 1e4, 4, 0, 0, 0},
		/* transformers 5 */
		{"\"rope_parameters\":{\"rope_theta\":3e4,\"rope_type\":\"default\"}",
			ROPE_SCALING_NONE, 3e4, 0, 0, 0, 0},
		{"\"rope_parameters\":{\"rope_theta\":3e4,\"rope_type\":\"linear\",\"factor\":2}",
			ROPE_SCALING_LINEAR, 3e4, 2, 0, 0, 0},
		{"\"max_position_embeddings\":4096,\"rope_parameters\":{\"rope_theta\":3e4,"
			"\"rope_type\":\"llama3\",\"factor\":32,\"low_freq_factor\":1,\"high_freq_factor\":4}",
			ROPE_SCALING_LLAMA3, 3e4, 32, 1, 4, 4096},
		/* both, of which the older wins; unless it is empty */
		{"\"rope_theta\":7e4,\"rope_scaling\":{\"type\":\"linear\",\"factor\":3},"
			"\"rope_parameters\":{\"rope_theta\":3e4,\"rope_type\":\"default\"}",
			ROPE_SCALING_LINEAR, 7e4, 3, 0, 0, 0},
		{"\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":3e4}",
			ROPE_SCALING_NONE, 3e4, 0, 0, 0, 0},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char json[1024];
		struct model_config c;
		struct errmsg err = {0};
		snprintf(json, sizeof(json), "{" LLAMA ",%s}", cases[i].json);
		if (parse(&c, json, &err) != 0) {
			fail_msg("case %zu: %s", i, err.text);
		}
		assert_int_equal(c.rope_scaling, cases[i].kind);
		assert_true(c.rope_theta == cases[i].theta);
		assert_true(c.rope.factor == cases[i].factor);
		assert_true(c.rope.low_freq_factor == cases[i].low);
		assert_true(c.rope.high_freq_factor == cases[i].high);
		assert_int_equal(c.rope.original_max_position_embeddings, cases[i].original);
	}
}

static void test_refuses(void **state)
{
	static const struct {
		const char *json, *expected;
	} cases[] = {
		{"", "config.json:1"},
		{"[]", "must be a JSON object"},
		{"{\"model_type\":\"llama\",", "config.json:1:"},
		{"{" LLAMA ",\"hidden_size\":32}", "duplicate object key"},
		{"{" SIZES "}", "'model_type' is missing; known are: gemma2"},
		{"{\"model_type\":\"bloom\"," SIZES "}",
			"\"bloom\" is not supported; known are: gemma2"},
		{"{\"model_type\":3}", "'model_type' is 3; it must be a string"},
		{"{\"model_type\":\"llama\"}", "'vocab_size' is missing"},
		{"{\"model_type\":\"llama\",\"vocab_size\":\"100\"}",
			"'vocab_size' is \"100\"; it must be a whole"},
		{"{\"model_type\":\"llama\",\"vocab_size\":1e2}",
			"'vocab_size' is 100.0; it must be a whole"},
		{"{\"model_type\":\"llama\",\"vocab_size\":0}",
			"'vocab_size' is 0; it must be a whole number from 1"},
		{"{\"model_type\":\"llama\",\"vocab_size\":99999999999}", "from 1 to 16777216"},
		{"{\"model_type\":\"llama\",\"vocab_size\":99999999999999999999}", "too big integer"},
		{"{" LLAMA ",\"num_key_value_heads\":3}", "must be a multiple of num_key_value_heads = 3"},
		{"{" LLAMA ",\"head_dim\":7}", "head_dim = 7 must be even"},
		{"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":30,\"intermediate_size\":8,"
			"\"num_hidden_layers\":1,\"num_attention_heads\":4}",
			"hidden_size = 30 is no multiple"},
		{"{" LLAMA ",\"head_dim\":258}", "'head_dim'"},
		{"{" LLAMA ",\"rms_norm_eps\":0}", "'rms_norm_eps' is 0"},
		{"{" LLAMA ",\"rms_norm_eps\":NaN}", "config.json:1:"},
		{"{" LLAMA ",\"rope_theta\":-1}", "'rope_theta' is -1"},
		{"{" LLAMA ",\"tie_word_embeddings\":1}",
			"'tie_word_embeddings' is 1; it must be true or false"},
		{"{" LLAMA ",\"bos_token_id\":100}", "'bos_token_id' is 100; it must be a token id below"},
		{"{" LLAMA ",\"eos_token_id\":\"</s>\"}", "'eos_token_id' is \"</s>\""},
		{"{" LLAMA ",\"hidden_act\":\"mish\"}", "'hidden_act' is \"mish\"; supported are silu"},
		{"{" LLAMA ",\"attention_dropout\":0.1}", "'attention_dropout' is 0.1; only 0"},
		{"{" LLAMA ",\"partial_rotary_factor\":0.5}", "'partial_rotary_factor' is 0.5"},
		{"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "quantized (gptq)"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"proportional\",\"factor\":2}}",
			"\"proportional\" is not supported; known are: default, linear, llama3, dynamic, yarn"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":2}}",
			"\"longrope\" is not supported"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2,\"beta_fast\":-1}}",
			"'beta_fast' is -1"},
		{"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "needs 'factor'"},
		{"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "'factor' is 0"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}",
			"'low_freq_factor' and"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
			"\"high_freq_factor\":1}}", "0 < low < high"},
		{"{" LLAMA ",\"rope_scaling\":[1]}", "'rope_scaling' must be an object"},
		{"{" LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}}",
			"'rope_parameters' holds an object 'full_attention'"},
		{"{" LLAMA ",\"rope_parameters\":{\"rope_theta\":1e4,\"partial_rotary_factor\":0.5}}",
			"'partial_rotary_factor' is 0.5"},
		{"{" OF("mistral") ",\"sliding_window\":0}", "'sliding_window' is 0"},
		{"{" OF("mistral") ",\"sliding_window\":4,\"layer_types\":[\"full_attention\","
			"\"sliding_attention\"]}", "'layer_types' differ"},
		{"{" OF("qwen2") ",\"layer_types\":[\"full_attention\"]}", "one name for each of the 2"},
		{"{" OF("qwen2") ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
			"'sliding_window' is not given"},
		{"{" OF("qwen3") ",\"layer_types\":[\"full_attention\",\"linear_attention\"]}",
			"'layer_types' holds \"linear_attention\""},
		{"{" OF("phi3") ",\"resid_pdrop\":0.1}", "'resid_pdrop' is 0.1; only 0"},
		{"{" OF("phi3") ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}",
			"\"linear\" is not supported; known are: default, longrope"},
		{"{" OF("phi3") ",\"rope_scaling\":{\"type\":\"su\",\"short_factor\":[1],\"long_factor\":[1]}}",
			"'short_factor' must be a list of 4 numbers"},
		{"{" OF("phi3") ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2,3,0]}}",
			"'short_factor' holds 0"},
		{"{" OF("phi3") ",\"partial_rotary_factor\":0.2}", "less than a pair"},
		{"{" OF("smollm3") ",\"no_rope_layers\":[1]}", "'no_rope_layers' must be a list"},
		{"{" OF("smollm3") ",\"no_rope_layers\":[1,\"x\"]}", "'no_rope_layers' holds \"x\""},
		{"{" OF("smollm3") ",\"no_rope_layer_interval\":0}", "'no_rope_layer_interval' is 0"},
		{"{" OF("gemma2") ",\"head_dim\":8,\"use_bidirectional_attention\":true}",
			"'use_bidirectional_attention' is true; only false"},
		{"{" OF("gemma2") ",\"head_dim\":8,\"hidden_activation\":\"quick_gelu\"}",
			"'hidden_activation' is \"quick_gelu\""},
		{"{" OF("gemma2") ",\"head_dim\":8,\"final_logit_softcapping\":-1}",
			"'final_logit_softcapping' is -1"},
		{"{" OF("gemma3_text") ",\"head_dim\":8,\"attn_logit_softcapping\":50}",
			"'attn_logit_softcapping' is 50"},
		{"{" OF("gemma3_text") ",\"head_dim\":8,\"rope_parameters\":{\"rope_theta\":1e4}}",
			"must hold an object for full_attention and one"},
		{"{" OF("gemma3_text") ",\"head_dim\":8,\"rope_parameters\":{\"full_attention\":{},"
			"\"sliding_attention\":{\"rope_type\":\"linear\",\"factor\":2}}}",
			"\"linear\" is not supported; known are: default"},
		{"{\"model_type\":\"gpt2\"}", "'vocab_size' is missing"},
		{"{" GPT2 ",\"n_head\":3}", "no multiple of num_attention_heads"},
		{"{" GPT2 ",\"n_head\":2,\"add_cross_attention\":true}", "'add_cross_attention' is true"},
		{"{" GPT2 ",\"n_head\":2,\"activation_function\":\"tanh\"}",
			"'activation_function' is \"tanh\""},
		{"{" OF("gpt_neox") ",\"hidden_dropout\":0.1}", "'hidden_dropout' is 0.1; only 0"},
		{"{" OF("gpt_neox") ",\"rotary_pct\":1.5}", "'rotary_pct' is 1.5"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct model_config c;
		struct errmsg err = {0};
		int r = parse(&c, cases[i].json, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected) ||
				strncmp(err.text, "config.json", 11) != 0) {
			fail_msg("case %zu (%s): %d, '%s'; expected '%s'", i, cases[i].json, r, err.text,
				cases[i].expected);
		}
	}
}

static void test_tensors(void **state)
{
	struct model_config c;
	struct tensor_spec *t;
	struct errmsg err = {0};
	size_t n;

	assert_int_equal(parse(&c, "{" LLAMA ",\"num_key_value_heads\":2,\"head_dim\":16}", &err), 0);
	assert_int_equal(model_tensors(&t, &n, &c), 0);
	assert_int_equal(n, 1 + 2 * 9 + 2);
	assert_string_equal(t[0].name, "model.embed_tokens.weight");
	assert_string_equal(t[2].name, "model.layers.0.self_attn.q_proj.weight");
	assert_int_equal(t[2].rows, 64);
	assert_int_equal(t[2].cols, 32);
	assert_string_equal(t[9 + 3].name, "model.layers.1.self_attn.k_proj.weight");
	assert_int_equal(t[9 + 3].rows, 32);
	assert_string_equal(t[18].name, "model.layers.1.mlp.down_proj.weight");
	assert_int_equal(t[18].rows, 32);
	assert_int_equal(t[18].cols, 48);
	assert_string_equal(t[20].name, "lm_head.weight");
	free(t);

	c.tie_word_embeddings = c.attention_bias = c.attention_out_bias = c.mlp_bias = true;
	assert_int_equal(model_tensors(&t, &n, &c), 0);
	assert_int_equal(n, 1 + 2 * 16 + 1);
	assert_string_equal(t[3].name, "model.layers.0.self_attn.q_proj.bias");
	assert_int_equal(t[3].n_dims, 1);
	assert_int_equal(t[3].rows, 64);
	assert_int_equal(t[3].cols, 1);
	free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_rope),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_tensors),
	};
	return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
