#pragma once
/* Clients of a world: requests in one call each, and the replies that came. */

#include "tests/core/world.h"

struct got {
	uint64_t session;
	uint8_t id[16];
	Peftd__V1__Reply *reply;
	uint8_t *raw;
	size_t raw_len;
};

struct client {
	struct world w;
	struct got *got;
	size_t n_got, cap_got;
	uint64_t next_id;
};

void client_init(struct client *c); /* boots the world and waits until it is ready */
void client_deinit(struct client *c);
void client_forget(struct client *c); /* drops the replies */

/* Request ids: all different, or made from a number. */
void id_new(struct client *c, uint8_t id[16]);
void id_of(uint64_t n, uint8_t id[16]);

/* The n-th reply to `id` in any session (session 0) or in one; NULL. */
const struct got *client_got(
	const struct client *c, uint64_t session, const uint8_t id[16], size_t n);
size_t client_count(const struct client *c, uint64_t session, const uint8_t id[16]);
/* The last one's status; -1: none came. */
int client_status(const struct client *c, const uint8_t id[16]);
const char *client_text(const struct client *c, const uint8_t id[16]);
/* The last reply; fails the test when there is none or its status is not OK. */
const Peftd__V1__Reply *client_ok(const struct client *c, const uint8_t id[16]);

/* A job file. 0 and NULL: left out. */
struct want {
	const char *model, *dataset, *eval_dataset, *name, *priority, *method;
	uint32_t max_steps, save_steps, eval_steps, r;
	uint64_t seed;
	bool no_r; /* lora.r 0 */
	bool hold, plan_only;
};
struct spec_storage {
	Peftd__V1__JobSpec spec;
	Peftd__V1__TrainSpec train;
	Peftd__V1__LoraSpec lora;
};
void want_spec(struct spec_storage *s, const struct want *want);

/* Each sends one request in `session` as `uid`. */
void ask(struct client *c, uint64_t session, uint32_t uid, Peftd__V1__Request *req,
	const uint8_t id[16]);
void ask_model_add(
	struct client *c, uint64_t session, const uint8_t id[16], const char *name, const char *path);
void ask_model_rm(struct client *c, uint64_t session, const uint8_t id[16], const char *name);
void ask_upload_begin(
	struct client *c, uint64_t session, const uint8_t id[16], const void *data, size_t len);
void ask_chunk(struct client *c, uint64_t session, const uint8_t id[16], const void *data,
	size_t len, uint64_t offset);
void ask_dataset_put(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	const char *name, const void *data, size_t len);
void ask_dataset_rm(
	struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16], const char *name);
void ask_inspect(struct client *c, uint64_t session, const uint8_t id[16], const char *dataset,
	const char *model, uint64_t rows);
void ask_submit(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	const struct want *want);
/* Of want[0], hold and plan_only count. Variants are "r=R seed=S". */
void ask_sweep(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	const struct want *want, size_t n);
void ask_control(struct client *c, uint64_t session, uint32_t uid, const uint8_t id[16],
	uint64_t job, enum control_action action);
void ask_show(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job);
void ask_list(struct client *c, uint64_t session, const uint8_t id[16]);
void ask_list_sweep(struct client *c, uint64_t session, const uint8_t id[16], uint64_t sweep);
void ask_status(struct client *c, uint64_t session, const uint8_t id[16]);
void ask_watch(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job,
	uint64_t after, uint32_t credit, bool follow);
void ask_fetch(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job,
	uint64_t step, bool best);
void ask_read(struct client *c, uint64_t session, const uint8_t id[16], uint64_t job, uint64_t step,
	uint64_t offset, uint32_t credit);
void ask_eval(struct client *c, uint64_t session, const uint8_t id[16], const char *model,
	const char *dataset, uint64_t job);
void ask_generate(struct client *c, uint64_t session, const uint8_t id[16], const char *model,
	uint64_t job, uint32_t tokens);

/* Whole exchanges, in session 1 as user 1000; they settle the world and must succeed. */
void have_model(struct client *c, const char *name);
void have_upload(struct client *c, const void *data, size_t len);
void have_dataset(struct client *c, const char *name, const void *data, size_t len);
uint64_t have_job(struct client *c, const struct want *want); /* submitted; not settled further */
enum job_state state_of(struct client *c, uint64_t job);
