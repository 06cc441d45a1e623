#pragma once
/*
 * Brings models from a hub that speaks the Hugging Face hub's protocol into the cache that its
 * tools share (util/hfcache.h). All of it happens in the client, as the user who runs it: with that
 * user's token, into that user's cache. No daemon takes part.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/errmsg.h"
#include "util/hfcache.h"

/* Where a model comes from unless HF_ENDPOINT says otherwise. */
#define HUB_DEFAULT_ENDPOINT "https://huggingface.co"

struct hub_config {
	char *endpoint;      /* scheme://host[:port][/path], without a trailing '/'; owned */
	char *token;         /* never shown; owned; NULL: none */
	char *ca_file;       /* certificates to trust instead of the system's; owned; NULL: none */
	unsigned stall_s;    /* a transfer that moves nothing for so long is given up and tried again */
	unsigned tries;      /* without progress */
	unsigned backoff_ms; /* before the second try; doubles with each */
};

/*
 * From the environment: HF_ENDPOINT; HF_TOKEN, or the file that `hf auth login` writes
 * (HF_TOKEN_PATH, HF_HOME/token); SSL_CERT_FILE; HF_HUB_DOWNLOAD_TIMEOUT. Proxies (https_proxy,
 * no_proxy) are libcurl's. STATUS_INVALID for values that cannot be; STATUS_DENIED where
 * HF_HUB_OFFLINE forbids the network; -ENOMEM.
 */
int hub_config_read(struct hub_config *ret, struct errmsg *err);
void hub_config_deinit(struct hub_config *c);

struct hub_file {
	char *name;      /* checked: a name, no path */
	uint64_t size;
	bool lfs;        /* the digest is SHA-256 of the content, else git's SHA-1 of it as a blob */
	char digest[65]; /* lower-case hexadecimal: 64 digits or 40 */
	bool was_there;  /* nothing had to be fetched */
};

struct hub_pulled {
	char commit[41];
	char *path;             /* absolute: the snapshot's folder; owned */
	struct hub_file *files; /* owned */
	size_t n_files;
	uint64_t fetched;       /* bytes */
};

void hub_pulled_deinit(struct hub_pulled *p);

/* What a pull tells while it runs; always called in the thread of hub_pull(), any may be NULL. */
struct hub_watch {
	void *data;
	/* Bytes there and to be there, of the files that were missing; about ten times a second. */
	void (*progress)(void *data, uint64_t done, uint64_t total);
	void (*file)(void *data, const struct hub_file *f); /* one is complete */
	void (*note)(void *data, const char *text);         /* waiting, trying again */
};

/*
 * Fetches what a base model needs: the configuration, the tokenizer and the safetensors; or, with
 * `include`, the .gguf files whose names match that pattern (as in a shell) and nothing else.
 * What is there is not fetched again, what is there in part goes on where it was. A file takes its
 * name in the cache when its digest is right; refs/<revision> is written when all are there.
 *
 * SIGPIPE must be ignored. STATUS_NOT_FOUND (no such model, revision or file, with near ones),
 * STATUS_DENIED (a token or a licence is needed), STATUS_INVALID (a listing that cannot be, weights
 * only as pickles), STATUS_DISK_FULL (before anything is fetched, where it can be known),
 * STATUS_FAILED (the network, a wrong digest, a file that cannot be written); -errno.
 */
int hub_pull(const struct hub_config *config, const struct hf_name *name, const char *include,
	const struct hub_watch *watch, struct hub_pulled *ret, struct errmsg *err);
