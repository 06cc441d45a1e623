#pragma once
/* Job files: YAML, of which JSON is a subset, to JobSpec. */

#include <stddef.h>

#include "job.pb-c.h"
#include "util/errmsg.h"

enum {
	JOBFILE_MAX = 256 * 1024, /* bytes */
	JOBFILE_NODES_MAX = 4096, /* aliases counted each time they are used */
	JOBFILE_DEPTH_MAX = 8,
};

/*
 * Reads a job file's text into `spec`. `file` names it in complaints, which all begin with
 * "FILE:LINE: ". STATUS_INVALID: no YAML, a key or type that JobSpec does not have, a key given
 * twice, a number out of range; -ENOMEM.
 */
int jobfile_parse(const char *file, const void *text, size_t len, Peftd__V1__JobSpec *spec,
	struct errmsg *err);

/* The same from a file; "-" is standard input. STATUS_NOT_FOUND when it cannot be read. */
int jobfile_read(const char *file, Peftd__V1__JobSpec *spec, struct errmsg *err);

/* The line on which a file that was read sets the key `path` ("lora.r"); 0 where it does not. */
size_t jobfile_line(const char *file, const char *path);
