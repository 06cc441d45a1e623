/* method_run CASE OUT STEPS: a golden case ("methods/ia3-default") trained for STEPS steps, exported into
 * the folder OUT, which must exist, and read back, for tests/golden/check_methods.py to load in the
 * method's own library. Prints what the engine makes of the folder: {"files": its names, "loss": over all
 * rows, "logits": after the first row}. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "tests/engine/fixture.h"
#include "util/cleanup.h"

static const char *arg_case, *arg_out;
static int arg_steps;

static void write_file(const struct buf *data, const char *name)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", arg_out, name);
	_cleanup_(fclosep) FILE *f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(data->data, 1, data->len, f), data->len);
}

static void print_result(struct fixture *f, const struct adapter *a)
{
	struct errmsg err = {0};
	struct eval_metrics eval;
	struct generate_options o = {.max_new_tokens = 1};
	struct generator *g = NULL;
	struct adapter_files files = adapter_files(a->kind);
	OK(engine_eval(f->base, a, &f->samples, &eval, &err));
	const struct samples *s = &f->samples;
	OK(generator_new(&g, f->base, a, s->ids, (size_t)(s->source_len ? s->source_len[0] : s->start[1]),
		&o, &err));
	printf("{\"files\": [\"%s\", \"%s\"], \"loss\": %.17g, \"logits\": [", files.config, files.weights,
		eval.loss);
	for (int64_t i = 0; i < model_files_config(f->files)->vocab_size; i++) {
		printf("%s%.9g", i > 0 ? ", " : "", (double)generator_logits(g)[i]);
	}
	printf("]}\n");
	generator_free(g);
}

static void run(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	struct step_metrics m;
	struct buf config = {0}, weights = {0};
	struct adapter a;
	fixture_open(&f, arg_case);
	fixture_base(&f, DTYPE_F32, true);
	struct train_session *s = fixture_session(&f, true);
	for (int i = 0; i < arg_steps; i++) {
		OK(train_session_run_step(s, &m, &err));
	}
	OK(train_session_export(s, &config, &weights, &err));
	train_session_free(s);
	OK(adapter_parse(&a, config.data, config.len, weights.data, weights.len, &err));
	write_file(&config, adapter_files(a.kind).config);
	write_file(&weights, adapter_files(a.kind).weights);
	print_result(&f, &a);
	adapter_deinit(&a);
	buf_deinit(&config);
	buf_deinit(&weights);
	fixture_close(&f);
}

int main(int argc, char **argv)
{
	char *end;
	if (argc != 4) {
		fprintf(stderr, "usage: method_run CASE OUT STEPS\n");
		return 2;
	}
	arg_case = argv[1];
	arg_out = argv[2];
	arg_steps = (int)strtol(argv[3], &end, 10);
	const struct CMUnitTest tests[] = {cmocka_unit_test(run)};
	return *end ? 2 : cmocka_run_group_tests(tests, NULL, NULL);
}
