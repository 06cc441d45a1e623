/*
 * h = silu(g) · u with silu(g) = g·s, s = 1 / (1 + e^-g). Backward:
 *
 *	du = dh · g·s,  dg = dh · u · s · (1 + g·(1 − s))
 */

#include "kernels/cpu/activation.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct forward_args {
	struct mat h, gate, up;
};

/* PyTorch rounds silu(gate) to bf16 before it multiplies; so do we, or losses would drift apart. */
ALWAYS_INLINE vf forward_vec(vf g, vf u, bool bf16)
{
	return act_round(g * sigmoid(g), bf16) * u;
}

ALWAYS_INLINE void forward_rows(const struct forward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->h.cols;
	for (int64_t i = begin; i < end; i++) {
		void *h = mat_row_mut(a->h, i, bf16);
		const void *g = mat_row(a->gate, i, bf16), *u = mat_row(a->up, i, bf16);
		for (int64_t j = 0; j < d; j += VLEN) {
			act_store_n(h, j, d - j, bf16, forward_vec(act_load_n(g, j, d - j, bf16),
				act_load_n(u, j, d - j, bf16), bf16));
		}
	}
}
ACT_PAIR(forward_rows, struct forward_args)

void CPU_FN(swiglu_forward)(struct backend *b, struct mat h, struct mat gate, struct mat up)
{
	struct forward_args args = {h, gate, up};
	cpu_parallel(b, h.rows, cpu_row_grain(h.cols) / 4 + 1, ACT_PICK(forward_rows, h.dtype), &args);
}

struct backward_args {
	struct mat dgate, dup, dh, gate, up;
};

ALWAYS_INLINE void backward_vec(vf *ret_dg, vf *ret_du, vf dh, vf g, vf u)
{
	vf s = sigmoid(g);
	*ret_du = dh * (g * s);
	*ret_dg = dh * u * s * (1.0f + g * (1.0f - s));
}

ALWAYS_INLINE void backward_rows(const struct backward_args *a, int64_t begin, int64_t end,
	unsigned part, bool bf16)
{
	int64_t d = a->dh.cols;
	for (int64_t i = begin; i < end; i++) {
		void *dg = mat_row_mut(a->dgate, i, bf16), *du = mat_row_mut(a->dup, i, bf16);
		const void *dh = mat_row(a->dh, i, bf16);
		const void *g = mat_row(a->gate, i, bf16), *u = mat_row(a->up, i, bf16);
		vf vdg, vdu;
		for (int64_t j = 0; j < d; j += VLEN) {
			backward_vec(&vdg, &vdu, act_load_n(dh, j, d - j, bf16),
				act_load_n(g, j, d - j, bf16), act_load_n(u, j, d - j, bf16));
			act_store_n(dg, j, d - j, bf16, vdg);
			act_store_n(du, j, d - j, bf16, vdu);
		}
	}
}
ACT_PAIR(backward_rows, struct backward_args)

void CPU_FN(swiglu_backward)(struct backend *b, struct mat dgate, struct mat dup, struct mat dh,
	struct mat gate, struct mat up)
{
	struct backward_args args = {dgate, dup, dh, gate, up};
	cpu_parallel(b, dh.rows, cpu_row_grain(dh.cols) / 4 + 1, ACT_PICK(backward_rows, dh.dtype),
		&args);
}
