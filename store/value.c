/* The plain structs: setting, copying, freeing. */

#include <errno.h>

#include "store/store-internal.h"

void packed_deinit(struct packed *p)
{
	free(p->data);
	*p = (struct packed){0};
}

int packed_set(struct packed *p, const void *data, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);
	if (!copy) {
		return -ENOMEM;
	}
	if (len > 0) {
		memcpy(copy, data, len);
	}
	packed_deinit(p);
	*p = (struct packed){copy, len};
	return 0;
}

void store_files_deinit(struct store_files *f)
{
	for (size_t i = 0; f->files && i < f->n; i++) {
		free(f->files[i].name);
	}
	free(f->files);
	*f = (struct store_files){0};
}

int store_files_copy(struct store_files *dst, const struct store_files *src)
{
	struct store_files copy = {.size = src->size};
	memcpy(copy.digest, src->digest, sizeof(copy.digest));
	if (src->n > 0) {
		copy.files = calloc_array(src->n, sizeof(*copy.files));
		if (!copy.files) {
			return -ENOMEM;
		}
	}
	copy.n = src->n;
	for (size_t i = 0; i < src->n; i++) {
		copy.files[i].size = src->files[i].size;
		copy.files[i].name = strdup(src->files[i].name);
		if (!copy.files[i].name) {
			store_files_deinit(&copy);
			return -ENOMEM;
		}
	}
	*dst = copy;
	return 0;
}

void store_model_deinit(struct store_model *m)
{
	free(m->name);
	free(m->path);
	packed_deinit(&m->facts);
	*m = (struct store_model){0};
}

void store_dataset_deinit(struct store_dataset *d)
{
	free(d->name);
	free(d->format);
	free(d->prompt_field);
	free(d->completion_field);
	store_files_deinit(&d->content);
	*d = (struct store_dataset){0};
}

static void job_data_deinit(struct store_job_data *d)
{
	store_files_deinit(&d->content);
	free(d->name);
	free(d->prompt_field);
	free(d->completion_field);
}

void store_job_deinit(struct store_job *j)
{
	free(j->name);
	free(j->model);
	free(j->model_path);
	free(j->variant);
	free(j->reason);
	packed_deinit(&j->spec);
	packed_deinit(&j->plan);
	job_data_deinit(&j->dataset);
	job_data_deinit(&j->eval_dataset);
	store_files_deinit(&j->init_adapter);
	for (size_t i = 0; j->checkpoints && i < j->n_checkpoints; i++) {
		store_files_deinit(&j->checkpoints[i].content);
	}
	free(j->checkpoints);
	*j = (struct store_job){0};
}

void store_request_deinit(struct store_request *r)
{
	packed_deinit(&r->reply);
	*r = (struct store_request){0};
}
