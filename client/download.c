#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/transfer.h"
#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	TRIES = 6, /* without progress */
	RETRY_MS = 250,
	FILES_MAX = 64,
};

static int io_fault(struct errmsg *err, const char *what)
{
	bool full = errno == ENOSPC || errno == EDQUOT;
	return errmsg_set(err, full ? STATUS_DISK_FULL : STATUS_FAILED, "%s: %s%s", what,
		strerror(errno), full ? "; what came is kept: make room, and the same command goes on with it"
		: "");
}

/* ---- what is to come --------------------------------------------------------------------- */

static bool same_name(const ProtobufCBinaryData *a, const ProtobufCBinaryData *b)
{
	return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

/* The daemon's names become files here, so they are held to what names are. */
static int check_blob(const Peftd__V1__Blob *b, struct errmsg *err)
{
	uint64_t sum = 0;
	if (b->digest.len != DIGEST_SIZE || b->n_files == 0 || b->n_files > FILES_MAX) {
		return errmsg_set(err, STATUS_INVALID,
			"the daemon's description of the adapter is malformed");
	}
	for (size_t i = 0; i < b->n_files; i++) {
		const Peftd__V1__File *f = b->files[i];
		bool bad = !name_valid(f->name.data, f->name.len) || memchr(f->name.data, 0, f->name.len);
		for (size_t k = 0; k < i && !bad; k++) {
			bad = same_name(&f->name, &b->files[k]->name);
		}
		if (bad) {
			return errmsg_set(err, STATUS_INVALID,
				"the daemon names a file '%.*s', which cannot be a file's name here; nothing is "
				"written", (int)min_i64(f->name.len, 128), (const char *)f->name.data);
		}
		if (__builtin_add_overflow(sum, f->size, &sum)) {
			return -EOVERFLOW;
		}
	}
	return sum == b->size ? 0 : errmsg_set(err, STATUS_INVALID,
		"the daemon's sizes of the adapter's files do not add up");
}

/* The directory that `path` is to be in; the caller's. */
static char *parent_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? strndup(path, slash > path ? (size_t)(slash - path) : 1) : strdup(".");
}

static char *file_name(const Peftd__V1__File *f)
{
	return strndup((const char *)f->name.data, f->name.len);
}

/* ---- the folder being filled ------------------------------------------------------------- */

struct sink {
	const Peftd__V1__Blob *blob;
	char *path; /* of the folder */
	int dir;
	int fd;      /* of file `at`, or -1 */
	size_t at;
	uint64_t in_file, done;
	crypto_generichash_state hash;
};

static void sink_deinit(struct sink *s)
{
	if (s->fd >= 0) {
		close(s->fd);
	}
	if (s->dir >= 0) {
		close(s->dir);
	}
	free(s->path);
}

static int hash_file(int fd, uint64_t size, crypto_generichash_state *hash)
{
	_cleanup_(freep) uint8_t *chunk = malloc(CHUNK_SIZE);
	if (!chunk) {
		return -ENOMEM;
	}
	while (size > 0) {
		ssize_t n = read(fd, chunk, (size_t)min_i64(CHUNK_SIZE, (int64_t)size));
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			return n < 0 ? -errno : -EIO;
		}
		crypto_generichash_update(hash, chunk, (size_t)n);
		size -= (uint64_t)n;
	}
	return 0;
}

/* Opens the file that comes next and takes over what it holds already. */
static int sink_open_file(struct sink *s, bool fresh, struct errmsg *err)
{
	const Peftd__V1__File *f = s->blob->files[s->at];
	_cleanup_(freep) char *name = file_name(f);
	if (!name) {
		return -ENOMEM;
	}
	s->fd = openat(s->dir, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | (fresh ? O_TRUNC : 0),
		0666);
	struct stat st;
	if (s->fd < 0 || fstat(s->fd, &st) < 0) {
		return io_fault(err, name);
	}
	uint64_t have = (uint64_t)st.st_size <= f->size ? (uint64_t)st.st_size : 0;
	if (have != (uint64_t)st.st_size && ftruncate(s->fd, 0) < 0) {
		return io_fault(err, name);
	}
	int r = hash_file(s->fd, have, &s->hash); /* leaves the file's position behind it */
	if (r < 0) {
		errno = -r;
		return io_fault(err, name);
	}
	s->in_file = have;
	s->done += have;
	return 0;
}

static int sink_close_file(struct sink *s, struct errmsg *err)
{
	int r = fsync(s->fd) < 0 || close(s->fd) < 0 ? io_fault(err, s->path) : 0;
	s->fd = -1;
	s->at++;
	return r;
}

/* Opens files, closing complete ones, until one wants bytes or all are complete. */
static int sink_advance(struct sink *s, bool fresh, struct errmsg *err)
{
	while (s->at < s->blob->n_files) {
		int r = s->fd < 0 ? sink_open_file(s, fresh, err) : 0;
		if (r != 0) {
			return r;
		}
		if (s->in_file < s->blob->files[s->at]->size) {
			return 0;
		}
		r = sink_close_file(s, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int sink_write(struct sink *s, const uint8_t *data, size_t len, struct errmsg *err)
{
	if (len > s->blob->size - s->done) {
		return errmsg_set(err, STATUS_INTERNAL, "the daemon sends more than it announced");
	}
	crypto_generichash_update(&s->hash, data, len);
	while (len > 0) {
		uint64_t room = s->blob->files[s->at]->size - s->in_file;
		ssize_t n = write(s->fd, data, (size_t)min_i64((int64_t)len, (int64_t)room));
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n < 0) {
			return io_fault(err, s->path);
		}
		data += n;
		len -= (size_t)n;
		s->in_file += (uint64_t)n;
		s->done += (uint64_t)n;
		/* From here on files are new, or were cut behind the one that was incomplete. */
		int r = sink_advance(s, true, err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

static int no_parent(const char *dir, struct errmsg *err)
{
	_cleanup_(freep) char *parent = parent_of(dir);
	return parent ? errmsg_set(err, STATUS_FAILED, "%s: there is no such directory; make it first, "
		"or give -o another place", parent) : -ENOMEM;
}

int transfer_check_place(const char *dir, struct errmsg *err)
{
	_cleanup_(freep) char *parent = parent_of(dir);
	if (!parent) {
		return -ENOMEM;
	}
	return access(parent, F_OK) < 0 && errno == ENOENT ? no_parent(dir, err) : 0;
}

static int sink_open(struct sink *s, const struct download *d, bool fresh, struct errmsg *err)
{
	char digest[2 * 8 + 1];
	hex_encode(digest, d->blob->digest.data, 8);
	_cleanup_(buf_deinit) struct buf path = {0};
	if (buf_appendf(&path, "%s.part-%s", d->dir, digest) < 0) {
		return -ENOMEM;
	}
	s->path = buf_steal(&path, NULL);
	if (!s->path) {
		return -ENOMEM;
	}
	s->blob = d->blob;
	if (mkdir(s->path, 0777) < 0 && errno != EEXIST) {
		return errno == ENOENT ? no_parent(d->dir, err) : io_fault(err, s->path);
	}
	s->dir = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (s->dir < 0) {
		return io_fault(err, s->path);
	}
	if (flock(s->dir, LOCK_EX | LOCK_NB) < 0) {
		return errmsg_set(err, STATUS_CONFLICT, "%s: another fetch is filling it", s->path);
	}
	crypto_generichash_init(&s->hash, NULL, 0, DIGEST_SIZE);
	return sink_advance(s, fresh, err);
}

/* ---- bringing it ------------------------------------------------------------------------- */

static int open_stream(struct client *c, const struct download *d, uint64_t offset,
	struct call **ret, struct errmsg *err)
{
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__ReadRequest read = PEFTD__V1__READ_REQUEST__INIT;
	read.job = d->job;
	read.step = d->step;
	read.offset = offset;
	read.has_credit = true;
	read.credit = TRANSFER_WINDOW;
	read.has_merge = read.merge = d->merged;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_READ;
	req.read = &read;
	return client_start(c, &req, NULL, 0, 0, ret, err);
}

static int take_chunk(struct client *c, struct call *call, struct sink *s, struct errmsg *err)
{
	struct answer a = {0};
	int r = client_next(c, call, -1, &a, err);
	if (r != 0) {
		return r;
	}
	const Peftd__V1__Reply *reply = a.reply;
	if (reply->what_case == PEFTD__V1__REPLY__WHAT_READ && reply->read->has_offset &&
		a.raw_len > 0 && reply->read->offset != s->done) {
		r = errmsg_set(err, STATUS_INTERNAL, "the daemon sends byte %llu where %llu was to come",
			(unsigned long long)reply->read->offset, (unsigned long long)s->done);
	}
	if (r == 0) {
		r = sink_write(s, a.raw, a.raw_len, err);
	}
	answer_deinit(&a);
	return r;
}

static int read_stream(struct client *c, const struct download *d, struct sink *s,
	struct progress *p, struct errmsg *err)
{
	struct call *call;
	int r = open_stream(c, d, s->done, &call, err);
	if (r != 0) {
		return r;
	}
	unsigned taken = 0;
	while (r == 0 && s->done < d->blob->size) {
		if (call_finished(call)) {
			r = errmsg_set(err, STATUS_INTERNAL, "the daemon ends at byte %llu of %llu",
				(unsigned long long)s->done, (unsigned long long)d->blob->size);
			break;
		}
		r = take_chunk(c, call, s, err);
		progress_update(p, s->done);
		if (r == 0 && ++taken % (TRANSFER_WINDOW / 2) == 0) {
			client_credit(c, call, TRANSFER_WINDOW / 2);
		}
	}
	client_end(c, call);
	return r;
}

static int bring(struct client *c, const struct download *d, struct sink *s, struct progress *p,
	struct errmsg *err)
{
	int r = 0;
	progress_begin(p, "fetching", s->done, d->blob->size);
	for (int tries = 0; s->done < d->blob->size;) {
		uint64_t before = s->done;
		r = read_stream(c, d, s, p, err);
		tries = s->done > before ? 0 : tries + 1;
		if (r == 0 || (r != CLIENT_LOST && r != STATUS_UNAVAILABLE) || tries >= TRIES) {
			break;
		}
		client_drop(c);
		client_pause(RETRY_MS);
	}
	progress_end(p);
	return r == CLIENT_LOST ? errmsg_set(err, STATUS_UNAVAILABLE,
		"the connection to the daemon breaks again and again; repeat the command to go on where it "
		"was") : r;
}

/* ---- into place -------------------------------------------------------------------------- */

static bool dir_is_empty(const char *path)
{
	DIR *dir = opendir(path);
	bool empty = dir != NULL;
	struct dirent *e;
	while (empty && (e = readdir(dir))) {
		empty = strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0;
	}
	if (dir) {
		closedir(dir);
	}
	return empty;
}

/* Whether `path` holds exactly the blob's files with its content (and perhaps others). */
static bool holds_blob(const char *path, const Peftd__V1__Blob *b)
{
	_cleanup_(closep) int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	crypto_generichash_state hash;
	uint8_t digest[DIGEST_SIZE];
	crypto_generichash_init(&hash, NULL, 0, DIGEST_SIZE);
	for (size_t i = 0; i < b->n_files && dir >= 0; i++) {
		_cleanup_(freep) char *name = file_name(b->files[i]);
		_cleanup_(closep) int fd = name ? openat(dir, name, O_RDONLY | O_CLOEXEC) : -1;
		struct stat st;
		if (fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != b->files[i]->size ||
			hash_file(fd, b->files[i]->size, &hash) < 0) {
			return false;
		}
	}
	crypto_generichash_final(&hash, digest, sizeof(digest));
	return dir >= 0 && memcmp(digest, b->digest.data, DIGEST_SIZE) == 0;
}

/* Looks at what is at the destination. 0: free; ARRIVED; a fault. */
enum { ARRIVED = 1 << 16 };

static int check_place(const struct download *d, struct errmsg *err)
{
	struct stat st;
	if (lstat(d->dir, &st) < 0) {
		return errno == ENOENT ? 0 : io_fault(err, d->dir);
	}
	if (S_ISDIR(st.st_mode) && dir_is_empty(d->dir)) {
		return 0;
	}
	if (holds_blob(d->dir, d->blob)) {
		return ARRIVED;
	}
	return errmsg_set(err, STATUS_CONFLICT, "%s exists and holds something else; choose another "
		"place with -o DIR, or remove it first", d->dir);
}

static void fsync_parent(const char *path)
{
	_cleanup_(freep) char *parent = strdup(path);
	char *slash = parent ? strrchr(parent, '/') : NULL;
	if (slash) {
		slash[slash == parent] = '\0';
	}
	_cleanup_(closep) int fd = open(slash ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0) {
		fsync(fd);
	}
}

static int move_into_place(const struct sink *s, const struct download *d, struct errmsg *err)
{
	if (fsync(s->dir) < 0) {
		return io_fault(err, s->path);
	}
	/* Takes the place of an empty folder, of nothing else. */
	if (rename(s->path, d->dir) < 0) {
		return errmsg_set(err, STATUS_CONFLICT, "%s: %s; the adapter is complete in %s", d->dir,
			strerror(errno), s->path);
	}
	fsync_parent(d->dir);
	return 0;
}

/* One attempt; *ret_wrong when everything came but the digest is another. */
static int fill(struct client *c, struct download *d, bool fresh, struct progress *p,
	bool *ret_wrong, struct errmsg *err)
{
	_cleanup_(sink_deinit) struct sink s = {.dir = -1, .fd = -1};
	uint8_t digest[DIGEST_SIZE];
	*ret_wrong = false;
	int r = sink_open(&s, d, fresh, err);
	if (r == 0) {
		r = bring(c, d, &s, p, err);
	}
	if (r != 0) {
		return r;
	}
	crypto_generichash_final(&s.hash, digest, sizeof(digest));
	if (memcmp(digest, d->blob->digest.data, DIGEST_SIZE) != 0) {
		*ret_wrong = true;
		return errmsg_set(err, STATUS_FAILED,
			"%s: the digest of what came is not the daemon's; remove it and fetch again", s.path);
	}
	return move_into_place(&s, d, err);
}

int transfer_download(struct client *c, struct download *d, struct progress *p, struct errmsg *err)
{
	if (sodium_init() < 0) {
		return -ENOSYS;
	}
	int r = check_blob(d->blob, err);
	if (r == 0) {
		r = check_place(d, err);
	}
	if (r != 0) {
		d->was_there = r == ARRIVED;
		return r == ARRIVED ? 0 : r;
	}
	bool wrong;
	r = fill(c, d, false, p, &wrong, err);
	if (r != 0 && wrong) {
		/* What an earlier fetch left may have been damaged; once from the start tells. */
		r = fill(c, d, true, p, &wrong, err);
	}
	return r;
}
