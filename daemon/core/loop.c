#include "daemon/core/loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "daemon/core/notify.h"
#include "proto/proto.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct core *, core_free);

enum {
	MAX_PROCESSES = 8,
	FRAMES_A_TURN = 256, /* of one child, so that no other waits long */
	BYTES_A_TURN = 8 * 1024 * 1024,
	QUEUE_PUMP = 2 * 1024 * 1024,     /* bulk goes into a link's queue up to here */
	QUEUE_DEAF = 32 * 1024 * 1024,    /* beyond this a child is not listened to */
	QUEUE_BROKEN = 512 * 1024 * 1024, /* and beyond this it never will read again */
};
static const int64_t EOF_PATIENCE = 2000000000; /* between a closed link and the process's end */

/* What an epoll event is about: a kind, and the place of the process. */
enum source { SOURCE_SIGNAL, SOURCE_TIMER, SOURCE_LINK, SOURCE_PROCESS };

struct loop {
	const struct loop_options *options;
	struct core *core;
	int epoll, signal_fd, timer_fd;
	int64_t notify_ns, notify_interval;
	struct process processes[MAX_PROCESSES];
	bool ended;
	int status;
};

/* ---- events -------------------------------------------------------------------------------- */

static int step(struct loop *l, struct event *ev)
{
	ev->mono_ns = clock_monotonic_ns();
	ev->wall_ns = clock_wall_ns();
	int r = core_step(l->core, ev);
	event_deinit(ev);
	return r;
}

static int tell_broken(struct loop *l, struct process *p, const char *text)
{
	struct event ev = {.kind = EV_CHILD_BROKEN, .child = p->id};
	p->deaf = true;
	snprintf(ev.exit.text, sizeof(ev.exit.text), "%s", text);
	return step(l, &ev);
}

static int watch(struct loop *l, int fd, enum source source, size_t place, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.u64 = (uint64_t)source << 32 | place};
	return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

/* Hears up to `max` messages of a child. */
static int listen_to(struct loop *l, struct process *p, size_t max)
{
	size_t bytes = 0;
	for (size_t i = 0; i < max && bytes < BYTES_A_TURN && !p->deaf; i++) {
		struct event ev = {.kind = EV_TIME};
		struct errmsg err = {.text = ""};
		int r = p->kind == CHILD_FRONT ? convert_front_recv(p->link, &ev, &err)
									   : convert_trainer_recv(p->link, &ev, &err);
		if (r == 0) {
			return 0;
		}
		if (r == -ENOMEM) {
			return r;
		}
		if (r == -EPROTO) {
			return tell_broken(l, p, err.text);
		}
		if (r < 0) { /* closed; the process should follow */
			p->deaf = true;
			p->eof_ns = clock_monotonic_ns() + EOF_PATIENCE;
			return 0;
		}
		bytes += ev.raw_len + 1;
		ev.child = p->id;
		r = step(l, &ev);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

static int process_ended(struct loop *l, struct process *p)
{
	/* First what it still had to say. The bound is that of the socket's buffer. */
	int r = listen_to(l, p, SIZE_MAX);
	if (r < 0) {
		return r;
	}
	struct event ev = {.kind = EV_CHILD_EXIT, .child = p->id};
	r = process_reap(p, false, &ev.exit.signalled, &ev.exit.code);
	if (r == 0) {
		return 0;
	}
	if (r < 0) {
		log_error("waiting for child %d: %s", (int)p->pid, strerror(-r));
		return r;
	}
	process_deinit(p);
	return step(l, &ev);
}

static int take_signal(struct loop *l)
{
	struct signalfd_siginfo info;
	while (read(l->signal_fd, &info, sizeof(info)) == sizeof(info)) {
		struct event ev = {.kind = EV_SHUTDOWN};
		notify_stopping();
		int r = step(l, &ev);
		if (r < 0) {
			return r;
		}
	}
	return 0;
}

static int take_time(struct loop *l)
{
	uint64_t n;
	(void)!read(l->timer_fd, &n, sizeof(n));
	return 0;
}

static int take_link(struct loop *l, struct process *p, uint32_t events)
{
	int r = 0;
	if (events & EPOLLOUT) {
		r = link_flush(p->link);
		if (r == -ENOMEM) {
			return r;
		}
	}
	/* A reset link still has what was sent before: reading tells the end. */
	return events & (EPOLLIN | EPOLLHUP | EPOLLERR) ? listen_to(l, p, FRAMES_A_TURN) : 0;
}

static int take_event(struct loop *l, const struct epoll_event *e)
{
	size_t place = (uint32_t)e->data.u64;
	struct process *p = &l->processes[place < MAX_PROCESSES ? place : 0];
	switch ((enum source)(e->data.u64 >> 32)) {
	case SOURCE_SIGNAL:
		return take_signal(l);
	case SOURCE_TIMER:
		return take_time(l);
	case SOURCE_LINK:
		return p->id ? take_link(l, p, e->events) : 0;
	case SOURCE_PROCESS:
		return p->id ? process_ended(l, p) : 0;
	}
	return 0;
}

/* ---- actions ------------------------------------------------------------------------------- */

static struct process *find_process(struct loop *l, uint64_t id)
{
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		if (id != 0 && l->processes[i].id == id) {
			return &l->processes[i];
		}
	}
	return NULL;
}

static int spawn_failed(struct loop *l, uint64_t id, int error)
{
	struct event ev = {.kind = EV_CHILD_EXIT, .child = id};
	ev.exit.code = -1;
	snprintf(ev.exit.text, sizeof(ev.exit.text), "%s", strerror(-error));
	return step(l, &ev);
}

static int spawn(struct loop *l, const struct action *a)
{
	size_t place = 0;
	while (place < MAX_PROCESSES && l->processes[place].id) {
		place++;
	}
	if (place == MAX_PROCESSES) {
		return spawn_failed(l, a->child, -EAGAIN);
	}
	struct process *p = &l->processes[place];
	int r = process_start(p, a->child, a->child_kind, &l->options->programs, l->options->level);
	if (r < 0) {
		*p = (struct process){.pidfd = -1};
		return spawn_failed(l, a->child, r);
	}
	log_debug("child %llu is process %d", (unsigned long long)p->id, (int)p->pid);
	r = watch(l, link_fd(p->link), SOURCE_LINK, place, EPOLLIN);
	return r ? r : watch(l, p->pidfd, SOURCE_PROCESS, place, EPOLLIN);
}

static int send_action(struct loop *l, const struct action *a)
{
	struct process *p = find_process(l, a->child);
	if (!p) {
		return 0; /* gone since this was decided; its end has been told, or will be */
	}
	int r = convert_send(p->link, a, &l->options->children);
	if (r == -EMSGSIZE) {
		log_error("a message of kind %d is too long for the link and is dropped", (int)a->kind);
		return 0;
	}
	return r == -ENOMEM ? r : 0; /* a closed link is found by reading it */
}

static int carry_out(struct loop *l, struct action *a)
{
	struct process *p;
	switch (a->kind) {
	case ACT_SPAWN:
		return spawn(l, a);
	case ACT_KILL:
		p = find_process(l, a->child);
		if (p) {
			process_kill(p);
		}
		return 0;
	case ACT_READY:
		dprintf(STDERR_FILENO, "ready\n");
		notify_ready();
		return 0;
	case ACT_EXIT:
		l->ended = true;
		l->status = a->exit.status;
		if (a->exit.text) {
			log_error("%s", a->exit.text);
		}
		return 0;
	default:
		return send_action(l, a);
	}
}

static int carry_out_all(struct loop *l)
{
	struct action *a = core_take_actions(l->core);
	int r = 0;
	while (a) {
		struct action *next = a->next;
		r = r ? r : carry_out(l, a);
		action_free(a);
		a = next;
	}
	return r;
}

/* Fills the links that have room. True when there would be more to fill at once. */
static int pump(struct loop *l, bool *ret_more)
{
	*ret_more = false;
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &l->processes[i];
		if (!p->id || p->deaf || !core_pump_wants(l->core, p->id)) {
			continue;
		}
		size_t queued = link_queued_bytes(p->link);
		if (queued >= QUEUE_PUMP) {
			continue;
		}
		uint64_t id = p->id;
		int r = core_pump(l->core, id, QUEUE_PUMP - queued);
		r = r ? r : carry_out_all(l);
		if (r < 0) {
			return r;
		}
		p = find_process(l, id);
		*ret_more = *ret_more ||
			(p && !p->deaf && link_queued_bytes(p->link) < QUEUE_PUMP &&
				core_pump_wants(l->core, id));
	}
	return 0;
}

/* ---- turns --------------------------------------------------------------------------------- */

/* Listens for what each link is in a state to do. */
static int arm_links(struct loop *l)
{
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &l->processes[i];
		if (!p->id) {
			continue;
		}
		size_t queued = link_queued_bytes(p->link);
		if (queued > QUEUE_BROKEN && !p->deaf) {
			int r = tell_broken(l, p, "it does not read what it is sent");
			if (r < 0) {
				return r;
			}
		}
		/* A deaf link would report its closed end for ever: not even EPOLLHUP is wanted then. */
		struct epoll_event e = {.data.u64 = (uint64_t)SOURCE_LINK << 32 | i};
		e.events = (queued > 0 ? EPOLLOUT : 0) | (queued > QUEUE_DEAF ? 0 : EPOLLIN);
		if (p->deaf) {
			epoll_ctl(l->epoll, EPOLL_CTL_DEL, link_fd(p->link), NULL);
		} else if (epoll_ctl(l->epoll, EPOLL_CTL_MOD, link_fd(p->link), &e) < 0) {
			return -errno;
		}
	}
	return 0;
}

/* Children that have closed their link and do not end. */
static int check_closed(struct loop *l, int64_t now)
{
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &l->processes[i];
		if (p->id && p->eof_ns <= now) {
			p->eof_ns = INT64_MAX;
			int r = tell_broken(l, p, "it closed its link and did not end");
			if (r < 0) {
				return r;
			}
		}
	}
	return 0;
}

static int arm_timer(struct loop *l)
{
	int64_t at = min_i64(core_deadline(l->core), l->notify_ns);
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		if (l->processes[i].id) {
			at = min_i64(at, l->processes[i].eof_ns);
		}
	}
	struct itimerspec t = {0};
	if (at != INT64_MAX) {
		at = max_i64(at, 1); /* 0 would disarm it */
		t.it_value.tv_sec = at / 1000000000;
		t.it_value.tv_nsec = at % 1000000000;
	}
	return timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &t, NULL) < 0 ? -errno : 0;
}

static int turn(struct loop *l, bool *more)
{
	struct epoll_event events[2 * MAX_PROCESSES + 2];
	int n = epoll_wait(l->epoll, events, ARRAY_LEN(events), *more ? 0 : -1);
	if (n < 0 && errno != EINTR) {
		return -errno;
	}
	struct event tick = {.kind = EV_TIME};
	int r = step(l, &tick);
	for (int i = 0; i < n && r == 0; i++) {
		r = take_event(l, &events[i]);
	}
	int64_t now = clock_monotonic_ns();
	r = r ? r : check_closed(l, now);
	r = r ? r : core_commit(l->core);
	r = r ? r : carry_out_all(l);
	r = r ? r : pump(l, more);
	if (r == 0 && now >= l->notify_ns) {
		notify_alive();
		l->notify_ns = now + l->notify_interval;
	}
	r = r ? r : arm_links(l);
	return r ? r : arm_timer(l);
}

static int start(struct loop *l, struct store *store)
{
	l->notify_interval = notify_interval_ns();
	l->notify_ns = l->notify_interval == INT64_MAX ? INT64_MAX : clock_monotonic_ns();
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGHUP);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (l->epoll < 0 || l->signal_fd < 0 || l->timer_fd < 0) {
		return -errno;
	}
	int r = watch(l, l->signal_fd, SOURCE_SIGNAL, 0, EPOLLIN);
	r = r ? r : watch(l, l->timer_fd, SOURCE_TIMER, 0, EPOLLIN);
	if (r < 0) {
		return r;
	}
	struct errmsg err = {.text = ""};
	r = core_new(&l->core, store, &l->options->core, clock_monotonic_ns(), clock_wall_ns(), &err);
	if (r > 0) {
		log_error("%s", err.text);
	}
	r = r ? r : core_commit(l->core);
	return r ? r : carry_out_all(l);
}

/* Nobody is left behind, whatever ended the loop. */
static void end_children(struct loop *l)
{
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		struct process *p = &l->processes[i];
		bool signalled;
		int code;
		if (p->id) {
			process_kill(p);
			process_reap(p, true, &signalled, &code);
			process_deinit(p);
		}
	}
}

int loop_run(struct store *store, const struct loop_options *options)
{
	struct loop l = {.options = options, .epoll = -1, .signal_fd = -1, .timer_fd = -1};
	for (size_t i = 0; i < MAX_PROCESSES; i++) {
		l.processes[i].pidfd = -1;
	}
	int r = start(&l, store);
	bool more = true; /* the first turn arms links and timer */
	while (r == 0 && !l.ended) {
		r = turn(&l, &more);
	}
	if (r < 0) {
		/* What is in memory may differ from what is on disk: the next process begins from there. */
		log_error("cannot go on: %s", strerror(-r));
	}
	end_children(&l);
	core_free(l.core);
	for (int i = 0; i < 3; i++) {
		int fd = i == 0 ? l.epoll : i == 1 ? l.signal_fd : l.timer_fd;
		if (fd >= 0) {
			close(fd);
		}
	}
	return r != 0 ? 1 : l.status;
}
