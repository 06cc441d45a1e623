#pragma once
/*
 * A job's specification (JobSpec of proto/job.proto) filled by the names and types of its fields:
 * no setting is named here, so that a new one is a field in job.proto and nothing more.
 */

#include <stdbool.h>
#include <stddef.h>

#include "job.pb-c.h"
#include "proto/proto.h"

/* What a scalar of a job file looks like by itself. */
enum spec_form {
	SPEC_NULL,
	SPEC_BOOL,
	SPEC_INT,
	SPEC_FLOAT,
	SPEC_SPECIAL_FLOAT, /* .nan, .inf */
	SPEC_TEXT,
	SPEC_ANY, /* from the command line, where nothing is quoted: whatever the field takes */
};

/* The form of an unquoted scalar, by YAML 1.1's rules as far as they matter here ("2e-4" is a
 * number to us, as to anybody but YAML 1.1). */
enum spec_form spec_form(const char *text);

/* An empty specification; free it with proto_free(). NULL without memory. */
Peftd__V1__JobSpec *spec_new(void);

/* A field by its name; NULL. */
const ProtobufCFieldDescriptor *spec_field(const ProtobufCMessageDescriptor *d, const char *name);

/* Is an empty list at `path` what it seems? Elsewhere it is the default; of LoRA's targets the default
 * is all of them, and on the wire nobody can tell. STATUS_INVALID. */
int spec_check_empty(const char *path, struct errmsg *err);

/*
 * The complaint about a key that `d` does not have: "unknown key 'train.max_step'; did you mean
 * 'max_steps'? known keys: …". `path` is what stands before the key, dot included, or "".
 * STATUS_INVALID.
 */
int spec_unknown_key(const ProtobufCMessageDescriptor *d, const char *path, const char *key,
	struct errmsg *err);

/* The message in a message field, made when there is none. NULL without memory. */
ProtobufCMessage *spec_section(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f);

/*
 * Sets a field, or adds to a repeated one, from a scalar. `path` names it in complaints. SPEC_NULL
 * unsets. STATUS_INVALID for what the field does not take; -ENOMEM.
 */
int spec_set(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *text,
	enum spec_form form, const char *path, struct errmsg *err);

/* Adds an entry to a map (jobspec_is_map() of proto/jobspec.h). STATUS_INVALID, also for a key that
 * is there; -ENOMEM. */
int spec_map_add(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f, const char *key,
	const char *text, enum spec_form form, const char *path, struct errmsg *err);

/* Unsets a field. */
void spec_clear(ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f);

/* Sets "train.learning_rate=1e-4" as from the command line; lists are "[a, b]" or "a,b", maps are
 * "{a: 1, b: 2}", and "lora.rank_pattern.KEY=8" sets one entry, whose key may have dots. "null"
 * unsets, and so does nothing at all for a text without a default. STATUS_INVALID; -ENOMEM. */
int spec_assign(Peftd__V1__JobSpec *spec, const char *assignment, struct errmsg *err);
