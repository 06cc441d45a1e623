#include "daemon/trainer/convert-internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/proto.h"
#include "util/util.h"

/* ---- from the link --------------------------------------------------------------------------- */

/* An optional text: NULL when empty. */
static int text(const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err)
{
	return b->len == 0 ? 0 : proto_str(b, what, ret, err);
}

int convert_word(const ProtobufCBinaryData *b, const char *what, const char *const *words, int *ret,
	struct errmsg *err)
{
	char list[256] = "";
	for (int i = 0; words[i]; i++) {
		if (proto_equal(b, words[i])) {
			*ret = i;
			return 0;
		}
		size_t n = strlen(list);
		snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "", words[i]);
	}
	_cleanup_(freep) char *got = NULL;
	int r = proto_str(b, what, &got, err);
	if (r != 0) {
		return r;
	}
	return errmsg_set(err, STATUS_INVALID, "%s: '%s' is none of %s", what, got, list);
}

static const char *const dtype_words[] = {"f32", "bf16", NULL};

static int dtype(const ProtobufCBinaryData *b, const char *what, enum dtype *ret,
	struct errmsg *err)
{
	int i = 0;
	int r = convert_word(b, what, dtype_words, &i, err);
	*ret = i == 0 ? DTYPE_F32 : DTYPE_BF16;
	return r;
}

static int train_spec(const Peftd__V1__TrainSpec *pb, struct job_spec *s, struct errmsg *err)
{
	static const char *const overlong_words[] = {"drop", "truncate", "raise", NULL};
	static const char *const scheduler_words[] = {"constant", "linear", "cosine", NULL};
	static const char *const order_words[] = {"shuffled", "sequential", NULL};

	s->max_steps = pb->max_steps;
	s->num_train_epochs = pb->has_num_train_epochs ? pb->num_train_epochs : 1.0;
	s->batch_size = pb->batch_size;
	s->max_length = pb->max_length;
	s->packing = pb->packing;
	s->train_on_prompt = pb->train_on_prompt;
	s->learning_rate = pb->learning_rate;
	s->warmup_steps = pb->warmup_steps;
	s->weight_decay = pb->weight_decay;
	s->adam_beta1 = pb->adam_beta1;
	s->adam_beta2 = pb->adam_beta2;
	s->adam_epsilon = pb->adam_epsilon;
	s->max_grad_norm = pb->max_grad_norm;
	s->seed = pb->seed;
	s->save_steps = pb->save_steps;
	s->eval_steps = pb->eval_steps;
	s->logging_steps = pb->logging_steps;
	s->microbatch_tokens = pb->microbatch_tokens;

	int overlong = 0, scheduler = 0, order = 0;
	int r = convert_word(&pb->overlong, "train.overlong", overlong_words, &overlong, err);
	if (r == 0) {
		r = convert_word(&pb->lr_scheduler_type, "train.lr_scheduler_type", scheduler_words, &scheduler,
			err);
	}
	if (r == 0) {
		r = convert_word(&pb->data_order, "train.data_order", order_words, &order, err);
	}
	if (r == 0) {
		r = dtype(&pb->dtype, "train.dtype", &s->dtype, err);
	}
	s->overlong = overlong == 0   ? OVERLONG_DROP
				  : overlong == 1 ? OVERLONG_TRUNCATE
								  : OVERLONG_RAISE;
	s->lr_scheduler = scheduler == 0 ? LR_CONSTANT : scheduler == 1 ? LR_LINEAR : LR_COSINE;
	s->sequential = order == 1;
	return r;
}

static int job_spec(const Peftd__V1__JobSpec *pb, struct job_spec *s, struct errmsg *err)
{
	static const Peftd__V1__TrainSpec train_default = PEFTD__V1__TRAIN_SPEC__INIT;

	int r = proto_str(&pb->method, "method", &s->method, err);
	if (r == 0) {
		r = text(&pb->model, "model", &s->model, err);
	}
	if (r == 0) {
		r = text(&pb->dataset, "dataset", &s->dataset, err);
	}
	if (r == 0) {
		r = text(&pb->chat_template, "chat_template", &s->chat_template, err);
	}
	if (r == 0) {
		r = text(&pb->init_adapter, "init_adapter", &s->init_adapter, err);
	}
	if (r == 0) {
		s->config.method = s->method;
		r = convert_method(pb, &s->config, err);
	}
	if (r == 0) {
		r = train_spec(pb->train ? pb->train : &train_default, s, err);
	}
	return r;
}

static int blob(const Peftd__V1__Blob *pb, struct input *in, struct errmsg *err)
{
	if (pb->digest.len != DIGEST_SIZE) {
		return errmsg_set(err, STATUS_INVALID, "input: a digest has 32 bytes, this one %zu",
			pb->digest.len);
	}
	memcpy(in->digest, pb->digest.data, DIGEST_SIZE);
	in->size = pb->size;
	in->files = calloc_array(pb->n_files ? pb->n_files : 1, sizeof(*in->files));
	if (!in->files) {
		return -ENOMEM;
	}
	uint64_t sum = 0;
	for (size_t i = 0; i < pb->n_files; i++) {
		int r = proto_str(&pb->files[i]->name, "input: name of a file", &in->files[i].name, err);
		if (r != 0) {
			return r;
		}
		in->n_files = i + 1;
		in->files[i].size = pb->files[i]->size;
		if (__builtin_add_overflow(sum, in->files[i].size, &sum)) {
			break;
		}
	}
	if (in->n_files != pb->n_files || (in->n_files > 0 && sum != in->size)) {
		return errmsg_set(err, STATUS_INVALID, "input: the sizes of its files do not add up");
	}
	return 0;
}

static int dataset(const struct task *t, const Peftd__V1__TaskDataset *pb, struct task_dataset *d,
	struct errmsg *err)
{
	if (!pb) {
		return 0;
	}
	if (pb->input >= t->n_inputs) {
		return errmsg_set(err, STATUS_INVALID, "dataset: there is no input %u", pb->input);
	}
	d->present = true;
	d->input = pb->input;
	d->rows = pb->rows;
	int r = text(&pb->name, "dataset.name", &d->name, err);
	if (r == 0) {
		r = text(&pb->prompt_field, "dataset.prompt_field", &d->prompt_field, err);
	}
	if (r == 0) {
		r = text(&pb->completion_field, "dataset.completion_field", &d->completion_field, err);
	}
	return r;
}

static int input_index(const struct task *t, bool has, uint32_t index, int *ret, struct errmsg *err)
{
	*ret = NO_INPUT;
	if (!has) {
		return 0;
	}
	if (index >= t->n_inputs) {
		return errmsg_set(err, STATUS_INVALID, "adapter: there is no input %u", index);
	}
	*ret = (int)index;
	return 0;
}

static int train_task(const Peftd__V1__TrainTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_TRAIN;
	t->train.job = pb->job;
	t->train.attempt = pb->attempt;
	t->train.resume_step = pb->resume_step;
	t->train.allow_other_plan = pb->allow_other_plan;
	if (pb->plan) {
		t->train.plan_microbatch_tokens = (int64_t)pb->plan->microbatch_tokens;
		t->train.plan_total = pb->plan->total;
	}
	int r = input_index(t, pb->has_init_adapter, pb->init_adapter, &t->adapter, err);
	if (r == 0) {
		r = input_index(t, pb->has_resume_checkpoint, pb->resume_checkpoint,
			&t->train.resume_checkpoint, err);
	}
	if (r == 0) {
		r = dataset(t, pb->dataset, &t->dataset, err);
	}
	if (r == 0) {
		r = dataset(t, pb->eval_dataset, &t->eval_dataset, err);
	}
	return r == 0 ? job_spec(pb->spec, &t->spec, err) : r;
}

static int plan_task(const Peftd__V1__PlanTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_PLAN;
	t->plan.gflops_f32 = pb->device_gflops_f32;
	t->plan.gflops_bf16 = pb->device_gflops_bf16;
	t->plan.threads = pb->threads;
	t->plan.memory_limit = pb->memory_limit;
	int r = input_index(t, pb->has_init_adapter, pb->init_adapter, &t->adapter, err);
	if (r == 0) {
		r = dataset(t, pb->dataset, &t->dataset, err);
	}
	if (r == 0) {
		r = dataset(t, pb->eval_dataset, &t->eval_dataset, err);
	}
	return r == 0 ? job_spec(pb->spec, &t->spec, err) : r;
}

static int texts(const ProtobufCBinaryData *list, size_t n, const char *what, struct text **ret,
	size_t *ret_n, struct errmsg *err)
{
	*ret = calloc_array(n + 1, sizeof(**ret));
	if (!*ret) {
		return -ENOMEM;
	}
	int r = 0;
	for (size_t i = 0; r == 0 && i < n; i++) {
		*ret_n = i + 1;
		(*ret)[i].len = list[i].len;
		r = proto_str(&list[i], what, &(*ret)[i].data, err);
	}
	return r;
}

static int metrics(const Peftd__V1__EvalRequest *q, struct task *t, struct errmsg *err)
{
	for (size_t i = 0; i < q->n_metrics; i++) {
		const ProtobufCBinaryData *m = &q->metrics[i];
		if (proto_equal(m, "exact_match")) {
			t->eval.exact_match = true;
		} else if (proto_equal(m, "last_number")) {
			t->eval.last_number = true;
		} else if (proto_equal(m, "rouge")) {
			t->eval.rouge = true;
		} else if (!proto_equal(m, "loss")) {
			return errmsg_set(err, STATUS_INVALID, "metrics: %.*s is none; there are exact_match, "
				"last_number and rouge, and the loss always", (int)m->len, (const char *)m->data);
		}
	}
	return 0;
}

static int eval_task(const Peftd__V1__EvalTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_EVAL;
	const Peftd__V1__EvalRequest *q = pb->request;
	t->eval.max_length = q->max_length;
	t->eval.train_on_prompt = q->train_on_prompt;
	t->eval.shots = q->shots;
	t->eval.seed = q->seed;
	t->eval.limit = q->limit;
	t->eval.max_new_tokens = q->max_new_tokens;
	int r = dtype(&q->dtype, "dtype", &t->eval.dtype, err);
	r = r ? r : metrics(q, t, err);
	r = r ? r : texts(q->stop, q->n_stop, "stop", &t->stops, &t->n_stops, err);
	r = r ? r : text(&q->chat_template, "chat_template", &t->eval.chat_template, err);
	r = r ? r : dataset(t, pb->dataset, &t->dataset, err);
	r = r ? r : dataset(t, pb->shots_dataset, &t->eval_dataset, err);
	return r ? r : input_index(t, pb->has_adapter, pb->adapter, &t->adapter, err);
}

static int generate_task(const Peftd__V1__GenerateTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_GENERATE;
	const Peftd__V1__GenerateRequest *q = pb->request;
	t->generate.max_new_tokens = q->max_new_tokens;
	t->generate.temperature = q->temperature;
	t->generate.top_k = q->top_k;
	t->generate.top_p = q->top_p;
	t->generate.repetition_penalty = q->repetition_penalty;
	t->generate.chat = q->chat;
	t->generate.seed = q->seed;
	int r = texts(q->prompt, q->n_prompt, "prompt", &t->generate.prompts, &t->generate.n_prompts,
		err);
	r = r ? r : texts(q->stop, q->n_stop, "stop", &t->stops, &t->n_stops, err);
	r = r ? r : dtype(&q->dtype, "dtype", &t->generate.dtype, err);
	r = r ? r : text(&q->chat_template, "chat_template", &t->generate.chat_template, err);
	return r ? r : input_index(t, pb->has_adapter, pb->adapter, &t->adapter, err);
}

static int dataset_inspect_task(const Peftd__V1__DatasetInspectTask *pb, struct task *t,
	struct errmsg *err)
{
	t->kind = TASK_DATASET_INSPECT;
	const Peftd__V1__DatasetInspectRequest *q = pb->request;
	t->inspect.rows = q->rows;
	t->inspect.max_length = q->max_length;
	t->inspect.train_on_prompt = q->train_on_prompt;
	t->inspect.token_texts = q->token_texts;
	int r = text(&q->chat_template, "chat_template", &t->inspect.chat_template, err);
	return r == 0 ? dataset(t, pb->dataset, &t->dataset, err) : r;
}

static int merge_task(const Peftd__V1__MergeTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_MERGE;
	t->merge.job = pb->job;
	t->merge.step = pb->step;
	int r = input_index(t, true, pb->adapter, &t->adapter, err);
	r = r ? r : dataset(t, pb->dataset, &t->dataset, err);
	return r ? r : job_spec(pb->spec, &t->spec, err);
}

static int merge_read_task(const Peftd__V1__MergeReadTask *pb, struct task *t, struct errmsg *err)
{
	t->kind = TASK_MERGE_READ;
	t->merge.job = pb->job;
	t->merge.step = pb->step;
	t->merge.offset = pb->offset;
	return input_index(t, true, pb->adapter, &t->adapter, err);
}

static int task_what(const Peftd__V1__Task *pb, struct task *t, struct errmsg *err)
{
	int r;
	switch (pb->what_case) {
	case PEFTD__V1__TASK__WHAT_TRAIN:
		return train_task(pb->train, t, err);
	case PEFTD__V1__TASK__WHAT_PLAN:
		return plan_task(pb->plan, t, err);
	case PEFTD__V1__TASK__WHAT_EVAL:
		return eval_task(pb->eval, t, err);
	case PEFTD__V1__TASK__WHAT_GENERATE:
		return generate_task(pb->generate, t, err);
	case PEFTD__V1__TASK__WHAT_MODEL_INSPECT:
		t->kind = TASK_MODEL_INSPECT;
		free(t->model_name);
		free(t->model_path);
		t->model_name = t->model_path = NULL;
		r = proto_str(&pb->model_inspect->name, "model.name", &t->model_name, err);
		return r == 0 ? proto_str(&pb->model_inspect->path, "model.path", &t->model_path, err) : r;
	case PEFTD__V1__TASK__WHAT_DATASET_CHECK:
		t->kind = TASK_DATASET_CHECK;
		return dataset(t, pb->dataset_check->dataset, &t->dataset, err);
	case PEFTD__V1__TASK__WHAT_DATASET_INSPECT:
		return dataset_inspect_task(pb->dataset_inspect, t, err);
	case PEFTD__V1__TASK__WHAT_MERGE:
		return merge_task(pb->merge, t, err);
	case PEFTD__V1__TASK__WHAT_MERGE_READ:
		return merge_read_task(pb->merge_read, t, err);
	default:
		return errmsg_set(err, STATUS_VERSION,
			"the trainer knows no such task; core and trainer are of different versions");
	}
}

static int task_model(const Peftd__V1__TaskModel *pb, struct task *t, struct errmsg *err)
{
	int r = proto_str(&pb->name, "model.name", &t->model_name, err);
	if (r == 0) {
		r = proto_str(&pb->path, "model.path", &t->model_path, err);
	}
	if (r == 0 && pb->has_digest && pb->digest.len > 0) {
		if (pb->digest.len != DIGEST_SIZE) {
			return errmsg_set(err, STATUS_INVALID, "model.digest: has %zu bytes, not 32",
				pb->digest.len);
		}
		t->has_model_digest = true;
		memcpy(t->model_digest, pb->digest.data, DIGEST_SIZE);
	}
	return r;
}

int convert_task(const Peftd__V1__Task *pb, struct task **ret, struct errmsg *err)
{
	struct task *t = calloc(1, sizeof(*t));
	if (!t) {
		return -ENOMEM;
	}
	*ret = t;
	t->id = pb->task;
	t->adapter = t->train.resume_checkpoint = NO_INPUT;
	t->inputs = calloc_array(pb->n_inputs ? pb->n_inputs : 1, sizeof(*t->inputs));
	if (!t->inputs) {
		return -ENOMEM;
	}
	int r = 0;
	for (size_t i = 0; r == 0 && i < pb->n_inputs; i++) {
		t->n_inputs = i + 1;
		r = blob(pb->inputs[i], &t->inputs[i], err);
	}
	if (r == 0 && pb->model) {
		r = task_model(pb->model, t, err);
	}
	if (r == 0) {
		r = task_what(pb, t, err);
	}
	bool needs_model = t->kind != TASK_DATASET_CHECK;
	if (r == 0 && needs_model && !t->model_path) {
		r = errmsg_set(err, STATUS_INVALID, "task: the model is missing");
	}
	return r;
}

/* ---- to the link ----------------------------------------------------------------------------- */

#define SET(pb, field, value)       \
	do {                            \
		(pb)->has_##field = true;   \
		(pb)->field = (value);      \
	} while (0)

#define SET_TEXT(pb, field, value)                \
	do {                                          \
		(pb)->has_##field = (value) != NULL;      \
		(pb)->field = proto_bytes(value);         \
	} while (0)

void convert_plan(Peftd__V1__Plan *pb, const struct plan_info *p)
{
	SET(pb, base_weights, p->memory.base_weights);
	SET(pb, trainable_weights, p->memory.trainable_weights);
	SET(pb, optimizer_states, p->memory.optimizer_states);
	SET(pb, gradients, p->memory.gradients);
	SET(pb, activations, p->memory.activations);
	SET(pb, temporary, p->memory.temporary);
	SET(pb, total, p->total);
	SET(pb, overhead, p->overhead);
	SET(pb, trainable_parameters, p->memory.trainable_parameters);
	SET(pb, total_parameters, p->memory.total_parameters);
	SET(pb, microbatch_tokens, (uint64_t)p->memory.microbatch_tokens);
	SET(pb, flops_per_token, p->memory.flops_per_token);
	SET(pb, inference_flops_per_token, p->memory.inference_flops_per_token);
	SET(pb, inference_bytes_per_token, p->memory.inference_bytes_per_token);
	SET(pb, mergeable, p->memory.mergeable);
	SET(pb, steps, p->steps);
	SET(pb, epochs, p->epochs);
	SET(pb, rows, p->rows);
	SET(pb, rows_overlong, p->overlong);
	SET(pb, rows_untrainable, p->untrainable);
	SET(pb, rows_misaligned, p->misaligned);
	SET(pb, tokens_per_epoch, p->tokens_per_epoch);
	if (p->tokens_per_second > 0) {
		SET(pb, tokens_per_second, p->tokens_per_second);
		SET(pb, seconds, p->seconds);
	}
	SET_TEXT(pb, template_name, p->template_name);
}

void convert_model(Peftd__V1__Model *pb, const struct model_info *m, ProtobufCBinaryData *modules,
	size_t max_modules)
{
	pb->name = proto_bytes(m->name);
	SET_TEXT(pb, path, m->path);
	SET_TEXT(pb, format, m->format);
	SET_TEXT(pb, architecture, m->architecture);
	pb->has_digest = true;
	pb->digest = (ProtobufCBinaryData){DIGEST_SIZE, (uint8_t *)m->digest};
	SET(pb, parameters, m->parameters);
	SET(pb, file_bytes, m->file_bytes);
	SET(pb, num_hidden_layers, (uint32_t)m->config->num_hidden_layers);
	SET(pb, hidden_size, (uint32_t)m->config->hidden_size);
	SET(pb, vocab_size, (uint32_t)m->config->vocab_size);
	SET(pb, max_position_embeddings, (uint32_t)m->config->max_position_embeddings);
	SET_TEXT(pb, dtype, m->dtype);
	SET_TEXT(pb, chat_template, m->chat_template);
	size_t n = 0;
	for (; m->linear_modules && m->linear_modules[n] && n < max_modules; n++) {
		modules[n] = proto_bytes(m->linear_modules[n]);
	}
	pb->n_linear_modules = n;
	pb->linear_modules = modules;
}

void convert_inspect_row(Peftd__V1__InspectRow *pb, const struct inspect_row *row,
	ProtobufCBinaryData *tokens)
{
	SET(pb, row, row->row);
	pb->n_input_id = pb->n_label = row->n;
	pb->input_id = (int32_t *)row->ids;
	pb->label = (int32_t *)row->labels;
	if (row->tokens) {
		for (size_t i = 0; i < row->n; i++) {
			tokens[i] = proto_bytes(row->tokens[i]);
		}
		pb->n_token = row->n;
		pb->token = tokens;
	}
	SET_TEXT(pb, fault, row->fault);
	SET(pb, continues, row->continues);
}

void convert_inspect_summary(Peftd__V1__InspectSummary *pb, const struct inspect_summary *s)
{
	SET(pb, rows, s->rows);
	SET(pb, overlong, s->overlong);
	SET(pb, untrainable, s->untrainable);
	SET(pb, misaligned, s->misaligned);
	SET(pb, tokens, s->tokens);
	SET(pb, target_tokens, s->target_tokens);
	SET(pb, longest, s->longest);
	SET_TEXT(pb, template_name, s->template_name);
}

void convert_generate(Peftd__V1__GenerateReply *pb, const struct generate_info *g)
{
	if (g->text) {
		pb->has_text = true;
		pb->text = (ProtobufCBinaryData){g->text_len, (uint8_t *)g->text};
	}
	SET(pb, prompt_tokens, (uint32_t)g->prompt_tokens);
	SET(pb, new_tokens, (uint32_t)g->new_tokens);
	SET_TEXT(pb, finish_reason, g->finish_reason);
	if (g->index >= 0) {
		SET(pb, index, (uint32_t)g->index);
	} else {
		SET(pb, seconds, g->seconds);
		SET(pb, switch_seconds, g->switch_seconds);
		SET(pb, adapter_was_here, g->adapter_was_here);
	}
}

void convert_eval(Peftd__V1__EvalReply *pb, const struct eval_info *e)
{
	SET(pb, loss, e->metrics.loss);
	SET(pb, tokens, e->metrics.target_tokens);
	SET(pb, perplexity, exp(e->metrics.loss));
	SET(pb, rows, e->metrics.rows);
	SET(pb, rows_overlong, e->overlong);
	SET(pb, seconds, e->metrics.seconds);
	SET(pb, shots, (uint32_t)e->shots);
	if (e->answers > 0) {
		SET(pb, answers, e->answers);
		SET(pb, new_tokens, e->new_tokens);
	}
	const struct {
		double value;
		protobuf_c_boolean *has;
		double *to;
	} metrics[] = {
		{e->exact_match, &pb->has_exact_match, &pb->exact_match},
		{e->last_number, &pb->has_last_number, &pb->last_number},
		{e->rouge1, &pb->has_rouge1, &pb->rouge1},
		{e->rouge2, &pb->has_rouge2, &pb->rouge2},
		{e->rouge_l, &pb->has_rouge_l, &pb->rouge_l},
	};
	for (size_t i = 0; i < ARRAY_LEN(metrics); i++) {
		*metrics[i].has = !isnan(metrics[i].value);
		*metrics[i].to = *metrics[i].has ? metrics[i].value : 0;
	}
}

void convert_merge(Peftd__V1__FetchReply *pb, const struct merge_info *m, Peftd__V1__Blob *blob,
	Peftd__V1__File *files, Peftd__V1__File **pointers, Peftd__V1__MergeReport *report)
{
	blob->n_files = model_folder_n_files(m->folder);
	for (size_t i = 0; i < blob->n_files; i++) {
		files[i] = (Peftd__V1__File)PEFTD__V1__FILE__INIT;
		files[i].name = proto_bytes(model_folder_name(m->folder, i));
		files[i].size = model_folder_size(m->folder, i);
		pointers[i] = &files[i];
	}
	blob->files = pointers;
	blob->size = m->size;
	blob->digest = (ProtobufCBinaryData){DIGEST_SIZE, (uint8_t *)m->digest};
	SET(report, drift_max, m->drift.max);
	SET(report, drift_mean, m->drift.mean);
	SET(report, logit_max, m->drift.largest);
	SET(report, rows, (uint32_t)m->drift.rows);
	SET(report, positions, (uint32_t)m->drift.positions);
	SET_TEXT(report, base_weights, m->base_weights);
	pb->blob = blob;
	pb->merge = report;
	SET(pb, step, m->step);
}

void convert_times(Peftd__V1__InferenceTimes *pb, const struct forward_times *t)
{
	SET(pb, tokens, (uint32_t)t->tokens);
	SET(pb, passes, (uint32_t)t->passes);
	SET(pb, base_seconds, t->base);
	SET(pb, unmerged_seconds, t->unmerged);
	if (t->merged > 0) {
		SET(pb, merged_seconds, t->merged);
	}
}
