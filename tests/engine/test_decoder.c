/* Prompts in company against the same prompts alone, and what is drawn. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "engine/generate/sample.h"
#include "engine/train/rng.h"
#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { N_PROMPTS = 10, LONGEST = 530, NEW = 5, MAX_VOCAB = 256 };

struct prompts {
	int32_t ids[N_PROMPTS][LONGEST];
	size_t len[N_PROMPTS];
	struct generate_options options[N_PROMPTS];
};

/* What came of a prompt: ids, and the bits of the logits each was chosen from. */
struct answer {
	int32_t ids[NEW];
	float logits[NEW][MAX_VOCAB];
	size_t n;
	bool ended, stopped;
};

static uint32_t bits(uint64_t a, uint64_t b)
{
	struct rng_key key = {17, rng_stream(RNG_SAMPLE, a, b, 0)};
	return rng_bits(key, 0);
}

static void make_prompts(struct prompts *p, int64_t vocab)
{
	/* More than a chunk, a whole number of blocks of rows, odd ones. */
	static const size_t lens[N_PROMPTS] = {5, LONGEST, 1, 64, 37, 9, 2, 13, 3, 21};
	for (size_t i = 0; i < N_PROMPTS; i++) {
		p->len[i] = lens[i];
		for (size_t k = 0; k < lens[i]; k++) {
			p->ids[i][k] = (int32_t)(bits(i, k) % (uint64_t)vocab);
		}
		p->options[i] = (struct generate_options){
			.max_new_tokens = (int64_t)(i % NEW) + 1,
			.temperature = i % 3 == 0 ? 0 : 1.1,
			.top_k = i % 4 == 1 ? 9 : 0,
			.top_p = i % 5 == 2 ? 0.9 : 0,
			.repetition_penalty = i % 2 ? 1.2 : 0,
			.seed = i,
		};
	}
}

static void record(struct decoder *d, size_t place, const struct decoded *e, struct answer *a,
	int64_t vocab)
{
	if (e->id >= 0) {
		memcpy(a->logits[a->n], decoder_logits(d, place), (size_t)vocab * sizeof(float));
		a->ids[a->n++] = e->id;
	}
	a->ended = e->ended;
	a->stopped = e->stopped;
}

/* Runs prompts[first … end) with `slots` at once; adds the others as places become free. */
static void run(struct fixture *f, const struct adapter *a, const struct prompts *p, size_t first,
	size_t end, int64_t slots, struct answer *answers)
{
	struct errmsg err = {0};
	struct decoder *d = NULL;
	int64_t vocab = model_files_config(f->files)->vocab_size;
	int64_t longest = 0;
	for (size_t i = first; i < end; i++) {
		longest = max_i64(longest, (int64_t)p->len[i]);
	}
	OK(decoder_new(&d, f->base, a ? &a->config : NULL, longest, longest + NEW, slots, &err));
	OK(decoder_reserve(d, &err));
	if (a) {
		OK(decoder_load(d, a, &err));
	}
	for (size_t next = first; next < end || !decoder_idle(d);) {
		while (next < end && decoder_has_room(d)) {
			OK(decoder_add(d, next, p->ids[next], p->len[next], &p->options[next], &err));
			next++;
		}
		struct decoded out[DECODE_LANES];
		size_t n;
		OK(decoder_step(d, out, &n, &err));
		for (size_t i = 0; i < n; i++) {
			record(d, i, &out[i], &answers[out[i].tag], vocab);
		}
	}
	decoder_free(d);
}

static void assert_same(const struct fixture *f, const struct answer *a, const struct answer *b,
	size_t i, int64_t vocab)
{
	assert_true(a->ended && b->ended && a->stopped == b->stopped);
	assert_int_equal(a->n, b->n);
	assert_memory_equal(a->ids, b->ids, a->n * sizeof(a->ids[0]));
	for (size_t k = 0; k < a->n; k++) {
		if (memcmp(a->logits[k], b->logits[k], (size_t)vocab * sizeof(float)) != 0) {
			print_error("%s: prompt %zu, token %zu: other bits\n", f->folder, i, k);
			fail();
		}
	}
}

static void check_company(struct fixture *f, const struct adapter *a, struct answer *together,
	struct answer *alone, const struct prompts *p)
{
	static const int64_t slots[] = {DECODE_LANES, 3};
	int64_t vocab = model_files_config(f->files)->vocab_size;
	memset(alone, 0, N_PROMPTS * sizeof(*alone));
	for (size_t i = 0; i < N_PROMPTS; i++) {
		run(f, a, p, i, i + 1, 1, alone);
	}
	for (size_t s = 0; s < ARRAY_LEN(slots); s++) {
		memset(together, 0, N_PROMPTS * sizeof(*together));
		run(f, a, p, 0, N_PROMPTS, slots[s], together);
		for (size_t i = 0; i < N_PROMPTS; i++) {
			assert_same(f, &together[i], &alone[i], i, vocab);
		}
	}
}

static void test_company(void **state)
{
	/* Whatever adds to the graph in a way of its own. */
	static const char *const names[] = {"mha", "gqa3-odd", "methods/bottleneck-parallel-both",
		"methods/ia3-default", "methods/lora-dora-bias", "methods/lora-head",
		"methods/prefix_tuning-default", "methods/prompt_tuning-random"};
	struct prompts *p = calloc(1, sizeof(*p));
	struct answer *together = calloc(N_PROMPTS, sizeof(*together));
	struct answer *alone = calloc(N_PROMPTS, sizeof(*alone));
	assert_non_null(p);
	assert_non_null(together);
	assert_non_null(alone);
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct fixture f;
		fixture_open(&f, names[i]);
		make_prompts(p, model_files_config(f.files)->vocab_size);
		for (int bf16 = 0; bf16 < (i < 2 ? 2 : 1); bf16++) {
			fixture_base(&f, bf16 ? DTYPE_BF16 : DTYPE_F32, false);
			check_company(&f, f.has_adapter ? &f.adapter : NULL, together, alone, p);
		}
		fixture_close(&f);
	}
	free(alone);
	free(together);
	free(p);
}

/* A prompt that is ended early makes room and leaves no trace in the others. */
static void test_end(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "mha");
	fixture_base(&f, DTYPE_F32, false);
	struct decoder *d = NULL;
	struct generate_options o = {.max_new_tokens = 5};
	struct decoded out[DECODE_LANES];
	size_t n;
	OK(decoder_new(&d, f.base, NULL, 4, 9, 2, &err));
	OK(decoder_reserve(d, &err));
	OK(decoder_add(d, 1, f.samples.ids, 4, &o, &err));
	OK(decoder_add(d, 2, f.samples.ids, 3, &o, &err));
	assert_false(decoder_has_room(d));
	assert_int_equal(decoder_add(d, 3, f.samples.ids, 3, &o, &err), STATUS_UNAVAILABLE);
	OK(decoder_step(d, out, &n, &err));
	assert_int_equal(n, 1);
	assert_int_equal(out[0].tag, 1);
	decoder_end(d, 1);
	assert_true(decoder_has_room(d));
	OK(decoder_step(d, out, &n, &err));
	assert_int_equal(n, 1);
	assert_int_equal(out[0].tag, 2);
	decoder_end(d, 2);
	assert_true(decoder_idle(d));
	OK(decoder_step(d, out, &n, &err));
	assert_int_equal(n, 0);
	/* Too long a prompt, too long an answer. */
	assert_int_equal(decoder_add(d, 3, f.samples.ids, 5, &o, &err), STATUS_INVALID);
	o.max_new_tokens = 6;
	assert_int_equal(decoder_add(d, 3, f.samples.ids, 4, &o, &err), STATUS_INVALID);
	decoder_free(d);
	fixture_close(&f);
}

/* ---- switching ------------------------------------------------------------------------------- */

enum { MAX_ADAPTERS = 40 };

/* The adapters of all golden cases on one base, as their library saved them before and after training. */
struct shelf {
	struct fixture base;
	struct adapter adapters[MAX_ADAPTERS];
	char *weights[MAX_ADAPTERS];
	struct answer alone[MAX_ADAPTERS];
	size_t n;
};

static void add_folder(struct shelf *s, const char *folder)
{
	struct errmsg err = {0};
	size_t len, config_len;
	char path[4096];
	snprintf(path, sizeof(path), "%s/final", folder);
	if (access(path, F_OK) != 0 || s->n == MAX_ADAPTERS) {
		return;
	}
	_cleanup_(freep) char *config = read_file(path, "adapter_config.json", &config_len);
	enum adapter_kind kind = adapter_kind_of_config(config, config_len);
	s->weights[s->n] = read_file(path, adapter_files(kind).weights, &len);
	OK(adapter_parse(&s->adapters[s->n], config, config_len, s->weights[s->n], len, &err));
	s->n++;
}

static void fill_shelf(struct shelf *s, const char *model)
{
	for (int i = 0; golden_methods[i] && s->n < MAX_ADAPTERS; i++) {
		struct fixture f;
		fixture_open(&f, golden_methods[i]);
		if (f.has_adapter &&
			strcmp(json_string_value(json_object_get(f.golden, "model")), model) == 0) {
			s->adapters[s->n] = f.adapter;
			s->weights[s->n++] = f.adapter_weights;
			f.adapter = (struct adapter){0};
			f.adapter_weights = NULL;
			add_folder(s, f.folder);
		}
		fixture_close(&f);
	}
}

/* Over one base in a random order, with the decoder kept where the next adapter suits it. */
static void test_switching(void **state)
{
	enum { TURNS = 60 };
	struct errmsg err = {0};
	struct shelf *s = calloc(1, sizeof(*s));
	struct prompts *p = calloc(1, sizeof(*p));
	assert_non_null(s);
	assert_non_null(p);
	fixture_open(&s->base, "gqa3-odd");
	fixture_base(&s->base, DTYPE_F32, false);
	fill_shelf(s, "llama/gqa3-odd");
	assert_true(s->n >= 20);
	int64_t vocab = model_files_config(s->base.files)->vocab_size;
	make_prompts(p, vocab);
	p->options[4] = (struct generate_options){.max_new_tokens = NEW};
	for (size_t i = 0; i < s->n; i++) {
		struct answer all[N_PROMPTS] = {0};
		run(&s->base, &s->adapters[i], p, 4, 5, 1, all);
		s->alone[i] = all[4];
	}

	struct decoder *d = NULL;
	int kept = 0;
	for (uint64_t turn = 0; turn < TURNS; turn++) {
		size_t k = bits(99, turn) % s->n;
		struct answer a = {0};
		int suits = d ? decoder_suits(d, &s->adapters[k].config, &err) : 0;
		kept += suits;
		if (!suits) {
			decoder_free(d);
			d = NULL;
			OK(decoder_new(&d, s->base.base, &s->adapters[k].config, LONGEST, LONGEST + NEW, 2, &err));
			OK(decoder_reserve(d, &err));
		}
		OK(decoder_load(d, &s->adapters[k], &err));
		OK(decoder_add(d, 0, p->ids[4], p->len[4], &p->options[4], &err));
		while (!decoder_idle(d)) {
			struct decoded out[DECODE_LANES];
			size_t n;
			OK(decoder_step(d, out, &n, &err));
			for (size_t i = 0; i < n; i++) {
				record(d, i, &out[i], &a, vocab);
			}
		}
		assert_same(&s->base, &a, &s->alone[k], k, vocab);
	}
	assert_true(kept > 0); /* some neighbours were alike */
	decoder_free(d);
	for (size_t i = 0; i < s->n; i++) {
		adapter_deinit(&s->adapters[i]);
		free(s->weights[i]);
	}
	fixture_close(&s->base);
	free(s);
	free(p);
}

/* ---- sampling -------------------------------------------------------------------------------- */

static double number_or(const json_t *o, const char *key, double otherwise)
{
	const json_t *v = json_object_get(o, key);
	return v ? json_number_value(v) : otherwise;
}

static void check_case(const json_t *c)
{
	const json_t *logits = json_object_get(c, "logits"), *ids = json_object_get(c, "ids");
	const json_t *want = json_object_get(c, "probabilities");
	int64_t n = (int64_t)json_array_size(logits);
	float scores[MAX_VOCAB];
	uint8_t seen[MAX_VOCAB] = {0};
	int32_t heap[MAX_VOCAB];
	double sum = 0;
	struct generate_options o = {
		.max_new_tokens = 1,
		.temperature = number_or(c, "temperature", 0),
		.top_k = (int64_t)number_or(c, "top_k", 0),
		.top_p = number_or(c, "top_p", 0),
		.repetition_penalty = number_or(c, "repetition_penalty", 0),
	};
	for (int64_t i = 0; i < n; i++) {
		scores[i] = (float)json_number_value(json_array_get(logits, (size_t)i));
	}
	for (size_t i = 0; i < json_array_size(ids); i++) {
		seen[json_integer_value(json_array_get(ids, i))] = 1;
	}
	sample_process(&o, scores, seen, heap, n);
	for (int64_t i = 0; i < n; i++) {
		sum += exp(scores[i]);
	}
	for (int64_t i = 0; i < n; i++) {
		double p = json_number_value(json_array_get(want, (size_t)i));
		assert_true((p == 0) == (scores[i] == -INFINITY));
		assert_true(fabs(exp(scores[i]) / sum - p) <= 1e-6);
	}
	/* What is drawn is among what is left. */
	for (uint64_t seed = 0; seed < 50; seed++) {
		struct rng_key key = {seed, rng_stream(RNG_SAMPLE, 1, 0, 0)};
		assert_true(scores[sample_draw(scores, n, key)] > -INFINITY);
	}
}

static void test_processors(void **state)
{
	size_t len, i;
	const char *root = getenv("PEFTD_GOLDEN");
	_cleanup_(freep) char *json =
		read_file(root ? root : "tests/golden", "generate/sampling.json", &len);
	json_t *golden = json_loadb(json, len, 0, NULL), *c;
	assert_true(json_array_size(json_object_get(golden, "cases")) > 20);
	json_array_foreach(json_object_get(golden, "cases"), i, c) {
		check_case(c);
	}
	json_decref(golden);
}

static void test_options(void **state)
{
	struct errmsg err = {0};
	static const struct generate_options bad[] = {
		{.max_new_tokens = 0},
		{.max_new_tokens = 1, .temperature = -1},
		{.max_new_tokens = 1, .temperature = NAN},
		{.max_new_tokens = 1, .top_k = -1},
		{.max_new_tokens = 1, .top_p = 1.5},
		{.max_new_tokens = 1, .top_p = NAN},
		{.max_new_tokens = 1, .repetition_penalty = -1},
		{.max_new_tokens = 1, .repetition_penalty = INFINITY},
	};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(generate_options_check(&bad[i], &err), STATUS_INVALID);
	}
	const struct generate_options good = {.max_new_tokens = 1, .top_p = 1, .repetition_penalty = 1};
	OK(generate_options_check(&good, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_company),
		cmocka_unit_test(test_end),
		cmocka_unit_test(test_switching),
		cmocka_unit_test(test_processors),
		cmocka_unit_test(test_options),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
