#include <stdlib.h>

#include "engine/model/model-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct model_config c;
	struct tensor_spec *specs;
	size_t n_specs;
	struct errmsg err;
	uint64_t parameters = 0;
	if (model_config_parse(&c, (const char *)data, size, "fuzz", &err) != 0) {
		return 0;
	}
	if (model_tensors(&specs, &n_specs, &c) != 0) {
		return 0;
	}
	for (size_t i = 0; i < n_specs; i++) {
		const struct tensor_spec spec = specs[i];
		uint64_t n;
		if (spec.rows < 1 || spec.cols < 1 ||
				__builtin_mul_overflow((uint64_t)spec.rows, (uint64_t)spec.cols, &n) ||
				__builtin_add_overflow(parameters, n, &parameters)) {
			abort(); /* what is accepted must have sizes that can be computed with */
		}
	}
	free(specs);
	return 0;
}
