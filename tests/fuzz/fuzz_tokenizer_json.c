/* tokenizer.json from anybody: refused in words, or a tokenizer that encodes any text and decodes any
 * ids. */

#include <stdlib.h>
#include <string.h>

#include "engine/text/text.h"
#include "util/util.h"

static void decode(const struct tokenizer *t, const struct ids *ids)
{
	struct token_stream *s = NULL;
	struct buf out = {0};
	if (token_stream_new(&s, t, false) != 0) {
		abort();
	}
	for (size_t i = 0; i < ids->len; i++) {
		if (ids->data[i] < 0 || ids->data[i] >= tokenizer_vocab_size(t) ||
				token_stream_put(s, ids->data[i], &out) != 0) {
			abort();
		}
	}
	for (int32_t id = -1; id < 300; id++) {
		if (token_stream_put(s, id, &out) != 0) {
			abort();
		}
	}
	if (token_stream_end(s, &out) != 0 || !utf8_valid(out.data, out.len, NULL)) {
		abort();
	}
	token_stream_free(s);
	buf_deinit(&out);
}

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
			if (tokenizer_decode(t, ids.data[i], false, &out) != 0) {
				abort();
			}
		}
		decode(t, &ids);
	}
	ids_deinit(&ids);
	buf_deinit(&out);
	tokenizer_free(t);
	return 0;
}
