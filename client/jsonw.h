#pragma once
/*
 * JSON for programs: a small writer, and protobuf messages by reflection. The keys are the names of
 * the fields in proto/, which stay. Absent fields are left out; repeated ones are always there;
 * digests are hexadecimal; states are their names; what is not finite is null.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "proto/proto.h"
#include "util/buf.h"

/* A value being written. Members are separated by themselves; the first failed allocation is kept
 * in `error` and makes everything after it do nothing. */
struct jsonw {
	struct buf buf;
	bool comma;
	int error;
};

void jsonw_deinit(struct jsonw *j);

void jsonw_open(struct jsonw *j, char bracket); /* '{' or '[' */
void jsonw_close(struct jsonw *j, char bracket);
void jsonw_key(struct jsonw *j, const char *key);
void jsonw_text(struct jsonw *j, const void *text, size_t len); /* bad UTF-8 becomes U+FFFD */
void jsonw_string(struct jsonw *j, const char *s);
void jsonw_bytes(struct jsonw *j, const ProtobufCBinaryData *b);
void jsonw_hex(struct jsonw *j, const ProtobufCBinaryData *b);
void jsonw_u64(struct jsonw *j, uint64_t v);
void jsonw_i64(struct jsonw *j, int64_t v);
void jsonw_double(struct jsonw *j, double v);
void jsonw_bool(struct jsonw *j, bool v);
void jsonw_null(struct jsonw *j);

/* A message as an object; or only its members, into an object that is open. */
void jsonw_message(struct jsonw *j, const ProtobufCMessage *msg);
void jsonw_members(struct jsonw *j, const ProtobufCMessage *msg);

/* Prints what was written as one line, and starts anew. 0 or -ENOMEM. */
int jsonw_print(struct jsonw *j, FILE *f);
