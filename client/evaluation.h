#pragma once
/* An evaluation as it is asked for, and what comes of it; for eval and compare. */

#include "client/ctl.h"
#include "client/jsonw.h"

struct evaluation {
	const char *model, *dataset, *dtype;
	const char *adapter, *chat_template, *shots_dataset; /* NULL: none */
	struct opt_u64 step, max_length, shots, seed, limit, max_new_tokens;
	struct texts metrics, stops;
	bool train_on_prompt;
};

/* With the defaults; the texts are owned. */
struct evaluation evaluation_init(void);
void evaluation_deinit(struct evaluation *e);

/* 0 or an exit status, with words said. */
int evaluation_check(struct ctl *ctl, const struct evaluation *e);
/* *ret is a reply with an EvalReply; free it with proto_free(). */
int evaluation_ask(struct ctl *ctl, const struct evaluation *e, Peftd__V1__Reply **ret);

/* Metrics of answers. */
enum { EVALUATION_METRICS = 5 };
const char *evaluation_title(size_t i);
double evaluation_metric(const Peftd__V1__EvalReply *r, size_t i); /* NaN: not asked for */

/* Adds loss, tokens, perplexity and all that was asked for to an open object. */
void evaluation_json(struct jsonw *j, const Peftd__V1__EvalReply *r);
