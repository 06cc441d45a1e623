/* The main thread: the link, and nothing that could keep it from it. */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/trainer/convert.h"
#include "daemon/trainer/link-internal.h"
#include "daemon/trainer/trainer.h"
#include "proto/proto.h"
#include "util/log.h"
#include "util/util.h"

#define STATS_INTERVAL_NS (5 * INT64_C(1000000000))

/* Chunks of a checkpoint go out while less than this waits in the link, so that events overtake
 * them. */
enum { LINK_BACKLOG_MAX = 4 * CHUNK_SIZE };

struct server {
	struct trainer *t;
	struct link *link;
	int64_t next_stats_ns;
};

static uint64_t chunks_of(uint64_t size)
{
	return (size + CHUNK_SIZE - 1) / CHUNK_SIZE;
}

static int protocol_error(const char *what)
{
	log_error("link: %s", what);
	return -EPROTO;
}

/* ---- receiving ------------------------------------------------------------------------------- */

static int on_config(struct server *s, const Peftd__V1__TrainerConfig *pb)
{
	if (pb->version != LINK_VERSION) {
		log_error("the core speaks version %u of the link, this trainer %d; install both from one "
				  "build", pb->version, LINK_VERSION);
		return -EPROTO;
	}
	struct trainer *t = s->t;
	size_t n = pb->device.len;
	if (n >= sizeof(t->device)) {
		return protocol_error("the device's name is too long");
	}
	pthread_mutex_lock(&t->lock);
	if (n > 0) {
		memcpy(t->device, pb->device.data, n);
	}
	t->device[n] = '\0';
	t->threads = pb->threads;
	t->memory_limit = pb->memory_limit;
	t->configured = true;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

static int on_task(struct server *s, const Peftd__V1__Task *pb)
{
	struct trainer *t = s->t;
	struct task *task = NULL;
	struct errmsg err = {0};
	int r = convert_task(pb, &task, &err);
	if (r < 0) {
		task_free(task);
		return r;
	}
	pthread_mutex_lock(&t->lock);
	bool shutdown = t->shutdown;
	bool again = trainer_find(t, task->id) != NULL;
	if (r == 0 && !again && !shutdown) {
		struct task **tail = &t->tasks;
		while (*tail) {
			tail = &(*tail)->next;
		}
		*tail = steal_ptr(task);
		pthread_cond_broadcast(&t->changed);
	}
	pthread_mutex_unlock(&t->lock);
	if (again) {
		task_free(task);
		return protocol_error("a task's number came twice");
	}
	if (task) {
		Peftd__V1__Status status = PEFTD__V1__STATUS__INIT;
		status.code = r != 0 ? (uint32_t)r : STATUS_UNAVAILABLE;
		status.has_message = true;
		status.message = proto_bytes(r != 0 ? err.text : "the trainer is shutting down");
		Peftd__V1__TaskResult res = PEFTD__V1__TASK_RESULT__INIT;
		res.task = task->id;
		res.status = &status;
		Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
		msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT;
		msg.result = &res;
		r = link_send(s->link, &msg, NULL, 0);
		task_free(task);
		return r;
	}
	return 0;
}

static int on_chunk(struct server *s, const Peftd__V1__Chunk *pb, const void *raw, size_t raw_len)
{
	struct trainer *t = s->t;
	int r = 0;
	pthread_mutex_lock(&t->lock);
	struct task *task = trainer_find(t, pb->task);
	if (task && pb->input >= task->n_inputs) {
		r = protocol_error("a chunk for an input that the task does not have");
	} else if (task && task->inputs[pb->input].wanted && !task->inputs[pb->input].complete) {
		struct input *in = &task->inputs[pb->input];
		uint64_t left = in->size - in->received;
		if (pb->offset != in->received || raw_len == 0 ||
			raw_len != (left < CHUNK_SIZE ? left : CHUNK_SIZE)) {
			r = protocol_error("a chunk of the wrong size or offset");
		} else {
			memcpy(in->data + in->received, raw, raw_len);
			in->received += raw_len;
			if (in->received == in->size) {
				in->complete = true;
				pthread_cond_broadcast(&t->changed);
			}
		}
	} else if (task) {
		r = protocol_error("a chunk that was not asked for");
	} /* else: of a task that has ended meanwhile */
	pthread_mutex_unlock(&t->lock);
	return r;
}

static void on_cancel(struct server *s, const Peftd__V1__TaskCancel *pb)
{
	pthread_mutex_lock(&s->t->lock);
	struct task *task = trainer_find(s->t, pb->task);
	if (task) {
		if (pb->checkpoint_first) {
			task->stop = true;
		} else {
			task->cancelled = true;
		}
		pthread_cond_broadcast(&s->t->changed);
	}
	pthread_mutex_unlock(&s->t->lock);
}

static void on_checkpoint_credit(struct server *s, const Peftd__V1__CheckpointCredit *pb)
{
	pthread_mutex_lock(&s->t->lock);
	struct checkpoint_out *c = s->t->checkpoint;
	if (c && c->task == pb->task && __builtin_add_overflow(c->credit, pb->chunks, &c->credit)) {
		c->credit = UINT32_MAX;
	}
	pthread_mutex_unlock(&s->t->lock);
}

static void on_checkpoint_done(struct server *s, const Peftd__V1__CheckpointDone *pb)
{
	pthread_mutex_lock(&s->t->lock);
	struct checkpoint_out *c = s->t->checkpoint;
	if (c && c->task == pb->task && c->step == pb->step && !c->done) {
		c->done = true;
		c->status = (int)pb->status->code;
		const ProtobufCBinaryData *m = &pb->status->message;
		int len = m->len < sizeof(c->err.text) ? (int)m->len : (int)sizeof(c->err.text) - 1;
		snprintf(c->err.text, sizeof(c->err.text), "%.*s", len, m->data ? (char *)m->data : "");
		pthread_cond_broadcast(&s->t->changed);
	}
	pthread_mutex_unlock(&s->t->lock);
}

static void on_output_credit(struct server *s, const Peftd__V1__OutputCredit *pb)
{
	pthread_mutex_lock(&s->t->lock);
	struct task *task = trainer_find(s->t, pb->task);
	if (task) {
		task->any_output_credit = true;
		if (__builtin_add_overflow(task->output_credit, pb->outputs, &task->output_credit)) {
			task->output_credit = UINT32_MAX;
		}
		pthread_cond_broadcast(&s->t->changed);
	}
	pthread_mutex_unlock(&s->t->lock);
}

static void on_shutdown(struct server *s)
{
	pthread_mutex_lock(&s->t->lock);
	s->t->shutdown = true;
	pthread_cond_broadcast(&s->t->changed);
	pthread_mutex_unlock(&s->t->lock);
}

static int dispatch(struct server *s, const Peftd__V1__CoreToTrainer *msg, const void *raw,
	size_t raw_len)
{
	switch (msg->what_case) {
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CONFIG:
		return on_config(s, msg->config);
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_TASK:
		return on_task(s, msg->task);
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHUNK:
		return on_chunk(s, msg->chunk, raw, raw_len);
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CANCEL:
		on_cancel(s, msg->cancel);
		return 0;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_CREDIT:
		on_checkpoint_credit(s, msg->checkpoint_credit);
		return 0;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_CHECKPOINT_DONE:
		on_checkpoint_done(s, msg->checkpoint_done);
		return 0;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_SHUTDOWN:
		on_shutdown(s);
		return 0;
	case PEFTD__V1__CORE_TO_TRAINER__WHAT_OUTPUT_CREDIT:
		on_output_credit(s, msg->output_credit);
		return 0;
	default:
		return protocol_error("a message that this trainer does not know");
	}
}

static int receive(struct server *s)
{
	for (;;) {
		void *msg;
		const void *raw;
		size_t raw_len;
		struct errmsg err = {0};
		int r = link_recv(s->link, &peftd__v1__core_to_trainer__descriptor, &msg, &raw, &raw_len,
			&err);
		if (r == -EPROTO) {
			log_error("%s", err.text);
		}
		if (r <= 0) {
			return r;
		}
		r = dispatch(s, msg, raw, raw_len);
		proto_free(msg);
		if (r < 0) {
			return r;
		}
	}
}

/* ---- sending --------------------------------------------------------------------------------- */

static int send_queue(struct server *s)
{
	struct trainer *t = s->t;
	for (;;) {
		pthread_mutex_lock(&t->lock);
		struct outgoing *o = t->out_head;
		if (o) {
			t->out_head = o->next;
			if (!t->out_head) {
				t->out_tail = &t->out_head;
			}
			t->out_bytes -= o->bytes;
			pthread_cond_broadcast(&t->changed);
		}
		pthread_mutex_unlock(&t->lock);
		if (!o) {
			return 0;
		}
		int r = link_send(s->link, o->msg, o->raw.len > 0 ? o->raw.data : NULL, o->raw.len);
		proto_free(o->msg);
		buf_deinit(&o->raw);
		free(o);
		if (r < 0) {
			return r;
		}
	}
}

/* Asks for more of an input when no more than half of a window is under way. */
static int pull_input(struct server *s, const struct task *task, size_t index, struct input *in)
{
	if (in->size == 0) {
		in->complete = true;
		pthread_cond_broadcast(&s->t->changed);
		return 0;
	}
	uint64_t total = chunks_of(in->size);
	uint64_t outstanding = in->pulled - chunks_of(in->received);
	if (in->pulled == total || outstanding > TRANSFER_WINDOW / 2) {
		return 0;
	}
	uint64_t n = TRANSFER_WINDOW - outstanding;
	n = n < total - in->pulled ? n : total - in->pulled;
	Peftd__V1__Pull pull = PEFTD__V1__PULL__INIT;
	pull.task = task->id;
	pull.input = (uint32_t)index;
	pull.offset = in->pulled * CHUNK_SIZE;
	pull.chunks = (uint32_t)n;
	in->pulled += n;
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_PULL;
	msg.pull = &pull;
	return link_send(s->link, &msg, NULL, 0);
}

static int pull_inputs(struct server *s)
{
	int r = 0;
	pthread_mutex_lock(&s->t->lock);
	for (struct task *task = s->t->tasks; r == 0 && task; task = task->next) {
		for (size_t i = 0; r == 0 && i < task->n_inputs; i++) {
			struct input *in = &task->inputs[i];
			if (in->wanted && !in->complete) {
				r = pull_input(s, task, i, in);
			}
		}
	}
	pthread_mutex_unlock(&s->t->lock);
	return r;
}

/* Chunks are copied under the lock: a cancelled task takes its checkpoint away at any time. */
static int send_checkpoint(struct server *s)
{
	struct trainer *t = s->t;
	for (;;) {
		pthread_mutex_lock(&t->lock);
		struct checkpoint_out *c = t->checkpoint;
		Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
		Peftd__V1__CheckpointChunk chunk = PEFTD__V1__CHECKPOINT_CHUNK__INIT;
		Peftd__V1__CheckpointEnd end = PEFTD__V1__CHECKPOINT_END__INIT;
		int r = 1;
		if (!c || c->done || c->ended || link_queued_bytes(s->link) > LINK_BACKLOG_MAX) {
			r = 0;
		} else if (c->sent == c->data.len) {
			end.task = c->task;
			msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_END;
			msg.checkpoint_end = &end;
			c->ended = true;
			r = link_send(s->link, &msg, NULL, 0);
			r = r < 0 ? r : 1;
		} else if (c->credit > 0) {
			uint64_t left = c->data.len - c->sent;
			size_t n = left < CHUNK_SIZE ? (size_t)left : CHUNK_SIZE;
			chunk.task = c->task;
			chunk.offset = c->sent;
			msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_CHECKPOINT_CHUNK;
			msg.checkpoint_chunk = &chunk;
			r = link_send(s->link, &msg, c->data.data + c->sent, n);
			r = r < 0 ? r : 1;
			c->sent += n;
			c->credit--;
		} else {
			r = 0;
		}
		pthread_mutex_unlock(&t->lock);
		if (r <= 0) {
			return r;
		}
	}
}

static int send_stats(struct server *s)
{
	struct trainer *t = s->t;
	int64_t now = clock_monotonic_ns();
	pthread_mutex_lock(&t->lock);
	bool busy = t->tasks != NULL;
	bool due = t->residency_changed || (busy && now >= s->next_stats_ns);
	if (!t->configured || t->inspect || !due) {
		pthread_mutex_unlock(&t->lock);
		return 0;
	}
	t->residency_changed = false;
	s->next_stats_ns = now + STATS_INTERVAL_NS;

	Peftd__V1__TrainerStats stats = PEFTD__V1__TRAINER_STATS__INIT;
	Peftd__V1__ResidentModel models[MAX_RESIDENT], *ptrs[MAX_RESIDENT];
	for (size_t i = 0; i < t->n_resident; i++) {
		const struct resident_info *m = &t->resident[i];
		models[i] = (Peftd__V1__ResidentModel)PEFTD__V1__RESIDENT_MODEL__INIT;
		models[i].has_name = models[i].has_dtype = models[i].has_bytes = true;
		models[i].name = proto_bytes(m->name);
		models[i].dtype = proto_bytes(m->dtype);
		models[i].bytes = m->bytes;
		ptrs[i] = &models[i];
	}
	stats.has_memory_in_use = stats.has_peak_rss = true;
	stats.memory_in_use = t->memory_in_use;
	stats.peak_rss = process_peak_rss();
	stats.n_models = t->n_resident;
	stats.models = ptrs;
	Peftd__V1__TrainerToCore msg = PEFTD__V1__TRAINER_TO_CORE__INIT;
	msg.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_STATS;
	msg.stats = &stats;
	int r = link_send(s->link, &msg, NULL, 0);
	pthread_mutex_unlock(&t->lock);
	return r;
}

static int pump(struct server *s)
{
	/* Asked before the queue is emptied, so that what was said before the end goes out. */
	pthread_mutex_lock(&s->t->lock);
	bool finished = s->t->finished;
	bool failed = s->t->failed;
	pthread_mutex_unlock(&s->t->lock);

	int r = send_queue(s);
	if (r == 0) {
		r = pull_inputs(s);
	}
	if (r == 0) {
		r = send_checkpoint(s);
	}
	if (r == 0) {
		r = send_stats(s);
	}
	if (r == 0) {
		r = link_flush(s->link);
	}
	if (r < 0) {
		return r;
	}
	if (finished && link_queued(s->link) == 0) {
		return failed ? -ECANCELED : 1;
	}
	return 0;
}

static int wait_timeout(const struct server *s)
{
	pthread_mutex_lock(&s->t->lock);
	bool busy = s->t->tasks != NULL && !s->t->inspect;
	pthread_mutex_unlock(&s->t->lock);
	if (!busy) {
		return -1;
	}
	int64_t left = s->next_stats_ns - clock_monotonic_ns();
	return left <= 0 ? 0 : (int)(left / 1000000) + 1;
}

int link_run(struct trainer *t, int fd)
{
	struct server s = {.t = t};
	int r = link_new(&s.link, fd);
	if (r < 0) {
		return r;
	}
	for (;;) {
		r = pump(&s);
		if (r != 0) {
			break;
		}
		struct pollfd fds[2] = {
			{link_fd(s.link), (short)(POLLIN | (link_queued(s.link) > 0 ? POLLOUT : 0)), 0},
			{t->wake_fd, POLLIN, 0},
		};
		if (poll(fds, 2, wait_timeout(&s)) < 0 && errno != EINTR) {
			r = -errno;
			break;
		}
		if (fds[1].revents & POLLIN) {
			uint64_t n;
			(void)!read(t->wake_fd, &n, sizeof(n));
		}
		r = receive(&s);
		if (r < 0) {
			break;
		}
	}
	link_free(s.link);
	return r > 0 ? 0 : r;
}
