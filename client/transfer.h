#pragma once
/* Content on its way: files to the daemon, a job's adapter from it. Both go on where they were. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/client.h"
#include "client/progress.h"

/* ---- upload ------------------------------------------------------------------------------ */

struct source_file {
	int fd;
	char *name; /* what the daemon calls it; allocated */
	char *path; /* what the user called it; allocated */
	uint64_t size;
};

/* Files that go up as one content, in order. */
struct source {
	struct source_file *files;
	size_t n;
	uint64_t size;
	uint8_t digest[DIGEST_SIZE];
	Peftd__V1__Blob blob; /* describes the above, and is valid as long as it is */
	Peftd__V1__File *pb_files;
	Peftd__V1__File **pb_list;
};

void source_deinit(struct source *s);

/*
 * Opens files and computes their digest. `paths` may hold "-" once: standard input, kept in a
 * temporary file. Names are the paths' last parts; where two are the same, the paths themselves
 * with '/' made '_'. STATUS_NOT_FOUND, STATUS_INVALID (empty, a directory, a name that cannot be
 * sent); -errno.
 */
int source_open(struct source *ret, const char *const *paths, size_t n, struct progress *p,
	struct errmsg *err);

/* Sends what the daemon does not have yet. Statuses of the daemon; STATUS_UNAVAILABLE; -errno. */
int transfer_upload(struct client *c, const struct source *s, struct progress *p,
	struct errmsg *err);

/* ---- download ---------------------------------------------------------------------------- */

struct download {
	uint64_t job, step;
	const Peftd__V1__Blob *blob; /* of the FetchReply */
	const char *dir;             /* where it is to be */
	bool merged;                 /* as FETCH was asked */
	bool was_there;              /* set when it was already, complete and equal */
};

/* Whether there is a directory for `dir` to be in: before a daemon works for it. STATUS_FAILED. */
int transfer_check_place(const char *dir, struct errmsg *err);

/*
 * Brings a blob's files into `dir`. They are written to a folder DIR.part-<digest> beside it, where
 * an interrupted download goes on, and moved into place when the digest is right and all of it is
 * on disk. STATUS_CONFLICT when something else is at `dir`; STATUS_INVALID for file names that
 * cannot be; STATUS_FAILED when it cannot be written or its digest stays wrong; statuses of the
 * daemon.
 */
int transfer_download(struct client *c, struct download *d, struct progress *p, struct errmsg *err);
