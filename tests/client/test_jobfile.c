/* Job files: what is understood, and how what is not is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>

#include "client/jobfile.h"
#include "client/jsonw.h"
#include "client/spec.h"
#include "proto/jobspec.h"
#include "proto/proto.h"
#include "util/cleanup.h"
#include "util/util.h"

static void msg_freep(void *p)
{
	proto_free(*(void **)p);
}

/* The lists of a LoRA section that are empty, behind target_modules. */
#define NO_PATTERNS ",\"rank_pattern\":{},\"alpha_pattern\":{}"
#define NO_LISTS NO_PATTERNS ",\"layers_to_transform\":[],\"modules_to_save\":[]"
#define NO_TARGETS "\"target_modules\":[]"

/* Parses `text` as file "job.yaml"; the specification as JSON, or NULL with the fault in `err`. */
static char *parse(const char *text, size_t len, bool defaults, struct errmsg *err)
{
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	assert_non_null(spec);
	int r = jobfile_parse("job.yaml", text, len, spec, err);
	if (r == 0 && defaults) {
		r = jobspec_complete(&spec->base, err);
	}
	assert_true(r == 0 || r == STATUS_INVALID);
	if (r != 0) {
		return NULL;
	}
	struct jsonw j = {0};
	jsonw_message(&j, &spec->base);
	assert_int_equal(j.error, 0);
	return buf_steal(&j.buf, NULL);
}

static void test_understood(void **state)
{
	static const struct { const char *yaml, *json; } cases[] = {
		{"model: m\ndataset: d\n", "{\"model\":\"m\",\"dataset\":\"d\"}"},
		/* JSON is YAML. */
		{"{\"model\": \"m\", \"train\": {\"max_steps\": 3, \"packing\": false}}",
			"{\"model\":\"m\",\"train\":{\"max_steps\":3,\"packing\":false}}"},
		{"{\n\t\"model\": \"m\",\n\t\"dataset\": \"d\"\n}\n",
			"{\"model\":\"m\",\"dataset\":\"d\"}"},
		/* Lists, and one word in place of a list of one. */
		{"lora: {target_modules: [q_proj, v_proj]}",
			"{\"lora\":{\"target_modules\":[\"q_proj\",\"v_proj\"]" NO_LISTS "}}"},
		{"lora:\n  target_modules:\n  - q_proj\n  - v_proj\n",
			"{\"lora\":{\"target_modules\":[\"q_proj\",\"v_proj\"]" NO_LISTS "}}"},
		{"lora: {target_modules: all-linear}", 
			"{\"lora\":{\"target_modules\":[\"all-linear\"]" NO_LISTS "}}"},
		/* Numbers: those that YAML 1.1 takes for text as well. */
		{"train: {learning_rate: 2.0e-4}", "{\"train\":{\"learning_rate\":0.0002}}"},
		{"train: {learning_rate: 2e-4}", "{\"train\":{\"learning_rate\":0.0002}}"},
		{"train: {learning_rate: 2E4}", "{\"train\":{\"learning_rate\":20000.0}}"},
		{"train: {learning_rate: .5}", "{\"train\":{\"learning_rate\":0.5}}"},
		{"train: {learning_rate: 1.}", "{\"train\":{\"learning_rate\":1.0}}"},
		{"train: {learning_rate: -1}", "{\"train\":{\"learning_rate\":-1.0}}"},
		{"train: {adam_epsilon: 1.0e-8}", "{\"train\":{\"adam_epsilon\":1e-08}}"},
		{"train: {max_steps: 4294967295}", "{\"train\":{\"max_steps\":4294967295}}"},
		{"train: {seed: 18446744073709551615}", "{\"train\":{\"seed\":18446744073709551615}}"},
		{"train: {max_steps: +7}", "{\"train\":{\"max_steps\":7}}"},
		{"train: {seed: 0}", "{\"train\":{\"seed\":0}}"},
		{"train: {packing: yes}", "{\"train\":{\"packing\":true}}"},
		{"train: {packing: OFF}", "{\"train\":{\"packing\":false}}"},
		/* null unsets. */
		{"init_adapter: null\nmodel: ~\nname:\ndataset: d", "{\"dataset\":\"d\"}"},
		{"train: null\nlora: {r: null, target_modules: null}",
			"{\"lora\":{" NO_TARGETS NO_LISTS "}}"},
		/* Maps; keys may be anything, lists of numbers or one number. */
		{"lora: {rank_pattern: {q_proj: 8, 'layers.[0-3].mlp': 2}}",
			"{\"lora\":{" NO_TARGETS ",\"rank_pattern\":{\"q_proj\":8,\"layers.[0-3].mlp\":2},"
			"\"alpha_pattern\":{},\"layers_to_transform\":[],\"modules_to_save\":[]}}"},
		{"lora:\n  alpha_pattern:\n    v_proj: 16\n    5: 1.5\n",
			"{\"lora\":{" NO_TARGETS ",\"rank_pattern\":{},\"alpha_pattern\":{\"v_proj\":16.0,\"5\":1.5},"
			"\"layers_to_transform\":[],\"modules_to_save\":[]}}"},
		{"lora: {layers_to_transform: [0, 2]}", 
			"{\"lora\":{" NO_TARGETS NO_PATTERNS ",\"layers_to_transform\":[0,2],\"modules_to_save\":[]}}"},
		{"lora: {layers_to_transform: 3}", 
			"{\"lora\":{" NO_TARGETS NO_PATTERNS ",\"layers_to_transform\":[3],\"modules_to_save\":[]}}"},
		{"lora: {rank_pattern: {}}", "{\"lora\":{" NO_TARGETS NO_LISTS "}}"},
		/* PEFT's words, some of which YAML takes for truth values. */
		{"lora: {init_lora_weights: true}",
			"{\"lora\":{" NO_TARGETS ",\"init_lora_weights\":\"true\"" NO_LISTS "}}"},
		{"lora: {init_lora_weights: False}",
			"{\"lora\":{" NO_TARGETS ",\"init_lora_weights\":\"false\"" NO_LISTS "}}"},
		{"lora: {init_lora_weights: pissa_niter_16}",
			"{\"lora\":{" NO_TARGETS ",\"init_lora_weights\":\"pissa_niter_16\"" NO_LISTS "}}"},
		{"method: full\nfull: {}", "{\"method\":\"full\",\"full\":{}}"},
		/* Quotes make text of anything. */
		{"name: '2024'\nmodel: \"null\"", "{\"name\":\"2024\",\"model\":\"null\"}"},
		{"name: \"a\\nb\\u00e9\"", "{\"name\":\"a\\nb\xC3\xA9\"}"},
		{"# nothing but a comment\n---\nmodel: m # and another\n...\n", "{\"model\":\"m\"}"},
		{"\xEF\xBB\xBFmodel: m\r\ndataset: d\r\n", "{\"model\":\"m\",\"dataset\":\"d\"}"},
		{"name: &n x\nmodel: *n\n", "{\"name\":\"x\",\"model\":\"x\"}"},
		{"{}", "{}"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		_cleanup_(freep) char *json = parse(cases[i].yaml, strlen(cases[i].yaml), false, &err);
		if (!json) {
			fail_msg("%s\n%s", cases[i].yaml, err.text);
		}
		assert_string_equal(json, cases[i].json);
	}
}

static void test_refused(void **state)
{
	/* Each message must hold all three. */
	static const struct { const char *yaml, *where, *what, *hint; } cases[] = {
		{"model: m\ntrain:\n  max_step: 5\n", "job.yaml:3: ", "unknown key 'train.max_step'",
			"did you mean 'max_steps'? known keys: max_steps, num_train_epochs"},
		{"modle: m", "job.yaml:1: ", "unknown key 'modle'", "did you mean 'model'?"},
		{"model: m\nlearning_rate: 1", "job.yaml:2: ", "unknown key 'learning_rate'",
			"did you mean 'train.learning_rate'?"},
		{"train: {r: 8}", "job.yaml:1: ", "unknown key 'train.r'", "did you mean 'lora.r'?"},
		{"lora: {model: x}", "job.yaml:1: ", "unknown key 'lora.model'", "did you mean 'model'?"},
		{"xyzzyplugh: 1", "job.yaml:1: ", "unknown key 'xyzzyplugh'; known keys: name, model", ""},
		{"? [a, b]\n: c", "job.yaml:1: ", "a key must be a word", ""},
		{"<<: {model: m}", "job.yaml:1: ", "unknown key '<<'", ""},
		{"model: m\ndataset: d\nmodel: n", "job.yaml:3: ", "'model' is given twice", "line 1"},
		{"train: {seed: 1,\n seed: 2}", "job.yaml:2: ", "'train.seed' is given twice", "line 1"},
		/* Maps and lists of numbers. */
		{"lora: {rank_pattern: {q_proj: 8.5}}", "job.yaml:1: ", "'lora.rank_pattern.q_proj'",
			"whole number"},
		{"lora:\n rank_pattern:\n  a: 1\n  a: 2", "job.yaml:4: ", "'lora.rank_pattern' has 'a' twice",
			""},
		{"lora: {rank_pattern: 8}", "job.yaml:1: ", "'lora.rank_pattern' is a mapping", "q_proj: 8"},
		{"lora: {rank_pattern: [q_proj]}", "job.yaml:1: ", "is a mapping", "not a list"},
		{"lora: {rank_pattern: {q_proj: null}}", "job.yaml:1: ", "takes a number for each key", ""},
		{"lora: {rank_pattern: {q_proj: [1]}}", "job.yaml:1: ", "takes a number for each key", ""},
		{"lora: {rank_pattern: {'': 1}}", "job.yaml:1: ", "empty key", ""},
		{"lora: {layers_to_transform: [0, one]}", "job.yaml:1: ", "must be a whole number", "one"},
		{"lora: {layers_to_transform: [0, null]}", "job.yaml:1: ", "list of numbers", ""},
		{"lora: {bias: some}", "job.yaml:1: ", "'lora.bias' is 'some'", "none, all, lora_only"},
		{"lora: {bias: true}", "job.yaml:1: ", "'lora.bias' is 'true'", "none, all, lora_only"},
		{"lora: {init_lora_weights: pissa_niter_}", "job.yaml:1: ", "none of", "pissa_niter_N"},
		{"lora: {init_lora_weights: pissa_niter_0x}", "job.yaml:1: ", "none of", "pissa_niter_N"},
		{"full: 3", "job.yaml:1: ", "'full' has no settings", ""},
		{"full: {k: 1}", "job.yaml:1: ", "unknown key 'full.k'", "did you mean 'last_k.k'?"},
		/* Types. */
		{"model: 5", "job.yaml:1: ", "'model' must be text, not 5", "quotes"},
		{"model: true", "job.yaml:1: ", "'model' must be text", ""},
		{"train: {max_steps: many}", "job.yaml:1: ", "'train.max_steps' must be a whole number",
			"many"},
		{"train: {max_steps: \"200\"}", "job.yaml:1: ", "must be a whole number", "the text 200"},
		{"train: {max_steps: 2.0}", "job.yaml:1: ", "must be a whole number", "2.0"},
		{"train: {max_steps: 1e3}", "job.yaml:1: ", "must be a whole number", "1e3"},
		{"train: {max_steps: 0x10}", "job.yaml:1: ", "must be a whole number", ""},
		{"train: {max_steps: 010}", "job.yaml:1: ", "leading zero", ""},
		{"train: {max_steps: 1_000}", "job.yaml:1: ", "must be a whole number", ""},
		{"train: {max_steps: true}", "job.yaml:1: ", "must be a whole number", ""},
		{"train: {packing: 1}", "job.yaml:1: ", "'train.packing' must be true or false", ""},
		{"train: {packing: \"true\"}", "job.yaml:1: ", "must be true or false", ""},
		{"train: {learning_rate: fast}", "job.yaml:1: ", "'train.learning_rate' must be a "
			"number", ""},
		{"train: {learning_rate: \"1e-4\"}", "job.yaml:1: ", "must be a number", ""},
		{"train: {learning_rate: 1e}", "job.yaml:1: ", "must be a number", ""},
		{"train: {learning_rate: [1]}", "job.yaml:1: ", "takes one value, not a list", ""},
		{"train: {learning_rate: {a: 1}}", "job.yaml:1: ", "takes one value", ""},
		{"train: 5", "job.yaml:1: ", "'train' holds settings of its own", ""},
		{"\n\ntrain: [1]", "job.yaml:3: ", "takes one value, not a list", ""},
		{"lora: {target_modules: [q_proj, 5]}", "job.yaml:1: ", "must be text", ""},
		{"lora: {target_modules: [q_proj, [a]]}", "job.yaml:1: ", "list of texts", ""},
		{"lora: {target_modules: [q_proj, null]}", "job.yaml:1: ", "list of texts", ""},
		{"lora: {target_modules: {a: b}}", "job.yaml:1: ", "takes one value", ""},
		/* Ranges. */
		{"train: {max_steps: -1}", "job.yaml:1: ", "'train.max_steps' must be 0 or more", "-1"},
		{"train: {max_steps: 4294967296}", "job.yaml:1: ", "at most 4294967295", ""},
		{"train: {seed: 18446744073709551616}", "job.yaml:1: ", "at most 18446744073709551615", ""},
		{"train: {learning_rate: .nan}", "job.yaml:1: ", "finite", ".nan"},
		{"train: {learning_rate: -.INF}", "job.yaml:1: ", "finite", ""},
		{"train: {learning_rate: 1e999}", "job.yaml:1: ", "finite", "1e999"},
		/* Words. */
		{"train:\n  overlong: cut", "job.yaml:2: ", "'train.overlong' is 'cut'",
			"drop, truncate, raise"},
		{"priority: urgent", "job.yaml:1: ", "'priority' is 'urgent'", "low, normal, high"},
		{"train: {lr_scheduler_type: cosin}", "job.yaml:1: ", "none of", "constant, linear, "
			"cosine"},
		{"train: {dtype: fp16}", "job.yaml:1: ", "none of", "bf16, f32"},
		{"train: {data_order: no}", "job.yaml:1: ", "data_order' is 'no'", "sequential"},
		/* YAML itself. */
		{"", "job.yaml: ", "empty", ""},
		{"# a comment", "job.yaml: ", "empty", ""},
		{"just words", "job.yaml:1: ", "mapping", ""},
		{"- a\n- b", "job.yaml:1: ", "mapping", ""},
		{"model: m\n  dataset: d", "job.yaml:2: ", "not YAML", ""},
		{"model: [a", "job.yaml:", "not YAML", ""},
		{"{\"model\": \"m\"", "job.yaml:", "not YAML", ""},
		{"model: m\n---\nmodel: n", "job.yaml:3: ", "second document", ""},
		{"model: *nobody", "job.yaml:1: ", "not YAML", "alias"},
		{"model: !!binary aGk=", "job.yaml:1: ", "tag", ""},
		{"lora: !weird {r: 1}", "job.yaml:1: ", "tag", "!weird"},
		{"a\xFF: b", "job.yaml:1: ", "not UTF-8", ""},
		{"model: m\nname: a\x01" "b", "job.yaml:2: ", "control characters", ""},
		{"name: \"a\\0b\"", "job.yaml:1: ", "NUL", ""},
		/* Things made to take for ever. */
		{"train: &a {lora: *a}", "job.yaml:1: ", "unknown key", ""},
		{"lora: {target_modules: &a [*a]}", "job.yaml:1: ", "list of texts", ""},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		_cleanup_(freep) char *json = parse(cases[i].yaml, strlen(cases[i].yaml), false, &err);
		if (json) {
			fail_msg("%s\nwas taken for %s", cases[i].yaml, json);
		}
		if (strncmp(err.text, cases[i].where, strlen(cases[i].where)) != 0 ||
			!strstr(err.text, cases[i].what) || !strstr(err.text, cases[i].hint)) {
			fail_msg("%s\n%s", cases[i].yaml, err.text);
		}
	}
}

static void test_sizes(void **state)
{
	struct errmsg err = {0};
	_cleanup_(freep) char *big = malloc(JOBFILE_MAX + 1);
	memset(big, ' ', JOBFILE_MAX + 1);
	memcpy(big, "model: m\n#", 10);
	assert_null(parse(big, JOBFILE_MAX + 1, false, &err));
	assert_non_null(strstr(err.text, "too many for a job file"));
	_cleanup_(freep) char *json = parse(big, JOBFILE_MAX, false, &err);
	assert_string_equal(json, "{\"model\":\"m\"}");

	_cleanup_(buf_deinit) struct buf b = {0};
	buf_appendf(&b, "lora: {target_modules: [");
	for (int i = 0; i < JOBFILE_NODES_MAX; i++) {
		buf_appendf(&b, "x,");
	}
	buf_appendf(&b, "]}");
	assert_null(parse((char *)b.data, b.len, false, &err));
	assert_non_null(strstr(err.text, "too many"));

	/* A NUL in the middle is not the end. */
	assert_null(parse("model: m\0junk", 13, false, &err));
}

static void test_defaults_are_explicit(void **state)
{
	struct errmsg err = {0};
	const char *text = "model: m\ndataset: d\ntrain: {learning_rate: 1}";
	_cleanup_(freep) char *json = parse(text, strlen(text), true, &err);
	assert_string_equal(json,
		"{\"model\":\"m\",\"dataset\":\"d\",\"method\":\"lora\",\"priority\":\"normal\","
		"\"lora\":{\"r\":16,\"lora_alpha\":32.0,\"lora_dropout\":0.0,"
		"\"target_modules\":[\"all-linear\"],\"bias\":\"none\",\"use_rslora\":false,"
		"\"use_dora\":false,\"loraplus_lr_ratio\":0.0,\"init_lora_weights\":\"true\","
		"\"rank_pattern\":{},\"alpha_pattern\":{},\"layers_to_transform\":[],"
		"\"modules_to_save\":[]},"
		"\"train\":{\"num_train_epochs\":1.0,\"batch_size\":8,\"max_length\":1024,"
		"\"overlong\":\"drop\",\"packing\":true,\"train_on_prompt\":false,\"learning_rate\":1.0,"
		"\"lr_scheduler_type\":\"cosine\",\"warmup_steps\":0,\"weight_decay\":0.0,"
		"\"adam_beta1\":0.9,\"adam_beta2\":0.999,\"adam_epsilon\":1e-08,\"max_grad_norm\":1.0,"
		"\"dtype\":\"bf16\",\"seed\":42,\"data_order\":\"shuffled\",\"save_steps\":50,"
		"\"eval_steps\":50,\"logging_steps\":1,\"microbatch_tokens\":0}}");

	/* max_steps stands for itself; a section of another method is not made up. */
	text = "method: ia3\ntrain: {max_steps: 5, seed: 0}\nlora: null";
	_cleanup_(freep) char *other = parse(text, strlen(text), true, &err);
	assert_non_null(strstr(other, "\"max_steps\":5,\"batch_size\":8"));
	assert_null(strstr(other, "num_train_epochs"));
	assert_null(strstr(other, "\"lora\""));
	assert_non_null(strstr(other, "\"seed\":0"));

	/* The message survives the wire. */
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	assert_int_equal(jobspec_complete(&spec->base, &err), 0);
	_cleanup_(msg_freep) Peftd__V1__JobSpec *copy = proto_copy(spec);
	struct jsonw a = {0}, b = {0};
	jsonw_message(&a, &spec->base);
	jsonw_message(&b, &copy->base);
	assert_string_equal(buf_cstr(&a.buf), buf_cstr(&b.buf));
	jsonw_deinit(&a);
	jsonw_deinit(&b);
}

/* The specification of a job file completed, as JSON; or NULL with the fault in `err`. */
static char *complete(const char *text, struct errmsg *err)
{
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	assert_non_null(spec);
	if (jobfile_parse("job.yaml", text, strlen(text), spec, err) != 0) {
		fail_msg("%s\n%s", text, err->text);
	}
	int r = jobspec_complete(&spec->base, err);
	assert_true(r == 0 || r == STATUS_INVALID);
	struct jsonw j = {0};
	jsonw_message(&j, &spec->base);
	return r == 0 ? buf_steal(&j.buf, NULL) : (jsonw_deinit(&j), NULL);
}

static void test_methods(void **state)
{
	static const struct { const char *yaml, *json; } cases[] = {
		{"method: full", "\"full\":{}"},
		{"method: last_k", "\"last_k\":{\"k\":1,\"head\":false,\"final_norm\":false}"},
		{"method: bitfit\nbitfit: {}", "\"bitfit\":{\"target_modules\":[]}"},
		{"method: ln_tuning", "\"ln_tuning\":{\"target_modules\":[]}"},
		{"method: select\nselect: {parameters: ['layers\\.0\\.']}",
			"\"select\":{\"parameters\":[\"layers\\\\.0\\\\.\"]}"},
		{"method: prompt_tuning", "\"prompt_tuning\":{\"num_virtual_tokens\":20,"
			"\"prompt_tuning_init\":\"RANDOM\"}"},
		{"method: p_tuning", "\"p_tuning\":{\"num_virtual_tokens\":20,"
			"\"encoder_reparameterization_type\":\"MLP\",\"encoder_hidden_size\":0,"
			"\"encoder_num_layers\":2,\"encoder_dropout\":0.0}"},
		{"method: prefix_tuning", "\"prefix_tuning\":{\"num_virtual_tokens\":20,"
			"\"prefix_projection\":false,\"encoder_hidden_size\":0}"},
		{"method: ia3", "\"ia3\":{\"target_modules\":[],\"feedforward_modules\":[],"
			"\"init_ia3_weights\":true}"},
		/* Presets fill in what is left out, and nothing else. */
		{"method: bottleneck", "\"bottleneck\":{\"config\":\"houlsby\",\"mh_adapter\":true,"
			"\"output_adapter\":true,\"reduction_factor\":16.0,\"non_linearity\":\"swish\","
			"\"scaling\":1.0,\"is_parallel\":false,\"original_ln_before\":false,"
			"\"init_weights\":\"bert\"}"},
		{"method: bottleneck\nbottleneck: {config: parallel, scaling: 2, non_linearity: gelu}",
			"\"bottleneck\":{\"config\":\"parallel\",\"mh_adapter\":false,"
			"\"output_adapter\":true,\"reduction_factor\":2.0,\"non_linearity\":\"gelu\","
			"\"scaling\":2.0,\"is_parallel\":true,\"original_ln_before\":false,"
			"\"init_weights\":\"mam_adapter\"}"},
		{"method: bottleneck\nbottleneck: {config: pfeiffer, mh_adapter: true}",
			"\"mh_adapter\":true,\"output_adapter\":true,\"reduction_factor\":16.0,"
			"\"non_linearity\":\"relu\",\"scaling\":1.0,\"is_parallel\":false,"
			"\"original_ln_before\":true"},
		/* An empty section of another method says nothing and goes. */
		{"method: full\nlora: {}", "\"full\":{}"},
		{"method: full\nlora: {modules_to_save: []}", "\"full\":{}"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		_cleanup_(freep) char *json = complete(cases[i].yaml, &err);
		if (!json || !strstr(json, cases[i].json)) {
			fail_msg("%s\n%s", cases[i].yaml, json ? json : err.text);
		}
		assert_null(strstr(json, "\"lora\""));
		/* What was filled in is as good as written, and completing it again changes nothing. */
		struct errmsg again_err = {0};
		_cleanup_(freep) char *again = complete(json, &again_err);
		assert_string_equal(json, again);
	}
}

static void test_methods_refused(void **state)
{
	static const struct { const char *yaml, *what, *hint; } cases[] = {
		{"method: lorra", "'lorra' is none", "did you mean 'lora'?"},
		{"method: xyzzyplugh", "'xyzzyplugh' is none; methods: lora, full, last_k, bitfit", "ia3"},
		{"method: train", "'train' is none", ""},
		{"method: ia3\nlora: {r: 8}", "'lora.r' is a setting of method lora",
			"the job's method is ia3"},
		{"ia3: {target_modules: [k_proj]}", "'ia3.target_modules' is a setting of method ia3",
			"the job's method is lora"},
		{"method: full\nlora: {rank_pattern: {a: 1}}", "'lora.rank_pattern'", "method is full"},
		{"method: bottleneck\nbottleneck: {mh_adapter: true}\nlast_k: {k: 2}", "'last_k.k'", ""},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct errmsg err = {0};
		_cleanup_(freep) char *json = complete(cases[i].yaml, &err);
		if (json || !strstr(err.text, cases[i].what) || !strstr(err.text, cases[i].hint)) {
			fail_msg("%s\n%s", cases[i].yaml, json ? json : err.text);
		}
	}
}

static void test_set(void **state)
{
	static const struct { const char *set, *json; } good[] = {
		{"train.learning_rate=1e-4", "{\"train\":{\"learning_rate\":0.0001}}"},
		{"model=m", "{\"model\":\"m\"}"},
		{"name=2024", "{\"name\":\"2024\"}"}, /* nothing is quoted on a command line */
		{"name=a=b", "{\"name\":\"a=b\"}"},
		{"lora.target_modules=[q_proj, v_proj]",
			"{\"lora\":{\"target_modules\":[\"q_proj\",\"v_proj\"]" NO_LISTS "}}"},
		{"lora.target_modules=q_proj,v_proj",
			"{\"lora\":{\"target_modules\":[\"q_proj\",\"v_proj\"]" NO_LISTS "}}"},
		{"lora.modules_to_save=[]", "{\"lora\":{" NO_TARGETS NO_LISTS "}}"},
		{"lora.layers_to_transform=0,3", 
			"{\"lora\":{" NO_TARGETS NO_PATTERNS ",\"layers_to_transform\":[0,3],\"modules_to_save\":[]}}"},
		{"lora.rank_pattern={q_proj: 8, v_proj:4}",
			"{\"lora\":{" NO_TARGETS ",\"rank_pattern\":{\"q_proj\":8,\"v_proj\":4},"
			"\"alpha_pattern\":{},\"layers_to_transform\":[],\"modules_to_save\":[]}}"},
		{"lora.rank_pattern={}", "{\"lora\":{" NO_TARGETS NO_LISTS "}}"},
		{"lora.rank_pattern.layers.0.mlp=8", 
			"{\"lora\":{" NO_TARGETS ",\"rank_pattern\":{\"layers.0.mlp\":8},"
			"\"alpha_pattern\":{},\"layers_to_transform\":[],\"modules_to_save\":[]}}"},
		{"lora.init_lora_weights=no",
			"{\"lora\":{" NO_TARGETS ",\"init_lora_weights\":\"false\"" NO_LISTS "}}"},
		{"train.packing=false", "{\"train\":{\"packing\":false}}"},
		{"train.seed=null", "{\"train\":{}}"},
		{"train.dtype=f32", "{\"train\":{\"dtype\":\"f32\"}}"},
	};
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		struct errmsg err = {0};
		_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
		if (spec_assign(spec, good[i].set, &err) != 0) {
			fail_msg("%s: %s", good[i].set, err.text);
		}
		_cleanup_(jsonw_deinit) struct jsonw j = {0};
		jsonw_message(&j, &spec->base);
		assert_string_equal(buf_cstr(&j.buf), good[i].json);
	}
	static const struct { const char *set, *what; } bad[] = {
		{"train.learning_rate", "no KEY=VALUE"},
		{"=5", "no KEY=VALUE"},
		{"train.lr=5", "unknown key 'train.lr'"},
		{"trian.seed=5", "unknown key 'trian'; did you mean 'train'?"},
		{"max_steps=5", "did you mean 'train.max_steps'?"},
		{"train.seed.x=5", "'train.seed' has no settings below it"},
		{"train=5", "settings of its own"},
		{"train.=5", "unknown key 'train.'"},
		{"train.max_steps=five", "whole number"},
		{"train.max_steps=-3", "0 or more"},
		{"train.dtype=fp8", "bf16, f32"},
		{"lora.target_modules=[]", "train nothing"},
		{"lora.target_modules=[a,,b]", NULL}, /* strtok joins empty items: taken as a, b */
		{"train.learning_rate=nan", "must be a number"},
		{"train.learning_rate=", "'train.learning_rate' has an empty value; null stands for"},
		{"train.learning_rate= ", "empty value"},
		{"train.dtype=", "empty value"},
		{"method=", "empty value"},
		{"lora=", "empty value"},
		{"lora.target_modules=", "empty value"},
		{"lora.rank_pattern=", "empty value"},
		{"train.learning_rate=null", NULL},
		{"eval_dataset=", NULL}, /* a text that may be missing */
	};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		struct errmsg err = {0};
		_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
		int r = spec_assign(spec, bad[i].set, &err);
		assert_int_equal(r, bad[i].what ? STATUS_INVALID : 0);
		if (bad[i].what && !strstr(err.text, bad[i].what)) {
			fail_msg("%s: %s", bad[i].set, err.text);
		}
	}
}

static void test_set_overrides(void **state)
{
	struct errmsg err = {0};
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	const char *text = "name: old\ntrain: {dtype: bf16}\nlora: {target_modules: [a, b, c]}";
	assert_int_equal(jobfile_parse("job.yaml", text, strlen(text), spec, &err), 0);
	assert_int_equal(spec_assign(spec, "name=new", &err), 0);
	assert_int_equal(spec_assign(spec, "train.dtype=f32", &err), 0);
	assert_int_equal(spec_assign(spec, "train.dtype=null", &err), 0);
	assert_int_equal(spec_assign(spec, "train.dtype=f32", &err), 0);
	assert_int_equal(spec_assign(spec, "lora.target_modules=d", &err), 0);
	_cleanup_(jsonw_deinit) struct jsonw j = {0};
	jsonw_message(&j, &spec->base);
	assert_string_equal(buf_cstr(&j.buf),
		"{\"name\":\"new\",\"lora\":{\"target_modules\":[\"d\"]" NO_LISTS "},"
		"\"train\":{\"dtype\":\"f32\"}}");
}

static void test_read(void **state)
{
	struct errmsg err = {0};
	_cleanup_(msg_freep) Peftd__V1__JobSpec *spec = spec_new();
	assert_int_equal(jobfile_read("/nonexistent/job.yaml", spec, &err), STATUS_NOT_FOUND);
	assert_non_null(strstr(err.text, "/nonexistent/job.yaml: No such file"));
	assert_int_equal(jobfile_read("/tmp", spec, &err), STATUS_NOT_FOUND);
	assert_non_null(strstr(err.text, "directory"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_understood),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_defaults_are_explicit),
		cmocka_unit_test(test_methods),
		cmocka_unit_test(test_methods_refused),
		cmocka_unit_test(test_set),
		cmocka_unit_test(test_set_overrides),
		cmocka_unit_test(test_read),
	};
	return cmocka_run_group_tests_name("client: job file", tests, NULL, NULL);
}
