#pragma once
/* A hub of models played in threads: speaks the Hugging Face hub's protocol over HTTP or HTTPS on
 * the loopback interface, with the faults that it is told to have. */

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HUB_OBJECTS_MAX = 16, HUB_LOG_MAX = 512 };

struct hub_object {
	char name[64];
	const void *data; /* the test's */
	size_t size;
	bool lfs;
	char digest[65];
};

/* One request, as it came. */
struct hub_request {
	char target[256];
	char authorization[128]; /* "" where none was sent */
	char range[64];
};

struct hub {
	char url[64]; /* http://127.0.0.1:PORT */
	int port;
	/* What there is; set before it is asked. */
	char repo[64], commit[41];
	struct hub_object objects[HUB_OBJECTS_MAX];
	size_t n_objects;
	const char *listing;      /* the answer about the model, instead of ours */
	struct hub *store;        /* LFS files are redirected there; NULL: they are served here */
	const char *redirect;     /* where LFS files are redirected to instead */
	/* Who may: */
	const char *token;        /* without it 401 */
	bool gated;               /* files are 403 */
	/* Faults; counts go down with each. */
	unsigned fails;           /* answers with fail_status */
	int fail_status;
	const char *fail_header;  /* "Retry-After: 1\r\n" */
	unsigned cuts;            /* contents that end after cut_at bytes */
	uint64_t cut_at;
	unsigned flips;           /* contents whose first byte is wrong */
	bool no_ranges;           /* all of it is sent, whatever was asked for */
	bool silent;              /* contents stop after cut_at bytes and stay open */
	bool too_long;            /* contents go on behind their end */
	/* What came: under `lock`. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct hub_request log[HUB_LOG_MAX];
	size_t n_log;
	uint64_t sent;            /* bytes of contents */
	/* Its own: */
	bool tls;
	void *ssl_ctx;
	int listener, stop[2];
	unsigned open;            /* connections */
	pthread_t thread;
};

/* With `certificate`, a path, it speaks HTTPS and writes its self-signed certificate there. */
void hub_start(struct hub *h, const char *repo, const char *certificate);
void hub_stop(struct hub *h);

/* Adds a file; computes its digest. */
void hub_add(struct hub *h, const char *name, const void *data, size_t size, bool lfs);

/* How many requests had `part` in their target. */
size_t hub_count(struct hub *h, const char *part);
/* The last such request; fails the test when there is none. */
struct hub_request hub_last(struct hub *h, const char *part);
void hub_forget(struct hub *h); /* empties the log */

/* Waits until `n` bytes of contents were sent. */
void hub_wait_sent(struct hub *h, uint64_t n);
