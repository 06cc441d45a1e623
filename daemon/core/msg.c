#include "daemon/core/msg.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void spec_deinit(struct spec *s)
{
	packed_deinit(&s->packed);
	free(s->name);
	free(s->model);
	free(s->dataset);
	free(s->eval_dataset);
	*s = (struct spec){0};
}

void request_deinit(struct request *r)
{
	free(r->name);
	free(r->path);
	store_files_deinit(&r->blob);
	free(r->prompt_field);
	free(r->completion_field);
	packed_deinit(&r->body);
	free(r->model);
	free(r->dataset);
	free(r->shots_dataset);
	store_files_deinit(&r->adapter.uploaded);
	for (size_t i = 0; i < r->n_members; i++) {
		spec_deinit(&r->members[i].spec);
		free(r->members[i].variant);
	}
	free(r->members);
	*r = (struct request){0};
}

void store_job_data_deinit(struct store_job_data *d)
{
	store_files_deinit(&d->content);
	free(d->name);
	free(d->prompt_field);
	free(d->completion_field);
	*d = (struct store_job_data){0};
}

static int copy_string(char **dst, const char *src)
{
	*dst = src ? strdup(src) : NULL;
	return src && !*dst ? -ENOMEM : 0;
}

int store_job_data_copy(struct store_job_data *dst, const struct store_job_data *src)
{
	struct store_job_data d = {.rows = src->rows};
	int r = store_files_copy(&d.content, &src->content);
	r = r ? r : copy_string(&d.name, src->name);
	r = r ? r : copy_string(&d.prompt_field, src->prompt_field);
	r = r ? r : copy_string(&d.completion_field, src->completion_field);
	if (r < 0) {
		store_job_data_deinit(&d);
		return r;
	}
	*dst = d;
	return 0;
}

struct task_spec *task_spec_new(enum task_kind kind)
{
	struct task_spec *t = calloc(1, sizeof(*t));
	if (t) {
		t->refs = 1;
		t->kind = kind;
	}
	return t;
}

struct task_spec *task_spec_ref(struct task_spec *t)
{
	t->refs++;
	return t;
}

void task_spec_unref(struct task_spec *t)
{
	if (!t || --t->refs > 0) {
		return;
	}
	free(t->model_name);
	free(t->model_path);
	store_job_data_deinit(&t->dataset);
	store_job_data_deinit(&t->eval_dataset);
	store_files_deinit(&t->adapter);
	store_files_deinit(&t->resume);
	packed_deinit(&t->spec);
	packed_deinit(&t->plan);
	packed_deinit(&t->request);
	free(t);
}

const struct store_files *task_spec_input(const struct task_spec *t, unsigned index)
{
	const struct store_files *const all[] = {
		&t->dataset.content, &t->eval_dataset.content, &t->adapter, &t->resume};
	for (unsigned i = 0; i < TASK_MAX_INPUTS; i++) {
		if (all[i]->size > 0 && index-- == 0) {
			return all[i];
		}
	}
	return NULL;
}

unsigned task_spec_n_inputs(const struct task_spec *t)
{
	unsigned n = 0;
	while (task_spec_input(t, n)) {
		n++;
	}
	return n;
}

void trainer_facts_deinit(struct trainer_facts *f)
{
	free(f->device);
	*f = (struct trainer_facts){0};
}

void trainer_stats_deinit(struct trainer_stats *s)
{
	for (size_t i = 0; i < s->n_models; i++) {
		free(s->models[i].name);
		free(s->models[i].dtype);
	}
	free(s->models);
	*s = (struct trainer_stats){0};
}

void task_result_deinit(struct task_result *r)
{
	free(r->text);
	packed_deinit(&r->packed);
	free(r->reason);
	free(r->path);
	free(r->format);
	free(r->prompt_field);
	free(r->completion_field);
	*r = (struct task_result){0};
}

void event_deinit(struct event *e)
{
	switch (e->kind) {
	case EV_REQUEST:
		request_deinit(&e->request);
		break;
	case EV_TRAINER_READY:
		trainer_facts_deinit(&e->trainer.facts);
		break;
	case EV_JOB_EVENT:
		free(e->job.text);
		free(e->job.level);
		break;
	case EV_CHECKPOINT_BEGIN:
		store_files_deinit(&e->checkpoint.content);
		break;
	case EV_OUTPUT:
		packed_deinit(&e->output.packed);
		break;
	case EV_RESULT:
		task_result_deinit(&e->result);
		break;
	case EV_STATS:
		trainer_stats_deinit(&e->stats);
		break;
	default:
		break;
	}
	*e = (struct event){.kind = EV_TIME};
}

void action_free(struct action *a)
{
	if (!a) {
		return;
	}
	free(a->raw);
	switch (a->kind) {
	case ACT_REPLY:
		packed_deinit(&a->reply.packed);
		break;
	case ACT_TASK:
		task_spec_unref(a->spec);
		break;
	case ACT_CHECKPOINT_DONE:
		free(a->done.text);
		break;
	case ACT_EXIT:
		free(a->exit.text);
		break;
	default:
		break;
	}
	free(a);
}
