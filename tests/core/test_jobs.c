/* The life of jobs: submit, train, die, resume, hold, cancel, end. */

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/core/client.h"
#include "util/log.h"
#include "util/util.h"

#define SECOND INT64_C(1000000000)

static const char data[] = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
static const char eval_data[] = "{\"text\": \"three\"}\n";

static const struct want usual = {
	.model = "m", .dataset = "d", .max_steps = 20, .save_steps = 5, .seed = 7};

static int setup(void **state)
{
	struct client *c = malloc(sizeof(*c));
	assert_non_null(c);
	client_init(c);
	have_model(c, "m");
	have_dataset(c, "d", data, sizeof(data) - 1);
	have_dataset(c, "e", eval_data, sizeof(eval_data) - 1);
	*state = c;
	return 0;
}

static int teardown(void **state)
{
	client_deinit(*state);
	free(*state);
	return 0;
}

static bool trainer_rests(struct world *w, struct world_child *c)
{
	return c->kind == CHILD_TRAINER;
}

static struct world_child *trainer(struct client *c)
{
	struct world_child *t = world_child(&c->w, CHILD_TRAINER);
	assert_non_null(t);
	return t;
}

/* Lets the trainer do `n` small things. */
static void work(struct client *c, unsigned n)
{
	c->w.lazy = trainer_rests;
	world_settle(&c->w);
	for (unsigned i = 0; i < n; i++) {
		fake_work(&trainer(c)->fake, 0);
		world_settle(&c->w);
	}
}

static void load(struct client *c, uint64_t job, struct store_job *ret)
{
	struct store_txn *t;
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_job_get(t, job, ret), 0);
	store_abort(t);
}

struct history {
	uint64_t seq, step, checkpoints;
	enum job_state states[64];
	unsigned n_states;
	double losses[128];
};

static int read_event(void *ctx, uint64_t seq, const void *event, size_t len)
{
	struct history *h = ctx;
	Peftd__V1__Event *e = proto_unpack(&peftd__v1__event__descriptor, event, len, len, NULL);
	assert_non_null(e);
	assert_int_equal(seq, h->seq + 1);
	assert_int_equal(e->seq, seq);
	h->seq = seq;
	if (e->what_case == PEFTD__V1__EVENT__WHAT_STATE && h->n_states < 64) {
		h->states[h->n_states++] = (enum job_state)e->state->state;
	} else if (e->what_case == PEFTD__V1__EVENT__WHAT_METRICS) {
		assert_int_equal(e->metrics->step, h->step + 1);
		h->step++;
		h->losses[h->step] = e->metrics->loss;
	} else if (e->what_case == PEFTD__V1__EVENT__WHAT_CHECKPOINT) {
		h->checkpoints++;
	}
	proto_free(e);
	return 0;
}

/* All events, without a gap, and every step once. */
static struct history history_of(struct client *c, uint64_t job)
{
	struct history h = {0};
	struct store_txn *t;
	uint64_t first;
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_event_each(t, job, 0, ~0u, UINT32_MAX, read_event, &h, &first), 0);
	store_abort(t);
	return h;
}

/* The job has the result that it would have had without any interruption. */
static void check_result(struct client *c, uint64_t job, const struct want *want)
{
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_SUCCEEDED);
	const struct store_checkpoint *last = &rec.checkpoints[rec.n_checkpoints - 1];
	assert_true(last->final);
	assert_int_equal(last->step, want->max_steps);
	struct spec_storage s;
	want_spec(&s, want);
	uint8_t digest[32];
	fake_checkpoint_digest(&s.spec, rec.dataset.content.digest, want->max_steps, digest);
	assert_memory_equal(last->content.digest, digest, 32);
	struct history h = history_of(c, job);
	assert_int_equal(h.step, want->max_steps);
	assert_int_equal(rec.last_seq, h.seq);
	store_job_deinit(&rec);
}

static void runs_to_its_end(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &usual);
	world_settle(&c->w);
	const Peftd__V1__Reply *r = client_ok(c, id);
	assert_int_equal(client_count(c, 1, id), 1);
	assert_int_equal(r->submit->job, 1);
	assert_int_equal(r->submit->state, PEFTD__V1__JOB_STATE__JOB_PENDING);
	assert_true(proto_equal(&r->submit->plan->decision, "admit"));
	check_result(c, 1, &usual);

	struct history h = history_of(c, 1);
	static const enum job_state want[] = {JOB_PENDING, JOB_STARTING, JOB_RUNNING, JOB_SUCCEEDED};
	assert_int_equal(h.n_states, ARRAY_LEN(want));
	assert_memory_equal(h.states, want, sizeof(want));
	assert_int_equal(h.checkpoints, 4); /* 5, 10, 15 and the final one */

	struct store_job rec;
	load(c, 1, &rec);
	assert_int_equal(rec.n_checkpoints, 2); /* the last two, one of them the final one */
	assert_int_equal(rec.checkpoints[0].step, 15);
	assert_int_equal(rec.attempt, 1);
	assert_int_equal(rec.measured_arena, 4096);
	assert_int_equal(rec.measured_peak_rss, 1000000);
	assert_true(rec.ended_wall_ns >= rec.started_wall_ns && rec.started_wall_ns > 0);
	store_job_deinit(&rec);
}

static void spec_is_completed(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &(struct want){.model = "m", .dataset = "d", .hold = true});
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_HELD);
	Peftd__V1__JobSpec *s = proto_unpack(
		&peftd__v1__job_spec__descriptor, rec.spec.data, rec.spec.len, rec.spec.len, NULL);
	assert_non_null(s);
	assert_true(s->has_method && proto_equal(&s->method, "lora"));
	assert_true(s->lora->has_r && s->lora->r == 16);
	assert_int_equal(s->lora->n_target_modules, 1);
	assert_true(proto_equal(&s->lora->target_modules[0], "all-linear"));
	assert_true(s->train->has_batch_size && s->train->batch_size == 8);
	assert_true(s->train->has_dtype && proto_equal(&s->train->dtype, "bf16"));
	assert_true(s->train->has_num_train_epochs && s->train->num_train_epochs == 1);
	assert_false(s->train->has_max_steps);
	proto_free(s);
	store_job_deinit(&rec);
}

static void same_submit_is_same_job(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	id_new(c, id);
	/* Twice at once from one session and once from another: one job, each is answered once. */
	ask_submit(c, 1, 1000, id, &usual);
	ask_submit(c, 1, 1000, id, &usual);
	ask_submit(c, 2, 1000, id, &usual);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 1, id), 1);
	assert_int_equal(client_count(c, 2, id), 1);
	assert_int_equal(client_got(c, 1, id, 0)->reply->submit->job, 1);
	assert_int_equal(client_got(c, 2, id, 0)->reply->submit->job, 1);

	/* Later, and after a restart: the same answer. */
	world_halt(&c->w);
	world_boot(&c->w);
	world_settle(&c->w);
	ask_submit(c, 3, 1000, id, &usual);
	world_settle(&c->w);
	assert_int_equal(client_got(c, 3, id, 0)->reply->submit->job, 1);

	/* Another body under the same id is refused; under another user it is another request. */
	struct want other = usual;
	other.seed = 8;
	ask_submit(c, 4, 1000, id, &other);
	world_settle(&c->w);
	assert_int_equal(client_got(c, 4, id, 0)->reply->status->code, STATUS_CONFLICT);
	ask_submit(c, 5, 1001, id, &other);
	world_settle(&c->w);
	assert_int_equal(client_got(c, 5, id, 0)->reply->submit->job, 2);
}

static void submit_survives_its_front(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &usual);
	world_turn(&c->w, 10, CRASH_NOT); /* being planned */
	world_kill(&c->w, world_child(&c->w, CHILD_FRONT), SIGKILL);
	world_settle(&c->w);
	assert_int_equal(client_count(c, 0, id), 0);
	assert_int_equal(c->w.spawned[CHILD_FRONT], 2);
	ask_submit(c, 9, 1000, id, &usual);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->submit->job, 1);
	check_result(c, 1, &usual);
}

static void refusals(void **state)
{
	struct client *c = *state;
	static const struct {
		struct want want;
		int code;
		const char *says;
	} cases[] = {
		{{.dataset = "d"}, STATUS_INVALID, "model"},
		{{.model = "m"}, STATUS_INVALID, "dataset"},
		{{.model = "nobody", .dataset = "d"}, STATUS_NOT_FOUND, "nobody"},
		{{.model = "m", .dataset = "nothing"}, STATUS_NOT_FOUND, "nothing"},
		{{.model = "m", .dataset = "d", .eval_dataset = "nix"}, STATUS_NOT_FOUND, "eval_dataset"},
		{{.model = "m", .dataset = "d", .priority = "urgent"}, STATUS_INVALID, "urgent"},
		{{.model = "m", .dataset = "d", .name = "a/b"}, STATUS_INVALID, "name"},
		{{.model = "m", .dataset = "d", .no_r = true}, STATUS_INVALID, "lora.r"},
		{{.model = "m", .dataset = "d", .method = "lorra"}, STATUS_INVALID, "did you mean 'lora'?"},
		{{.model = "m", .dataset = "d", .method = "ia3", .r = 8}, STATUS_INVALID,
			"'lora.r' is a setting of method lora, but the job's method is ia3"},
		/* What the planner does not have is refused by it. */
		{{.model = "m", .dataset = "d", .method = "ia3"}, STATUS_INVALID, "there is lora alone"},
		{{.model = "m", .dataset = "d", .r = 1u << 20, .max_steps = 5}, STATUS_WONT_FIT, "GiB"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		uint8_t id[16];
		id_new(c, id);
		ask_submit(c, 1, 1000, id, &cases[i].want);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), cases[i].code);
		if (!strstr(client_text(c, id), cases[i].says)) {
			fail_msg("\"%s\" does not say %s", client_text(c, id), cases[i].says);
		}
	}
	struct store_txn *t;
	struct store_job rec;
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_job_get(t, 1, &rec), STATUS_NOT_FOUND);
	store_abort(t);
}

static void unknown_field_is_refused(void **state)
{
	struct client *c = *state;
	struct spec_storage s;
	want_spec(&s, &usual);
	ProtobufCMessageUnknownField extra = {
		.tag = 77, .wire_type = PROTOBUF_C_WIRE_TYPE_VARINT, .len = 1, .data = (uint8_t[]){1}};
	s.train.base.n_unknown_fields = 1;
	s.train.base.unknown_fields = &extra;
	Peftd__V1__SubmitRequest m = PEFTD__V1__SUBMIT_REQUEST__INIT;
	m.spec = &s.spec;
	Peftd__V1__Request req = PEFTD__V1__REQUEST__INIT;
	req.what_case = PEFTD__V1__REQUEST__WHAT_SUBMIT;
	req.submit = &m;
	uint8_t id[16];
	id_new(c, id);
	ask(c, 1, 1000, &req, id);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_INVALID);
	assert_non_null(strstr(client_text(c, id), "77"));
}

static void plan_only_queues_nothing(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	struct want want = usual;
	want.plan_only = true;
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &want);
	world_settle(&c->w);
	const Peftd__V1__Reply *r = client_ok(c, id);
	assert_false(r->submit->has_job);
	assert_true(proto_equal(&r->submit->plan->decision, "admit"));
	unsigned spawned = c->w.spawned[CHILD_INSPECT];

	/* The plan is remembered, whatever the job's name: no child is asked again. */
	want.name = "other";
	want.priority = "high";
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &want);
	world_settle(&c->w);
	client_ok(c, id);
	assert_int_equal(c->w.spawned[CHILD_INSPECT], spawned);

	/* While something waits for the device, the plan says so. */
	c->w.lazy = trainer_rests;
	have_job(c, &usual);
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &want);
	world_settle(&c->w);
	assert_true(proto_equal(&client_ok(c, id)->submit->plan->decision, "queue"));

	want.r = 1u << 20;
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &want);
	world_settle(&c->w);
	r = client_ok(c, id);
	assert_true(proto_equal(&r->submit->plan->decision, "refuse"));
	assert_true(r->submit->plan->has_reason);
}

static void trainer_dies_and_job_goes_on(void **state)
{
	struct client *c = *state;
	/* At every instant of a short job; the result never differs. */
	for (unsigned at = 0; at < 45; at++) {
		struct want want = usual;
		want.max_steps = 8;
		want.save_steps = 3;
		want.seed = at % 4 + 4;
		uint64_t job = have_job(c, &want);
		work(c, at);
		world_kill(&c->w, trainer(c), SIGKILL);
		unsigned before = c->w.spawned[CHILD_TRAINER];
		world_settle(&c->w);
		assert_int_equal(c->w.spawned[CHILD_TRAINER], before + 1); /* at once */
		c->w.lazy = NULL;
		world_settle(&c->w);
		check_result(c, job, &want);
		c->w.mono += 20 * SECOND; /* so that the trainer counts as sound */
	}
}

static void three_deaths_without_progress(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	static const int64_t pauses[] = {0, 0, 10}; /* seconds, before each try */
	for (int i = 0; i < 3; i++) {
		int64_t waited = 0;
		/* Until it runs, but has not done a step. */
		work(c, 0);
		while (!trainer(c)->fake.ready) {
			work(c, 1);
		}
		while (state_of(c, job) == JOB_PENDING) {
			c->w.mono += SECOND;
			waited++;
			work(c, 0);
			assert_true(waited < 30);
		}
		assert_int_equal(waited, pauses[i]);
		while (state_of(c, job) != JOB_RUNNING) {
			work(c, 1);
		}
		struct store_job rec;
		load(c, job, &rec);
		assert_int_equal(rec.last_step, 0);
		assert_int_equal(rec.tries, i);
		store_job_deinit(&rec);
		world_kill(&c->w, trainer(c), SIGSEGV);
		world_settle(&c->w);
		c->w.mono += SECOND / 2; /* the trainer's own pause, after its second death */
	}
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_FAILED);
	assert_non_null(strstr(rec.reason, "signal 11"));
	store_job_deinit(&rec);

	/* Tried again, it runs through. */
	uint8_t id[16];
	id_new(c, id);
	c->w.lazy = NULL;
	c->w.mono += 60 * SECOND;
	ask_control(c, 1, 1000, id, job, CONTROL_RETRY);
	world_settle(&c->w);
	client_ok(c, id);
	check_result(c, job, &usual);
}

static void core_dies_and_job_goes_on(void **state)
{
	struct client *c = *state;
	for (unsigned at = 0; at < 40; at += 3) {
		struct want want = usual;
		want.max_steps = 8;
		want.save_steps = 3;
		want.seed = at % 4 + 4;
		uint64_t job = have_job(c, &want);
		work(c, at);
		if (at % 2) {
			fake_work(&trainer(c)->fake, 0);
			world_turn(&c->w, 100, at % 4 == 1 ? CRASH_BEFORE_COMMIT : CRASH_AFTER_COMMIT);
		} else {
			world_halt(&c->w);
		}
		c->w.lazy = NULL;
		world_boot(&c->w);
		world_settle(&c->w);
		check_result(c, job, &want);
	}
}

static void hold_and_release(void **state)
{
	struct client *c = *state;
	uint8_t id[16], held[16];
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	assert_int_equal(state_of(c, job), JOB_RUNNING);

	id_new(c, held);
	ask_control(c, 1, 1000, held, job, CONTROL_HOLD);
	world_settle(&c->w);
	/* Not before its checkpoint is safe. Asked again meanwhile, it is still one request. */
	assert_int_equal(client_count(c, 0, held), 0);
	assert_int_equal(state_of(c, job), JOB_PREEMPTING);
	ask_control(c, 2, 1000, held, job, CONTROL_HOLD);
	c->w.lazy = NULL;
	world_settle(&c->w);
	assert_int_equal(client_ok(c, held)->job->state, PEFTD__V1__JOB_STATE__JOB_HELD);
	assert_int_equal(client_count(c, 1, held), 1);
	assert_int_equal(client_count(c, 2, held), 1);
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_HELD);
	assert_true(rec.n_checkpoints >= 1);
	assert_int_equal(rec.checkpoints[rec.n_checkpoints - 1].step, rec.last_step);
	assert_int_equal(rec.tries, 0);
	store_job_deinit(&rec);

	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_RELEASE);
	world_settle(&c->w);
	client_ok(c, id);
	check_result(c, job, &usual);

	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_HOLD);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);
}

static void hold_of_a_job_that_ends(void **state)
{
	struct client *c = *state;
	uint8_t held[16], cancel[16];
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	id_new(c, held);
	ask_control(c, 1, 1000, held, job, CONTROL_HOLD);
	world_settle(&c->w);
	id_new(c, cancel);
	ask_control(c, 1, 1000, cancel, job, CONTROL_CANCEL);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, cancel)->job->state, PEFTD__V1__JOB_STATE__JOB_CANCELLING);
	assert_int_equal(client_status(c, held), STATUS_CONFLICT);
	c->w.lazy = NULL;
	world_settle(&c->w);
	assert_int_equal(state_of(c, job), JOB_CANCELLED);
}

static void cancel_in_every_state(void **state)
{
	struct client *c = *state;
	c->w.lazy = trainer_rests;
	uint64_t starting = have_job(c, &usual); /* handed to the trainer at once */
	world_settle(&c->w);
	uint64_t pending = have_job(c, &usual);
	struct want want = usual;
	want.hold = true;
	uint64_t held = have_job(c, &want);
	assert_int_equal(state_of(c, starting), JOB_STARTING);
	assert_int_equal(state_of(c, pending), JOB_PENDING);
	const uint64_t jobs[] = {pending, held, starting};
	static const enum job_state then[] = {JOB_CANCELLED, JOB_CANCELLED, JOB_CANCELLING};
	uint8_t id[16];
	for (int i = 0; i < 3; i++) {
		id_new(c, id);
		ask_control(c, 1, 1000, id, jobs[i], CONTROL_CANCEL);
		world_settle(&c->w);
		assert_int_equal((int)client_ok(c, id)->job->state, (int)then[i]);
		assert_int_equal(state_of(c, jobs[i]), then[i]);
	}
	/* A trainer that does not react is ended after a minute, and the job is cancelled all the same.
	 */
	c->w.mono += 61 * SECOND;
	world_settle(&c->w);
	assert_int_equal(state_of(c, starting), JOB_CANCELLED);

	id_new(c, id);
	ask_control(c, 1, 1000, id, starting, CONTROL_CANCEL);
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_CONFLICT);
	c->w.lazy = NULL;
	id_new(c, id);
	ask_control(c, 1, 1000, id, held, CONTROL_RETRY);
	world_settle(&c->w);
	client_ok(c, id);
	check_result(c, held, &usual);
}

static void core_restart_settles_states(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	work(c, 8);
	uint8_t id[16];
	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_CANCEL);
	world_settle(&c->w);
	assert_int_equal(state_of(c, job), JOB_CANCELLING);
	world_halt(&c->w);
	world_boot(&c->w);
	assert_int_equal(state_of(c, job), JOB_CANCELLED);
}

static void others_may_not(void **state)
{
	struct client *c = *state;
	struct want want = usual;
	want.hold = true;
	uint64_t job = have_job(c, &want);
	static const struct {
		uint32_t uid;
		int code;
	} users[] = {{1001, STATUS_DENIED}, {UINT32_MAX, STATUS_DENIED}, {4000, 0}, {0, 0}};
	for (size_t i = 0; i < ARRAY_LEN(users); i++) {
		uint8_t id[16];
		id_new(c, id);
		ask_control(c, 1, users[i].uid, id, job, CONTROL_HOLD);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), users[i].code);
		id_new(c, id);
		ask_dataset_rm(c, 1, users[i].uid, id, "e");
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), i == 3 ? STATUS_NOT_FOUND : users[i].code);
	}
}

static void order_is_class_then_age(void **state)
{
	struct client *c = *state;
	c->w.lazy = trainer_rests;
	static const char *const priorities[] = {"normal", "low", "normal", "high", "high"};
	static const uint32_t positions[] = {0, 4, 3, 1, 2}; /* the first runs already */
	uint64_t jobs[5];
	for (int i = 0; i < 5; i++) {
		struct want want = usual;
		want.priority = priorities[i];
		jobs[i] = have_job(c, &want);
	}
	uint8_t id[16];
	for (int i = 0; i < 5; i++) {
		id_new(c, id);
		ask_show(c, 1, id, jobs[i]);
		world_settle(&c->w);
		assert_int_equal(client_ok(c, id)->job->queue_position, positions[i]);
	}
	id_new(c, id);
	ask_list(c, 1, id);
	world_settle(&c->w);
	const Peftd__V1__JobListReply *list = client_ok(c, id)->job_list;
	assert_int_equal(list->n_jobs, 5);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(list->jobs[i]->queue_position, positions[i]);
	}
	c->w.lazy = NULL;
	world_settle(&c->w);
	uint64_t ended[6] = {0};
	for (int i = 0; i < 5; i++) {
		struct store_job rec;
		load(c, jobs[i], &rec);
		assert_int_equal(rec.state, JOB_SUCCEEDED);
		store_job_deinit(&rec);
		ended[positions[i]] = jobs[i];
	}
	assert_int_equal(ended[1], jobs[3]);
}

static void full_disk_holds_the_job(void **state)
{
	struct client *c = *state;
	/* A store that may hold 8 MiB in all, of which much is left: but not for this checkpoint. */
	world_halt(&c->w);
	setenv("PEFTD_STORE_MAP", "2097152", 1);
	world_boot(&c->w);
	world_settle(&c->w);
	struct want want = usual;
	want.seed = 7; /* two chunks and more each */
	uint64_t job = have_job(c, &want);
	world_settle(&c->w);
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_HELD);
	assert_non_null(strstr(rec.reason, "MiB"));
	store_job_deinit(&rec);
	/* The trainer lives, and the daemon answers. */
	assert_int_equal(c->w.spawned[CHILD_TRAINER], 1);

	unsetenv("PEFTD_STORE_MAP");
	world_halt(&c->w);
	world_boot(&c->w);
	world_settle(&c->w);
	assert_int_equal(state_of(c, job), JOB_HELD);
	uint8_t id[16];
	id_new(c, id);
	ask_control(c, 1, 1000, id, job, CONTROL_RELEASE);
	world_settle(&c->w);
	client_ok(c, id);
	check_result(c, job, &want);
}

static void orderly_end(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	struct store_job rec;
	uint8_t id[16];
	world_shutdown(&c->w);
	id_new(c, id);
	ask_submit(c, 1, 1000, id, &usual);
	c->w.lazy = NULL;
	world_settle(&c->w);
	assert_int_equal(client_status(c, id), STATUS_UNAVAILABLE);
	assert_true(c->w.exited);
	assert_int_equal(c->w.exit_status, 0);
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_PENDING);
	assert_true(rec.last_step > 0 && rec.last_step < 20);
	assert_int_equal(rec.checkpoints[rec.n_checkpoints - 1].step, rec.last_step);
	assert_int_equal(rec.tries, 0);
	store_job_deinit(&rec);

	world_halt(&c->w);
	world_boot(&c->w);
	world_settle(&c->w);
	check_result(c, job, &usual);
}

static void orderly_end_of_a_stuck_trainer(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	world_shutdown(&c->w);
	for (int i = 0; i < 30 && !c->w.exited; i++) {
		c->w.mono += SECOND;
		world_settle(&c->w);
	}
	assert_true(c->w.exited);
	assert_int_equal(c->w.exit_status, 0);
	assert_int_equal(state_of(c, job), JOB_PENDING);
}

static void nonsense_ends_the_child_only(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	struct world_child *t = trainer(c);
	/* A chunk at an offset that nobody is at; then bytes that are no message. */
	Peftd__V1__TrainerToCore m = PEFTD__V1__TRAINER_TO_CORE__INIT;
	Peftd__V1__Pull pull = PEFTD__V1__PULL__INIT;
	pull.task = t->fake.tasks[0].task->task;
	pull.input = 99;
	pull.chunks = 1;
	m.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_PULL;
	m.pull = &pull;
	link_send(t->fake.link, &m, NULL, 0);
	world_settle(&c->w);
	assert_int_equal(c->w.spawned[CHILD_TRAINER], 2);

	Peftd__V1__Chunk other = PEFTD__V1__CHUNK__INIT; /* no TrainerToCore at all */
	other.task = 5;
	link_send(trainer(c)->fake.link, &other, NULL, 0);
	world_settle(&c->w);
	c->w.mono += SECOND; /* the second death in a row costs a pause */
	world_settle(&c->w);
	assert_int_equal(c->w.spawned[CHILD_TRAINER], 3);
	link_send(world_child(&c->w, CHILD_FRONT)->front_end, &other, NULL, 0);
	world_settle(&c->w);
	assert_int_equal(c->w.spawned[CHILD_FRONT], 2);

	c->w.lazy = NULL;
	c->w.mono += 30 * SECOND;
	world_settle(&c->w);
	check_result(c, job, &usual);
}

static void success_needs_a_result(void **state)
{
	struct client *c = *state;
	uint64_t job = have_job(c, &usual);
	work(c, 12);
	assert_int_equal(state_of(c, job), JOB_RUNNING);
	Peftd__V1__TrainerToCore m = PEFTD__V1__TRAINER_TO_CORE__INIT;
	Peftd__V1__TaskResult r = PEFTD__V1__TASK_RESULT__INIT;
	Peftd__V1__Status ok = PEFTD__V1__STATUS__INIT;
	r.task = trainer(c)->fake.tasks[0].task->task;
	r.status = &ok;
	m.what_case = PEFTD__V1__TRAINER_TO_CORE__WHAT_RESULT;
	m.result = &r;
	link_send(trainer(c)->fake.link, &m, NULL, 0);
	world_settle(&c->w);
	assert_int_equal(state_of(c, job), JOB_FAILED);
}

static void late_messages_are_dropped(void **state)
{
	struct client *c = *state;
	uint64_t first = have_job(c, &usual);
	world_settle(&c->w);
	uint64_t job = have_job(c, &usual);
	work(c, 10);
	struct history before = history_of(c, first);
	for (unsigned i = 0; i < 9; i++) {
		fake_late(&trainer(c)->fake, trainer(c)->fake.seen_tasks[0], i);
		fake_late(&trainer(c)->fake, 1000 + i, i);
	}
	world_settle(&c->w);
	assert_int_equal(history_of(c, first).seq, before.seq);
	c->w.lazy = NULL;
	world_settle(&c->w);
	check_result(c, job, &usual);
}

static void evaluations_mark_the_best(void **state)
{
	struct client *c = *state;
	struct want want = usual;
	want.eval_dataset = "e";
	want.eval_steps = 5;
	uint64_t job = have_job(c, &want);
	world_settle(&c->w);
	struct store_job rec;
	load(c, job, &rec);
	assert_int_equal(rec.state, JOB_SUCCEEDED);
	double best = INFINITY;
	uint64_t best_step = 0;
	struct spec_storage s;
	want_spec(&s, &want);
	for (uint64_t step = 5; step <= 20; step += 5) {
		uint8_t chain[FAKE_STATE];
		fake_chain(&s.spec, rec.dataset.content.digest, step, chain);
		double loss = fake_loss(chain, step) / 2;
		if (loss < best) {
			best = loss;
			best_step = step;
		}
	}
	const struct store_checkpoint *k = NULL;
	for (size_t i = 0; i < rec.n_checkpoints; i++) {
		k = rec.checkpoints[i].best ? &rec.checkpoints[i] : k;
	}
	assert_non_null(k);
	assert_int_equal(k->step, best_step);
	assert_true(k->eval_loss == best);
	assert_int_equal(rec.last_eval_step, 20);
	store_job_deinit(&rec);
}

static void children_that_cannot_start(void **state)
{
	struct client *c = *state;
	world_halt(&c->w);
	world_boot(&c->w);
	world_turn(&c->w, 10, CRASH_NOT);
	world_exit(&c->w, trainer(c), 1);
	world_turn(&c->w, 10, CRASH_NOT);
	assert_true(c->w.exited);
	assert_int_equal(c->w.exit_status, 1);
	assert_non_null(strstr(c->w.exit_text, "peftd-trainer"));
}

static void pauses_grow_only_for_those_that_keep_dying(void **state)
{
	struct client *c = *state;
	unsigned started = c->w.spawned[CHILD_TRAINER];
	c->w.lazy = trainer_rests;
	int64_t pause = 0, longest = 0;
	for (int i = 0; i < 12; i++) {
		world_kill(&c->w, trainer(c), SIGKILL);
		pause = 0;
		world_settle(&c->w);
		while (!world_child(&c->w, CHILD_TRAINER)) {
			c->w.mono += SECOND / 10;
			pause += SECOND / 10;
			world_settle(&c->w);
			assert_true(pause <= 6 * SECOND);
		}
		assert_true(i > 0 || pause == 0);
		assert_true(pause >= longest);
		longest = pause;
		started++;
		assert_int_equal(c->w.spawned[CHILD_TRAINER], started);
	}
	assert_true(longest >= 4 * SECOND);
	c->w.lazy = NULL;
	world_settle(&c->w);
	c->w.mono += 30 * SECOND;
	world_kill(&c->w, trainer(c), SIGKILL);
	world_settle(&c->w);
	assert_non_null(world_child(&c->w, CHILD_TRAINER)); /* at once again */
}

int main(void)
{
	log_init("test_core_jobs", getenv("PEFTD_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(runs_to_its_end),
		TEST(spec_is_completed),
		TEST(same_submit_is_same_job),
		TEST(submit_survives_its_front),
		TEST(refusals),
		TEST(unknown_field_is_refused),
		TEST(plan_only_queues_nothing),
		TEST(trainer_dies_and_job_goes_on),
		TEST(three_deaths_without_progress),
		TEST(core_dies_and_job_goes_on),
		TEST(hold_and_release),
		TEST(hold_of_a_job_that_ends),
		TEST(cancel_in_every_state),
		TEST(core_restart_settles_states),
		TEST(others_may_not),
		TEST(order_is_class_then_age),
		TEST(full_disk_holds_the_job),
		TEST(orderly_end),
		TEST(orderly_end_of_a_stuck_trainer),
		TEST(nonsense_ends_the_child_only),
		TEST(success_needs_a_result),
		TEST(late_messages_are_dropped),
		TEST(evaluations_mark_the_best),
		TEST(children_that_cannot_start),
		TEST(pauses_grow_only_for_those_that_keep_dying),
	};
	return cmocka_run_group_tests_name("core jobs", tests, NULL, NULL);
}
