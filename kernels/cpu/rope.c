/* Rotary position embedding: pairs (j, j + rotary_dim/2) of each head turn by an angle of their own. */

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"
#include "util/util.h"

struct rope_args {
	struct mat x;
	const int32_t *positions;
	const float *cos_sin;
	int64_t n_heads, head_dim, rotary_dim;
	float sign; /* of the sine: -1 turns back */
};

ALWAYS_INLINE void rope_rows(const struct rope_args *a, int64_t begin, int64_t end, unsigned part,
	bool bf16)
{
	int64_t half = a->rotary_dim / 2;
	for (int64_t i = begin; i < end; i++) {
		const float *cos = a->cos_sin + a->positions[i] * a->rotary_dim, *sin = cos + half;
		for (int64_t h = 0; h < a->n_heads; h++) {
			void *lo = act_at_mut(mat_row_mut(a->x, i, bf16), h * a->head_dim, bf16);
			void *hi = act_at_mut(lo, half, bf16);
			for (int64_t j = 0; j < half; j += VLEN) {
				int64_t n = half - j;
				vf x = act_load_n(lo, j, n, bf16), y = act_load_n(hi, j, n, bf16);
				vf c = act_load_n(cos, j, n, false);
				vf s = act_load_n(sin, j, n, false) * a->sign;
				act_store_n(lo, j, n, bf16, x * c - y * s);
				act_store_n(hi, j, n, bf16, y * c + x * s);
			}
		}
	}
}
ACT_PAIR(rope_rows, struct rope_args)

void CPU_FN(rope)(struct backend *b, struct mat x, const int32_t *positions, const float *cos_sin,
	int64_t n_heads, int64_t head_dim, int64_t rotary_dim, bool inverse)
{
	struct rope_args args = {x, positions, cos_sin, n_heads, head_dim, rotary_dim,
		inverse ? -1.0f : 1.0f};
	cpu_parallel(b, x.rows, cpu_row_grain(x.cols), ACT_PICK(rope_rows, x.dtype), &args);
}
