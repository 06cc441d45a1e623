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

static void assert_text(const struct buf *b, const json_t *expected)
{
	assert_int_equal(b->len, json_string_length(expected));
	assert_memory_equal(b->data, json_string_value(expected), b->len);
}

/* Recognised, and rendered byte for byte as transformers does. */
static void test_golden(void **state)
{
	json_t *cases = golden_json("chat.json"), *of_template, *c;
	size_t i, k;
	assert_true(json_array_size(cases) >= 6);
	json_array_foreach(cases, i, of_template) {
		const struct chat_template *t = NULL, *named = NULL;
		const char *name = json_string_value(json_object_get(of_template, "name"));
		struct errmsg err = {0};
		if (chat_template_find(&t, json_string_value(json_object_get(of_template, "source")), NULL,
				&err) != 0) {
			fail_msg("%s: %s", name, err.text);
		}
		assert_string_equal(chat_template_name(t), name);
		assert_int_equal(chat_template_find(&named, NULL, name, &err), 0);
		assert_ptr_equal(t, named);
		json_array_foreach(json_object_get(of_template, "conversations"), k, c) {
			struct message messages[MAX_MESSAGES];
			size_t n = messages_of(json_object_get(c, "messages"), messages), spans;
			struct buf out = {0};
			assert_int_equal(
				chat_template_render(t, messages, n, false, &out, NULL, 0, &spans, &err), 0);
			assert_text(&out, json_object_get(c, "text"));
			out.len = 0;
			assert_int_equal(
				chat_template_render(t, messages, n, true, &out, NULL, 0, NULL, &err), 0);
			assert_text(&out, json_object_get(c, "prompt"));
			buf_deinit(&out);
		}
	}
	json_decref(cases);
}

/* Any other program is unknown, however near. */
static void test_unknown(void **state)
{
	json_t *cases = golden_json("chat.json"), *of_template;
	size_t i;
	json_array_foreach(cases, i, of_template) {
		const char *source = json_string_value(json_object_get(of_template, "source"));
		size_t len = strlen(source);
		char *text = malloc(len + 3);
		uint64_t seed = i;
		for (unsigned k = 0; k < 300; k++) {
			const struct chat_template *t = NULL;
			struct errmsg err = {0};
			size_t at = next_random(&seed) % (len - 1);
			memcpy(text, source, len + 1);
			switch (k % 3) {
			case 0: /* another character */
				text[at] = text[at] == 'q' ? 'z' : 'q';
				break;
			case 1: /* one more */
				memmove(text + at + 1, text + at, len - at + 1);
				text[at] = ' ';
				break;
			default: /* one less */
				memmove(text + at, text + at + 1, len - at);
				break;
			}
			/* An escape taken apart or a line break doubled by chance means the same or nothing. */
			if (strcmp(text, source) == 0) {
				continue;
			}
			assert_int_equal(chat_template_find(&t, text, NULL, &err), STATUS_INVALID);
			assert_non_null(strstr(err.text, "chatml, smollm2"));
			assert_null(t);
		}
		free(text);
	}
	json_decref(cases);

	const struct chat_template *t = NULL;
	struct errmsg err = {0};
	assert_int_equal(chat_template_find(&t, NULL, NULL, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "no chat template"));
	assert_int_equal(chat_template_find(&t, NULL, "vicuna", &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "vicuna"));
	assert_int_equal(chat_template_find(&t, "", NULL, &err), STATUS_INVALID);
}

static struct message message(const char *role, const char *content)
{
	return (struct message){.role = role, .role_len = strlen(role), .content = content,
		.content_len = strlen(content)};
}

static void test_spans(void **state)
{
	const struct chat_template *t;
	struct message m[] = {message("user", "a"), message("assistant", "bc"), message("user", "d"),
		message("assistant", "")};
	struct span spans[4];
	struct buf out = {0};
	size_t n = 0;
	assert_int_equal(buf_append(&out, "before", 6), 0);
	assert_int_equal(chat_template_find(&t, NULL, "chatml", NULL), 0);
	assert_int_equal(chat_template_render(t, m, 4, true, &out, spans, 4, &n, NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(spans[0].end - spans[0].start, strlen("bc<|im_end|>\n"));
	assert_memory_equal(out.data + spans[0].start, "bc<|im_end|>\n", strlen("bc<|im_end|>\n"));
	assert_memory_equal(out.data + spans[1].start, "<|im_end|>\n", strlen("<|im_end|>\n"));
	assert_int_equal(chat_template_render(t, m, 4, false, &out, spans, 1, &n, NULL), 0);
	assert_int_equal(n, 1);
	buf_deinit(&out);
}

static void test_refused(void **state)
{
	const struct chat_template *t;
	struct errmsg err = {0};
	struct buf out = {0};
	struct message m[] = {message("user", "a"), message("gpt", "b")};
	struct message bad[] = {message("user", "a\xFF")};
	assert_int_equal(chat_template_find(&t, NULL, "smollm2", NULL), 0);
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
	buf_deinit(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_spans),
		cmocka_unit_test(test_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
