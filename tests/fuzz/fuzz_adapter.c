/* Input: the length of the configuration in two bytes, the configuration, the weights. */

#include <stdlib.h>

#include "engine/peft/adapter.h"
#include "util/cleanup.h"
#include "util/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(adapter_deinit) struct adapter a = {0};
	struct errmsg err;
	if (size < 2) {
		return 0;
	}
	size_t config_len = le16_read(data);
	config_len = config_len < size - 2 ? config_len : size - 2;
	if (adapter_parse(&a, data + 2, config_len, data + 2 + config_len, size - 2 - config_len,
			&err) != 0) {
		return 0;
	}
	for (size_t i = 0; i < a.tensors.n_tensors; i++) {
		const struct st_tensor *t = &a.tensors.tensors[i];
		_cleanup_(freep) float *out = alloc_array(t->bytes, 2);
		if (!out || st_tensor_read_f32(t, out, &err) != 0) {
			abort(); /* what is accepted can be read */
		}
	}
	return 0;
}
