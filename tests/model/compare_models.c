/* compare_models A B: are two models the same, tensor by tensor and bit by bit? For a GGUF and what
 * tests/golden/gguf_to_hf.py made of it. */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/model-internal.h"
#include "util/cleanup.h"
#include "util/util.h"

DEFINE_CLEANUP(struct model_files *, model_files_free);

static void open_model(struct model_files **ret, const char *path)
{
	struct errmsg err = {0};
	int r = model_files_open(ret, path, &err);
	if (r != 0) {
		fprintf(stderr, "%s: %s\n", path, r < 0 ? strerror(-r) : err.text);
		exit(1);
	}
	printf("%s: %s, %s, %" PRIu64 " bytes, %" PRIu64 " parameters\n", model_files_path(*ret),
		model_files_format(*ret), model_files_dtype(*ret), model_files_bytes(*ret),
		model_files_parameters(*ret));
}

static bool same_tensor(const struct model_files *a, const struct model_files *b,
	const struct tensor_spec *spec)
{
	struct errmsg err = {0};
	size_t n = (size_t)(spec->rows * spec->cols);
	_cleanup_(freep) float *x = alloc_array(n, sizeof(*x));
	_cleanup_(freep) float *y = alloc_array(n, sizeof(*y));
	if (!x || !y || model_files_read(a, spec->name, x, &err) != 0 ||
			model_files_read(b, spec->name, y, &err) != 0) {
		fprintf(stderr, "%s: %s\n", spec->name, err.text);
		return false;
	}
	if (memcmp(x, y, n * sizeof(*x)) != 0) {
		fprintf(stderr, "%s differs\n", spec->name);
		return false;
	}
	return true;
}

static bool same_config(const struct model_config *a, const struct model_config *b)
{
	return strcmp(a->model_type, b->model_type) == 0 && a->vocab_size == b->vocab_size &&
		a->hidden_size == b->hidden_size && a->intermediate_size == b->intermediate_size &&
		a->num_hidden_layers == b->num_hidden_layers &&
		a->num_attention_heads == b->num_attention_heads &&
		a->num_key_value_heads == b->num_key_value_heads && a->head_dim == b->head_dim &&
		a->max_position_embeddings == b->max_position_embeddings &&
		a->rms_norm_eps == b->rms_norm_eps && a->rope_theta == b->rope_theta &&
		a->rope_scaling == b->rope_scaling && a->tie_word_embeddings == b->tie_word_embeddings &&
		a->attention_bias == b->attention_bias && a->mlp_bias == b->mlp_bias &&
		a->bos_token_id == b->bos_token_id && a->eos_token_id == b->eos_token_id &&
		a->pad_token_id == b->pad_token_id;
}

int main(int argc, char **argv)
{
	_cleanup_(model_files_freep) struct model_files *a = NULL;
	_cleanup_(model_files_freep) struct model_files *b = NULL;
	_cleanup_(freep) struct tensor_spec *specs = NULL;
	size_t n, different = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: compare_models A B\n");
		return 2;
	}
	open_model(&a, argv[1]);
	open_model(&b, argv[2]);
	bool same = same_config(model_files_config(a), model_files_config(b));
	if (model_tensors(&specs, &n, model_files_config(a)) != 0) {
		return 2;
	}
	for (size_t i = 0; i < n; i++) {
		different += !same_tensor(a, b, &specs[i]);
	}
	printf("configuration %s; %zu of %zu tensors differ\n", same ? "equal" : "DIFFERS", different, n);
	return same && different == 0 ? 0 : 1;
}
