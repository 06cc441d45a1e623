/* Rows as questions, with examples before them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/text/text-internal.h"
#include "tests/text/support.h"
#include "util/util.h"

static struct questions *make(const char *data, const char *examples, struct question_options o)
{
	struct questions *q = NULL;
	struct errmsg err = {0};
	int r = questions_new(&q, data, strlen(data), examples, examples ? strlen(examples) : 0, &o, &err);
	if (r != 0) {
		fail_msg("%d: %s", r, err.text);
	}
	return q;
}

static void assert_fails(const char *data, const char *examples, struct question_options o,
	const char *says)
{
	struct questions *q = NULL;
	struct errmsg err = {0};
	int r = questions_new(&q, data, strlen(data), examples, examples ? strlen(examples) : 0, &o, &err);
	assert_int_equal(r, STATUS_INVALID);
	if (!strstr(err.text, says)) {
		fail_msg("%s (should say %s)", err.text, says);
	}
}

/* {"prompt": "Q<i>?", "completion": " A<i>"} */
static char *pairs(int n)
{
	struct buf b = {0};
	for (int i = 0; i < n; i++) {
		assert_int_equal(buf_appendf(&b, "{\"prompt\": \"Q%d?\", \"completion\": \" A%d\"}\n", i, i), 0);
	}
	return buf_steal(&b, NULL);
}

static void assert_text(const char *got, size_t len, const char *want)
{
	assert_int_equal(len, strlen(want));
	assert_memory_equal(got, want, len);
}

static void test_plain(void **state)
{
	char *data = pairs(3);
	struct questions *q = make(data, NULL, (struct question_options){0});
	assert_int_equal(q->n, 3);
	assert_text(q->at[1].prompt, q->at[1].prompt_len, "Q1?");
	assert_text(q->at[1].reference, q->at[1].reference_len, " A1");
	assert_int_equal(q->at[2].row, 2);
	questions_free(q);
	free(data);

	q = make("{\"text\": \"all of it\"}\n{\"text\": \"more\"}", NULL, (struct question_options){0});
	assert_int_equal(q->n, 2);
	assert_null(q->at[0].reference);
	assert_text((char *)q->rows.data, q->rows.len, "{\"text\":\"all of it\"}\n{\"text\":\"more\"}\n");
	questions_free(q);
	assert_fails("{\"text\": \"a\"}\n{\"text\": \"b\"}\n", NULL, (struct question_options){.shots = 1},
		"questions");
	assert_fails("{\"prompt\": \"a\"}\n", NULL, (struct question_options){0}, "row 0");
	assert_fails("", NULL, (struct question_options){0}, "no rows");
}

/* Whose example is whose: which rows stand before a question, as a set of bits. */
static unsigned examples_of(const struct question *q, int n)
{
	unsigned set = 0, count = 0;
	char text[32];
	for (int i = 0; i < n; i++) {
		snprintf(text, sizeof(text), "Q%d? A%d\n\n", i, i);
		if (strstr(q->prompt, text)) {
			set |= 1u << i;
			count++;
		}
	}
	snprintf(text, sizeof(text), "Q%d?", (int)q->row);
	/* The question itself stands at the end. */
	assert_string_equal(q->prompt + q->prompt_len - strlen(text), text);
	assert_int_equal(q->prompt_len, count * strlen("Q0? A0\n\n") + strlen(text));
	return set;
}

static void test_examples(void **state)
{
	enum { N = 8, SHOTS = 3 };
	char *data = pairs(N);
	unsigned seen = 0;
	for (uint64_t seed = 0; seed < 20; seed++) {
		struct question_options o = {.shots = SHOTS, .seed = seed};
		struct questions *q = make(data, NULL, o), *again = make(data, NULL, o);
		unsigned most = 0;
		assert_int_equal(q->n, N);
		for (int i = 0; i < N; i++) {
			unsigned set = examples_of(&q->at[i], N);
			assert_int_equal(__builtin_popcount(set), SHOTS);
			assert_false(set & 1u << i); /* never its own */
			assert_string_equal(q->at[i].prompt, again->at[i].prompt);
			most |= set;
		}
		assert_int_equal(__builtin_popcount(most), SHOTS + 1);
		seen |= most;
		questions_free(q);
		questions_free(again);
	}
	assert_int_equal(seen, (1u << N) - 1); /* every row has its turn */

	/* From elsewhere: just these, before every row. */
	struct question_options o = {.shots = 2, .seed = 4, .limit = 3};
	struct questions *q = make(data, "{\"prompt\": \"x\", \"completion\": \"y\"}\n"
		"{\"prompt\": \"x\", \"completion\": \"y\"}\n", o);
	assert_int_equal(q->n, 3);
	assert_true(q->at[0].row < q->at[1].row && q->at[1].row < q->at[2].row);
	assert_true(strncmp(q->at[0].prompt, "xy\n\nxy\n\nQ", 9) == 0);
	questions_free(q);

	assert_fails(data, NULL, (struct question_options){.shots = N}, "9 rows");
	assert_fails(data, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n",
		(struct question_options){.shots = 1}, "alike");
	free(data);
}

static void test_messages(void **state)
{
	static const char rows[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, "
		"{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Yo\"}]}\n"
		"{\"messages\": [{\"role\": \"user\", \"content\": \"no answer\"}]}\n";
	static const char examples[] = "{\"messages\": [{\"role\": \"system\", \"content\": \"dropped\"}, "
		"{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"assistant\", \"content\": \"B\"}]}\n";
	struct question_options o = {.shots = 1};
	assert_fails(rows, examples, o, "chat_template");
	struct chat_template *chatml = NULL;
	assert_int_equal(chat_template_new(&chatml, NULL, "chatml", NULL), 0);
	o.chat_template = chatml;
	struct questions *q = make(rows, examples, o);
	assert_int_equal(q->n, 2);
	assert_text(q->at[0].prompt, q->at[0].prompt_len, "<|im_start|>system\nBe brief.<|im_end|>\n"
		"<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
		"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
	assert_text(q->at[0].reference, q->at[0].reference_len, "Yo");

	/* Only the row's own answer has labels. */
	struct tokenizer *t = golden_tokenizer("smollm");
	struct errmsg err = {0};
	struct sample_options so = {.chat_template = o.chat_template, .examples = true};
	struct samples *s = NULL;
	assert_int_equal(samples_new(&s, (char *)q->rows.data, q->rows.len, t, &so, 1, &err), 0);
	assert_int_equal(s->n, 1); /* the other has nothing to train on */
	struct buf labelled = {0};
	for (int64_t i = 0; i < s->start[1]; i++) {
		if (s->labels[i] >= 0) {
			assert_int_equal(tokenizer_decode(t, s->labels[i], false, &labelled), 0);
		}
	}
	assert_text((char *)labelled.data, labelled.len, "Yo<|im_end|>\n");
	buf_deinit(&labelled);
	samples_free(s);
	/* What a user's rows happen to call so says nothing. */
	so.examples = false;
	assert_int_equal(samples_new(&s, (char *)q->rows.data, q->rows.len, t, &so, 1, &err), 0);
	uint64_t all = 0;
	for (int64_t i = 0; i < s->start[1]; i++) {
		all += s->labels[i] >= 0;
	}
	assert_true(all > 4);
	samples_free(s);
	tokenizer_free(t);
	questions_free(q);
	chat_template_free(chatml);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain),
		cmocka_unit_test(test_examples),
		cmocka_unit_test(test_messages),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
