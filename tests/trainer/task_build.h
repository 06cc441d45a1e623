#pragma once
/* Tasks for tests, with all their parts in one place. */

#include "tests/trainer/fake_core.h"

/* A task whose sub-messages live beside it; task_init_*() wires them up. */
struct test_task {
	Peftd__V1__Task task;
	Peftd__V1__TaskModel model;
	Peftd__V1__JobSpec spec;
	Peftd__V1__LoraSpec lora;
	Peftd__V1__TrainSpec train_spec;
	ProtobufCBinaryData targets[4];
	Peftd__V1__TaskDataset dataset, eval_dataset;
	Peftd__V1__TrainTask train;
	Peftd__V1__PlanTask plan;
	Peftd__V1__EvalTask eval;
	Peftd__V1__EvalRequest eval_request;
	Peftd__V1__GenerateTask generate;
	Peftd__V1__GenerateRequest generate_request;
	ProtobufCBinaryData prompt;
	Peftd__V1__ModelInspectTask model_inspect;
	Peftd__V1__DatasetCheckTask dataset_check;
	Peftd__V1__DatasetInspectTask dataset_inspect;
	Peftd__V1__DatasetInspectRequest inspect_request;
	struct content inputs[4];
	size_t n_inputs;
};

/* Each begins a task anew. Dataset inputs are added in the order of the calls. */
void task_init_train(struct test_task *t, const char *model_path);
void task_init_plan(struct test_task *t, const char *model_path);
void task_init_eval(struct test_task *t, const char *model_path);
void task_init_generate(struct test_task *t, const char *model_path, const char *prompt);
void task_init_model_inspect(struct test_task *t, const char *path);
void task_init_dataset_check(struct test_task *t);
void task_init_dataset_inspect(struct test_task *t, const char *model_path);

/* The rows (borrowed) as the dataset, or the evaluation's. */
void task_set_dataset(struct test_task *t, const char *rows, size_t len);
void task_set_eval_dataset(struct test_task *t, const char *rows, size_t len);
/* A checkpoint to go on from; its first two files as the adapter of an evaluation or generation, or
 * as the initial adapter of a training. */
void task_set_resume(struct test_task *t, const struct kept_checkpoint *k);
void task_set_adapter(struct test_task *t, const struct kept_checkpoint *k);

void task_run(struct fake_core *c, struct test_task *t, const struct behaviour *how,
	struct outcome *ret);
