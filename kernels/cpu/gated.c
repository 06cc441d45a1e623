/* h = f(g) · u for activation functions f. Backward: du = dh · f(g), dg = dh · u · f'(g). */

#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct gated_args {
	struct mat h, gate, up;      /* forward */
	struct mat dgate, dup, dh;   /* backward */
	enum activation kind;
};

ALWAYS_INLINE void forward_rows(const struct gated_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->h.cols;
	for (int64_t i = begin; i < end; i++) {
		void *h = mat_row_mut(a->h, i, bf16);
		const void *g = mat_row(a->gate, i, bf16), *u = mat_row(a->up, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf f = act_round(activation_vec(act_load_n(g, j, n, bf16), a->kind), bf16);
			act_store_n(h, j, n, bf16, f * act_load_n(u, j, n, bf16));
		}
	}
}
ACT_PAIR(forward_rows, struct gated_args)

void CPU_FN(gated_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up,
	enum activation kind)
{
	struct gated_args args = {.h = h, .gate = gate, .up = up, .kind = kind};
	cpu_parallel(b, h.rows, cpu_row_grain(h.cols) / 4 + 1, ACT_PICK(forward_rows, h.dtype), &args);
}

ALWAYS_INLINE void backward_rows(const struct gated_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->dh.cols;
	for (int64_t i = begin; i < end; i++) {
		void *dg = mat_row_mut(a->dgate, i, bf16), *du = mat_row_mut(a->dup, i, bf16);
		const void *dh = mat_row(a->dh, i, bf16);
		const void *g = mat_row(a->gate, i, bf16), *u = mat_row(a->up, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			int64_t n = d - j;
			vf x = act_load_n(g, j, n, bf16), dy = act_load_n(dh, j, n, bf16);
			vf up = act_load_n(u, j, n, bf16);
			act_store_n(dg, j, n, bf16, dy * up * activation_derivative_vec(x, a->kind));
			act_store_n(du, j, n, bf16, dy * activation_vec(x, a->kind));
		}
	}
}
ACT_PAIR(backward_rows, struct gated_args)

void CPU_FN(gated_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up, enum activation kind)
{
	struct gated_args args = {.gate = gate, .up = up, .dgate = dgate, .dup = dup, .dh = dh,
		.kind = kind};
	cpu_parallel(b, dh.rows, cpu_row_grain(dh.cols) / 4 + 1, ACT_PICK(backward_rows, dh.dtype),
		&args);
}
