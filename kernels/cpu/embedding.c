/* Rows of a table by token id, and the gradient of the table. */

#include <assert.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct embedding_args {
	struct mat y, table;
	const int32_t *ids;
	bool virtual; /* rows of virtual tokens, or those of all others */
};

static void gather_range(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct embedding_args *a = args;
	size_t size = dtype_size(a->y.dtype);
	for (int64_t i = begin; i < end; i++) {
		assert(a->ids[i] < a->table.rows);
		char *y = (char *)a->y.data + (size_t)(i * a->y.stride) * size;
		if (a->ids[i] < 0) {
			memset(y, 0, (size_t)a->y.cols * size);
		} else {
			memcpy(y, (const char *)a->table.data + (size_t)(a->ids[i] * a->table.stride) * size,
				(size_t)a->y.cols * size);
		}
	}
}

void CPU_FN(embedding_forward)(struct backend *b, struct mat y, const int32_t *ids,
	struct mat table)
{
	struct embedding_args args = {y, table, ids, false};
	cpu_parallel(b, y.rows, cpu_row_grain(y.cols), gather_range, &args);
}

static void gather_virtual(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct embedding_args *a = args;
	size_t size = dtype_size(a->y.dtype);
	for (int64_t i = begin; i < end; i++) {
		int64_t id = -1 - (int64_t)a->ids[i];
		if (id >= 0) {
			assert(id < a->table.rows);
			memcpy((char *)a->y.data + (size_t)(i * a->y.stride) * size,
				(const char *)a->table.data + (size_t)(id * a->table.stride) * size,
				(size_t)a->y.cols * size);
		}
	}
}

void CPU_FN(virtual_tokens_forward)(struct backend *b, struct mat y, const int32_t *ids,
	struct mat table)
{
	struct embedding_args args = {y, table, ids, true};
	cpu_parallel(b, y.rows, cpu_row_grain(y.cols), gather_virtual, &args);
}

/* Columns [begin, end) · VLEN of all rows: each thread has columns of its own, so rows with the same
 * id are added in their order. */
ALWAYS_INLINE void scatter_range(const struct embedding_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t last = min_i64(end * VLEN, a->y.cols);
	for (int64_t i = 0; i < a->y.rows; i++) {
		if (a->virtual != (a->ids[i] < 0)) {
			continue;
		}
		int64_t id = a->virtual ? -1 - (int64_t)a->ids[i] : a->ids[i];
		assert(id < a->table.rows);
		float *d = (float *)a->table.data + id * a->table.stride;
		const void *dy = mat_row(a->y, i, bf16);
		for (int64_t j = begin * VLEN; j < last; j += VLEN) {
			act_store_n(d, j, last - j, false,
				act_load_n(d, j, last - j, false) + act_load_n(dy, j, last - j, bf16));
		}
	}
}
ACT_PAIR(scatter_range, struct embedding_args)

static void scatter(struct backend *b, const struct embedding_args *a)
{
	int64_t n = (a->y.cols + VLEN - 1) / VLEN;
	cpu_parallel(b, n, cpu_row_grain(a->y.rows * VLEN), ACT_PICK(scatter_range, a->y.dtype), a);
}

void CPU_FN(embedding_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy)
{
	struct embedding_args args = {dy, dtable, ids, false};
	scatter(b, &args);
}

void CPU_FN(virtual_tokens_backward)(struct backend *b, struct mat dtable, const int32_t *ids,
	struct mat dy)
{
	struct embedding_args args = {dy, dtable, ids, true};
	scatter(b, &args);
}
