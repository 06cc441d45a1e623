#include <stdlib.h>

#include "tests/model/gguf-build.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_files *, model_files_free);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(model_files_freep) struct model_files *m = NULL;
	struct errmsg err;
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n_specs;
	if (gguf_build_load(&m, data, size, &err) != 0) {
		return 0;
	}
	if (model_tensors(&specs, &n_specs, model_files_config(m)) != 0) {
		return 0;
	}
	for (size_t i = 0; i < n_specs; i++) {
		const struct tensor_spec spec = specs[i];
		int64_t rows, cols;
		if (!model_files_shape(m, spec.name, &rows, &cols) || rows != spec.rows ||
				cols != spec.cols) {
			abort();
		}
		_cleanup_(freep) float *out = alloc_array((size_t)(rows * cols), sizeof(*out));
		if (out) {
			model_files_read(m, spec.name, out, &err);
		}
	}
	const struct gguf_tokenizer *t = model_files_gguf_tokenizer(m);
	volatile char last = 0;
	for (int64_t i = 0; t && i < t->n_tokens; i++) {
		last = t->token_lens[i] > 0 ? t->tokens[i][t->token_lens[i] - 1] : last;
	}
	for (int64_t i = 0; t && i < t->n_merges; i++) {
		last = t->merge_lens[i] > 0 ? t->merges[i][t->merge_lens[i] - 1] : last;
	}
	(void)last;
	return 0;
}
