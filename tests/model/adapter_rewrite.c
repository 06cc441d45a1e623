/* adapter_rewrite IN OUT: reads an adapter folder and writes it again as an export, for
 * tests/golden/check_adapter.py to load in PEFT. OUT must exist. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model-internal.h"
#include "engine/peft/adapter.h"
#include "util/cleanup.h"
#include "util/util.h"

static void die(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

static void read_file(struct buf *out, const char *dir, const char *name)
{
	char path[4096];
	struct errmsg err = {0};
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (text_file_read(out, path, path, (size_t)1 << 30, &err) != 0 || !out->data) {
		die(path, err.text);
	}
}

static void write_file(const struct buf *data, const char *dir, const char *name)
{
	char path[4096];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	FILE *f = fopen(path, "wb");
	if (!f || fwrite(data->data, 1, data->len, f) != data->len || fclose(f) != 0) {
		die(path, "cannot be written");
	}
}

static float *read_tensor(const struct st_tensor *t)
{
	float *out = alloc_array((size_t)t->dims[0], (size_t)t->dims[1] * sizeof(*out));
	if (!out || st_tensor_read_f32(t, out, NULL) != 0) {
		die(t->name, "cannot be read");
	}
	return out;
}

/* Tensors come sorted by name: A, B, A, B, … */
static void read_module(struct adapter_lora *m, const struct st_tensor *t)
{
	size_t prefix = strlen("base_model.model."), suffix = strlen(".lora_A.weight");
	m->module = strndup(t[0].name + prefix, strlen(t[0].name) - prefix - suffix);
	m->r = t[0].dims[0];
	m->in = t[0].dims[1];
	m->out = t[1].dims[0];
	m->a = read_tensor(&t[0]);
	m->b = read_tensor(&t[1]);
}

int main(int argc, char **argv)
{
	_cleanup_(buf_deinit) struct buf config = {0}, weights = {0};
	_cleanup_(buf_deinit) struct buf new_config = {0}, new_weights = {0};
	_cleanup_(adapter_deinit) struct adapter a = {0};
	struct errmsg err = {0};

	if (argc != 3) {
		die("usage", "adapter_rewrite IN OUT");
	}
	read_file(&config, argv[1], "adapter_config.json");
	read_file(&weights, argv[1], "adapter_model.safetensors");
	if (adapter_parse(&a, config.data, config.len, weights.data, weights.len, &err) != 0) {
		die(argv[1], err.text);
	}
	size_t n = a.tensors.n_tensors / 2;
	_cleanup_(freep) struct adapter_lora *modules = calloc_array(n, sizeof(*modules));
	if (!modules) {
		die("memory", "none left");
	}
	for (size_t i = 0; i < n; i++) {
		read_module(&modules[i], &a.tensors.tensors[2 * i]);
	}
	if (adapter_export(&new_config, &new_weights, &a.config, modules, n, &err) != 0 ||
		adapter_verify(new_config.data, new_config.len, new_weights.data, new_weights.len, modules,
		n, &err) != 0) {
		die(argv[2], err.text);
	}
	write_file(&new_config, argv[2], "adapter_config.json");
	write_file(&new_weights, argv[2], "adapter_model.safetensors");
	for (size_t i = 0; i < n; i++) {
		free((void *)(uintptr_t)modules[i].module);
		free((void *)(uintptr_t)modules[i].a);
		free((void *)(uintptr_t)modules[i].b);
	}
	return 0;
}
