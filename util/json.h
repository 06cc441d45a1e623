#pragma once
/* Reading JSON objects from outside, field by field. `what` names the file in errors; all return 0,
 * STATUS_INVALID or -ENOMEM. */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/errmsg.h"

/* Parses a text that must be one object without duplicate keys. The caller gives it up with
 * json_decref(). */
int json_parse_object(json_t **ret, const char *text, size_t len, const char *what,
	struct errmsg *err);

/* A missing field, or null, leaves *ret as it is. */
int json_get_int(const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *ret,
	const char *what, struct errmsg *err);
int json_get_real(const json_t *o, const char *key, double lo, double hi, double *ret,
	const char *what, struct errmsg *err);
int json_get_bool(const json_t *o, const char *key, bool *ret, const char *what,
	struct errmsg *err);
/* Borrowed from `o`. */
int json_get_string(const json_t *o, const char *key, const char **ret, const char *what,
	struct errmsg *err);

/* The value in a few words, for errors: cut to the size of `out`. */
struct json_text {
	char s[48];
};
struct json_text json_short(const json_t *value);
