#pragma once
/* What the converters share. */

#include "daemon/trainer/convert.h"
#include "job.pb-c.h"
#include "proto/proto.h"

/* The position of a word in a NULL-terminated list. STATUS_INVALID lists them. */
int convert_word(const ProtobufCBinaryData *b, const char *what, const char *const *words,
	int *ret, struct errmsg *err);

/* The settings of a job's method, in memory of their own (method_config_deinit()), which is theirs
 * also after a failure. `method` is the caller's to set. A completed specification of a daemon that
 * did not know some of them has their defaults. */
int convert_method(const Peftd__V1__JobSpec *pb, struct method_config *ret, struct errmsg *err);
