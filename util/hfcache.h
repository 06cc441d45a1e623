#pragma once
/*
 * The cache that Hugging Face's tools share on a machine: where it is, and what lies in it.
 *
 *   models--ORG--NAME/refs/<revision>        the commit that a branch or tag was when last asked
 *   models--ORG--NAME/snapshots/<commit>/    a model's folder: links into
 *   models--ORG--NAME/blobs/<digest>         the contents
 *   .locks/models--ORG--NAME/<digest>.lock   held with flock() by who writes that blob
 */

#include <stdbool.h>
#include <stddef.h>

#include "util/errmsg.h"

/* ORG/NAME[@REVISION], taken apart. */
struct hf_name {
	char repo[132];     /* "ORG/NAME", or "NAME" */
	char folder[140];   /* "models--ORG--NAME" */
	char revision[132]; /* a branch, a tag or a commit; "main" where none was given */
};

/* STATUS_INVALID for what can be no name of a model, or no revision. */
int hf_name_parse(struct hf_name *ret, const char *text, struct errmsg *err);

/* True for 40 lower-case hexadecimal digits. */
bool hf_commit_valid(const char *s);

/* The cache's folder, by the variables that huggingface_hub reads; whether it exists is another
 * question. STATUS_NOT_FOUND when none of them is set. */
int hf_cache_root(char *out, size_t cap, struct errmsg *err);

/* HF_HOME, the folder above the cache, where the token lies too. Statuses as above. */
int hf_home(char *out, size_t cap, struct errmsg *err);

/* Path of the snapshot of ORG/NAME[@REVISION] in the cache; the caller frees it. Nothing is ever
 * downloaded. STATUS_NOT_FOUND says where was looked; STATUS_INVALID; -errno. */
int hf_cache_find(char **ret_path, const char *name, struct errmsg *err);
