/* Uploads: content named by its digest, appended chunk by chunk. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/core-internal.h"
#include "util/util.h"

static int answer_begin(struct core *c, uint64_t session, const uint8_t id[16], uint64_t offset)
{
	struct packed reply;
	int r = reply_upload_begin(&reply, id, offset, TRANSFER_WINDOW);
	return r ? r : answer_packed(c, session, &reply);
}

/* ---- uploads that go on -------------------------------------------------------------------- */

/* What is here of it is digested again before the upload goes on, in slices: the answer comes when
 * that is done, and nobody else waits for it. */
static int prepare(struct core *c, const struct request *req)
{
	struct preparation *p = calloc(1, sizeof(*p));
	if (!p) {
		return -ENOMEM;
	}
	memcpy(p->digest, req->blob.digest, sizeof(p->digest));
	memcpy(p->id, req->id, sizeof(p->id));
	p->session = req->session;
	TAILQ_INSERT_TAIL(&c->preparations, p, entry);
	return 0;
}

static int answer_prepared(struct core *c, const struct preparation *p)
{
	struct store_txn *t;
	struct store_blob blob;
	int r = core_read(c, &t);
	r = r ? r : store_blob_get(t, p->digest, &blob);
	if (r == STATUS_NOT_FOUND) {
		return answer_status(c, p->session, p->id, STATUS_UNAVAILABLE,
			"the upload was dropped meanwhile; begin it again");
	}
	return r ? r : answer_begin(c, p->session, p->id, blob.received);
}

int uploads_prepare(struct core *c)
{
	struct preparation *p = TAILQ_FIRST(&c->preparations);
	bool more = false;
	if (!p) {
		return 0;
	}
	int r = store_blob_prepare(c->store, p->digest, PREPARE_SLICE, &more);
	if (r < 0 || (r == 0 && more)) {
		return r;
	}
	r = answer_prepared(c, p);
	TAILQ_REMOVE(&c->preparations, p, entry);
	free(p);
	return r;
}

int upload_begin(struct core *c, const struct request *req)
{
	struct store_blob blob = {.received = 0};
	struct store_txn *t;
	struct errmsg err;
	int r = core_flush(c); /* so that what is said to be here is here */
	r = r ? r : core_read(c, &t);
	if (r < 0) {
		return r;
	}
	r = store_blob_get(t, req->blob.digest, &blob);
	if (r < 0) {
		return r;
	}
	uint64_t have = blob.received < req->blob.size ? blob.received : req->blob.size;
	r = store_room(c->store, req->blob.size - have, &err);
	if (r > 0) {
		return answer_status(c, req->session, req->id, r, "%s", err.text);
	}
	r = r ? r : core_write(c, &t);
	r = r ? r
		  : store_fatal(
				store_blob_begin(t, req->blob.digest, req->blob.size, (uint64_t)c->wall, &blob));
	if (r > 0) {
		return answer_status(c, req->session, req->id, r,
			"blob: no content of %llu bytes has this digest", (unsigned long long)req->blob.size);
	}
	if (r == 0 && blob.received > 0 && blob.received < blob.size) {
		return prepare(c, req);
	}
	return r ? r : answer_begin(c, req->session, req->id, blob.received);
}

int bulk_add(struct core *c, const uint8_t digest[32], uint64_t offset, const void *data,
	size_t len, struct bulk **ret)
{
	if (c->bulk_bytes + len > BULK_MAX) {
		int r = core_flush(c);
		if (r < 0) {
			return r;
		}
	}
	struct bulk *b = calloc(1, sizeof(*b));
	uint8_t *copy = malloc(len ? len : 1);
	if (!b || !copy) {
		free(b);
		free(copy);
		return -ENOMEM;
	}
	memcpy(copy, data, len);
	memcpy(b->digest, digest, sizeof(b->digest));
	b->offset = offset;
	b->data = copy;
	b->len = len;
	c->bulk_bytes += len;
	TAILQ_INSERT_TAIL(&c->bulks, b, entry);
	*ret = b;
	return 0;
}

int upload_chunk(struct core *c, const struct request *req, const void *raw, size_t raw_len)
{
	if (c->stopping) {
		return answer_status(c, req->session, req->id, STATUS_UNAVAILABLE,
			"the daemon is shutting down; go on later from what is durable");
	}
	if (raw_len == 0 || raw_len > CHUNK_SIZE) {
		return answer_status(c, req->session, req->id, STATUS_INVALID,
			"a chunk has 1 to %d bytes, not %zu", CHUNK_SIZE, raw_len);
	}
	struct bulk *b;
	int r = bulk_add(c, req->digest, req->offset, raw, raw_len, &b);
	if (r == 0) {
		b->session = req->session;
		memcpy(b->id, req->id, sizeof(b->id));
	}
	return r;
}

int upload_landed(struct core *c, const struct bulk *b)
{
	if (b->code == STATUS_CONFLICT && b->offset + b->len > b->received) {
		return answer_status(c, b->session, b->id, STATUS_CONFLICT,
			"the next chunk is due at byte %llu, this one is at %llu",
			(unsigned long long)b->received, (unsigned long long)b->offset);
	}
	if (b->code == STATUS_NOT_FOUND) {
		return answer_status(
			c, b->session, b->id, STATUS_NOT_FOUND, "no upload of this content has begun");
	}
	if (b->code != STATUS_OK && b->code != STATUS_CONFLICT) {
		return answer_status(c, b->session, b->id, b->code, "%s", b->why.text);
	}
	struct packed reply;
	int r = reply_upload_chunk(&reply, b->id, b->received);
	return r ? r : answer_packed(c, b->session, &reply);
}
