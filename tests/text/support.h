#pragma once
/* What the tests of engine/text/ share: the golden files made by tests/golden/make_text.py. */

#include <jansson.h>

#include "engine/text/text.h"

/* The path of a golden file. */
void golden_path(const char *file, char *path, size_t size);
/* All of these fail the running test when something is missing. */
char *golden_read(const char *file, size_t *ret_len); /* freed by the caller */
json_t *golden_json(const char *file);                /* likewise, json_decref() */
struct tokenizer *golden_tokenizer(const char *name); /* NAME.tokenizer.json */

/* The ids of a text, as an array of numbers says they should be. */
void assert_ids(const struct tokenizer *t, const char *text, size_t len, bool add_special,
	const json_t *expected, const char *what);

/* A small generator of numbers, the same on every run. */
uint64_t next_random(uint64_t *state);
/* Text made of what the patterns look at; the caller frees it. */
char *random_text(uint64_t *state, size_t code_points, size_t *ret_len);
