#pragma once
/* Inside the reader of tokenizer.json. `where` is a place in the file; all return 0, STATUS_INVALID
 * with the file and the place in words, or -ENOMEM. */

#include "engine/text/text-internal.h"

struct reader {
	struct tokenizer *t;
	const char *what; /* names the file */
	struct errmsg *err;
	bool byte_level; /* the ByteLevel pre-tokenizer has been seen */
	bool template;   /* a TemplateProcessing or the like has been seen */
	bool fused;      /* a decoder has been seen that joins all tokens */
	unsigned depth;
};

enum {
	MAX_DEPTH = 8,
	MAX_AFFIX = 64,
};

int reader_fault(const struct reader *r, const char *where, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Every member of `j` is in the list (separated by spaces, with one at both ends). */
int reader_members(const struct reader *r, const char *where, json_t *j, const char *known);
int reader_bool(const struct reader *r, const char *where, json_t *j, const char *key,
	bool otherwise, bool *ret);
int reader_string(const struct reader *r, const char *where, json_t *j, const char *key,
	const char **ret, size_t *ret_len);
/* A string of one character. */
int reader_char(const struct reader *r, const char *where, json_t *j, const char *key,
	const char **ret, size_t *ret_len);
/* {"String": …} or {"Regex": …} */
int reader_pattern(const struct reader *r, const char *where, json_t *j, const char **ret,
	size_t *ret_len, bool *ret_literal);
/* Metaspace's members, those of its older forms too. */
int reader_metaspace(const struct reader *r, const char *where, json_t *j, const char **ret,
	size_t *ret_len, enum prepend_scheme *ret_scheme);
/* The member `type`; "none" where there is none. */
const char *reader_type(json_t *j);
/* Calls `read` for each member of the array j[key], with where.key[i] as the place. */
int reader_each(struct reader *r, const char *where, json_t *j, const char *key,
	int (*read)(struct reader *, const char *, json_t *));
/* An owned copy, with a NUL behind it. */
char *reader_copy(const char *text, size_t len);

/* The parts of a file: json-input.c, json-output.c. */
int read_normalizer(struct reader *r, const char *where, json_t *j);
int read_pre_tokenizer(struct reader *r, const char *where, json_t *j);
int read_post_processor(struct reader *r, const char *where, json_t *j);
int read_decoder(struct reader *r, const char *where, json_t *j);
