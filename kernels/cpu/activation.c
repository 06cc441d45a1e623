/* Activation functions and their derivatives by element; see activation.h. */

#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct activation_args {
	struct mat y, dy, x;
	enum activation kind;
};

ALWAYS_INLINE void forward_rows(const struct activation_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		void *y = mat_row_mut(a->y, i, bf16);
		const void *x = mat_row(a->x, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(y, j, d - j, bf16, activation_vec(act_load_n(x, j, d - j, bf16), a->kind));
		}
	}
}
ACT_PAIR(forward_rows, struct activation_args)

void CPU_FN(activation_forward)(struct backend *b, struct mat y, struct mat x, enum activation kind)
{
	struct activation_args args = {.y = y, .x = x, .kind = kind};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols) / 4 + 1, ACT_PICK(forward_rows, x.dtype), &args);
}

ALWAYS_INLINE void backward_rows(const struct activation_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		void *dx = mat_row_mut(a->y, i, bf16);
		const void *dy = mat_row(a->dy, i, bf16), *x = mat_row(a->x, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(dx, j, d - j, bf16, act_load_n(dy, j, d - j, bf16) *
				activation_derivative_vec(act_load_n(x, j, d - j, bf16), a->kind));
		}
	}
}
ACT_PAIR(backward_rows, struct activation_args)

void CPU_FN(activation_backward)(struct backend *b, struct mat dx, struct mat dy, struct mat x,
	enum activation kind)
{
	struct activation_args args = {dx, dy, x, kind};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols) / 4 + 1, ACT_PICK(backward_rows, x.dtype), &args);
}

struct softcap_args {
	struct mat x;
	float cap;
};

static void softcap_rows(const void *args, int64_t begin, int64_t end, unsigned part)
{
	const struct softcap_args *a = args;
	int64_t d = a->x.cols;
	for (int64_t i = begin; i < end; i++) {
		float *x = mat_row_mut(a->x, i, false);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(x, j, d - j, false, softcap_vec(act_load_n(x, j, d - j, false), a->cap));
		}
	}
}

void CPU_FN(softcap)(struct backend *b, struct mat x, float cap)
{
	struct softcap_args args = {x, cap};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols) / 4 + 1, softcap_rows, &args);
}
