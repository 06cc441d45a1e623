#pragma once
/* The form of a request: what can be checked without knowing anything. */

#include <stddef.h>
#include <stdint.h>

#include "proto/proto.h"
#include "rpc.pb-c.h"

/*
 * Unpacks a client's message and checks its form: a well-formed Request of a kind and with fields
 * that this version knows, an id of 16 bytes, a raw frame exactly where one belongs. 0 and a
 * request to free with proto_free(); STATUS_INVALID, with the id in ret_id and its length (0 when
 * there is none to be found) in *ret_id_len, for the answer.
 */
int request_parse(const void *data, size_t len, size_t raw_len, Peftd__V1__Request **ret,
	uint8_t ret_id[REQUEST_ID_SIZE], size_t *ret_id_len, struct errmsg *err);

/* Checks that neither `msg` nor a message in it holds a field that its descriptor lacks: an option
 * of a newer client must be refused, never ignored. STATUS_INVALID. */
int request_check_known(const ProtobufCMessage *msg, struct errmsg *err);
