#include "engine/peft/merge.h"

#include <stdio.h>
#include <string.h>

#include "engine/peft/peft.h"
#include "engine/text/text.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_folder *, model_folder_free);

static int change(const void *ctx, const char *name, int64_t rows, int64_t cols, float *values,
	struct errmsg *err)
{
	const struct adapter *a = ctx;
	const struct peft_method *method = peft_method_find(a->config.method);
	char module[MODULE_NAME_MAX];
	const char *dot = strrchr(name, '.');
	size_t n = dot ? (size_t)(dot - name) : 0;
	if (n == 0 || n >= sizeof(module)) {
		return errmsg_set(err, STATUS_INVALID, "tensor '%.100s' is no tensor of a module", name);
	}
	memcpy(module, name, n);
	module[n] = '\0';
	return method->merge(a, module, dot + 1, rows, cols, values, err);
}

int merged_files_open(struct model_files **ret, const struct model_files *base,
	const struct adapter *a, struct errmsg *err)
{
	const char *why = peft_unmergeable(&a->config, model_files_config(base));
	if (why) {
		return errmsg_set(err, STATUS_INVALID, "%s cannot be merged here: %s", a->config.method,
			why);
	}
	return model_files_view(ret, base, change, a);
}

/* Files of the base that go along as they are. */
static int add_texts(struct model_folder *f, const struct model_files *m)
{
	static const char *const names[] = {"tokenizer.json", "tokenizer_config.json",
		"special_tokens_map.json", "chat_template.jinja"};
	int r = 0;
	for (size_t i = 0; i < ARRAY_LEN(names) && r == 0; i++) {
		size_t len;
		const char *text = model_files_text(m, names[i], &len);
		_cleanup_(buf_deinit) struct buf copy = {0};
		r = text ? buf_append(&copy, text, len) : 0;
		r = r || !text ? r : model_folder_add(f, names[i], &copy);
	}
	return r;
}

static int add_written_tokenizer(struct model_folder *f, const struct model_files *m,
	struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf json = {0};
	_cleanup_(buf_deinit) struct buf config = {0};
	int r = tokenizer_write(&json, &config, m, err);
	r = r ? r : model_folder_add(f, "tokenizer.json", &json);
	return r ? r : model_folder_add(f, "tokenizer_config.json", &config);
}

int merged_folder_new(struct model_folder **ret, const struct model_files *merged, const char *note,
	uint64_t shard_bytes, struct errmsg *err)
{
	_cleanup_(model_folder_freep) struct model_folder *f = NULL;
	_cleanup_(buf_deinit) struct buf text = {0};
	int r = model_folder_new(&f, merged, shard_bytes, err);
	if (r == 0) {
		r = model_files_gguf_tokenizer(merged) ? add_written_tokenizer(f, merged, err) :
			add_texts(f, merged);
	}
	if (r == 0 && note) {
		r = buf_appendf(&text, "%s", note);
		r = r ? r : model_folder_add(f, "peftd_merge.json", &text);
	}
	if (r == 0) {
		*ret = steal_ptr(f);
	}
	return r;
}

uint64_t merged_files_workspace(const struct model_files *m, const struct adapter *a)
{
	uint64_t tensors = 0;
	for (size_t i = 0; i < a->tensors.n_tensors; i++) {
		tensors += a->tensors.tensors[i].bytes;
	}
	/* The folder's bytes, and at most all of it again in f32. */
	return model_files_largest(m) + 2 * tensors;
}
