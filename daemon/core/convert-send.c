/* To the children. */

#include <errno.h>
#include <string.h>

#include "daemon/core/convert-internal.h"
#include "util/util.h"

static int send_to_front(struct link *l, const struct action *a, const struct child_config *config)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__CoreToFront m = PEFTD__V1__CORE_TO_FRONT__INIT;
	Peftd__V1__FrontConfig front = PEFTD__V1__FRONT_CONFIG__INIT;
	Peftd__V1__ClientReply reply = PEFTD__V1__CLIENT_REPLY__INIT;
	Peftd__V1__Shutdown shutdown = PEFTD__V1__SHUTDOWN__INIT;

	switch (a->kind) {
	case ACT_CONFIG: {
		ProtobufCBinaryData *list = scratch_alloc(&s, config->n_endpoints, sizeof(*list));
		if (!list) {
			return -ENOMEM;
		}
		for (size_t i = 0; i < config->n_endpoints; i++) {
			list[i] = proto_bytes(config->endpoints[i]);
		}
		front.version = LINK_VERSION;
		front.n_endpoints = config->n_endpoints;
		front.endpoints = list;
		m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_CONFIG;
		m.config = &front;
		break;
	}
	case ACT_REPLY:
		reply.session = a->reply.session;
		reply.reply = scratch_unpack(&s, &peftd__v1__reply__descriptor, &a->reply.packed);
		if (!reply.reply) {
			return -ENOMEM;
		}
		m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_REPLY;
		m.reply = &reply;
		break;
	default: /* ACT_STOP */
		set_value(&shutdown, grace_ms, a->grace_ms);
		m.what_case = PEFTD__V1__CORE_TO_FRONT__WHAT_SHUTDOWN;
		m.shutdown = &shutdown;
		break;
	}
	return link_send(l, &m, a->raw, a->raw_len);
}

static Peftd__V1__TaskDataset *build_dataset(
	struct scratch *s, const struct store_job_data *d, uint32_t input)
{
	Peftd__V1__TaskDataset *m =
		scratch_message(s, Peftd__V1__TaskDataset, PEFTD__V1__TASK_DATASET__INIT);
	if (m) {
		m->input = input;
		set_text(m, name, d->name);
		set_text(m, prompt_field, d->prompt_field);
		set_text(m, completion_field, d->completion_field);
		set_value(m, rows, d->rows);
	}
	return m;
}

struct inputs {
	Peftd__V1__TaskDataset *dataset, *eval_dataset;
	bool has_adapter, has_resume;
	uint32_t adapter, resume;
};

/* In the order of task_spec_input(). */
static void build_inputs(
	struct scratch *s, const struct task_spec *t, Peftd__V1__Task *task, struct inputs *in)
{
	task->n_inputs = task_spec_n_inputs(t);
	task->inputs = scratch_alloc(s, task->n_inputs, sizeof(*task->inputs));
	if (!task->inputs) {
		return;
	}
	for (unsigned i = 0; i < task->n_inputs; i++) {
		task->inputs[i] = build_blob(s, task_spec_input(t, i));
	}
	uint32_t n = 0;
	*in = (struct inputs){0};
	if (t->dataset.content.size > 0) {
		in->dataset = build_dataset(s, &t->dataset, n++);
	}
	if (t->eval_dataset.content.size > 0) {
		in->eval_dataset = build_dataset(s, &t->eval_dataset, n++);
	}
	in->has_adapter = t->adapter.size > 0;
	in->adapter = in->has_adapter ? n++ : 0;
	in->has_resume = t->resume.size > 0;
	in->resume = in->has_resume ? n : 0;
}

static void build_train(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__TrainTask *m = scratch_message(s, Peftd__V1__TrainTask, PEFTD__V1__TRAIN_TASK__INIT);
	if (!m) {
		return;
	}
	m->job = t->job;
	m->attempt = t->attempt;
	m->spec = scratch_unpack(s, &peftd__v1__job_spec__descriptor, &t->spec);
	m->plan = scratch_unpack(s, &peftd__v1__plan__descriptor, &t->plan);
	m->dataset = in->dataset;
	m->eval_dataset = in->eval_dataset;
	m->has_init_adapter = in->has_adapter;
	m->init_adapter = in->adapter;
	if (in->has_resume) {
		set_value(m, resume_checkpoint, in->resume);
		set_value(m, resume_step, t->resume_step);
	}
	task->what_case = PEFTD__V1__TASK__WHAT_TRAIN;
	task->train = m;
}

static void build_plan(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__PlanTask *m = scratch_message(s, Peftd__V1__PlanTask, PEFTD__V1__PLAN_TASK__INIT);
	if (!m) {
		return;
	}
	m->spec = scratch_unpack(s, &peftd__v1__job_spec__descriptor, &t->spec);
	m->dataset = in->dataset;
	m->eval_dataset = in->eval_dataset;
	m->has_init_adapter = in->has_adapter;
	m->init_adapter = in->adapter;
	set_value(m, device_gflops_f32, t->gflops_f32);
	set_value(m, device_gflops_bf16, t->gflops_bf16);
	set_value(m, threads, t->threads);
	set_value(m, memory_limit, t->memory_limit);
	task->what_case = PEFTD__V1__TASK__WHAT_PLAN;
	task->plan = m;
}

static void build_eval(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__EvalTask *m = scratch_message(s, Peftd__V1__EvalTask, PEFTD__V1__EVAL_TASK__INIT);
	if (m) {
		m->request = scratch_unpack(s, &peftd__v1__eval_request__descriptor, &t->request);
		m->dataset = in->dataset;
		m->shots_dataset = in->eval_dataset;
		m->has_adapter = in->has_adapter;
		m->adapter = in->adapter;
		task->what_case = PEFTD__V1__TASK__WHAT_EVAL;
		task->eval = m;
	}
}

static void build_generate(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__GenerateTask *m =
		scratch_message(s, Peftd__V1__GenerateTask, PEFTD__V1__GENERATE_TASK__INIT);
	if (m) {
		m->request = scratch_unpack(s, &peftd__v1__generate_request__descriptor, &t->request);
		m->has_adapter = in->has_adapter;
		m->adapter = in->adapter;
		task->what_case = PEFTD__V1__TASK__WHAT_GENERATE;
		task->generate = m;
	}
}

static void build_model_inspect(struct scratch *s, const struct task_spec *t, Peftd__V1__Task *task)
{
	Peftd__V1__ModelInspectTask *m =
		scratch_message(s, Peftd__V1__ModelInspectTask, PEFTD__V1__MODEL_INSPECT_TASK__INIT);
	if (m) {
		m->name = proto_bytes(t->model_name);
		m->path = proto_bytes(t->model_path);
		task->what_case = PEFTD__V1__TASK__WHAT_MODEL_INSPECT;
		task->model_inspect = m;
	}
}

static void build_dataset_check(struct scratch *s, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__DatasetCheckTask *m =
		scratch_message(s, Peftd__V1__DatasetCheckTask, PEFTD__V1__DATASET_CHECK_TASK__INIT);
	if (m) {
		m->dataset = in->dataset;
		task->what_case = PEFTD__V1__TASK__WHAT_DATASET_CHECK;
		task->dataset_check = m;
	}
}

static void build_dataset_inspect(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__DatasetInspectTask *m =
		scratch_message(s, Peftd__V1__DatasetInspectTask, PEFTD__V1__DATASET_INSPECT_TASK__INIT);
	if (m) {
		m->request =
			scratch_unpack(s, &peftd__v1__dataset_inspect_request__descriptor, &t->request);
		m->dataset = in->dataset;
		task->what_case = PEFTD__V1__TASK__WHAT_DATASET_INSPECT;
		task->dataset_inspect = m;
	}
}

static void build_merge(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__MergeTask *m = scratch_message(s, Peftd__V1__MergeTask, PEFTD__V1__MERGE_TASK__INIT);
	if (m) {
		m->job = t->job;
		m->step = t->step;
		m->spec = scratch_unpack(s, &peftd__v1__job_spec__descriptor, &t->spec);
		m->dataset = in->dataset;
		m->adapter = in->adapter;
		task->what_case = PEFTD__V1__TASK__WHAT_MERGE;
		task->merge = m;
	}
}

static void build_merge_read(
	struct scratch *s, const struct task_spec *t, const struct inputs *in, Peftd__V1__Task *task)
{
	Peftd__V1__MergeReadTask *m =
		scratch_message(s, Peftd__V1__MergeReadTask, PEFTD__V1__MERGE_READ_TASK__INIT);
	if (m) {
		m->job = t->job;
		m->step = t->step;
		m->adapter = in->adapter;
		m->offset = t->offset;
		task->what_case = PEFTD__V1__TASK__WHAT_MERGE_READ;
		task->merge_read = m;
	}
}

static Peftd__V1__Task *build_task(struct scratch *s, const struct task_spec *t)
{
	Peftd__V1__Task *task = scratch_message(s, Peftd__V1__Task, PEFTD__V1__TASK__INIT);
	struct inputs in = {.dataset = NULL};
	if (!task) {
		return NULL;
	}
	task->task = t->id;
	build_inputs(s, t, task, &in);
	if (t->model_name && t->kind != TASK_MODEL_INSPECT) {
		Peftd__V1__TaskModel *m =
			scratch_message(s, Peftd__V1__TaskModel, PEFTD__V1__TASK_MODEL__INIT);
		if (m) {
			m->name = proto_bytes(t->model_name);
			m->path = proto_bytes(t->model_path);
			if (t->has_model_digest) {
				set_value(m, digest, bytes_of(t->model_digest, DIGEST_SIZE));
			}
		}
		task->model = m;
	}
	if (s->failed) {
		return NULL;
	}
	switch (t->kind) {
	case TASK_TRAIN:
		build_train(s, t, &in, task);
		break;
	case TASK_PLAN:
		build_plan(s, t, &in, task);
		break;
	case TASK_EVAL:
		build_eval(s, t, &in, task);
		break;
	case TASK_GENERATE:
		build_generate(s, t, &in, task);
		break;
	case TASK_MODEL_INSPECT:
		build_model_inspect(s, t, task);
		break;
	case TASK_DATASET_CHECK:
		build_dataset_check(s, &in, task);
		break;
	case TASK_DATASET_INSPECT:
		build_dataset_inspect(s, t, &in, task);
		break;
	case TASK_MERGE:
		build_merge(s, t, &in, task);
		break;
	case TASK_MERGE_READ:
		build_merge_read(s, t, &in, task);
		break;
	}
	return s->failed ? NULL : task;
}

static int send_to_trainer(
	struct link *l, const struct action *a, const struct child_config *config)
{
	_cleanup_(scratch_deinit) struct scratch s = {0};
	Peftd__V1__CoreToTrainer m = PEFTD__V1__CORE_TO_TRAINER__INIT;
	Peftd__V1__TrainerConfig trainer = PEFTD__V1__TRAINER_CONFIG__INIT;
	Peftd__V1__Chunk chunk = PEFTD__V1__CHUNK__INIT;
	Peftd__V1__TaskCancel cancel = PEFTD__V1__TASK_CANCEL__INIT;
	Peftd__V1__CheckpointCredit checkpoint_credit = PEFTD__V1__CHECKPOINT_CREDIT__INIT;
	Peftd__V1__CheckpointDone done = PEFTD__V1__CHECKPOINT_DONE__INIT;
	Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
	Peftd__V1__OutputCredit output_credit = PEFTD__V1__OUTPUT_CREDIT__INIT;
	Peftd__V1__Shutdown shutdown = PEFTD__V1__SHUTDOWN__INIT;

	switch (a->kind) {
	case ACT_CONFIG:
		trainer.version = LINK_VERSION;
		set_text(&trainer, device, config->device);
		set_value(&trainer, threads, config->threads);
		set_value(&trainer, memory_limit, config->memory_limit);
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG;
		m.config = &trainer;
		break;
	case ACT_TASK:
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_TASK;
		m.task = build_task(&s, a->spec);
		if (!m.task) {
			return -ENOMEM;
		}
		break;
	case ACT_CHUNK:
		chunk.task = a->task;
		chunk.input = a->chunk.input;
		chunk.offset = a->chunk.offset;
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHUNK;
		m.chunk = &chunk;
		break;
	case ACT_TASK_CANCEL:
		cancel.task = a->task;
		set_value(&cancel, checkpoint_first, a->checkpoint_first);
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CANCEL;
		m.cancel = &cancel;
		break;
	case ACT_CHECKPOINT_CREDIT:
		checkpoint_credit.task = a->task;
		checkpoint_credit.chunks = a->credit;
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_CREDIT;
		m.checkpoint_credit = &checkpoint_credit;
		break;
	case ACT_CHECKPOINT_DONE:
		status.code = (uint32_t)a->done.code;
		set_text(&status, message, a->done.text);
		done.task = a->task;
		done.step = a->done.step;
		done.status = &status;
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_DONE;
		m.checkpoint_done = &done;
		break;
	case ACT_OUTPUT_CREDIT:
		output_credit.task = a->task;
		output_credit.outputs = a->credit;
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_OUTPUT_CREDIT;
		m.output_credit = &output_credit;
		break;
	default: /* ACT_STOP */
		set_value(&shutdown, grace_ms, a->grace_ms);
		m.what_case = PEFTD__V1__CORE_TO_TRAINER__WHAT_SHUTDOWN;
		m.shutdown = &shutdown;
		break;
	}
	return link_send(l, &m, a->raw, a->raw_len);
}

int convert_send(struct link *l, const struct action *a, const struct child_config *config)
{
	return a->child_kind == CHILD_FRONT ? send_to_front(l, a, config)
										: send_to_trainer(l, a, config);
}
