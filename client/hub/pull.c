/*
 * A pull as a whole. The listing names a commit and the files' digests; everything after that is
 * fetched from that commit and held against them, so that a branch that moves meanwhile changes
 * nothing. A few threads fetch; what they have to say is told by the caller's.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "client/format.h"
#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	AT_ONCE = 4, /* files */
	LISTING_MAX = 64 << 20,
	INDEX_MAX = 16 << 20,
	TELL_MS = 100,
};

/* Left free on the disk: folders, links and locks need room, too. */
#define SPARE ((uint64_t)1 << 20)

struct pull {
	const struct hub_config *config;
	const struct hf_name *name;
	const struct hub_watch *watch;
	struct listing listing;
	struct place place;
	struct hub_pulled result;
};

static void pull_deinit(struct pull *p)
{
	listing_deinit(&p->listing);
	place_deinit(&p->place);
	hub_pulled_deinit(&p->result);
}

void hub_pulled_deinit(struct hub_pulled *p)
{
	for (size_t i = 0; i < p->n_files; i++) {
		free(p->files[i].name);
	}
	free(p->files);
	free(p->path);
	*p = (struct hub_pulled){0};
}

/* ---- the threads ------------------------------------------------------------------------- */

/* Something to tell: a file that is complete, or words. */
struct news {
	const struct hub_file *file;
	char *text;
};

struct crew {
	const struct pull *pull;
	const struct hub_file *const *files;
	char *const *urls;
	size_t n;
	_Atomic uint64_t count;
	atomic_bool stop;
	/* Under the lock: */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	size_t next, running;
	struct news *news; /* room for every file, and for words */
	size_t n_news, cap_news;
	int fault; /* the first one */
	const struct hub_file *fault_file;
	struct http_get answer;
	struct errmsg err;
};

static void add_news(struct crew *c, const struct hub_file *file, const char *text)
{
	pthread_mutex_lock(&c->lock);
	if (c->n_news == c->cap_news) {
		size_t cap = c->cap_news * 2 + 8;
		struct news *grown = realloc_array(c->news, cap, sizeof(*grown));
		c->news = grown ? grown : c->news;
		c->cap_news = grown ? cap : c->cap_news;
	}
	char *copy = text ? strdup(text) : NULL;
	if (c->n_news < c->cap_news && (file || copy)) { /* or it remains untold */
		c->news[c->n_news++] = (struct news){file, copy};
	} else {
		free(copy);
	}
	pthread_cond_signal(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

static void take_note(void *data, const char *text)
{
	add_news(data, NULL, text);
}

static void fail(struct crew *c, int fault, const struct hub_file *f, const struct http_get *answer,
	const struct errmsg *err)
{
	pthread_mutex_lock(&c->lock);
	if (c->fault == 0) {
		c->fault = fault;
		c->fault_file = f;
		c->answer = *answer;
		c->err = *err;
	}
	atomic_store(&c->stop, true);
	pthread_mutex_unlock(&c->lock);
}

static void fetch_one(struct crew *c, struct http *h, size_t i)
{
	struct http_get answer = {0};
	struct errmsg err = {0};
	const struct blob_job job = {&c->pull->place, c->files[i], c->urls[i], &c->count};
	int r = blob_fetch(h, &job, &answer, &err);
	r = r ? r : blob_link(&c->pull->place, c->files[i], &err);
	if (r == 0) {
		add_news(c, c->files[i], NULL);
	} else {
		fail(c, r, c->files[i], &answer, &err);
	}
}

static void *work(void *data)
{
	struct crew *c = data;
	struct http h;
	int r = http_init(&h, c->pull->config);
	h.stop = &c->stop;
	h.note = take_note;
	h.note_data = c;
	if (r < 0) {
		fail(c, r, NULL, &(struct http_get){0}, &(struct errmsg){0});
	}
	while (!atomic_load(&c->stop)) {
		pthread_mutex_lock(&c->lock);
		size_t i = c->next < c->n ? c->next++ : c->n;
		pthread_mutex_unlock(&c->lock);
		if (i == c->n) {
			break;
		}
		fetch_one(c, &h, i);
	}
	http_deinit(&h);
	pthread_mutex_lock(&c->lock);
	c->running--;
	pthread_cond_signal(&c->changed);
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* Tells what there is to tell, without the lock held. */
static void tell(struct crew *c, uint64_t total)
{
	const struct hub_watch *w = c->pull->watch;
	for (size_t told = 0;; told++) {
		pthread_mutex_lock(&c->lock);
		bool any = told < c->n_news;
		struct news news = any ? c->news[told] : (struct news){0};
		c->n_news = any ? c->n_news : 0;
		pthread_mutex_unlock(&c->lock);
		if (!any) {
			break;
		}
		if (news.file && w->file) {
			w->file(w->data, news.file);
		}
		if (news.text && w->note) {
			w->note(w->data, news.text);
		}
		free(news.text);
	}
	if (w->progress) {
		w->progress(w->data, atomic_load(&c->count), total);
	}
}

static void wait_for(struct crew *c, uint64_t total)
{
	for (bool running = true; running;) {
		struct timespec until;
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += TELL_MS * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000L;
		until.tv_nsec %= 1000000000L;
		pthread_mutex_lock(&c->lock);
		if (c->running > 0 && c->n_news == 0) {
			pthread_cond_timedwait(&c->changed, &c->lock, &until);
		}
		running = c->running > 0;
		pthread_mutex_unlock(&c->lock);
		tell(c, total);
	}
}

static int crew_run(struct crew *c, uint64_t total)
{
	pthread_t threads[AT_ONCE];
	pthread_condattr_t monotonic;
	size_t n = 0;
	int r = 0;
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	c->running = (size_t)min_i64(AT_ONCE, (int64_t)c->n);
	for (size_t want = c->running; n < want && r == 0; n += r == 0) {
		r = -pthread_create(&threads[n], NULL, work, c);
	}
	if (r != 0) { /* those that there are go on; without any there is nothing to wait for */
		pthread_mutex_lock(&c->lock);
		c->running -= (size_t)min_i64(AT_ONCE, (int64_t)c->n) - n;
		pthread_mutex_unlock(&c->lock);
	}
	if (n > 0) {
		wait_for(c, total);
	}
	for (size_t i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
	}
	tell(c, total);
	pthread_cond_destroy(&c->changed);
	pthread_mutex_destroy(&c->lock);
	return n > 0 ? c->fault : r;
}

/* ---- files ------------------------------------------------------------------------------- */

static void free_urls(char **urls, size_t n)
{
	for (size_t i = 0; urls && i < n; i++) {
		free(urls[i]);
	}
	free(urls);
}

static char *file_url(const struct pull *p, const struct hub_file *f)
{
	char *url = NULL, *name = curl_easy_escape(NULL, f->name, 0);
	if (name && asprintf(&url, "%s/%s/resolve/%s/%s", p->config->endpoint, p->name->repo,
			p->listing.commit, name) < 0) {
		url = NULL;
	}
	curl_free(name);
	return url;
}

static int check_space(const struct pull *p, uint64_t need, struct errmsg *err)
{
	struct statvfs s;
	if (statvfs(p->place.root, &s) < 0) {
		return errmsg_set(err, STATUS_FAILED, "%s: %s", p->place.root, strerror(errno));
	}
	uint64_t room = (uint64_t)s.f_bavail * s.f_frsize;
	if (need == 0 || (need <= UINT64_MAX - SPARE && need + SPARE <= room)) {
		return 0;
	}
	char a[FORMAT_SIZE], b[FORMAT_SIZE];
	return errmsg_set(err, STATUS_DISK_FULL, "%s needs %s more, and its disk has %s free; make room, "
		"or set HF_HUB_CACHE to a folder on another disk", p->place.root, format_bytes(a, need),
		format_bytes(b, room));
}

/* Notes a file of the result. */
static int add_result(struct hub_pulled *result, const struct hub_file *f, bool was_there)
{
	struct hub_file *grown = realloc_array(result->files, result->n_files + 1, sizeof(*grown));
	if (!grown) {
		return -ENOMEM;
	}
	result->files = grown;
	grown[result->n_files] = *f;
	grown[result->n_files].was_there = was_there;
	grown[result->n_files].name = strdup(f->name);
	if (!grown[result->n_files].name) {
		return -ENOMEM;
	}
	result->n_files++;
	return 0;
}

/* Links what is there already, and lists what is not. */
static int sort_out(struct pull *p, const struct selection *s, struct crew *c,
	const struct hub_file **missing, char **urls, uint64_t *ret_total, struct errmsg *err)
{
	uint64_t total = 0, have_sum = 0;
	for (size_t i = 0; i < s->n; i++) {
		uint64_t have;
		bool there = blob_there(&p->place, s->files[i], &have);
		int r = add_result(&p->result, s->files[i], there);
		if (r == 0 && there) {
			r = blob_link(&p->place, s->files[i], err);
		}
		if (r != 0) {
			return r;
		}
		if (!there) {
			missing[c->n] = s->files[i];
			urls[c->n] = file_url(p, s->files[i]);
			if (!urls[c->n++]) {
				return -ENOMEM;
			}
			total += s->files[i]->size;
			have_sum += have;
		}
	}
	*ret_total = total;
	p->result.fetched += total - have_sum;
	return check_space(p, total - have_sum, err);
}

static int fetch_files(struct pull *p, const struct selection *s, struct errmsg *err)
{
	struct crew c = {.pull = p};
	uint64_t total = 0;
	_cleanup_(freep) const struct hub_file **missing = calloc_array(s->n + 1, sizeof(*missing));
	char **urls = calloc_array(s->n + 1, sizeof(*urls));
	int r = missing && urls ? sort_out(p, s, &c, missing, urls, &total, err) : -ENOMEM;
	c.files = missing;
	c.urls = urls;
	if (r == 0 && c.n > 0) {
		r = crew_run(&c, total);
		if (r == HTTP_REFUSED) {
			r = hub_refused(p->config, p->name, c.fault_file->name, &c.answer, err);
		} else if (r != 0 && err) {
			*err = c.err;
		}
	}
	free(c.news);
	free_urls(urls, s->n);
	return r;
}

/* ---- the steps --------------------------------------------------------------------------- */

static int get_listing(struct pull *p, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf text = {0}, url = {0};
	struct http_get answer = {0};
	struct http h;
	char *revision = curl_easy_escape(NULL, p->name->revision, 0);
	int r = revision ? buf_appendf(&url, "%s/api/models/%s/revision/%s?blobs=true",
		p->config->endpoint, p->name->repo, revision) : -ENOMEM;
	curl_free(revision);
	if (r < 0 || !buf_cstr(&url) || http_init(&h, p->config) < 0) {
		return -ENOMEM;
	}
	h.note = p->watch->note;
	h.note_data = p->watch->data;
	r = http_get_text(&h, (char *)url.data, p->name->repo, LISTING_MAX, &text, &answer, err);
	http_deinit(&h);
	if (r == HTTP_REFUSED) {
		return hub_refused(p->config, p->name, NULL, &answer, err);
	}
	return r ? r : listing_parse(&p->listing, (const char *)text.data, text.len, p->name->repo, err);
}

static int read_index(const struct pull *p, const struct hub_file *index, struct buf *ret,
	struct errmsg *err)
{
	char path[PATH_MAX];
	if (index->size > INDEX_MAX) {
		return errmsg_set(err, STATUS_INVALID, "%s: has %llu bytes; at most %d are read",
			index->name, (unsigned long long)index->size, INDEX_MAX);
	}
	snprintf(path, sizeof(path), "%s/blobs/%s", p->place.root, index->digest);
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (buf_reserve(ret, (size_t)index->size + 1) < 0) {
		return -ENOMEM;
	}
	while (fd >= 0 && ret->len < index->size) {
		ssize_t n = read(fd, ret->data + ret->len, (size_t)index->size - ret->len);
		if (n <= 0) {
			break;
		}
		ret->len += (size_t)n;
	}
	return fd >= 0 && ret->len == index->size ? 0
		: errmsg_set(err, STATUS_FAILED, "%s: cannot be read", path);
}

/* The shards that the index, which has come, names. */
static int fetch_shards(struct pull *p, const struct hub_file *index, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf text = {0};
	_cleanup_(selection_deinit) struct selection shards = {0};
	int r = read_index(p, index, &text, err);
	r = r ? r : listing_select_shards(&p->listing, (const char *)text.data, text.len, index->name,
		&shards, err);
	return r ? r : fetch_files(p, &shards, err);
}

static int set_path(struct pull *p, const char *include)
{
	struct hub_pulled *result = &p->result;
	memcpy(result->commit, p->listing.commit, sizeof(result->commit));
	if (include && result->n_files == 1) {
		if (asprintf(&result->path, "%s/%s", p->place.snapshot, result->files[0].name) < 0) {
			result->path = NULL;
		}
	} else {
		result->path = strdup(p->place.snapshot);
	}
	return result->path ? 0 : -ENOMEM;
}

static int run(struct pull *p, const char *include, struct errmsg *err)
{
	_cleanup_(selection_deinit) struct selection s = {0};
	int r = get_listing(p, err);
	r = r ? r : listing_select(&p->listing, include, p->name->repo, &s, err);
	r = r ? r : place_open(&p->place, p->name, p->listing.commit, err);
	r = r ? r : fetch_files(p, &s, err);
	if (r == 0 && s.sharded) {
		r = fetch_shards(p, s.files[0], err); /* the index is chosen first */
	}
	r = r ? r : place_write_ref(&p->place, p->name, p->listing.commit, err);
	return r ? r : set_path(p, include);
}

int hub_pull(const struct hub_config *config, const struct hf_name *name, const char *include,
	const struct hub_watch *watch, struct hub_pulled *ret, struct errmsg *err)
{
	_cleanup_(pull_deinit) struct pull p = {.config = config, .name = name, .watch = watch};
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
		return errmsg_set(err, STATUS_FAILED, "libcurl cannot be started");
	}
	int r = run(&p, include, err);
	curl_global_cleanup();
	if (r == 0) {
		*ret = p.result;
		p.result = (struct hub_pulled){0};
	}
	return r;
}
