#include "hub_world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/util.h"

int hub_world_setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	signal(SIGPIPE, SIG_IGN);
	static const char *const proxies[] = {"http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy",
		"ALL_PROXY", "no_proxy", "NO_PROXY"};
	for (size_t i = 0; i < ARRAY_LEN(proxies); i++) {
		unsetenv(proxies[i]); /* the machine's are for the world outside */
	}
	w->weights = malloc(4 * MIB);
	for (size_t i = 0; i < 4 * MIB; i++) {
		w->weights[i] = (uint8_t)(i * 2654435761u >> 13);
	}
	snprintf(w->dir, sizeof(w->dir), "/tmp/test_hub.XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	assert_int_equal(setenv("HF_HUB_CACHE", w->dir, 1), 0);
	hub_start(&w->hub, "org/tiny", NULL);
	hub_start(&w->store, "org/tiny", NULL);
	w->hub.store = &w->store;
	w->config = (struct hub_config){strdup(w->hub.url), NULL, NULL, 30, 3, 10};
	*state = w;
	return 0;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

int hub_world_teardown(void **state)
{
	struct world *w = *state;
	hub_stop(&w->hub);
	hub_stop(&w->store);
	hub_config_deinit(&w->config);
	if (w->mounted) {
		umount2(w->dir, MNT_DETACH);
	}
	nftw(w->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(w->weights);
	free(w);
	return 0;
}

void add(struct world *w, const char *name, const char *text)
{
	hub_add(&w->hub, name, text, strlen(text), false);
}

void add_weights(struct world *w, const char *name, size_t size)
{
	hub_add(&w->hub, name, w->weights, size, true);
	hub_add(&w->store, name, w->weights, size, true);
}

void add_model(struct world *w)
{
	add(w, "README.md", "read me\n");
	add(w, "config.json", "hello\n");
	add(w, "tokenizer.json", "{}");
	add(w, "spiece.model", "");
	add_weights(w, "model.safetensors", WEIGHTS);
	add_weights(w, "pytorch_model.bin", 1000);
	add(w, "onnx/model.safetensors", "no");
}

static void on_file(void *data, const struct hub_file *f)
{
	((struct world *)data)->n_files++;
}

static void on_note(void *data, const char *text)
{
	struct world *w = data;
	size_t n = strlen(w->notes);
	snprintf(w->notes + n, sizeof(w->notes) - n, "%s\n", text);
}

int pull(struct world *w, const char *text, const char *include, struct hub_pulled *ret,
	struct errmsg *err)
{
	struct hf_name name;
	const struct hub_watch watch = {.data = w, .file = on_file, .note = on_note};
	*err = (struct errmsg){0};
	w->notes[0] = '\0';
	w->n_files = 0;
	assert_int_equal(hf_name_parse(&name, text, err), 0);
	return hub_pull(&w->config, &name, include, &watch, ret, err);
}

void expect_pulled(struct world *w, const char *text, const char *include)
{
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0};
	struct errmsg err;
	int r = pull(w, text, include, &p, &err);
	if (r != 0) {
		fail_msg("%d: %s", r, err.text);
	}
}

void expect_refused(struct world *w, const char *text, const char *include, int code,
	const char *words)
{
	_cleanup_(hub_pulled_deinit) struct hub_pulled p = {0};
	struct errmsg err;
	int r = pull(w, text, include, &p, &err);
	if (r != code || !strstr(err.text, words)) {
		fail_msg("%d instead of %d, '%s' instead of '%s'", r, code, err.text, words);
	}
	if (w->config.token && (strstr(err.text, w->config.token) || strstr(w->notes, "hf_"))) {
		fail_msg("the token is shown: %s", err.text);
	}
	assert_null(strstr(err.text, "sig-secret"));
}

char *in_cache(const struct world *w, char *out, const char *path)
{
	assert_true(snprintf(out, 512, "%s/models--org--tiny/%s", w->dir, path) < 512);
	return out;
}

const char *digest_of(const struct world *w, const char *name)
{
	for (size_t i = 0; i < w->hub.n_objects; i++) {
		if (strcmp(w->hub.objects[i].name, name) == 0) {
			return w->hub.objects[i].digest;
		}
	}
	fail_msg("%s: no such file", name);
	return NULL;
}

char *blob(const struct world *w, char *out, const char *name, const char *suffix)
{
	char path[128];
	snprintf(path, sizeof(path), "blobs/%s%s", digest_of(w, name), suffix);
	return in_cache(w, out, path);
}

bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

int64_t size_at(const char *path)
{
	struct stat st;
	return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

void put_file(const char *path, const void *data, size_t size)
{
	FILE *f = fopen(path, "we");
	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, size, f), size);
	assert_int_equal(fclose(f), 0);
}

void check_file(const char *path, const void *data, size_t size)
{
	_cleanup_(freep) char *have = malloc(size + 1);
	FILE *f = fopen(path, "re");
	if (!f) {
		fail_msg("%s: %s", path, strerror(errno));
	}
	assert_int_equal(fread(have, 1, size + 1, f), size);
	fclose(f);
	assert_memory_equal(have, data, size);
}

void check_weights(const struct world *w)
{
	char path[512], other[512];
	snprintf(other, sizeof(other), "snapshots/%s/model.safetensors", commit);
	check_file(in_cache(w, path, other), w->weights, WEIGHTS);
	assert_false(exists(blob(w, path, "model.safetensors", ".incomplete")));
}

/* Makes what an interrupted pull of the weights leaves. */
void leave_part(struct world *w, const void *data, size_t size)
{
	char path[512];
	snprintf(path, sizeof(path), "%s/models--org--tiny", w->dir);
	mkdir(path, 0777);
	mkdir(in_cache(w, path, "blobs"), 0777);
	put_file(blob(w, path, "model.safetensors", ".incomplete"), data, size);
}
