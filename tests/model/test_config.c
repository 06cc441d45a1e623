#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/model-internal.h"
#include "util/util.h"

#define SIZES "\"vocab_size\":100,\"hidden_size\":32,\"intermediate_size\":48," \
	"\"num_hidden_layers\":2,\"num_attention_heads\":4"
#define LLAMA "\"model_type\":\"llama\"," SIZES

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
		{"{" SIZES "}", "'model_type' is missing; known are: llama"},
		{"{\"model_type\":\"gpt_neox\"," SIZES "}",
			"\"gpt_neox\" is not supported; known are: llama"},
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
		{"{\"model_type\":\"llama\",\"vocab_size\":9,\"hidden_size\":4096,\"intermediate_size\":8,"
			"\"num_hidden_layers\":1,\"num_attention_heads\":4096,\"head_dim\":4096}",
			"num_attention_heads × head_dim = 16777216"},
		{"{" LLAMA ",\"rms_norm_eps\":0}", "'rms_norm_eps' is 0"},
		{"{" LLAMA ",\"rms_norm_eps\":NaN}", "config.json:1:"},
		{"{" LLAMA ",\"rope_theta\":-1}", "'rope_theta' is -1"},
		{"{" LLAMA ",\"tie_word_embeddings\":1}",
			"'tie_word_embeddings' is 1; it must be true or false"},
		{"{" LLAMA ",\"bos_token_id\":100}", "'bos_token_id' is 100; it must be a token id below"},
		{"{" LLAMA ",\"eos_token_id\":\"</s>\"}", "'eos_token_id' is \"</s>\""},
		{"{" LLAMA ",\"hidden_act\":\"gelu\"}", "'hidden_act' is \"gelu\"; only \"silu\""},
		{"{" LLAMA ",\"attention_dropout\":0.1}", "'attention_dropout' is 0.1; only 0"},
		{"{" LLAMA ",\"partial_rotary_factor\":0.5}", "'partial_rotary_factor' is 0.5"},
		{"{" LLAMA ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", "quantized (gptq)"},
		{"{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}",
			"\"dynamic\" is not supported"},
		{"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}",
			"\"yarn\" is not supported; "
			"known are default, linear and llama3"},
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
	struct tensor_spec t;
	struct errmsg err = {0};
	int64_t n;

	assert_int_equal(parse(&c, "{" LLAMA ",\"num_key_value_heads\":2,\"head_dim\":16}", &err), 0);
	for (n = 0; model_config_tensor(&c, n, &t); n++) {
		assert_true(t.rows > 0 && t.cols > 0);
	}
	assert_int_equal(n, 1 + 2 * 9 + 2);
	assert_true(model_config_tensor(&c, 0, &t));
	assert_string_equal(t.name, "model.embed_tokens.weight");
	assert_true(model_config_tensor(&c, 2, &t));
	assert_string_equal(t.name, "model.layers.0.self_attn.q_proj.weight");
	assert_int_equal(t.rows, 64);
	assert_int_equal(t.cols, 32);
	assert_true(model_config_tensor(&c, 9 + 3, &t));
	assert_string_equal(t.name, "model.layers.1.self_attn.k_proj.weight");
	assert_int_equal(t.rows, 32);
	assert_true(model_config_tensor(&c, 18, &t));
	assert_string_equal(t.name, "model.layers.1.mlp.down_proj.weight");
	assert_int_equal(t.rows, 32);
	assert_int_equal(t.cols, 48);
	assert_true(model_config_tensor(&c, 20, &t));
	assert_string_equal(t.name, "lm_head.weight");

	c.tie_word_embeddings = c.attention_bias = c.mlp_bias = true;
	for (n = 0; model_config_tensor(&c, n, &t); n++) {
	}
	assert_int_equal(n, 1 + 2 * 16 + 1);
	assert_true(model_config_tensor(&c, 3, &t));
	assert_string_equal(t.name, "model.layers.0.self_attn.q_proj.bias");
	assert_int_equal(t.n_dims, 1);
	assert_int_equal(t.rows, 64);
	assert_int_equal(t.cols, 1);
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
