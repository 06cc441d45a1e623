#include "daemon/trainer/adapters.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/util.h"

struct entry {
	struct entry *next;
	uint8_t digest[32];
	uint8_t *data; /* the folder's two files, which the adapter points into */
	size_t size;
	struct adapter adapter;
	bool parsed;
	uint64_t used;
	unsigned refs;
};

struct adapters {
	struct models *models;
	struct entry *list;
	uint64_t bytes, turn;
};

/* Those that nobody uses are kept up to this many bytes: some 200 of rank 16 on a model of 1 B. */
#define KEPT_BYTES_MAX ((uint64_t)4 * 1024 * 1024 * 1024)

static void entry_free(struct entry *e)
{
	if (e->parsed) {
		adapter_deinit(&e->adapter);
	}
	free(e->data);
	free(e);
}

/* Drops the one that was not used for longest; false: all are in use. */
static bool drop_oldest(struct adapters *a)
{
	struct entry **oldest = NULL;
	for (struct entry **p = &a->list; *p; p = &(*p)->next) {
		if ((*p)->refs == 0 && (!oldest || (*p)->used < (*oldest)->used)) {
			oldest = p;
		}
	}
	if (!oldest) {
		return false;
	}
	struct entry *e = *oldest;
	*oldest = e->next;
	a->bytes -= e->size;
	models_use_memory(a->models, -(int64_t)e->size);
	entry_free(e);
	return true;
}

static bool give(void *arg)
{
	return drop_oldest(arg);
}

int adapters_new(struct adapters **ret, struct models *models)
{
	struct adapters *a = calloc(1, sizeof(*a));
	if (!a) {
		return -ENOMEM;
	}
	a->models = models;
	models_on_shortage(models, give, a);
	*ret = a;
	return 0;
}

void adapters_free(struct adapters *a)
{
	if (a) {
		models_on_shortage(a->models, NULL, NULL);
		while (a->list) {
			struct entry *next = a->list->next;
			entry_free(a->list);
			a->list = next;
		}
		free(a);
	}
}

/* Copies a file of the task's input behind what the entry has. */
static int copy_file(struct entry *e, const struct task *task, const char *name, size_t *ret_at,
	size_t *ret_len, struct errmsg *err)
{
	const uint8_t *data;
	int r = task_input_file(task, task->adapter, name, &data, ret_len, err);
	if (r == 0) {
		*ret_at = e->size;
		memcpy(e->data + e->size, data, *ret_len);
		e->size += *ret_len;
	}
	return r;
}

/* A checkpoint is more than its adapter: only that is kept. The caller frees what is half-made. */
static int fill(struct entry *e, struct compute *c, struct task *task, struct errmsg *err)
{
	size_t total, config_at = 0, config_len = 0, weights_at = 0, weights_len = 0;
	struct adapter_files names;
	int r = task_adapter_files(c->trainer, task, task->adapter, &names, &total, err);
	if (r != 0) {
		return r;
	}
	e->data = malloc(total + 1);
	if (!e->data) {
		return -ENOMEM;
	}
	/* Tensors first, which keeps them where the reader of their file expects them: aligned. */
	r = copy_file(e, task, names.weights, &weights_at, &weights_len, err);
	r = r ? r : copy_file(e, task, names.config, &config_at, &config_len, err);
	r = r ? r : models_take_memory(c->models, e->size, err);
	if (r != 0) {
		return r;
	}
	uint8_t *less = realloc(e->data, e->size + 1);
	e->data = less ? less : e->data;
	r = adapter_parse(&e->adapter, e->data + config_at, config_len, e->data + weights_at, weights_len,
		err);
	e->parsed = r == 0;
	if (r != 0) {
		models_use_memory(c->models, -(int64_t)e->size);
	}
	return r > 0 ? errmsg_prefix(err, r, "adapter") : r;
}

static struct entry *find(struct adapters *a, const uint8_t digest[32])
{
	for (struct entry *e = a->list; e; e = e->next) {
		if (memcmp(e->digest, digest, 32) == 0) {
			return e;
		}
	}
	return NULL;
}

int adapters_acquire(struct compute *c, struct task *task, const struct adapter **ret,
	bool *ret_was_here, struct errmsg *err)
{
	struct adapters *a = c->adapters;
	*ret = NULL;
	*ret_was_here = false;
	if (task->adapter == NO_INPUT) {
		return 0;
	}
	struct entry *e = find(a, task->inputs[task->adapter].digest);
	*ret_was_here = e != NULL;
	if (!e) {
		e = calloc(1, sizeof(*e));
		if (!e) {
			return -ENOMEM;
		}
		int r = fill(e, c, task, err);
		task_input_drop(c->trainer, task, task->adapter);
		if (r != 0) {
			entry_free(e);
			return r;
		}
		memcpy(e->digest, task->inputs[task->adapter].digest, sizeof(e->digest));
		e->next = a->list;
		a->list = e;
		a->bytes += e->size;
	}
	e->refs++;
	e->used = ++a->turn;
	while (a->bytes > KEPT_BYTES_MAX && drop_oldest(a)) {
	}
	*ret = &e->adapter;
	return 0;
}

void adapters_release(struct adapters *a, const struct adapter *adapter)
{
	for (struct entry *e = adapter ? a->list : NULL; e; e = e->next) {
		if (&e->adapter == adapter) {
			e->refs--;
			return;
		}
	}
}
