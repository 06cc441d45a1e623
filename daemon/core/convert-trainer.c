/* From trainers and inspect children. What does not check is the child's fault, not a user's. */

#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

/* A child's text for people: cut to what a Status or an event may hold, and made presentable. */
static int take_words(bool has, const ProtobufCBinaryData *b, char **ret)
{
	enum { WORDS_MAX = 8192 };
	if (!has || b->len == 0) {
		return 0;
	}
	*ret = clean_text(b->data, b->len < WORDS_MAX ? b->len : WORDS_MAX);
	return *ret ? 0 : -ENOMEM;
}

static int ready(const Peftd__V1__TrainerReady *m, struct event *ret, struct errmsg *err)
{
	struct trainer_facts *f = &ret->trainer.facts;
	ret->kind = EV_TRAINER_READY;
	ret->trainer.version = m->version;
	f->threads = m->threads;
	f->memory_total = m->memory_total;
	f->gflops_f32 = m->gflops_f32;
	f->gflops_bf16 = m->gflops_bf16;
	return take_words(m->has_device, &m->device, &f->device);
}

static int job_event(const Peftd__V1__TaskEvent *m, struct event *ret, struct errmsg *err)
{
	struct job_event *e = &ret->job.event;
	const Peftd__V1__Event *in = m->event;
	int r = 0;
	ret->kind = EV_JOB_EVENT;
	ret->task = m->task;
	ret->job.arena = m->arena_bytes;
	ret->job.peak_rss = m->peak_rss;
	if (m->measured) {
		const Peftd__V1__Measured *used = m->measured;
		ret->job.measured = (struct store_measured){used->base_weights, used->trainable_weights,
			used->optimizer_states, used->gradients, used->activations, used->temporary, used->arena};
	}
	switch (in->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		e->kind = EVENT_STATE;
		e->state = (enum job_state)in->state->state;
		r = take_words(in->state->has_reason, &in->state->reason, &ret->job.text);
		break;
	case PEFTD__V1__EVENT__WHAT_METRICS:
		e->kind = EVENT_METRICS;
		e->step = in->metrics->step;
		e->loss = in->metrics->loss;
		e->lr = in->metrics->lr;
		e->grad_norm = in->metrics->grad_norm;
		e->tokens = in->metrics->tokens;
		e->target_tokens = in->metrics->target_tokens;
		e->seconds = in->metrics->seconds;
		break;
	case PEFTD__V1__EVENT__WHAT_EVAL:
		e->kind = EVENT_EVAL;
		e->step = in->eval->step;
		e->loss = in->eval->eval_loss;
		e->target_tokens = in->eval->target_tokens;
		e->seconds = in->eval->seconds;
		break;
	case PEFTD__V1__EVENT__WHAT_LOG:
		e->kind = EVENT_LOG;
		r = take_words(in->log->has_level, &in->log->level, &ret->job.level);
		r = r ? r : take_words(in->log->has_text, &in->log->text, &ret->job.text);
		break;
	default:
		r = errmsg_set(err, STATUS_INTERNAL, "event of kind %d from a trainer", (int)in->what_case);
		break;
	}
	e->text = ret->job.text;
	e->level = ret->job.level;
	return r;
}

static int checkpoint_begin(
	const Peftd__V1__CheckpointBegin *m, struct event *ret, struct errmsg *err)
{
	ret->kind = EV_CHECKPOINT_BEGIN;
	ret->task = m->task;
	ret->checkpoint.step = m->step;
	ret->checkpoint.eval_loss = m->has_eval_loss ? m->eval_loss : NAN;
	ret->checkpoint.final = m->has_final && m->final;
	return take_files(m->blob, "checkpoint", &ret->checkpoint.content, err);
}

static int output(const Peftd__V1__TaskOutput *m, struct event *ret, struct errmsg *err)
{
	ret->kind = EV_OUTPUT;
	ret->task = m->task;
	switch (m->what_case) {
	case PEFTD__V1__TASK_OUTPUT__WHAT_INSPECT_ROW:
		ret->output.kind = OUTPUT_INSPECT_ROW;
		return pack_message(m->inspect_row, &ret->output.packed);
	case PEFTD__V1__TASK_OUTPUT__WHAT_MERGED:
		ret->output.kind = OUTPUT_MERGED;
		ret->output.offset = m->merged->offset;
		return 0;
	case PEFTD__V1__TASK_OUTPUT__WHAT_GENERATE:
		ret->output.kind = OUTPUT_GENERATE;
		return pack_message(m->generate, &ret->output.packed);
	default:
		return errmsg_set(err, STATUS_INTERNAL, "an output that says nothing");
	}
}

static int take_plan(const Peftd__V1__Plan *m, struct task_result *t, struct errmsg *err)
{
	t->answer = ANSWER_PLAN;
	t->total = m->total;
	t->overhead = m->overhead;
	t->steps = m->steps;
	int r = take_words(m->has_reason, &m->reason, &t->reason);
	return r ? r : pack_message(m, &t->packed);
}

static int take_model(const Peftd__V1__Model *m, struct task_result *t, struct errmsg *err)
{
	t->answer = ANSWER_MODEL;
	if (m->digest.len != DIGEST_SIZE) {
		return errmsg_set(err, STATUS_INTERNAL, "a model's digest of %zu bytes", m->digest.len);
	}
	memcpy(t->digest, m->digest.data, DIGEST_SIZE);
	int r = take_text(m->has_path, &m->path, "path", &t->path, err);
	return r ? r : pack_message(m, &t->packed);
}

static int take_dataset(const Peftd__V1__Dataset *m, struct task_result *t, struct errmsg *err)
{
	t->answer = ANSWER_DATASET;
	t->rows = m->rows;
	int r = take_text(m->has_format, &m->format, "format", &t->format, err);
	r = r ? r
		  : take_text(m->has_prompt_field, &m->prompt_field, "prompt_field", &t->prompt_field, err);
	return r ? r
			 : take_text(m->has_completion_field, &m->completion_field, "completion_field",
				   &t->completion_field, err);
}

static int take_merge(const Peftd__V1__FetchReply *m, struct task_result *t, struct errmsg *err)
{
	_cleanup_(store_files_deinit) struct store_files files = {0};
	t->answer = ANSWER_MERGE;
	if (!m->blob) {
		return errmsg_set(err, STATUS_INTERNAL, "a merged model without its files");
	}
	int r = take_files(m->blob, "merged model", &files, err);
	return r ? r : pack_message(m, &t->packed);
}

static int result(const Peftd__V1__TaskResult *m, struct event *ret, struct errmsg *err)
{
	struct task_result *t = &ret->result;
	ret->kind = EV_RESULT;
	ret->task = m->task;
	if (m->status->code > STATUS_CANCELLED) {
		return errmsg_set(err, STATUS_INTERNAL, "status %u", m->status->code);
	}
	t->code = (int)m->status->code;
	int r = take_words(m->status->has_message, &m->status->message, &t->text);
	if (r != 0 || t->code != STATUS_OK) {
		return r;
	}
	switch (m->what_case) {
	case PEFTD__V1__TASK_RESULT__WHAT_PLAN:
		return take_plan(m->plan, t, err);
	case PEFTD__V1__TASK_RESULT__WHAT_EVAL:
		t->answer = ANSWER_EVAL;
		return pack_message(m->eval, &t->packed);
	case PEFTD__V1__TASK_RESULT__WHAT_GENERATE:
		t->answer = ANSWER_GENERATE;
		return pack_message(m->generate, &t->packed);
	case PEFTD__V1__TASK_RESULT__WHAT_MODEL:
		return take_model(m->model, t, err);
	case PEFTD__V1__TASK_RESULT__WHAT_DATASET:
		return take_dataset(m->dataset, t, err);
	case PEFTD__V1__TASK_RESULT__WHAT_INSPECT:
		t->answer = ANSWER_INSPECT;
		return pack_message(m->inspect, &t->packed);
	case PEFTD__V1__TASK_RESULT__WHAT_TRAIN:
		t->answer = ANSWER_TRAIN;
		t->peak_rss = m->train->peak_rss;
		if (m->train->inference) {
			const Peftd__V1__InferenceTimes *in = m->train->inference;
			t->inference = (struct store_inference){in->tokens, in->passes, in->base_seconds,
				in->unmerged_seconds, in->merged_seconds};
		}
		return 0;
	case PEFTD__V1__TASK_RESULT__WHAT_MERGE:
		return take_merge(m->merge, t, err);
	default:
		return 0;
	}
}

static int stats(const Peftd__V1__TrainerStats *m, struct event *ret, struct errmsg *err)
{
	struct trainer_stats *s = &ret->stats;
	ret->kind = EV_STATS;
	s->memory_in_use = m->memory_in_use;
	s->peak_rss = m->peak_rss;
	if (m->n_models > 64) {
		return errmsg_set(err, STATUS_INTERNAL, "%zu resident models", m->n_models);
	}
	s->models = calloc_array(m->n_models, sizeof(*s->models));
	if (!s->models) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < m->n_models; i++) {
		const Peftd__V1__ResidentModel *in = m->models[i];
		struct resident *out = &s->models[s->n_models++];
		out->bytes = in->bytes;
		int r = take_words(in->has_name, &in->name, &out->name);
		r = r ? r : take_words(in->has_dtype, &in->dtype, &out->dtype);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int trainer_message(const Peftd__V1__TrainerToCore *m, struct event *ret, struct errmsg *err)
{
	switch (m->what_case) {
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_READY:
		return ready(m->ready, ret, err);
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_PULL:
		ret->kind = EV_PULL;
		ret->task = m->pull->task;
		ret->pull.input = m->pull->input;
		ret->pull.offset = m->pull->offset;
		ret->pull.chunks = m->pull->chunks;
		return 0;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_EVENT:
		return job_event(m->event, ret, err);
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_BEGIN:
		return checkpoint_begin(m->checkpoint_begin, ret, err);
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_CHUNK:
		ret->kind = EV_CHECKPOINT_CHUNK;
		ret->task = m->checkpoint_chunk->task;
		ret->offset = m->checkpoint_chunk->offset;
		return 0;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_END:
		ret->kind = EV_CHECKPOINT_END;
		ret->task = m->checkpoint_end->task;
		return 0;
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_OUTPUT:
		return output(m->output, ret, err);
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT:
		return result(m->result, ret, err);
	case PEFTD__V1__TRAINER_TO_CORE__WHAT_STATS:
		return stats(m->stats, ret, err);
	default:
		return errmsg_set(err, STATUS_INTERNAL, "a message that says nothing");
	}
}

int convert_trainer_recv(struct link *l, struct event *ret, struct errmsg *err)
{
	_cleanup_(proto_freep) void *msg = NULL;
	const void *raw;
	size_t raw_len;
	int r = link_recv(l, &peftd__v1__trainer_to_core__descriptor, &msg, &raw, &raw_len, err);
	if (r <= 0) {
		return r;
	}
	struct event e = {.kind = EV_TIME};
	r = trainer_message(msg, &e, err);
	if (r != 0) {
		event_deinit(&e);
		return r > 0 ? -EPROTO : r;
	}
	e.raw = raw;
	e.raw_len = raw_len;
	*ret = e;
	return 1;
}
