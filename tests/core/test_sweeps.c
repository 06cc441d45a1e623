/* Sweeps: all of their jobs or none; and what jobs leave behind to be compared by. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/core/client.h"
#include "util/log.h"
#include "util/util.h"

static const char data[] = "{\"text\": \"one\"}\n{\"text\": \"two\"}\n";

#define USUAL .model = "m", .dataset = "d", .eval_dataset = "d", .max_steps = 12, .save_steps = 5, \
	.eval_steps = 4

static const struct want ranks[] = {
	{USUAL, .r = 4, .seed = 1},
	{USUAL, .r = 4, .seed = 2},
	{USUAL, .r = 8, .seed = 1},
	{USUAL, .r = 8, .seed = 2},
};

static int setup(void **state)
{
	struct client *c = malloc(sizeof(*c));
	assert_non_null(c);
	client_init(c);
	have_model(c, "m");
	have_dataset(c, "d", data, sizeof(data) - 1);
	*state = c;
	return 0;
}

static int teardown(void **state)
{
	client_deinit(*state);
	free(*state);
	return 0;
}

static const Peftd__V1__Job *show(struct client *c, uint64_t job)
{
	uint8_t id[16];
	id_new(c, id);
	ask_show(c, 1, id, job);
	world_settle(&c->w);
	return client_ok(c, id)->job;
}

static size_t jobs_there(struct client *c)
{
	size_t n = 0;
	struct store_txn *t;
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	for (uint64_t id = 1; id <= 400; id++) {
		struct store_job rec = {0};
		n += store_job_get(t, id, &rec) == 0;
		store_job_deinit(&rec);
	}
	store_abort(t);
	return n;
}

static uint64_t step_of(struct client *c, uint64_t job)
{
	struct store_txn *t;
	struct store_job rec = {0};
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_job_get(t, job, &rec), 0);
	store_abort(t);
	uint64_t step = rec.last_step;
	store_job_deinit(&rec);
	return step;
}

static void becomes_jobs(void **state)
{
	struct client *c = *state;
	uint8_t id[16], other[16];
	have_job(c, &ranks[0]); /* so that the sweep does not begin with 1 */
	id_new(c, id);
	ask_sweep(c, 1, 1000, id, ranks, ARRAY_LEN(ranks));
	world_settle(&c->w);
	const Peftd__V1__SweepReply *s = client_ok(c, id)->sweep;
	assert_int_equal(s->sweep, 2);
	assert_int_equal(s->size, 4);
	assert_int_equal(s->n_plans, 4);
	assert_int_equal(s->state, PEFTD__V1__JOB_STATE__JOB_PENDING);
	have_job(c, &ranks[0]);

	id_new(c, other);
	ask_list_sweep(c, 1, other, 2);
	world_settle(&c->w);
	const Peftd__V1__JobListReply *l = client_ok(c, other)->job_list;
	static const char *const variants[] = {"r=4 seed=1", "r=4 seed=2", "r=8 seed=1",
		"r=8 seed=2"};
	assert_int_equal(l->n_jobs, 4);
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(l->jobs[i]->id, 2 + i);
		assert_int_equal(l->jobs[i]->sweep, 2);
		assert_int_equal(l->jobs[i]->sweep_size, 4);
		assert_true(proto_equal(&l->jobs[i]->variant, variants[i]));
		const Peftd__V1__Job *j = show(c, 2 + i);
		assert_int_equal(j->spec->lora->r, ranks[i].r);
		assert_int_equal(j->spec->train->seed, ranks[i].seed);
		assert_int_equal(j->state, PEFTD__V1__JOB_STATE__JOB_SUCCEEDED);
	}
	/* Alone is not in a sweep, and neither is a sweep's second job a sweep. */
	assert_false(show(c, 1)->has_sweep);
	static const uint64_t none[] = {1, 3, 6, 77, UINT64_MAX};
	for (size_t i = 0; i < ARRAY_LEN(none); i++) {
		id_new(c, other);
		ask_list_sweep(c, 1, other, none[i]);
		world_settle(&c->w);
		assert_int_equal(client_status(c, other), STATUS_NOT_FOUND);
		assert_non_null(strstr(client_text(c, other), "there is no sweep s"));
	}
	/* Asked again, it is the same sweep. */
	client_forget(c);
	ask_sweep(c, 2, 1000, id, ranks, ARRAY_LEN(ranks));
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->sweep->sweep, 2);
	assert_int_equal(jobs_there(c), 6);
}

static void seeds_share_a_plan(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	unsigned before = c->w.spawned[CHILD_INSPECT];
	id_new(c, id);
	ask_sweep(c, 1, 1000, id, ranks, ARRAY_LEN(ranks));
	world_settle(&c->w);
	client_ok(c, id);
	assert_int_equal(c->w.spawned[CHILD_INSPECT] - before, 2);
}

static void all_or_none(void **state)
{
	struct client *c = *state;
	static const struct {
		struct want bad;
		int code;
		const char *says;
	} cases[] = {
		{{USUAL, .r = 1u << 20, .seed = 3}, STATUS_WONT_FIT, "r=1048576 seed=3: the job needs"},
		{{USUAL, .no_r = true, .seed = 3}, STATUS_INVALID, "r=0 seed=3: lora.r: 0"},
		{{USUAL, .method = "ia3", .seed = 3}, STATUS_INVALID, "r=0 seed=3: method: there is lora"},
		{{USUAL, .method = "lorra", .seed = 3}, STATUS_INVALID, "r=0 seed=3: method: 'lorra'"},
		{{.model = "m", .dataset = "nix", .r = 5}, STATUS_NOT_FOUND, "nix"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		for (size_t at = 0; at < 3; at++) {
			struct want want[] = {ranks[0], ranks[1], ranks[2]};
			uint8_t id[16];
			want[at] = cases[i].bad;
			id_new(c, id);
			ask_sweep(c, 1, 1000, id, want, ARRAY_LEN(want));
			world_settle(&c->w);
			assert_int_equal(client_status(c, id), cases[i].code);
			if (!strstr(client_text(c, id), cases[i].says)) {
				fail_msg("\"%s\" does not say %s", client_text(c, id), cases[i].says);
			}
		}
	}
	assert_int_equal(jobs_there(c), 0);
	struct want many[SWEEP_MAX + 1];
	for (size_t i = 0; i < ARRAY_LEN(many); i++) {
		many[i] = ranks[0];
		many[i].seed = i + 1;
		many[i].hold = true;
	}
	static const size_t counts[] = {0, SWEEP_MAX + 1};
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		uint8_t id[16];
		id_new(c, id);
		ask_sweep(c, 1, 1000, id, many, counts[i]);
		world_settle(&c->w);
		assert_int_equal(client_status(c, id), STATUS_INVALID);
		assert_non_null(strstr(client_text(c, id), "1 to 100 jobs"));
	}
	uint8_t id[16];
	id_new(c, id);
	ask_sweep(c, 1, 1000, id, many, SWEEP_MAX);
	world_settle(&c->w);
	assert_int_equal(client_ok(c, id)->sweep->size, SWEEP_MAX);
	assert_int_equal(client_ok(c, id)->sweep->sweep, 1);
	assert_int_equal(client_ok(c, id)->sweep->state, PEFTD__V1__JOB_STATE__JOB_HELD);
}

/* Killed at every turn: there are no jobs or all four, and never others. */
static void killed_in_between(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	bool none = false, all = false;
	for (unsigned at = 0; at < 60; at++) {
		size_t before = jobs_there(c);
		id_new(c, id);
		struct want want[ARRAY_LEN(ranks)];
		memcpy(want, ranks, sizeof(want));
		want[0].hold = true;
		want[0].max_steps = 20 + at; /* so that no plan is remembered */
		ask_sweep(c, 1, 1000, id, want, ARRAY_LEN(want));
		for (unsigned k = 0; k < at; k++) {
			for (int i = 0; i < WORLD_CHILDREN; i++) {
				if (c->w.children[i].id && c->w.children[i].kind == CHILD_INSPECT) {
					fake_work(&c->w.children[i].fake, 0);
				}
			}
			world_turn(&c->w, 1, CRASH_NOT);
		}
		world_turn(&c->w, 1, at % 2 ? CRASH_AFTER_COMMIT : CRASH_BEFORE_COMMIT);
		world_halt(&c->w);
		world_boot(&c->w);
		size_t more = jobs_there(c) - before;
		assert_true(more == 0 || more == 4);
		none |= more == 0;
		all |= more == 4;
		world_settle(&c->w);
		client_forget(c);
		/* What was not acknowledged is asked for again, and is there once. */
		ask_sweep(c, 2, 1000, id, want, ARRAY_LEN(want));
		world_settle(&c->w);
		assert_int_equal(client_ok(c, id)->sweep->sweep, before + 1);
		assert_int_equal(jobs_there(c), before + 4);
	}
	assert_true(none && all);
}

static void plans_only(void **state)
{
	struct client *c = *state;
	uint8_t id[16];
	struct want want[] = {ranks[0], ranks[2], {USUAL, .r = 1u << 20}};
	want[0].plan_only = true;
	id_new(c, id);
	ask_sweep(c, 1, 1000, id, want, ARRAY_LEN(want));
	world_settle(&c->w);
	const Peftd__V1__SweepReply *s = client_ok(c, id)->sweep;
	assert_false(s->has_sweep);
	assert_int_equal(s->n_plans, 3);
	assert_true(proto_equal(&s->plans[0]->decision, "admit"));
	assert_true(proto_equal(&s->plans[2]->decision, "refuse"));
	assert_int_equal(jobs_there(c), 0);
}

/* Sums over every step once, also when some ran twice. */
static void leaves_an_outcome(void **state)
{
	struct client *c = *state;
	struct want want = {USUAL, .r = 4, .seed = 9};
	uint64_t job = have_job(c, &want);
	for (int i = 0; i < 4000 && step_of(c, job) < 8; i++) {
		struct world_child *trainer = world_child(&c->w, CHILD_TRAINER);
		fake_work(&trainer->fake, 0);
		world_turn(&c->w, 1, CRASH_NOT);
	}
	assert_int_equal(step_of(c, job), 8);
	world_halt(&c->w); /* it goes on from step 5 */
	world_boot(&c->w);
	world_settle(&c->w);
	const Peftd__V1__Job *j = show(c, job);
	assert_int_equal(j->state, PEFTD__V1__JOB_STATE__JOB_SUCCEEDED);
	assert_non_null(j->outcome);
	assert_int_equal(j->outcome->steps, 12);
	assert_int_equal(j->outcome->tokens, 1200);
	double sum = 0, best = 0, last = 0;
	uint64_t best_step = 0;
	uint8_t chain[FAKE_STATE];
	struct store_txn *t;
	struct store_job rec = {0};
	assert_int_equal(store_begin(c->w.store, false, &t), 0);
	assert_int_equal(store_job_get(t, job, &rec), 0);
	store_abort(t);
	for (uint64_t step = 1; step <= 12; step++) {
		sum += fake_seconds(step);
		if (step % 4 == 0) {
			fake_chain(j->spec, rec.dataset.content.digest, step, chain);
			last = fake_loss(chain, step) / 2;
			best_step = best_step == 0 || last < best ? step : best_step;
			best = best_step == step ? last : best;
		}
	}
	assert_true(j->outcome->seconds == sum);
	/* Of 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8 eighths. */
	assert_true(j->outcome->step_seconds_median == 3.5 / 8);
	assert_true(j->outcome->train_loss == j->loss);
	assert_true(j->outcome->eval_loss == last);
	assert_true(j->outcome->best_eval_loss == best);
	assert_int_equal(j->outcome->best_eval_step, best_step);
	assert_non_null(j->measured);
	assert_int_equal(j->measured->arena, 4096);
	assert_int_equal(j->measured->gradients, 1024);
	assert_non_null(j->inference);
	assert_int_equal(j->inference->tokens, 32);
	assert_int_equal(j->inference->passes, 5);
	assert_true(j->inference->base_seconds == 0.25 && j->inference->unmerged_seconds == 0.5);
	assert_false(j->inference->has_merged_seconds); /* none: it cannot be merged */
	store_job_deinit(&rec);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	log_init("test_core_sweeps", getenv("PEFTD_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	const struct CMUnitTest tests[] = {
		TEST(becomes_jobs),
		TEST(seeds_share_a_plan),
		TEST(all_or_none),
		TEST(killed_in_between),
		TEST(plans_only),
		TEST(leaves_an_outcome),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
