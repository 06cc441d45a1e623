#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "engine/text/text-internal.h"
#include "tests/text/support.h"
#include "util/util.h"

enum { MAX_MESSAGES = 16 };

static size_t messages_of(const json_t *list, struct message *out)
{
	size_t n = json_array_size(list);
	assert_true(n <= MAX_MESSAGES);
	for (size_t i = 0; i < n; i++) {
		out[i] = row_message(list, i);
	}
	return n;
}

static void assert_text(const struct buf *b, const json_t *expected, const char *what)
{
	size_t len = json_string_length(expected);
	if (b->len != len || (len > 0 && memcmp(b->data, json_string_value(expected), len) != 0)) {
		fail_msg("%s: `%.*s`\nshould be\n`%s`", what, (int)b->len, (const char *)b->data,
			json_string_value(expected));
	}
}

static struct chat_template *own(const char *source, const char *tokens)
{
	struct chat_template *t = NULL;
	struct errmsg err = {0};
	if (chat_template_new_source(&t, source, tokens, &err) != 0) {
		fail_msg("%s", err.text);
	}
	return t;
}

static struct chat_template *builtin(const char *name)
{
	struct chat_template *t = NULL;
	struct errmsg err = {0};
	if (chat_template_new(&t, NULL, name, &err) != 0) {
		fail_msg("%s: %s", name, err.text);
	}
	return t;
}

/* ---- the built-in ones ------------------------------------------------------------------- */

/* They render as the models' own templates do, which are found to mark the same as they mark; but for
 * Qwen 2.5, where TRL marks the newline before the content too. */
static void test_builtin(void **state)
{
	json_t *cases = golden_json("chat.json"), *of_template, *c;
	size_t i, k;
	assert_true(json_array_size(cases) >= 6);
	json_array_foreach(cases, i, of_template) {
		const char *name = json_string_value(json_object_get(of_template, "name"));
		struct chat_template *named = builtin(name), *t = own(json_string_value(
			json_object_get(of_template, "source")), "{\"bos_token\": \"<|begin_of_text|>\"}");
		size_t lead = strcmp(name, "qwen2.5") == 0;
		assert_string_equal(chat_template_name(t), "own");
		assert_string_equal(chat_template_name(named), name);
		json_array_foreach(json_object_get(of_template, "conversations"), k, c) {
			struct message messages[MAX_MESSAGES];
			struct span spans[MAX_MESSAGES], found[MAX_MESSAGES];
			size_t n = messages_of(json_object_get(c, "messages"), messages), n_spans, n_found;
			const struct chat_template *both[] = {named, t};
			struct errmsg err = {0};
			for (size_t b = 0; b < 2; b++) {
				struct buf out = {0};
				assert_int_equal(chat_template_render(both[b], messages, n, true, &out, NULL, 0, NULL,
					&err), 0);
				assert_text(&out, json_object_get(c, "prompt"), name);
				out.len = 0;
				if (chat_template_render(both[b], messages, n, false, &out, b ? found : spans,
						MAX_MESSAGES, b ? &n_found : &n_spans, &err) != 0) {
					fail_msg("%s: %s", name, err.text);
				}
				assert_text(&out, json_object_get(c, "text"), name);
				buf_deinit(&out);
			}
			assert_int_equal(n_spans, n_found);
			for (size_t j = 0; j < n_spans; j++) {
				assert_int_equal(spans[j].start + lead, found[j].start);
				assert_int_equal(spans[j].end, found[j].end);
			}
		}
		chat_template_free(t);
		chat_template_free(named);
	}
	json_decref(cases);
}

static void test_unknown(void **state)
{
	struct chat_template *t = NULL;
	struct errmsg err = {0};
	assert_int_equal(chat_template_new(&t, NULL, NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "no chat template; choose one with chat_template: chatml, smol"));
	assert_int_equal(chat_template_new(&t, NULL, "vicuna", &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "vicuna"));
	assert_non_null(strstr(err.text, "chatml, smollm2, qwen2, qwen2.5, llama3"));
	assert_int_equal(chat_template_new_source(&t, "a\n{% include 'b' %}", NULL, &err), STATUS_INVALID);
	assert_string_equal(err.text, "the chat template: line 2: the tag 'include' is not supported");
	assert_null(t);
}

static void put_file(const char *folder, const char *name, const char *text, size_t len)
{
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, len, f), len);
	fclose(f);
}

/* A model's own: its source, and the special tokens that it names, as text or as objects. */
static void test_of_model(void **state)
{
	static const char config[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}, "
		"\"unk_token\": null, \"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"}, "
		"{\"name\": \"default\", \"template\": \"{{ bos_token }}{{ eos_token }}{{ pad_token }}|"
		"{{ unk_token is defined }}|{{ tools is none }}|{{ messages[0].content }}\"}]}";
	static const char map[] = "{\"bos_token\": \"no\", \"pad_token\": \"<pad>\"}";
	static const char *const copied[] = {"config.json", "model.safetensors"};
	char folder[] = "/tmp/peftd-template-XXXXXX", path[256];
	struct message m[] = {{"user", "hi", 4, 2, NULL}};
	struct model_files *files = NULL;
	struct chat_template *t = NULL;
	struct errmsg err = {0};
	struct buf out = {0};
	assert_non_null(mkdtemp(folder));
	for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
		size_t len;
		snprintf(path, sizeof(path), "../formats/tiny/%s", copied[i]);
		char *text = golden_read(path, &len);
		put_file(folder, copied[i], text, len);
		free(text);
	}
	put_file(folder, "tokenizer_config.json", config, strlen(config));
	put_file(folder, "special_tokens_map.json", map, strlen(map));
	if (model_files_open(&files, folder, &err) != 0 ||
		chat_template_new(&t, files, NULL, &err) != 0) {
		fail_msg("%s", err.text);
	}
	assert_int_equal(chat_template_render(t, m, 1, false, &out, NULL, 0, NULL, &err), 0);
	assert_string_equal(buf_cstr(&out), "<s></s><pad>|False|True|hi");
	chat_template_free(t);
	model_files_free(files);

	uint8_t one[32], other[32];
	struct chat_template *a = own("x", "{\"bos_token\": \"a\"}"), *b = own("x", NULL);
	chat_template_digest(a, one);
	chat_template_digest(b, other);
	assert_memory_not_equal(one, other, 32);
	chat_template_free(a);
	chat_template_free(b);

	golden_path("../formats/tiny.gguf", path, sizeof(path));
	assert_int_equal(model_files_open(&files, path, &err), 0);
	assert_int_equal(chat_template_new(&t, files, NULL, &err), 0);
	out.len = 0;
	assert_int_equal(chat_template_render(t, m, 1, false, &out, NULL, 0, NULL, &err), 0);
	assert_string_equal(buf_cstr(&out), "[{'role': 'user', 'content': 'hi'}]");
	chat_template_free(t);
	model_files_free(files);
	buf_deinit(&out);
	static const char *const made[] = {"config.json", "model.safetensors", "tokenizer_config.json",
		"special_tokens_map.json"};
	for (size_t i = 0; i < ARRAY_LEN(made); i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, made[i]);
		remove(path);
	}
	remove(folder);
}

/* ---- published ones ---------------------------------------------------------------------- */

static char *tokens_text(const json_t *of_template)
{
	return json_dumps(json_object_get(of_template, "tokens"), JSON_COMPACT);
}

static struct chat_template *published(const json_t *of_template)
{
	char file[160], *tokens = tokens_text(of_template);
	snprintf(file, sizeof(file), "../templates/%s.jinja",
		json_string_value(json_object_get(of_template, "name")));
	char *source = golden_read(file, NULL);
	struct chat_template *t = own(source, tokens);
	free(source);
	free(tokens);
	return t;
}

static void compare_spans(const json_t *expected, const struct span *spans, size_t n,
	const struct buf *out, const char *what)
{
	if (n != json_array_size(expected)) {
		fail_msg("%s: %zu spans and should be %zu", what, n, json_array_size(expected));
	}
	for (size_t i = 0; i < n; i++) {
		const json_t *e = json_array_get(expected, i);
		size_t start = (size_t)json_integer_value(json_array_get(e, 0));
		size_t end = (size_t)json_integer_value(json_array_get(e, 1));
		if (spans[i].start != start || spans[i].end != end) {
			fail_msg("%s: span %zu is `%.*s` and should be `%.*s`", what, i,
				(int)(spans[i].end - spans[i].start), (const char *)out->data + spans[i].start,
				(int)(end - start), (const char *)out->data + start);
		}
	}
}

/* The outcome that transformers has: a text, or an error and, where raised, its words. */
static void compare(const json_t *expected, const json_t *text, int r, const struct buf *out,
	const struct errmsg *err, const char *what)
{
	const char *raised = json_string_value(json_object_get(expected, "raised"));
	if (text) {
		if (r != 0) {
			fail_msg("%s: %s", what, err->text);
		}
		assert_text(out, text, what);
		return;
	}
	assert_int_equal(r, STATUS_INVALID);
	assert_int_equal(out->len, 0);
	if (raised && strncmp(err->text, JINJA_RAISED, strlen(JINJA_RAISED)) == 0) {
		assert_string_equal(err->text + strlen(JINJA_RAISED), raised);
	} else if (raised) {
		fail_msg("%s: `%s` should be `%s`", what, err->text, raised);
	}
}

static void check_prompt(const struct chat_template *t, const json_t *c,
	const struct message *messages,
	size_t n, const char *what)
{
	const json_t *prompt = json_object_get(c, "prompt"), *rest = json_array_get(prompt, 0);
	json_t *whole = rest ? json_pack("s++", json_string_value(json_object_get(c, "text")),
		json_string_value(rest), "") : json_is_string(prompt) ? json_incref((json_t *)(uintptr_t)prompt) :
		NULL;
	struct buf out = {0};
	struct errmsg err = {0};
	int r = chat_template_render(t, messages, n, true, &out, NULL, 0, NULL, &err);
	compare(prompt, whole, r, &out, &err, what);
	json_decref(whole);
	buf_deinit(&out);
}

/* What TRL's training templates mark and is not found: what a generation prompt, or the template by
 * itself, puts before the words. */
static bool is_header(const char *text, size_t len)
{
	static const char *const headers[] = {"", "\n", "<think>\n", "<think></think>",
		"<think></think>\n",
		"<｜Assistant｜>", "<｜tool▁outputs▁end｜>", "<|start|>assistant"};
	for (size_t i = 0; i < ARRAY_LEN(headers); i++) {
		if (strlen(headers[i]) == len && memcmp(headers[i], text, len) == 0) {
			return true;
		}
	}
	return false;
}

/* The spans of a list; those that touch are one where `join` says so. */
static size_t listed_spans(const json_t *list, bool join, struct span *out)
{
	size_t n = 0;
	for (size_t i = 0; i < json_array_size(list); i++) {
		const json_t *e = json_array_get(list, i);
		struct span s = {(size_t)json_integer_value(json_array_get(e, 0)),
			(size_t)json_integer_value(json_array_get(e, 1))};
		if (join && n > 0 && out[n - 1].end == s.start) {
			out[n - 1].end = s.end;
		} else {
			out[n++] = s;
		}
	}
	return n;
}

/* What is found without marks is what the same text's marks say, but for headers. */
static void compare_found(const json_t *expected, const struct span *spans, size_t n,
	const struct buf *out, const char *what)
{
	struct span marked[4 * MAX_MESSAGES];
	size_t n_marked = listed_spans(expected, json_array_size(expected) > n, marked);
	for (size_t i = 0; i < n && i < n_marked; i++) {
		if (spans[i].end != marked[i].end || spans[i].start < marked[i].start ||
			!is_header((const char *)out->data + marked[i].start, spans[i].start - marked[i].start)) {
			fail_msg("%s: found `%.*s`, marked `%.*s`", what, (int)(spans[i].end - spans[i].start),
				(const char *)out->data + spans[i].start, (int)(marked[i].end - marked[i].start),
				(const char *)out->data + marked[i].start);
		}
	}
	if (n != n_marked) {
		fail_msg("%s: %zu turns found, %zu marked", what, n, n_marked);
	}
}

struct tally {
	size_t texts, marked, found, told, not_told;
};

static void check_spans(const struct chat_template *t, const json_t *c, const struct message *messages,
	size_t n, const char *what, struct tally *tally)
{
	const json_t *marked = json_object_get(c, "spans"), *found = json_object_get(c, "found");
	struct span spans[2 * MAX_MESSAGES];
	struct buf out = {0};
	struct errmsg err = {0};
	size_t n_spans = 0;
	int r = chat_template_render(t, messages, n, false, &out, spans, ARRAY_LEN(spans), &n_spans, &err);
	tally->told += r == 0;
	tally->not_told += r != 0;
	tally->marked += marked != NULL;
	tally->found += r == 0 && found;
	if (r == 0) {
		assert_text(&out, json_object_get(c, "text"), what);
	} else if (marked || !strstr(err.text, "cannot be told")) {
		fail_msg("%s: %s", what, err.text);
	}
	if (marked) {
		compare_spans(marked, spans, n_spans, &out, what);
	} else if (r == 0 && found) {
		compare_found(found, spans, n_spans, &out, what);
	}
	buf_deinit(&out);
}

static void check_case(const struct chat_template *t, const json_t *c, const struct message *messages,
	size_t n, const char *what, struct tally *tally)
{
	const json_t *text = json_object_get(c, "text");
	struct buf out = {0};
	struct errmsg err = {0};
	int r = chat_template_render(t, messages, n, false, &out, NULL, 0, NULL, &err);
	if (r != 0 && strstr(err.text, "`tool_calls`, which the chat template does not write")) {
		assert_false(t->has_tool_calls); /* transformers leaves them out in silence */
		return;
	}
	compare(c, text, r, &out, &err, what);
	check_prompt(t, c, messages, n, what);
	tally->texts++;
	if (text) {
		check_spans(t, c, messages, n, what, tally);
	}
	buf_deinit(&out);
}

static void test_published(void **state)
{
	json_t *golden = golden_json("../templates/published.json"), *of_template, *c;
	const json_t *conversations = json_object_get(golden, "conversations");
	struct tally tally = {0};
	size_t i, k;
	json_array_foreach(json_object_get(golden, "templates"), i, of_template) {
		const char *name = json_string_value(json_object_get(of_template, "name"));
		struct chat_template *t = published(of_template);
		json_array_foreach(json_object_get(of_template, "cases"), k, c) {
			struct message messages[MAX_MESSAGES];
			const json_t *list = json_array_get(conversations, k);
			char what[160];
			snprintf(what, sizeof(what), "%s, conversation %zu", name, k);
			check_case(t, c, messages, messages_of(list, messages), what, &tally);
		}
		chat_template_free(t);
	}
	assert_true(json_array_size(json_object_get(golden, "templates")) >= 50);
	assert_true(tally.texts > 1100 && tally.marked > 350 && tally.found > 250);
	/* What closes a turn of gpt-oss or Metharme depends on what follows it; Qwen 3 and Nemotron write
	 * calls of tools without content in another way once a question has followed. */
	assert_int_equal(tally.not_told, 28);
	json_decref(golden);
}

/* ---- spans ------------------------------------------------------------------------------- */

static struct message message(const char *role, const char *content)
{
	return (struct message){.role = role, .role_len = strlen(role), .content = content,
		.content_len = strlen(content)};
}

static void test_spans(void **state)
{
	struct chat_template *t = builtin("chatml");
	struct message m[] = {message("user", "a"), message("assistant", "bc"), message("user", "d"),
		message("assistant", "")};
	struct span spans[4];
	struct buf out = {0};
	size_t n = 0;
	assert_int_equal(buf_append(&out, "before", 6), 0);
	assert_int_equal(chat_template_render(t, m, 4, true, &out, spans, 4, &n, NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(spans[0].end - spans[0].start, strlen("bc<|im_end|>\n"));
	assert_memory_equal(out.data + spans[0].start, "bc<|im_end|>\n", strlen("bc<|im_end|>\n"));
	assert_memory_equal(out.data + spans[1].start, "<|im_end|>\n", strlen("<|im_end|>\n"));
	spans[1] = (struct span){0, 0};
	assert_int_equal(chat_template_render(t, m, 4, false, &out, spans, 1, &n, NULL), 0);
	assert_int_equal(n, 2); /* but there was room for one */
	assert_int_equal(spans[1].end, 0);
	chat_template_free(t);
	buf_deinit(&out);
}

static void test_refused(void **state)
{
	struct chat_template *t = builtin("smollm2");
	struct errmsg err = {0};
	struct buf out = {0};
	struct message m[] = {message("user", "a"), message("gpt", "b")};
	struct message bad[] = {message("user", "a\xFF")};
	assert_int_equal(
		chat_template_render(t, m, 0, false, &out, NULL, 0, NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "no messages"));
	assert_int_equal(
		chat_template_render(t, m, 2, false, &out, NULL, 0, NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "message 2 has the role `gpt`"));
	assert_non_null(strstr(err.text, "system, user, assistant"));
	assert_int_equal(chat_template_render(t, bad, 1, false, &out, NULL, 0, NULL, &err),
		STATUS_INVALID);
	assert_non_null(strstr(err.text, "byte 1"));
	assert_int_equal(out.len, 0);
	chat_template_free(t);
	buf_deinit(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_builtin),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_of_model),
		cmocka_unit_test(test_published),
		cmocka_unit_test(test_spans),
		cmocka_unit_test(test_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
