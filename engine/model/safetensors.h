#pragma once
/* safetensors: reading with every check, and writing. */

#include <stddef.h>
#include <stdint.h>

#include "util/buf.h"
#include "util/errmsg.h"

enum st_dtype { ST_F32, ST_F16, ST_BF16, ST_F64, ST_I64, ST_I32, ST_U8, ST_OTHER };

struct st_tensor {
	char *name; /* well-formed UTF-8 */
	enum st_dtype dtype;
	const char *dtype_name; /* as the file says: "BF16"; static */
	int n_dims;
	int64_t dims[8];
	const uint8_t *data; /* into the file's bytes, aligned to nothing */
	size_t bytes;
};

struct safetensors {
	struct st_tensor *tensors; /* sorted by name */
	size_t n_tensors;
	char **metadata; /* key, value, key, value, … */
	size_t n_metadata; /* pairs */
};

/* Parses a file's bytes, which must outlive the result. Refused, by name and offset: a header over
 * 8 MiB or cut short, unknown dtypes' sizes, shapes that overflow, ranges that overlap, leave holes
 * or leave the file, names that come twice or are no UTF-8. `what` names the file in errors. The result
 * is to be deinitialised; on a fault it is untouched. */
int safetensors_parse(struct safetensors *ret, const void *data, size_t len, const char *what,
	struct errmsg *err);
void safetensors_deinit(struct safetensors *s);

/* NULL when there is none. */
const struct st_tensor *safetensors_find(const struct safetensors *s, const char *name);

/* Converts F32, F16, BF16 or F64 to f32: out[product of dims]. STATUS_INVALID for other dtypes. */
int st_tensor_read_f32(const struct st_tensor *t, float *out, struct errmsg *err);

/* What to write; dims with n_dims. Data is borrowed. */
struct st_out {
	const char *name;
	enum st_dtype dtype;
	int n_dims;
	int64_t dims[8];
	const void *data;
};

/* Appends the beginning of such a file: all that comes before the tensors' bytes, which then
 * follow in the order given without a gap. Data may be NULL. Errors as below. */
int safetensors_write_header(struct buf *out, const struct st_out *tensors, size_t n,
	const char *const *metadata, size_t n_metadata);

/* Appends a whole file to `out`: tensors in the order given (sort by name first, as safetensors'
 * own writer does within a dtype), metadata as pairs, data aligned to 8 bytes. -ENOMEM; -EINVAL for
 * ST_OTHER or a shape that overflows. `out` is unharmed by a fault. */
int safetensors_write(struct buf *out, const struct st_out *tensors, size_t n,
	const char *const *metadata, size_t n_metadata);
