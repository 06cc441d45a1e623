#include "daemon/trainer/job.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "util/util.h"

int spec_config(const struct job_spec *spec, struct train_config *config,
	struct method_config *method, struct errmsg *err)
{
	*config = (struct train_config){
		.max_steps = spec->max_steps ? spec->max_steps : 1,
		.batch_size = spec->batch_size,
		.max_length = spec->max_length,
		.packing = spec->packing,
		.learning_rate = spec->learning_rate,
		.lr_scheduler = spec->lr_scheduler,
		.warmup_steps = spec->warmup_steps,
		.weight_decay = spec->weight_decay,
		.adam_beta1 = spec->adam_beta1,
		.adam_beta2 = spec->adam_beta2,
		.adam_epsilon = spec->adam_epsilon,
		.max_grad_norm = spec->max_grad_norm,
		.dtype = spec->dtype,
		.seed = spec->seed,
		.sequential = spec->sequential,
		.microbatch_tokens = spec->microbatch_tokens,
	};
	*method = (struct method_config){
		.method = spec->method,
		.lora = {
			.r = spec->lora_r,
			.lora_alpha = spec->lora_alpha,
			.lora_dropout = spec->lora_dropout,
			.target_modules = spec->target_modules,
			.n_target_modules = spec->n_target_modules,
		},
	};
	if (spec->max_steps == 0 &&
		(!isfinite(spec->num_train_epochs) || spec->num_train_epochs <= 0)) {
		return errmsg_set(err, STATUS_INVALID,
			"train.num_train_epochs: %g; it must be a number above 0 where max_steps is not given",
			spec->num_train_epochs);
	}
	if (spec->logging_steps < 1) {
		return errmsg_set(err, STATUS_INVALID, "train.logging_steps: 0; it must be at least 1");
	}
	return train_config_check(config, method, err);
}

static int read_rows(struct compute *c, struct task *task, struct job *job, struct errmsg *err)
{
	const struct job_spec *spec = &task->spec;
	struct dataset_options o = {
		.max_length = spec->max_length,
		.overlong = spec->overlong,
		.train_on_prompt = spec->train_on_prompt,
		.chat_template = spec->chat_template,
	};
	if (!task->dataset.present) {
		return errmsg_set(err, STATUS_INVALID, "the job has no dataset");
	}
	int r = dataset_samples(c, task, &task->dataset, job->model, &o, &job->samples,
		&job->template_name, err);
	if (r != 0) {
		return r;
	}
	job->longest = job->samples->longest_kept;
	if (task->eval_dataset.present) {
		r = dataset_samples(c, task, &task->eval_dataset, job->model, &o, &job->eval_samples, NULL,
			err);
		if (r != 0) {
			return r;
		}
		job->longest = max_i64(job->longest, job->eval_samples->longest_kept);
	}
	return 0;
}

int job_prepare(struct compute *c, struct task *task, struct job *job, struct errmsg *err)
{
	*job = (struct job){.compute = c};
	const struct job_spec *spec = &task->spec;
	int r = spec_config(spec, &job->config, &job->method, err);
	if (r != 0) {
		return r;
	}
	r = models_open(c->models, task->model_name, task->model_path,
		task->has_model_digest ? task->model_digest : NULL, &job->model, err);
	if (r != 0) {
		return r;
	}
	job->method.lora.base_model_name_or_path = (char *)model_public_name(job->model);
	r = read_rows(c, task, job, err);
	if (r != 0) {
		return r;
	}
	job->config.max_steps = train_steps(job->samples->n, spec->batch_size, spec->max_steps,
		spec->num_train_epochs);
	job->epochs = (double)job->config.max_steps * (double)spec->batch_size /
		(double)job->samples->n;

	if (task->adapter != NO_INPUT) {
		r = task_adapter(c->trainer, task, task->adapter, &job->init, err);
		if (r != 0) {
			return r > 0 ? errmsg_prefix(err, r, "init_adapter") : r;
		}
		job->has_init = true;
	}
	return 0;
}

void job_release(struct job *job)
{
	if (job->has_init) {
		adapter_deinit(&job->init);
	}
	dataset_release(job->compute->samples, job->eval_samples);
	dataset_release(job->compute->samples, job->samples);
	models_close(job->compute->models, job->model);
}

/* Refuses at submit what would fail when training starts. */
static int check_init(const struct job *job, const struct memory_plan *plan, struct errmsg *err)
{
	const struct lora_config *have = &job->init.config, *want = &job->method.lora;
	if (have->r != want->r) {
		return errmsg_set(err, STATUS_INVALID,
			"init_adapter has r %" PRId64 ", the job's lora.r is %" PRId64 "; set lora.r: %" PRId64,
			have->r, want->r, have->r);
	}
	if (have->lora_alpha != want->lora_alpha) {
		return errmsg_set(err, STATUS_INVALID,
			"init_adapter has lora_alpha %g, the job's lora.lora_alpha is %g; set lora.lora_alpha: "
			"%g", have->lora_alpha, want->lora_alpha, have->lora_alpha);
	}
	uint64_t n = 0;
	for (size_t i = 0; i < job->init.tensors.n_tensors; i++) {
		const struct st_tensor *t = &job->init.tensors.tensors[i];
		uint64_t elements = 1;
		for (int d = 0; d < t->n_dims; d++) {
			elements *= (uint64_t)t->dims[d];
		}
		n += elements;
	}
	if (n != plan->trainable_parameters) {
		return errmsg_set(err, STATUS_INVALID,
			"init_adapter has %" PRIu64 " parameters, the job trains %" PRIu64 "; set "
			"lora.target_modules to those of the adapter, and check that it was made for this "
			"model", n, plan->trainable_parameters);
	}
	return 0;
}

int job_plan(struct job *job, uint64_t memory_limit, struct memory_plan *ret, struct errmsg *err)
{
	int r = train_plan(ret, model_files_of(job->model), job->compute->backend, &job->config,
		&job->method, job->longest, memory_limit, err);
	if (r == 0 && job->has_init) {
		r = check_init(job, ret, err);
	}
	return r;
}
