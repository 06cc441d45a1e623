/* tokenizer.json from anybody: refused in words, or a tokenizer that encodes any text. */

#include <stdlib.h>
#include <string.h>

#include "engine/text/text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char text[] =
		"It's 1234 <|im_end|>\r\n  na\xC3\xAFve e\xCC\x81 \xE6\x97\xA5\xE6\x9C\xAC"
		"\xF0\x9F\x98\x80 \xE1\x84\x80\xE1\x85\xA1 ooo,x-- <s>";
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	struct ids ids = {0};
	struct buf out = {0};

	int r = tokenizer_new_json(&t, (const char *)data, size, "tokenizer.json", &err);
	if (r > 0 && !err.text[0]) {
		abort(); /* a fault without words */
	}
	if (r == 0 && tokenizer_encode(t, text, strlen(text), true, &ids, &err) == 0) {
		for (size_t i = 0; i < ids.len; i++) {
			if (ids.data[i] < 0 || ids.data[i] >= tokenizer_vocab_size(t) ||
					tokenizer_decode(t, ids.data[i], false, &out) != 0) {
				abort();
			}
		}
	}
	ids_deinit(&ids);
	buf_deinit(&out);
	tokenizer_free(t);
	return 0;
}
