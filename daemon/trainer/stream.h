#pragma once
/* An answer on its way from tokens to text, up to a text that ends it. */

#include "daemon/trainer/trainer.h"

struct stream {
	const struct text *stops; /* borrowed */
	size_t n_stops;
	struct token_stream *tokens; /* owned; NULL before the first */
	struct buf held; /* may be the beginning of a stop text */
	struct buf text; /* whole characters, for whoever takes them */
	bool stopped;    /* a stop text came: nothing follows what is in `text` */
};

void stream_deinit(struct stream *s);
/* For the next answer. */
void stream_restart(struct stream *s);
/* Adds a token; special ones have no text. */
int stream_add(struct stream *s, const struct tokenizer *t, int32_t id);
/* Nothing follows: what was held back is text after all. */
int stream_end(struct stream *s);
