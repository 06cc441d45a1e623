/* Tasks and the place where both threads meet. */

#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/trainer/link-internal.h"
#include "daemon/trainer/trainer.h"
#include "util/util.h"

static void job_spec_deinit(struct job_spec *s)
{
	free(s->method);
	free(s->model);
	free(s->dataset);
	free(s->chat_template);
	free(s->init_adapter);
	method_config_deinit(&s->config);
}

static void task_dataset_deinit(struct task_dataset *d)
{
	free(d->name);
	free(d->prompt_field);
	free(d->completion_field);
}

static void texts_free(struct text *list, size_t n)
{
	for (size_t i = 0; list && i < n; i++) {
		free(list[i].data);
	}
	free(list);
}

void task_free(struct task *t)
{
	if (!t) {
		return;
	}
	for (size_t i = 0; i < t->n_inputs; i++) {
		struct input *in = &t->inputs[i];
		for (size_t j = 0; j < in->n_files; j++) {
			free(in->files[j].name);
		}
		free(in->files);
		free(in->data);
	}
	free(t->inputs);
	free(t->model_name);
	free(t->model_path);
	task_dataset_deinit(&t->dataset);
	task_dataset_deinit(&t->eval_dataset);
	job_spec_deinit(&t->spec);
	free(t->eval.chat_template);
	texts_free(t->generate.prompts, t->generate.n_prompts);
	texts_free(t->stops, t->n_stops);
	free(t->generate.chat_template);
	free(t->inspect.chat_template);
	free(t);
}

int trainer_init(struct trainer *t, bool inspect)
{
	memset(t, 0, sizeof(*t));
	t->inspect = inspect;
	t->out_tail = &t->out_head;
	t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (t->wake_fd < 0) {
		return -errno;
	}
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->changed, NULL);
	return 0;
}

void trainer_deinit(struct trainer *t)
{
	while (t->tasks) {
		struct task *next = t->tasks->next;
		task_free(t->tasks);
		t->tasks = next;
	}
	outgoing_free_all(t);
	if (t->checkpoint) {
		buf_deinit(&t->checkpoint->data);
		free(t->checkpoint);
	}
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
	close(t->wake_fd);
}

void trainer_wake_main(struct trainer *t)
{
	uint64_t one = 1;
	/* EAGAIN only when the counter is full: then the main thread is awake anyway. */
	(void)!write(t->wake_fd, &one, sizeof(one));
}

struct task *trainer_find(struct trainer *t, uint64_t id)
{
	for (struct task *task = t->tasks; task; task = task->next) {
		if (task->id == id) {
			return task;
		}
	}
	return NULL;
}

static int interrupted_locked(const struct trainer *t, const struct task *task)
{
	if (task->cancelled) {
		return STATUS_CANCELLED;
	}
	return task->stop || t->shutdown ? STATUS_UNAVAILABLE : 0;
}

int task_interrupted(struct trainer *t, struct task *task)
{
	pthread_mutex_lock(&t->lock);
	int r = interrupted_locked(t, task);
	pthread_mutex_unlock(&t->lock);
	return r;
}

int task_take_credit(struct trainer *t, struct task *task, struct errmsg *err)
{
	pthread_mutex_lock(&t->lock);
	while (task->output_credit == 0 && interrupted_locked(t, task) == 0) {
		pthread_cond_wait(&t->changed, &t->lock);
	}
	bool room = task->output_credit > 0;
	task->output_credit -= room;
	pthread_mutex_unlock(&t->lock);
	return room ? 0 : errmsg_set(err, STATUS_CANCELLED, "nobody reads it any more");
}

static int interrupted_error(int code, struct errmsg *err)
{
	if (code == STATUS_CANCELLED) {
		return errmsg_set(err, code, "cancelled");
	}
	return errmsg_set(err, code, "stopped to go on later");
}

static int check_digest(const struct input *in, struct errmsg *err)
{
	uint8_t digest[32];
	crypto_generichash(digest, sizeof(digest), in->data, in->size, NULL, 0);
	if (memcmp(digest, in->digest, sizeof(digest)) != 0) {
		char want[65], got[65];
		hex_encode(want, in->digest, 32);
		hex_encode(got, digest, 32);
		return errmsg_set(err, STATUS_INTERNAL,
			"input of %" PRIu64 " bytes: digest is %.16s…, it should be %.16s…", in->size, got,
			want);
	}
	return 0;
}

int task_input(struct trainer *t, struct task *task, int index, const uint8_t **ret_data,
	size_t *ret_len, struct errmsg *err)
{
	if (index < 0 || (size_t)index >= task->n_inputs) {
		return errmsg_set(err, STATUS_INTERNAL, "task has no input %d", index);
	}
	struct input *in = &task->inputs[index];
	bool fresh = false;

	pthread_mutex_lock(&t->lock);
	if (!in->complete && !in->wanted) {
		if (in->size > SIZE_MAX - 1 || !(in->data = malloc((size_t)in->size + 1))) {
			pthread_mutex_unlock(&t->lock);
			return errmsg_set(err, STATUS_FAILED,
				"no memory for an input of %" PRIu64 " bytes", in->size);
		}
		in->data[in->size] = '\0';
		in->wanted = true;
		trainer_wake_main(t);
	}
	int r = 0;
	while (!in->complete && (r = interrupted_locked(t, task)) == 0) {
		fresh = true;
		pthread_cond_wait(&t->changed, &t->lock);
	}
	bool complete = in->complete;
	pthread_mutex_unlock(&t->lock);

	if (!complete) {
		return interrupted_error(r, err);
	}
	if (fresh && (r = check_digest(in, err)) != 0) {
		return r;
	}
	*ret_data = in->data;
	*ret_len = (size_t)in->size;
	return 0;
}

void task_input_drop(struct trainer *t, struct task *task, int index)
{
	struct input *in = &task->inputs[index];
	pthread_mutex_lock(&t->lock);
	if (in->complete) {
		free(in->data);
		in->data = NULL;
		in->wanted = in->complete = false;
		in->received = in->pulled = 0;
	}
	pthread_mutex_unlock(&t->lock);
}

int task_input_file(const struct task *task, int index, const char *name, const uint8_t **ret_data,
	size_t *ret_len, struct errmsg *err)
{
	const struct input *in = &task->inputs[index];
	uint64_t offset = 0;
	for (size_t i = 0; i < in->n_files; i++) {
		if (strcmp(in->files[i].name, name) == 0) {
			*ret_data = in->data + offset;
			*ret_len = (size_t)in->files[i].size;
			return 0;
		}
		offset += in->files[i].size;
	}
	return errmsg_set(err, STATUS_INVALID, "there is no file %s", name);
}

static bool task_has_file(const struct task *task, int index, const char *name)
{
	const struct input *in = &task->inputs[index];
	for (size_t i = 0; i < in->n_files; i++) {
		if (strcmp(in->files[i].name, name) == 0) {
			return true;
		}
	}
	return false;
}

int task_adapter_files(struct trainer *t, struct task *task, int index, struct adapter_files *ret,
	size_t *ret_size, struct errmsg *err)
{
	const uint8_t *data;
	int r = task_input(t, task, index, &data, ret_size, err);
	if (r != 0) {
		return r;
	}
	/* Two of the three kinds of folders have the same configuration's name. */
	enum adapter_kind kind = 0;
	while (kind < ADAPTER_KINDS - 1 && !task_has_file(task, index, adapter_files(kind).weights)) {
		kind++;
	}
	*ret = adapter_files(kind);
	if (!task_has_file(task, index, ret->weights)) {
		*ret = adapter_files(ADAPTER_PEFT); /* the usual one is what is missing */
	}
	return 0;
}

int task_adapter(struct trainer *t, struct task *task, int index, struct adapter *ret,
	struct errmsg *err)
{
	const uint8_t *config = NULL, *weights = NULL;
	size_t len, config_len = 0, weights_len = 0;
	struct adapter_files names;
	int r = task_adapter_files(t, task, index, &names, &len, err);
	r = r ? r : task_input_file(task, index, names.config, &config, &config_len, err);
	r = r ? r : task_input_file(task, index, names.weights, &weights, &weights_len, err);
	if (r == 0) {
		r = adapter_parse(ret, config, config_len, weights, weights_len, err);
	}
	return r > 0 ? errmsg_prefix(err, r, "adapter") : r;
}
