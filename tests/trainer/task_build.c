#include "tests/trainer/task_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void begin(struct test_task *t, const char *model_path)
{
	memset(t, 0, sizeof(*t));
	t->task = (Peftd__V1__Task)PEFTD__V1__TASK__INIT;
	if (model_path) {
		t->model = (Peftd__V1__TaskModel)PEFTD__V1__TASK_MODEL__INIT;
		t->model.name = proto_bytes("tiny");
		t->model.path = proto_bytes(model_path);
		t->task.model = &t->model;
	}
}

/* A short run in f32 with a checkpoint every four steps; tests change what they are about. */
static void init_spec(struct test_task *t)
{
	t->spec = (Peftd__V1__JobSpec)PEFTD__V1__JOB_SPEC__INIT;
	t->lora = (Peftd__V1__LoraSpec)PEFTD__V1__LORA_SPEC__INIT;
	t->train_spec = (Peftd__V1__TrainSpec)PEFTD__V1__TRAIN_SPEC__INIT;
	t->spec.lora = &t->lora;
	t->spec.train = &t->train_spec;
	t->lora.has_r = true;
	t->lora.r = 4;
	t->lora.target_modules = t->targets;
	Peftd__V1__TrainSpec *s = &t->train_spec;
	s->has_max_steps = s->has_batch_size = s->has_max_length = s->has_save_steps = true;
	s->has_learning_rate = s->has_dtype = s->has_eval_steps = true;
	s->max_steps = 10;
	s->batch_size = 4;
	s->max_length = 64;
	s->save_steps = 4;
	s->eval_steps = 5;
	s->learning_rate = 5e-3;
	s->dtype = proto_bytes("f32");
}

void task_init_train(struct test_task *t, const char *model_path)
{
	begin(t, model_path);
	init_spec(t);
	t->train = (Peftd__V1__TrainTask)PEFTD__V1__TRAIN_TASK__INIT;
	t->train.job = 1;
	t->train.attempt = 1;
	t->train.spec = &t->spec;
	t->task.what_case = PEFTD__V1__TASK__WHAT_TRAIN;
	t->task.train = &t->train;
}

void task_init_plan(struct test_task *t, const char *model_path)
{
	begin(t, model_path);
	init_spec(t);
	t->plan = (Peftd__V1__PlanTask)PEFTD__V1__PLAN_TASK__INIT;
	t->plan.spec = &t->spec;
	t->plan.has_threads = t->plan.has_device_gflops_f32 = true;
	t->plan.threads = 1;
	t->plan.device_gflops_f32 = 10;
	t->task.what_case = PEFTD__V1__TASK__WHAT_PLAN;
	t->task.plan = &t->plan;
}

void task_init_eval(struct test_task *t, const char *model_path)
{
	begin(t, model_path);
	t->eval = (Peftd__V1__EvalTask)PEFTD__V1__EVAL_TASK__INIT;
	t->eval_request = (Peftd__V1__EvalRequest)PEFTD__V1__EVAL_REQUEST__INIT;
	t->eval_request.model = proto_bytes("tiny");
	t->eval_request.dataset = proto_bytes("rows");
	t->eval.request = &t->eval_request;
	t->task.what_case = PEFTD__V1__TASK__WHAT_EVAL;
	t->task.eval = &t->eval;
}

void task_init_generate(struct test_task *t, const char *model_path, const char *prompt)
{
	begin(t, model_path);
	t->generate = (Peftd__V1__GenerateTask)PEFTD__V1__GENERATE_TASK__INIT;
	t->generate_request = (Peftd__V1__GenerateRequest)PEFTD__V1__GENERATE_REQUEST__INIT;
	t->generate_request.model = proto_bytes("tiny");
	t->prompt = proto_bytes(prompt);
	t->generate_request.prompt = &t->prompt;
	t->generate_request.n_prompt = 1;
	t->generate_request.has_max_new_tokens = true;
	t->generate_request.max_new_tokens = 24;
	t->generate.request = &t->generate_request;
	t->task.what_case = PEFTD__V1__TASK__WHAT_GENERATE;
	t->task.generate = &t->generate;
}

void task_init_model_inspect(struct test_task *t, const char *path)
{
	begin(t, NULL);
	t->model_inspect = (Peftd__V1__ModelInspectTask)PEFTD__V1__MODEL_INSPECT_TASK__INIT;
	t->model_inspect.name = proto_bytes("tiny");
	t->model_inspect.path = proto_bytes(path);
	t->task.what_case = PEFTD__V1__TASK__WHAT_MODEL_INSPECT;
	t->task.model_inspect = &t->model_inspect;
}

void task_init_dataset_check(struct test_task *t)
{
	begin(t, NULL);
	t->dataset_check = (Peftd__V1__DatasetCheckTask)PEFTD__V1__DATASET_CHECK_TASK__INIT;
	t->task.what_case = PEFTD__V1__TASK__WHAT_DATASET_CHECK;
	t->task.dataset_check = &t->dataset_check;
}

void task_init_dataset_inspect(struct test_task *t, const char *model_path)
{
	begin(t, model_path);
	t->dataset_inspect = (Peftd__V1__DatasetInspectTask)PEFTD__V1__DATASET_INSPECT_TASK__INIT;
	t->inspect_request = (Peftd__V1__DatasetInspectRequest)PEFTD__V1__DATASET_INSPECT_REQUEST__INIT;
	t->inspect_request.name = proto_bytes("rows");
	t->inspect_request.model = proto_bytes("tiny");
	t->dataset_inspect.request = &t->inspect_request;
	t->task.what_case = PEFTD__V1__TASK__WHAT_DATASET_INSPECT;
	t->task.dataset_inspect = &t->dataset_inspect;
}

static uint32_t add_input(struct test_task *t, struct content c)
{
	assert_true(t->n_inputs < 4);
	t->inputs[t->n_inputs] = c;
	return (uint32_t)t->n_inputs++;
}

static void init_dataset(struct test_task *t, Peftd__V1__TaskDataset *d, const char *name,
	const char *rows, size_t len)
{
	*d = (Peftd__V1__TaskDataset)PEFTD__V1__TASK_DATASET__INIT;
	d->input = add_input(t, (struct content){rows, len, {"rows.jsonl"}, {len}});
	d->has_name = true;
	d->name = proto_bytes(name);
}

void task_set_dataset(struct test_task *t, const char *rows, size_t len)
{
	init_dataset(t, &t->dataset, "rows", rows, len);
	t->train.dataset = t->plan.dataset = t->eval.dataset = &t->dataset;
	t->dataset_check.dataset = t->dataset_inspect.dataset = &t->dataset;
}

void task_set_eval_dataset(struct test_task *t, const char *rows, size_t len)
{
	init_dataset(t, &t->eval_dataset, "eval-rows", rows, len);
	t->train.eval_dataset = t->plan.eval_dataset = &t->eval_dataset;
}

static struct content files_of(const struct kept_checkpoint *k, size_t n)
{
	struct content c = {.data = k->data,
		.names = {"adapter_config.json", "adapter_model.safetensors", "peftd_state.safetensors"}};
	for (size_t i = 0; i < n; i++) {
		c.sizes[i] = k->sizes[i];
		c.len += k->sizes[i];
	}
	c.names[n] = NULL;
	return c;
}

void task_set_resume(struct test_task *t, const struct kept_checkpoint *k)
{
	t->train.has_resume_checkpoint = t->train.has_resume_step = true;
	t->train.resume_checkpoint = add_input(t, files_of(k, 3));
	t->train.resume_step = k->step;
	t->train.attempt++;
}

void task_set_adapter(struct test_task *t, const struct kept_checkpoint *k)
{
	uint32_t index = add_input(t, files_of(k, 2));
	t->eval.has_adapter = t->generate.has_adapter = true;
	t->train.has_init_adapter = t->plan.has_init_adapter = true;
	t->eval.adapter = t->generate.adapter = index;
	t->train.init_adapter = t->plan.init_adapter = index;
}

void task_run(struct fake_core *c, struct test_task *t, const struct behaviour *how,
	struct outcome *ret)
{
	fake_core_run(c, &t->task, t->inputs, t->n_inputs, how, ret);
}
