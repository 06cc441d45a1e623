/* peftd-trainer --inspect: plans, models and datasets, and what is wrong with them. */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/tiny.h"
#include "tests/trainer/fixture.h"
#include "tests/trainer/task_build.h"
#include "util/cleanup.h"
#include "util/util.h"

/* Runs one task in an inspect child of its own, as the core does. */
static void inspect(struct test_task *t, struct outcome *ret)
{
	struct fake_core c;
	fake_core_start(&c, true);
	task_run(&c, t, NULL, ret);
	int status = fake_core_stop(&c);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void expect_error(struct test_task *t, unsigned code, const char *const *words)
{
	struct outcome o;
	inspect(t, &o);
	const char *message = outcome_message(&o);
	if (outcome_code(&o) != code) {
		fail_msg("status %u, not %u: %s", outcome_code(&o), code, message);
	}
	for (; *words; words++) {
		if (!strstr(message, *words)) {
			fail_msg("'%s' is missing in: %s", *words, message);
		}
	}
	outcome_deinit(&o);
}

#define EXPECT_ERROR(t, code, ...) \
	expect_error(t, code, (const char *const[]){__VA_ARGS__, NULL})

/* ---- models ---------------------------------------------------------------------------------- */

static void test_model(void **state)
{
	struct fixture *f = *state;
	struct test_task t;
	struct outcome o;
	task_init_model_inspect(&t, f->model);
	inspect(&t, &o);
	if (outcome_code(&o) != 0) {
		fail_msg("%s", outcome_message(&o));
	}
	const Peftd__V1__Model *m = o.result->model;
	assert_int_equal(o.result->what_case, PEFTD__V1__TASK_RESULT__WHAT_MODEL);
	assert_true(proto_equal(&m->name, "tiny"));
	assert_true(proto_equal(&m->format, "huggingface"));
	assert_true(proto_equal(&m->architecture, "llama"));
	assert_true(proto_equal(&m->dtype, "f32"));
	assert_int_equal(m->hidden_size, TINY_HIDDEN);
	assert_int_equal(m->num_hidden_layers, TINY_LAYERS);
	assert_int_equal(m->vocab_size, TINY_VOCAB);
	assert_int_equal(m->digest.len, 32);
	assert_int_equal(m->n_linear_modules, 7);
	assert_true(proto_equal(&m->linear_modules[0], "q_proj"));
	assert_true(proto_equal(&m->linear_modules[6], "down_proj"));
	const uint64_t layer = 2 * TINY_HIDDEN + 2 * 64 * TINY_HIDDEN + 2 * 32 * TINY_HIDDEN +
		3 * TINY_INTERMEDIATE * TINY_HIDDEN;
	assert_int_equal(m->parameters, TINY_VOCAB * TINY_HIDDEN + TINY_HIDDEN + TINY_LAYERS * layer);
	outcome_deinit(&o);
}

/* A copy of the model with one file changed; NULL text removes it. */
static char *spoilt_model(struct fixture *f, const char *name, const char *file, const char *text,
	size_t len)
{
	char *dir = tiny_path(f->dir, name);
	tiny_model_write(dir, 1);
	_cleanup_(freep) char *path = tiny_path(dir, file);
	if (text) {
		tiny_write_file(path, text, len);
	} else {
		assert_int_equal(unlink(path), 0);
	}
	return dir;
}

static void test_model_errors(void **state)
{
	struct fixture *f = *state;
	struct test_task t;
	_cleanup_(freep) char *none = tiny_path(f->dir, "nothing-here");
	task_init_model_inspect(&t, none);
	EXPECT_ERROR(&t, STATUS_NOT_FOUND, "nothing-here");

	_cleanup_(freep) char *no_tokenizer = spoilt_model(f, "no-tok", "tokenizer.json", NULL, 0);
	task_init_model_inspect(&t, no_tokenizer);
	EXPECT_ERROR(&t, STATUS_INVALID, "tokenizer.json");

	static const char bert[] = "{\"model_type\":\"bert\",\"architectures\":[\"BertModel\"]}";
	_cleanup_(freep) char *other = spoilt_model(f, "bert", "config.json", bert, strlen(bert));
	task_init_model_inspect(&t, other);
	EXPECT_ERROR(&t, STATUS_INVALID, "bert");

	_cleanup_(freep) char *weights_path = tiny_path(f->model, "model.safetensors");
	size_t len;
	_cleanup_(freep) char *weights = tiny_read_file(weights_path, &len);
	_cleanup_(freep) char *cut =
		spoilt_model(f, "cut", "model.safetensors", weights, len - 1000);
	task_init_model_inspect(&t, cut);
	EXPECT_ERROR(&t, STATUS_INVALID, "model.safetensors");
}

/* ---- datasets -------------------------------------------------------------------------------- */

static void test_dataset_check(void **state)
{
	struct fixture *f = *state;
	struct test_task t;
	struct outcome o;
	task_init_dataset_check(&t);
	task_set_dataset(&t, f->rows, f->rows_len);
	inspect(&t, &o);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.result->what_case, PEFTD__V1__TASK_RESULT__WHAT_DATASET);
	assert_int_equal(o.result->dataset->rows, 40);
	assert_true(proto_equal(&o.result->dataset->format, "prompt-completion"));
	outcome_deinit(&o);

	static const char bad[] = "{\"prompt\":\"a\",\"completion\":\"b\"}\nno json\n{\"prompt\":1}\n";
	task_init_dataset_check(&t);
	task_set_dataset(&t, bad, strlen(bad));
	EXPECT_ERROR(&t, STATUS_INVALID, "rows.jsonl:2", "rows.jsonl:3");

	task_init_dataset_check(&t);
	task_set_dataset(&t, "", 0);
	EXPECT_ERROR(&t, STATUS_INVALID, "no rows");
}

static void test_dataset_inspect(void **state)
{
	struct fixture *f = *state;
	static const char rows[] = "{\"prompt\":\"ab\",\"completion\":\" he\"}\n"
							   "{\"prompt\":\"0123456789\",\"completion\":\"0123456789\"}\n"
							   "{\"prompt\":\"\",\"completion\":\"\\u00e9\"}\n";
	struct test_task t;
	struct outcome o;
	task_init_dataset_inspect(&t, f->model);
	task_set_dataset(&t, rows, strlen(rows));
	t.inspect_request.has_rows = t.inspect_request.has_token_texts = true;
	t.inspect_request.has_max_length = true;
	t.inspect_request.rows = 0;
	t.inspect_request.token_texts = true;
	t.inspect_request.max_length = 16;
	inspect(&t, &o);
	if (outcome_code(&o) != 0) {
		fail_msg("%s", outcome_message(&o));
	}
	assert_int_equal(o.rows, 3);
	/* "ab", then a space, "he" merged, and the end. */
	const int32_t first[] = {TINY_BYTE + 'a', TINY_BYTE + 'b', TINY_BYTE + ' ', TINY_BYTE + 256,
		TINY_EOS};
	const int32_t labels[] = {-100, -100, TINY_BYTE + ' ', TINY_BYTE + 256, TINY_EOS};
	assert_true(o.n_row_ids == 5 + 21 + 3);
	assert_memory_equal(o.row_ids, first, sizeof(first));
	assert_memory_equal(o.row_labels, labels, sizeof(labels));
	const char *texts = buf_cstr(&o.tokens);
	assert_memory_equal(texts, "a|b| |he|<|endoftext|>|0|", 24);
	assert_non_null(strstr(texts, "<0xC3>|<0xA9>|"));
	const Peftd__V1__InspectSummary *s = o.result->inspect;
	assert_int_equal(s->rows, 3);
	assert_int_equal(s->overlong, 1);
	assert_int_equal(s->untrainable, 0);
	assert_int_equal(s->longest, 21);
	assert_int_equal(s->tokens, 5 + 3);
	assert_int_equal(s->target_tokens, 3 + 3);
	outcome_deinit(&o);
}

/* A row that needs several messages comes whole, whatever the credit. */
static void test_long_row(void **state)
{
	struct fixture *f = *state;
	enum { N = 20000 };
	_cleanup_(buf_deinit) struct buf rows = {0};
	buf_appendf(&rows, "{\"text\":\"");
	for (int i = 0; i < N; i++) {
		buf_appendf(&rows, "%c", 'A' + i % 26);
	}
	buf_appendf(&rows, "\"}\n");
	struct test_task t;
	struct outcome o;
	task_init_dataset_inspect(&t, f->model);
	task_set_dataset(&t, (const char *)rows.data, rows.len);
	t.inspect_request.has_token_texts = t.inspect_request.token_texts = true;

	struct fake_core c;
	fake_core_start(&c, true);
	task_run(&c, &t, &(struct behaviour){.output_credit = 1}, &o);
	fake_core_stop(&c);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.rows, 1);
	assert_int_equal(o.n_row_ids, N + 1);
	for (int i = 0; i < N; i++) {
		assert_int_equal(o.row_ids[i], TINY_BYTE + 'A' + i % 26);
	}
	outcome_deinit(&o);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void init_plan(struct test_task *t, const struct fixture *f)
{
	task_init_plan(t, f->model);
	task_set_dataset(t, f->rows, f->rows_len);
}

static void test_plan(void **state)
{
	struct fixture *f = *state;
	struct test_task t;
	struct outcome o;
	init_plan(&t, f);
	task_set_eval_dataset(&t, f->eval_rows, f->eval_rows_len);
	inspect(&t, &o);
	if (outcome_code(&o) != 0) {
		fail_msg("%s", outcome_message(&o));
	}
	const Peftd__V1__Plan *p = o.result->plan;
	assert_int_equal(p->total, p->base_weights + p->trainable_weights + p->optimizer_states +
		p->gradients + p->activations + p->temporary);
	assert_true(p->base_weights > 0 && p->activations > 0 && p->overhead > 0);
	/* r·(in + out) of each of the seven projections. */
	const uint64_t layer = 4 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 96));
	assert_int_equal(p->trainable_parameters, TINY_LAYERS * layer);
	assert_int_equal(p->optimizer_states, 2 * 4 * p->trainable_parameters);
	assert_int_equal(p->steps, 10);
	assert_int_equal(p->rows, 40);
	assert_int_equal(p->rows_overlong, 0);
	assert_true(fabs(p->epochs - 1.0) < 1e-9);
	assert_true(p->tokens_per_second > 0 && p->seconds > 0 && p->flops_per_token > 0);
	assert_false(p->has_template_name);
	outcome_deinit(&o);
}

static void test_plan_epochs(void **state)
{
	struct fixture *f = *state;
	struct test_task t;
	struct outcome o;
	init_plan(&t, f);
	t.train_spec.has_max_steps = false;
	t.train_spec.max_steps = 0;
	t.train_spec.batch_size = 16; /* 40 rows: 3 steps an epoch */
	t.train_spec.has_num_train_epochs = true;
	t.train_spec.num_train_epochs = 2;
	inspect(&t, &o);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.result->plan->steps, 6);
	outcome_deinit(&o);

	t.train_spec.num_train_epochs = -1;
	EXPECT_ERROR(&t, STATUS_INVALID, "num_train_epochs");
}

static void test_plan_errors(void **state)
{
	struct fixture *f = *state;
	struct test_task t;

	init_plan(&t, f);
	t.lora.r = 0;
	EXPECT_ERROR(&t, STATUS_INVALID, "lora.r");

	init_plan(&t, f);
	t.train_spec.learning_rate = NAN;
	EXPECT_ERROR(&t, STATUS_INVALID, "learning_rate");

	init_plan(&t, f);
	t.targets[0] = proto_bytes("c_attn");
	t.lora.n_target_modules = 1;
	EXPECT_ERROR(&t, STATUS_INVALID, "c_attn", "q_proj");

	init_plan(&t, f);
	t.spec.has_method = true;
	t.spec.method = proto_bytes("prayer");
	EXPECT_ERROR(&t, STATUS_INVALID, "prayer", "lora");

	init_plan(&t, f);
	t.train_spec.dtype = proto_bytes("fp64");
	EXPECT_ERROR(&t, STATUS_INVALID, "train.dtype", "fp64", "bf16");

	init_plan(&t, f);
	t.train_spec.has_logging_steps = true;
	t.train_spec.logging_steps = 0;
	EXPECT_ERROR(&t, STATUS_INVALID, "logging_steps");

	init_plan(&t, f);
	t.spec.has_chat_template = true;
	t.spec.chat_template = proto_bytes("klingon");
	EXPECT_ERROR(&t, STATUS_INVALID, "klingon");

	init_plan(&t, f);
	t.plan.has_memory_limit = true;
	t.plan.memory_limit = 1000;
	EXPECT_ERROR(&t, STATUS_WONT_FIT, "");

	init_plan(&t, f);
	uint8_t digest[32] = {1};
	t.model.has_digest = true;
	t.model.digest = (ProtobufCBinaryData){sizeof(digest), digest};
	EXPECT_ERROR(&t, STATUS_INVALID, "changed");
}

/* Overlong rows under each policy, and rows with nothing to train on. */
static void test_plan_rows(void **state)
{
	struct fixture *f = *state;
	static const char rows[] = "{\"prompt\":\"ab\",\"completion\":\"cd\"}\n"
							   "{\"prompt\":\"0123456789\",\"completion\":\"0123456789\"}\n"
							   "{\"prompt\":\"abcd\",\"completion\":\"ef\"}\n";
	struct test_task t;
	struct outcome o;
	task_init_plan(&t, f->model);
	task_set_dataset(&t, rows, strlen(rows));
	t.train_spec.max_length = 12;
	inspect(&t, &o);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.result->plan->rows, 2);
	assert_int_equal(o.result->plan->rows_overlong, 1);
	outcome_deinit(&o);

	t.train_spec.has_overlong = true;
	t.train_spec.overlong = proto_bytes("truncate");
	inspect(&t, &o);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.result->plan->rows, 3);
	assert_int_equal(o.result->plan->rows_overlong, 1);
	outcome_deinit(&o);

	t.train_spec.overlong = proto_bytes("raise");
	EXPECT_ERROR(&t, STATUS_INVALID, ":2: ", "12");

	/* Cut after eight tokens, the second row has only prompt left. */
	t.train_spec.overlong = proto_bytes("truncate");
	t.train_spec.max_length = 8;
	inspect(&t, &o);
	assert_int_equal(outcome_code(&o), 0);
	assert_int_equal(o.result->plan->rows_untrainable, 1);
	outcome_deinit(&o);

	t.train_spec.overlong = proto_bytes("drop");
	t.train_spec.max_length = 2;
	EXPECT_ERROR(&t, STATUS_INVALID, "max_length");
}

static void test_messages_need_template(void **state)
{
	struct fixture *f = *state;
	static const char rows[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
							   "{\"role\":\"assistant\",\"content\":\"b\"}]}\n";
	struct test_task t;
	struct outcome o;
	task_init_plan(&t, f->model);
	task_set_dataset(&t, rows, strlen(rows));
	EXPECT_ERROR(&t, STATUS_INVALID, "chat_template");

	t.spec.has_chat_template = true;
	t.spec.chat_template = proto_bytes("chatml");
	inspect(&t, &o);
	if (outcome_code(&o) != 0) {
		fail_msg("%s", outcome_message(&o));
	}
	assert_true(proto_equal(&o.result->plan->template_name, "chatml"));
	outcome_deinit(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_model_errors),
		cmocka_unit_test(test_dataset_check),
		cmocka_unit_test(test_dataset_inspect),
		cmocka_unit_test(test_long_row),
		cmocka_unit_test(test_plan),
		cmocka_unit_test(test_plan_epochs),
		cmocka_unit_test(test_plan_errors),
		cmocka_unit_test(test_plan_rows),
		cmocka_unit_test(test_messages_need_template),
	};
	return cmocka_run_group_tests_name("inspect", tests, fixture_setup, fixture_teardown);
}
