/*
 * HTTP with rules that libcurl leaves to its users. Redirects are followed here and not there, so
 * that who sees the token and where a transfer may lead are decided in plain sight, for each hop
 * anew. Errors name hosts, never whole addresses: those of content stores carry signatures.
 */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/hub/hub-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	AGAIN = HTTP_REFUSED << 1, /* of one attempt: the next may go better */
	HOPS_MAX = 10,
	CONNECT_S = 20,
	WAIT_MAX_MS = 30000,     /* between tries, by ourselves */
	ASKED_WAIT_MAX_S = 300,  /* and when the server asks for it */
	ERROR_BODY_MAX = 65536,  /* read to keep the connection, then left */
};

/* ---- addresses --------------------------------------------------------------------------- */

struct origin {
	char *scheme, *host, *port;
	bool user; /* has a name or password in it */
};

static void origin_deinit(struct origin *o)
{
	curl_free(o->scheme);
	curl_free(o->host);
	curl_free(o->port);
}

/* False when `url` is none. */
static bool origin_of(struct origin *ret, const char *url)
{
	CURLU *u = curl_url();
	char *part = NULL;
	bool ok = u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
		curl_url_get(u, CURLUPART_SCHEME, &ret->scheme, 0) == CURLUE_OK &&
		curl_url_get(u, CURLUPART_HOST, &ret->host, 0) == CURLUE_OK &&
		curl_url_get(u, CURLUPART_PORT, &ret->port, CURLU_DEFAULT_PORT) == CURLUE_OK;
	if (ok) {
		ret->user = curl_url_get(u, CURLUPART_USER, &part, 0) == CURLUE_OK;
		curl_free(part);
		part = NULL;
		ret->user = curl_url_get(u, CURLUPART_PASSWORD, &part, 0) == CURLUE_OK || ret->user;
		curl_free(part);
	}
	curl_url_cleanup(u);
	return ok;
}

static bool same_origin(const struct origin *a, const struct origin *b)
{
	return strcasecmp(a->scheme, b->scheme) == 0 && strcasecmp(a->host, b->host) == 0 &&
		strcmp(a->port, b->port) == 0;
}

int http_check_endpoint(const char *url, struct errmsg *err)
{
	_cleanup_(origin_deinit) struct origin o = {0};
	if (!origin_of(&o, url) ||
		(strcasecmp(o.scheme, "https") != 0 && strcasecmp(o.scheme, "http") != 0)) {
		return errmsg_set(err, STATUS_INVALID, "HF_ENDPOINT must be an address like "
			HUB_DEFAULT_ENDPOINT);
	}
	return !o.user ? 0 : errmsg_set(err, STATUS_INVALID, "HF_ENDPOINT: must hold no user name and "
		"no password; a token belongs into HF_TOKEN");
}

/* ---- one hop ----------------------------------------------------------------------------- */

struct hop {
	struct http_get *get;
	CURL *curl;
	bool begun;
	uint64_t asked; /* the range's first byte */
	bool at_home;   /* the endpoint itself answers, not where it redirects to */
	size_t ignored; /* of an error's body */
	int fault;      /* of begin and body */
	struct errmsg *err;
};

static const char *header(CURL *curl, const char *name)
{
	struct curl_header *h;
	return curl_easy_header(curl, name, 0, CURLH_HEADER, -1, &h) == CURLHE_OK ? h->value : NULL;
}

static long status_of(CURL *curl)
{
	long status = 0;
	curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
	return status;
}

static int begin_body(struct hop *hop)
{
	struct http_get *g = hop->get;
	uint64_t from = 0;
	hop->begun = true;
	if (status_of(hop->curl) == 206) {
		const char *range = header(hop->curl, "Content-Range");
		char *end = NULL;
		bool ok = range && strncmp(range, "bytes ", 6) == 0 && range[6] >= '0' && range[6] <= '9';
		from = ok ? strtoull(range + 6, &end, 10) : 0;
		if (!ok || *end != '-' || from != hop->asked) {
			return errmsg_set(hop->err, STATUS_FAILED, "%s: was asked for from byte %" PRIu64
				" on; the answer is another part of it", g->what, hop->asked);
		}
	}
	if (g->begin) {
		return g->begin(g, from, hop->err);
	}
	g->at = 0;
	return 0;
}

static size_t on_body(char *data, size_t size, size_t n, void *user)
{
	struct hop *hop = user;
	long status = status_of(hop->curl);
	if (status != 200 && status != 206) {
		hop->ignored += size * n;
		return hop->ignored <= ERROR_BODY_MAX ? size * n : 0;
	}
	if (!hop->begun) {
		hop->fault = begin_body(hop);
	}
	if (hop->fault == 0) {
		hop->fault = hop->get->body(hop->get, data, size * n, hop->err);
	}
	return hop->fault == 0 ? size * n : 0;
}

static int on_progress(void *user, curl_off_t dt, curl_off_t dn, curl_off_t ut, curl_off_t un)
{
	const atomic_bool *stop = user;
	return stop && atomic_load(stop);
}

static CURLcode set_up(struct http *h, struct hop *hop, const char *url, bool plain_allowed,
	struct curl_slist *headers, char *words)
{
	CURL *c = h->curl;
	const struct hub_config *config = h->config;
	curl_easy_reset(c);
	CURLcode r = curl_easy_setopt(c, CURLOPT_URL, url);
	r = r ? r : curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, plain_allowed ? "http,https" : "https");
	r = r ? r : curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
	r = r ? r : curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
	r = r ? r : curl_easy_setopt(c, CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE);
	r = r ? r : curl_easy_setopt(c, CURLOPT_USERAGENT, "peftctl/" PEFTD_VERSION);
	r = r ? r : curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
	r = r ? r : curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, (long)CONNECT_S);
	r = r ? r : curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
	r = r ? r : curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)config->stall_s);
	r = r ? r : curl_easy_setopt(c, CURLOPT_ERRORBUFFER, words);
	r = r ? r : curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
	r = r ? r : curl_easy_setopt(c, CURLOPT_WRITEDATA, hop);
	r = r ? r : curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
	r = r ? r : curl_easy_setopt(c, CURLOPT_XFERINFODATA, (void *)(uintptr_t)h->stop);
	r = r ? r : curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
	if (config->ca_file) {
		r = r ? r : curl_easy_setopt(c, CURLOPT_CAINFO, config->ca_file);
	}
	if (hop->asked > 0) {
		char range[32];
		snprintf(range, sizeof(range), "%" PRIu64 "-", hop->asked);
		r = r ? r : curl_easy_setopt(c, CURLOPT_RANGE, range);
	}
	return r;
}

/* What became of the connection, for codes other than CURLE_OK. */
static int connection_fault(const struct http_get *g, const struct origin *to, CURLcode code,
	const char *words, struct errmsg *err)
{
	words = words[0] ? words : curl_easy_strerror(code);
	switch (code) {
	case CURLE_ABORTED_BY_CALLBACK:
		return errmsg_set(err, STATUS_CANCELLED, "%s: given up", g->what);
	case CURLE_OUT_OF_MEMORY:
		return -ENOMEM;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_ISSUER_ERROR:
		return errmsg_set(err, STATUS_FAILED, "%s: %s:%s cannot prove who it is (%s); where a "
			"proxy or a mirror has certificates of its own, SSL_CERT_FILE names them", g->what,
			to->host, to->port, words);
	case CURLE_SSL_CACERT_BADFILE:
		return errmsg_set(err, STATUS_FAILED, "the file of certificates cannot be read (%s); set "
			"SSL_CERT_FILE to one", words);
	case CURLE_OPERATION_TIMEDOUT:
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
	case CURLE_COULDNT_CONNECT:
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_PARTIAL_FILE:
	case CURLE_GOT_NOTHING:
	case CURLE_SEND_ERROR:
	case CURLE_RECV_ERROR:
	case CURLE_HTTP2:
	case CURLE_HTTP2_STREAM:
		return errmsg_set(err, AGAIN, "%s: %s:%s: %s", g->what, to->host, to->port, words);
	default:
		return errmsg_set(err, STATUS_FAILED, "%s: %s:%s: %s", g->what, to->host, to->port, words);
	}
}

/* What the answer means. */
static int judge(struct hop *hop, const struct origin *to, struct errmsg *err)
{
	struct http_get *g = hop->get;
	const char *code = header(hop->curl, "X-Error-Code");
	g->status = status_of(hop->curl);
	snprintf(g->error_code, sizeof(g->error_code), "%s", code ? code : "");
	switch (g->status) {
	case 200:
	case 206:
		if (!hop->begun) { /* it is empty */
			int r = begin_body(hop);
			if (r != 0) {
				return r;
			}
		}
		return g->size == UINT64_MAX || g->at >= g->size ? 0 : errmsg_set(err, AGAIN,
			"%s: %s:%s ends it at byte %" PRIu64 " of %" PRIu64, g->what, to->host, to->port, g->at,
			g->size);
	case 416: { /* there is less of it than is here already */
		int r = g->begin ? g->begin(g, 0, err) : 0;
		return r ? r : errmsg_set(err, AGAIN, "%s: %s:%s has no byte %" PRIu64, g->what, to->host,
			to->port, hop->asked);
	}
	case 408:
	case 429:
	case 500:
	case 502:
	case 503:
	case 504:
		return errmsg_set(err, AGAIN, "%s: %s:%s answers %ld%s", g->what, to->host, to->port,
			g->status, g->status == 429 ? " (too many requests)" : "");
	default: /* what a store refuses says nothing about the model */
		return errmsg_set(err, hop->at_home ? HTTP_REFUSED : STATUS_FAILED,
			"%s: %s:%s answers %ld", g->what, to->host, to->port, g->status);
	}
}

/* One request to `url`. A redirect leaves its target in *ret_next. */
static int run_hop(struct http *h, struct http_get *g, const char *url, char **ret_next,
	struct errmsg *err)
{
	_cleanup_(origin_deinit) struct origin home = {0}, to = {0};
	if (!origin_of(&home, h->config->endpoint) || !origin_of(&to, url)) {
		return errmsg_set(err, STATUS_FAILED, "%s: leads to what is no address", g->what);
	}
	bool plain_allowed = strcasecmp(home.scheme, "http") == 0;
	if (strcasecmp(to.scheme, "https") != 0 &&
		!(plain_allowed && strcasecmp(to.scheme, "http") == 0)) {
		return errmsg_set(err, STATUS_FAILED, "%s: leads to %s://%s; only https is followed", g->what,
			to.scheme, to.host);
	}
	if (to.user) {
		return errmsg_set(err, STATUS_FAILED, "%s: leads to an address of %s with a user name in it, "
			"which is not followed", g->what, to.host);
	}
	bool at_home = same_origin(&home, &to);
	struct curl_slist *headers = NULL;
	if (h->config->token && at_home) {
		_cleanup_(buf_deinit) struct buf line = {0};
		if (buf_appendf(&line, "Authorization: Bearer %s", h->config->token) < 0 ||
			!buf_cstr(&line) || !(headers = curl_slist_append(NULL, (char *)line.data))) {
			return -ENOMEM;
		}
	}
	char words[CURL_ERROR_SIZE] = "";
	struct hop hop = {
		.get = g,
		.curl = h->curl,
		.asked = g->at,
		.at_home = at_home,
		.err = err,
	};
	CURLcode code = set_up(h, &hop, url, plain_allowed, headers, words);
	code = code ? code : curl_easy_perform(h->curl);
	curl_slist_free_all(headers);
	if (hop.fault != 0) {
		return hop.fault;
	}
	if (code != CURLE_OK && !(code == CURLE_WRITE_ERROR && hop.ignored > ERROR_BODY_MAX)) {
		return connection_fault(g, &to, code, words, err);
	}
	const char *next = NULL;
	curl_easy_getinfo(h->curl, CURLINFO_REDIRECT_URL, &next);
	if (next) {
		*ret_next = strdup(next);
		return *ret_next ? 0 : -ENOMEM;
	}
	return judge(&hop, &to, err);
}

/* ---- tries ------------------------------------------------------------------------------- */

/* Along redirects to an answer. *ret_after: seconds that the server asks to wait. */
static int attempt(struct http *h, struct http_get *g, curl_off_t *ret_after, struct errmsg *err)
{
	_cleanup_(freep) char *url = strdup(g->url);
	*ret_after = 0;
	for (int hop = 0; hop < HOPS_MAX && url; hop++) {
		char *next = NULL;
		int r = run_hop(h, g, url, &next, err);
		if (r == AGAIN) {
			curl_easy_getinfo(h->curl, CURLINFO_RETRY_AFTER, ret_after);
		}
		if (r != 0 || !next) {
			return r;
		}
		free(url);
		url = next;
	}
	return url ? errmsg_set(err, STATUS_FAILED, "%s: is redirected more than %d times", g->what,
		HOPS_MAX) : -ENOMEM;
}

static bool stopped(const struct http *h)
{
	return h->stop && atomic_load(h->stop);
}

static void wait_ms(const struct http *h, int64_t ms)
{
	int64_t end = clock_monotonic_ns() + ms * 1000000;
	for (int64_t left = ms; left > 0 && !stopped(h);) {
		poll(NULL, 0, (int)min_i64(left, 100));
		left = (end - clock_monotonic_ns() + 999999) / 1000000;
	}
}

/* Doubling, up to a quarter longer by chance, so that many clients do not come back at once. */
static int64_t backoff_ms(const struct hub_config *config, unsigned failed)
{
	uint8_t chance;
	random_bytes(&chance, 1);
	int64_t ms = (int64_t)config->backoff_ms << (failed < 16 ? failed - 1 : 15);
	ms = min_i64(ms, WAIT_MAX_MS);
	return ms + ms * chance / 1024;
}

int http_get(struct http *h, struct http_get *g, struct errmsg *err)
{
	for (unsigned failed = 0;;) {
		struct errmsg why = {0};
		curl_off_t after;
		uint64_t before = g->at;
		int r = attempt(h, g, &after, &why);
		if (r != AGAIN) {
			return r == 0 ? 0 : errmsg_set(err, r, "%s", why.text);
		}
		failed = g->at > before ? 1 : failed + 1;
		if (after > ASKED_WAIT_MAX_S) {
			return errmsg_set(err, STATUS_FAILED, "%s, and asks to come back in %" PRId64 " s",
				why.text, (int64_t)after);
		}
		if (failed >= h->config->tries) {
			return errmsg_set(err, STATUS_FAILED, "%s; tried %u time%s", why.text, failed,
				failed == 1 ? "" : "s");
		}
		int64_t ms = max_i64(backoff_ms(h->config, failed), (int64_t)after * 1000);
		if (h->note) {
			char text[sizeof(why.text) + 64];
			snprintf(text, sizeof(text), "%s; trying again in %" PRId64 " s", why.text,
				(ms + 999) / 1000);
			h->note(h->note_data, text);
		}
		wait_ms(h, ms);
		if (stopped(h)) {
			return errmsg_set(err, STATUS_CANCELLED, "%s: given up", g->what);
		}
	}
}

/* ---- texts ------------------------------------------------------------------------------- */

struct text_sink {
	struct buf *buf;
	size_t max;
};

static int text_begin(struct http_get *g, uint64_t from, struct errmsg *err)
{
	((struct text_sink *)g->data)->buf->len = 0;
	g->at = 0; /* a text is always fetched from the start */
	return 0;
}

static int text_body(struct http_get *g, const void *data, size_t len, struct errmsg *err)
{
	struct text_sink *s = g->data;
	if (len > s->max - s->buf->len) {
		return errmsg_set(err, STATUS_INVALID, "%s: the answer has more than %zu bytes", g->what,
			s->max);
	}
	return buf_append(s->buf, data, len);
}

int http_get_text(struct http *h, const char *url, const char *what, size_t max, struct buf *ret,
	struct http_get *ret_answer, struct errmsg *err)
{
	struct text_sink sink = {.buf = ret, .max = max};
	*ret_answer = (struct http_get){
		.url = (char *)(uintptr_t)url,
		.what = what,
		.begin = text_begin,
		.body = text_body,
		.data = &sink,
		.size = UINT64_MAX,
	};
	int r = http_get(h, ret_answer, err);
	ret_answer->data = NULL;
	return r;
}

int http_init(struct http *h, const struct hub_config *config)
{
	*h = (struct http){.config = config, .curl = curl_easy_init()};
	return h->curl ? 0 : -ENOMEM;
}

void http_deinit(struct http *h)
{
	curl_easy_cleanup(h->curl);
	h->curl = NULL;
}
