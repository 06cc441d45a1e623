#include "tests/support/hub.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/buf.h"
#include "util/cleanup.h"
#include "util/util.h"

struct conn {
	struct hub *hub;
	int fd;
	SSL *ssl;
};

/* ---- bytes ------------------------------------------------------------------------------- */

static bool put(struct conn *c, const void *data, size_t len)
{
	const uint8_t *p = data;
	while (len > 0) {
		ssize_t n = c->ssl ? SSL_write(c->ssl, p, (int)len)
			: send(c->fd, p, len, MSG_NOSIGNAL);
		if (n <= 0) {
			return false;
		}
		p += n;
		len -= (size_t)n;
	}
	return true;
}

/* One byte; false at the end, or when the hub is to stop. */
static bool get(struct conn *c, char *ret)
{
	if (!c->ssl || SSL_pending(c->ssl) == 0) {
		struct pollfd p[2] = {{c->fd, POLLIN, 0}, {c->hub->stop[0], POLLIN, 0}};
		if (poll(p, 2, -1) < 0 || p[1].revents) {
			return false;
		}
	}
	return (c->ssl ? SSL_read(c->ssl, ret, 1) : recv(c->fd, ret, 1, 0)) == 1;
}

static bool read_head(struct conn *c, char *out, size_t cap)
{
	size_t n = 0;
	while (n + 1 < cap && get(c, out + n)) {
		n++;
		out[n] = '\0';
		if (n >= 4 && memcmp(out + n - 4, "\r\n\r\n", 4) == 0) {
			return true;
		}
	}
	return false;
}

static void take_header(const char *head, const char *name, char *out, size_t cap)
{
	const char *p = strcasestr(head, name);
	out[0] = '\0';
	if (p) {
		p += strlen(name);
		snprintf(out, cap, "%.*s", (int)strcspn(p, "\r"), p);
	}
}

/* ---- answers ----------------------------------------------------------------------------- */

static bool answer(struct conn *c, int status, const char *headers, const char *body)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	buf_appendf(&b, "HTTP/1.1 %d X\r\nContent-Length: %zu\r\n%s\r\n%s", status, strlen(body),
		headers, body);
	return put(c, b.data, b.len);
}

static bool decrement(struct hub *h, unsigned *n)
{
	pthread_mutex_lock(&h->lock);
	bool any = *n > 0;
	*n -= any;
	pthread_mutex_unlock(&h->lock);
	return any;
}

static void count_sent(struct hub *h, size_t n)
{
	pthread_mutex_lock(&h->lock);
	h->sent += n;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
}

/* Sends bytes `from`… of an object, and has the faults of contents. False ends the connection. */
static bool send_content(struct conn *c, const struct hub_object *o, const struct hub_request *req)
{
	struct hub *h = c->hub;
	uint64_t from = 0;
	bool ranged = !h->no_ranges && strncmp(req->range, "bytes=", 6) == 0;
	if (ranged) {
		from = strtoull(req->range + 6, NULL, 10);
		if (from >= o->size) {
			return answer(c, 416, "", "");
		}
	}
	_cleanup_(buf_deinit) struct buf head = {0};
	buf_appendf(&head, "HTTP/1.1 %d X\r\n", ranged ? 206 : 200);
	if (ranged) {
		buf_appendf(&head, "Content-Range: bytes %" PRIu64 "-%zu/%zu\r\n", from, o->size - 1,
			o->size);
	}
	buf_appendf(&head, "Content-Length: %zu\r\nETag: \"%s\"\r\n\r\n",
		o->size - (size_t)from + (h->too_long ? 8 : 0), o->digest);
	if (!put(c, head.data, head.len)) {
		return false;
	}
	bool flip = decrement(h, &h->flips), cut = decrement(h, &h->cuts) || h->silent;
	uint64_t end = cut && h->cut_at < o->size ? h->cut_at : o->size;
	for (uint64_t at = from; at < end;) {
		uint8_t chunk[16384];
		size_t n = (size_t)min_i64(sizeof(chunk), (int64_t)(end - at));
		memcpy(chunk, (const uint8_t *)o->data + at, n);
		chunk[0] ^= flip && at == from ? 1 : 0;
		if (!put(c, chunk, n)) {
			return false;
		}
		at += n;
		count_sent(h, n);
	}
	if (h->silent && end < o->size) {
		char byte;
		while (get(c, &byte)) { /* until the other side, or the test, has enough */
		}
		return false;
	}
	return end == o->size && (!h->too_long || put(c, "too long", 8));
}

static bool send_listing(struct conn *c)
{
	const struct hub *h = c->hub;
	_cleanup_(buf_deinit) struct buf b = {0};
	if (h->listing) {
		return answer(c, 200, "Content-Type: application/json\r\n", h->listing);
	}
	buf_appendf(&b, "{\"id\":\"%s\",\"sha\":\"%s\",\"siblings\":[", h->repo, h->commit);
	for (size_t i = 0; i < h->n_objects; i++) {
		const struct hub_object *o = &h->objects[i];
		buf_appendf(&b, "%s{\"rfilename\":\"%s\",\"size\":%zu,", i > 0 ? "," : "", o->name, o->size);
		if (o->lfs) {
			buf_appendf(&b, "\"blobId\":\"%040d\",\"lfs\":{\"sha256\":\"%s\",\"size\":%zu,"
				"\"pointerSize\":135}}", 7, o->digest, o->size);
		} else {
			buf_appendf(&b, "\"blobId\":\"%s\"}", o->digest);
		}
	}
	buf_appendf(&b, "]}");
	return answer(c, 200, "Content-Type: application/json\r\n", buf_cstr(&b));
}

static const struct hub_object *find(const struct hub *h, const char *name, bool by_digest)
{
	for (size_t i = 0; i < h->n_objects; i++) {
		if (strcmp(by_digest ? h->objects[i].digest : h->objects[i].name, name) == 0) {
			return &h->objects[i];
		}
	}
	return NULL;
}

static bool resolve(struct conn *c, const char *name, const struct hub_request *req)
{
	struct hub *h = c->hub;
	char headers[512];
	const struct hub_object *o = find(h, name, false);
	if (!o) {
		return answer(c, 404, "X-Error-Code: EntryNotFound\r\n", "Entry not found");
	}
	if (h->gated) {
		return answer(c, 403, "X-Error-Code: GatedRepo\r\n", "no");
	}
	if (!o->lfs) { /* small files move to another path of the same host */
		snprintf(headers, sizeof(headers), "Location: /api/resolve-cache/%s\r\n", name);
		return answer(c, 307, headers, "moved");
	}
	if (!h->redirect && !h->store) {
		return send_content(c, o, req);
	}
	if (h->redirect) {
		snprintf(headers, sizeof(headers), "Location: %s\r\n", h->redirect);
	} else {
		snprintf(headers, sizeof(headers), "Location: %s/blob/%s?Signature=sig-secret\r\n"
			"X-Linked-Etag: \"%s\"\r\nX-Linked-Size: %zu\r\n", h->store->url, o->digest, o->digest,
			o->size);
	}
	return answer(c, 302, headers, "found");
}

static bool about_model(struct conn *c, const char *rest)
{
	const struct hub *h = c->hub;
	size_t n = strlen(h->repo);
	if (strncmp(rest, h->repo, n) != 0 || rest[n] != '/') {
		return answer(c, 404, "X-Error-Code: RepoNotFound\r\n", "{\"error\":\"no\"}");
	}
	rest += n + 1;
	char main[64], fixed[80];
	snprintf(main, sizeof(main), "revision/main?blobs=true");
	snprintf(fixed, sizeof(fixed), "revision/%s?blobs=true", h->commit);
	if (strcmp(rest, main) == 0 || strcmp(rest, fixed) == 0 ||
		strcmp(rest, "revision/refs%2Fpr%2F1?blobs=true") == 0) {
		return send_listing(c);
	}
	if (strcmp(rest, "refs") == 0) {
		return answer(c, 200, "", "{\"branches\":[{\"name\":\"main\"},{\"name\":\"fp32\"}],"
			"\"tags\":[{\"name\":\"v1.0\"}]}");
	}
	return answer(c, 404, "X-Error-Code: RevisionNotFound\r\n", "{\"error\":\"no\"}");
}

static bool handle(struct conn *c, const struct hub_request *req)
{
	struct hub *h = c->hub;
	const char *t = req->target;
	char need[160], prefix[160];
	if (decrement(h, &h->fails)) {
		return answer(c, h->fail_status, h->fail_header ? h->fail_header : "", "busy");
	}
	snprintf(need, sizeof(need), "Bearer %s", h->token ? h->token : "");
	if (h->token && strcmp(req->authorization, need) != 0) {
		return answer(c, 401, "", "{\"error\":\"no\"}");
	}
	snprintf(prefix, sizeof(prefix), "/%s/resolve/%s/", h->repo, h->commit);
	const struct hub_object *o;
	if (strncmp(t, "/api/models?author=", 19) == 0) {
		return answer(c, 200, "", "[{\"id\":\"org/tiny\"},{\"id\":\"org/huge\"}]");
	}
	if (strncmp(t, "/api/models/", 12) == 0) {
		return about_model(c, t + 12);
	}
	if (strncmp(t, prefix, strlen(prefix)) == 0) {
		return resolve(c, t + strlen(prefix), req);
	}
	if (strncmp(t, "/api/resolve-cache/", 19) == 0 && (o = find(h, t + 19, false))) {
		return send_content(c, o, req);
	}
	if (strncmp(t, "/blob/", 6) == 0) {
		char digest[65];
		snprintf(digest, sizeof(digest), "%.*s", (int)strcspn(t + 6, "?"), t + 6);
		if ((o = find(h, digest, true))) {
			return send_content(c, o, req);
		}
	}
	return answer(c, 404, "", "nothing here");
}

/* ---- connections ------------------------------------------------------------------------- */

static void *serve(void *data)
{
	struct conn *c = data;
	struct hub *h = c->hub;
	char head[8192];
	bool good = !c->ssl || SSL_accept(c->ssl) == 1;
	while (good && read_head(c, head, sizeof(head))) {
		struct hub_request req = {0};
		const char *space = strchr(head, ' ');
		if (strncmp(head, "GET ", 4) != 0 || !space) {
			break;
		}
		snprintf(req.target, sizeof(req.target), "%.*s", (int)strcspn(space + 1, " \r"), space + 1);
		take_header(head, "\r\nAuthorization: ", req.authorization, sizeof(req.authorization));
		take_header(head, "\r\nRange: ", req.range, sizeof(req.range));
		pthread_mutex_lock(&h->lock);
		if (h->n_log < HUB_LOG_MAX) {
			h->log[h->n_log++] = req;
		}
		pthread_mutex_unlock(&h->lock);
		good = handle(c, &req);
	}
	SSL_free(c->ssl);
	close(c->fd);
	free(c);
	pthread_mutex_lock(&h->lock);
	h->open--;
	pthread_cond_broadcast(&h->changed);
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

static void *listen_on(void *data)
{
	struct hub *h = data;
	for (;;) {
		struct pollfd p[2] = {{h->listener, POLLIN, 0}, {h->stop[0], POLLIN, 0}};
		if (poll(p, 2, -1) < 0 || p[1].revents) {
			return NULL;
		}
		int fd = accept(h->listener, NULL, NULL);
		struct conn *c = fd >= 0 ? calloc(1, sizeof(*c)) : NULL;
		if (!c) {
			continue;
		}
		*c = (struct conn){h, fd, h->tls ? SSL_new(h->ssl_ctx) : NULL};
		if (c->ssl) {
			SSL_set_fd(c->ssl, fd);
		}
		pthread_t thread;
		pthread_mutex_lock(&h->lock);
		h->open++;
		pthread_mutex_unlock(&h->lock);
		if (pthread_create(&thread, NULL, serve, c) != 0) {
			abort();
		}
		pthread_detach(thread);
	}
}

/* A key and a certificate for 127.0.0.1 that nobody vouches for. */
static void make_certificate(struct hub *h, const char *path)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = X509_new();
	assert_true(key && x);
	X509_set_version(x, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
	X509_gmtime_adj(X509_getm_notBefore(x), -86400);
	X509_gmtime_adj(X509_getm_notAfter(x), 86400);
	X509_NAME *name = X509_get_subject_name(x);
	X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"hub", -1, -1, 0);
	X509_set_issuer_name(x, name);
	X509_set_pubkey(x, key);
	X509_EXTENSION *san = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
	X509_add_ext(x, san, -1);
	X509_EXTENSION_free(san);
	assert_true(X509_sign(x, key, EVP_sha256()) > 0);
	FILE *f = fopen(path, "we");
	assert_non_null(f);
	assert_int_equal(PEM_write_X509(f, x), 1);
	fclose(f);
	h->ssl_ctx = SSL_CTX_new(TLS_server_method());
	assert_non_null(h->ssl_ctx);
	assert_int_equal(SSL_CTX_use_certificate(h->ssl_ctx, x), 1);
	assert_int_equal(SSL_CTX_use_PrivateKey(h->ssl_ctx, key), 1);
	EVP_PKEY_free(key);
	X509_free(x);
}

void hub_start(struct hub *h, const char *repo, const char *certificate)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	*h = (struct hub){.tls = certificate != NULL};
	snprintf(h->repo, sizeof(h->repo), "%s", repo);
	memcpy(h->commit, "0123456789abcdef0123456789abcdef01234567", 41);
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->changed, NULL);
	if (certificate) {
		make_certificate(h, certificate);
	}
	assert_int_equal(pipe(h->stop), 0);
	h->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(h->listener, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(h->listener, 64), 0);
	assert_int_equal(getsockname(h->listener, (struct sockaddr *)&a, &len), 0);
	h->port = ntohs(a.sin_port);
	snprintf(h->url, sizeof(h->url), "%s://127.0.0.1:%d", certificate ? "https" : "http", h->port);
	assert_int_equal(pthread_create(&h->thread, NULL, listen_on, h), 0);
}

void hub_stop(struct hub *h)
{
	assert_int_equal(write(h->stop[1], "x", 1), 1);
	pthread_join(h->thread, NULL);
	pthread_mutex_lock(&h->lock);
	while (h->open > 0) {
		pthread_cond_wait(&h->changed, &h->lock);
	}
	pthread_mutex_unlock(&h->lock);
	close(h->listener);
	close(h->stop[0]);
	close(h->stop[1]);
	SSL_CTX_free(h->ssl_ctx);
	pthread_cond_destroy(&h->changed);
	pthread_mutex_destroy(&h->lock);
}

void hub_add(struct hub *h, const char *name, const void *data, size_t size, bool lfs)
{
	assert_true(h->n_objects < HUB_OBJECTS_MAX);
	struct hub_object *o = &h->objects[h->n_objects++];
	*o = (struct hub_object){.data = data, .size = size, .lfs = lfs};
	snprintf(o->name, sizeof(o->name), "%s", name);
	uint8_t digest[EVP_MAX_MD_SIZE];
	unsigned n;
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	EVP_DigestInit_ex(ctx, lfs ? EVP_sha256() : EVP_sha1(), NULL);
	if (!lfs) {
		char head[40];
		EVP_DigestUpdate(ctx, head, (size_t)snprintf(head, sizeof(head), "blob %zu", size) + 1);
	}
	EVP_DigestUpdate(ctx, data, size);
	EVP_DigestFinal_ex(ctx, digest, &n);
	EVP_MD_CTX_free(ctx);
	hex_encode(o->digest, digest, n);
}

size_t hub_count(struct hub *h, const char *part)
{
	size_t n = 0;
	pthread_mutex_lock(&h->lock);
	for (size_t i = 0; i < h->n_log; i++) {
		n += strstr(h->log[i].target, part) != NULL;
	}
	pthread_mutex_unlock(&h->lock);
	return n;
}

struct hub_request hub_last(struct hub *h, const char *part)
{
	struct hub_request found = {0};
	pthread_mutex_lock(&h->lock);
	for (size_t i = 0; i < h->n_log; i++) {
		if (strstr(h->log[i].target, part)) {
			found = h->log[i];
		}
	}
	pthread_mutex_unlock(&h->lock);
	if (!found.target[0]) {
		fail_msg("nobody asked for %s", part);
	}
	return found;
}

void hub_forget(struct hub *h)
{
	pthread_mutex_lock(&h->lock);
	h->n_log = 0;
	h->sent = 0;
	pthread_mutex_unlock(&h->lock);
}

void hub_wait_sent(struct hub *h, uint64_t n)
{
	pthread_mutex_lock(&h->lock);
	while (h->sent < n) {
		pthread_cond_wait(&h->changed, &h->lock);
	}
	pthread_mutex_unlock(&h->lock);
}
