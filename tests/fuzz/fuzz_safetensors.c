#include <stdlib.h>

#include "engine/model/safetensors.h"
#include "util/cleanup.h"
#include "util/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(safetensors_deinit) struct safetensors st = {0};
	struct errmsg err;
	if (safetensors_parse(&st, data, size, "fuzz", &err) != 0) {
		return 0;
	}
	for (size_t i = 0; i < st.n_tensors; i++) {
		const struct st_tensor *t = &st.tensors[i];
		/* Two bytes make one value at most. */
		_cleanup_(freep) float *out = alloc_array(t->bytes / 2, sizeof(*out));
		if (out) {
			st_tensor_read_f32(t, out, &err);
		}
		if (safetensors_find(&st, t->name) != t) {
			abort();
		}
	}
	return 0;
}
