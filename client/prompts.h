#pragma once
/* The prompts of a generation: given one by one, or as a file of rows. */

#include "client/ctl.h"
#include "util/buf.h"
#include "util/errmsg.h"

struct prompt {
	char *text;
	size_t len;
	char *adapter; /* JOB, JOB@STEP or a folder; NULL: what the command says */
	bool bare;     /* the row's adapter is null: the base alone */
};

struct prompts {
	struct prompt *items;
	size_t n, cap;
};

void prompts_deinit(struct prompts *p);
int prompts_add(struct prompts *p, const char *text, size_t len); /* copies; -ENOMEM */

/*
 * Reads JSON Lines ("-": standard input): objects with `prompt` and perhaps `adapter` (a string, or
 * null: none), or strings alone. STATUS_INVALID with the line; STATUS_NOT_FOUND; -errno.
 */
int prompts_read(struct prompts *p, const char *path, struct errmsg *err);
