/* Merging: the weights that PEFT's merge_and_unload() makes (tests/golden/make_merged.py), the
 * logits of base and adapter, and the folder that is written. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/generate/generate.h"
#include "engine/peft/merge.h"
#include "tests/engine/fixture.h"
#include "util/cleanup.h"
#include "util/util.h"

static const char *const cases[] = {"lora-dora", "lora-dora-bias", "lora-bias-all",
	"lora-bias-lora_only", "lora-modules_to_save", "lora-patterns", "lora-rslora",
		"lora-embeddings",
	"lora-head", "lora-pissa", "lora-olora", "ia3-default", "ia3-inputs", "ia3-outputs",
	"ln_tuning-default", NULL};

/* A trained adapter as PEFT saved it, on its base. */
struct trained {
	struct fixture f;
	char *config, *weights;
	struct adapter adapter;
	struct model_files *merged;
};

static void trained_open(struct trained *t, const char *name)
{
	struct errmsg err = {0};
	char folder[4096];
	size_t config_len, weights_len;
	struct stat st;
	snprintf(folder, sizeof(folder), "methods/%s", name);
	fixture_open(&t->f, folder);
	snprintf(folder, sizeof(folder), "%s/final-lora", t->f.folder);
	if (stat(folder, &st) < 0) {
		snprintf(folder, sizeof(folder), "%s/final", t->f.folder);
	}
	t->config = read_file(folder, "adapter_config.json", &config_len);
	t->weights = read_file(folder, "adapter_model.safetensors", &weights_len);
	OK(adapter_parse(&t->adapter, t->config, config_len, t->weights, weights_len, &err));
	OK(merged_files_open(&t->merged, t->f.files, &t->adapter, &err));
}

static void trained_close(struct trained *t)
{
	model_files_free(t->merged);
	adapter_deinit(&t->adapter);
	free(t->config);
	free(t->weights);
	fixture_close(&t->f);
}

struct golden {
	char *data;
	struct safetensors st;
};

static void golden_open(struct golden *g, const char *name)
{
	struct errmsg err = {0};
	char folder[4096], file[256];
	size_t len;
	snprintf(folder, sizeof(folder), "%s/merged", getenv("PEFTD_GOLDEN"));
	snprintf(file, sizeof(file), "%s.safetensors", name);
	g->data = read_file(folder, file, &len);
	OK(safetensors_parse(&g->st, g->data, len, file, &err));
}

static void golden_close(struct golden *g)
{
	safetensors_deinit(&g->st);
	free(g->data);
}

static float *tensor_of(const struct model_files *m, const char *name, size_t *ret_n)
{
	struct errmsg err = {0};
	int64_t rows, cols;
	assert_true(model_files_shape(m, name, &rows, &cols));
	float *out = calloc((size_t)(rows * cols), sizeof(*out));
	assert_non_null(out);
	OK(model_files_read(m, name, out, &err));
	*ret_n = (size_t)(rows * cols);
	return out;
}

/* The base's tensors, each as golden or, where golden has none, bit for bit the base's. Returns
 * how many of golden's were met. */
static size_t compare_tensors(const struct trained *t, const struct golden *g, const char *name)
{
	static const char *const modules[] = {"self_attn.q_proj", "self_attn.k_proj",
		"self_attn.v_proj",
		"self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
		"post_attention_layernorm"};
	static const char *const ends[] = {"model.embed_tokens", "model.norm", "lm_head"};
	const struct model_config *c = model_files_config(t->f.files);
	size_t met = 0;
	int64_t n = c->num_hidden_layers * (int64_t)ARRAY_LEN(modules);
	for (int64_t i = 0; i < 2 * (n + (int64_t)ARRAY_LEN(ends)); i++) {
		char key[256];
		int64_t k = i / 2, rows, cols;
		const char *tensor = i % 2 ? "bias" : "weight";
		if (k < n) {
			snprintf(key, sizeof(key), "model.layers.%lld.%s.%s",
				(long long)(k / (int64_t)ARRAY_LEN(modules)),
				modules[k % (int64_t)ARRAY_LEN(modules)], tensor);
		} else {
			snprintf(key, sizeof(key), "%s.%s", ends[k - n], tensor);
		}
		if (!model_files_shape(t->f.files, key, &rows, &cols)) {
			continue;
		}
		struct errmsg err = {0};
		size_t count;
		_cleanup_(freep) float *got = tensor_of(t->merged, key, &count);
		_cleanup_(freep) float *want = tensor_of(t->f.files, key, &count);
		const struct st_tensor *golden = safetensors_find(&g->st, key);
		if (golden) {
			met++;
			assert_int_equal(golden->bytes, count * sizeof(float));
			OK(st_tensor_read_f32(golden, want, &err));
		}
		double top = 0, worst = 0;
		for (size_t j = 0; j < count; j++) {
			top = fmax(top, fabs((double)want[j]));
			worst = fmax(worst, fabs((double)got[j] - (double)want[j]));
		}
		if (golden ? !(worst <= 1e-6 * top) : worst != 0) {
			print_error("%s: %s is off by %.3g of %.3g\n", name, key, worst, top);
			fail();
		}
	}
	return met;
}

static void test_weights(void **state)
{
	for (size_t i = 0; cases[i]; i++) {
		struct trained t = {.merged = NULL};
		struct golden g;
		trained_open(&t, cases[i]);
		golden_open(&g, cases[i]);
		assert_int_equal(compare_tensors(&t, &g, cases[i]), g.st.n_tensors - 1);
		golden_close(&g);
		trained_close(&t);
	}
}

static void test_logits(void **state)
{
	for (size_t i = 0; cases[i]; i++) {
		struct errmsg err = {0};
		struct trained t = {.merged = NULL};
		struct golden g;
		struct base_model *merged;
		struct generator *gen;
		struct logit_drift d;
		trained_open(&t, cases[i]);
		golden_open(&g, cases[i]);
		fixture_base(&t.f, DTYPE_F32, false);
		OK(base_model_load(&merged, t.merged, t.f.backend, DTYPE_F32, false, &err));
		int64_t vocab = model_files_config(t.f.files)->vocab_size;
		_cleanup_(freep) float *want = calloc((size_t)vocab, sizeof(*want));
		OK(st_tensor_read_f32(safetensors_find(&g.st, "logits"), want, &err));
		struct generate_options o = {.max_new_tokens = 1};
		OK(generator_new(&gen, merged, NULL, t.f.samples.ids, (size_t)t.f.samples.start[1], &o,
			&err));
		double top = 0, worst = 0;
		for (int64_t k = 0; k < vocab; k++) {
			top = fmax(top, fabs((double)want[k]));
			worst = fmax(worst, fabs((double)generator_logits(gen)[k] - (double)want[k]));
		}
		if (!(worst <= 1e-5 * top)) {
			print_error("%s: logits are off by %.3g of %.3g\n", cases[i], worst, top);
			fail();
		}
		generator_free(gen);

		/* And what base and adapter say beside each other, as the drift has it. */
		size_t n = engine_probe_size(&t.f.samples) * (size_t)vocab;
		_cleanup_(freep) float *a = calloc(n, sizeof(*a));
		_cleanup_(freep) float *b = calloc(n, sizeof(*b));
		OK(engine_probe(t.f.base, &t.adapter, &t.f.samples, a, &err));
		OK(engine_probe(merged, NULL, &t.f.samples, b, &err));
		OK(engine_drift(&d, &t.f.samples, vocab, a, b, &err));
		assert_true(d.max <= 1e-5 * d.largest && d.mean <= d.max && d.largest > 0);
		OK(engine_probe(t.f.base, NULL, &t.f.samples, b, &err));
		OK(engine_drift(&d, &t.f.samples, vocab, a, b, &err));
		assert_true(d.max > 1e-3 * d.largest); /* not merged, it is another model */
		base_model_free(merged);
		golden_close(&g);
		trained_close(&t);
	}
}

/* Deltas are whole tensors: what merges is what was trained, to the bit. */
static void test_deltas(void **state)
{
	static const char *const names[] = {"methods/full-tied", "methods/full-untied",
		"methods/last_k-2-head-norm", "methods/last_k-0-tied-head", "methods/bitfit-own",
		"methods/select-embeddings"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		struct errmsg err = {0};
		struct fixture f;
		struct adapter a;
		struct step_metrics m;
		struct model_files *files;
		struct base_model *merged;
		struct logit_drift d, moved;
		_cleanup_(buf_deinit) struct buf config = {0};
		_cleanup_(buf_deinit) struct buf weights = {0};
		fixture_open(&f, names[i]);
		fixture_base(&f, DTYPE_F32, true);
		struct train_session *s = fixture_session(&f, false);
		for (int k = 0; k < 3; k++) {
			OK(train_session_run_step(s, &m, &err));
		}
		OK(train_session_export(s, &config, &weights, &err));
		OK(adapter_parse(&a, config.data, config.len, weights.data, weights.len, &err));
		OK(merged_files_open(&files, f.files, &a, &err));
		OK(base_model_load(&merged, files, f.backend, DTYPE_F32, false, &err));
		int64_t vocab = model_files_config(f.files)->vocab_size;
		size_t n = engine_probe_size(&f.samples) * (size_t)vocab;
		_cleanup_(freep) float *x = calloc(n, sizeof(*x));
		_cleanup_(freep) float *y = calloc(n, sizeof(*y));
		OK(engine_probe(f.base, &a, &f.samples, x, &err));
		OK(engine_probe(merged, NULL, &f.samples, y, &err));
		OK(engine_drift(&d, &f.samples, vocab, x, y, &err));
		OK(engine_probe(f.base, NULL, &f.samples, y, &err));
		OK(engine_drift(&moved, &f.samples, vocab, x, y, &err));
		if (!(d.max <= 1e-6 * d.largest && moved.max > 1e-3 * moved.largest)) {
			print_error("%s: drift %.3g, moved %.3g, of %.3g\n", names[i], d.max, moved.max,
				d.largest);
			fail();
		}
		base_model_free(merged);
		model_files_free(files);
		adapter_deinit(&a);
		train_session_free(s);
		fixture_close(&f);
	}
}

/* Row 0's logits are those of a generator at the same place: the probe looks where it says. */
static void test_probe(void **state)
{
	struct errmsg err = {0};
	struct fixture f;
	fixture_open(&f, "gqa3-odd");
	fixture_base(&f, DTYPE_F32, false);
	int64_t vocab = model_files_config(f.files)->vocab_size, len = f.samples.start[1];
	size_t n = engine_probe_size(&f.samples);
	_cleanup_(freep) float *logits = calloc(n * (size_t)vocab, sizeof(*logits));
	OK(engine_probe(f.base, NULL, &f.samples, logits, &err));
	int64_t looks = min_i64(len, PROBE_LAST);
	for (int64_t i = 0; i < looks; i++) {
		struct generate_options o = {.max_new_tokens = 1};
		struct generator *g;
		OK(generator_new(&g, f.base, NULL, f.samples.ids, (size_t)(len - looks + 1 + i), &o, &err));
		for (int64_t k = 0; k < vocab; k++) {
			double got = (double)generator_logits(g)[k];
			assert_true(fabs(got - (double)logits[i * vocab + k]) < 1e-5);
		}
		generator_free(g);
	}
	struct logit_drift d;
	_cleanup_(freep) float *bad = calloc(n * (size_t)vocab, sizeof(*bad));
	bad[5] = NAN;
	assert_int_equal(engine_drift(&d, &f.samples, vocab, logits, bad, &err), STATUS_FAILED);
	fixture_close(&f);
}

/* What is measured, and what memory it keeps to; whatever the machine's speed. */
static void test_forward_times(void **state)
{
	struct errmsg err = {0};
	struct forward_times t;
	struct trained x = {.merged = NULL};
	trained_open(&x, "lora-dora");
	fixture_base(&x.f, DTYPE_F32, false);
	OK(engine_measure_forward(&t, x.f.base, &x.adapter, &x.f.samples, 0.02, 0, &err));
	assert_int_equal(t.tokens, 32);
	assert_true(t.passes >= 1 && t.base > 0 && t.unmerged > 0 && t.merged > 0);
	OK(engine_measure_forward(&t, x.f.base, &x.adapter, &x.f.samples, 0, 64 << 20, &err));
	assert_int_equal(t.passes, 1); /* the first round is always done */
	int r = engine_measure_forward(&t, x.f.base, &x.adapter, &x.f.samples, 0, 4096, &err);
	assert_int_equal(r, STATUS_WONT_FIT);
	trained_close(&x);

	struct fixture f;
	fixture_open(&f, "methods/prefix_tuning-default");
	fixture_base(&f, DTYPE_F32, false);
	OK(engine_measure_forward(&t, f.base, &f.adapter, &f.samples, 0, 0, &err));
	assert_true(t.unmerged > 0 && t.merged == 0);
	fixture_close(&f);
}

/* ---- folders ------------------------------------------------------------------------------- */

struct written {
	const struct model_folder *folder;
	const char *dir;
	FILE *file;
	size_t at;
	uint64_t in_file;
};

static int write_bytes(void *ctx, const void *data, size_t len)
{
	struct written *w = ctx;
	const uint8_t *p = data;
	while (len > 0) {
		if (!w->file) {
			char path[4096];
			snprintf(path, sizeof(path), "%s/%s", w->dir, model_folder_name(w->folder, w->at));
			w->file = fopen(path, "wb");
			assert_non_null(w->file);
		}
		uint64_t room = model_folder_size(w->folder, w->at) - w->in_file;
		size_t n = len < room ? len : (size_t)room;
		assert_int_equal(fwrite(p, 1, n, w->file), n);
		p += n;
		len -= n;
		w->in_file += n;
		if (w->in_file == model_folder_size(w->folder, w->at)) {
			fclose(w->file);
			w->file = NULL;
			w->in_file = 0;
			w->at++;
		}
	}
	return 0;
}

static int append_bytes(void *ctx, const void *data, size_t len)
{
	return buf_append(ctx, data, len);
}

static int stop(void *ctx, const void *data, size_t len)
{
	return 77;
}

static void remove_folder(const char *dir, const struct model_folder *folder)
{
	for (size_t i = 0; i < model_folder_n_files(folder); i++) {
		char path[4096];
		snprintf(path, sizeof(path), "%s/%s", dir, model_folder_name(folder, i));
		unlink(path);
	}
	rmdir(dir);
}

static void check_folder(struct trained *t, uint64_t shard_bytes, const char *expect)
{
	struct errmsg err = {0};
	char dir[] = "/tmp/peftd-merge-XXXXXX";
	assert_non_null(mkdtemp(dir));
	struct model_folder *folder;
	OK(merged_folder_new(&folder, t->merged, "{\"a\": 1}\n", shard_bytes, &err));
	struct written w = {.folder = folder, .dir = dir};
	OK(model_folder_read(folder, 0, write_bytes, &w, &err));
	assert_int_equal(w.at, model_folder_n_files(folder));
	char *names = NULL;
	for (size_t i = 0; i < model_folder_n_files(folder); i++) {
		char *more;
		assert_true(asprintf(&more, "%s%s ", names ? names : "", model_folder_name(folder, i)) > 0);
		free(names);
		names = more;
	}
	assert_non_null(strstr(names, expect));
	free(names);

	/* Read from anywhere, it is the same bytes. */
	struct buf whole = {0};
	OK(model_folder_read(folder, 0, append_bytes, &whole, &err));
	for (size_t at = 0; at < whole.len; at += whole.len / 23 + 1) {
		struct buf rest = {0};
		OK(model_folder_read(folder, at, append_bytes, &rest, &err));
		assert_int_equal(rest.len, whole.len - at);
		assert_memory_equal(rest.data, whole.data + at, rest.len);
		buf_deinit(&rest);
	}
	assert_int_equal(model_folder_read(folder, 0, stop, NULL, &err), 77);
	buf_deinit(&whole);

	struct model_files *again;
	OK(model_files_open(&again, dir, &err));
	assert_string_equal(model_files_dtype(again), "f32");
	assert_int_equal(model_files_parameters(again), model_files_parameters(t->f.files));
	struct trained as_written = *t;
	as_written.merged = again;
	struct golden g;
	golden_open(&g, "lora-dora-bias");
	assert_int_equal(compare_tensors(&as_written, &g, "written"), g.st.n_tensors - 1);
	golden_close(&g);
	model_files_free(again);
	remove_folder(dir, folder);
	model_folder_free(folder);
}

static void test_folder(void **state)
{
	struct trained t = {.merged = NULL};
	trained_open(&t, "lora-dora-bias");
	check_folder(&t, UINT64_MAX, "config.json peftd_merge.json model.safetensors ");
	check_folder(&t, 20000, "model.safetensors.index.json peftd_merge.json model-00001-of-0000");
	trained_close(&t);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void refuse(const char *name, const char *words)
{
	struct errmsg err = {0};
	struct fixture f;
	struct model_files *m = NULL;
	fixture_open(&f, name);
	assert_true(f.has_adapter);
	assert_int_equal(merged_files_open(&m, f.files, &f.adapter, &err), STATUS_INVALID);
	if (!strstr(err.text, words)) {
		print_error("%s: %s\n", name, err.text);
		fail();
	}
	fixture_close(&f);
}

static void test_refusals(void **state)
{
	refuse("methods/prompt_tuning-random", "virtual tokens");
	refuse("methods/p_tuning-mlp", "virtual tokens");
	refuse("methods/prefix_tuning-default", "virtual tokens");
	refuse("methods/bottleneck-houlsby", "non-linearity");
	refuse("methods/bitfit-beft", "no biases");
	refuse("methods/lora-embeddings-tied", "one matrix");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_weights),
		cmocka_unit_test(test_logits),
		cmocka_unit_test(test_deltas),
		cmocka_unit_test(test_probe),
		cmocka_unit_test(test_forward_times),
		cmocka_unit_test(test_folder),
		cmocka_unit_test(test_refusals),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
