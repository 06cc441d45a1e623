#pragma once
/* Learning rate schedules, as transformers' get_scheduler has them. */

#include "engine/engine.h"

/* The learning rate of a step counted from 1: the base rate times lambda(step - 1). With warm-up w,
 * lambda(i) is i / w for i < w; then constant, or falling to 0 at max_steps linearly or by half a
 * cosine. */
double schedule_lr(const struct train_config *c, int64_t step);
