#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "engine/engine.h"
#include "engine/peft/peft.h"
#include "util/util.h"

static int not_in(struct errmsg *err, const char *field, double value, const char *right)
{
	return errmsg_set(err, STATUS_INVALID, "train.%s: %.10g; it must be %s", field, value, right);
}

int train_config_check(const struct train_config *c, const struct method_config *m,
	struct errmsg *err)
{
	const struct {
		const char *field;
		int64_t value, min, max;
	} counts[] = {
		{"max_steps", c->max_steps, 1, (int64_t)1 << 40},
		{"batch_size", c->batch_size, 1, 1 << 20},
		{"max_length", c->max_length, 2, 1 << 24},
		{"warmup_steps", c->warmup_steps, 0, (int64_t)1 << 40},
		{"microbatch_tokens", c->microbatch_tokens, 0, 1 << 24},
	};
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		if (counts[i].value < counts[i].min || counts[i].value > counts[i].max) {
			return errmsg_set(err, STATUS_INVALID, "train.%s: %" PRId64 "; it must be from %" PRId64
				" to %" PRId64, counts[i].field, counts[i].value, counts[i].min, counts[i].max);
		}
	}
	const struct {
		const char *field;
		double value;
	} not_negative[] = {
		{"learning_rate", c->learning_rate},
		{"weight_decay", c->weight_decay},
		{"max_grad_norm", c->max_grad_norm},
		{"adam_epsilon", c->adam_epsilon},
	};
	for (size_t i = 0; i < ARRAY_LEN(not_negative); i++) {
		if (!f32_finite(not_negative[i].value) || not_negative[i].value < 0) {
			return not_in(err, not_negative[i].field, not_negative[i].value, "a float32, 0 or "
				"above");
		}
	}
	/* Without it a gradient of 0 is divided by 0. */
	if (!((float)c->adam_epsilon > 0)) {
		return not_in(err, "adam_epsilon", c->adam_epsilon, "above 0, as a float32");
	}
	if (!f32_probability(c->adam_beta1)) {
		return not_in(err, "adam_beta1", c->adam_beta1, "at least 0 and, as a float32, below 1");
	}
	if (!f32_probability(c->adam_beta2)) {
		return not_in(err, "adam_beta2", c->adam_beta2, "at least 0 and, as a float32, below 1");
	}
	if (c->lr_scheduler < LR_CONSTANT || c->lr_scheduler > LR_COSINE) {
		return errmsg_set(err, STATUS_INVALID,
			"train.lr_scheduler_type: it must be constant, linear or cosine");
	}
	if (c->dtype != DTYPE_F32 && c->dtype != DTYPE_BF16) {
		return errmsg_set(err, STATUS_INVALID, "train.dtype: it must be bf16 or f32");
	}
	int r = method_config_check(m, err);
	double ratio = m->lora.loraplus_lr_ratio;
	if (r == 0 && strcmp(m->method, "lora") == 0 && !f32_finite(ratio * c->learning_rate)) {
		return errmsg_set(err, STATUS_INVALID, "lora.loraplus_lr_ratio: %g of train.learning_rate %g "
			"is no float32", ratio, c->learning_rate);
	}
	return r;
}

int64_t train_steps(uint64_t n_samples, int64_t batch_size, int64_t max_steps, double epochs)
{
	if (max_steps > 0) {
		return max_steps;
	}
	uint64_t per_epoch = (n_samples + (uint64_t)batch_size - 1) / (uint64_t)batch_size;
	double steps = ceil(epochs * (double)per_epoch);
	return steps >= 1 && steps <= 0x1p40 ? (int64_t)steps : 0;
}
