/* Folders, shards, links and the Hugging Face cache, on real files in a temporary folder. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model/model-internal.h"
#include "engine/model/safetensors.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_files *, model_files_free);

#define CONFIG "{\"model_type\":\"llama\",\"vocab_size\":6,\"hidden_size\":8," \
	"\"intermediate_size\":12,\"num_hidden_layers\":1,\"num_attention_heads\":2%s}"

/* ---- a folder to write in ------------------------------------------------------------------ */

static char root[64];

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int setup(void **state)
{
	snprintf(root, sizeof(root), "/tmp/peftd-test-files-XXXXXX");
	return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* "root/name"; a few at a time. */
static const char *in_root(const char *name)
{
	static char paths[8][256];
	static unsigned next;
	char *path = paths[next++ % 8];
	snprintf(path, 256, "%s/%s", root, name);
	return path;
}

static void write_file(const char *name, const void *data, size_t len)
{
	FILE *f = fopen(in_root(name), "w");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

static void write_text(const char *name, const char *text)
{
	write_file(name, text, strlen(text));
}

static void make_dir(const char *name)
{
	assert_int_equal(mkdir(in_root(name), 0700), 0);
}

static void make_link(const char *target, const char *name)
{
	assert_int_equal(symlink(target, in_root(name)), 0);
}

/* ---- weights of the tiny model ------------------------------------------------------------- */

enum { ALL = 12 }; /* tensors, lm_head included */

static void tiny_config(struct model_config *c)
{
	char json[512];
	snprintf(json, sizeof(json), CONFIG, "");
	assert_int_equal(model_config_parse(c, json, strlen(json), "x", NULL), 0);
}

/* Tensors [from, to) of the tiny model, in its order; value k of tensor i is i + k/64. */
static void write_weights(const char *name, int64_t from, int64_t to, enum st_dtype dtype)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	static float values[ALL][128];
	static uint16_t halves[ALL][128];
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n_specs;
	struct st_out out[ALL];
	struct model_config c;

	tiny_config(&c);
	assert_int_equal(model_tensors(&specs, &n_specs, &c), 0);
	assert_int_equal(n_specs, ALL);
	for (int64_t i = from; i < to; i++) {
		for (int64_t k = 0; k < specs[i].rows * specs[i].cols; k++) {
			uint32_t bits;
			values[i][k] = (float)i + (float)k / 64;
			memcpy(&bits, &values[i][k], 4);
			halves[i][k] = (uint16_t)(bits >> 16);
		}
		out[i - from] = (struct st_out){
			.name = specs[i].name,
			.dtype = dtype,
			.n_dims = specs[i].n_dims,
			.dims = {specs[i].rows, specs[i].cols},
			.data = dtype == ST_F32 ? (void *)values[i] : (void *)halves[i],
		};
	}
	assert_int_equal(safetensors_write(&file, out, (size_t)(to - from), NULL, 0), 0);
	write_file(name, file.data, file.len);
}

static void write_config(const char *name, const char *more)
{
	char json[512];
	snprintf(json, sizeof(json), CONFIG, more);
	write_text(name, json);
}

/* An index that places tensor i in files[of[i]]. */
static void write_index(const char *name, const char *const *files, const int *of)
{
	_cleanup_(buf_deinit) struct buf json = {0};
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n;
	struct model_config c;
	tiny_config(&c);
	assert_int_equal(buf_appendf(&json, "{\"metadata\":{\"total_size\":1},\"weight_map\":{"), 0);
	assert_int_equal(model_tensors(&specs, &n, &c), 0);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(buf_appendf(&json, "%s\"%s\":\"%s\"", i ? "," : "", specs[i].name,
			files[of[i]]), 0);
	}
	assert_int_equal(buf_appendf(&json, "}}"), 0);
	write_file(name, json.data, json.len);
}

static void check_values(const struct model_files *m)
{
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n, i;
	struct errmsg err = {0};
	float x[128];
	assert_int_equal(model_tensors(&specs, &n, model_files_config(m)), 0);
	for (i = 0; i < n; i++) {
		const struct tensor_spec spec = specs[i];
		int64_t rows, cols;
		assert_true(model_files_shape(m, spec.name, &rows, &cols));
		assert_int_equal(rows, spec.rows);
		assert_int_equal(cols, spec.cols);
		assert_int_equal(model_files_read(m, spec.name, x, &err), 0);
		for (int64_t k = 0; k < rows * cols; k++) {
			assert_true(x[k] == (float)i + (float)k / 64);
		}
	}
	assert_int_equal(i, ALL);
}

static void expect_refused(const char *path, int code, const char *expected)
{
	struct model_files *m = NULL;
	struct errmsg err = {0};
	int r = model_files_open(&m, path, &err);
	if (r != code || !strstr(err.text, expected)) {
		fail_msg("%s: %d, '%s'; expected %d, '%s'", path, r, err.text, code, expected);
	}
}

/* ---- single files -------------------------------------------------------------------------- */

static void test_single_file(void **state)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	char real[4096];
	size_t len;

	make_dir("one");
	write_config("one/config.json", "");
	write_weights("one/model.safetensors", 0, ALL, ST_F32);
	write_text("one/tokenizer.json", "{\"a\": 1}");
	assert_int_equal(model_files_open(&m, in_root("one"), &err), 0);
	check_values(m);
	assert_string_equal(model_files_format(m), "huggingface");
	assert_string_equal(model_files_dtype(m), "f32");
	assert_string_equal(model_files_path(m), realpath(in_root("one"), real));
	assert_int_equal(model_files_parameters(m), 6 * 8 * 2 + 3 * 8 + 4 * 64 + 3 * 96);
	struct stat st;
	assert_int_equal(stat(in_root("one/model.safetensors"), &st), 0);
	assert_int_equal(model_files_bytes(m), st.st_size);
	assert_string_equal(model_files_text(m, "tokenizer.json", &len), "{\"a\": 1}");
	assert_int_equal(len, 8);
	assert_null(model_files_text(m, "tokenizer_config.json", NULL));
	assert_null(model_files_text(m, "../config.json", NULL));
	assert_null(model_files_chat_template(m));
	assert_null(model_files_gguf_tokenizer(m));
}

static void test_missing_things(void **state)
{
	expect_refused(in_root("nothing"), STATUS_NOT_FOUND, "there is no such file or folder");
	expect_refused("", STATUS_INVALID, "path is empty");

	make_dir("missing");
	expect_refused(in_root("missing"), STATUS_NOT_FOUND, "config.json: there is no such file; a "
		"model is");
	write_text("missing/x.Q4_1.gguf", "");
	expect_refused(in_root("missing"), STATUS_NOT_FOUND, "did you mean x.Q4_1.gguf in it?");
	write_config("missing/config.json", "");
	expect_refused(in_root("missing"), STATUS_NOT_FOUND, "neither model.safetensors nor");
	write_text("missing/pytorch_model.bin", "x");
	expect_refused(in_root("missing"), STATUS_NOT_FOUND, "convert it to safetensors");
	expect_refused(in_root("missing/config.json"), STATUS_INVALID, "give its folder");
	expect_refused(in_root("missing/pytorch_model.bin"), STATUS_INVALID, "is no GGUF file");
	write_text("missing/model.safetensors", "");
	expect_refused(in_root("missing"), STATUS_INVALID, "model.safetensors: is empty");
	write_weights("missing/model.safetensors", 0, ALL - 1, ST_F32);
	expect_refused(in_root("missing"), STATUS_INVALID, "tensor 'lm_head.weight' is missing");
	write_weights("missing/model.safetensors", 1, ALL, ST_F32);
	expect_refused(in_root("missing"), STATUS_INVALID, "tensor 'model.embed_tokens.weight' is "
		"missing");

	/* The configuration and the weights must agree. */
	write_weights("missing/model.safetensors", 0, ALL, ST_F32);
	write_config("missing/config.json", ",\"num_key_value_heads\":1");
	expect_refused(in_root("missing"), STATUS_INVALID, "'model.layers.0.self_attn.k_proj.weight' "
		"has the shape [8, 8]; the configuration makes it [4, 8]");
	write_config("missing/config.json", ",\"attention_bias\":true");
	expect_refused(in_root("missing"), STATUS_INVALID, "q_proj.bias' is missing");
	write_config("missing/config.json", ",\"hidden_act\":\"mish\"");
	expect_refused(in_root("missing"), STATUS_INVALID, "'hidden_act' is \"mish\"");
	/* A weight that the configuration knows nothing of would be left out in silence. */
	write_text("missing/config.json", "{\"model_type\":\"llama\",\"vocab_size\":6,"
		"\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1,"
		"\"num_attention_heads\":2,\"tie_word_embeddings\":true}");
	struct model_files *m = NULL;
	struct errmsg err = {0};
	/* But a copy of tied embeddings is no harm. */
	assert_int_equal(model_files_open(&m, in_root("missing"), &err), 0);
	int64_t rows, cols;
	assert_false(model_files_shape(m, "lm_head.weight", &rows, &cols));
	model_files_free(m);
}

static void test_left_over_tensor(void **state)
{
	_cleanup_(buf_deinit) struct buf file = {0};
	const float x[8] = {0};
	struct st_out out = {"model.layers.0.self_attn.q_norm.weight", ST_F32, 1, {8}, x};
	const char *files[] = {"a.safetensors", "b.safetensors"};

	make_dir("extra");
	write_config("extra/config.json", "");
	write_weights("extra/a.safetensors", 0, ALL, ST_F32);
	assert_int_equal(safetensors_write(&file, &out, 1, NULL, 0), 0);
	write_file("extra/b.safetensors", file.data, file.len);
	write_index("extra/model.safetensors.index.json", files, (const int[ALL]){0});
	char *text = NULL;
	_cleanup_(buf_deinit) struct buf index = {0};
	assert_int_equal(text_file_read(&index, in_root("extra/model.safetensors.index.json"), "x",
		1 << 20, NULL), 0);
	text = (char *)index.data;
	text[index.len - 2] = '\0';
	_cleanup_(buf_deinit) struct buf more = {0};
	assert_int_equal(buf_appendf(&more, "%s,\"%s\":\"b.safetensors\"}}", text, out.name), 0);
	write_file("extra/model.safetensors.index.json", more.data, more.len);
	expect_refused(in_root("extra"), STATUS_INVALID, "'model.layers.0.self_attn.q_norm.weight' "
		"does not belong to a llama model");
}

static void test_refuses_wrong_kinds(void **state)
{
	make_dir("kinds");
	write_config("kinds/config.json", "");
	assert_int_equal(mkfifo(in_root("kinds/model.safetensors"), 0600), 0);
	expect_refused(in_root("kinds"), STATUS_INVALID, "is no regular file"); /* and does not hang */
	assert_int_equal(unlink(in_root("kinds/model.safetensors")), 0);
	make_dir("kinds/model.safetensors");
	expect_refused(in_root("kinds"), STATUS_INVALID, "is no regular file");

	make_dir("nul");
	write_file("nul/config.json", "{}\0", 3);
	expect_refused(in_root("nul"), STATUS_INVALID, "config.json: holds a NUL byte");
	write_text("nul/config.json", "{\"\xFF\":1}");
	expect_refused(in_root("nul"), STATUS_INVALID, "config.json: no UTF-8 at byte 2");
}

/* ---- shards -------------------------------------------------------------------------------- */

static const int halves[ALL] = {0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1};
static const char *const shard_files[] = {
	"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
};

static void make_shards(const char *dir)
{
	char name[128];
	make_dir(dir);
	snprintf(name, sizeof(name), "%s/config.json", dir);
	write_config(name, "");
	snprintf(name, sizeof(name), "%s/%s", dir, shard_files[0]);
	write_weights(name, 0, 6, ST_F32);
	snprintf(name, sizeof(name), "%s/%s", dir, shard_files[1]);
	write_weights(name, 6, ALL, ST_BF16);
	snprintf(name, sizeof(name), "%s/model.safetensors.index.json", dir);
	write_index(name, shard_files, halves);
}

static void test_shards(void **state)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	float x[128];
	make_shards("two");
	assert_int_equal(model_files_open(&m, in_root("two"), &err), 0);
	assert_int_equal(m->n_files, 2);
	assert_int_equal(model_files_read(m, "model.embed_tokens.weight", x, &err), 0);
	assert_true(x[3] == 3 / 64.0f);
	assert_int_equal(model_files_read(m, "model.norm.weight", x, &err), 0);
	assert_true(x[0] == 10.0f && x[4] == 10.0625f); /* bf16 holds these */
}

static void test_refuses_shards(void **state)
{
	static const struct {
		const char *const files[2], *expected;
	} names[] = {
		{{"model-00001-of-00002.safetensors", "../two/model-00002-of-00002.safetensors"},
			"places 'model.layers.0.post_attention_layernorm.weight' in "
			"\"../two/model-00002-of-00002.safetensors\"; it must be the name of a file"},
		{{"model-00001-of-00002.safetensors", ".."}, "it must be the name of a file"},
		{{"/etc/passwd", "model-00002-of-00002.safetensors"}, "it must be the name of a file"},
		{{"model-00001-of-00002.safetensors", "other.safetensors"}, "there is no such file"},
		{{"model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"}, "which "
			"model.safetensors.index.json places in model-00002-of-00002.safetensors"},
		{{"model-00001-of-00002.safetensors",
			"model-00001-of-00002.safetensors"}, "is missing from "
			"model-00001-of-00002.safetensors"},
	};
	make_shards("shards");
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		write_index("shards/model.safetensors.index.json", names[i].files, halves);
		expect_refused(in_root("shards"), STATUS_INVALID, names[i].expected);
	}
	write_text("shards/model.safetensors.index.json", "{\"weight_map\":{}}");
	expect_refused(in_root("shards"), STATUS_INVALID, "'weight_map' must be an object");
	write_text("shards/model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
	expect_refused(in_root("shards"), STATUS_INVALID, "places 'a' in 1");
	write_text("shards/model.safetensors.index.json", "{\"weight_map\"");
	expect_refused(in_root("shards"), STATUS_INVALID, "model.safetensors.index.json:1:");
}

/* ---- links and the cache ------------------------------------------------------------------- */

static void test_links_stay_inside(void **state)
{
	make_dir("outside");
	write_config("outside/config.json", "");
	write_weights("outside/weights", 0, ALL, ST_F32);
	make_dir("linked");
	write_config("linked/config.json", "");
	make_link("../outside/weights", "linked/model.safetensors");
	expect_refused(in_root("linked"), STATUS_INVALID, "leads out of the model's folder");

	/* Inside, a link is a name like any other. */
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	assert_int_equal(unlink(in_root("linked/model.safetensors")), 0);
	write_weights("linked/weights", 0, ALL, ST_F32);
	make_link("weights", "linked/model.safetensors");
	assert_int_equal(model_files_open(&m, in_root("linked"), &err), 0);

	/* A folder may itself be reached by a link. */
	_cleanup_(model_files_freep) struct model_files *m2 = NULL;
	make_link("linked", "alias");
	assert_int_equal(model_files_open(&m2, in_root("alias"), &err), 0);

	assert_int_equal(unlink(in_root("linked/model.safetensors")), 0);
	make_link("model.safetensors", "linked/model.safetensors");
	expect_refused(in_root("linked"), STATUS_INVALID, "symbolic links");
}

static void test_cache(void **state)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	_cleanup_(model_files_freep) struct model_files *shared = NULL;
	struct errmsg err = {0};

	make_dir("hub");
	make_dir("hub/models--org--tiny");
	make_dir("hub/models--org--tiny/blobs");
	make_dir("hub/models--org--tiny/refs");
	make_dir("hub/models--org--tiny/snapshots");
	make_dir("hub/models--org--tiny/snapshots/abc123");
	write_text("hub/models--org--tiny/refs/main", "abc123\n");
	write_config("hub/models--org--tiny/blobs/1", "");
	write_weights("hub/models--org--tiny/blobs/2", 0, ALL, ST_F32);
	make_link("../../blobs/1", "hub/models--org--tiny/snapshots/abc123/config.json");
	make_link("../../blobs/2", "hub/models--org--tiny/snapshots/abc123/model.safetensors");

	assert_int_equal(setenv("HF_HUB_CACHE", in_root("hub"), 1), 0);
	assert_int_equal(model_files_open(&m, "org/tiny", &err), 0);
	check_values(m);
	assert_non_null(strstr(model_files_path(m), "/hub/models--org--tiny/snapshots/abc123"));

	/* A blob kept in the store that all models of a newer cache share. */
	make_dir("hub/blobs");
	make_dir("hub/blobs/ab");
	assert_int_equal(rename(in_root("hub/models--org--tiny/blobs/2"), in_root("hub/blobs/ab/ab2")),
		0);
	make_link("../../blobs/ab/ab2", "hub/models--org--tiny/blobs/2");
	assert_int_equal(model_files_open(&shared, "org/tiny", &err), 0);

	/* But not another model's. */
	make_dir("hub/models--org--other");
	make_dir("hub/models--org--other/blobs");
	assert_int_equal(rename(in_root("hub/blobs/ab/ab2"), in_root("hub/models--org--other/blobs/2")),
		0);
	assert_int_equal(unlink(in_root("hub/models--org--tiny/blobs/2")), 0);
	make_link("../../models--org--other/blobs/2", "hub/models--org--tiny/blobs/2");
	expect_refused("org/tiny", STATUS_INVALID, "leads out of the model's folder");

	expect_refused("org/absent", STATUS_NOT_FOUND,
		"has no such model (no models--org--absent/refs/main)");
	expect_refused("org/../tiny", STATUS_NOT_FOUND, "there is no such file or folder");
	expect_refused("a/b/c", STATUS_NOT_FOUND, "there is no such file or folder");
	write_text("hub/models--org--tiny/refs/main", "../../../outside");
	expect_refused("org/tiny", STATUS_INVALID, "holds no name of a revision");
	write_text("hub/models--org--tiny/refs/main", "def456");
	expect_refused("org/tiny", STATUS_NOT_FOUND, "names revision def456, but there is no");

	/* HF_HOME, where the first is not set. */
	assert_int_equal(unsetenv("HF_HUB_CACHE"), 0);
	assert_int_equal(unsetenv("HUGGINGFACE_HUB_CACHE"), 0);
	assert_int_equal(setenv("HF_HOME", root, 1), 0);
	expect_refused("org/tiny", STATUS_NOT_FOUND, "names revision def456");
	assert_int_equal(unsetenv("HF_HOME"), 0);
}

/* ---- templates, digests, files that change ------------------------------------------------- */

static void test_chat_template(void **state)
{
	static const struct {
		const char *config, *expected;
	} cases[] = {
		{"{\"chat_template\": \"{{ a }}\"}", "{{ a }}"},
		{"{\"chat_template\": null}", NULL},
		{"{}", NULL},
		{"{\"chat_template\": [{\"name\":\"rag\",\"template\":\"r\"},"
			"{\"name\":\"default\",\"template\":\"d\"}]}", "d"},
	};
	make_dir("chat");
	write_config("chat/config.json", "");
	write_weights("chat/model.safetensors", 0, ALL, ST_F32);
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		_cleanup_(model_files_freep) struct model_files *m = NULL;
		struct errmsg err = {0};
		write_text("chat/tokenizer_config.json", cases[i].config);
		assert_int_equal(model_files_open(&m, in_root("chat"), &err), 0);
		if (cases[i].expected) {
			assert_string_equal(model_files_chat_template(m), cases[i].expected);
		} else {
			assert_null(model_files_chat_template(m));
		}
	}
	write_text("chat/tokenizer_config.json", "{\"chat_template\": 7}");
	expect_refused(in_root("chat"), STATUS_INVALID, "'chat_template' must be a string");
	write_text("chat/tokenizer_config.json", "{");
	expect_refused(in_root("chat"), STATUS_INVALID, "tokenizer_config.json:1");

	_cleanup_(model_files_freep) struct model_files *m = NULL;
	write_text("chat/tokenizer_config.json", "{\"chat_template\": \"{{ a }}\"}");
	write_text("chat/chat_template.jinja", "{{ b }}");
	assert_int_equal(model_files_open(&m, in_root("chat"), NULL), 0);
	assert_string_equal(model_files_chat_template(m), "{{ b }}");
}

static void digest(const char *dir, uint8_t out[32])
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	assert_int_equal(model_files_open(&m, in_root(dir), &err), 0);
	assert_int_equal(model_files_digest(m, out, &err), 0);
}

static void test_digest(void **state)
{
	uint8_t a[32], b[32];
	make_dir("digest");
	write_config("digest/config.json", "");
	write_weights("digest/model.safetensors", 0, ALL, ST_F32);
	digest("digest", a);
	digest("digest", b);
	assert_memory_equal(a, b, 32);

	assert_int_equal(rename(in_root("digest"), in_root("digest2")), 0);
	digest("digest2", b);
	assert_memory_equal(a, b, 32); /* where it lies does not matter */
	write_text("digest2/generation_config.json", "{}");
	digest("digest2", b);
	assert_memory_equal(a, b, 32); /* nor how it likes to be sampled */
	write_text("digest2/tokenizer.json", "{}");
	digest("digest2", b);
	assert_memory_not_equal(a, b, 32);
	assert_int_equal(unlink(in_root("digest2/tokenizer.json")), 0);
	write_config("digest2/config.json", " ");
	digest("digest2", b);
	assert_memory_not_equal(a, b, 32);
	write_config("digest2/config.json", "");
	write_weights("digest2/model.safetensors", 0, ALL, ST_BF16);
	digest("digest2", b);
	assert_memory_not_equal(a, b, 32);
}

static void test_file_cut_while_open(void **state)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err = {0};
	uint8_t d[32];
	float x[128];
	make_dir("cut");
	write_config("cut/config.json", "");
	write_weights("cut/model.safetensors", 0, ALL, ST_F32);
	assert_int_equal(model_files_open(&m, in_root("cut"), &err), 0);
	assert_int_equal(truncate(in_root("cut/model.safetensors"), 100), 0);
	assert_int_equal(model_files_read(m, "model.norm.weight", x, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "became shorter since it was opened"));
	assert_int_equal(model_files_digest(m, d, &err), STATUS_INVALID);
	assert_non_null(strstr(err.text, "became shorter since it was opened"));
	expect_refused(in_root("cut"), STATUS_INVALID, "cut short");
}

/* The first GPT-2 files: no "transformer." before names, and each layer's causal mask as a tensor. */
static void test_older_names(void **state)
{
	enum { PREFIX = sizeof("transformer.") - 1, MOST = 64 };
	static const uint8_t mask[16];
	_cleanup_(buf_deinit) struct buf text = {0};
	_cleanup_(buf_deinit) struct buf config = {0};
	_cleanup_(buf_deinit) struct buf file = {0};
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct st_out out[MOST];
	struct errmsg err = {0};
	char path[4096];
	size_t n = 0;

	snprintf(path, sizeof(path), "%s/formats/twins/gpt2/config.json", getenv("GOLDEN_DIR"));
	assert_int_equal(text_file_read(&config, path, path, 1 << 20, &err), 0);
	snprintf(path, sizeof(path), "%s/formats/twins/gpt2/model.safetensors", getenv("GOLDEN_DIR"));
	assert_int_equal(text_file_read(&text, path, path, 1 << 20, &err), 0);
	assert_int_equal(safetensors_parse(&st, text.data, text.len, path, &err), 0);
	assert_true(st.n_tensors < MOST);
	for (size_t i = 0; i < st.n_tensors; i++) {
		const struct st_tensor *t = &st.tensors[i];
		assert_int_equal(strncmp(t->name, "transformer.", PREFIX), 0);
		out[n] = (struct st_out){.name = t->name + PREFIX, .dtype = t->dtype, .n_dims = t->n_dims,
			.data = t->data};
		memcpy(out[n++].dims, t->dims, sizeof(t->dims));
	}
	out[n++] = (struct st_out){.name = "h.0.attn.bias", .dtype = ST_U8, .n_dims = 4,
		.dims = {1, 1, 4, 4}, .data = mask};
	assert_int_equal(safetensors_write(&file, out, n, NULL, 0), 0);
	make_dir("older");
	write_file("older/config.json", config.data, config.len);
	write_file("older/model.safetensors", file.data, file.len);
	if (model_files_open(&m, in_root("older"), &err) != 0) {
		fail_msg("%s", err.text);
	}
	for (size_t i = 0; i < st.n_tensors; i++) {
		int64_t rows, cols;
		assert_true(model_files_shape(m, st.tensors[i].name, &rows, &cols));
		assert_true(rows == st.tensors[i].dims[0]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_single_file),
		cmocka_unit_test(test_missing_things),
		cmocka_unit_test(test_left_over_tensor),
		cmocka_unit_test(test_refuses_wrong_kinds),
		cmocka_unit_test(test_shards),
		cmocka_unit_test(test_refuses_shards),
		cmocka_unit_test(test_links_stay_inside),
		cmocka_unit_test(test_cache),
		cmocka_unit_test(test_chat_template),
		cmocka_unit_test(test_digest),
		cmocka_unit_test(test_file_cut_while_open),
		cmocka_unit_test(test_older_names),
	};
	return cmocka_run_group_tests_name("model_files", tests, setup, teardown);
}
