#pragma once
/* Datasets as the engine wants them: pulled, tokenized, kept for the next task. Compute thread
 * only. */

#include <stdbool.h>
#include <stdint.h>

#include "daemon/trainer/models.h"
#include "daemon/trainer/trainer.h"

struct sample_cache;

int sample_cache_new(struct sample_cache **ret);
void sample_cache_free(struct sample_cache *c);

struct dataset_options {
	int64_t max_length;
	enum overlong overlong;
	bool train_on_prompt, keep_all;
	const char *chat_template; /* a built-in's name, or NULL: the model's own */
};

/* The samples of a task's dataset, tokenized or found in the cache. *ret_template_name: that of the
 * chat template in use, NULL where the rows need none. Give it back with dataset_release(). */
int dataset_samples(struct compute *c, struct task *task, const struct task_dataset *d,
	struct model *model, const struct dataset_options *o, const struct samples **ret,
	const char **ret_template_name, struct errmsg *err);
void dataset_release(struct sample_cache *c, const struct samples *s);
