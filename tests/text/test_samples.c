#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/text/text-internal.h"
#include "tests/text/support.h"
#include "util/util.h"

static struct tokenizer *with_eos(const char *name, const char *eos)
{
	char file[128], config[128];
	size_t len;
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	snprintf(file, sizeof(file), "%s.tokenizer.json", name);
	snprintf(config, sizeof(config), "{\"eos_token\": \"%s\"}", eos);
	char *json = golden_read(file, &len);
	if (tokenizer_from_json(&t, json, len, config, strlen(config), file, &err) != 0) {
		fail_msg("%s", err.text);
	}
	free(json);
	return t;
}

static struct samples *make(const char *data, const struct tokenizer *t, struct sample_options o,
	unsigned threads)
{
	struct samples *s = NULL;
	struct errmsg err = {0};
	int r = samples_new(&s, data, strlen(data), t, &o, threads, &err);
	if (r != 0) {
		fail_msg("%d: %s", r, err.text);
	}
	return s;
}

static void assert_fails(const char *data, const struct tokenizer *t, struct sample_options o,
	const char *says)
{
	for (unsigned threads = 1; threads < 6; threads++) {
		struct samples *s = NULL;
		struct errmsg err = {0};
		assert_int_equal(samples_new(&s, data, strlen(data), t, &o, threads, &err), STATUS_INVALID);
		if (!strstr(err.text, says)) {
			fail_msg("%s (should say %s)", err.text, says);
		}
	}
}

static char *as_jsonl(const json_t *rows)
{
	struct buf b = {0};
	size_t i;
	json_t *row;
	json_array_foreach(rows, i, row) {
		char *line = json_dumps(row, JSON_COMPACT);
		assert_int_equal(buf_appendf(&b, "%s\n", line), 0);
		free(line);
	}
	return buf_steal(&b, NULL);
}

static void assert_row(const struct samples *s, size_t i, const json_t *ids, const json_t *labels,
	const char *what)
{
	size_t n = json_array_size(ids);
	assert_int_equal(s->start[i + 1] - s->start[i], n);
	for (size_t k = 0; k < n; k++) {
		size_t at = (size_t)s->start[i] + k;
		if (s->ids[at] != json_integer_value(json_array_get(ids, k)) ||
				s->labels[at] != json_integer_value(json_array_get(labels, k))) {
			fail_msg("%s: row %zu differs at %zu: id %d, label %d", what, i, k, s->ids[at],
				s->labels[at]);
		}
	}
}

/* Prompt and completion as TRL makes them, misaligned rows found. */
static void test_trl(void **state)
{
	json_t *golden = golden_json("samples.json"), *of_name;
	char *data = as_jsonl(json_object_get(golden, "rows"));
	const char *name;
	json_object_foreach(json_object_get(golden, "expected"), name, of_name) {
		struct tokenizer *t = with_eos(name, json_string_value(json_object_get(of_name, "eos")));
		struct samples *s = make(data, t, (struct sample_options){0}, 1);
		const json_t *rows = json_object_get(of_name, "rows");
		uint64_t misaligned = 0, targets = 0;
		assert_int_equal(s->n, json_array_size(rows));
		for (size_t i = 0; i < s->n; i++) {
			const json_t *row = json_array_get(rows, i);
			bool bad = json_is_true(json_object_get(row, "misaligned"));
			assert_row(s, i, json_object_get(row, "ids"), json_object_get(row, "labels"), name);
			assert_int_equal(s->row[i], i);
			assert_int_equal(s->fault[i], bad ? ROW_MISALIGNED : ROW_OK);
			misaligned += bad;
			for (int64_t k = s->start[i] + 1; k < s->start[i + 1]; k++) {
				targets += s->labels[k] != -100;
			}
		}
		assert_int_equal(s->misaligned, misaligned);
		assert_int_equal(s->target_tokens, targets);
		samples_free(s);
		tokenizer_free(t);
	}
	free(data);
	json_decref(golden);
}

/* Conversations as transformers tokenizes and masks them, with a training template of TRL's kind.
 */
static void test_chat(void **state)
{
	json_t *golden = golden_json("chat.json"), *of_template, *c, *pair;
	size_t i, k, compared = 0;
	const char *name;
	json_array_foreach(golden, i, of_template) {
		struct sample_options o = {.keep_all = true};
		struct chat_template *tmpl = NULL;
		assert_int_equal(chat_template_new(&tmpl, NULL,
			json_string_value(json_object_get(of_template, "name")), NULL), 0);
		o.chat_template = tmpl;
		json_array_foreach(json_object_get(of_template, "conversations"), k, c) {
			json_object_foreach(json_object_get(c, "tokens"), name, pair) {
				bool extra = strcmp(name, "deepseek") == 0 || strcmp(name, "gpt4o") == 0;
				char file[64], what[160];
				snprintf(file, sizeof(file), "%s%s", name, extra ? "-chat" : "");
				struct tokenizer *t = golden_tokenizer(file);
				json_t *row = json_pack("{sO}", "messages", json_object_get(c, "messages"));
				char *data = json_dumps(row, JSON_COMPACT);
				struct samples *s = make(data, t, o, 1);
				snprintf(what, sizeof(what), "%s, %s, conversation %zu",
					chat_template_name(o.chat_template), name, k);
				const json_t *ids = json_array_get(pair, 0), *mask = json_array_get(pair, 1);
				json_t *labels = json_array();
				for (size_t j = 0; j < json_array_size(ids); j++) {
					bool on = json_integer_value(json_array_get(mask, j)) == 1;
					json_array_append_new(labels, on ? json_incref(json_array_get(ids, j)) :
						json_integer(-100));
				}
				assert_row(s, 0, ids, labels, what);
				compared++;
				json_decref(labels);
				samples_free(s);
				free(data);
				json_decref(row);
				tokenizer_free(t);
			}
		}
		chat_template_free(tmpl);
	}
	assert_true(compared > 100);
	json_decref(golden);
}

static void test_text(void **state)
{
	struct tokenizer *t = with_eos("smollm", "<|im_end|>");
	struct samples *s = make("{\"text\": \"ab\"}\n{\"text\": \"ab<|im_end|>\"}\n", t,
		(struct sample_options){0}, 1);
	assert_int_equal(s->n, 2);
	assert_int_equal(s->start[1], s->start[2] - s->start[1]);
	for (int64_t k = 0; k < s->start[2]; k++) {
		assert_int_equal(s->ids[k], s->labels[k]);
		assert_int_equal(s->ids[k], s->ids[k % s->start[1]]);
	}
	assert_int_equal(s->ids[s->start[1] - 1], tokenizer_eos(t));
	assert_int_equal(s->target_tokens, 2 * (s->start[1] - 1));
	samples_free(s);
	tokenizer_free(t);
}

static const char four[] =
	"{\"prompt\": \"1\", \"completion\": \"1\"}\n"
	"{\"prompt\": \"11111\", \"completion\": \"1111\"}\n"
	"{\"prompt\": \"11\", \"completion\": \"11111111\"}\n"
	"{\"prompt\": \"1\", \"completion\": \"11\"}\n";

/* Digits are tokens here: the rows have 3, 10, 11 and 4. */
static void test_overlong(void **state)
{
	struct tokenizer *t = with_eos("smollm", "<|im_end|>");
	struct sample_options o = {.max_length = 5, .overlong = OVERLONG_DROP};
	struct samples *s = make(four, t, o, 2);
	assert_int_equal(s->n, 2);
	assert_int_equal(s->row[0], 0);
	assert_int_equal(s->row[1], 3);
	assert_int_equal(s->rows, 4);
	assert_int_equal(s->overlong, 2);
	assert_int_equal(s->untrainable, 0);
	assert_int_equal(s->longest, 11);
	assert_int_equal(s->longest_kept, 4);
	assert_int_equal(s->target_tokens, 2 + 3);
	samples_free(s);

	o.overlong = OVERLONG_TRUNCATE; /* of row 1 only the prompt is left */
	s = make(four, t, o, 2);
	assert_int_equal(s->n, 3);
	assert_int_equal(s->row[1], 2);
	assert_int_equal(s->fault[1], ROW_OVERLONG);
	assert_int_equal(s->start[2] - s->start[1], 5);
	assert_int_equal(s->overlong, 2);
	assert_int_equal(s->untrainable, 1);
	assert_int_equal(s->longest_kept, 5);
	assert_int_equal(s->target_tokens, 2 + 3 + 3);
	samples_free(s);

	o.keep_all = true;
	s = make(four, t, o, 2);
	assert_int_equal(s->n, 4);
	assert_int_equal(s->fault[1], ROW_UNTRAINABLE);
	assert_int_equal(s->target_tokens, 2 + 3 + 3);
	samples_free(s);
	o.overlong = OVERLONG_DROP;
	s = make(four, t, o, 2);
	assert_int_equal(s->n, 4);
	assert_int_equal(s->fault[1], ROW_OVERLONG);
	assert_int_equal(s->start[2] - s->start[1], 10);
	assert_int_equal(s->longest_kept, 4);
	samples_free(s);

	o = (struct sample_options){.max_length = 5, .overlong = OVERLONG_RAISE};
	assert_fails(four, t, o, "row 1 (counted from 0): it has 10 tokens, more than max_length 5");
	/* With the files that rows come from, by the place in its own. */
	const char *second = strchr(four, '\n') + 1;
	const struct rows_file files[] = {{"a.jsonl", (size_t)(second - four)},
		{"b.jsonl", strlen(second)}};
	o.files = files;
	o.n_files = 2;
	assert_fails(four, t, o, "b.jsonl:1: it has 10 tokens, more than max_length 5");
	const struct rows_file one = {"c.jsonl", strlen(four)};
	o.files = &one;
	o.n_files = 1;
	assert_fails(four, t, o, "c.jsonl:2: it has 10 tokens");
	const struct rows_file short_of = {"d.jsonl", (size_t)(second - four)};
	o.files = &short_of; /* what lies in no file is told by its number */
	assert_fails(four, t, o, "row 1 (counted from 0): it has 10 tokens");
	o.files = NULL;
	o.n_files = 0;
	o.max_length = 11;
	s = make(four, t, o, 3);
	assert_int_equal(s->n, 4);
	assert_int_equal(s->overlong, 0);
	samples_free(s);
	tokenizer_free(t);
}

/* Digits and the end are tokens. The sides of rows: 1 and 2, 5 and 5, 2 and 9, 1 and 3. */
static void test_sides(void **state)
{
	struct tokenizer *t = with_eos("smollm", "<|im_end|>");
	struct sample_options o = {.encoder_decoder = true};
	const int32_t eos = tokenizer_eos(t);
	struct samples *s = make(four, t, o, 2);
	static const int64_t source[] = {1, 5, 2, 1}, target[] = {2, 5, 9, 3};
	assert_int_equal(s->n, 4);
	assert_int_equal(s->longest, 9);
	assert_int_equal(s->target_tokens, 2 + 5 + 9 + 3);
	for (int i = 0; i < 4; i++) {
		int64_t at = s->start[i], len = s->start[i + 1] - at;
		assert_int_equal(s->source_len[i], source[i]);
		assert_int_equal(len, source[i] + target[i]);
		assert_int_equal(s->ids[at + len - 1], eos);
		for (int64_t k = 0; k < len; k++) {
			assert_int_equal(s->labels[at + k], k < source[i] ? -100 : s->ids[at + k]);
		}
	}
	samples_free(s);

	/* Each side by itself; what ends it stays. */
	o.max_length = 4;
	o.overlong = OVERLONG_TRUNCATE;
	s = make(four, t, o, 2);
	assert_int_equal(s->overlong, 2);
	assert_int_equal(s->longest_kept, 4);
	assert_int_equal(s->source_len[1], 4);
	assert_int_equal(s->start[2] - s->start[1], 8);
	assert_int_equal(s->ids[s->start[2] - 1], eos);
	assert_int_equal(s->labels[s->start[2] - 1], eos);
	assert_int_equal(s->labels[s->start[1] + 3], -100);
	assert_int_equal(s->start[3] - s->start[2], 2 + 4);
	assert_int_equal(s->ids[s->start[3] - 1], eos);
	samples_free(s);
	o.overlong = OVERLONG_DROP;
	s = make(four, t, o, 3);
	assert_int_equal(s->n, 2);
	assert_int_equal(s->row[1], 3);
	assert_int_equal(s->source_len[1], 1);
	samples_free(s);

	o = (struct sample_options){.encoder_decoder = true};
	assert_fails("{\"text\": \"1\"}\n", t, o, "pairs of prompt and completion; these are text");
	assert_fails("{\"prompt\": \"\", \"completion\": \"1\"}\n", t, o, "the prompt is empty");
	o.train_on_prompt = true;
	assert_fails(four, t, o, "train_on_prompt");
	tokenizer_free(t);
}

static void test_train_on_prompt(void **state)
{
	struct tokenizer *t = with_eos("smollm", "<|im_end|>");
	struct sample_options o = {.train_on_prompt = true};
	struct samples *s = make(four, t, o, 1);
	assert_memory_equal(s->ids, s->labels, (size_t)s->start[4] * sizeof(*s->ids));
	assert_int_equal(s->target_tokens, s->start[4] - 4);
	samples_free(s);
	struct chat_template *tmpl = NULL;
	assert_int_equal(chat_template_new(&tmpl, NULL, "chatml", NULL), 0);
	o.chat_template = tmpl;
	s = make("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", t, o, 1);
	assert_int_equal(s->n, 1);
	assert_memory_equal(s->ids, s->labels, (size_t)s->start[1] * sizeof(*s->ids));
	samples_free(s);
	chat_template_free(tmpl);
	tokenizer_free(t);
}

static void test_nothing(void **state)
{
	struct tokenizer *t = with_eos("smollm", "<|im_end|>"), *no_eos = golden_tokenizer("smollm");
	struct sample_options o = {.max_length = 2, .overlong = OVERLONG_DROP};
	const char no_answer[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}";
	const char unknown[] = "{\"messages\": [{\"role\": \"gpt\", \"content\": \"a\"}]}";
	assert_fails("", t, o, "no rows");
	assert_fails(four, t, o, "of 4, 4 have more than max_length 2 tokens and 0 leave nothing");
	assert_fails(four, no_eos, o, "end-of-sequence");
	assert_fails(no_answer, t, o, "no chat template");
	assert_fails("{}", t, o, "row 0");
	o = (struct sample_options){0};
	struct chat_template *tmpl = NULL;
	assert_int_equal(chat_template_new(&tmpl, NULL, "chatml", NULL), 0);
	o.chat_template = tmpl;
	assert_fails(no_answer, t, o, "1 leave nothing to train on");
	assert_fails(unknown, t, o, "role `gpt`");
	/* One token and nothing before it that would predict it. */
	assert_fails("{\"text\": \"<|im_end|>\"}", t, o, "1 leave nothing to train on");
	chat_template_free(tmpl);
	tokenizer_free(t);
	tokenizer_free(no_eos);
}

/* Whatever the number of threads, also where files without a last newline were joined. */
static void test_threads(void **state)
{
	struct tokenizer *t = with_eos("llama3", "<|eot_id|>");
	struct sample_options o = {.max_length = 40, .overlong = OVERLONG_TRUNCATE};
	struct buf data = {0};
	uint64_t seed = 9;
	for (unsigned i = 0; i < 700; i++) {
		size_t len;
		char *a = random_text(&seed, next_random(&seed) % 12, &len);
		char *b = random_text(&seed, 1 + next_random(&seed) % 40, &len);
		json_t *row = json_pack("{ssss}", "prompt", a, "completion", b);
		char *line = row ? json_dumps(row, JSON_COMPACT) : strdup("{\"text\": \"x\"}");
		assert_int_equal(buf_appendf(&data, "%s%s", line,
							 i % 50 == 7 ? ""
								 : i % 3 ? "\n"
										 : "\r\n"),
			0);
		json_decref(row);
		free(line);
		free(a);
		free(b);
	}
	const char *text = buf_cstr(&data);
	struct samples *one = make(text, t, o, 1);
	assert_int_equal(one->rows, 700);
	assert_true(one->overlong > 10 && one->n > 500);
	static const unsigned counts[] = {2, 3, 7, 64, 1000};
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		struct samples *s = make(text, t, o, counts[i]);
		size_t tokens = (size_t)one->start[one->n];
		assert_int_equal(s->n, one->n);
		assert_memory_equal(s->start, one->start, (one->n + 1) * sizeof(*s->start));
		assert_memory_equal(s->ids, one->ids, tokens * sizeof(*s->ids));
		assert_memory_equal(s->labels, one->labels, tokens * sizeof(*s->labels));
		assert_memory_equal(s->row, one->row, one->n * sizeof(*s->row));
		assert_memory_equal(s->fault, one->fault, one->n);
		assert_int_equal(s->rows, one->rows);
		assert_int_equal(s->overlong, one->overlong);
		assert_int_equal(s->untrainable, one->untrainable);
		assert_int_equal(s->misaligned, one->misaligned);
		assert_int_equal(s->target_tokens, one->target_tokens);
		assert_int_equal(s->longest, one->longest);
		assert_int_equal(s->longest_kept, one->longest_kept);
		samples_free(s);
	}
	samples_free(one);
	buf_deinit(&data);
	tokenizer_free(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_trl),
		cmocka_unit_test(test_chat),
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_overlong),
		cmocka_unit_test(test_sides),
		cmocka_unit_test(test_train_on_prompt),
		cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
