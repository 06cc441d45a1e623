/*
 * What the compute thread says, put into the queue for the link. A message that cannot be queued
 * for lack of memory would leave the core with a hole it cannot see, so the process ends instead:
 * the core starts another, which goes on from the last checkpoint.
 */

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdlib.h>

#include "daemon/trainer/convert.h"
#include "daemon/trainer/link-internal.h"
#include "daemon/trainer/trainer.h"
#include "proto/proto.h"
#include "util/log.h"
#include "util/util.h"

/* The compute thread waits while more than this is queued: the core reads all the time, so it is
 * met only when something is wrong on the other side. */
enum { OUT_BYTES_MAX = 8 * 1024 * 1024 };

enum { MESSAGE_TEXT_MAX = 32 * 1024 };

void outgoing_free_all(struct trainer *t)
{
	while (t->out_head) {
		struct outgoing *next = t->out_head->next;
		proto_free(t->out_head->msg);
		buf_deinit(&t->out_head->raw);
		free(t->out_head);
		t->out_head = next;
	}
	t->out_tail = &t->out_head;
}

/* Takes `raw`, which may be NULL. */
static void enqueue_raw(struct trainer *t, const Peftd__V1__TrainerToCore *msg, struct buf *raw)
{
	struct outgoing *o = calloc(1, sizeof(*o));
	void *copy = o ? proto_copy(msg) : NULL;
	if (!copy) {
		log_error("no memory for a message to the core; ending");
		_exit(1);
	}
	o->msg = copy;
	if (raw) {
		o->raw = *raw;
		*raw = (struct buf){0};
	}
	o->bytes = protobuf_c_message_get_packed_size(copy) + o->raw.len;

	pthread_mutex_lock(&t->lock);
	while (t->out_bytes > OUT_BYTES_MAX) {
		pthread_cond_wait(&t->changed, &t->lock);
	}
	*t->out_tail = o;
	t->out_tail = &o->next;
	t->out_bytes += o->bytes;
	pthread_mutex_unlock(&t->lock);
	trainer_wake_main(t);
}

static void enqueue(struct trainer *t, const Peftd__V1__TrainerToCore *msg)
{
	enqueue_raw(t, msg, NULL);
}

#define SET(pb, field, value)     \
	do {                          \
		(pb)->has_##field = true; \
		(pb)->field = (value);    \
	} while (0)

void emit_ready(struct trainer *t, const char *device, unsigned threads, uint64_t memory_total,
	double gflops_f32, double gflops_bf16)
{
	Peftd__V1__TrainerReady ready = PEFTD__V1__TRAINER_READY__INIT;
	ready.version = LINK_VERSION;
	ready.has_device = true;
	ready.device = proto_bytes(device);
	SET(&ready, threads, threads);
	SET(&ready, memory_total, memory_total);
	if (gflops_f32 > 0) {
		SET(&ready, gflops_f32, gflops_f32);
		SET(&ready, gflops_bf16, gflops_bf16);
	}
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_READY;
	msg.ready = &ready;
	enqueue(t, &msg);
}

static void send_event(struct trainer *t, const struct task *task, Peftd__V1__Event *event,
	Peftd__V1__Measured *measured)
{
	Peftd__V1__TaskEvent te = PEFTD__V1__TASK_EVENT__INIT;
	te.task = task->id;
	te.event = event;
	if (measured) {
		te.measured = measured;
		SET(&te, arena_bytes, measured->arena);
		SET(&te, peak_rss, process_peak_rss());
	}
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_EVENT;
	msg.event = &te;
	enqueue(t, &msg);
}

static void send_state(struct trainer *t, const struct task *task, Peftd__V1__JobState state,
	Peftd__V1__Measured *measured)
{
	Peftd__V1__StateEvent s = PEFTD__V1__STATE_EVENT__INIT;
	s.state = state;
	SET(&s, attempt, task->train.attempt);
	Peftd__V1__Event event = PEFTD__V1__EVENT__INIT;
	event.what_case = PEFTD__V1__EVENT__WHAT_STATE;
	event.state = &s;
	send_event(t, task, &event, measured);
}

void emit_starting(struct trainer *t, const struct task *task)
{
	send_state(t, task, PEFTD__V1__JOB_STATE__JOB_STARTING, NULL);
}

void emit_running(struct trainer *t, const struct task *task, const struct memory_plan *p,
	uint64_t arena)
{
	Peftd__V1__Measured m = PEFTD__V1__MEASURED__INIT;
	SET(&m, base_weights, p->base_weights);
	SET(&m, trainable_weights, p->trainable_weights);
	SET(&m, optimizer_states, p->optimizer_states);
	SET(&m, gradients, p->gradients);
	SET(&m, activations, p->activations);
	SET(&m, temporary, p->temporary);
	SET(&m, arena, arena);
	send_state(t, task, PEFTD__V1__JOB_STATE__JOB_RUNNING, &m);
}

void emit_metrics(struct trainer *t, const struct task *task, const struct step_metrics *m)
{
	Peftd__V1__MetricsEvent e = PEFTD__V1__METRICS_EVENT__INIT;
	e.step = (uint64_t)m->step;
	SET(&e, loss, m->loss);
	SET(&e, lr, m->lr);
	SET(&e, grad_norm, m->grad_norm);
	SET(&e, tokens, m->tokens);
	SET(&e, target_tokens, m->target_tokens);
	SET(&e, seconds, m->seconds);
	Peftd__V1__Event event = PEFTD__V1__EVENT__INIT;
	event.what_case = PEFTD__V1__EVENT__WHAT_METRICS;
	event.metrics = &e;
	send_event(t, task, &event, NULL);
}

void emit_eval(struct trainer *t, const struct task *task, int64_t step,
	const struct eval_metrics *m)
{
	Peftd__V1__EvalEvent e = PEFTD__V1__EVAL_EVENT__INIT;
	e.step = (uint64_t)step;
	SET(&e, eval_loss, m->loss);
	SET(&e, target_tokens, m->target_tokens);
	SET(&e, seconds, m->seconds);
	Peftd__V1__Event event = PEFTD__V1__EVENT__INIT;
	event.what_case = PEFTD__V1__EVENT__WHAT_EVAL;
	event.eval = &e;
	send_event(t, task, &event, NULL);
}

void emit_log(struct trainer *t, const struct task *task, const char *level, const char *fmt, ...)
{
	char text[2048];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);

	Peftd__V1__LogEvent e = PEFTD__V1__LOG_EVENT__INIT;
	e.has_level = e.has_text = true;
	e.level = proto_bytes(level);
	e.text = proto_bytes(text);
	Peftd__V1__Event event = PEFTD__V1__EVENT__INIT;
	event.what_case = PEFTD__V1__EVENT__WHAT_LOG;
	event.log = &e;
	send_event(t, task, &event, NULL);
}

static void send_output(struct trainer *t, Peftd__V1__TaskOutput *out, struct buf *raw)
{
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_OUTPUT;
	msg.output = out;
	enqueue_raw(t, &msg, raw);
}

void emit_inspect_row(struct trainer *t, const struct task *task, const struct inspect_row *row)
{
	_cleanup_(freep) ProtobufCBinaryData *tokens = NULL;
	if (row->tokens && !(tokens = calloc_array(row->n + 1, sizeof(*tokens)))) {
		log_error("no memory for a message to the core; ending");
		_exit(1);
	}
	Peftd__V1__InspectRow pb = PEFTD__V1__INSPECT_ROW__INIT;
	convert_inspect_row(&pb, row, tokens);
	Peftd__V1__TaskOutput out = PEFTD__V1__TASK_OUTPUT__INIT;
	out.task = task->id;
	out.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_INSPECT_ROW;
	out.inspect_row = &pb;
	send_output(t, &out, NULL);
}

void emit_generate(struct trainer *t, const struct task *task, const struct generate_info *g)
{
	Peftd__V1__GenerateReply pb = PEFTD__V1__GENERATE_REPLY__INIT;
	convert_generate(&pb, g);
	Peftd__V1__TaskOutput out = PEFTD__V1__TASK_OUTPUT__INIT;
	out.task = task->id;
	out.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_GENERATE;
	out.generate = &pb;
	send_output(t, &out, NULL);
}

void emit_merged(struct trainer *t, const struct task *task, uint64_t offset, struct buf *data)
{
	Peftd__V1__ReadReply pb = PEFTD__V1__READ_REPLY__INIT;
	SET(&pb, offset, offset);
	Peftd__V1__TaskOutput out = PEFTD__V1__TASK_OUTPUT__INIT;
	out.task = task->id;
	out.what_case = PEFTD__V1__TASK_OUTPUT__WHAT_MERGED;
	out.merged = &pb;
	send_output(t, &out, data);
}

/* Cuts a text that is too long for a message at a whole character. */
static ProtobufCBinaryData bounded(const char *s)
{
	ProtobufCBinaryData b = proto_bytes(s);
	if (b.len > MESSAGE_TEXT_MAX) {
		b.len = MESSAGE_TEXT_MAX;
		while (b.len > 0 && (b.data[b.len] & 0xc0) == 0x80) {
			b.len--;
		}
	}
	return b;
}

void emit_result(struct trainer *t, const struct task *task, int code, const char *message,
	const struct result *r)
{
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	status.code = (uint32_t)code;
	if (message && message[0]) {
		status.has_message = true;
		status.message = bounded(message);
	}
	Peftd__V1__TaskResult res = PEFTD__V1__TASK_RESULT__INIT;
	res.task = task->id;
	res.status = &status;

	Peftd__V1__Plan plan = PEFTD__V1__PLAN__INIT;
	Peftd__V1__EvalReply eval = PEFTD__V1__EVAL_REPLY__INIT;
	Peftd__V1__GenerateReply generate = PEFTD__V1__GENERATE_REPLY__INIT;
	Peftd__V1__Model model = PEFTD__V1__MODEL__INIT;
	ProtobufCBinaryData modules[64];
	Peftd__V1__Dataset dataset = PEFTD__V1__DATASET__INIT;
	Peftd__V1__InspectSummary inspect = PEFTD__V1__INSPECT_SUMMARY__INIT;
	Peftd__V1__TrainResult train = PEFTD__V1__TRAIN_RESULT__INIT;
	Peftd__V1__InferenceTimes times = PEFTD__V1__INFERENCE_TIMES__INIT;
	Peftd__V1__FetchReply merge = PEFTD__V1__FETCH_REPLY__INIT;
	Peftd__V1__MergeReport report = PEFTD__V1__MERGE_REPORT__INIT;
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	Peftd__V1__File files[MERGED_FILES_MAX], *file_pointers[MERGED_FILES_MAX];
	if (r && r->plan) {
		convert_plan(&plan, r->plan);
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_PLAN;
		res.plan = &plan;
	} else if (r && r->eval) {
		convert_eval(&eval, r->eval);
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_EVAL;
		res.eval = &eval;
	} else if (r && r->generate) {
		convert_generate(&generate, r->generate);
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_GENERATE;
		res.generate = &generate;
	} else if (r && r->model) {
		convert_model(&model, r->model, modules, ARRAY_LEN(modules));
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_MODEL;
		res.model = &model;
	} else if (r && r->dataset) {
		dataset.name = proto_bytes(r->dataset->name);
		SET(&dataset, rows, r->dataset->rows);
		SET(&dataset, format, proto_bytes(r->dataset->format));
		if (r->dataset->prompt_field) {
			SET(&dataset, prompt_field, proto_bytes(r->dataset->prompt_field));
		}
		if (r->dataset->completion_field) {
			SET(&dataset, completion_field, proto_bytes(r->dataset->completion_field));
		}
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_DATASET;
		res.dataset = &dataset;
	} else if (r && r->inspect) {
		convert_inspect_summary(&inspect, r->inspect);
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_INSPECT;
		res.inspect = &inspect;
	} else if (r && r->train) {
		SET(&train, steps, r->train->steps);
		SET(&train, peak_rss, r->train->peak_rss);
		if (r->train->times.tokens > 0) {
			convert_times(&times, &r->train->times);
			train.inference = &times;
		}
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_TRAIN;
		res.train = &train;
	} else if (r && r->merge) {
		convert_merge(&merge, r->merge, &blob, files, file_pointers, &report);
		res.what_case = PEFTD__V1__TASK_RESULT__WHAT_MERGE;
		res.merge = &merge;
	}
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT;
	msg.result = &res;
	enqueue(t, &msg);
}

int emit_checkpoint(struct trainer *t, const struct task *task, uint64_t step, struct buf *data,
	const struct input_file *files, size_t n_files, double eval_loss, bool final)
{
	enum { MAX_FILES = 8 };
	if (n_files > MAX_FILES) {
		return -EINVAL;
	}
	struct checkpoint_out *c = calloc(1, sizeof(*c));
	if (!c) {
		return -ENOMEM;
	}
	c->task = task->id;
	c->step = step;
	c->data = *data;
	*data = (struct buf){0};

	uint8_t digest[DIGEST_SIZE];
	crypto_generichash(digest, sizeof(digest), c->data.data, c->data.len, NULL, 0);
	Peftd__V1__File pb_files[MAX_FILES], *pb_ptrs[MAX_FILES];
	for (size_t i = 0; i < n_files; i++) {
		pb_files[i] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
		pb_files[i].name = proto_bytes(files[i].name);
		pb_files[i].size = files[i].size;
		pb_ptrs[i] = &pb_files[i];
	}
	Peftd__V1__Blob blob = PEFTD__V1__BLOB__INIT;
	blob.digest = (ProtobufCBinaryData){sizeof(digest), digest};
	blob.size = c->data.len;
	blob.files = pb_ptrs;
	blob.n_files = n_files;
	Peftd__V1__CheckpointBegin begin = PEFTD__V1__CHECKPOINT_BEGIN__INIT;
	begin.task = task->id;
	begin.step = step;
	begin.blob = &blob;
	if (!isnan(eval_loss)) {
		SET(&begin, eval_loss, eval_loss);
	}
	SET(&begin, final, final);
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_BEGIN;
	msg.checkpoint_begin = &begin;

	pthread_mutex_lock(&t->lock);
	t->checkpoint = c;
	pthread_mutex_unlock(&t->lock);
	enqueue(t, &msg);
	return 0;
}
