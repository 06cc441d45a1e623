/* Sweeps on the client's side, and what is made of jobs side by side: the page is read as XML. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <ctype.h>
#include <math.h>
#include <stdio.h>

#include "client/compare.h"
#include "client/jsonw.h"
#include "client/plot.h"
#include "client/spec.h"
#include "client/sweep.h"
#include "util/cleanup.h"
#include "util/util.h"

/* ---- sweeps ------------------------------------------------------------------------------ */

static int expand(struct sweep *ret, const char *const *sets, const char *const *axes,
	struct errmsg *err)
{
	_cleanup_(msg_freep) Peftd__V1__JobSpec *base = spec_new();
	const char *items[16];
	struct texts texts = {items, 0};
	for (; *sets; sets++) {
		assert_int_equal(spec_assign(base, *sets, err), 0);
	}
	for (; *axes; axes++) {
		items[texts.n++] = *axes;
	}
	return sweep_expand(ret, base, &texts, err);
}

#define LIST(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_grid(void **state)
{
	struct sweep s = {0};
	struct errmsg err = {0};
	assert_int_equal(expand(&s, LIST("model=m", "lora.lora_alpha=7"),
		LIST("lora.r=4, 8,16", "train.seed=1,2"), &err), 0);
	static const char *const variants[] = {"lora.r=4 train.seed=1", "lora.r=4 train.seed=2",
		"lora.r=8 train.seed=1", "lora.r=8 train.seed=2", "lora.r=16 train.seed=1",
		"lora.r=16 train.seed=2"};
	assert_int_equal(s.n, 6);
	for (size_t i = 0; i < s.n; i++) {
		assert_string_equal(s.jobs[i].variant, variants[i]);
		assert_int_equal(s.jobs[i].spec->lora->r, 4u << (i / 2));
		assert_int_equal(s.jobs[i].spec->train->seed, 1 + i % 2);
		assert_true(s.jobs[i].spec->lora->lora_alpha == 7);
		assert_true(s.jobs[i].spec->train->has_batch_size); /* completed */
	}
	sweep_deinit(&s);

	/* Lists and maps keep their commas. */
	assert_int_equal(expand(&s, LIST("model=m"), LIST("lora.target_modules=[q_proj,v_proj],all-linear",
		"lora.rank_pattern={q_proj: 2, v_proj: 3},{}"), &err), 0);
	assert_int_equal(s.n, 4);
	assert_string_equal(s.jobs[0].variant,
		"lora.target_modules=[q_proj,v_proj] lora.rank_pattern={q_proj: 2, v_proj: 3}");
	assert_int_equal(s.jobs[0].spec->lora->n_target_modules, 2);
	assert_int_equal(s.jobs[0].spec->lora->n_rank_pattern, 2);
	assert_int_equal(s.jobs[3].spec->lora->n_target_modules, 1);
	assert_int_equal(s.jobs[3].spec->lora->n_rank_pattern, 0);
	sweep_deinit(&s);

	/* So does what stands in quotes, which go. */
	assert_int_equal(expand(&s, LIST("model=m"), LIST("name=\"a,b\", 'c,\"d',e\"f"), &err), 0);
	assert_int_equal(s.n, 3);
	assert_true(proto_equal(&s.jobs[0].spec->name, "a,b"));
	assert_true(proto_equal(&s.jobs[1].spec->name, "c,\"d"));
	assert_true(proto_equal(&s.jobs[2].spec->name, "e\"f"));
	sweep_deinit(&s);

	/* No axis: one job. */
	assert_int_equal(expand(&s, LIST("model=m"), LIST(NULL), &err), 0);
	assert_int_equal(s.n, 1);
	assert_string_equal(s.jobs[0].variant, "");
	sweep_deinit(&s);
}

/* Each method keeps its own of the sections that the job file has for the swept ones. */
static void test_methods(void **state)
{
	struct sweep s = {0};
	struct errmsg err = {0};
	const char *const *sets = LIST("lora.r=8", "last_k.k=2");
	assert_int_equal(expand(&s, sets, LIST("method=lora,last_k,full"), &err), 0);
	assert_int_equal(s.n, 3);
	assert_int_equal(s.jobs[0].spec->lora->r, 8);
	assert_null(s.jobs[0].spec->last_k);
	assert_int_equal(s.jobs[1].spec->last_k->k, 2);
	assert_null(s.jobs[1].spec->lora);
	assert_non_null(s.jobs[2].spec->full);
	sweep_deinit(&s);
	/* Settings of a method that is not swept over are still an error. */
	assert_int_equal(expand(&s, sets, LIST("method=last_k,full"), &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "method=last_k: 'lora.r' is a setting of method lora"));
}

static void test_sweeps_refused(void **state)
{
	static const struct { const char *axis, *other, *what; } cases[] = {
		{"lora.r", NULL, "is no KEY=VALUE,VALUE"},
		{"=4", NULL, "is no KEY=VALUE,VALUE"},
		{"lora.r=", NULL, "'lora.r' has an empty value"},
		{"lora.r=4,,8", NULL, "'lora.r' has an empty value"},
		{"lora.r=4,8,", NULL, "'lora.r' has an empty value"},
		{"lora.r=4,8,4", NULL, "has the value 4 twice"},
		{"train.learning_rate=1e-3,2,0.001", NULL, "--sweep: train.learning_rate=1e-3 and "
			"train.learning_rate=0.001 are the same job"},
		{"lora.r=4,null,16", NULL, "lora.r=null and lora.r=16 are the same job"},
		{"name=\"a,b", NULL, "quotes do not go around it"},
		{"name=\"a\"b,c", NULL, "quotes do not go around it"},
		{"name=\"", NULL, "quotes do not go around it"},
		{"name=\"\",c", NULL, "'name' has an empty value"},
		{"method=lora,foo", NULL, "method: 'foo' is none; methods: lora,"},
		{"method=lora,lorra", NULL, "did you mean 'lora'?"},
		{"lora.r=4,eight", NULL, "--sweep lora.r: 'lora.r' must be a whole number"},
		{"lora.rr=4,8", NULL, "unknown key 'lora.rr'"},
		{"lora.r=4", "lora.r=8", "--sweep lora.r is given twice"},
		{"ia3.target_modules=k_proj,v_proj", NULL, "'ia3.target_modules' is a setting of method ia3"},
		{"method=lora,lorra", NULL, "method=lorra: method: 'lorra' is none"},
		{"init_adapter=a,b", NULL, "one for all jobs"},
		{"train.seed=1,2,3,4,5,6,7,8,9,10,11", "lora.r=1,2,3,4,5,6,7,8,9,10", "more than 100"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct sweep s = {0};
		struct errmsg err = {0};
		int r = expand(&s, LIST("model=m"), LIST(cases[i].axis, cases[i].other), &err);
		if (r != STATUS_INVALID || !strstr(err.text, cases[i].what)) {
			fail_msg("%s: %d, %s", cases[i].axis, r, err.text);
		}
	}
}

/* ---- comparing --------------------------------------------------------------------------- */

/* A job without a daemon. */
struct made {
	Peftd__V1__Reply reply;
	Peftd__V1__Job job;
	Peftd__V1__JobSpec spec;
	Peftd__V1__TrainSpec train;
	Peftd__V1__LoraSpec lora;
	Peftd__V1__Plan plan;
};

static void make_job(struct made *m, uint64_t id, uint32_t r, uint64_t seed, uint64_t memory)
{
	*m = (struct made){PEFTD__V1__REPLY__INIT, PEFTD__V1__JOB__INIT, PEFTD__V1__JOB_SPEC__INIT,
		PEFTD__V1__TRAIN_SPEC__INIT, PEFTD__V1__LORA_SPEC__INIT, PEFTD__V1__PLAN__INIT};
	static char variants[8][64];
	char *variant = variants[id % 8];
	snprintf(variant, sizeof(variants[0]), "lora.r=%u train.seed=%u", r, (unsigned)seed);
	m->spec.has_method = m->lora.has_r = m->train.has_seed = true;
	m->spec.lora = &m->lora;
	m->spec.train = &m->train;
	m->lora.r = r;
	m->train.seed = seed;
	m->job.id = id;
	m->job.has_name = m->job.has_variant = true;
	m->job.name = proto_bytes("a <b> & \"c\"");
	m->job.variant = proto_bytes(variant);
	m->job.state = PEFTD__V1__JOB_STATE__JOB_SUCCEEDED;
	m->job.spec = &m->spec;
	m->job.plan = &m->plan;
	m->plan.has_total = m->plan.has_trainable_parameters = true;
	m->plan.total = memory;
	m->plan.trainable_parameters = 1000 * r;
}

/* Four jobs, two seeds each of two ranks; curves of 1000 points. */
static void make_comparison(struct comparison *c, struct made made[4], bool eval)
{
	static const double losses[] = {2.0, 2.2, 1.5, 1.7};
	*c = (struct comparison){.n = 4, .rows = calloc(4, sizeof(*c->rows))};
	assert_non_null(c->rows);
	for (size_t i = 0; i < 4; i++) {
		make_job(&made[i], i + 1, i < 2 ? 4 : 8, 1 + i % 2, i < 2 ? 1u << 20 : 3u << 20);
		struct compare_row *row = &c->rows[i];
		*row = (struct compare_row){.job = &made[i].job, .loss = losses[i],
			.eval_loss = eval ? losses[i] + 1 : NAN, .best_eval_loss = eval ? losses[i] + 1 : NAN,
			.seconds = 10 + (double)(i % 2), .tokens = 1000, .step_seconds = 0.25};
		row->train.at = calloc(1000, sizeof(*row->train.at));
		assert_non_null(row->train.at);
		row->train.n = row->train.cap = 1000;
		for (size_t k = 0; k < 1000; k++) {
			row->train.at[k] = (struct curve_point){(double)k + 1, losses[i] + 1 / ((double)k + 1)};
		}
	}
	assert_int_equal(compare_group_rows(c), 0);
}

static void test_groups(void **state)
{
	struct made made[4];
	_cleanup_(comparison_deinit) struct comparison c;
	make_comparison(&c, made, true);
	assert_int_equal(c.n_groups, 2);
	assert_string_equal(c.groups[0].label, "lora lora.r=4");
	assert_string_equal(c.groups[1].label, "lora lora.r=8");
	assert_int_equal(c.groups[0].seeds, 2);
	assert_true(fabs(c.groups[0].loss.mean - 2.1) < 1e-12);
	assert_true(fabs(c.groups[0].loss.sd - 0.1 * sqrt(2)) < 1e-12); /* n - 1 */
	assert_true(fabs(c.groups[1].best_eval_loss.mean - 2.6) < 1e-12);
	assert_true(fabs(c.groups[0].seconds.mean - 10.5) < 1e-12);
	assert_true(fabs(c.groups[0].tokens_per_second.mean - (100 + 1000.0 / 11) / 2) < 1e-12);
	assert_true(c.groups[1].memory == 3 << 20);

	struct spread one = compare_spread((double[]){3}, 1), none = compare_spread((double[]){NAN}, 1);
	assert_true(one.mean == 3 && isnan(one.sd));
	assert_true(isnan(none.mean) && isnan(none.sd));
	struct spread two = compare_spread((double[]){1, NAN, 3}, 3);
	assert_true(two.mean == 2 && fabs(two.sd - sqrt(2)) < 1e-12);
}

/* Name and priority make no group, copies of a seed no spread. */
static void test_copies(void **state)
{
	static const uint64_t seeds[] = {1, 2, 42, 42, 42};
	static const double losses[] = {1, 2, 9, 3, 9};
	struct made made[6];
	struct compare_row *rows = calloc(6, sizeof(*rows));
	assert_non_null(rows);
	_cleanup_(comparison_deinit) struct comparison c = {.rows = rows, .n = 6};
	for (size_t i = 0; i < 6; i++) {
		make_job(&made[i], i + 1, 4, i < 5 ? seeds[i] : 1, 1);
		made[i].job.step = 10;
		rows[i] = (struct compare_row){.job = &made[i].job, .loss = i < 5 ? losses[i] : 7,
			.eval_loss = NAN, .best_eval_loss = NAN, .step_seconds = NAN};
	}
	made[2].job.state = PEFTD__V1__JOB_STATE__JOB_FAILED; /* the copy that succeeded counts */
	made[4].job.state = PEFTD__V1__JOB_STATE__JOB_CANCELLED;
	made[3].spec.has_priority = made[3].spec.has_name = true;
	made[3].spec.priority = proto_bytes("high");
	made[3].spec.name = proto_bytes("again");
	made[0].job.variant = proto_bytes("priority=high name=a lora.r=4 train.seed=1");
	made[5].train.has_save_steps = true; /* costs time: of a group of its own */
	made[5].train.save_steps = 1;
	assert_int_equal(compare_group_rows(&c), 0);
	assert_int_equal(c.n_groups, 2);
	assert_string_equal(c.groups[0].label, "lora lora.r=4");
	assert_int_equal(c.groups[0].seeds, 3);
	assert_int_equal(c.groups[1].seeds, 1);
	assert_true(fabs(c.groups[0].loss.mean - 2) < 1e-12);
	assert_true(fabs(c.groups[0].loss.sd - 1) < 1e-12);
	assert_true(c.groups[1].loss.mean == 7 && isnan(c.groups[1].loss.sd));
}

static void test_front(void **state)
{
	struct compare_group groups[] = {
		{.memory = 1, .loss = {5, NAN}, .seconds = {9, 0}},
		{.memory = 2, .loss = {3, NAN}, .seconds = {9, 0}},
		{.memory = 3, .loss = {3, NAN}, .seconds = {9, 0}}, /* dearer, no better */
		{.memory = 4, .loss = {2, NAN}, .seconds = {10, 0}},
		{.memory = 4, .loss = {2, NAN}, .seconds = {10, 0}}, /* the same: neither beats */
		{.memory = NAN, .loss = {1, NAN}, .seconds = {NAN, NAN}},
		{.memory = 9, .loss = {NAN, NAN}, .seconds = {1, 0}},
	};
	struct comparison c = {.groups = groups, .n_groups = ARRAY_LEN(groups)};
	static const bool by_memory[] = {true, true, false, true, true, false, false};
	static const bool by_time[] = {false, true, true, true, true, false, false};
	bool front[ARRAY_LEN(groups)];
	compare_front(&c, false, front);
	assert_memory_equal(front, by_memory, sizeof(front));
	compare_front(&c, true, front);
	assert_memory_equal(front, by_time, sizeof(front));
}

/* ---- the page ---------------------------------------------------------------------------- */

/* Counts of what a reader of XML finds; the test fails where it would. */
struct page {
	size_t elements, tables, rows, svgs, lines, circles, titles;
	size_t points; /* of all polylines */
	char *text;    /* all text, one after the other */
};

static const char *name_end(const char *s)
{
	while (isalnum((unsigned char)*s) || *s == '-' || *s == ':') {
		s++;
	}
	return s;
}

/* A number that lies within the drawing. */
static const char *coordinate(const char *s, double max)
{
	char *end;
	double v = strtod(s, &end);
	assert_true(end > s && v >= 0 && v <= max);
	return end;
}

static void check_points(struct page *p, const char *value, size_t len)
{
	const char *end = value + len;
	while (value < end) {
		value = coordinate(value, 720);
		assert_int_equal(*value++, ',');
		value = coordinate(value, 420);
		p->points++;
		assert_true(value == end || *value == ' ');
		value += value < end;
	}
}

static void check_attribute(struct page *p, const char *name, size_t n, const char *value,
	size_t len)
{
	static const char *const loaders[] = {"src", "href", "xlink:href", "data", "action", "onload"};
	for (size_t i = 0; i < ARRAY_LEN(loaders); i++) {
		assert_false(strlen(loaders[i]) == n && memcmp(name, loaders[i], n) == 0);
	}
	assert_null(memchr(value, '<', len));
	bool xmlns = n == 5 && memcmp(name, "xmlns", 5) == 0;
	assert_true(xmlns || !memmem(value, len, "http", 4));
	assert_null(memmem(value, len, "url(", 4));
	if (n == 6 && memcmp(name, "points", 6) == 0) {
		check_points(p, value, len);
	} else if ((n == 2 && (memcmp(name, "cx", 2) == 0 || memcmp(name, "x1", 2) == 0))) {
		coordinate(value, 720);
	} else if (n == 2 && (memcmp(name, "cy", 2) == 0 || memcmp(name, "y1", 2) == 0)) {
		coordinate(value, 420);
	}
}

static void count(struct page *p, const char *name, size_t n)
{
	const struct { const char *name; size_t *count; } counts[] = {{"table", &p->tables},
		{"tr", &p->rows}, {"svg", &p->svgs}, {"polyline", &p->lines}, {"circle", &p->circles},
		{"title", &p->titles}};
	assert_false(n == 6 && memcmp(name, "script", 6) == 0);
	assert_false(n == 4 && memcmp(name, "link", 4) == 0);
	assert_false(n == 3 && memcmp(name, "img", 3) == 0);
	p->elements++;
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		*counts[i].count += strlen(counts[i].name) == n && memcmp(name, counts[i].name, n) == 0;
	}
}

static const char *start_tag(struct page *p, const char *s, bool *ret_empty)
{
	const char *end = name_end(s);
	assert_true(end > s);
	count(p, s, (size_t)(end - s));
	for (s = end; isspace((unsigned char)*s); s = end) {
		s += strspn(s, " \n\t");
		if (*s == '/' || *s == '>') {
			break;
		}
		const char *name = s;
		s = name_end(s);
		size_t n = (size_t)(s - name);
		assert_true(n > 0 && s[0] == '=' && s[1] == '"');
		end = strchr(s + 2, '"');
		assert_non_null(end);
		check_attribute(p, name, n, s + 2, (size_t)(end - (s + 2)));
		end++;
	}
	*ret_empty = *s == '/';
	s += *ret_empty;
	assert_int_equal(*s, '>');
	return s + 1;
}

static void read_page(struct page *p, const char *s)
{
	const char *stack[64];
	size_t lens[64], depth = 0, text = 0;
	*p = (struct page){.text = calloc(1, strlen(s) + 1)};
	assert_int_equal(strncmp(s, "<!DOCTYPE html>\n", 16), 0);
	for (s += 16; *s;) {
		if (*s == '&') {
			assert_int_equal(s[1], '#');
			p->text[text++] = (char)strtol(s + 2, (char **)&s, 10);
			assert_int_equal(*s++, ';');
		} else if (*s != '<') {
			assert_int_not_equal(*s, '>');
			p->text[text++] = *s++;
		} else if (s[1] == '/') {
			const char *end = name_end(s + 2);
			assert_true(depth-- > 0);
			size_t n = (size_t)(end - (s + 2));
			if (n != lens[depth] || memcmp(s + 2, stack[depth], n) != 0) {
				fail_msg("%.20s closes %.20s", s, stack[depth]);
			}
			assert_int_equal(*end, '>');
			s = end + 1;
		} else {
			bool empty;
			const char *name = s + 1;
			s = start_tag(p, name, &empty);
			if (!empty) {
				assert_true(depth < ARRAY_LEN(stack));
				stack[depth] = name;
				lens[depth++] = (size_t)(name_end(name) - name);
			}
		}
	}
	assert_int_equal(depth, 0);
}

static void test_page(void **state)
{
	struct made made[4];
	_cleanup_(comparison_deinit) struct comparison c;
	_cleanup_(buf_deinit) struct buf b = {0};
	struct page p;
	make_comparison(&c, made, true);
	assert_int_equal(compare_html(&b, &c, "2026-11-23"), 0);
	assert_non_null(buf_cstr(&b));
	read_page(&p, (char *)b.data);
	assert_int_equal(p.tables, 3);
	assert_int_equal(p.rows, (1 + 4) + (1 + 2) + (1 + 4)); /* jobs, over seeds, memory */
	assert_int_equal(p.svgs, 3);
	assert_int_equal(p.circles, 2 * 2);
	assert_int_equal(p.lines, 4 + 1); /* curves, and the front by memory; by time it is one point */
	assert_true(p.points > 4 * 300 && p.points <= 4 * 400 + 2);
	/* Escaped, and as it was when it is read. */
	assert_null(strstr((char *)b.data, "<b>"));
	assert_non_null(strstr(p.text, "a <b> & \"c\""));
	assert_non_null(strstr(p.text, "lora.r=8 train.seed=2"));
	assert_non_null(strstr(p.text, "2.1000 ± 0.14"));
	assert_non_null(strstr(p.text, "lowest evaluation loss"));
	assert_non_null(strstr(p.text, "1.5 MiB")); /* at an axis of bytes */
	free(p.text);

	/* Nobody was evaluated: the loss of training says how good they are. */
	_cleanup_(comparison_deinit) struct comparison d;
	_cleanup_(buf_deinit) struct buf e = {0};
	make_comparison(&d, made, false);
	assert_int_equal(compare_html(&e, &d, "2026-11-23"), 0);
	assert_non_null(buf_cstr(&e));
	read_page(&p, (char *)e.data);
	assert_non_null(strstr(p.text, "last training loss"));
	assert_null(strstr(p.text, "lowest evaluation loss"));
	free(p.text);
}

/* With nothing known of any job there is still a page. */
static void test_empty_page(void **state)
{
	struct made made;
	struct compare_row *rows = calloc(1, sizeof(*rows));
	assert_non_null(rows);
	_cleanup_(comparison_deinit) struct comparison c = {.rows = rows, .n = 1};
	_cleanup_(buf_deinit) struct buf b = {0};
	struct page p;
	make_job(&made, 1, 4, 1, 0);
	made.job.plan = NULL;
	made.job.spec = NULL;
	made.job.name = (ProtobufCBinaryData){3, (uint8_t *)"\xFF\x01<"};
	rows[0] = (struct compare_row){.job = &made.job, .loss = NAN, .eval_loss = NAN,
		.best_eval_loss = NAN, .step_seconds = NAN, .no_curves = true};
	assert_int_equal(compare_group_rows(&c), 0);
	assert_int_equal(compare_html(&b, &c, "now"), 0);
	assert_non_null(buf_cstr(&b));
	read_page(&p, (char *)b.data);
	assert_non_null(strstr(p.text, "nothing is known"));
	assert_non_null(strstr(p.text, "they have no curve"));
	assert_non_null(strstr(p.text, "?<"));
	free(p.text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_grid),
		cmocka_unit_test(test_methods),
		cmocka_unit_test(test_sweeps_refused),
		cmocka_unit_test(test_groups),
		cmocka_unit_test(test_copies),
		cmocka_unit_test(test_front),
		cmocka_unit_test(test_page),
		cmocka_unit_test(test_empty_page),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
