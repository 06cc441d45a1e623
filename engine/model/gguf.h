#pragma once
/* The container format GGUF, versions 2 and 3: typed metadata and a table of tensors. What the keys
 * mean is told in gguf-model.c. Format: ggml's docs/gguf.md. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/model/dequant.h"
#include "util/errmsg.h"

enum gguf_type {
	GGUF_U8,
	GGUF_I8,
	GGUF_U16,
	GGUF_I16,
	GGUF_U32,
	GGUF_I32,
	GGUF_F32,
	GGUF_BOOL,
	GGUF_STRING,
	GGUF_ARRAY,
	GGUF_U64,
	GGUF_I64,
	GGUF_F64,
	GGUF_N_TYPES,
};

/* Into the file's bytes; not NUL-terminated. */
struct gguf_string {
	const char *data;
	size_t len;
};

struct gguf_value {
	struct gguf_string key;
	enum gguf_type type;
	enum gguf_type item; /* of an array; otherwise the type itself */
	uint64_t n;          /* items of an array; otherwise 1 */
	const uint8_t *data; /* items, aligned to nothing; each string led by its length in 8 bytes */
};

struct gguf_tensor {
	struct gguf_string name;
	int n_dims;
	int64_t dims[4]; /* the contiguous one first */
	enum weight_type type;
	uint64_t offset; /* in the data section */
	const uint8_t *data;
	size_t bytes;
};

struct gguf {
	const char *what; /* names the file in errors; borrowed */
	struct gguf_value *values; /* sorted by key */
	size_t n_values;
	struct gguf_tensor *tensors; /* by place in the file */
	size_t n_tensors;
};

/* Parses a file's bytes, which must outlive the result, as must `what`. No count or length is
 * believed before it is held against a cap and against what is left of the file. On a fault the
 * result is untouched. STATUS_INVALID, -ENOMEM. */
int gguf_parse(struct gguf *ret, const void *data, size_t len, const char *what,
	struct errmsg *err);
void gguf_deinit(struct gguf *g);

/* NULL when there is none. */
const struct gguf_value *gguf_find(const struct gguf *g, const char *key);

/* Typed access. A missing key leaves *ret as it is and sets *ret_found (may be NULL) to false.
 * Integers of any width are taken. STATUS_INVALID for another type or a value out of range. */
int gguf_get_int(const struct gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *ret,
	bool *ret_found, struct errmsg *err);
int gguf_get_real(const struct gguf *g, const char *key, double *ret, bool *ret_found,
	struct errmsg *err);
int gguf_get_bool(const struct gguf *g, const char *key, bool *ret, struct errmsg *err);
/* An owned copy, NUL-terminated, checked to be UTF-8 without NUL; *ret NULL where missing. */
int gguf_get_string(const struct gguf *g, const char *key, char **ret, struct errmsg *err);

/* Array of strings: allocates pointers and lengths (the strings stay the file's). Missing: *ret_n
 * 0. */
int gguf_get_strings(const struct gguf *g, const char *key, const char ***ret, uint32_t **ret_lens,
	int64_t *ret_n, struct errmsg *err);
/* Array of I32, U32 or F32: an owned, aligned copy of 4-byte items; *ret NULL where missing. */
int gguf_get_words(const struct gguf *g, const char *key, enum gguf_type item, int64_t n,
	void **ret, struct errmsg *err);
