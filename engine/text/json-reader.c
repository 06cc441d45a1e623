/* Reading the members of tokenizer.json's objects. */

#include "engine/text/json-reader.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/util.h"

int reader_fault(const struct reader *r, const char *where, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return errmsg_set(r->err, STATUS_INVALID, "%s: %s: %s", r->what, where, text);
}

int reader_members(const struct reader *r, const char *where, json_t *j, const char *known)
{
	const char *key;
	json_t *value;
	json_object_foreach(j, key, value) {
		char wanted[64];
		if (snprintf(wanted, sizeof(wanted), " %s ", key) >= (int)sizeof(wanted) ||
				!strstr(known, wanted)) {
			return reader_fault(r, where, "unknown member %.64s (known are%s)", key, known);
		}
	}
	return 0;
}

int reader_bool(const struct reader *r, const char *where, json_t *j, const char *key,
	bool otherwise, bool *ret)
{
	json_t *value = json_object_get(j, key);
	if (value && !json_is_boolean(value)) {
		return reader_fault(r, where, "%s must be true or false", key);
	}
	*ret = value ? json_is_true(value) : otherwise;
	return 0;
}

int reader_string(const struct reader *r, const char *where, json_t *j, const char *key,
	const char **ret, size_t *ret_len)
{
	json_t *value = json_object_get(j, key);
	if (!json_is_string(value)) {
		return reader_fault(r, where, "%s must be a string", key);
	}
	*ret = json_string_value(value);
	*ret_len = json_string_length(value);
	return 0;
}

int reader_pattern(const struct reader *r, const char *where, json_t *j, const char **ret,
	size_t *ret_len, bool *ret_literal)
{
	json_t *pattern = json_object_get(j, "pattern"), *value = json_object_get(pattern, "String");
	*ret_literal = value != NULL;
	value = value ? value : json_object_get(pattern, "Regex");
	if (!json_is_string(value) || json_object_size(pattern) != 1) {
		return reader_fault(r, where, "pattern must be {\"String\": …} or {\"Regex\": …}");
	}
	*ret = json_string_value(value);
	*ret_len = json_string_length(value);
	return 0;
}

const char *reader_type(json_t *j)
{
	const char *type = json_string_value(json_object_get(j, "type"));
	return type ? type : "none";
}

int reader_char(const struct reader *r, const char *where, json_t *j, const char *key,
	const char **ret, size_t *ret_len)
{
	unsigned n = 0;
	int e = reader_string(r, where, j, key, ret, ret_len);
	if (e == 0 && *ret_len > 0) {
		utf8_get((const uint8_t *)*ret, &n);
	}
	return e == 0 && (n == 0 || n != *ret_len) ?
		reader_fault(r, where, "%s must be one character", key) : e;
}

int reader_metaspace(const struct reader *r, const char *where, json_t *j, const char **ret,
	size_t *ret_len, enum prepend_scheme *ret_scheme)
{
	static const char *const names[] = {
		[PREPEND_NEVER] = "never",
		[PREPEND_FIRST] = "first",
		[PREPEND_ALWAYS] = "always",
	};
	const char *scheme = "always";
	bool prefix = true;
	size_t len, i = 0;
	int e = reader_members(r, where, j,
		" type replacement str_rep add_prefix_space prepend_scheme split ");
	e = e ? e : reader_char(r, where, j, "replacement", ret, ret_len);
	e = e ? e : reader_bool(r, where, j, "add_prefix_space", true, &prefix);
	if (e == 0 && json_object_get(j, "prepend_scheme")) {
		e = reader_string(r, where, j, "prepend_scheme", &scheme, &len);
	}
	while (e == 0 && i < ARRAY_LEN(names) && strcmp(scheme, names[i]) != 0) {
		i++;
	}
	if (e == 0 && i == ARRAY_LEN(names)) {
		return reader_fault(r, where, "prepend_scheme %.64s is not supported (supported are always, "
			"first, never)", scheme);
	}
	if (e == 0 && !prefix && i != PREPEND_NEVER) {
		return reader_fault(r, where, "add_prefix_space is false, so that prepend_scheme must be "
			"\"never\"");
	}
	if (e == 0) {
		*ret_scheme = (enum prepend_scheme)i;
	}
	return e;
}

int reader_each(struct reader *r, const char *where, json_t *j, const char *key,
	int (*read)(struct reader *, const char *, json_t *))
{
	json_t *list = json_object_get(j, key);
	char place[160];
	if (!json_is_array(list)) {
		return reader_fault(r, where, "%s must be an array", key);
	}
	if (++r->depth > MAX_DEPTH) {
		return reader_fault(r, where, "Sequence nested more than %d deep", MAX_DEPTH);
	}
	for (size_t i = 0; i < json_array_size(list); i++) {
		snprintf(place, sizeof(place), "%.100s.%s[%zu]", where, key, i);
		int e = read(r, place, json_array_get(list, i));
		if (e != 0) {
			return e;
		}
	}
	r->depth--;
	return 0;
}

char *reader_copy(const char *text, size_t len)
{
	char *copy = malloc(len + 1);
	if (copy) {
		memcpy(copy, text, len);
		copy[len] = '\0';
	}
	return copy;
}
