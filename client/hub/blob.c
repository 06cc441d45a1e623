/*
 * One blob, from the hub into the cache. It grows as blobs/<digest>.incomplete under the lock that
 * Hugging Face's tools take too, and gets its name when all of it is on disk and right; whatever
 * ends us in between, the next pull goes on from what is there. What is there is read and digested
 * again, never believed.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum { LOCK_POLL_MS = 250, READ_SIZE = 1 << 20 };

static int io_fault(struct errmsg *err, const char *path)
{
	if (errno == ENOSPC || errno == EDQUOT) {
		return errmsg_set(err, STATUS_DISK_FULL, "%s: %s; what came is kept, and the same command "
			"goes on from there once there is room", path, strerror(errno));
	}
	return errmsg_set(err, STATUS_FAILED, "%s: %s", path, strerror(errno));
}

/* ---- the model's folders ----------------------------------------------------------------- */

void place_deinit(struct place *p)
{
	free(p->root);
	free(p->locks);
	free(p->snapshot);
	*p = (struct place){0};
}

/* Makes a folder and those above it. */
static int make_folders(const char *path, struct errmsg *err)
{
	_cleanup_(freep) char *copy = strdup(path);
	if (!copy) {
		return -ENOMEM;
	}
	for (char *slash = strchr(copy + 1, '/');; slash = strchr(slash + 1, '/')) {
		if (slash) {
			*slash = '\0';
		}
		/* A folder above may exist and still not be ours to make anything in. */
		struct stat st;
		if (mkdir(copy, 0777) < 0 && (stat(copy, &st) < 0 || !S_ISDIR(st.st_mode))) {
			return errmsg_set(err, STATUS_FAILED, "%s: the folder cannot be made: %s", copy,
				strerror(errno));
		}
		if (!slash) {
			return 0;
		}
		*slash = '/';
	}
}

static int make_below(const char *root, const char *name, struct errmsg *err)
{
	char path[PATH_MAX];
	if ((size_t)snprintf(path, sizeof(path), "%s/%s", root, name) >= sizeof(path)) {
		return errmsg_set(err, STATUS_FAILED, "%s/%s: the path is too long", root, name);
	}
	return make_folders(path, err);
}

int place_open(struct place *ret, const struct hf_name *name, const char *commit,
	struct errmsg *err)
{
	_cleanup_(place_deinit) struct place p = {0};
	char cache[PATH_MAX];
	int r = hf_cache_root(cache, sizeof(cache), err);
	r = r ? r : make_folders(cache, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(freep) char *real = realpath(cache, NULL);
	if (!real) {
		return io_fault(err, cache);
	}
	if (asprintf(&p.root, "%s/%s", real, name->folder) < 0) {
		p.root = NULL;
		return -ENOMEM;
	}
	if (asprintf(&p.locks, "%s/.locks/%s", real, name->folder) < 0) {
		p.locks = NULL;
		return -ENOMEM;
	}
	if (asprintf(&p.snapshot, "%s/snapshots/%s", p.root, commit) < 0) {
		p.snapshot = NULL;
		return -ENOMEM;
	}
	r = make_folders(p.locks, err);
	r = r ? r : make_below(p.root, "blobs", err);
	r = r ? r : make_below(p.root, "refs", err);
	r = r ? r : make_folders(p.snapshot, err);
	if (r == 0) {
		*ret = p;
		p = (struct place){0};
	}
	return r;
}

static int blob_path(const struct place *p, const struct hub_file *f, const char *suffix, char *out,
	struct errmsg *err)
{
	return snprintf(out, PATH_MAX, "%s/blobs/%s%s", p->root, f->digest, suffix) < PATH_MAX ? 0
		: errmsg_set(err, STATUS_FAILED, "%s: the path is too long", p->root);
}

bool blob_there(const struct place *p, const struct hub_file *f, uint64_t *ret_have)
{
	char path[PATH_MAX];
	struct stat st;
	*ret_have = 0;
	if (blob_path(p, f, "", path, NULL) == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
		(uint64_t)st.st_size == f->size) {
		return true;
	}
	if (blob_path(p, f, ".incomplete", path, NULL) == 0 && lstat(path, &st) == 0 &&
		S_ISREG(st.st_mode) && (uint64_t)st.st_size <= f->size) {
		*ret_have = (uint64_t)st.st_size;
	}
	return false;
}

/* Makes a link or a file appear at `path` at once, whatever was there. */
static int move_over(const char *from, const char *path, struct errmsg *err)
{
	if (rename(from, path) < 0) {
		int r = io_fault(err, path);
		unlink(from);
		return r;
	}
	return 0;
}

static void temporary_name(char *out, const char *path)
{
	uint8_t random[4];
	char hex[2 * sizeof(random) + 1];
	random_bytes(random, sizeof(random));
	hex_encode(hex, random, sizeof(random));
	snprintf(out, PATH_MAX + 16, "%s.%s", path, hex);
}

int blob_link(const struct place *p, const struct hub_file *f, struct errmsg *err)
{
	char path[PATH_MAX], temporary[PATH_MAX + 16], target[96], now[96];
	if (snprintf(path, sizeof(path), "%s/%s", p->snapshot, f->name) >= (int)sizeof(path)) {
		return errmsg_set(err, STATUS_FAILED, "%s: the path is too long", p->snapshot);
	}
	snprintf(target, sizeof(target), "../../blobs/%s", f->digest);
	ssize_t n = readlink(path, now, sizeof(now));
	if (n == (ssize_t)strlen(target) && memcmp(now, target, (size_t)n) == 0) {
		return 0;
	}
	temporary_name(temporary, path);
	return symlink(target, temporary) < 0 ? io_fault(err, path) : move_over(temporary, path, err);
}

int place_write_ref(const struct place *p, const struct hf_name *name, const char *commit,
	struct errmsg *err)
{
	char path[PATH_MAX], temporary[PATH_MAX + 16];
	if (hf_commit_valid(name->revision)) {
		return 0;
	}
	if (snprintf(path, sizeof(path), "%s/refs/%s", p->root, name->revision) >= (int)sizeof(path)) {
		return errmsg_set(err, STATUS_FAILED, "%s: the path is too long", p->root);
	}
	char *slash = strrchr(path, '/');
	*slash = '\0';
	int r = make_folders(path, err);
	*slash = '/';
	if (r != 0) {
		return r;
	}
	temporary_name(temporary, path);
	_cleanup_(fclosep) FILE *f = fopen(temporary, "wxe");
	if (!f || fputs(commit, f) < 0 || fflush(f) != 0 || fsync(fileno(f)) < 0) {
		r = io_fault(err, path);
		unlink(temporary);
		return r;
	}
	return move_over(temporary, path, err);
}

/* ---- the lock ---------------------------------------------------------------------------- */

/* Whether `path` is still the file that `fd` is; some versions of filelock remove theirs. */
static bool still_at(int fd, const char *path)
{
	struct stat a, b;
	return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev &&
		a.st_ino == b.st_ino;
}

/* Waits for the blob's lock; *ret_fd holds it. */
static int take_lock(struct http *h, const struct blob_job *job, int *ret_fd, struct errmsg *err)
{
	char path[PATH_MAX];
	bool said = false;
	if (snprintf(path, sizeof(path), "%s/%s.lock", job->place->locks, job->file->digest) >=
		(int)sizeof(path)) {
		return errmsg_set(err, STATUS_FAILED, "%s: the path is too long", job->place->locks);
	}
	for (;;) {
		_cleanup_(closep) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
		if (fd < 0) {
			return io_fault(err, path);
		}
		if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
			if (still_at(fd, path)) {
				*ret_fd = steal_fd(&fd);
				return 0;
			}
			continue;
		}
		if (errno != EWOULDBLOCK && errno != EINTR) {
			return io_fault(err, path);
		}
		if (!said && h->note) {
			char text[320];
			snprintf(text, sizeof(text), "%.200s: another process is fetching it; waiting",
				job->file->name);
			h->note(h->note_data, text);
			said = true;
		}
		if (h->stop && atomic_load(h->stop)) {
			return errmsg_set(err, STATUS_CANCELLED, "%s: given up", job->file->name);
		}
		poll(NULL, 0, LOCK_POLL_MS);
	}
}

/* ---- the content ------------------------------------------------------------------------- */

struct sink {
	const struct blob_job *job;
	const char *path;
	int fd;
	EVP_MD_CTX *hash;
};

static void sink_deinit(struct sink *s)
{
	EVP_MD_CTX_free(s->hash);
	if (s->fd >= 0) {
		close(s->fd);
	}
}

/* Git names a blob by the SHA-1 of "blob <size>", a NUL, and the content. */
static int hash_begin(struct sink *s)
{
	const struct hub_file *f = s->job->file;
	if (EVP_DigestInit_ex(s->hash, f->lfs ? EVP_sha256() : EVP_sha1(), NULL) != 1) {
		return -ENOSYS;
	}
	if (!f->lfs) {
		char head[40];
		int n = snprintf(head, sizeof(head), "blob %" PRIu64, f->size);
		EVP_DigestUpdate(s->hash, head, (size_t)n + 1);
	}
	return 0;
}

static int sink_restart(struct http_get *g, struct errmsg *err)
{
	struct sink *s = g->data;
	if (ftruncate(s->fd, 0) < 0 || lseek(s->fd, 0, SEEK_SET) < 0) {
		return io_fault(err, s->path);
	}
	atomic_fetch_sub(s->job->count, g->at);
	g->at = 0;
	return hash_begin(s);
}

static int sink_begin(struct http_get *g, uint64_t from, struct errmsg *err)
{
	return from == g->at ? 0 : sink_restart(g, err);
}

static int sink_body(struct http_get *g, const void *data, size_t len, struct errmsg *err)
{
	struct sink *s = g->data;
	if (len > g->size - g->at) {
		return errmsg_set(err, STATUS_FAILED, "%s: the hub sends more than the %" PRIu64
			" bytes that it announced", g->what, g->size);
	}
	for (size_t done = 0; done < len;) {
		ssize_t n = write(s->fd, (const uint8_t *)data + done, len - done);
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return io_fault(err, s->path);
		}
		/* What is on disk is what was digested, even when the next write fails. */
		EVP_DigestUpdate(s->hash, (const uint8_t *)data + done, (size_t)n);
		done += (size_t)n;
		g->at += (uint64_t)n;
		atomic_fetch_add(s->job->count, (uint64_t)n);
	}
	return 0;
}

/* Takes over what an earlier pull left. */
static int sink_open(struct sink *s, struct http *h, struct http_get *g, struct errmsg *err)
{
	struct stat st;
	s->fd = open(s->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
	if (s->fd < 0 || fstat(s->fd, &st) < 0) {
		return io_fault(err, s->path);
	}
	if (!S_ISREG(st.st_mode)) {
		return errmsg_set(err, STATUS_FAILED, "%s: is no regular file; remove it", s->path);
	}
	s->hash = EVP_MD_CTX_new();
	_cleanup_(freep) uint8_t *chunk = malloc(READ_SIZE);
	if (!s->hash || !chunk) {
		return -ENOMEM;
	}
	int r = hash_begin(s);
	if (r != 0 || (uint64_t)st.st_size > g->size) {
		return r ? r : sink_restart(g, err);
	}
	while (g->at < (uint64_t)st.st_size) {
		ssize_t n = read(s->fd, chunk, READ_SIZE);
		if (n <= 0) {
			return n < 0 ? io_fault(err, s->path) : sink_restart(g, err);
		}
		EVP_DigestUpdate(s->hash, chunk, (size_t)n);
		g->at += (uint64_t)n;
		atomic_fetch_add(s->job->count, (uint64_t)n);
		if (h->stop && atomic_load(h->stop)) {
			return errmsg_set(err, STATUS_CANCELLED, "%s: given up", g->what);
		}
	}
	return 0;
}

static void sink_digest(struct sink *s, char *hex)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned n = 0;
	EVP_DigestFinal_ex(s->hash, digest, &n);
	hex_encode(hex, digest, n);
}

/* Brings all of it and holds it against its digest: 0 when it is right. What was begun by an
 * earlier pull may have been damaged since, so that gets one try from the start. */
static int fill(struct http *h, struct sink *s, struct http_get *g, struct errmsg *err)
{
	const struct hub_file *f = s->job->file;
	char hex[2 * EVP_MAX_MD_SIZE + 1];
	for (bool resumed = g->at > 0;; resumed = false) {
		int r = g->at < g->size ? http_get(h, g, err) : 0;
		if (r != 0) {
			return r;
		}
		sink_digest(s, hex);
		if (strcmp(hex, f->digest) == 0) {
			return 0;
		}
		r = sink_restart(g, err);
		if (r != 0) {
			return r;
		}
		if (!resumed) {
			unlink(s->path);
			return errmsg_set(err, STATUS_FAILED, "%s: what came is damaged: its digest is %s, the "
				"hub's is %s; it was deleted", f->name, hex, f->digest);
		}
		if (h->note) {
			char text[320];
			snprintf(text, sizeof(text), "%.200s: what an earlier pull left is damaged; it was "
				"deleted and is fetched anew", f->name);
			h->note(h->note_data, text);
		}
	}
}

static int finish(struct sink *s, const struct blob_job *job, struct errmsg *err)
{
	char path[PATH_MAX];
	int r = blob_path(job->place, job->file, "", path, err);
	if (r != 0) {
		return r;
	}
	if (fsync(s->fd) < 0 || rename(s->path, path) < 0) {
		return io_fault(err, path);
	}
	*strrchr(path, '/') = '\0';
	_cleanup_(closep) int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir >= 0 && fsync(dir) == 0 ? 0 : io_fault(err, path);
}

int blob_fetch(struct http *h, const struct blob_job *job, struct http_get *ret_answer,
	struct errmsg *err)
{
	char path[PATH_MAX];
	_cleanup_(closep) int lock = -1;
	int r = blob_path(job->place, job->file, ".incomplete", path, err);
	r = r ? r : take_lock(h, job, &lock, err);
	if (r != 0) {
		return r;
	}
	uint64_t have;
	if (blob_there(job->place, job->file, &have)) {
		atomic_fetch_add(job->count, job->file->size);
		return 0;
	}
	_cleanup_(sink_deinit) struct sink sink = {.job = job, .path = path, .fd = -1};
	struct http_get g = {
		.url = (char *)(uintptr_t)job->url,
		.what = job->file->name,
		.begin = sink_begin,
		.body = sink_body,
		.data = &sink,
		.size = job->file->size,
	};
	r = sink_open(&sink, h, &g, err);
	r = r ? r : fill(h, &sink, &g, err);
	r = r ? r : finish(&sink, job, err);
	g.data = NULL;
	*ret_answer = g;
	return r;
}
