/* peftd-trainer at work: training, resuming, being interrupted, evaluating, generating, and a core
 * that sends nonsense. */

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/support/tiny.h"
#include "tests/trainer/fixture.h"
#include "tests/trainer/task_build.h"
#include "util/util.h"

enum { STEPS = 10 };

static void start(struct fake_core *c)
{
	fake_core_start(c, false);
	fake_core_configure(c, "cpu", 2);
}

static void init_train(struct test_task *t, const struct fixture *f)
{
	task_init_train(t, f->model);
	task_set_dataset(t, f->rows, f->rows_len);
	task_set_eval_dataset(t, f->eval_rows, f->eval_rows_len);
}

static void assert_ok(struct outcome *o)
{
	if (outcome_code(o) != 0) {
		fail_msg("status %u: %s", outcome_code(o), outcome_message(o));
	}
}

static const struct kept_checkpoint *last_checkpoint(const struct outcome *o)
{
	assert_true(o->n_checkpoints > 0);
	return &o->checkpoints[o->n_checkpoints - 1];
}

/* A whole run in a process of its own: what interrupted ones are held against. */
static void reference_run(const struct fixture *f, struct outcome *ret)
{
	struct fake_core c;
	struct test_task t;
	start(&c);
	init_train(&t, f);
	task_run(&c, &t, NULL, ret);
	assert_ok(ret);
	assert_int_equal(fake_core_stop(&c), 0);
}

static void assert_same_end(const struct outcome *a, const struct outcome *b)
{
	const struct kept_checkpoint *x = last_checkpoint(a), *y = last_checkpoint(b);
	assert_true(x->final && y->final);
	assert_int_equal(x->len, y->len);
	assert_memory_equal(x->data, y->data, x->len);
	assert_true(memcmp(&x->eval_loss, &y->eval_loss, sizeof(double)) == 0);
}

/* The metrics from step `from` on equal those of the whole run, bit for bit. */
static void assert_same_metrics(const struct outcome *whole, const struct outcome *part,
	uint64_t from)
{
	assert_int_equal(part->n_metrics, whole->n_metrics - (from - 1));
	for (size_t i = 0; i < part->n_metrics; i++) {
		assert_memory_equal(&part->metrics[i], &whole->metrics[from - 1 + i],
			sizeof(part->metrics[0]));
	}
}

static void test_train(void **state)
{
	struct outcome o;
	reference_run(*state, &o);
	assert_int_equal(o.starting, 1);
	assert_int_equal(o.running, 1);
	assert_true(o.arena > 0);
	assert_int_equal(o.n_metrics, STEPS);
	for (size_t i = 0; i < STEPS; i++) {
		assert_int_equal(o.metrics[i].step, i + 1);
		assert_true(isfinite(o.metrics[i].loss) && o.metrics[i].grad_norm > 0);
		assert_true(o.metrics[i].target_tokens > 0);
		assert_true(o.metrics[i].tokens > o.metrics[i].target_tokens);
	}
	assert_true(o.metrics[STEPS - 1].loss < o.metrics[0].loss);

	assert_int_equal(o.n_evals, 2);
	assert_int_equal(o.evals[0].step, 5);
	assert_int_equal(o.evals[1].step, 10);

	assert_int_equal(o.n_checkpoints, 3);
	const uint64_t steps[] = {4, 8, 10};
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(o.checkpoints[i].step, steps[i]);
		assert_int_equal(o.checkpoints[i].final, i == 2);
		assert_int_equal(o.checkpoints[i].has_eval_loss, i == 2);
	}
	assert_true(o.checkpoints[2].eval_loss == o.evals[1].loss);
	assert_int_equal(o.result->train->steps, STEPS);
	assert_true(o.result->train->peak_rss > 1 << 20);

	const char *config = (const char *)o.checkpoints[2].data;
	size_t len = o.checkpoints[2].sizes[0];
	assert_non_null(memmem(config, len, "\"peft_type\": \"LORA\"", 19));
	assert_non_null(memmem(config, len, "\"base_model_name_or_path\": \"tiny\"", 33));
	outcome_deinit(&o);
}

static void test_logging_steps(void **state)
{
	struct fake_core c;
	struct test_task t;
	struct outcome o;
	start(&c);
	init_train(&t, *state);
	t.train_spec.has_logging_steps = true;
	t.train_spec.logging_steps = 4;
	t.train_spec.save_steps = 0;
	t.train_spec.eval_steps = 0;
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	assert_int_equal(o.n_metrics, 3);
	assert_int_equal(o.metrics[0].step, 4);
	assert_int_equal(o.metrics[1].step, 8);
	assert_int_equal(o.metrics[2].step, 10);
	assert_int_equal(o.n_checkpoints, 1);
	assert_true(o.checkpoints[0].final);
	assert_int_equal(o.n_evals, 1);
	outcome_deinit(&o);
	fake_core_stop(&c);
}

/* From each of its checkpoints, in a new process, a run comes to the same bits. */
static void test_resume(void **state)
{
	struct outcome whole;
	reference_run(*state, &whole);
	for (size_t i = 0; i + 1 < whole.n_checkpoints; i++) {
		struct fake_core c;
		struct test_task t;
		struct outcome o;
		start(&c);
		init_train(&t, *state);
		task_set_resume(&t, &whole.checkpoints[i]);
		task_run(&c, &t, NULL, &o);
		assert_ok(&o);
		assert_same_metrics(&whole, &o, whole.checkpoints[i].step + 1);
		assert_same_end(&whole, &o);
		outcome_deinit(&o);
		fake_core_stop(&c);
	}
	outcome_deinit(&whole);
}

/* The last checkpoint was durable but the result never arrived: nothing is trained again. */
static void test_resume_at_end(void **state)
{
	struct outcome whole, o;
	struct fake_core c;
	struct test_task t;
	reference_run(*state, &whole);
	start(&c);
	init_train(&t, *state);
	task_set_resume(&t, last_checkpoint(&whole));
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	assert_int_equal(o.n_metrics, 0);
	assert_int_equal(o.n_checkpoints, 0);
	assert_int_equal(o.result->train->steps, STEPS);
	outcome_deinit(&o);
	outcome_deinit(&whole);
	fake_core_stop(&c);
}

static void test_killed(void **state)
{
	struct outcome whole, first, second;
	struct fake_core c;
	struct test_task t;
	reference_run(*state, &whole);

	start(&c);
	init_train(&t, *state);
	task_run(&c, &t, &(struct behaviour){.at_step = 7, .then = DO_KILL}, &first);
	int status = fake_core_wait_exit(&c);
	assert_true(WIFSIGNALED(status));
	fake_core_stop(&c);
	assert_int_equal(last_checkpoint(&first)->step, 4);

	start(&c);
	init_train(&t, *state);
	task_set_resume(&t, last_checkpoint(&first));
	task_run(&c, &t, NULL, &second);
	assert_ok(&second);
	assert_same_end(&whole, &second);
	fake_core_stop(&c);
	outcome_deinit(&whole);
	outcome_deinit(&first);
	outcome_deinit(&second);
}

/* Stopped for later: a checkpoint that is in no plan, and from it the same bits. The same process
 * takes the job up again, as after a preemption. */
static void test_stop(void **state)
{
	struct outcome whole, first, second;
	struct fake_core c;
	struct test_task t;
	reference_run(*state, &whole);

	start(&c);
	init_train(&t, *state);
	task_run(&c, &t, &(struct behaviour){.at_step = 5, .then = DO_STOP}, &first);
	assert_int_equal(outcome_code(&first), STATUS_UNAVAILABLE);
	const struct kept_checkpoint *k = last_checkpoint(&first);
	assert_true(k->step >= 5 && k->step < STEPS);
	assert_false(k->final);

	init_train(&t, *state);
	task_set_resume(&t, k);
	task_run(&c, &t, NULL, &second);
	assert_ok(&second);
	assert_same_end(&whole, &second);
	assert_int_equal(fake_core_stop(&c), 0);
	outcome_deinit(&whole);
	outcome_deinit(&first);
	outcome_deinit(&second);
}

static void test_cancel(void **state)
{
	struct outcome o;
	struct fake_core c;
	struct test_task t;
	start(&c);
	init_train(&t, *state);
	t.train_spec.save_steps = 0;
	t.train_spec.max_steps = 500;
	task_run(&c, &t, &(struct behaviour){.at_step = 3, .then = DO_CANCEL}, &o);
	assert_int_equal(outcome_code(&o), STATUS_CANCELLED);
	assert_int_equal(o.n_checkpoints, 0);
	assert_true(o.n_metrics < 500);
	outcome_deinit(&o);

	/* The trainer goes on to work. */
	init_train(&t, *state);
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	outcome_deinit(&o);
	fake_core_stop(&c);
}

static void test_shutdown(void **state)
{
	struct outcome o;
	struct fake_core c;
	struct test_task t;
	start(&c);
	init_train(&t, *state);
	t.train_spec.max_steps = 500;
	t.train_spec.save_steps = 0;
	task_run(&c, &t, &(struct behaviour){.at_step = 3, .then = DO_SHUTDOWN}, &o);
	assert_int_equal(outcome_code(&o), STATUS_UNAVAILABLE);
	assert_int_equal(o.n_checkpoints, 1);
	assert_true(o.checkpoints[0].step >= 3 && !o.checkpoints[0].final);
	int status = fake_core_wait_exit(&c);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	outcome_deinit(&o);
	fake_core_stop(&c);
}

static void test_checkpoint_refused(void **state)
{
	struct outcome o;
	struct fake_core c;
	struct test_task t;
	start(&c);
	init_train(&t, *state);
	task_run(&c, &t, &(struct behaviour){.checkpoint_status = STATUS_DISK_FULL}, &o);
	assert_int_equal(outcome_code(&o), STATUS_DISK_FULL);
	const char *message = outcome_message(&o);
	assert_non_null(strstr(message, "step 4"));
	assert_non_null(strstr(message, "as the test wanted"));
	outcome_deinit(&o);
	fake_core_stop(&c);
}

/* A loss that is no number ends the job with a sentence, and the trainer lives. */
static void test_not_a_number(void **state)
{
	struct outcome o;
	struct fake_core c;
	struct test_task t;
	start(&c);
	init_train(&t, *state);
	t.train_spec.learning_rate = 1e30;
	t.train_spec.has_max_grad_norm = true;
	t.train_spec.max_grad_norm = 0;
	task_run(&c, &t, NULL, &o);
	assert_int_equal(outcome_code(&o), STATUS_FAILED);
	assert_true(strlen(outcome_message(&o)) > 10);
	outcome_deinit(&o);

	init_train(&t, *state);
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	outcome_deinit(&o);
	fake_core_stop(&c);
}

static void test_init_adapter(void **state)
{
	struct outcome whole, o;
	struct fake_core c;
	struct test_task t;
	reference_run(*state, &whole);
	start(&c);
	init_train(&t, *state);
	task_set_adapter(&t, last_checkpoint(&whole));
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	/* Where the other run ended, not where PEFT begins. */
	assert_true(o.metrics[0].loss < whole.metrics[0].loss);
	outcome_deinit(&o);

	init_train(&t, *state);
	task_set_adapter(&t, last_checkpoint(&whole));
	t.lora.r = 8;
	task_run(&c, &t, NULL, &o);
	assert_int_equal(outcome_code(&o), STATUS_INVALID);
	assert_non_null(strstr(outcome_message(&o), "lora.r"));
	outcome_deinit(&o);
	outcome_deinit(&whole);
	fake_core_stop(&c);
}

/* ---- evaluation and generation --------------------------------------------------------------- */

static void init_eval(struct test_task *t, const struct fixture *f)
{
	task_init_eval(t, f->model);
	task_set_dataset(t, f->eval_rows, f->eval_rows_len);
}

static void test_eval(void **state)
{
	struct outcome whole, o;
	struct fake_core c;
	struct test_task t;
	reference_run(*state, &whole);
	start(&c);
	init_eval(&t, *state);
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	const Peftd__V1__EvalReply *e = o.result->eval;
	double base = e->loss;
	assert_int_equal(e->rows, 10);
	assert_true(e->tokens > 0 && isfinite(base));
	assert_true(fabs(e->perplexity - exp(base)) < 1e-9 * e->perplexity);
	outcome_deinit(&o);

	init_eval(&t, *state);
	task_set_adapter(&t, last_checkpoint(&whole));
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	/* What training itself found at its end. */
	assert_true(fabs(o.result->eval->loss - whole.evals[1].loss) < 1e-5 * whole.evals[1].loss);
	assert_true(o.result->eval->loss < base);
	outcome_deinit(&o);
	outcome_deinit(&whole);
	fake_core_stop(&c);
}

/* An evaluation between two steps changes no bit of the training. */
static void test_eval_while_training(void **state)
{
	struct outcome whole, o, other;
	struct fake_core c;
	struct test_task t, e;
	reference_run(*state, &whole);
	start(&c);
	init_train(&t, *state);
	init_eval(&e, *state);
	struct behaviour how = {
		.at_step = 2,
		.other = &e.task,
		.other_inputs = e.inputs,
		.n_other_inputs = e.n_inputs,
		.other_outcome = &other,
	};
	task_run(&c, &t, &how, &o);
	assert_ok(&o);
	assert_ok(&other);
	assert_true(isfinite(other.result->eval->loss));
	assert_same_end(&whole, &o);
	outcome_deinit(&whole);
	outcome_deinit(&o);
	outcome_deinit(&other);
	fake_core_stop(&c);
}

static char *generate(struct fake_core *c, struct test_task *t, unsigned credit,
	uint32_t *ret_tokens)
{
	struct outcome o;
	task_run(c, t, &(struct behaviour){.output_credit = credit}, &o);
	assert_ok(&o);
	const Peftd__V1__GenerateReply *g = o.result->generate;
	assert_true(g->new_tokens > 0 && g->new_tokens <= 24);
	assert_true(g->prompt_tokens > 0);
	assert_true(proto_equal(&g->finish_reason, "stop") || proto_equal(&g->finish_reason, "length"));
	if (proto_equal(&g->finish_reason, "length")) {
		assert_int_equal(g->new_tokens, 24);
	}
	*ret_tokens = g->new_tokens;
	char *text = buf_steal(&o.text, NULL);
	outcome_deinit(&o);
	return text;
}

static void test_generate(void **state)
{
	struct fixture *f = *state;
	struct fake_core c;
	struct test_task t;
	uint32_t n1, n2;
	start(&c);
	task_init_generate(&t, f->model, "1 plus 2 is");
	char *a = generate(&c, &t, 0, &n1);
	/* The same words in longer pieces, for a reader who gives little credit. */
	task_init_generate(&t, f->model, "1 plus 2 is");
	char *b = generate(&c, &t, 1, &n2);
	assert_string_equal(a, b);
	assert_int_equal(n1, n2);
	free(a);
	free(b);

	task_init_generate(&t, f->model, "hello");
	t.generate_request.has_chat = t.generate_request.chat = true;
	t.generate_request.has_chat_template = true;
	t.generate_request.chat_template = proto_bytes("chatml");
	free(generate(&c, &t, 0, &n1));
	fake_core_stop(&c);
}

static void expect_generate_failure(struct fake_core *c, struct test_task *t, int status,
	const char *word)
{
	struct outcome o;
	task_run(c, t, NULL, &o);
	assert_int_equal(outcome_code(&o), status);
	const char *message = outcome_message(&o);
	if (!strstr(message, word)) {
		fail_msg("'%s' is missing in: %s", word, message);
	}
	outcome_deinit(&o);
}

static void expect_generate_error(struct fake_core *c, struct test_task *t, const char *word)
{
	expect_generate_failure(c, t, STATUS_INVALID, word);
}

static void test_generate_errors(void **state)
{
	struct fixture *f = *state;
	struct fake_core c;
	struct test_task t;
	start(&c);
	task_init_generate(&t, f->model, "");
	expect_generate_error(&c, &t, "prompt");
	task_init_generate(&t, f->model, "a");
	t.generate_request.max_new_tokens = TINY_POSITIONS;
	expect_generate_error(&c, &t, "positions");
	task_init_generate(&t, f->model, "a");
	t.generate_request.has_temperature = true;
	t.generate_request.temperature = -1;
	expect_generate_error(&c, &t, "temperature");
	/* The model has no template of its own. */
	task_init_generate(&t, f->model, "a");
	t.generate_request.has_chat = t.generate_request.chat = true;
	expect_generate_error(&c, &t, "chat_template");
	fake_core_stop(&c);
}

/* The limit holds for whatever makes a model resident, not for admitted jobs alone. */
static void test_memory_limit(void **state)
{
	struct fixture *f = *state;
	struct fake_core c;
	struct test_task t;
	fake_core_start(&c, false);
	fake_core_configure_limit(&c, "cpu", 1, 161 * UINT64_C(1048576) - 1048000);
	task_init_generate(&t, f->model, "a");
	expect_generate_failure(&c, &t, STATUS_WONT_FIT, "MiB");
	fake_core_stop(&c);
}

/* ---- a core that misbehaves ------------------------------------------------------------------ */

/* Sends raw bytes as a frame and expects the trainer to end by itself, with a failure. */
static void expect_exit_after(const void *frame, size_t len)
{
	struct fake_core c;
	fake_core_start(&c, false);
	fake_core_configure(&c, "cpu", 1);
	assert_int_equal(send(link_fd(c.link), frame, len, 0), (ssize_t)len);
	int status = fake_core_wait_exit(&c);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
	fake_core_stop(&c);
}

static void test_malformed_frames(void **state)
{
	static const uint8_t shorter[] = {1, 0};
	expect_exit_after(shorter, sizeof(shorter));
	static const uint8_t length[] = {255, 255, 255, 255, 0};
	expect_exit_after(length, sizeof(length));
	static const uint8_t junk[] = {4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff};
	expect_exit_after(junk, sizeof(junk));
	static const uint8_t nothing[] = {0, 0, 0, 0};
	expect_exit_after(nothing, sizeof(nothing));
}

static void send_chunk_for(struct fake_core *c, uint64_t task, uint32_t input)
{
	Peftd__V1__Chunk chunk = PEFTD__V1__CHUNK__INIT;
	chunk.task = task;
	chunk.input = input;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHUNK;
	msg.chunk = &chunk;
	fake_core_send(c, &msg, "x", 1);
}

static void test_strange_messages(void **state)
{
	struct fixture *f = *state;
	struct fake_core c;
	struct test_task t;
	struct outcome o;
	start(&c);
	/* A chunk for a task that has ended is nothing; of one that never was, too. */
	send_chunk_for(&c, 99, 0);

	/* A task without content, and one whose inputs do not exist. */
	task_init_eval(&t, f->model);
	t.task.what_case = PEFTD__V1__TASK__WHAT__NOT_SET;
	task_run(&c, &t, NULL, &o);
	assert_int_equal(outcome_code(&o), STATUS_VERSION);
	outcome_deinit(&o);

	init_train(&t, f);
	t.dataset.input = 77;
	task_run(&c, &t, NULL, &o);
	assert_int_equal(outcome_code(&o), STATUS_INVALID);
	outcome_deinit(&o);

	init_train(&t, f);
	t.task.model = NULL;
	task_run(&c, &t, NULL, &o);
	assert_int_equal(outcome_code(&o), STATUS_INVALID);
	outcome_deinit(&o);

	/* Bytes that are not those that were named. */
	init_eval(&t, f);
	task_run(&c, &t, &(struct behaviour){.spoil_inputs = true}, &o);
	assert_int_equal(outcome_code(&o), STATUS_INTERNAL);
	outcome_deinit(&o);

	/* And it still works. */
	init_eval(&t, f);
	task_run(&c, &t, NULL, &o);
	assert_ok(&o);
	outcome_deinit(&o);
	assert_int_equal(fake_core_stop(&c), 0);
}

static void test_wrong_version(void **state)
{
	struct fake_core c;
	fake_core_start(&c, false);
	Peftd__V1__TrainerConfig config = PEFTD__V1__TRAINER_CONFIG__INIT;
	config.version = LINK_VERSION + 1;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG;
	msg.config = &config;
	fake_core_send(&c, &msg, NULL, 0);
	int status = fake_core_wait_exit(&c);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	fake_core_stop(&c);
}

static void test_no_such_device(void **state)
{
	static const char *const devices[] = {"cuda:0", "abacus"};
	for (size_t i = 0; i < ARRAY_LEN(devices); i++) {
		struct fake_core c;
		fake_core_start(&c, false);
		Peftd__V1__TrainerConfig config = PEFTD__V1__TRAINER_CONFIG__INIT;
		config.version = LINK_VERSION;
		config.has_device = true;
		config.device = proto_bytes(devices[i]);
		Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
		msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG;
		msg.config = &config;
		fake_core_send(&c, &msg, NULL, 0);
		int status = fake_core_wait_exit(&c);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
		fake_core_stop(&c);
	}
}

/* When the core goes away in the middle of a run, so does the trainer, at once. */
static void test_core_gone(void **state)
{
	struct fake_core c;
	struct test_task t;
	struct outcome o;
	start(&c);
	init_train(&t, *state);
	t.train_spec.max_steps = 100000;
	t.train_spec.save_steps = 0;
	task_run(&c, &t, &(struct behaviour){.at_step = 2, .then = DO_LEAVE}, &o);
	assert_null(o.result);
	outcome_deinit(&o);
	int64_t before = clock_monotonic_ns();
	int status = fake_core_stop(&c);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	assert_true(clock_monotonic_ns() - before < INT64_C(2000000000));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_train),
		cmocka_unit_test(test_logging_steps),
		cmocka_unit_test(test_resume),
		cmocka_unit_test(test_resume_at_end),
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_stop),
		cmocka_unit_test(test_cancel),
		cmocka_unit_test(test_shutdown),
		cmocka_unit_test(test_checkpoint_refused),
		cmocka_unit_test(test_not_a_number),
		cmocka_unit_test(test_init_adapter),
		cmocka_unit_test(test_eval),
		cmocka_unit_test(test_eval_while_training),
		cmocka_unit_test(test_generate),
		cmocka_unit_test(test_generate_errors),
		cmocka_unit_test(test_memory_limit),
		cmocka_unit_test(test_malformed_frames),
		cmocka_unit_test(test_strange_messages),
		cmocka_unit_test(test_wrong_version),
		cmocka_unit_test(test_no_such_device),
		cmocka_unit_test(test_core_gone),
	};
	return cmocka_run_group_tests_name("trainer", tests, fixture_setup, fixture_teardown);
}
