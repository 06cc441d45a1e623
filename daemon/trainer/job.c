#include "daemon/trainer/job.h"

#include <errno.h>
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
	*method = spec->config;
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

/* prompt_tuning that starts from a text: its tokens, with the special ones the tokenizer adds. */
static int read_init_text(struct job *job, struct job_spec *spec, struct errmsg *err)
{
	struct prompt_tuning_config *c = &spec->config.prompt_tuning;
	if (!c->prompt_tuning_init_text) {
		return 0;
	}
	const struct tokenizer *tokenizer;
	int r = model_tokenizer(job->model, &tokenizer, err);
	size_t n = strlen(c->prompt_tuning_init_text);
	struct ids ids = {0};
	r = r ? r : tokenizer_encode(tokenizer, c->prompt_tuning_init_text, n, true, &ids, err);
	if (r != 0) {
		ids_deinit(&ids);
		return r > 0 ? errmsg_prefix(err, r, "prompt_tuning.prompt_tuning_init_text") : r;
	}
	c->n_init_ids = ids.len;
	c->init_ids = ids.data; /* the method's from here on */
	job->method.prompt_tuning = *c;
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
	job->method.base_model_name_or_path = (char *)model_public_name(job->model);
	r = read_init_text(job, &task->spec, err);
	if (r != 0) {
		return r;
	}
	r = read_rows(c, task, job, err);
	if (r != 0) {
		return r;
	}
	job->config.max_steps = train_steps(job->samples->n, spec->batch_size, spec->max_steps,
		spec->num_train_epochs);
	if (job->config.max_steps == 0) {
		return errmsg_set(err, STATUS_INVALID, "train.num_train_epochs: %g epochs of %zu rows are "
			"no number of steps from 1 to 2^40", spec->num_train_epochs, (size_t)job->samples->n);
	}
	/* An epoch ends with a batch of what is left. */
	job->epochs = (double)job->config.max_steps /
		(double)train_steps(job->samples->n, spec->batch_size, 0, 1);

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

int job_plan(struct job *job, uint64_t memory_limit, struct memory_plan *ret, struct errmsg *err)
{
	const struct model_files *files = model_files_of(job->model);
	struct backend *b = job->compute->backend;
	int r = train_check(files, b, &job->config, &job->method, job->has_init ? &job->init : NULL, err);
	return r ? r : train_plan(ret, files, b, &job->config, &job->method, job->longest, memory_limit,
		err);
}
