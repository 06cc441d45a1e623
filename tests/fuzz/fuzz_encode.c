/* Any bytes as text: refused as no UTF-8, or ids whose bytes are the text again. Tokenizers as
 * different as they come, chosen by the first byte; a cache must not change anything. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/text-internal.h"
#include "util/util.h"

#define HEAD                                                                                       \
	"{\"version\": \"1.0\", \"added_tokens\": [{\"id\": 261, \"content\": \"<s>\", \"special\": "  \
	"true},"                                                                                       \
	"{\"id\": 262, \"content\": \"  x\", \"lstrip\": true, \"normalized\": true},"                 \
	"{\"id\": 263, \"content\": \"yy\", \"rstrip\": true, \"single_word\": true}],"
#define SPLIT(pattern, behavior)                                                                   \
	"{\"type\": \"Split\", \"pattern\": {\"Regex\": \"" pattern "\"}, "                            \
	"\"behavior\": \"" behavior "\", \"invert\": false}"
#define STEPS(first, regex)                                                                        \
	"\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [" first                       \
	"{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": " regex "}]},"

static const char *const parts[] = {
	HEAD STEPS("{\"type\": \"Digits\", \"individual_digits\": true},", "true"),
	HEAD STEPS(
		SPLIT(
			"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}"
			"| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+",
			"Isolated") ",",
		"false"),
	HEAD STEPS(SPLIT("[\\\\p{Lu}\\\\p{M}]*[\\\\p{Ll}\\\\p{M}]+(?i:'s)?|\\\\s+(?!\\\\S)|\\\\s+",
				   "Contiguous") "," SPLIT("a*", "MergedWithNext") "," SPLIT("(?<=b)b|c$",
				   "MergedWithPrevious") ",",
		"true"),
	/* the last ones take away or change text */
	HEAD "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFKC\"},"
		 "{\"type\": \"Lowercase\"}, {\"type\": \"Strip\", \"strip_left\": true, \"strip_right\": "
		 "true}]}," STEPS(SPLIT("q", "Removed") ",", "true"),
	HEAD "\"normalizer\": {\"type\": \"NFD\"},"
		 "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": true},",
};
enum { WHOLE = 3 };

static struct tokenizer *make(const char *head)
{
	static const char *const merges[] = {"a a", "aa a", "a aa", "e l", "l o", "el lo"};
	struct buf b = {0};
	struct tokenizer *t = NULL;
	struct errmsg err = {0};
	buf_appendf(&b, "%s\"model\": {\"type\": \"BPE\", \"vocab\": {", head);
	for (unsigned i = 0; i < 256; i++) {
		buf_appendf(&b, "\"\\u%04x\": %u, ", byte_level_char((uint8_t)i), i);
	}
	buf_appendf(
		&b, "\"aa\": 256, \"aaa\": 257, \"el\": 258, \"lo\": 259, \"ello\": 260}, \"merges\": [");
	for (size_t i = 0; i < ARRAY_LEN(merges); i++) {
		buf_appendf(&b, "%s\"%s\"", i ? ", " : "", merges[i]);
	}
	buf_appendf(&b, "]}}");
	if (tokenizer_new_json(&t, (char *)b.data, b.len, "fuzz", &err) != 0) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	buf_deinit(&b);
	return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct tokenizer *made[ARRAY_LEN(parts)]; /* kept: making one takes longer than a run */
	unsigned which = size > 0 ? data[0] % ARRAY_LEN(parts) : 0;
	const char *text = (const char *)data + (size > 0);
	struct ids ids = {0}, again = {0};
	struct places places = {0};
	struct encoder e;
	struct errmsg err = {0};

	size -= size > 0;
	made[which] = made[which] ? made[which] : make(parts[which]);
	int r = tokenizer_encode(made[which], text, size, true, &ids, &err);
	if (r != 0 && r != STATUS_INVALID) {
		abort();
	}
	if (encoder_init(&e, made[which], true) != 0 ||
			encoder_run(&e, text, size, true, &again, &places, &err) != r) {
		abort();
	}
	if (r == 0 && (again.len != ids.len || places.len != ids.len ||
			(ids.len > 0 && memcmp(ids.data, again.data, ids.len * sizeof(*ids.data)) != 0))) {
		abort();
	}
	size_t at = 0;
	for (size_t i = 0; r == 0 && i < ids.len; i++) {
		const struct token_place *p = &places.data[i];
		if (p->start > p->end || p->end > size || (which < WHOLE && p->start > at)) {
			abort();
		}
		at = p->end;
	}
	if (r == 0 && which < WHOLE && at != size) {
		abort();
	}
	encoder_deinit(&e);
	ids_deinit(&ids);
	ids_deinit(&again);
	free(places.data);
	return 0;
}
