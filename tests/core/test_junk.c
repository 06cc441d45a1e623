/*
 * Children that have lost their minds: messages of the front, the trainer and inspect children with
 * random changes. The core must live, keep its store sound, and work as before once they are sane.
 *
 * PEFTD_JUNK_SEEDS: how many seeds (40). PEFTD_JUNK_SEED: the first one; a failing test names it.
 */

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/core/client.h"
#include "util/buf.h"
#include "util/log.h"
#include "util/util.h"

static const char data[] = "{\"text\": \"one\"}\n";
static const struct want usual = {.model = "m",
	.dataset = "d",
	.max_steps = 10,
	.save_steps = 2,
	.eval_dataset = "d",
	.eval_steps = 2,
	.seed = 7};

struct junk {
	uint64_t seed, random;
	bool running;
	struct client c;
	unsigned mangled;
};

static uint32_t rnd(struct junk *j)
{
	/* xorshift64* (Marsaglia 2003, Vigna 2016). */
	j->random ^= j->random >> 12;
	j->random ^= j->random << 25;
	j->random ^= j->random >> 27;
	return (uint32_t)(j->random * UINT64_C(0x2545F4914F6CDD1D) >> 32);
}

static void mangle(void *ctx, uint8_t *p, size_t len)
{
	struct junk *j = ctx;
	if (len == 0 || rnd(j) % 4) {
		return;
	}
	j->mangled++;
	for (unsigned n = 1 + rnd(j) % 3; n > 0; n--) {
		size_t at = rnd(j) % len;
		switch (rnd(j) % 4) {
		case 0:
			p[at] ^= (uint8_t)(1u << rnd(j) % 8);
			break;
		case 1:
			p[at] = (uint8_t)rnd(j);
			break;
		case 2:
			p[at] = 0xFF;
			break;
		default: {
			size_t from = rnd(j) % len, most = len - (from > at ? from : at);
			memmove(p + at, p + from, rnd(j) % (most + 1));
			break;
		}
		}
	}
}

static void drop_reply(
	void *ctx, uint64_t session, Peftd__V1__Reply *reply, const void *raw, size_t raw_len)
{
	proto_free(reply);
}

static void ask_anything(struct junk *j, uint64_t job)
{
	struct client *c = &j->c;
	uint8_t id[16];
	id_new(c, id);
	uint64_t session = 1 + rnd(j) % 3;
	struct want want = usual;
	want.seed = 1 + rnd(j) % 9;
	switch (rnd(j) % 16) {
	case 0:
		ask_model_add(c, session, id, "n", "/models/n");
		break;
	case 1:
		ask_upload_begin(c, session, id, data, sizeof(data) - 1);
		break;
	case 2:
		ask_chunk(c, session, id, data, sizeof(data) - 1, 0);
		break;
	case 3:
		ask_dataset_put(c, session, 1000, id, "e", data, sizeof(data) - 1);
		break;
	case 4:
		ask_inspect(c, session, id, "d", "m", 10);
		break;
	case 5:
	case 6:
		ask_submit(c, session, 1000, id, &want);
		break;
	case 7:
		ask_control(c, session, 1000, id, 1 + rnd(j) % 3, (enum control_action)(rnd(j) % 4));
		break;
	case 8:
		ask_show(c, session, id, job);
		break;
	case 9:
		ask_list(c, session, id);
		break;
	case 10:
		ask_watch(c, session, id, job, rnd(j) % 9, rnd(j) % 9, true);
		break;
	case 11:
		ask_fetch(c, session, id, job, 0, false);
		break;
	case 12:
		ask_read(c, session, id, job, 2 * (rnd(j) % 6), rnd(j) % 100, rnd(j) % 9);
		break;
	case 13:
		ask_eval(c, session, id, "m", "d", 0);
		break;
	case 14:
		ask_generate(c, session, id, "m", 0, 9);
		break;
	default:
		world_credit(&c->w, session, id, rnd(j));
		break;
	}
}

static void check_store(struct client *c)
{
	struct errmsg err;
	struct buf report = {0};
	uint64_t faults;
	world_halt(&c->w);
	assert_int_equal(store_open(&c->w.store, c->w.dir, &err), 0);
	assert_int_equal(store_check(c->w.store, &report, &faults), 0);
	if (faults > 0) {
		fail_msg("%s", buf_cstr(&report));
	}
	buf_deinit(&report);
	store_close(c->w.store);
	c->w.store = NULL;
}

static void run_seed(struct junk *j, uint64_t seed)
{
	*j = (struct junk){.seed = seed, .random = seed * 7919 + 1, .running = true};
	struct client *c = &j->c;
	client_init(c);
	have_model(c, "m");
	have_dataset(c, "d", data, sizeof(data) - 1);
	uint64_t job = have_job(c, &usual);
	client_forget(c);

	void *ctx = c->w.ctx;
	void (*on_reply)(void *, uint64_t, Peftd__V1__Reply *, const void *, size_t) = c->w.on_reply;
	c->w.on_reply = drop_reply;
	c->w.ctx = j;
	c->w.mangle = mangle;
	for (int i = 0; i < WORLD_CHILDREN; i++) {
		c->w.children[i].fake.mangle = mangle;
		c->w.children[i].fake.mangle_ctx = j;
	}
	for (int i = 0; i < 250; i++) {
		if (rnd(j) % 3 == 0) {
			ask_anything(j, job);
		}
		for (int k = 0; k < WORLD_CHILDREN; k++) {
			struct world_child *child = &c->w.children[k];
			if (child->id && child->kind != CHILD_FRONT) {
				fake_work(&child->fake, rnd(j) % 8);
			}
		}
		world_turn(&c->w, 20, CRASH_NOT);
		c->w.mono += 300000000;
		if (c->w.exited) { /* a child that speaks another version, it said */
			world_halt(&c->w);
			world_boot(&c->w);
		}
	}
	assert_true(j->mangled > 20);
	c->w.mangle = NULL;
	c->w.on_reply = on_reply;
	c->w.ctx = ctx;
	check_store(c);

	/* Sane again, it works. Ids are fresh: mangled ones may have been any near those before. */
	c->next_id += UINT64_C(1) << 40;
	world_boot(&c->w);
	world_settle(&c->w);
	have_model(c, "sane");
	have_dataset(c, "sane", "sane", 4);
	struct want want = {.model = "sane", .dataset = "sane", .max_steps = 3, .priority = "high"};
	uint64_t last = have_job(c, &want);
	for (int i = 0; i < 30; i++) {
		world_settle(&c->w);
		c->w.mono += 1000000000;
	}
	assert_int_equal(state_of(c, last), JOB_SUCCEEDED);
	check_store(c);
	client_deinit(c);
	j->running = false;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *v = getenv(name);
	return v ? strtoull(v, NULL, 10) : otherwise;
}

static void junk(void **state)
{
	uint64_t first = number("PEFTD_JUNK_SEED", 1), n = number("PEFTD_JUNK_SEEDS", 40);
	for (uint64_t seed = first; seed < first + n; seed++) {
		run_seed(*state, seed);
	}
}

static int setup(void **state)
{
	*state = calloc(1, sizeof(struct junk));
	return *state ? 0 : -1;
}

static int teardown(void **state)
{
	struct junk *j = *state;
	if (j->running) {
		fprintf(stderr, "# it was seed %llu: PEFTD_JUNK_SEED=%llu PEFTD_JUNK_SEEDS=1\n",
			(unsigned long long)j->seed, (unsigned long long)j->seed);
		client_deinit(&j->c);
	}
	free(j);
	return 0;
}

int main(void)
{
	/* Nonsense is reported as a warning: not here, but where a person looks. */
	log_init("test_core_junk", getenv("PEFTD_TEST_LOG") ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(junk, setup, teardown),
	};
	return cmocka_run_group_tests_name("core junk", tests, NULL, NULL);
}
