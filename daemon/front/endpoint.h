#pragma once
/* Where clients connect: checks of an endpoint's address, and binding it safely. */

#include <stdint.h>
#include <sys/types.h>

#include "util/errmsg.h"

/* Checks form and transport of an endpoint. STATUS_INVALID. */
int endpoint_check(const char *endpoint, struct errmsg *err);

/*
 * Binds a ZeroMQ socket to a checked endpoint. libzmq's bind() removes whatever lies at an ipc
 * path, so a file that is no socket, or a socket where somebody answers, is refused first
 * (STATUS_CONFLICT); a stale one is replaced. The socket's file has permissions `mode` from its
 * first moment. STATUS_FAILED with the reason when it cannot be bound.
 */
int endpoint_bind(void *zmq_socket, const char *endpoint, mode_t mode, struct errmsg *err);

/* Removes the socket's file of an endpoint that this process has bound and closed; libzmq leaves it. */
void endpoint_remove(const char *endpoint);

/* The user id in a Peer-Address of libzmq over ipc ("…:uid:gid:pid"); UINT32_MAX for anything
 * else. */
uint32_t endpoint_peer_uid(const char *peer_address);
