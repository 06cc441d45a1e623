/* Configurations of T5 and its kin. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/model/model-internal.h"
#include "kernels/kernels.h"
#include "util/util.h"

#define SIZES "\"vocab_size\":90,\"d_model\":24,\"d_ff\":40,\"num_layers\":2,\"num_heads\":3"
#define T5 "\"model_type\":\"t5\"," SIZES

static int parse(struct model_config *c, const char *json, struct errmsg *err)
{
	return model_config_parse(c, json, strlen(json), "config.json", err);
}

static struct model_config parsed(const char *json)
{
	struct model_config c = {0};
	struct errmsg err = {0};
	if (parse(&c, json, &err) != 0) {
		fail_msg("%s: %s", json, err.text);
	}
	return c;
}

static void test_defaults(void **state)
{
	struct model_config c = parsed("{" T5 "}");
	assert_true(c.is_encoder_decoder);
	assert_int_equal(c.head_dim, 64);
	assert_int_equal(c.num_key_value_heads, 3);
	assert_int_equal(c.num_decoder_layers, 2);
	assert_int_equal(c.relative_attention_num_buckets, 32);
	assert_int_equal(c.relative_attention_max_distance, 128);
	assert_int_equal(c.hidden_act, ACTIVATION_RELU);
	assert_false(c.gated_mlp);
	assert_true(c.scale_decoder_outputs);
	assert_true(c.tie_word_embeddings);
	assert_int_equal(c.eos_token_id, 1);
	assert_int_equal(c.decoder_start_token_id, 0);
}

/* What older and newer configurations say of version 1.1, and of mT5, which never scales. */
static void test_variants(void **state)
{
	struct model_config c = parsed("{" T5 ",\"tie_word_embeddings\":false,\"num_decoder_layers\":5,"
		"\"feed_forward_proj\":\"gated-gelu\",\"d_kv\":5,\"decoder_start_token_id\":7}");
	assert_false(c.scale_decoder_outputs);
	assert_true(c.gated_mlp);
	assert_int_equal(c.hidden_act, ACTIVATION_GELU_NEW);
	assert_int_equal(c.num_decoder_layers, 5);
	assert_int_equal(c.head_dim, 5);
	assert_int_equal(c.decoder_start_token_id, 7);
	c = parsed("{" T5 ",\"tie_word_embeddings\":true,\"scale_decoder_outputs\":false}");
	assert_false(c.scale_decoder_outputs);
	c = parsed("{" T5 ",\"feed_forward_proj\":\"gelu\"}");
	assert_int_equal(c.hidden_act, ACTIVATION_GELU);
	assert_false(c.gated_mlp);
	c = parsed("{\"model_type\":\"mt5\"," SIZES ",\"tie_word_embeddings\":true}");
	assert_false(c.scale_decoder_outputs);
}

static void test_refuses(void **state)
{
	static const char *const cases[][2] = {
		{"{\"model_type\":\"t5\"}", "'vocab_size' is missing"},
		{"{" T5 ",\"is_encoder_decoder\":false}", "'is_encoder_decoder' is false"},
		{"{" T5 ",\"feed_forward_proj\":\"gated-mish\"}", "'feed_forward_proj' is \"gated-mish\""},
		{"{" T5 ",\"d_kv\":300}", "'d_kv'"},
		{"{" T5 ",\"num_decoder_layers\":0}", "'num_decoder_layers'"},
		{"{" T5 ",\"relative_attention_num_buckets\":2}", "'relative_attention_num_buckets'"},
		{"{" T5 ",\"relative_attention_max_distance\":16}", "must be more than half of"},
		{"{" T5 ",\"decoder_start_token_id\":90}", "'decoder_start_token_id'"},
		{"{" T5 ",\"pad_token_id\":null}", "neither 'decoder_start_token_id' nor 'pad_token_id'"},
		{"{" T5 ",\"layer_norm_epsilon\":0}", "'layer_norm_epsilon'"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct model_config c;
		struct errmsg err = {0};
		int r = parse(&c, cases[i][0], &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i][1])) {
			fail_msg("%s: %d, '%s'; expected '%s'", cases[i][0], r, err.text, cases[i][1]);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_variants),
		cmocka_unit_test(test_refuses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
