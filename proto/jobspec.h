#pragma once
/*
 * What job.proto can tell of a job's specification in words only: which messages are methods', which
 * fields are maps, and the defaults that depend on other settings. By reflection, so that whoever
 * completes a specification (client, core, trainer) comes to the same one.
 */

#include <stdbool.h>

#include "proto/proto.h"

/* A repeated field whose messages are `key` and `value`: a mapping in a job file. */
bool jobspec_is_map(const ProtobufCFieldDescriptor *f);

/* A field of JobSpec that holds the settings of the method it is named after. */
bool jobspec_is_method(const ProtobufCFieldDescriptor *f);

/* True when a field of a message is there; a list or map that is empty is not. */
bool jobspec_has(const ProtobufCMessage *msg, const ProtobufCFieldDescriptor *f);

/*
 * Gives every setting of a JobSpec that is missing and has a default its default, so that what is
 * stored is what runs; `spec` is of malloc's memory. STATUS_INVALID: a method that is none, with the
 * nearest name; a setting of another method than the one chosen; an unknown preset. -ENOMEM.
 */
int jobspec_complete(ProtobufCMessage *spec, struct errmsg *err);
