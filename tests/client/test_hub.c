/* Pulling models: the protocol, the cache, what is chosen, what is refused. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hub_world.h"
#include "util/cleanup.h"
#include "util/util.h"

static void test_layout(void **state)
{
	struct world *w = *state;
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0}, again = {0};
	_cleanup_(freep) char *found = NULL;
	struct errmsg err;
	char path[512], link[256] = "", other[512];
	add_model(w);
	assert_int_equal(pull(w, "org/tiny", NULL, &p, &err), 0);

	/* As huggingface_hub lays it out; digests as git and sha256sum print them. */
	assert_string_equal(p.commit, commit);
	snprintf(other, sizeof(other), "snapshots/%s", commit);
	assert_string_equal(p.path, in_cache(w, path, other));
	snprintf(other, sizeof(other), "%s/config.json", p.path);
	assert_true(readlink(other, link, sizeof(link) - 1) > 0);
	assert_string_equal(link, "../../blobs/ce013625030ba8dba906f756967f9e9ca394464a");
	check_file(other, "hello\n", 6);
	check_file(in_cache(w, path, "refs/main"), commit, 40);
	check_weights(w);
	static const char *const there[] = {"config.json", "tokenizer.json", "spiece.model",
		"model.safetensors"}, *const absent[] = {"README.md", "pytorch_model.bin"};
	assert_int_equal(p.n_files, ARRAY_LEN(there));
	assert_int_equal(w->n_files, ARRAY_LEN(there));
	for (size_t i = 0; i < ARRAY_LEN(there); i++) {
		snprintf(other, sizeof(other), "%s/%s", p.path, there[i]);
		assert_true(exists(other));
	}
	for (size_t i = 0; i < ARRAY_LEN(absent); i++) {
		assert_false(exists(blob(w, path, absent[i], "")));
	}
	assert_int_equal(p.fetched, 6 + 2 + WEIGHTS);
	assert_int_equal(hf_cache_find(&found, "org/tiny", &err), 0);
	assert_string_equal(found, p.path);

	/* Once more: one question, nothing fetched. */
	hub_forget(&w->hub);
	hub_forget(&w->store);
	assert_int_equal(pull(w, "org/tiny", NULL, &again, &err), 0);
	assert_int_equal(w->hub.n_log, 1);
	assert_int_equal(w->store.n_log, 0);
	assert_int_equal(again.fetched, 0);
	assert_true(again.files[0].was_there);

	/* What lost its size is fetched again, and links that lead elsewhere are set right. */
	assert_int_equal(truncate(blob(w, path, "model.safetensors", ""), 10), 0);
	snprintf(other, sizeof(other), "%s/config.json", p.path);
	assert_int_equal(unlink(other), 0);
	assert_int_equal(symlink("../../blobs/nowhere", other), 0);
	expect_pulled(w, "org/tiny", NULL);
	check_weights(w);
	check_file(other, "hello\n", 6);
}

static void test_revisions(void **state)
{
	struct world *w = *state;
	_cleanup_(freep) char *found = NULL;
	struct errmsg err;
	char path[512], name[64];
	add_model(w);
	snprintf(name, sizeof(name), "org/tiny@%s", commit);
	expect_pulled(w, name, NULL);
	assert_false(exists(in_cache(w, path, "refs/main"))); /* nobody asked what main is */
	assert_int_equal(hf_cache_find(&found, name, &err), 0);
	free(steal_ptr(found));
	assert_int_equal(hf_cache_find(&found, "org/tiny", &err), STATUS_NOT_FOUND);
	expect_pulled(w, "org/tiny@refs/pr/1", NULL);
	check_file(in_cache(w, path, "refs/refs/pr/1"), commit, 40);
	assert_int_equal(hf_cache_find(&found, "org/tiny@refs/pr/1", &err), 0);

	struct hf_name n;
	static const char *const bad[] = {"", "/", "org/", "/tiny", "a/b/c", "org/../x", "..", "-x/y",
		"org/tiny@", "org/tiny@../x", "org/tiny@a//b", "org/tiny@/x", "org/tiny@a/", "org/ti ny",
		"org/tiny@a\nb", "org/tiny@.", "org/tiny@-x", "a--b/c", "org/tiny?x=1", "org/tiny#x"};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		if (hf_name_parse(&n, bad[i], &err) != STATUS_INVALID) {
			fail_msg("'%s' passes", bad[i]);
		}
	}
}

static void test_token(void **state)
{
	struct world *w = *state;
	add_model(w);
	w->hub.token = "hf_right";
	expect_refused(w, "org/tiny", NULL, STATUS_DENIED, "set HF_TOKEN to a token that may read it");
	w->config.token = strdup("hf_wrong");
	expect_refused(w, "org/tiny", NULL, STATUS_DENIED, "does not accept the token");
	free(w->config.token);
	w->config.token = strdup("hf_right");
	hub_forget(&w->hub);
	expect_pulled(w, "org/tiny", NULL);
	for (size_t i = 0; i < w->hub.n_log; i++) {
		assert_string_equal(w->hub.log[i].authorization, "Bearer hf_right");
	}
	/* The store is another port of the same host: another origin, which never sees the token. */
	assert_int_equal(w->store.n_log, 1);
	assert_string_equal(hub_last(&w->store, "/blob/").authorization, "");
	assert_non_null(strstr(hub_last(&w->store, "/blob/").target, "Signature=sig-secret"));
}

static void test_gated(void **state)
{
	struct world *w = *state;
	char words[256];
	add_model(w);
	w->hub.gated = true;
	snprintf(words, sizeof(words), "org/tiny is gated: accept its licence at %s/org/tiny, and set "
		"HF_TOKEN", w->hub.url);
	expect_refused(w, "org/tiny", NULL, STATUS_DENIED, words);
	w->config.token = strdup("hf_other");
	expect_refused(w, "org/tiny", NULL, STATUS_DENIED, "the account that the token belongs to");
}

static void test_not_found(void **state)
{
	struct world *w = *state;
	add_model(w);
	expect_refused(w, "org/tinny", NULL, STATUS_NOT_FOUND, "did you mean org/tiny?");
	expect_refused(w, "org/something-else-entirely", NULL, STATUS_NOT_FOUND,
		"of this owner there are org/tiny, org/huge");
	expect_refused(w, "tiny", NULL, STATUS_NOT_FOUND, "has no such model");
	expect_refused(w, "org/tiny@fp23", NULL, STATUS_NOT_FOUND,
		"there is no revision 'fp23'; did you mean 'fp32'? There are main, fp32, v1.0");
	/* Listed, and then not there. */
	w->hub.listing = "{\"sha\":\"0123456789abcdef0123456789abcdef01234567\",\"siblings\":["
		"{\"rfilename\":\"config.json\",\"size\":6,"
		"\"blobId\":\"ce013625030ba8dba906f756967f9e9ca394464a\"},"
		"{\"rfilename\":\"model.safetensors\",\"size\":5,"
		"\"blobId\":\"0000000000000000000000000000000000000000\"},"
		"{\"rfilename\":\"vocab.txt\",\"size\":5,"
		"\"blobId\":\"0000000000000000000000000000000000000001\"}]}";
	w->hub.n_objects = 2;
	expect_refused(w, "org/tiny", NULL, STATUS_NOT_FOUND, "but has no such file");
}

#define SHA "\"sha\":\"0123456789abcdef0123456789abcdef01234567\""
#define CONFIG "{\"rfilename\":\"config.json\",\"size\":6," \
	"\"blobId\":\"ce013625030ba8dba906f756967f9e9ca394464a\"}"
#define NAMED(name) "{" SHA ",\"siblings\":[" CONFIG ",{\"rfilename\":\"" name "\",\"size\":6," \
	"\"blobId\":\"ce013625030ba8dba906f756967f9e9ca394464a\"}]}"

static void test_hostile_listings(void **state)
{
	struct world *w = *state;
	static const struct {
		const char *listing, *words;
	} cases[] = {
		{"", "org/tiny:"},
		{"[]", "must be a JSON object"},
		{"{\"sha\":1}", "'sha' is 1"},
		{"{\"sha\":\"../../../../tmp/x\",\"siblings\":[]}", "no description of a model"},
		{"{\"sha\":\"0123456789ABCDEF0123456789abcdef01234567\",\"siblings\":[]}",
			"no description of a model"},
		{"{" SHA ",\"siblings\":{}}", "no description of a model"},
		{"{" SHA ",\"siblings\":[1]}", "a file has no name"},
		{"{" SHA ",\"siblings\":[{}]}", "a file has no name"},
		{NAMED("../../x.safetensors"), "which can be no file's name; nothing is fetched"},
		{NAMED(".."), "which can be no file's name"},
		{NAMED("a/../../x.json"), "which can be no file's name"},
		{NAMED("/etc/passwd"), "which can be no file's name"},
		{NAMED("a//b"), "which can be no file's name"},
		{NAMED("./config.json"), "which can be no file's name"},
		{NAMED(""), "which can be no file's name"},
		{NAMED("a\\u001b[2Jb.model"), "which can be no file's name"},
		{NAMED("a\\nb"), "which can be no file's name"},
		{NAMED("a\\\\b"), "which can be no file's name"},
		{NAMED("x\\u0000y"), "org/tiny:"},
		{NAMED("config.json"), "names 'config.json' twice"},
		{"{" SHA ",\"siblings\":[{\"rfilename\":\"config.json\",\"size\":-1}]}", "'size' is -1"},
		{"{" SHA ",\"siblings\":[{\"rfilename\":\"config.json\",\"size\":99999999999999999}]}",
			"'size'"},
		{"{" SHA ",\"siblings\":[{\"rfilename\":\"config.json\",\"size\":1e400}]}", "org/tiny:"},
		{"{" SHA ",\"siblings\":[{\"rfilename\":\"config.json\",\"size\":6,\"blobId\":"
			"\"../../../../../../../../../../../../../etc\"}]}", "'blobId' must be 40 hex"},
		{"{" SHA ",\"siblings\":[" CONFIG ",{\"rfilename\":\"model.safetensors\",\"lfs\":"
			"{\"size\":6,\"sha256\":\"zz\"}}]}", "'sha256' must be 64 hexadecimal digits"},
		{"{" SHA ",\"siblings\":[" CONFIG ",{\"rfilename\":\"model.safetensors\"}]}",
			"gives no digest of model.safetensors"},
		{"{" SHA ",\"siblings\":[" CONFIG ",{\"rfilename\":\".model\",\"size\":6,\"blobId\":"
			"\"ce013625030ba8dba906f756967f9e9ca394464a\"},{\"rfilename\":\"model.safetensors\","
			"\"size\":6,\"blobId\":\"ce013625030ba8dba906f756967f9e9ca394464a\"}]}",
			"names a file '.model'"},
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		w->hub.listing = cases[i].listing;
		expect_refused(w, "org/tiny", NULL, STATUS_INVALID, cases[i].words);
		assert_int_equal(hub_count(&w->hub, "/resolve/"), 0);
	}
	/* Deeply nested: refused, not followed. */
	char *deep = malloc(200001);
	memset(deep, '[', 200000);
	memcpy(deep, "{\"siblings\":", 12);
	deep[200000] = '\0';
	w->hub.listing = deep;
	expect_refused(w, "org/tiny", NULL, STATUS_INVALID, "org/tiny:");
	free(deep);
}

static void test_choice(void **state)
{
	struct world *w = *state;
	add_weights(w, "pytorch_model.bin", 1000);
	expect_refused(w, "org/tiny", NULL, STATUS_INVALID, "weights as pickles alone "
		"(pytorch_model.bin), which run code");
	add_weights(w, "adapter_model.safetensors", 1000);
	expect_refused(w, "org/tiny", NULL, STATUS_INVALID, "so it is no base model (it has adapter_");
	add_weights(w, "tiny.Q4_0.gguf", 2000);
	add_weights(w, "tiny.Q8_0.gguf", 3000);
	expect_refused(w, "org/tiny", NULL, STATUS_INVALID,
		"choose one with --include: tiny.Q4_0.gguf, tiny.Q8_0.gguf");
	expect_refused(w, "org/tiny", "*.Q2*", STATUS_NOT_FOUND, "matches '*.Q2*'; there are: tiny.Q4_0");
	expect_refused(w, "org/tiny", "*.bin", STATUS_NOT_FOUND, "no .gguf file");
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0}, both = {0};
	struct errmsg err;
	assert_int_equal(pull(w, "org/tiny", "*Q4_0*", &p, &err), 0);
	assert_int_equal(p.n_files, 1);
	assert_non_null(strstr(p.path, "/tiny.Q4_0.gguf"));
	check_file(p.path, w->weights, 2000);
	assert_int_equal(pull(w, "org/tiny", "*", &both, &err), 0);
	assert_int_equal(both.n_files, 2);
	add_weights(w, "model.safetensors", WEIGHTS);
	expect_refused(w, "org/tiny", NULL, STATUS_INVALID, "has no config.json");
}

static void test_shards(void **state)
{
	struct world *w = *state;
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0};
	struct errmsg err;
	static const char index[] = "model.safetensors.index.json";
	add(w, "config.json", "hello\n");
	add_weights(w, "one.safetensors", 1000);
	add_weights(w, "two.safetensors", 2000);
	add_weights(w, "consolidated.safetensors", 3000); /* the same again, in one file */
	add(w, index, "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\","
		"\"c\":\"two.safetensors\"}}");
	assert_int_equal(pull(w, "org/tiny", NULL, &p, &err), 0);
	assert_int_equal(p.n_files, 4);
	assert_int_equal(hub_count(&w->store, "/blob/"), 2);
	static const char *const bad[] = {"{}", "{\"weight_map\":{}}", "no JSON",
		"{\"weight_map\":{\"a\":\"three.safetensors\"}}", "{\"weight_map\":{\"a\":1}}",
		"{\"weight_map\":{\"a\":\"../../config.json\"}}", "{\"weight_map\":{\"a\":\"config.json\"}}"};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		w->hub.n_objects--;
		add(w, index, bad[i]);
		expect_refused(w, "org/tiny", NULL, STATUS_INVALID, index);
	}
}

static void test_no_room(void **state)
{
	struct world *w = *state;
	w->hub.listing = "{" SHA ",\"siblings\":[" CONFIG ",{\"rfilename\":\"model.safetensors\","
		"\"size\":999999999999999,\"blobId\":\"ce013625030ba8dba906f756967f9e9ca394464b\"}]}";
	expect_refused(w, "org/tiny", NULL, STATUS_DISK_FULL, "needs 909 TiB more, and its disk has ");
	assert_int_equal(hub_count(&w->hub, "/resolve/"), 0);
}

static void test_environment(void **state)
{
	struct world *w = *state;
	struct hub_config c = {0};
	struct errmsg err;
	char path[128];
	static const char *const names[] = {"HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME",
		"HF_HUB_OFFLINE", "HF_HUB_DOWNLOAD_TIMEOUT", "SSL_CERT_FILE"};
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		unsetenv(names[i]);
	}
	assert_int_equal(setenv("HF_HOME", w->dir, 1), 0);
	assert_int_equal(hub_config_read(&c, &err), 0);
	assert_string_equal(c.endpoint, HUB_DEFAULT_ENDPOINT);
	assert_null(c.token);
	assert_int_equal(c.stall_s, 30);
	hub_config_deinit(&c);

	snprintf(path, sizeof(path), "%s/token", w->dir);
	put_file(path, "hf_saved\n", 9);
	assert_int_equal(setenv("HF_ENDPOINT", "https://mirror.example/hf//", 1), 0);
	assert_int_equal(hub_config_read(&c, &err), 0);
	assert_string_equal(c.endpoint, "https://mirror.example/hf");
	assert_string_equal(c.token, "hf_saved");
	hub_config_deinit(&c);
	assert_int_equal(setenv("HF_TOKEN", "hf_given", 1), 0);
	assert_int_equal(hub_config_read(&c, &err), 0);
	assert_string_equal(c.token, "hf_given");
	hub_config_deinit(&c);

	static const struct {
		const char *name, *value;
		int code;
	} bad[] = {
		{"HF_TOKEN", "hf_x\r\nX-Evil: 1", STATUS_INVALID},
		{"HF_TOKEN", "hf_\xC3\xA4", STATUS_INVALID},
		{"HF_ENDPOINT", "ftp://x", STATUS_INVALID},
		{"HF_ENDPOINT", "https://user:secret@x", STATUS_INVALID},
		{"HF_ENDPOINT", "https://", STATUS_INVALID},
		{"HF_HUB_DOWNLOAD_TIMEOUT", "0", STATUS_INVALID},
		{"HF_HUB_DOWNLOAD_TIMEOUT", "1x", STATUS_INVALID},
		{"HF_HUB_OFFLINE", "1", STATUS_DENIED},
	};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		assert_int_equal(setenv(bad[i].name, bad[i].value, 1), 0);
		if (hub_config_read(&c, &err) != bad[i].code || strstr(err.text, "hf_") ||
			strstr(err.text, "secret")) {
			fail_msg("%s=%s: %s", bad[i].name, bad[i].value, err.text);
		}
		unsetenv(bad[i].name);
	}
	unsetenv("HF_HOME");
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, hub_world_setup, hub_world_teardown)
	const struct CMUnitTest tests[] = {
		T(test_layout), T(test_revisions), T(test_token), T(test_gated), T(test_not_found),
		T(test_hostile_listings), T(test_choice), T(test_shards), T(test_no_room),
		T(test_environment),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
