#pragma once
/* A job's events as they come. */

#include "client/ctl.h"
#include "event.pb-c.h"

struct event_stream_options {
	uint64_t job, after;
	bool follow, metrics_only, logs_only;
	int tick_ms; /* call `tick` at least this often; -1: never */
};

struct event_handler {
	/* One event; not 0 ends the stream and becomes its result. */
	int (*event)(void *data, const Peftd__V1__Event *e);
	/* The job as the daemon knows it, at the start, at the end, and after reconnecting. */
	void (*job)(void *data, const Peftd__V1__Job *job);
	void (*tick)(void *data);
	/* The connection went, or came back. */
	void (*lost)(void *data, bool lost);
	void *data;
};

/*
 * Hands the events of a job to a handler, in order, each once, through restarts of the daemon; any
 * of its functions but `event` may be NULL. Ends when the daemon says that nothing more comes. 0;
 * what `event` returned; the daemon's status; -errno.
 */
int event_stream(struct client *c, const struct event_stream_options *o,
	const struct event_handler *h, struct errmsg *err);

/* `watch`: shows a job until it ends; the exit status tells how. */
int watch_job(struct ctl *ctl, uint64_t job, uint64_t after);

/* The jobs of a sweep, one after the other. Fails when one of them did. */
int watch_sweep(struct ctl *ctl, uint64_t sweep);

/* One event as a line: JSON with --json, otherwise words. 0 or -ENOMEM. */
struct jsonw;
/* job 0: of which job the event is goes without saying. */
int watch_event_json(struct jsonw *j, uint64_t job, const Peftd__V1__Event *e);
int watch_event_words(struct buf *b, const Peftd__V1__Event *e, uint64_t steps);
