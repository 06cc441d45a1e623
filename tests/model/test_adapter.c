#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "engine/model/model-internal.h"
#include "engine/peft/adapter-internal.h"
#include "engine/peft/lora.h"
#include "util/cleanup.h"
#include "util/util.h"

struct golden {
	struct buf config, weights;
};

static void golden_deinit(struct golden *g)
{
	buf_deinit(&g->config);
	buf_deinit(&g->weights);
}

static void read_golden(struct golden *g, const char *name)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/adapters/%s/adapter_config.json", getenv("GOLDEN_DIR"), name);
	assert_int_equal(text_file_read(&g->config, path, path, 1 << 20, NULL), 0);
	assert_non_null(g->config.data);
	snprintf(path, sizeof(path), "%s/adapters/%s/adapter_model.safetensors", getenv("GOLDEN_DIR"),
		name);
	assert_int_equal(text_file_read(&g->weights, path, path, 1 << 20, NULL), 0);
	assert_non_null(g->weights.data);
}

static int parse_golden(struct adapter *a, const struct golden *g, struct errmsg *err)
{
	return adapter_parse(a, g->config.data, g->config.len, g->weights.data, g->weights.len, err);
}

/* ---- what PEFT wrote ----------------------------------------------------------------------- */

static void test_imports_from_peft(void **state)
{
	static const struct {
		const char *name;
		int64_t r;
		double alpha, dropout;
		size_t tensors;
		enum st_dtype dtype;
		bool regex;
	} cases[] = {
		{"all-linear", 4, 8, 0, 28, ST_F32, false},
		{"names", 2, 3, 0.05, 8, ST_F32, false},
		{"regex", 2, 4, 0, 8, ST_F32, true},
		{"gaussian-bf16", 2, 8, 0, 4, ST_BF16, false},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(golden_deinit) struct golden g = {0};
		_cleanup_(adapter_deinit) struct adapter a = {0};
		struct errmsg err = {0};
		read_golden(&g, cases[i].name);
		if (parse_golden(&a, &g, &err) != 0) {
			fail_msg("%s: %s", cases[i].name, err.text);
		}
		assert_int_equal(a.config.lora.r, cases[i].r);
		assert_true(a.config.lora.lora_alpha == cases[i].alpha);
		assert_true(a.config.lora.lora_dropout == cases[i].dropout);
		assert_int_equal(a.config.lora.target_modules.is_regex, cases[i].regex);
		assert_int_equal(a.tensors.n_tensors, cases[i].tensors);
		assert_int_equal(a.tensors.tensors[0].dtype, cases[i].dtype);
		assert_null(a.config.base_model_name_or_path);
	}
}

static void test_refuses_from_peft(void **state)
{
	static const struct {
		const char *name, *expected;
	} cases[] = {
		{"exclude", "'exclude_modules' is an array"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(golden_deinit) struct golden g = {0};
		struct adapter a;
		struct errmsg err = {0};
		read_golden(&g, cases[i].name);
		int r = parse_golden(&a, &g, &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].expected)) {
			fail_msg("%s: %d, '%s'; expected '%s'", cases[i].name, r, err.text, cases[i].expected);
		}
	}
}

/* ---- configurations ------------------------------------------------------------------------ */

static void test_config_options(void **state)
{
	static const struct {
		const char *json, *expected; /* expected NULL: accepted */
	} cases[] = {
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q_proj\"]}", NULL},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"r\":null,\"some_new_option\":null,"
			"\"another\":false,\"third\":[],\"fourth\":{},\"fifth\":\"\"}", NULL},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"fan_in_fan_out\":true,"
			"\"qalora_group_size\":64,\"megatron_core\":\"x\",\"eva_config\":{\"rho\":2},"
			"\"init_lora_weights\":\"eva\",\"revision\":\"main\","
			"\"auto_mapping\":{\"a\":\"b\"}}", NULL},
		{"{\"target_modules\":[\"q\"]}", "'peft_type' is missing"},
		{"{\"peft_type\":\"OFT\",\"target_modules\":[\"q\"]}", "'peft_type' is \"OFT\""},
		{"{\"peft_type\":\"LORA\"}", "'target_modules' is missing"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":null}", "'target_modules' is null"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[]}", "'target_modules' has 0 entries"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[3]}", "'target_modules' holds 3"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":\"all-linear\"}", "must list its modules"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":\"a(\"}", "is no regular expression"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"task_type\":\"SEQ_CLS\"}",
			"\"SEQ_CLS\""},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"r\":0}", "'r' is 0"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"r\":2.5}", "'r' is 2.5"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"lora_alpha\":\"16\"}",
			"'lora_alpha' is"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"lora_dropout\":1.5}",
			"'lora_dropout' is"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"init_lora_weights\":\"pissa_niter_4\"}",
			"changes "
			"the base weights"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"init_lora_weights\":\"loftq\"}",
			"changes "
			"the base weights"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"alpha_pattern\":{\"q\":1}}", NULL},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"rank_pattern\":{\"q\":0}}",
			"rank_pattern: q: 0"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"rank_pattern\":{\"q\":\"x\"}}",
			"'rank_pattern': 'q' is"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"layers_to_transform\":[1.5]}",
			"'layers_to_transform' holds 1.5"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":\"q.*\",\"layers_to_transform\":[1]}",
			"layers_to_transform: cannot be combined"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"bias\":\"some\"}", "'bias' is \"some\""},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"lora_bias\":true}",
			"'lora_bias' is true"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"layer_replication\":[[0,4]]}",
			"'layer_replication'"},
		{"{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"],\"use_new_thing\":true}",
			"unknown option 'use_new_thing' is true"},
		{"[]", "must be a JSON object"},
		{"{", "adapter_config.json:1"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct method_config c = {0};
		enum adapter_kind kind;
		struct errmsg err = {0};
		int r = adapter_config_parse(&c, &kind, cases[i].json, strlen(cases[i].json), &err);
		bool right = cases[i].expected
			? r == STATUS_INVALID && strstr(err.text, cases[i].expected) : r == 0;
		if (!right) {
			fail_msg("case %zu (%s): %d, '%s'", i, cases[i].json, r, err.text);
		}
		method_config_deinit(&c);
	}
}

/* peft.tuners.tuners_utils.check_target_module_exists, by example; more of it comes from PEFT. */
static void test_targets(void **state)
{
	static char *const names[] = {"q_proj", "model.layers.1.mlp.up_proj"};
	static char *const regex[] = {"model\\.layers\\.\\d+\\.mlp\\.(up|down)_proj"};
	static char *const slow[] = {"(a+)+$"};
	struct lora_config list = {.target_modules = {(char **)names, 2, false}};
	struct lora_config pattern = {.target_modules = {(char **)regex, 1, true}};
	struct lora_config bomb = {.target_modules = {(char **)slow, 1, true}};

	assert_true(lora_targets(&list, "model.layers.0.self_attn.q_proj"));
	assert_true(lora_targets(&list, "q_proj"));
	assert_true(lora_targets(&list, "model.layers.1.mlp.up_proj"));
	assert_true(lora_targets(&list, "x.model.layers.1.mlp.up_proj"));
	assert_false(lora_targets(&list, "model.layers.0.mlp.up_proj"));
	assert_false(lora_targets(&list, "model.layers.0.self_attn.fq_proj"));
	assert_false(lora_targets(&list, "model.layers.0.self_attn.q_proj.x"));
	assert_false(lora_targets(&list, "proj"));
	assert_false(lora_targets(&list, ""));

	assert_true(lora_targets(&pattern, "model.layers.17.mlp.down_proj"));
	assert_false(lora_targets(&pattern, "model.layers.17.mlp.gate_proj"));
	assert_false(lora_targets(&pattern, "x.model.layers.17.mlp.down_proj"));
	assert_false(lora_targets(&pattern, "model.layers.17.mlp.down_proj.x"));
	assert_false(lora_targets(&pattern, "model.layers.17.mlp.down_proj\n"));
	/* Ends, and soon. */
	assert_false(lora_targets(&bomb, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"));
}

static void test_targets_as_peft(void **state)
{
	char path[4096];
	_cleanup_(buf_deinit) struct buf text = {0};
	json_t *row;
	size_t i, selected = 0;

	snprintf(path, sizeof(path), "%s/formats/target_modules.json", getenv("GOLDEN_DIR"));
	assert_int_equal(text_file_read(&text, path, path, 1 << 20, NULL), 0);
	assert_non_null(text.data);
	json_auto_t *cases = json_loadb((char *)text.data, text.len, 0, NULL);
	assert_true(json_array_size(cases) > 400);
	json_array_foreach(cases, i, row) {
		struct method_config c = {0};
		enum adapter_kind kind;
		json_t *targets = json_array_get(row, 0);
		const char *module = json_string_value(json_array_get(row, 1));
		bool want = json_is_true(json_array_get(row, 2));
		json_auto_t *o = json_pack("{s:s, s:O}", "peft_type", "LORA", "target_modules", targets);
		_cleanup_(freep) char *config = json_dumps(o, 0);
		assert_int_equal(adapter_config_parse(&c, &kind, config, strlen(config), NULL), 0);
		if (lora_targets(&c.lora, module) != want) {
			fail_msg("%s selects '%s': PEFT says %s", config, module, want ? "yes" : "no");
		}
		selected += want;
		method_config_deinit(&c);
	}
	assert_true(selected > 50);
}

/* ---- weights that do not fit --------------------------------------------------------------- */

static const char two_targets[] =
	"{\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"q\",\"v\"]}";

static void check_weights(const struct st_out *tensors, size_t n, const char *expected)
{
	_cleanup_(buf_deinit) struct buf weights = {0};
	struct adapter a = {0};
	struct errmsg err = {0};
	assert_int_equal(safetensors_write(&weights, tensors, n, NULL, 0), 0);
	int r = adapter_parse(&a, two_targets, strlen(two_targets), weights.data, weights.len, &err);
	bool right = expected ? r == STATUS_INVALID && strstr(err.text, expected) : r == 0;
	if (!right) {
		fail_msg("%d, '%s'; expected '%s'", r, err.text, expected ? expected : "");
	}
	adapter_deinit(&a);
}

#define P "base_model.model."

static void test_weights_must_fit(void **state)
{
	static const float x[12] = {1, 2, 3};
	const struct st_out good[] = {
		{P "l.q.lora_A.weight", ST_F32, 2, {2, 4}, x},
		{P "l.q.lora_B.weight", ST_F32, 2, {6, 2}, x},
		{P "l.v.lora_A.weight", ST_F32, 2, {2, 4}, x},
		{P "l.v.lora_B.weight", ST_F32, 2, {3, 2}, x},
	};
	struct st_out t[5];
	check_weights(good, 4, NULL);
	check_weights(NULL, 0, "holds no tensors");
	static const char twice[] =
		"{\"peft_type\":\"LORA\",\"r\":2,\"target_modules\":[\"q\",\"v\",\"q\"]}";
	_cleanup_(buf_deinit) struct buf weights = {0};
	struct adapter a = {0};
	assert_int_equal(safetensors_write(&weights, good, 4, NULL, 0), 0);
	assert_int_equal(adapter_parse(&a, twice, strlen(twice), weights.data, weights.len, NULL), 0);
	adapter_deinit(&a);
	check_weights(good, 2, "target_modules in adapter_config.json names 'v', and there are none");
	check_weights(good, 3, "'" P "l.v.lora_B.weight' is missing");

	const struct {
		struct st_out extra;
		const char *expected;
	} cases[] = {
		{{P "l.k.lora_A.weight", ST_F32, 2, {2, 4}, x}, "'" P "l.k.lora_A.weight' is left over: "
			"target_modules"},
		{{P ".k.lora_A.weight", ST_F32, 2, {2, 4}, x}, "left over: target_modules"},
		{{P "...lora_A.weight", ST_F32, 2, {2, 4}, x}, "left over: target_modules"},
		{{"l.q.lora_A.weight", ST_F32, 2, {2, 4}, x}, "left over; the keys are"},
		{{P "l.q.lora_magnitude_vector", ST_F32, 1, {6}, x}, "left over; it belongs to DoRA"},
		{{P "l.q.lora_embedding_A", ST_F32, 2, {2, 4}, x}, "l.q.lora_embedding_B' is missing"},
		{{P "l.q.bias", ST_F32, 1, {6}, x}, "left over; 'bias' is none"},
		{{P "l.q.lora_B.bias", ST_F32, 1, {6}, x}, "a bias on lora_B"},
		{{P "model.embed_tokens.weight", ST_F32, 2, {2, 2}, x}, "weights of the base model"},
		{{P "l2.q.lora_A.default.weight", ST_F32, 2, {2, 4}, x}, "left over"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		memcpy(t, good, sizeof(good));
		t[4] = cases[i].extra;
		check_weights(t, 5, cases[i].expected);
	}
	memcpy(t, good, sizeof(good));
	t[0].dims[0] = 3;
	check_weights(t, 4, "must be a matrix of (r, in) with r = 2; its dimensions are 2: [3, 4]");
	memcpy(t, good, sizeof(good));
	t[1].dims[1] = 1;
	check_weights(t, 4, "must be a matrix of (out, r) with r = 2");
	memcpy(t, good, sizeof(good));
	t[1].n_dims = 1;
	check_weights(t, 4, "its dimensions are 1: [6, 0]");
	memcpy(t, good, sizeof(good));
	t[2].dims[1] = 0;
	check_weights(t, 4, "must be a matrix");
	memcpy(t, good, sizeof(good));
	t[3].dtype = ST_I32;
	check_weights(t, 4, "dtype I32");
	const float bad[8] = {0, 0, 0, INFINITY};
	memcpy(t, good, sizeof(good));
	t[2].data = bad;
	check_weights(t, 4, "'" P "l.v.lora_A.weight': value 3 is not finite");
}

/* ---- export -------------------------------------------------------------------------------- */

static void test_key(void **state)
{
	char key[64], tight[10];
	assert_int_equal(lora_key(key, sizeof(key), "model.layers.0.q_proj", LORA_TENSOR_A), 0);
	assert_string_equal(key, "base_model.model.model.layers.0.q_proj.lora_A.weight");
	assert_int_equal(lora_key(key, sizeof(key), "m", LORA_TENSOR_B), 0);
	assert_string_equal(key, "base_model.model.m.lora_B.weight");
	assert_true(lora_key(tight, sizeof(tight), "m", LORA_TENSOR_B) < 0);
}

static void test_exported_config(void **state)
{
	static const char expected[] =
		"{\n"
		"  \"alpha_pattern\": {},\n"
		"  \"base_model_name_or_path\": \"org/n\\u00e4me \\\"x\\\"\",\n"
		"  \"bias\": \"none\",\n"
		"  \"fan_in_fan_out\": false,\n"
		"  \"inference_mode\": true,\n"
		"  \"init_lora_weights\": true,\n"
		"  \"layers_to_transform\": null,\n"
		"  \"lora_alpha\": 16,\n"
		"  \"lora_dropout\": 0.05,\n"
		"  \"modules_to_save\": null,\n"
		"  \"peft_type\": \"LORA\",\n"
		"  \"r\": 2,\n"
		"  \"rank_pattern\": {},\n"
		"  \"revision\": null,\n"
		"  \"target_modules\": [\n"
		"    \"k_proj\",\n"
		"    \"q_proj\"\n"
		"  ],\n"
		"  \"task_type\": \"CAUSAL_LM\",\n"
		"  \"use_dora\": false,\n"
		"  \"use_rslora\": false\n"
		"}";
	static char *const targets[] = {"q_proj", "k_proj", "q_proj"};
	struct method_config c = {.method = "lora",
		.lora = {.r = 2, .lora_alpha = 16, .lora_dropout = 0.05,
			.target_modules = {(char **)targets, 3, false}},
		.base_model_name_or_path = (char *)(uintptr_t)"org/näme \"x\""};
	_cleanup_(buf_deinit) struct buf out = {0};
	_cleanup_(buf_deinit) struct buf more = {0};
	struct errmsg err = {0};

	assert_int_equal(adapter_config_write(&out, &c, NULL, NULL, &err), 0);
	char *text = buf_cstr(&out);
	/* jansson writes \u00E4, Python \u00e4. */
	char *e = strstr(text, "\\u00E4");
	if (e) {
		e[4] = 'e';
	}
	assert_string_equal(text, expected);

	c.lora.lora_alpha = 0.1;
	c.lora.lora_dropout = 0;
	assert_int_equal(adapter_config_write(&more, &c, NULL, NULL, &err), 0);
	assert_non_null(strstr(buf_cstr(&more), "\"lora_alpha\": 0.1,\n  \"lora_dropout\": 0.0,\n"));
}

/* An adapter of PEFT's, through adapter_export() and back. */
static void test_round_trip(void **state)
{
	_cleanup_(golden_deinit) struct golden g = {0};
	_cleanup_(adapter_deinit) struct adapter a = {0}, b = {0};
	_cleanup_(buf_deinit) struct buf config = {0}, weights = {0};
	struct errmsg err = {0};
	struct adapter_tensor tensors[28];
	size_t n = 0;

	read_golden(&g, "all-linear");
	assert_int_equal(parse_golden(&a, &g, &err), 0);
	for (; n < a.tensors.n_tensors && n < 28; n++) {
		const struct st_tensor *t = &a.tensors.tensors[n];
		float *data = malloc(t->bytes);
		assert_int_equal(st_tensor_read_f32(t, data, &err), 0);
		/* In any order: writing sorts. */
		tensors[27 - n] = (struct adapter_tensor){t->name, 2, {t->dims[0], t->dims[1]}, data};
	}
	assert_int_equal(n, 28);
	assert_int_equal(adapter_config_write(&config, &a.config, NULL, NULL, &err), 0);
	assert_int_equal(adapter_write_tensors(&weights, tensors, n, &err), 0);
	/* The weights are the very file that PEFT wrote. */
	assert_int_equal(weights.len, g.weights.len);
	assert_memory_equal(weights.data, g.weights.data, weights.len);
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors, n,
		&err), 0);
	assert_int_equal(adapter_parse(&b, config.data, config.len, weights.data, weights.len, &err),
		0);
	assert_int_equal(b.config.lora.target_modules.n, a.config.lora.target_modules.n);
	assert_int_equal(b.config.lora.r, 4);

	/* What verification is for. */
	float *live = (float *)(uintptr_t)tensors[5].data;
	live[7] = -live[7];
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors, n,
		&err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "of the exported adapter differs from the live one at row "));
	live[7] = -live[7];
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors,
		n - 1, &err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "holds 28 tensors; there are 27 live ones"));
	tensors[3].dims[0]++;
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors, n,
		&err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "other shape"));
	tensors[3].dims[0]--;
	tensors[3].name = P "model.layers.0.self_attn.nothing.lora_A.weight";
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors, n,
		&err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "lacks tensor"));
	weights.data[weights.len - 1] = 0x7F;
	weights.data[weights.len - 2] = 0x80;
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, tensors, n,
		&err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "the exported adapter cannot be read back: "));
	for (size_t i = 0; i < n; i++) {
		free((void *)(uintptr_t)tensors[i].data);
	}
}

static void test_export_refuses(void **state)
{
	static char *const targets[] = {"q_proj"};
	static const float x[8];
	const struct adapter_tensor twice[] = {{"a", 2, {2, 4}, x}, {"a", 2, {2, 4}, x}};
	_cleanup_(buf_deinit) struct buf out = {0};
	struct errmsg err = {0};
	assert_int_equal(adapter_write_tensors(&out, twice, 2, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "'a' would be written twice"));
	assert_int_equal(adapter_write_tensors(&out, twice, 0, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "without tensors"));

	/* PEFT would drop in silence what target_modules does not select. */
	struct method_config c = {.method = "lora",
		.lora = {.r = 2, .lora_alpha = 4, .target_modules = {(char **)targets, 1, false}}};
	const struct adapter_tensor other[] = {
		{P "l.q_proj.lora_A.weight", 2, {2, 4}, x}, {P "l.q_proj.lora_B.weight", 2, {4, 2}, x},
		{P "l.k_proj.lora_A.weight", 2, {2, 4}, x}, {P "l.k_proj.lora_B.weight", 2, {4, 2}, x},
	};
	_cleanup_(buf_deinit) struct buf config = {0}, weights = {0};
	assert_int_equal(adapter_config_write(&config, &c, NULL, NULL, &err), 0);
	assert_int_equal(adapter_write_tensors(&weights, other, 4, &err), 0);
	assert_int_equal(adapter_verify(config.data, config.len, weights.data, weights.len, other, 4,
		&err), STATUS_FAILED);
	assert_non_null(strstr(err.text, "does not select this module"));
	c.lora.r = 0;
	assert_int_equal(adapter_config_write(&out, &c, NULL, NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "lora.r: 0"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_imports_from_peft),
		cmocka_unit_test(test_refuses_from_peft),
		cmocka_unit_test(test_config_options),
		cmocka_unit_test(test_targets),
		cmocka_unit_test(test_targets_as_peft),
		cmocka_unit_test(test_weights_must_fit),
		cmocka_unit_test(test_key),
		cmocka_unit_test(test_exported_config),
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_export_refuses),
	};
	return cmocka_run_group_tests_name("adapter", tests, NULL, NULL);
}
