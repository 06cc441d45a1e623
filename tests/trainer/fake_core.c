#include "tests/trainer/fake_core.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <sodium.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "util/cleanup.h"
#include "util/util.h"

extern char **environ;

enum { PATIENCE_MS = 60000, MAX_INPUTS = 4 };

void fake_core_start(struct fake_core *c, bool inspect)
{
	const char *binary = getenv("PEFTD_TRAINER");
	assert_non_null(binary);
	int fds[2];
	assert_int_equal(link_pair(fds), 0);
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fds[1], 3);
	char *argv[] = {(char *)"peftd-trainer", (char *)"--link-fd", (char *)"3",
		(char *)"--log-level", (char *)"warning", inspect ? (char *)"--inspect" : NULL, NULL};
	*c = (struct fake_core){.next_task = 1};
	assert_int_equal(posix_spawn(&c->pid, binary, &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	assert_int_equal(link_new(&c->link, fds[0]), 0);
}

int fake_core_wait_exit(struct fake_core *c)
{
	int status = 0;
	if (c->pid > 0) {
		assert_int_equal(waitpid(c->pid, &status, 0), c->pid);
		c->pid = 0;
	}
	return status;
}

int fake_core_stop(struct fake_core *c)
{
	link_free(c->link);
	c->link = NULL;
	return fake_core_wait_exit(c);
}

void fake_core_send(struct fake_core *c, Peftd__V1__CoreToTrainer *msg, const void *raw, size_t len)
{
	int r = link_send(c->link, msg, raw, len);
	if (r < 0) {
		fail_msg("sending to the trainer: %s", strerror(-r));
	}
}

static Peftd__V1__TrainerToCore *receive(struct fake_core *c, const void **raw, size_t *raw_len)
{
	void *msg = NULL;
	struct errmsg err = {0};
	int r = link_recv_wait(c->link, PATIENCE_MS, &peftd__v1__trainer_to_core__descriptor, &msg, raw,
		raw_len, &err);
	if (r != 1) {
		fail_msg("receiving from the trainer: %s %s", strerror(-r), err.text);
	}
	return msg;
}

void fake_core_configure(struct fake_core *c, const char *device, unsigned threads)
{
	fake_core_configure_limit(c, device, threads, 0);
}

void fake_core_configure_limit(struct fake_core *c, const char *device, unsigned threads,
	uint64_t memory_limit)
{
	Peftd__V1__TrainerConfig config = PEFTD__V1__TRAINER_CONFIG__INIT;
	config.version = LINK_VERSION;
	config.has_device = config.has_threads = true;
	config.device = proto_bytes(device);
	config.threads = threads;
	config.has_memory_limit = memory_limit > 0;
	config.memory_limit = memory_limit;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG;
	msg.config = &config;
	fake_core_send(c, &msg, NULL, 0);

	const void *raw;
	size_t raw_len;
	Peftd__V1__TrainerToCore *answer = receive(c, &raw, &raw_len);
	assert_int_equal(answer->what_case, PEFTD__V1__TRAINER_TO_CORE__WHAT_READY);
	assert_int_equal(answer->ready->version, LINK_VERSION);
	assert_true(answer->ready->threads > 0);
	assert_true(answer->ready->memory_total > 1 << 20);
	proto_free(answer);
}

void outcome_deinit(struct outcome *o)
{
	for (size_t i = 0; i < o->n_checkpoints; i++) {
		free(o->checkpoints[i].data);
	}
	buf_deinit(&o->logs);
	buf_deinit(&o->text);
	buf_deinit(&o->tokens);
	free(o->row_ids);
	free(o->row_labels);
	proto_free(o->result);
	*o = (struct outcome){0};
}

unsigned outcome_code(const struct outcome *o)
{
	assert_non_null(o->result);
	return o->result->status->code;
}

const char *outcome_message(struct outcome *o)
{
	ProtobufCBinaryData *m = &o->result->status->message;
	o->text.len = 0;
	assert_int_equal(buf_append(&o->text, m->data, m->len), 0);
	return buf_cstr(&o->text);
}

/* ---- a task ---------------------------------------------------------------------------------- */

struct running {
	struct fake_core *core;
	Peftd__V1__Task *task;
	const struct content *inputs;
	size_t n_inputs;
	const struct behaviour *how;
	struct outcome *out;
	struct kept_checkpoint *receiving;
	bool due; /* to act when it is received */
	uint8_t digest[32];
	uint64_t credit; /* chunks of a checkpoint that the trainer may still send */
	bool left; /* the test has seen enough */
};

static void send_task(struct fake_core *c, Peftd__V1__Task *task, const struct content *inputs,
	size_t n_inputs)
{
	Peftd__V1__Blob blobs[MAX_INPUTS], *blob_ptrs[MAX_INPUTS];
	Peftd__V1__File files[MAX_INPUTS][4], *file_ptrs[MAX_INPUTS][4];
	uint8_t digests[MAX_INPUTS][32];
	assert_true(n_inputs <= MAX_INPUTS);
	for (size_t i = 0; i < n_inputs; i++) {
		crypto_generichash(digests[i], 32, inputs[i].data, inputs[i].len, NULL, 0);
		blobs[i] = (Peftd__V1__Blob)PEFTD__V1__BLOB__INIT;
		blobs[i].digest = (ProtobufCBinaryData){32, digests[i]};
		blobs[i].size = inputs[i].len;
		size_t n = 0;
		for (; n < 4 && inputs[i].names[n]; n++) {
			files[i][n] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
			files[i][n].name = proto_bytes(inputs[i].names[n]);
			files[i][n].size = inputs[i].sizes[n];
			file_ptrs[i][n] = &files[i][n];
		}
		blobs[i].n_files = n;
		blobs[i].files = file_ptrs[i];
		blob_ptrs[i] = &blobs[i];
	}
	task->task = c->next_task++;
	task->n_inputs = n_inputs;
	task->inputs = blob_ptrs;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_TASK;
	msg.task = task;
	fake_core_send(c, &msg, NULL, 0);
	task->n_inputs = 0;
	task->inputs = NULL;
}

static void give_output_credit(struct running *r, unsigned n)
{
	Peftd__V1__OutputCredit credit = PEFTD__V1__OUTPUT_CREDIT__INIT;
	credit.task = r->task->task;
	credit.outputs = n;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_OUTPUT_CREDIT;
	msg.output_credit = &credit;
	fake_core_send(r->core, &msg, NULL, 0);
}

static void on_pull(struct running *r, const Peftd__V1__Pull *pull)
{
	assert_true(pull->input < r->n_inputs);
	assert_true(pull->chunks > 0 && pull->chunks <= TRANSFER_WINDOW);
	const struct content *in = &r->inputs[pull->input];
	uint64_t offset = pull->offset;
	for (uint32_t i = 0; i < pull->chunks; i++) {
		assert_true(offset < in->len);
		size_t n = in->len - offset < CHUNK_SIZE ? in->len - (size_t)offset : CHUNK_SIZE;
		_cleanup_(freep) uint8_t *copy = malloc(n);
		assert_non_null(copy);
		memcpy(copy, (const uint8_t *)in->data + offset, n);
		copy[0] ^= r->how->spoil_inputs;
		Peftd__V1__Chunk chunk = PEFTD__V1__CHUNK__INIT;
		chunk.task = r->task->task;
		chunk.input = pull->input;
		chunk.offset = offset;
		Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
		msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHUNK;
		msg.chunk = &chunk;
		fake_core_send(r->core, &msg, copy, n);
		offset += n;
	}
}

static void send_cancel(struct running *r, bool checkpoint_first)
{
	Peftd__V1__TaskCancel cancel = PEFTD__V1__TASK_CANCEL__INIT;
	cancel.task = r->task->task;
	cancel.has_checkpoint_first = true;
	cancel.checkpoint_first = checkpoint_first;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CANCEL;
	msg.cancel = &cancel;
	fake_core_send(r->core, &msg, NULL, 0);
}

static void act(struct running *r)
{
	Peftd__V1__Shutdown shutdown = PEFTD__V1__SHUTDOWN__INIT;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	if (r->how->other) {
		send_task(r->core, r->how->other, r->how->other_inputs, r->how->n_other_inputs);
	}
	switch (r->how->then) {
	case DO_NOTHING:
		break;
	case DO_CANCEL:
		send_cancel(r, false);
		break;
	case DO_STOP:
		send_cancel(r, true);
		break;
	case DO_SHUTDOWN:
		msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_SHUTDOWN;
		msg.shutdown = &shutdown;
		fake_core_send(r->core, &msg, NULL, 0);
		break;
	case DO_KILL:
		kill(r->core->pid, SIGKILL);
		r->left = true;
		break;
	case DO_LEAVE:
		r->left = true;
		break;
	}
}

static void on_metrics(struct running *r, const Peftd__V1__MetricsEvent *e)
{
	struct outcome *o = r->out;
	assert_true(o->n_metrics < ARRAY_LEN(o->metrics));
	o->metrics[o->n_metrics++] = (struct kept_metrics){e->step, e->loss, e->lr, e->grad_norm,
		e->tokens, e->target_tokens};
	if (e->step == r->how->at_step) {
		/* A checkpoint on its way is waited for: half of one is none. */
		r->due = r->how->then == DO_KILL && r->receiving;
		if (!r->due) {
			act(r);
		}
	}
}

static void on_event(struct running *r, const Peftd__V1__TaskEvent *te)
{
	struct outcome *o = r->out;
	const Peftd__V1__Event *e = te->event;
	switch (e->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		if (e->state->state == PEFTD__V1__JOB_STATE__JOB_STARTING) {
			o->starting++;
		} else {
			assert_int_equal(e->state->state, PEFTD__V1__JOB_STATE__JOB_RUNNING);
			assert_true(te->has_arena_bytes && te->has_peak_rss);
			o->arena = te->arena_bytes;
			o->running++;
		}
		break;
	case PEFTD__V1__EVENT__WHAT_METRICS:
		on_metrics(r, e->metrics);
		break;
	case PEFTD__V1__EVENT__WHAT_EVAL:
		assert_true(o->n_evals < ARRAY_LEN(o->evals));
		o->evals[o->n_evals].step = e->eval->step;
		o->evals[o->n_evals++].loss = e->eval->eval_loss;
		break;
	case PEFTD__V1__EVENT__WHAT_LOG:
		buf_append(&o->logs, e->log->text.data, e->log->text.len);
		buf_append(&o->logs, "\n", 1);
		break;
	default:
		fail_msg("event of kind %d", e->what_case);
	}
}

static void give_checkpoint_credit(struct running *r, unsigned chunks)
{
	Peftd__V1__CheckpointCredit credit = PEFTD__V1__CHECKPOINT_CREDIT__INIT;
	credit.task = r->task->task;
	credit.chunks = chunks;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_CREDIT;
	msg.checkpoint_credit = &credit;
	fake_core_send(r->core, &msg, NULL, 0);
	r->credit += chunks;
}

static void on_checkpoint_begin(struct running *r, const Peftd__V1__CheckpointBegin *m)
{
	struct outcome *o = r->out;
	assert_null(r->receiving); /* the next waits until this one was acknowledged */
	assert_true(o->n_checkpoints < ARRAY_LEN(o->checkpoints));
	struct kept_checkpoint *k = &o->checkpoints[o->n_checkpoints++];
	*k = (struct kept_checkpoint){.step = m->step, .final = m->final,
		.has_eval_loss = m->has_eval_loss, .eval_loss = m->eval_loss};
	k->data = malloc((size_t)m->blob->size);
	assert_non_null(k->data);
	static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors",
		"peftd_state.safetensors"};
	assert_int_equal(m->blob->n_files, ARRAY_LEN(names));
	uint64_t sum = 0;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		assert_true(proto_equal(&m->blob->files[i]->name, names[i]));
		k->sizes[i] = (size_t)m->blob->files[i]->size;
		sum += k->sizes[i];
	}
	assert_int_equal(sum, m->blob->size);
	assert_int_equal(m->blob->digest.len, 32);
	memcpy(r->digest, m->blob->digest.data, 32);
	k->len = (size_t)m->blob->size;
	r->receiving = k;
	r->credit = 0;
	k->len = 0;
	give_checkpoint_credit(r, 2);
}

static void on_checkpoint_chunk(struct running *r, const Peftd__V1__CheckpointChunk *m,
	const void *raw, size_t raw_len)
{
	struct kept_checkpoint *k = r->receiving;
	assert_non_null(k);
	assert_true(r->credit > 0);
	assert_int_equal(m->offset, k->len);
	assert_true(raw_len > 0 && raw_len <= CHUNK_SIZE);
	memcpy(k->data + k->len, raw, raw_len);
	k->len += raw_len;
	r->credit--;
	give_checkpoint_credit(r, 1);
}

static void on_checkpoint_end(struct running *r)
{
	struct kept_checkpoint *k = r->receiving;
	assert_non_null(k);
	assert_int_equal(k->len, k->sizes[0] + k->sizes[1] + k->sizes[2]);
	uint8_t digest[32];
	crypto_generichash(digest, 32, k->data, k->len, NULL, 0);
	assert_memory_equal(digest, r->digest, 32);

	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	status.code = r->out->n_checkpoints == 1 ? r->how->checkpoint_status : 0;
	status.has_message = status.code != 0;
	status.message = proto_bytes("as the test wanted");
	Peftd__V1__CheckpointDone done = PEFTD__V1__CHECKPOINT_DONE__INIT;
	done.task = r->task->task;
	done.step = k->step;
	done.status = &status;
	Peftd__V1__CoreToTrainer msg = PEFTD__V1__CORE_TO_TRAINER__INIT;
	msg.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_DONE;
	msg.checkpoint_done = &done;
	fake_core_send(r->core, &msg, NULL, 0);
	r->receiving = NULL;
	if (r->due) {
		act(r);
	}
}

static void on_row(struct outcome *o, const Peftd__V1__InspectRow *row)
{
	assert_int_equal(row->n_input_id, row->n_label);
	size_t n = o->n_row_ids + row->n_input_id;
	o->row_ids = realloc_array(o->row_ids, n + 1, sizeof(int32_t));
	o->row_labels = realloc_array(o->row_labels, n + 1, sizeof(int32_t));
	assert_true(o->row_ids && o->row_labels);
	memcpy(o->row_ids + o->n_row_ids, row->input_id, row->n_input_id * sizeof(int32_t));
	memcpy(o->row_labels + o->n_row_ids, row->label, row->n_label * sizeof(int32_t));
	o->n_row_ids = n;
	for (size_t i = 0; i < row->n_token; i++) {
		buf_append(&o->tokens, row->token[i].data, row->token[i].len);
		buf_append(&o->tokens, "|", 1);
	}
	o->rows += !row->continues;
	assert_true(protobuf_c_message_get_packed_size(&row->base) < MESSAGE_MAX);
}

static void on_output(struct running *r, const Peftd__V1__TaskOutput *out)
{
	if (out->what_case == PEFTD__V1__TASK_OUTPUT__WHAT_INSPECT_ROW) {
		on_row(r->out, out->inspect_row);
	} else {
		assert_int_equal(out->what_case, PEFTD__V1__TASK_OUTPUT__WHAT_GENERATE);
		assert_true(utf8_valid(out->generate->text.data, out->generate->text.len, NULL));
		buf_append(&r->out->text, out->generate->text.data, out->generate->text.len);
	}
	if (r->how->output_credit > 0) {
		give_output_credit(r, 1);
	}
}

static uint64_t task_of(const Peftd__V1__TrainerToCore *m)
{
	switch (m->what_case) {
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_PULL:
		return m->pull->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_EVENT:
		return m->event->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_BEGIN:
		return m->checkpoint_begin->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_CHUNK:
		return m->checkpoint_chunk->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_END:
		return m->checkpoint_end->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_OUTPUT:
		return m->output->task;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT:
		return m->result->task;
	default:
		return 0;
	}
}

static void dispatch(struct running *r, const Peftd__V1__TrainerToCore *m, const void *raw,
	size_t len)
{
	switch (m->what_case) {
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_PULL:
		on_pull(r, m->pull);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_EVENT:
		on_event(r, m->event);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_BEGIN:
		on_checkpoint_begin(r, m->checkpoint_begin);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_CHUNK:
		on_checkpoint_chunk(r, m->checkpoint_chunk, raw, len);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_END:
		on_checkpoint_end(r);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_OUTPUT:
		on_output(r, m->output);
		break;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT:
		r->out->result = proto_copy(m->result);
		assert_non_null(r->out->result);
		break;
	default:
		fail_msg("message of kind %d", m->what_case);
	}
}

void fake_core_run(struct fake_core *c, Peftd__V1__Task *task, const struct content *inputs,
	size_t n_inputs, const struct behaviour *how, struct outcome *ret)
{
	static const struct behaviour plain = {0};
	*ret = (struct outcome){0};
	struct running r = {.core = c, .task = task, .inputs = inputs, .n_inputs = n_inputs,
		.how = how ? how : &plain, .out = ret};
	static const struct behaviour other_how = {0};
	struct running other = {.core = c, .task = r.how->other, .inputs = r.how->other_inputs,
		.n_inputs = r.how->n_other_inputs, .how = &other_how, .out = r.how->other_outcome};
	if (r.how->other) {
		*other.out = (struct outcome){0};
	}
	send_task(c, task, inputs, n_inputs);
	give_output_credit(&r, r.how->output_credit ? r.how->output_credit : 1000);
	while (!r.left && (!ret->result || (r.how->other && !other.out->result))) {
		const void *raw;
		size_t raw_len;
		Peftd__V1__TrainerToCore *msg = receive(c, &raw, &raw_len);
		if (msg->what_case == PEFTD__V1__TRAINER_TO_CORE__WHAT_STATS) {
			c->stats++;
		} else if (task_of(msg) == task->task) {
			dispatch(&r, msg, raw, raw_len);
		} else {
			assert_true(r.how->other && task_of(msg) == r.how->other->task);
			dispatch(&other, msg, raw, raw_len);
		}
		proto_free(msg);
	}
}
