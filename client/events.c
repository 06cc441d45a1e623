#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/format.h"
#include "client/jsonw.h"
#include "client/term.h"
#include "client/watch.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	CREDIT = 256,  /* events under way at most */
	RETRY_MS = 250,
};

/* ---- the stream -------------------------------------------------------------------------- */

struct reader {
	struct client *client;
	const struct event_stream_options *options;
	const struct event_handler *handler;
	struct errmsg *err;
	uint64_t after; /* the last event handed on */
	uint32_t taken; /* events since credit was given last */
	bool lost;
};

static void say_lost(struct reader *r, bool lost)
{
	if (r->lost != lost && r->handler->lost) {
		r->handler->lost(r->handler->data, lost);
	}
	r->lost = lost;
}

static int open_stream(struct reader *r, struct call **ret)
{
	uint8_t id[REQUEST_ID_SIZE];
	client_make_id(id);
	Peftd__V1__WatchRequest watch = PEFTD__V1__WATCH_REQUEST__INIT;
	watch.job = r->options->job;
	watch.has_after = true;
	watch.after = r->after;
	watch.has_credit = true;
	watch.credit = CREDIT;
	watch.has_follow = true;
	watch.follow = r->options->follow;
	watch.has_metrics_only = watch.metrics_only = r->options->metrics_only;
	watch.has_logs_only = watch.logs_only = r->options->logs_only;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.id = (ProtobufCBinaryData){REQUEST_ID_SIZE, id};
	req.what_case = PEFTD__V1__REQUEST__WHAT_WATCH;
	req.watch = &watch;
	r->taken = 0;
	return client_start(r->client, &req, NULL, 0, 0, ret, r->err);
}

static int take_events(struct reader *r, const Peftd__V1__WatchReply *w)
{
	/* Before the events, which tell from where they begin what has become of it since. */
	if (w->job && r->handler->job) {
		r->handler->job(r->handler->data, w->job);
	}
	for (size_t i = 0; i < w->n_events; i++) {
		const Peftd__V1__Event *e = w->events[i];
		r->taken++;
		if (e->seq <= r->after) {
			continue; /* sent before the connection broke */
		}
		int result = r->handler->event(r->handler->data, e);
		if (result != 0) {
			return result;
		}
		r->after = e->seq;
	}
	return 0;
}

/* One connection's share of the stream. 0 when it has ended as it should. */
static int read_stream(struct reader *r)
{
	struct call *call = NULL;
	int result = open_stream(r, &call);
	while (result == 0 && !call_finished(call)) {
		struct answer a = {0};
		result = client_next(r->client, call, r->options->tick_ms, &a, r->err);
		if (result == -ETIMEDOUT) {
			result = 0;
		} else if (result == 0) {
			say_lost(r, false);
			if (a.reply->what_case == PEFTD__V1__REPLY__WHAT_WATCH) {
				result = take_events(r, a.reply->watch);
			}
			answer_deinit(&a);
		}
		if (result == 0 && r->handler->tick) {
			r->handler->tick(r->handler->data);
		}
		if (result == 0 && r->taken >= CREDIT / 2) {
			client_credit(r->client, call, r->taken);
			r->taken = 0;
		}
	}
	client_end(r->client, call);
	return result;
}

int event_stream(struct client *c, const struct event_stream_options *o,
	const struct event_handler *h, struct errmsg *err)
{
	struct reader r = {.client = c, .options = o, .handler = h, .err = err, .after = o->after};
	int64_t lost_since = 0;
	for (;;) {
		uint64_t before = r.after;
		int result = read_stream(&r);
		if (result != CLIENT_LOST && result != STATUS_UNAVAILABLE) {
			return result;
		}
		/* A daemon that goes and comes is waited for; one that only says UNAVAILABLE, or that the
		 * client itself gave up waiting for, not for ever. */
		int64_t now = clock_monotonic_ns();
		if (lost_since == 0 || r.after > before || result == CLIENT_LOST) {
			lost_since = now;
		} else if (now - lost_since > (int64_t)CLIENT_BUSY_MS * 1000000) {
			return result;
		}
		say_lost(&r, true);
		client_drop(c);
		client_pause(RETRY_MS);
	}
}

/* ---- one event --------------------------------------------------------------------------- */

int watch_event_json(struct jsonw *j, uint64_t job, const Peftd__V1__Event *e)
{
	static const struct { Peftd__V1__Event__WhatCase what; const char *type; } types[] = {
		{PEFTD__V1__EVENT__WHAT_STATE, "state"},
		{PEFTD__V1__EVENT__WHAT_METRICS, "metrics"},
		{PEFTD__V1__EVENT__WHAT_EVAL, "eval"},
		{PEFTD__V1__EVENT__WHAT_LOG, "log"},
		{PEFTD__V1__EVENT__WHAT_CHECKPOINT, "checkpoint"},
	};
	jsonw_open(j, '{');
	if (job) {
		jsonw_key(j, "job");
		jsonw_u64(j, job);
	}
	jsonw_key(j, "seq");
	jsonw_u64(j, e->seq);
	jsonw_key(j, "wall_ns");
	jsonw_u64(j, e->wall_ns);
	const char *type = "unknown";
	for (size_t i = 0; i < ARRAY_LEN(types); i++) {
		type = types[i].what == e->what_case ? types[i].type : type;
	}
	jsonw_key(j, "type");
	jsonw_string(j, type);
	if (e->what_case != PEFTD__V1__EVENT__WHAT__NOT_SET) {
		/* All members of the oneof are messages: any of its names will do. */
		jsonw_members(j, &e->state->base);
	}
	jsonw_close(j, '}');
	return j->error;
}

static int words_of_metrics(struct buf *b, const Peftd__V1__MetricsEvent *m, uint64_t steps)
{
	char t[FORMAT_SIZE];
	int r = buf_appendf(b, "step %llu", (unsigned long long)m->step);
	if (r == 0 && steps > 0) {
		r = buf_appendf(b, "/%llu", (unsigned long long)steps);
	}
	if (r == 0 && m->has_loss) {
		r = buf_appendf(b, "  loss %s", format_figure(t, m->loss, 5));
	}
	if (r == 0 && m->has_lr) {
		r = buf_appendf(b, "  lr %s", format_figure(t, m->lr, 3));
	}
	if (r == 0 && m->has_grad_norm) {
		r = buf_appendf(b, "  grad_norm %s", format_figure(t, m->grad_norm, 4));
	}
	if (r == 0 && m->has_tokens && m->has_seconds && m->seconds > 0) {
		r = buf_appendf(b, "  %s tokens/s", format_figure(t, (double)m->tokens / m->seconds, 4));
	}
	return r;
}

static int words_of_state(struct buf *b, const Peftd__V1__StateEvent *s)
{
	int r = buf_appendf(b, "%s", format_state((int)s->state));
	if (r == 0 && s->has_attempt && s->attempt > 1) {
		r = buf_appendf(b, " (attempt %u)", s->attempt);
	}
	if (r == 0 && s->has_reason && s->reason.len > 0) {
		r = buf_append(b, ": ", 2);
		r = r == 0 ? term_escape(b, s->reason.data, s->reason.len, 0) : r;
	}
	return r;
}

int watch_event_words(struct buf *b, const Peftd__V1__Event *e, uint64_t steps)
{
	char t[FORMAT_SIZE];
	int r;
	switch (e->what_case) {
	case PEFTD__V1__EVENT__WHAT_STATE:
		return words_of_state(b, e->state);
	case PEFTD__V1__EVENT__WHAT_METRICS:
		return words_of_metrics(b, e->metrics, steps);
	case PEFTD__V1__EVENT__WHAT_EVAL:
		r = buf_appendf(b, "step %llu", (unsigned long long)e->eval->step);
		return r < 0 || !e->eval->has_eval_loss ? r
			: buf_appendf(b, "  eval_loss %s", format_figure(t, e->eval->eval_loss, 5));
	case PEFTD__V1__EVENT__WHAT_LOG:
		r = term_escape(b, e->log->level.data, e->log->level.len, 0);
		r = r == 0 ? buf_append(b, ": ", 2) : r;
		return r == 0 ? term_escape(b, e->log->text.data, e->log->text.len, 0) : r;
	case PEFTD__V1__EVENT__WHAT_CHECKPOINT:
		return buf_appendf(b, "checkpoint at step %llu, %s%s",
			(unsigned long long)e->checkpoint->step, format_bytes(t, e->checkpoint->size),
			e->checkpoint->final ? ", the last" : "");
	default:
		return buf_appendf(b, "an event of a kind that this version does not know");
	}
}
