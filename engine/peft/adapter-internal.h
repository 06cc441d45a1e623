#pragma once
/* Configurations of adapter folders, apart from the weights. */

#include "engine/model/model.h"
#include "engine/peft/adapter.h"

/* From the text of a folder's configuration; the kind is told by what it holds. STATUS_INVALID,
 * -ENOMEM. */
int adapter_config_parse(struct method_config *ret, enum adapter_kind *ret_kind, const char *json,
	size_t len, struct errmsg *err);

/* Appends the text, as its kind has it: keys sorted, indent 2. `base`: for where `m` names none, may be
 * NULL; `c` may be NULL for a method that does not need it. STATUS_INVALID for what the reader would
 * read differently. */
int adapter_config_write(struct buf *out, const struct method_config *m,
	const struct model_config *c, const char *base, struct errmsg *err);
