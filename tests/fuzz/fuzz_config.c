#include <stdlib.h>

#include "engine/model/model-internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct model_config c;
	struct tensor_spec spec;
	struct errmsg err;
	uint64_t parameters = 0;
	if (model_config_parse(&c, (const char *)data, size, "fuzz", &err) != 0) {
		return 0;
	}
	for (int64_t i = 0; model_config_tensor(&c, i, &spec); i++) {
		uint64_t n;
		if (spec.rows < 1 || spec.cols < 1 ||
				__builtin_mul_overflow((uint64_t)spec.rows, (uint64_t)spec.cols, &n) ||
				__builtin_add_overflow(parameters, n, &parameters)) {
			abort(); /* what is accepted must have sizes that can be computed with */
		}
	}
	return 0;
}
