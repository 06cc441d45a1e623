#pragma once
/*
 * The core with a real store in a temporary folder, and around it, in one process and in any order
 * a test wants: fake trainers and inspect children (fake.h), and a front of which the test is the
 * clients. Messages go through real links and the core's own converters; time is the test's.
 */

#include "daemon/core/core.h"
#include "rpc.pb-c.h"
#include "tests/core/fake.h"

enum { WORLD_CHILDREN = 8 };

enum world_crash { CRASH_NOT, CRASH_BEFORE_COMMIT, CRASH_AFTER_COMMIT };

struct world_child {
	uint64_t id; /* 0: this place is free */
	enum child_kind kind;
	struct link *core_end, *front_end; /* front_end: of the front */
	struct fake fake;                  /* of the others */
	bool killed;
	bool front_ready;
};

struct world {
	char dir[64];
	struct store *store;
	struct core *core; /* NULL: it has crashed, or ended */
	struct core_options options;
	int64_t mono, wall;
	struct world_child children[WORLD_CHILDREN];
	unsigned spawned[3]; /* by kind */
	bool ready, exited;
	int exit_status;
	char exit_text[512];
	/* Called with each reply; takes it (proto_free). */
	void (*on_reply)(
		void *ctx, uint64_t session, Peftd__V1__Reply *reply, const void *raw, size_t raw_len);
	void *ctx;
	/* Called with each packed message to the core, which it may change; it is then sent as it is.
	 */
	void (*mangle)(void *ctx, uint8_t *data, size_t len);
	bool (*lazy)(struct world *w, struct world_child *c); /* NULL: children work as they can */
};

/* Makes a folder (in memory where that is possible) and opens the store in it. */
void world_init(struct world *w);
void world_deinit(struct world *w); /* removes the folder */

void world_boot(struct world *w); /* store and core */
void world_halt(struct world *w); /* as after kill -9: all processes are gone */

/* One turn of the loop: every child is heard, up to `frames` messages each; then commit, actions
 * and pumps. With a crash the core is gone afterwards. */
void world_turn(struct world *w, unsigned frames, enum world_crash crash);

/* Children work and the core turns until nobody has anything to do. */
void world_settle(struct world *w);

struct world_child *world_child(struct world *w, enum child_kind kind); /* NULL: there is none */
void world_kill(struct world *w, struct world_child *c, int signal);
void world_exit(struct world *w, struct world_child *c, int status);

/* A client's message. `req` stays the caller's. */
void world_request(struct world *w, uint64_t session, uint32_t uid, const Peftd__V1__Request *req,
	const void *raw, size_t raw_len);
void world_session_end(struct world *w, uint64_t session);
void world_credit(struct world *w, uint64_t session, const uint8_t id[16], uint32_t credit);
void world_stream_end(struct world *w, uint64_t session, const uint8_t id[16]);
void world_shutdown(struct world *w);
