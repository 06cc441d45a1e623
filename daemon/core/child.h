#pragma once
/* The children as processes. */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/core/msg.h"
#include "util/errmsg.h"
#include "util/log.h"

struct link;

/* Where the programs are. */
struct programs {
	char *front, *trainer; /* owned */
};
void programs_deinit(struct programs *p);

/* Looks in PEFTD_LIBEXEC where that is set; otherwise where this program was installed, beside it,
 * and in a build tree. STATUS_NOT_FOUND says where it looked. */
int programs_find(struct programs *ret, struct errmsg *err);

struct process {
	uint64_t id; /* the core's number for it; 0: this place is free */
	enum child_kind kind;
	pid_t pid;
	int pidfd;
	struct link *link;
	bool deaf;      /* nothing more is read from it: its link is closed or makes no sense */
	int64_t eof_ns; /* its link closed; it should be gone by then. INT64_MAX: it is open */
};

/* Starts a child with its end of the link as descriptor 3, everything else but the standard three
 * closed, no signal blocked or ignored, in a process group of its own (Ctrl-C is for the core,
 * which asks for checkpoints). -errno. */
int process_start(struct process *ret, uint64_t id, enum child_kind kind, const struct programs *p,
	enum log_level level);
void process_kill(const struct process *p);
/* Takes its exit status; waits when `block`. 0: it still runs; 1: *ret_signalled, *ret_code.
 * -errno. */
int process_reap(const struct process *p, bool block, bool *ret_signalled, int *ret_code);
void process_deinit(struct process *p);
