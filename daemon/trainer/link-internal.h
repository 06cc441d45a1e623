#pragma once
/* The queue from the compute thread to the link, seen from link*.c and task.c only. */

#include <stddef.h>

#include "util/buf.h"

struct trainer;

/* A message that waits to be sent: a Peftd__V1__TrainerToCore of its own memory, and the bytes
 * behind it. */
struct outgoing {
	struct outgoing *next;
	void *msg;
	struct buf raw;
	size_t bytes;
};

void outgoing_free_all(struct trainer *t);

/* The main thread's life: receives and sends until the link closes or the work is over. Takes `fd`.
 * 0: done; -ECONNRESET or -EPIPE: the core is gone; -ECANCELED: the compute thread could not begin
 * and has said why; other -errno. */
int link_run(struct trainer *t, int fd);
