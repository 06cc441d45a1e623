#pragma once
/*
 * The front: the only process that links ZeroMQ and meets clients. It checks the form of requests
 * and who asks, numbers connections as sessions, keeps their leases, and hands everything else to
 * the core. It holds nothing that must survive: when it dies the core starts another, and clients
 * say Hello again and resend what is unanswered.
 */

#include "util/errmsg.h"

struct front;

struct front_options {
	int link_fd;          /* the core's end is on the other side; owned by the front from now on */
	unsigned socket_mode; /* permissions of an ipc socket's file */
	unsigned max_files;   /* descriptors this process may have */
	unsigned lease_ms;    /* 0: SESSION_LEASE_S */
};

/* -errno, or STATUS_FAILED with `err` filled. */
int front_new(struct front **ret, const struct front_options *options, struct errmsg *err);
void front_free(struct front *f);

/* Waits for the core's FrontConfig, binds, answers FrontReady and serves until the core closes the
 * link or sends Shutdown (0). STATUS_INVALID or STATUS_CONFLICT for a configuration that cannot
 * work; other codes and -errno for faults after which a new front may fare better. */
int front_run(struct front *f, struct errmsg *err);
