#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "engine/text/text-internal.h"
#include "tests/support/skip.h"
#include "tests/text/support.h"
#include "util/util.h"

static const char *const names[] = {
	"smollm", "gpt2", "llama3", "qwen2", "gpt4o", "deepseek", "behaviors", "llama2", "phi3",
	"mistral", "fused", "gemma", "neox", "roberta", "t5", "mt5", "albert", "words",
	"cl100k", "tekken", "deepseek_llm"};

/* ---- against Hugging Face tokenizers ----------------------------------------------------- */

static void check_golden(const char *name)
{
	json_t *cases = golden_json("cases.json");
	json_t *of_name = json_object_get(json_object_get(cases, "tokenizers"), name);
	json_t *texts = json_object_get(cases, "texts");
	struct tokenizer *t = golden_tokenizer(name);
	char what[64];

	assert_true(json_array_size(texts) > 60);
	assert_int_equal(tokenizer_vocab_size(t), json_integer_value(json_object_get(of_name, "size")));
	assert_ids(t, "x", 1, true, json_object_get(of_name, "special"), "special");
	for (size_t i = 0; i < json_array_size(texts); i++) {
		const json_t *text = json_array_get(texts, i);
		snprintf(what, sizeof(what), "%s: text %zu", name, i);
		assert_ids(t, json_string_value(text), json_string_length(text), false,
			json_array_get(json_object_get(of_name, "ids"), i), what);
	}
	tokenizer_free(t);
	json_decref(cases);
}

static void assert_text(const struct buf *text, const json_t *expected, const char *what)
{
	size_t len = json_string_length(expected);
	if (text->len != len || (len > 0 && memcmp(text->data, json_string_value(expected), len) != 0)) {
		fail_msg("%s: decoded into '%.*s' and should be '%s'", what, (int)text->len,
			(const char *)text->data, json_string_value(expected));
	}
}

static void assert_decoded(const struct tokenizer *t, const int32_t *ids, size_t n,
	bool skip_special, const json_t *expected, const char *what)
{
	struct token_stream *s = NULL;
	struct buf text = {0};
	assert_int_equal(token_stream_new(&s, t, skip_special), 0);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(token_stream_put(s, ids[i], &text), 0);
		/* What has come is whole characters, and the start of the whole. */
		assert_true(utf8_valid(text.data, text.len, NULL));
		assert_true(text.len <= json_string_length(expected));
		if (text.len > 0) {
			assert_memory_equal(text.data, json_string_value(expected), text.len);
		}
	}
	assert_int_equal(token_stream_end(s, &text), 0);
	assert_text(&text, expected, what);
	token_stream_free(s);
	buf_deinit(&text);
}

static void check_decoding(const char *name, const struct tokenizer *t, json_t *texts,
	json_t *decoded)
{
	json_t *mixed = json_object_get(decoded, "mixed"), *runs = json_object_get(decoded, "runs");
	struct ids ids = {0};
	struct errmsg err;

	for (size_t i = 0; i < json_array_size(texts); i++) {
		const json_t *text = json_array_get(texts, i);
		ids.len = 0;
		assert_int_equal(tokenizer_encode(t, json_string_value(text), json_string_length(text), true,
			&ids, &err), 0);
		assert_decoded(t, ids.data, ids.len, true,
			json_array_get(json_object_get(decoded, "texts"), i), name);
	}
	ids.len = 0;
	for (int32_t id = -1; id < tokenizer_vocab_size(t) + 2; id++) {
		assert_int_equal(ids_append(&ids, &id, 1), 0);
	}
	assert_decoded(t, ids.data, ids.len, false, json_object_get(decoded, "every"), name);
	ids.len = 0;
	for (size_t i = 0; i < json_array_size(mixed); i++) {
		int32_t id = (int32_t)json_integer_value(json_array_get(mixed, i));
		assert_int_equal(ids_append(&ids, &id, 1), 0);
	}
	assert_decoded(t, ids.data, ids.len, true, json_object_get(decoded, "some"), name);
	assert_decoded(t, ids.data, ids.len, false, json_object_get(decoded, "all"), name);
	assert_int_equal(json_array_size(runs), (ids.len + 2) / 3);
	for (size_t i = 0; i < json_array_size(runs); i++) {
		size_t n = ids.len - 3 * i < 3 ? ids.len - 3 * i : 3;
		assert_decoded(t, ids.data + 3 * i, n, false, json_array_get(runs, i), name);
	}
	ids_deinit(&ids);
}

static void test_decoding(void **state)
{
	json_t *cases = golden_json("cases.json");
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		json_t *of_name = json_object_get(json_object_get(cases, "tokenizers"), names[i]);
		struct tokenizer *t = golden_tokenizer(names[i]);
		check_decoding(names[i], t, json_object_get(cases, "texts"),
			json_object_get(of_name, "decoded"));
		tokenizer_free(t);
	}
	json_decref(cases);
}

static void test_golden(void **state)
{
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		check_golden(names[i]);
	}
}

/* One encoder for all texts, its cache warm, gives the ids of a fresh one. */
static void test_cache(void **state)
{
	uint64_t seed = 1;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct tokenizer *t = golden_tokenizer(names[i]);
		struct encoder e;
		assert_int_equal(encoder_init(&e, t, true), 0);
		for (unsigned k = 0; k < 400; k++) {
			size_t len;
			struct ids cached = {0}, fresh = {0};
			struct errmsg err;
			char *text = random_text(&seed, 30, &len);
			assert_int_equal(encoder_run(&e, text, len, false, &cached, NULL, &err), 0);
			assert_int_equal(tokenizer_encode(t, text, len, false, &fresh, &err), 0);
			assert_int_equal(cached.len, fresh.len);
			assert_memory_equal(cached.data, fresh.data, fresh.len * sizeof(*fresh.data));
			ids_deinit(&cached);
			ids_deinit(&fresh);
			free(text);
		}
		encoder_deinit(&e);
		tokenizer_free(t);
	}
}

/* The places of the ids follow one another and cover a text that nothing is taken from. */
static void test_places(void **state)
{
	static const char *const whole[] = {"smollm", "llama3", "gpt4o"};
	uint64_t seed = 2;
	for (size_t i = 0; i < ARRAY_LEN(whole); i++) {
		struct tokenizer *t = golden_tokenizer(whole[i]);
		struct encoder e;
		assert_int_equal(encoder_init(&e, t, true), 0);
		for (unsigned k = 0; k < 400; k++) {
			size_t len, at = 0;
			struct ids ids = {0};
			struct places places = {0};
			struct buf back = {0};
			struct errmsg err;
			char *text = random_text(&seed, 30, &len);
			assert_int_equal(encoder_run(&e, text, len, false, &ids, &places, &err), 0);
			assert_int_equal(ids.len, places.len);
			for (size_t j = 0; j < ids.len; j++) {
				back.len = 0;
				assert_int_equal(places.data[j].start, at);
				at = places.data[j].end;
				assert_int_equal(tokenizer_decode(t, ids.data[j], false, &back), 0);
				assert_int_equal(back.len, places.data[j].end - places.data[j].start);
				assert_memory_equal(back.data, text + places.data[j].start, back.len);
			}
			assert_int_equal(at, len);
			buf_deinit(&back);
			ids_deinit(&ids);
			free(places.data);
			free(text);
		}
		encoder_deinit(&e);
		tokenizer_free(t);
	}
}

/* ---- by hand against PCRE2 --------------------------------------------------------------- */

static struct tokenizer *with_pattern(const char *pattern)
{
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	json_t *j = golden_json("gpt4o.tokenizer.json");
	json_t *split = json_array_get(json_object_get(json_object_get(j, "pre_tokenizer"),
		"pretokenizers"), 0);
	json_object_set_new(json_object_get(split, "pattern"), "Regex", json_string(pattern));
	char *text = json_dumps(j, 0);
	if (tokenizer_new_json(&t, text, strlen(text), "test", &err) != 0) {
		fail_msg("%s", err.text);
	}
	free(text);
	json_decref(j);
	return t;
}

static void assert_same_ids(const struct tokenizer *a, const struct tokenizer *b, const char *text,
	size_t len)
{
	struct ids x = {0}, y = {0};
	struct errmsg err;
	assert_int_equal(tokenizer_encode(a, text, len, false, &x, &err), 0);
	assert_int_equal(tokenizer_encode(b, text, len, false, &y, &err), 0);
	assert_int_equal(x.len, y.len);
	assert_memory_equal(x.data, y.data, x.len * sizeof(*x.data));
	ids_deinit(&x);
	ids_deinit(&y);
}

static void test_by_hand_and_pcre2(void **state)
{
	static const char *const patterns[] = {pattern_gpt2, pattern_llama3, pattern_qwen2};
	uint64_t seed = 3;
	for (size_t i = 0; i < ARRAY_LEN(patterns); i++) {
		char wrapped[400];
		snprintf(wrapped, sizeof(wrapped), "(?:%s)", patterns[i]);
		struct tokenizer *a = with_pattern(patterns[i]), *b = with_pattern(wrapped);
		assert_int_not_equal(a->steps[0].kind, PATTERN_REGEX);
		assert_int_equal(b->steps[0].kind, PATTERN_REGEX);
		for (unsigned k = 0; k < 1500; k++) {
			size_t len;
			char *text = random_text(&seed, 40, &len);
			assert_same_ids(a, b, text, len);
			free(text);
		}
		tokenizer_free(a);
		tokenizer_free(b);
	}
}

/* Every code point, between letters, spaces and digits: that PCRE2's Unicode is brought up to date.
 */
static void test_all_code_points(void **state)
{
	char wrapped[400];
	snprintf(wrapped, sizeof(wrapped), "(?:%s)", pattern_llama3);
	struct tokenizer *a = with_pattern(pattern_llama3), *b = with_pattern(wrapped);
	struct buf text = {0};
	for (uint32_t c = 1; c < UNICODE_POINTS; c++) {
		if (c >= 0xD800 && c < 0xE000) {
			continue;
		}
		uint8_t bytes[4];
		unsigned n = utf8_put(c, bytes);
		assert_int_equal(buf_append(&text, " a", 2), 0);
		assert_int_equal(buf_append(&text, bytes, n), 0);
		assert_int_equal(buf_append(&text, "1", 1), 0);
		assert_int_equal(buf_append(&text, bytes, n), 0);
	}
	assert_same_ids(a, b, (char *)text.data, text.len);
	buf_deinit(&text);
	tokenizer_free(a);
	tokenizer_free(b);
}

static void test_regex_refused(void **state)
{
	static const struct {
		const char *pattern, *says;
	} cases[] = {
		{"\\w+", "\\w"},
		{"\\bx", "\\b"},
		{"\\h", "\\h"},
		{"\\R", "\\R"},
		{"(a)\\1", "\\1"},
		{"\\p{Han}", "general category"},
		{"\\p{o}", "general category"},
		{"\\p{Mn}", "category"},
		{"\\p{L", "general category"},
		{"[a[b]]", "class within"},
		{"[a&&b]", "intersection"},
		{"[\\S]", "negated set"},
		{"[^\\P{L}]", "negated set"},
		{"a{2}+", "quantifier after"},
		{"a{,3}", "{n}"},
		{"a{", "{n}"},
		{"a{2}?", "{n}?"},
		{"a***", "quantifier after"},
		{"(?<n>a)", "kind of group"},
		{"(?m:a)", "kind of group"},
		{"(?#c)", "kind of group"},
		{"(?i:ss)", "ligature"},
		{"(?i:\xC3\x9F)", "ASCII"},
		{"(?i:\\p{Lu})", "case"},
		{"(a", "( without"},
		{"a)", ") without"},
		{"[a", "without its ]"},
		{"[]a]", "first member"},
		{"[z-a]", "range"},
		{"[\\s-a]", "range"},
		{"\\", "backslash"},
		{"+a", "not understood"},
		{"\\x{110000}", "\\x"},
		{"\\xff", "\\x"},
		{"(?<=a+)b", "not understood"},
		{"\xFF", "UTF-8"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct regex *r = NULL;
		struct errmsg err = {0};
		int x = regex_new(&r, cases[i].pattern, strlen(cases[i].pattern), &err);
		if (x != STATUS_INVALID || !strstr(err.text, cases[i].says)) {
			fail_msg("%s: %d, %s", cases[i].pattern, x, err.text);
		}
	}
}

/* ---- faults in files --------------------------------------------------------------------- */

/* Sets members[path] (dots and numbers) of a good tokenizer.json to a JSON value, "" removes it. */
static char *changed(const char *path, const char *value)
{
	json_t *root = golden_json("gpt4o.tokenizer.json"), *at = root;
	char copy[128], *save, *part, *next;
	snprintf(copy, sizeof(copy), "%s", path);
	for (part = strtok_r(copy, ".", &save); (next = strtok_r(NULL, ".", &save)); part = next) {
		at = json_is_array(at) ? json_array_get(at, (size_t)atol(part)) : json_object_get(at, part);
		assert_non_null(at);
	}
	if (!*value) {
		json_object_del(at, part);
	} else {
		json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
		assert_non_null(v);
		if (json_is_array(at)) {
			json_array_set_new(at, (size_t)atol(part), v);
		} else {
			json_object_set_new(at, part, v);
		}
	}
	char *text = json_dumps(root, 0);
	json_decref(root);
	return text;
}

static void test_json_refused(void **state)
{
	static const struct {
		const char *path, *value, *says;
	} cases[] = {
		{"version", "\"2.0\"", "version"},
		{"surprise", "1", "unknown member surprise"},
		{"model", "[]", "model"},
		{"model.type", "\"WordPiece\"", "WordPiece"},
		{"model.byte_fallback", "true", "byte_fallback"},
		{"model", "{\"type\": \"Unigram\", \"vocab\": [[\"a\", 0]]}", "Unigram with the ByteLevel"},
		{"model.dropout", "0.1", "dropout"},
		{"model.continuing_subword_prefix", "\"##\"", "continuing_subword_prefix"},
		{"model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
		{"model.unk_token", "\"<nope>\"", "unk_token"},
		{"model.surprise", "1", "surprise"},
		{"model.vocab", "{\"a\": 1, \"b\": 1}", "taken"},
		{"model.vocab", "{\"a\": -1}", "integer"},
		{"model.vocab", "{\"a\": 4194304}", "integer"},
		{"model.vocab", "{\"a\": \"x\"}", "integer"},
		{"model.vocab", "", "vocab"},
		{"model.merges", "", "merges"},
		{"model.merges.0", "[\"a\"]", "merge 0"},
		{"model.merges.1", "\"a b c\"", "merge 1"},
		{"model.merges.1", "\"ab\"", "merge 1"},
		{"model.merges.2", "[\"zz\", \"qqq\"]", "vocabulary lacks"},
		{"normalizer", "{\"type\": \"BertNormalizer\"}", "BertNormalizer"},
		{"normalizer", "{\"type\": \"Sequence\"}", "array"},
		{"normalizer",
			"{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"\\\\w\"}, \"content\": \"\"}",
			"\\w"},
		{"normalizer", "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"A\"}", "base64"},
		{"normalizer", "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AQIDBAUG\"}",
			"charsmap of 6 bytes"},
		{"normalizer", "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"/////wAAAAA=\"}",
			"4294967295"},
		{"normalizer", "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"BAAAAAAAAAD/\"}",
			"no UTF-8"},
		{"pre_tokenizer", "{\"type\": \"UnicodeScripts\"}", "UnicodeScripts"},
		{"pre_tokenizer", "{\"type\": \"Metaspace\"}", "replacement"},
		{"pre_tokenizer", "{\"type\": \"Metaspace\", \"replacement\": \"ab\"}", "one character"},
		{"pre_tokenizer",
			"{\"type\": \"Metaspace\", \"replacement\": \"_\", \"prepend_scheme\": \"often\"}",
			"often"},
		{"pre_tokenizer",
			"{\"type\": \"Metaspace\", \"replacement\": \"_\", \"add_prefix_space\": false}",
			"never"},
		{"pre_tokenizer.pretokenizers.0.behavior", "\"Sideways\"", "Sideways"},
		{"pre_tokenizer.pretokenizers.0.pattern", "{\"Regex\": \"[a\"}", "without its ]"},
		{"pre_tokenizer.pretokenizers.0.pattern", "{\"Regex\": \"\"}", "empty"},
		{"pre_tokenizer.pretokenizers.0", "{\"type\": \"ByteLevel\"}", "last"},
		{"pre_tokenizer.pretokenizers.1.use_regex", "1", "true or false"},
		{"pre_tokenizer.pretokenizers.1.surprise", "1", "surprise"},
		{"post_processor", "{\"type\": \"BertProcessing\"}", "cls must be"},
		{"post_processor", "{\"type\": \"Other\"}", "Other"},
		{"post_processor.single", "[]", "Sequence A"},
		{"post_processor.single.0", "{\"SpecialToken\": {\"id\": \"<x>\", \"type_id\": 0}}",
			"special_tokens"},
		{"post_processor.special_tokens.<s>.ids", "[99999]", "ids must be tokens"},
		{"decoder", "{\"type\": \"WordPiece\"}", "WordPiece"},
		{"decoder", "{\"type\": \"Strip\", \"content\": \" \", \"start\": 0, \"stop\": 1}", "stop"},
		{"decoder",
			"{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": "
			"\"ByteFallback\"}]}",
			"ByteFallback behind"},
		{"decoder",
			"{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"Fuse\"}, {\"type\": "
			"\"Replace\", \"pattern\": {\"String\": \"ab\"}, \"content\": \"\"}]}",
			"more than one character"},
		{"added_tokens", "[{\"id\": 7, \"content\": \"<new>\"}]", "by the vocabulary it is"},
		{"added_tokens", "[{\"id\": -7, \"content\": \"<new>\"}]", "id must be"},
		{"added_tokens", "[{\"id\": 7}]", "content"},
		{"added_tokens", "[{\"id\": 500, \"content\": \"\"}]", "0 bytes"},
		{"added_tokens",
			"[{\"id\": 500, \"content\": \"<a>\"}, {\"id\": 501, \"content\": \"<a>\"}]",
			"equal to another"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct tokenizer *t = NULL;
		struct errmsg err = {0};
		char *text = changed(cases[i].path, cases[i].value);
		int x = tokenizer_new_json(&t, text, strlen(text), "tokenizer.json", &err);
		if (x != STATUS_INVALID || !strstr(err.text, cases[i].says)) {
			fail_msg("%s = %s: %d, %s", cases[i].path, cases[i].value, x, err.text);
		}
		assert_non_null(strstr(err.text, "tokenizer.json"));
		free(text);
	}
}

/* Two added tokens that the normalizer makes one. */
static void test_added_collide(void **state)
{
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	json_t *root = golden_json("qwen2.tokenizer.json"),
		   *added = json_object_get(root, "added_tokens");
	json_int_t id = json_integer_value(json_object_get(json_array_get(added,
		json_array_size(added) - 1), "id"));
	json_array_append_new(added, json_pack("{sIss}", "id", id + 1, "content", "\xC3\xA9""clair"));
	char *text = json_dumps(root, 0);
	assert_int_equal(tokenizer_new_json(&t, text, strlen(text), "x", &err), STATUS_INVALID);
	if (!strstr(err.text, "equal to another")) {
		fail_msg("%s", err.text);
	}
	free(text);
	json_decref(root);
}

static void test_json_broken(void **state)
{
	static const char *const texts[] = {"", "{", "[]", "null", "{\"version\":\"1.0\"}", "\xFF",
		"{\"version\":\"1.0\",\"version\":\"1.0\"}"};
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		struct tokenizer *t = NULL;
		struct errmsg err = {0};
		assert_int_equal(tokenizer_new_json(&t, texts[i], strlen(texts[i]), "a.json", &err),
			STATUS_INVALID);
		assert_non_null(strstr(err.text, "a.json"));
	}
}

/* ---- texts ------------------------------------------------------------------------------- */

static void test_invalid_utf8(void **state)
{
	static const struct {
		const char *text, *says;
	} cases[] = {
		{"ab\xFF", "byte 2 (0xFF)"}, {"\xC0\x80", "byte 0"}, {"x\xED\xA0\x80", "byte 1"},
		{"abc\xE6\x97", "byte 3"}, {"\xF4\x90\x80\x80", "byte 0"},
	};
	struct tokenizer *t = golden_tokenizer("smollm");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct ids ids = {0};
		struct errmsg err = {0};
		assert_int_equal(
			tokenizer_encode(t, cases[i].text, strlen(cases[i].text), false, &ids, &err),
			STATUS_INVALID);
		assert_non_null(strstr(err.text, cases[i].says));
		assert_int_equal(ids.len, 0);
		ids_deinit(&ids);
	}
	tokenizer_free(t);
}

static int64_t cpu_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* A megabyte without a place to cut must not take quadratic time. */
static void test_long_words(void **state)
{
	enum { N = 1 << 20 };
	static const char *const units[] = {"a", "ab", "\xC3\xA9", " ", "\n", "'", "1", " \n",
		"\xCC\x81\xCC\xA7", "<|im_end|", "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8"};
	static const char *const which[] = {"smollm", "qwen2", "gpt4o", "deepseek", "llama2", "gemma",
		"fused", "t5", "mt5", "albert", "words"};
	char *text = malloc(N + 16);
	for (size_t w = 0; w < ARRAY_LEN(which); w++) {
		struct tokenizer *t = golden_tokenizer(which[w]);
		for (size_t u = 0; u < ARRAY_LEN(units); u++) {
			size_t len = 0, n = strlen(units[u]);
			struct ids ids = {0};
			struct errmsg err;
			while (len + n <= N) {
				memcpy(text + len, units[u], n);
				len += n;
			}
			int64_t start = cpu_ns();
			assert_int_equal(tokenizer_encode(t, text, len, false, &ids, &err), 0);
			int64_t took = cpu_ns() - start;
			if (took > 15 * INT64_C(1000000000)) {
				fail_msg("%s: a megabyte of unit %zu took %lld ms", which[w], u,
					(long long)(took / 1000000));
			}
			ids_deinit(&ids);
		}
		tokenizer_free(t);
	}
	free(text);
}

static void test_questions(void **state)
{
	struct tokenizer *t = golden_tokenizer("smollm");
	struct buf out = {0};
	assert_int_equal(tokenizer_id(t, "<|im_end|>"), 2);
	assert_true(tokenizer_id(t, "\xC4\xA0i") > 2);
	assert_int_equal(tokenizer_id(t, "no such token"), -1);
	assert_int_equal(tokenizer_id(t, "\xFF"), -1);
	assert_int_equal(tokenizer_eos(t), -1);
	assert_int_equal(tokenizer_decode(t, 2, true, &out), 0);
	assert_int_equal(out.len, 0);
	assert_int_equal(tokenizer_decode(t, 2, false, &out), 0);
	assert_int_equal(tokenizer_decode(t, tokenizer_id(t, "\xC4\xA0i"), true, &out), 0);
	assert_int_equal(tokenizer_decode(t, -1, true, &out), 0);
	assert_int_equal(tokenizer_decode(t, 1 << 30, true, &out), 0);
	assert_string_equal(buf_cstr(&out), "<|im_end|> i");
	buf_deinit(&out);
	tokenizer_free(t);
}

static void test_digest(void **state)
{
	uint8_t all[ARRAY_LEN(names) + 2][32];
	size_t n = 0;
	for (; n < ARRAY_LEN(names); n++) {
		struct tokenizer *t = golden_tokenizer(names[n]);
		tokenizer_digest(t, all[n]);
		tokenizer_free(t);
	}
	static const struct {
		const char *path, *value;
	} changes[] = {{"model.ignore_merges", "true"}, {"model.merges", "[]"}};
	for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
		struct tokenizer *t = NULL;
		char *text = changed(changes[i].path, changes[i].value);
		assert_int_equal(tokenizer_new_json(&t, text, strlen(text), "x", NULL), 0);
		tokenizer_digest(t, all[n++]);
		tokenizer_free(t);
		free(text);
	}
	for (size_t i = 0; i < n; i++) {
		for (size_t j = 0; j < i; j++) {
			assert_memory_not_equal(all[i], all[j], 32);
		}
	}
	char *same = changed("version", "\"1.0\""); /* written anew, in another order of bytes */
	struct tokenizer *t = NULL;
	uint8_t digest[32];
	assert_int_equal(tokenizer_new_json(&t, same, strlen(same), "y", NULL), 0);
	tokenizer_digest(t, digest);
	assert_memory_equal(digest, all[4], 32);
	tokenizer_free(t);
	free(same);
}

static void test_config(void **state)
{
	static const struct {
		const char *config;
		int result;
		int32_t bos, eos;
		const char *says;
	} cases[] = {
		{"{}", 0, -1, -1, ""},
		{"{\"eos_token\": \"<|im_end|>\", \"bos_token\": null}", 0, -1, 2, ""},
		{"{\"eos_token\": {\"content\": \"<|im_end|>\"}, \"bos_token\": \"<|im_start|>\"}", 0, 1, 2,
			""},
		{"{\"eos_token\": \"</s>\"}", STATUS_INVALID, 0, 0, "no token"},
		{"{\"added_tokens_decoder\": {\"2\": {\"content\": \"<|im_end|>\"}}}", 0, -1, -1, ""},
		{"{\"added_tokens_decoder\": {\"9000\": {\"content\": \"<x>\"}}}", STATUS_INVALID, 0, 0,
			"<x>"},
		{"[]", STATUS_INVALID, 0, 0, "tokenizer_config.json"},
		{"{", STATUS_INVALID, 0, 0, "tokenizer_config.json"},
	};
	size_t len;
	char *json = golden_read("smollm.tokenizer.json", &len);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct tokenizer *t = NULL;
		struct errmsg err = {0};
		assert_int_equal(
			tokenizer_from_json(&t, json, len, cases[i].config, strlen(cases[i].config), "x", &err),
			cases[i].result);
		assert_non_null(strstr(err.text, cases[i].says));
		if (cases[i].result == 0) {
			assert_int_equal(tokenizer_bos(t), cases[i].bos);
			assert_int_equal(tokenizer_eos(t), cases[i].eos);
			tokenizer_free(t);
		}
	}
	free(json);
}

/* ---- GGUF -------------------------------------------------------------------------------- */

enum { MAX_TEST_TOKENS = 2048 };

struct gguf_case {
	json_t *root;
	const char *tokens[MAX_TEST_TOKENS], *merges[MAX_TEST_TOKENS];
	uint32_t token_lens[MAX_TEST_TOKENS], merge_lens[MAX_TEST_TOKENS];
	int32_t types[MAX_TEST_TOKENS];
	char *lines[MAX_TEST_TOKENS];
	struct gguf_tokenizer g;
};

/* The metadata that a GGUF of this tokenizer has. */
static struct gguf_case *gguf_of(const char *file, const char *pre)
{
	struct gguf_case *c = calloc(1, sizeof(*c));
	const char *token;
	json_t *id, *merge, *added;
	size_t i;
	c->root = golden_json(file);
	json_t *model = json_object_get(c->root, "model");
	json_object_foreach(json_object_get(model, "vocab"), token, id) {
		c->tokens[json_integer_value(id)] = token;
		c->types[json_integer_value(id)] = 1;
		c->g.n_tokens++;
	}
	json_array_foreach(json_object_get(c->root, "added_tokens"), i, added) {
		size_t at = (size_t)json_integer_value(json_object_get(added, "id"));
		c->g.n_tokens += !c->tokens[at];
		c->tokens[at] = json_string_value(json_object_get(added, "content"));
		c->types[at] = json_is_true(json_object_get(added, "special")) ? 3 : 4;
	}
	for (int64_t k = 0; k < c->g.n_tokens; k++) {
		c->token_lens[k] = (uint32_t)strlen(c->tokens[k]);
	}
	json_array_foreach(json_object_get(model, "merges"), i, merge) {
		const char *a = json_string_value(json_array_get(merge, 0));
		const char *b = json_string_value(json_array_get(merge, 1));
		c->lines[i] = malloc(strlen(a) + strlen(b) + 2);
		c->merge_lens[i] = (uint32_t)sprintf(c->lines[i], "%s %s", a, b);
		c->merges[i] = c->lines[i];
		c->g.n_merges++;
	}
	c->g.model = "gpt2";
	c->g.pre = pre;
	c->g.tokens = c->tokens;
	c->g.token_lens = c->token_lens;
	c->g.token_types = c->types;
	c->g.merges = c->merges;
	c->g.merge_lens = c->merge_lens;
	c->g.bos_token_id = c->g.eos_token_id = c->g.unk_token_id = c->g.pad_token_id = -1;
	return c;
}

static void gguf_case_free(struct gguf_case *c)
{
	for (size_t i = 0; i < MAX_TEST_TOKENS; i++) {
		free(c->lines[i]);
	}
	json_decref(c->root);
	free(c);
}

static void test_gguf(void **state)
{
	static const struct {
		const char *name, *pre;
		const char *bos;
	} cases[] = {{"smollm", "smollm", NULL}, {"llama3", "llama-bpe", "<|begin_of_text|>"}};
	json_t *golden = golden_json("cases.json");
	json_t *texts = json_object_get(golden, "texts");
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		char file[64];
		snprintf(file, sizeof(file), "%s.tokenizer.json", cases[i].name);
		struct gguf_case *c = gguf_of(file, cases[i].pre);
		struct tokenizer *t = NULL, *same = golden_tokenizer(cases[i].name);
		struct errmsg err = {0};
		uint8_t a[32], b[32];
		c->g.bos_token_id = cases[i].bos ? tokenizer_id(same, cases[i].bos) : -1;
		if (tokenizer_from_gguf(&t, &c->g, "test.gguf", &err) != 0) {
			fail_msg("%s", err.text);
		}
		json_t *of_name = json_object_get(json_object_get(golden, "tokenizers"), cases[i].name);
		for (size_t k = 0; k < json_array_size(texts); k++) {
			const json_t *text = json_array_get(texts, k);
			assert_ids(t, json_string_value(text), json_string_length(text), false,
				json_array_get(json_object_get(of_name, "ids"), k), cases[i].name);
		}
		assert_ids(t, "x", 1, true, json_object_get(of_name, "special"), "special");
		if (!cases[i].bos) {
			tokenizer_digest(t, a);
			tokenizer_digest(same, b);
			assert_memory_equal(a, b, 32);
		}
		tokenizer_free(t);
		tokenizer_free(same);
		gguf_case_free(c);
	}
	json_decref(golden);
}

/* SentencePiece's tokens and scores, as Llama and, without the space in front, Gemma have them. */
static struct gguf_case *gguf_of_scores(json_t *root, float *scores)
{
	struct gguf_case *c = calloc(1, sizeof(*c));
	json_t *pieces = json_object_get(root, "pieces"), *piece;
	size_t i;
	c->root = json_incref(root);
	json_array_foreach(pieces, i, piece) {
		assert_true(i < MAX_TEST_TOKENS);
		c->tokens[i] = json_string_value(json_array_get(piece, 0));
		c->token_lens[i] = (uint32_t)strlen(c->tokens[i]);
		scores[i] = (float)json_number_value(json_array_get(piece, 1));
		c->types[i] = (int32_t)json_integer_value(json_array_get(piece, 2));
	}
	c->g = (struct gguf_tokenizer){.model = "llama", .pre = "default", .tokens = c->tokens,
		.token_lens = c->token_lens, .token_types = c->types, .scores = scores,
		.n_tokens = (int64_t)json_array_size(pieces), .bos_token_id = 1, .eos_token_id = 2,
		.pad_token_id = -1, .add_bos_token = true};
	return c;
}

static void test_gguf_scores(void **state)
{
	float scores[MAX_TEST_TOKENS];
	json_t *root = golden_json("scored.json"), *golden = golden_json("cases.json"), *of_case;
	json_t *texts = json_object_get(golden, "texts");
	struct gguf_case *c = gguf_of_scores(root, scores);
	size_t i;
	json_array_foreach(json_object_get(root, "cases"), i, of_case) {
		struct tokenizer *t = NULL;
		struct errmsg err = {0};
		c->g.add_space_prefix = json_is_true(json_object_get(of_case, "prefix"));
		if (tokenizer_from_gguf(&t, &c->g, "test.gguf", &err) != 0) {
			fail_msg("%s", err.text);
		}
		for (size_t k = 0; k < json_array_size(texts); k++) {
			const json_t *text = json_array_get(texts, k);
			char what[64];
			snprintf(what, sizeof(what), "case %zu, text %zu", i, k);
			assert_ids(t, json_string_value(text), json_string_length(text), true,
				json_array_get(json_object_get(of_case, "ids"), k), what);
		}
		check_decoding("scored", t, texts, json_object_get(of_case, "decoded"));
		tokenizer_free(t);
	}
	gguf_case_free(c);
	json_decref(root);
	json_decref(golden);
}

static void assert_gguf_refused(struct gguf_case *c, const char *says)
{
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	int r = tokenizer_from_gguf(&t, &c->g, "test.gguf", &err);
	if (r != STATUS_INVALID || !strstr(err.text, says) || !strstr(err.text, "test.gguf")) {
		fail_msg("%d: %s (should say %s)", r, err.text, says);
	}
}

static void test_gguf_refused(void **state)
{
	struct gguf_case *c = gguf_of("smollm.tokenizer.json", "smollm");
	struct gguf_tokenizer good = c->g;
	c->g.model = "t5";
	assert_gguf_refused(c, "is t5; supported are gpt2");
	c->g.model = "llama";
	assert_gguf_refused(c, "scores");
	c->g.model = NULL;
	assert_gguf_refused(c, "missing");
	c->g = good;
	c->g.pre = "tekken";
	assert_gguf_refused(c, "tekken, which is not supported (supported: gpt-2,");
	c->g.pre = NULL;
	assert_gguf_refused(c, "missing");
	c->g = good;
	c->g.add_bos_token = true;
	assert_gguf_refused(c, "bos_token_id");
	c->g = good;
	c->g.add_space_prefix = true;
	assert_gguf_refused(c, "add_space_prefix");
	c->g = good;
	c->g.n_tokens = 0;
	assert_gguf_refused(c, "0 tokens");
	c->g = good;
	c->merges[3] = "nospace";
	c->merge_lens[3] = 7;
	assert_gguf_refused(c, "merge 3");
	c->merges[3] = c->lines[3];
	c->merge_lens[3] = (uint32_t)strlen(c->lines[3]);
	c->tokens[40] = c->tokens[41];
	c->token_lens[40] = c->token_lens[41];
	assert_gguf_refused(c, "twice");
	c->tokens[40] = "\xFF";
	c->token_lens[40] = 1;
	assert_gguf_refused(c, "UTF-8");
	gguf_case_free(c);
}

/* ---- the real SmolLM2 -------------------------------------------------------------------- */

static void test_real_model(void **state)
{
	const char *path = getenv("PEFTD_TEST_MODEL");
	struct model_files *files = NULL;
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	if (!path) {
		SKIP("PEFTD_TEST_MODEL is not set to the path of SmolLM2-135M-Instruct");
	}
	if (model_files_open(&files, path, &err) != 0 || tokenizer_new(&t, files, &err) != 0) {
		fail_msg("%s", err.text);
	}
	json_t *golden = golden_json("smollm2.json"), *cases = golden_json("cases.json");
	json_t *texts = json_object_get(cases, "texts");
	for (size_t i = 0; i < json_array_size(texts); i++) {
		const json_t *text = json_array_get(texts, i);
		char what[32];
		snprintf(what, sizeof(what), "text %zu", i);
		assert_ids(t, json_string_value(text), json_string_length(text), false,
			json_array_get(json_object_get(golden, "ids"), i), what);
	}
	struct chat_template *template = NULL;
	assert_int_equal(chat_template_new(&template, files, NULL, &err), 0);
	assert_string_equal(chat_template_name(template), "own");
	chat_template_free(template);
	assert_int_equal(tokenizer_eos(t), tokenizer_id(t, "<|im_end|>"));
	json_decref(golden);
	json_decref(cases);
	tokenizer_free(t);
	model_files_free(files);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_decoding),
		cmocka_unit_test(test_cache),
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_by_hand_and_pcre2),
		cmocka_unit_test(test_all_code_points),
		cmocka_unit_test(test_regex_refused),
		cmocka_unit_test(test_json_refused),
		cmocka_unit_test(test_added_collide),
		cmocka_unit_test(test_json_broken),
		cmocka_unit_test(test_invalid_utf8),
		cmocka_unit_test(test_long_words),
		cmocka_unit_test(test_questions),
		cmocka_unit_test(test_digest),
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_gguf),
		cmocka_unit_test(test_gguf_scores),
		cmocka_unit_test(test_gguf_refused),
		cmocka_unit_test(test_real_model),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
