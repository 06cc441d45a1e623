#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/transfer.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	TRIES = 6,      /* without progress */
	RETRY_MS = 250,
};

/* ---- sources ----------------------------------------------------------------------------- */

void source_deinit(struct source *s)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->files[i].fd >= 0) {
			close(s->files[i].fd);
		}
		free(s->files[i].name);
		free(s->files[i].path);
	}
	free(s->files);
	free(s->pb_files);
	free(s->pb_list);
	*s = (struct source){0};
}

/* Standard input in a file without a name, so that it can be read twice. */
static int spool_stdin(int *ret, struct errmsg *err)
{
	_cleanup_(fclosep) FILE *spool = tmpfile();
	if (!spool) {
		return errmsg_set(err, STATUS_FAILED, "no temporary file for standard input: %s",
			strerror(errno));
	}
	_cleanup_(freep) uint8_t *chunk = malloc(CHUNK_SIZE);
	size_t n;
	if (!chunk) {
		return -ENOMEM;
	}
	while ((n = fread(chunk, 1, CHUNK_SIZE, stdin)) > 0) {
		if (fwrite(chunk, 1, n, spool) != n) {
			break;
		}
	}
	if (ferror(stdin) || ferror(spool) || fflush(spool) != 0) {
		return errmsg_set(err, STATUS_FAILED, "cannot keep standard input in a temporary file: %s",
			strerror(errno));
	}
	*ret = fcntl(fileno(spool), F_DUPFD_CLOEXEC, 0);
	return *ret < 0 ? -errno : 0;
}

static int open_file(struct source_file *f, const char *path, struct errmsg *err)
{
	bool standard = strcmp(path, "-") == 0;
	f->path = strdup(standard ? "standard input" : path);
	if (!f->path) {
		return -ENOMEM;
	}
	int r = 0;
	if (standard) {
		r = spool_stdin(&f->fd, err);
	} else {
		f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a fifo must not make us wait */
	}
	struct stat st;
	if (r != 0) {
		return r;
	}
	if (f->fd < 0 || fstat(f->fd, &st) < 0) {
		return errmsg_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_FAILED, "%s: %s",
			f->path, strerror(errno));
	}
	if (!S_ISREG(st.st_mode)) {
		return errmsg_set(err, STATUS_INVALID,
			"%s is no regular file; what comes through a pipe can be given as '-'", f->path);
	}
	if (st.st_size == 0) {
		return errmsg_set(err, STATUS_INVALID, "%s is empty", f->path);
	}
	f->size = (uint64_t)st.st_size;
	return 0;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static bool name_taken(const struct source *s, size_t i)
{
	for (size_t k = 0; k < s->n; k++) {
		if (k != i && strcmp(base_name(s->files[k].path), base_name(s->files[i].path)) == 0) {
			return true;
		}
	}
	return false;
}

static int name_file(const struct source *s, size_t i, const char *given, struct errmsg *err)
{
	struct source_file *f = &s->files[i];
	if (strcmp(given, "-") == 0) {
		f->name = strdup("stdin");
		return f->name ? 0 : -ENOMEM;
	}
	bool whole = name_taken(s, i);
	const char *from = whole ? f->path + strspn(f->path, "./") : base_name(f->path);
	f->name = strdup(from);
	if (!f->name) {
		return -ENOMEM;
	}
	for (char *c = f->name; *c; c++) {
		*c = *c == '/' ? '_' : *c;
	}
	if (!name_valid(f->name, strlen(f->name))) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: its name cannot be sent; names have at most 128 bytes of UTF-8 and do not begin "
			"with '.' or '-'", f->path);
	}
	return 0;
}

static int describe(struct source *s)
{
	s->pb_files = calloc_array(s->n, sizeof(*s->pb_files));
	s->pb_list = calloc_array(s->n, sizeof(*s->pb_list));
	if (!s->pb_files || !s->pb_list) {
		return -ENOMEM;
	}
	peftd__v1__blob__init(&s->blob);
	for (size_t i = 0; i < s->n; i++) {
		peftd__v1__file__init(&s->pb_files[i]);
		s->pb_files[i].name = proto_bytes(s->files[i].name);
		s->pb_files[i].size = s->files[i].size;
		s->pb_list[i] = &s->pb_files[i];
	}
	s->blob.digest = (ProtobufCBinaryData){DIGEST_SIZE, s->digest};
	s->blob.size = s->size;
	s->blob.n_files = s->n;
	s->blob.files = s->pb_list;
	return 0;
}

/* Reads `len` bytes at `offset` of the whole, across files. */
static int read_at(const struct source *s, uint64_t offset, uint8_t *to, size_t len,
	struct errmsg *err)
{
	for (size_t i = 0; i < s->n && len > 0; i++) {
		const struct source_file *f = &s->files[i];
		if (offset >= f->size) {
			offset -= f->size;
			continue;
		}
		size_t part = (size_t)min_i64((int64_t)len, (int64_t)(f->size - offset));
		while (part > 0) {
			ssize_t n = pread(f->fd, to, part, (off_t)offset);
			if (n <= 0 && errno == EINTR && n < 0) {
				continue;
			}
			if (n <= 0) {
				return errmsg_set(err, STATUS_FAILED, "%s: %s", f->path,
					n < 0 ? strerror(errno) : "has become shorter while it was read");
			}
			to += n;
			len -= (size_t)n;
			part -= (size_t)n;
			offset += (uint64_t)n;
		}
		offset = 0;
	}
	return 0;
}

static int digest(struct source *s, struct progress *p, struct errmsg *err)
{
	if (sodium_init() < 0) {
		return -ENOSYS;
	}
	crypto_generichash_state state;
	crypto_generichash_init(&state, NULL, 0, DIGEST_SIZE);
	_cleanup_(freep) uint8_t *chunk = malloc(CHUNK_SIZE);
	if (!chunk) {
		return -ENOMEM;
	}
	progress_begin(p, "reading", 0, s->size);
	for (uint64_t at = 0; at < s->size;) {
		size_t n = (size_t)min_i64(CHUNK_SIZE, (int64_t)(s->size - at));
		int r = read_at(s, at, chunk, n, err);
		if (r != 0) {
			progress_end(p);
			return r;
		}
		crypto_generichash_update(&state, chunk, n);
		at += n;
		progress_update(p, at);
	}
	progress_end(p);
	crypto_generichash_final(&state, s->digest, DIGEST_SIZE);
	return 0;
}

static int open_all(struct source *s, const char *const *paths, size_t n, struct errmsg *err)
{
	s->files = calloc_array(n, sizeof(*s->files));
	if (!s->files) {
		return -ENOMEM;
	}
	for (size_t i = 0; i < n; i++) {
		s->files[i].fd = -1;
		s->n++;
		int r = open_file(&s->files[i], paths[i], err);
		if (r != 0) {
			return r;
		}
		if (__builtin_add_overflow(s->size, s->files[i].size, &s->size)) {
			return -EOVERFLOW;
		}
	}
	for (size_t i = 0; i < n; i++) {
		int r = name_file(s, i, paths[i], err);
		if (r != 0) {
			return r;
		}
	}
	return 0;
}

int source_open(struct source *ret, const char *const *paths, size_t n, struct progress *p,
	struct errmsg *err)
{
	struct source s = {0};
	int r = open_all(&s, paths, n, err);
	if (r == 0) {
		r = digest(&s, p, err);
	}
	if (r != 0) {
		source_deinit(&s);
		return r;
	}
	*ret = s;
	r = describe(ret); /* after the move: the blob points into *ret */
	if (r < 0) {
		source_deinit(ret);
	}
	return r;
}

/* ---- upload ------------------------------------------------------------------------------ */

/* Chunks under way, oldest first. */
struct window {
	struct call *calls[TRANSFER_WINDOW];
	size_t n, max;
};

static void window_clear(struct client *c, struct window *w)
{
	for (size_t i = 0; i < w->n; i++) {
		client_end(c, w->calls[i]);
	}
	w->n = 0;
}

static int upload_begin(struct client *c, const struct source *s, uint64_t *ret_offset,
	struct window *w, struct errmsg *err)
{
	Peftd__V1__UploadBeginRequest begin = PEFTD__V1__UPLOAD_BEGIN_REQUEST__INIT;
	begin.blob = (Peftd__V1__Blob *)&s->blob;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_BEGIN;
	req.upload_begin = &begin;
	Peftd__V1__Reply *reply;
	int r = client_call(c, &req, CLIENT_QUICK_MS, &reply, err);
	if (r != 0) {
		return r;
	}
	const Peftd__V1__UploadBeginReply *b =
		reply->what_case == PEFTD__V1__REPLY__WHAT_UPLOAD_BEGIN ? reply->upload_begin : NULL;
	if (!b || !b->has_offset || b->offset > s->size) {
		r = errmsg_set(err, STATUS_INTERNAL, "the daemon's answer to an upload makes no sense");
	} else {
		*ret_offset = b->offset;
		bool usable = b->has_window && b->window > 0 && b->window < TRANSFER_WINDOW;
		w->max = usable ? b->window : TRANSFER_WINDOW;
	}
	proto_free(reply);
	return r;
}

static int send_chunk(struct client *c, const struct source *s, uint64_t offset, uint8_t *chunk,
	struct window *w, size_t *ret_len, struct errmsg *err)
{
	size_t len = (size_t)min_i64(CHUNK_SIZE, (int64_t)(s->size - offset));
	int r = read_at(s, offset, chunk, len, err);
	if (r != 0) {
		return r;
	}
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__UploadChunkRequest up = PEFTD__V1__UPLOAD_CHUNK_REQUEST__INIT;
	up.digest = s->blob.digest;
	up.offset = offset;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_UPLOAD_CHUNK;
	req.upload_chunk = &up;
	r = client_start(c, &req, chunk, len, 0, &w->calls[w->n], err);
	if (r == 0) {
		w->n++;
		*ret_len = len;
	}
	return r;
}

static int take_answer(struct client *c, struct window *w, uint64_t *durable, struct errmsg *err)
{
	struct answer a = {0};
	int r = client_next(c, w->calls[0], -1, &a, err);
	if (r != 0) {
		return r;
	}
	if (a.reply->what_case == PEFTD__V1__REPLY__WHAT_UPLOAD_CHUNK &&
		a.reply->upload_chunk->has_offset && a.reply->upload_chunk->offset > *durable) {
		*durable = a.reply->upload_chunk->offset;
	}
	answer_deinit(&a);
	client_end(c, w->calls[0]);
	w->n--;
	memmove(w->calls, w->calls + 1, w->n * sizeof(w->calls[0]));
	return 0;
}

/* From where the daemon is to the end, as long as the connection lasts. */
static int upload_once(struct client *c, const struct source *s, struct progress *p,
	uint8_t *chunk, uint64_t *durable, struct errmsg *err)
{
	struct window w = {0};
	uint64_t next = 0;
	int r = upload_begin(c, s, &next, &w, err);
	if (r != 0) {
		return r;
	}
	*durable = next;
	progress_begin(p, "uploading", next, s->size);
	while (r == 0 && (next < s->size || w.n > 0)) {
		size_t len;
		if (next < s->size && w.n < w.max) {
			r = send_chunk(c, s, next, chunk, &w, &len, err);
			next += r == 0 ? len : 0;
		} else {
			r = take_answer(c, &w, durable, err);
			progress_update(p, *durable);
		}
	}
	progress_end(p);
	window_clear(c, &w);
	return r;
}

int transfer_upload(struct client *c, const struct source *s, struct progress *p,
	struct errmsg *err)
{
	_cleanup_(freep) uint8_t *chunk = malloc(CHUNK_SIZE);
	if (!chunk) {
		return -ENOMEM;
	}
	uint64_t durable = 0, best = 0;
	for (int tries = 0;;) {
		int r = upload_once(c, s, p, chunk, &durable, err);
		/* CONFLICT: the daemon is elsewhere in this content than we thought, as when two upload the
		 * same. It says where when asked again. */
		bool again = r == CLIENT_LOST || r == STATUS_UNAVAILABLE || r == STATUS_CONFLICT;
		tries = durable > best ? 0 : tries + 1;
		best = durable > best ? durable : best;
		if (!again || tries >= TRIES) {
			return r == CLIENT_LOST ? errmsg_set(err, STATUS_UNAVAILABLE,
				"the connection to the daemon breaks again and again; repeat the command to go on "
				"where it was") : r;
		}
		client_drop(c);
		client_pause(RETRY_MS);
	}
}
