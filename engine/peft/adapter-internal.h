#pragma once
/* adapter_config.json, apart from the weights. */

#include "engine/peft/adapter.h"

/* From the text of an adapter_config.json of type LORA. STATUS_INVALID, -ENOMEM. */
int lora_config_parse(struct lora_config *ret, const char *json, size_t len, struct errmsg *err);

/* Appends the text. STATUS_INVALID for what PEFT would read differently. */
int lora_config_write(struct buf *out, const struct lora_config *c, struct errmsg *err);
