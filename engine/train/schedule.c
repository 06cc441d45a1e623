#include "engine/train/schedule.h"

#include <math.h>

#include "util/util.h"

double schedule_lr(const struct train_config *c, int64_t step)
{
	int64_t i = step - 1, w = c->warmup_steps;
	double lambda = 1;
	if (i < w) {
		lambda = (double)i / (double)max_i64(1, w);
	} else {
		double left = (double)max_i64(1, c->max_steps - w);
		switch (c->lr_scheduler) {
		case LR_CONSTANT:
			break;
		case LR_LINEAR:
			lambda = fmax(0, (double)(c->max_steps - i) / left);
			break;
		case LR_COSINE:
			lambda = fmax(0, 0.5 * (1 + cos(M_PI * ((double)(i - w) / left))));
			break;
		}
	}
	return c->learning_rate * lambda;
}
