#pragma once
/*
 * The core's decisions: the state machine of jobs, the scheduler, the requests of clients and the
 * life of the children. No system call is made here but through the store; time, messages and
 * deaths come in as events, and what is to be done goes out as actions. So the same code runs under
 * the daemon's loop and under the simulator of the tests.
 *
 * A turn of the caller: core_step() for every event that is there, one core_commit(), the actions
 * from core_take_actions() carried out in order, and core_pump() for each child whose link has
 * room. What an action tells anyone has been committed before. Any negative return means that the
 * state in memory and on disk may differ: the process must end at once, with no further action
 * carried out, and begin again from the store.
 */

#include "daemon/core/msg.h"

struct core;

struct core_options {
	const char *version;   /* static */
	uint64_t memory_limit; /* bytes that a job may take, as configured; 0: what the trainer says */
	uint64_t memory_default; /* until the trainer has said it */
	uint32_t daemon_uid;     /* may control everybody's jobs, as root may */
};

/* Takes jobs up where the last process left them and asks for the children. `store` is borrowed.
 * STATUS_* as the store. */
int core_new(struct core **ret, struct store *store, const struct core_options *options,
	int64_t mono_ns, int64_t wall_ns, struct errmsg *err);
void core_free(struct core *c);

/* Hears one event; `ev` may be robbed of what it owns. */
int core_step(struct core *c, struct event *ev);

/* Starts what can be started now and makes everything durable. */
int core_commit(struct core *c);

/* Hands over what is to be done, oldest first; free each with action_free(). Only valid after
 * core_commit() or core_pump(). */
struct action *core_take_actions(struct core *c);

/* Adds actions with what this child waits for (parts of inputs, events, files), about `room` bytes
 * of it. */
int core_pump(struct core *c, uint64_t child, size_t room);
/* Something is left for it. */
bool core_pump_wants(const struct core *c, uint64_t child);

/* The monotonic time at which an EV_TIME is due. */
int64_t core_deadline(const struct core *c);
