#include "daemon/trainer/models.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/trainer/trainer.h"
#include "util/log.h"
#include "util/util.h"

/* Weights on the device. */
struct resident {
	struct resident *next;
	struct base_model *base;
	enum dtype dtype;
	bool train;
	uint64_t bytes, used; /* used: the turn of its last use */
	unsigned pins;
};

struct named_template {
	struct named_template *next;
	char *name; /* NULL: the model's own */
	struct chat_template *template;
};

struct model {
	struct model *next;
	char *name, *path; /* as the core calls it */
	char *public_name;
	uint8_t stamp[32]; /* of its files' sizes, times and inodes */
	struct model_files *files;
	struct tokenizer *tokenizer; /* NULL until it is needed */
	struct named_template *templates; /* those asked for so far */
	bool has_digest;
	uint8_t digest[32];
	struct resident *residents;
	unsigned refs;
	bool stale; /* its files have changed: goes when nobody uses it */
	uint64_t used;
};

struct models {
	struct trainer *trainer;
	struct model *list;
	uint64_t memory_total, memory_in_use, turn;
	bool (*give)(void *arg); /* models_on_shortage(); NULL: nothing else */
	void *give_arg;
};

/* Open models that nobody uses and that hold no weights cost little: mapped files, a tokenizer. */
enum { OPEN_MODELS_MAX = 8 };

int models_new(struct models **ret, struct trainer *t, uint64_t memory_total)
{
	struct models *m = calloc(1, sizeof(*m));
	if (!m) {
		return -ENOMEM;
	}
	m->trainer = t;
	m->memory_total = memory_total;
	*ret = m;
	return 0;
}

static void publish(struct models *m)
{
	struct trainer *t = m->trainer;
	pthread_mutex_lock(&t->lock);
	t->memory_in_use = m->memory_in_use;
	t->n_resident = 0;
	for (struct model *model = m->list; model; model = model->next) {
		for (struct resident *r = model->residents; r; r = r->next) {
			if (t->n_resident < MAX_RESIDENT) {
				struct resident_info *info = &t->resident[t->n_resident++];
				snprintf(info->name, sizeof(info->name), "%s", model->name);
				info->dtype = dtype_name(r->dtype);
				info->bytes = r->bytes;
			}
		}
	}
	t->residency_changed = true;
	pthread_mutex_unlock(&t->lock);
	trainer_wake_main(t);
}

void models_use_memory(struct models *m, int64_t change)
{
	m->memory_in_use += (uint64_t)change;
	publish(m);
}

static void unload(struct models *m, struct model *model, struct resident *r)
{
	for (struct resident **p = &model->residents; *p; p = &(*p)->next) {
		if (*p == r) {
			*p = r->next;
			break;
		}
	}
	log_debug("model '%s' in %s leaves the device: %" PRIu64 " bytes", model->name,
		dtype_name(r->dtype), r->bytes);
	m->memory_in_use -= r->bytes;
	base_model_free(r->base);
	free(r);
}

static void model_free(struct models *m, struct model *model)
{
	if (!model) {
		return;
	}
	while (model->residents) {
		unload(m, model, model->residents);
	}
	tokenizer_free(model->tokenizer);
	while (model->templates) {
		struct named_template *next = model->templates->next;
		chat_template_free(model->templates->template);
		free(model->templates->name);
		free(model->templates);
		model->templates = next;
	}
	model_files_free(model->files);
	free(model->name);
	free(model->path);
	free(model->public_name);
	free(model);
}

void models_free(struct models *m)
{
	if (!m) {
		return;
	}
	while (m->list) {
		struct model *next = m->list->next;
		model_free(m, m->list);
		m->list = next;
	}
	free(m);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void stamp_add(uint8_t stamp[32], const char *name, const struct stat *st)
{
	struct {
		uint64_t size, ino, dev;
		int64_t sec, nsec;
	} facts = {(uint64_t)st->st_size, (uint64_t)st->st_ino, (uint64_t)st->st_dev,
		st->st_mtim.tv_sec, st->st_mtim.tv_nsec};
	uint8_t one[32];
	crypto_generichash_state state;
	crypto_generichash_init(&state, NULL, 0, sizeof(one));
	crypto_generichash_update(&state, (const uint8_t *)name, strlen(name) + 1);
	crypto_generichash_update(&state, (const uint8_t *)&facts, sizeof(facts));
	crypto_generichash_final(&state, one, sizeof(one));
	for (int i = 0; i < 32; i++) {
		stamp[i] ^= one[i]; /* whatever the order of the directory */
	}
}

/* What changes when a model's files do: sizes, times and inodes of the file or of all files in the
 * folder. Reading the bytes of a large model for every job would take longer than short jobs do. */
static int stamp_of(const char *path, uint8_t ret[32])
{
	memset(ret, 0, 32);
	struct stat st;
	if (stat(path, &st) < 0) {
		return -errno;
	}
	if (!S_ISDIR(st.st_mode)) {
		stamp_add(ret, "", &st);
		return 0;
	}
	DIR *d = opendir(path);
	if (!d) {
		return -errno;
	}
	struct dirent *e;
	while ((e = readdir(d))) {
		if (fstatat(dirfd(d), e->d_name, &st, 0) == 0 && S_ISREG(st.st_mode)) {
			stamp_add(ret, e->d_name, &st);
		}
	}
	closedir(d);
	return 0;
}

/* ".../models--ORG--NAME/snapshots/REVISION" is how the Hugging Face cache keeps ORG/NAME. */
static char *public_name(const char *name, const char *path)
{
	static const char prefix[] = "/models--";
	const char *p = strstr(path, prefix);
	const char *end = p ? strchr(p + strlen(prefix), '/') : NULL;
	if (!p || !end || strncmp(end, "/snapshots/", 11) != 0) {
		return strdup(name);
	}
	p += strlen(prefix);
	char *s = strndup(p, (size_t)(end - p));
	char *sep = s ? strstr(s, "--") : NULL;
	if (sep) {
		*sep = '/';
		memmove(sep + 1, sep + 2, strlen(sep + 2) + 1);
	}
	return s;
}

static bool model_in_use(const struct model *model)
{
	for (const struct resident *r = model->residents; r; r = r->next) {
		if (r->pins > 0) {
			return true;
		}
	}
	return model->refs > 0;
}

/* Frees models whose files have changed, and the longest unused of too many. */
static void tidy(struct models *m)
{
	struct model **oldest = NULL;
	unsigned open = 0;
	bool freed = false;
	for (struct model **p = &m->list; *p;) {
		struct model *model = *p;
		if (model->stale && !model_in_use(model)) {
			*p = model->next;
			model_free(m, model);
			freed = true;
			continue;
		}
		open++;
		if (!model_in_use(model) && !model->residents &&
			(!oldest || model->used < (*oldest)->used)) {
			oldest = p;
		}
		p = &model->next;
	}
	if (open > OPEN_MODELS_MAX && oldest) {
		struct model *model = *oldest;
		*oldest = model->next;
		model_free(m, model);
	}
	if (freed) {
		publish(m);
	}
}

static int model_new(struct models *m, const char *name, const char *path, struct model **ret,
	struct errmsg *err)
{
	struct model *model = calloc(1, sizeof(*model));
	if (!model) {
		return -ENOMEM;
	}
	int r = -ENOMEM;
	model->name = strdup(name);
	model->path = strdup(path);
	if (model->name && model->path) {
		r = model_files_open(&model->files, path, err);
	}
	if (r == 0) {
		model->public_name = public_name(name, model_files_path(model->files));
		r = model->public_name ? stamp_of(model_files_path(model->files), model->stamp) : -ENOMEM;
	}
	if (r != 0) {
		model_free(m, model);
		return r;
	}
	model->next = m->list;
	m->list = model;
	*ret = model;
	return 0;
}

static struct model *find_open(struct models *m, const char *name, const char *path)
{
	for (struct model *model = m->list; model; model = model->next) {
		if (model->stale || strcmp(model->path, path) != 0 || strcmp(model->name, name) != 0) {
			continue;
		}
		uint8_t stamp[32];
		if (stamp_of(model_files_path(model->files), stamp) == 0 &&
			memcmp(stamp, model->stamp, sizeof(stamp)) == 0) {
			return model;
		}
		model->stale = true;
	}
	return NULL;
}

int models_open(struct models *m, const char *name, const char *path, const uint8_t *digest,
	struct model **ret, struct errmsg *err)
{
	struct model *model = find_open(m, name, path);
	tidy(m);
	if (!model) {
		int r = model_new(m, name, path, &model, err);
		if (r != 0) {
			return r > 0 ? errmsg_prefix(err, r, "model '%s'", name) : r;
		}
	}
	model->refs++;
	model->used = ++m->turn;
	uint8_t got[32];
	if (digest) {
		int r = model_digest(model, got, err);
		if (r == 0 && memcmp(got, digest, sizeof(got)) != 0) {
			r = errmsg_set(err, STATUS_INVALID,
				"model '%s': the files at %s have changed since it was added; add it again under "
				"another name", name, model_files_path(model->files));
		}
		if (r != 0) {
			models_close(m, model);
			return r;
		}
	}
	*ret = model;
	return 0;
}

void models_close(struct models *m, struct model *model)
{
	if (model) {
		model->refs--;
		tidy(m);
	}
}

const struct model_files *model_files_of(const struct model *model)
{
	return model->files;
}

const char *model_public_name(const struct model *model)
{
	return model->public_name;
}

int model_tokenizer(struct model *model, const struct tokenizer **ret, struct errmsg *err)
{
	if (!model->tokenizer) {
		int r = tokenizer_new(&model->tokenizer, model->files, err);
		if (r != 0) {
			return r > 0 ? errmsg_prefix(err, r, "model '%s'", model->name) : r;
		}
	}
	*ret = model->tokenizer;
	return 0;
}

int model_digest(struct model *model, uint8_t ret[32], struct errmsg *err)
{
	if (!model->has_digest) {
		int r = model_files_digest(model->files, model->digest, err);
		if (r != 0) {
			return r;
		}
		model->has_digest = true;
	}
	memcpy(ret, model->digest, 32);
	return 0;
}

int model_template(struct model *model, const char *name, const struct chat_template **ret,
	struct errmsg *err)
{
	for (struct named_template *t = model->templates; t; t = t->next) {
		if (name && t->name ? strcmp(t->name, name) == 0 : !name && !t->name) {
			*ret = t->template;
			return 0;
		}
	}
	struct named_template *t = calloc(1, sizeof(*t));
	if (!t || (name && !(t->name = strdup(name)))) {
		free(t);
		return -ENOMEM;
	}
	int r = chat_template_new(&t->template, model->files, name, err);
	if (r != 0) {
		free(t->name);
		free(t);
		return r > 0 && !name ? errmsg_prefix(err, r, "model '%s'", model->name) : r;
	}
	t->next = model->templates;
	model->templates = t;
	*ret = t->template;
	return 0;
}

/* ---- weights on the device ------------------------------------------------------------------- */

static bool evict_one(struct models *m, const struct resident *keep)
{
	struct model *of = NULL;
	struct resident *oldest = NULL;
	for (struct model *model = m->list; model; model = model->next) {
		for (struct resident *r = model->residents; r; r = r->next) {
			if (r->pins == 0 && r != keep && (!oldest || r->used < oldest->used)) {
				of = model;
				oldest = r;
			}
		}
	}
	if (!oldest) {
		return false;
	}
	unload(m, of, oldest);
	return true;
}

static int make_room(struct models *m, uint64_t need, const struct resident *keep,
	struct errmsg *err)
{
	while (m->memory_in_use + need > m->memory_total) {
		bool given = m->give && m->give(m->give_arg);
		if (!given && !evict_one(m, keep)) {
			return errmsg_set(err, STATUS_WONT_FIT,
				"needs %.1f MiB more memory, but %.1f of %.1f MiB are in use",
				(double)need / 1048576, (double)m->memory_in_use / 1048576,
				(double)m->memory_total / 1048576);
		}
	}
	return 0;
}

int models_take_memory(struct models *m, uint64_t bytes, struct errmsg *err)
{
	int r = make_room(m, bytes, NULL, err);
	if (r == 0) {
		models_use_memory(m, (int64_t)bytes);
	}
	return r;
}

void models_on_shortage(struct models *m, bool (*give)(void *arg), void *arg)
{
	m->give = give;
	m->give_arg = arg;
}

static struct resident *find_resident(struct model *model, enum dtype dtype, bool train)
{
	for (struct resident *r = model->residents; r; r = r->next) {
		if (r->dtype == dtype && (r->train || !train)) {
			return r;
		}
	}
	return NULL;
}

/* Weights for forward passes alone make way for those that can do both. */
static void drop_superseded(struct models *m, struct model *model, enum dtype dtype)
{
	for (struct resident *r = model->residents; r; r = r->next) {
		if (r->dtype == dtype && !r->train && r->pins == 0) {
			unload(m, model, r);
			return;
		}
	}
}

int models_acquire(struct models *m, struct model *model, struct backend *b, enum dtype dtype,
	bool train, uint64_t extra, struct base_model **ret, struct errmsg *err)
{
	struct resident *r = find_resident(model, dtype, train);
	if (r) {
		int room = make_room(m, extra, r, err);
		if (room != 0) {
			return room;
		}
	} else {
		drop_superseded(m, model, dtype);
		uint64_t bytes = base_model_bytes(model->files, b, dtype, train);
		int room = make_room(m, bytes + extra, NULL, err);
		if (room != 0) {
			return room;
		}
		r = calloc(1, sizeof(*r));
		if (!r) {
			return -ENOMEM;
		}
		int64_t start = clock_monotonic_ns();
		int loaded = base_model_load(&r->base, model->files, b, dtype, train, err);
		if (loaded != 0) {
			free(r);
			return loaded > 0 ? errmsg_prefix(err, loaded, "model '%s'", model->name) : loaded;
		}
		log_info("model '%s' loaded in %s: %.1f MiB in %.2f s", model->name, dtype_name(dtype),
			(double)bytes / 1048576, (double)(clock_monotonic_ns() - start) * 1e-9);
		r->dtype = dtype;
		r->train = train;
		r->bytes = bytes;
		r->next = model->residents;
		model->residents = r;
		m->memory_in_use += bytes;
	}
	r->pins++;
	r->used = ++m->turn;
	publish(m);
	*ret = r->base;
	return 0;
}

void models_release(struct models *m, struct base_model *base)
{
	for (struct model *model = base ? m->list : NULL; model; model = model->next) {
		for (struct resident *r = model->residents; r; r = r->next) {
			if (r->base == base) {
				r->pins--;
				tidy(m);
				return;
			}
		}
	}
}
