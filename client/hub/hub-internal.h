#pragma once
/* What the files of client/hub share. */

#include <curl/curl.h>
#include <stdatomic.h>

#include "client/hub/hub.h"
#include "util/buf.h"

/* ---- http.c ------------------------------------------------------------------------------ */

/* One thread's connections. */
struct http {
	const struct hub_config *config;
	CURL *curl;
	const atomic_bool *stop; /* transfers end with STATUS_CANCELLED once it is set */
	/* A transfer is tried again, in words. May be NULL; called in this thread. */
	void (*note)(void *data, const char *text);
	void *note_data;
};

/* -ENOMEM. curl_global_init() must have been called. */
int http_init(struct http *h, const struct hub_config *config);
void http_deinit(struct http *h);

/* What is wanted, and where it goes. */
struct http_get {
	char *url;
	const char *what; /* names it in errors */
	/* Where the body's next byte belongs: the transfer starts there, and again after a break. */
	uint64_t at;
	/* A body begins at byte `from`: `at`, or 0 where the server sends all of it. Sets `at`. 0, or
	 * a status or -errno, which ends the transfer. May be NULL where `at` stays 0. */
	int (*begin)(struct http_get *g, uint64_t from, struct errmsg *err);
	/* Takes bytes and moves `at`. */
	int (*body)(struct http_get *g, const void *data, size_t len, struct errmsg *err);
	void *data;
	uint64_t size;     /* of the whole; a body that ends before it broke off. UINT64_MAX: unknown */
	/* The answer, when it was not a success: */
	long status;
	char error_code[32]; /* X-Error-Code: "RepoNotFound", "RevisionNotFound", "GatedRepo"; or "" */
};

/*
 * Gets, follows redirects, and tries again what may go better the next time (broken and silent
 * connections, 408, 429, 5xx). The token goes to the endpoint's scheme, host and port alone, and a
 * redirect leads to https alone, or to http too where the endpoint is http. 0; HTTP_REFUSED with
 * `status` and `error_code` for any other answer; STATUS_FAILED with words; STATUS_CANCELLED; what
 * `begin` and `body` return; -ENOMEM.
 */
enum { HTTP_REFUSED = 1 << 16 };
int http_get(struct http *h, struct http_get *g, struct errmsg *err);

/* The same, into `ret`, which must be empty: at most `max` bytes. */
int http_get_text(struct http *h, const char *url, const char *what, size_t max, struct buf *ret,
	struct http_get *ret_answer, struct errmsg *err);

/* Whether `url` may be an endpoint. STATUS_INVALID. */
int http_check_endpoint(const char *url, struct errmsg *err);

/* ---- listing.c --------------------------------------------------------------------------- */

struct listing {
	char commit[41];
	struct hub_file *files; /* owned; those at the top of the repository */
	size_t n_files;
	bool nested_gguf;       /* there are .gguf files in folders */
};

void listing_deinit(struct listing *l);

/* Reads the hub's description of a model. Nothing in it is believed unchecked. STATUS_INVALID;
 * -ENOMEM. */
int listing_parse(struct listing *ret, const char *json, size_t len, const char *what,
	struct errmsg *err);

/* The file of that name, or NULL. */
const struct hub_file *listing_find(const struct listing *l, const char *name);

struct selection {
	const struct hub_file **files; /* owned array of the listing's */
	size_t n;
	bool sharded; /* the weights are those that model.safetensors.index.json, selected, will name */
};

void selection_deinit(struct selection *s);

/* What a base needs, or what `include` names. STATUS_INVALID (weights only as pickles, no
 * model), STATUS_NOT_FOUND (nothing matches); -ENOMEM. */
int listing_select(const struct listing *l, const char *include, const char *what,
	struct selection *ret, struct errmsg *err);

/* The files that an index's weight_map names, each once. Statuses as above. */
int listing_select_shards(const struct listing *l, const char *json, size_t len, const char *what,
	struct selection *ret, struct errmsg *err);

/* ---- blob.c ------------------------------------------------------------------------------ */

/* A model's folders in the cache, made where they are missing. */
struct place {
	char *root;     /* models--ORG--NAME, absolute */
	char *locks;    /* .locks/models--ORG--NAME */
	char *snapshot; /* root/snapshots/<commit> */
};

void place_deinit(struct place *p);

/* STATUS_FAILED where a folder cannot be made. */
int place_open(struct place *ret, const struct hf_name *name, const char *commit,
	struct errmsg *err);

/* Whether the blob is complete; *ret_have: how much of it is there otherwise. */
bool blob_there(const struct place *p, const struct hub_file *f, uint64_t *ret_have);

/*
 * Fetches a blob unless it is there, or another process is fetching it, which is waited for.
 * `count` is moved by what is there and what arrives, and back by what is thrown away.
 * STATUS_FAILED, STATUS_DISK_FULL, HTTP_REFUSED with *ret_answer, …
 */
struct blob_job {
	const struct place *place;
	const struct hub_file *file;
	const char *url;
	_Atomic uint64_t *count;
};
int blob_fetch(struct http *h, const struct blob_job *job, struct http_get *ret_answer,
	struct errmsg *err);

/* snapshots/<commit>/<name> → ../../blobs/<digest>. STATUS_FAILED. */
int blob_link(const struct place *p, const struct hub_file *f, struct errmsg *err);

/* refs/<revision> says the commit; nothing where the revision is one. STATUS_FAILED. */
int place_write_ref(const struct place *p, const struct hf_name *name, const char *commit,
	struct errmsg *err);

/* ---- refused.c --------------------------------------------------------------------------- */

/* Words for HTTP_REFUSED, with near names where the hub knows some. `what`: the file that was asked
 * for; NULL: the model. STATUS_NOT_FOUND, STATUS_DENIED or STATUS_FAILED. */
int hub_refused(const struct hub_config *config, const struct hf_name *name, const char *what,
	const struct http_get *answer, struct errmsg *err);
