/*
 * What is planned is what is taken, and a step takes nothing more. The C library's allocator is
 * replaced by one that counts, for everybody in the process; the linker sends our own code's calls
 * through a second count. Ours must be none. The product library (oneDNN) makes a few lists of
 * arguments for each product it runs, which are gone when it returns: allowed as long as they are
 * small and nothing stays.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/train/session.h"
#include "tests/engine/fixture.h"
#include "util/util.h"

enum { SMALL = 1024 };

static atomic_long own_calls;  /* of the allocator by the code under test */
static atomic_long large;      /* requests by anybody for more than SMALL bytes */
static atomic_long live;       /* blocks that are not freed, of anybody */
static uint64_t device_bytes; /* by backend_alloc() */
static int device_calls;

void *__real_backend_alloc(struct backend *b, size_t bytes);
void *__wrap_backend_alloc(struct backend *b, size_t bytes);

void *__wrap_backend_alloc(struct backend *b, size_t bytes)
{
	device_bytes += bytes;
	device_calls++;
	return __real_backend_alloc(b, bytes);
}

#ifndef __SANITIZE_ADDRESS__
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);
void __libc_free(void *p);

static void count(size_t n)
{
	large += n > SMALL;
	live++;
}

void *malloc(size_t n)
{
	count(n);
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	count(n * size);
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	large += n > SMALL;
	live += !p;
	return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	count(n);
	return __libc_memalign(align, n);
}

int posix_memalign(void **ret, size_t align, size_t n)
{
	count(n);
	*ret = __libc_memalign(align, n);
	return *ret ? 0 : ENOMEM;
}

void free(void *p)
{
	live -= p != NULL;
	__libc_free(p);
}
#endif

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);

void *__wrap_malloc(size_t n)
{
	own_calls++;
	return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
	own_calls++;
	return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	own_calls++;
	return __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
	own_calls++;
	return __real_aligned_alloc(align, n);
}

struct counts {
	long own_calls, large, live;
};

static struct counts counts_now(void)
{
	return (struct counts){own_calls, large, live};
}

static void assert_nothing_since(struct counts before)
{
	struct counts now = counts_now();
	assert_int_equal(now.own_calls, before.own_calls);
	assert_int_equal(now.large, before.large);
	assert_true(now.live <= before.live);
}

static void plan_is_what_is_taken(const char *name, enum dtype dtype)
{
	struct errmsg err = {0};
	struct fixture f;
	struct memory_plan plan;
	struct train_session *s = NULL;
	fixture_open(&f, name);
	fixture_base(&f, dtype, true);
	OK(train_plan(&plan, f.files, f.backend, &f.config, &f.method, f.samples.longest_kept, 0,
		&err));
	device_bytes = 0;
	device_calls = 0;
	OK(train_session_new(&s, f.base, &f.config, &f.method, &plan, &f.samples, &f.samples, NULL,
		&err));
	assert_int_equal(device_bytes, plan.arena);
	assert_int_equal(device_calls, 1);
	assert_int_equal(train_session_arena(s), plan.arena);
	assert_int_equal(plan.arena, plan.trainable_weights + plan.optimizer_states + plan.gradients +
		plan.activations + plan.temporary);
	train_session_free(s);
	fixture_close(&f);
}

/* Every method and family, by the cases of test_methods.c, and LoRA's own cases; of them those whose name
 * holds `only` (NULL: all). */
static void for_all_cases(const char *only, void (*fn)(const char *name, enum dtype dtype))
{
	char **models = golden_folders("models"), **pairs = golden_folders("seq2seq");
	const char *const *const lists[] = {golden_cases, golden_methods, (const char *const *)models,
		(const char *const *)pairs};
	for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
		for (int k = 0; lists[i][k]; k++) {
			if (!only || strstr(lists[i][k], only)) {
				fn(lists[i][k], DTYPE_F32);
				fn(lists[i][k], DTYPE_BF16);
			}
		}
	}
	golden_folders_free(models);
	golden_folders_free(pairs);
}

static void test_plan_is_what_is_taken(void **state)
{
	for_all_cases(*state, plan_is_what_is_taken);
}

/* What a library saved for the case, or, where there is none, what the session exports. */
/* `weights` is what the adapter lies in. */
static void adapter_of(struct adapter *ret, struct buf *weights, struct train_session *s)
{
	struct errmsg err = {0};
	struct buf config = {0};
	OK(train_session_export(s, &config, weights, &err));
	OK(adapter_parse(ret, config.data, config.len, weights->data, weights->len, &err));
	buf_deinit(&config);
}

static void steps_allocate_nothing(const char *name, enum dtype dtype)
{
	struct errmsg err = {0};
	struct fixture f;
	struct adapter adapter;
	struct buf weights = {0};
	fixture_open(&f, name);
	fixture_base(&f, dtype, true);
	if (!strchr(name, '/')) { /* plain LoRA */
		f.method.lora.lora_dropout = dtype == DTYPE_BF16 ? 0.1 : 0;
	}
	if (f.method.p_tuning.encoder_num_layers > 1 &&
		f.method.p_tuning.encoder_reparameterization_type == P_TUNING_LSTM) {
		f.method.p_tuning.encoder_dropout = 0.1;
	}
	f.config.sequential = false;
	struct train_session *s = fixture_session(&f, false);
	struct counts before = counts_now();
	device_calls = 0;
	for (int i = 0; i < 4; i++) { /* into the second epoch */
		struct step_metrics m;
		struct eval_metrics e;
		OK(train_session_run_step(s, &m, &err));
		OK(train_session_eval(s, &e, &err));
		assert_nothing_since(before);
	}
	assert_int_equal(device_calls, 0);
	adapter_of(&adapter, &weights, s);
	train_session_free(s);

	struct generate_options o = {.max_new_tokens = 6, .temperature = 1};
	struct generator *g = NULL;
	OK(generator_new(&g, f.base, &adapter, f.samples.ids, 9, &o, &err));
	before = counts_now();
	for (int i = 0; i < 6; i++) {
		int32_t id;
		bool stopped;
		assert_int_equal(generator_next(g, &id, &stopped, &err), 1);
	}
	assert_nothing_since(before);
	generator_free(g);
	adapter_deinit(&adapter);
	buf_deinit(&weights);
	fixture_close(&f);
}

static void test_steps_allocate_nothing(void **state)
{
	/* The counters do count. */
	struct counts start = counts_now();
	void *p = alloc_array(1, SMALL + 1);
	assert_non_null(p);
	assert_int_equal(own_calls, start.own_calls + 1);
#ifndef __SANITIZE_ADDRESS__
	assert_int_equal(large, start.large + 1);
	assert_int_equal(live, start.live + 1);
#endif
	free(p);
	for_all_cases(*state, steps_allocate_nothing);
}

int main(int argc, char **argv)
{
	void *only = argc > 1 ? argv[1] : NULL;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_plan_is_what_is_taken, only),
		cmocka_unit_test_prestate(test_steps_allocate_nothing, only),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
