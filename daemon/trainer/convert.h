#pragma once
/* The link's messages and the trainer's plain structs. */

#include <stddef.h>

#include "daemon/trainer/trainer.h"
#include "link.pb-c.h"
#include "util/errmsg.h"

/* A task as it is executed. STATUS_INVALID names the field; *ret then still is a task with its id,
 * so that it can be answered, when there was memory for it. */
int convert_task(const Peftd__V1__Task *pb, struct task **ret, struct errmsg *err);

/* Parts of messages; all borrow from their arguments. */
void convert_plan(Peftd__V1__Plan *pb, const struct plan_info *p);
void convert_model(Peftd__V1__Model *pb, const struct model_info *m, ProtobufCBinaryData *modules,
	size_t max_modules);
void convert_inspect_row(Peftd__V1__InspectRow *pb, const struct inspect_row *row,
	ProtobufCBinaryData *tokens);
void convert_inspect_summary(Peftd__V1__InspectSummary *pb, const struct inspect_summary *s);
void convert_generate(Peftd__V1__GenerateReply *pb, const struct generate_info *g);
/* `files` and `pointers`: one for each file of the folder. */
void convert_merge(Peftd__V1__FetchReply *pb, const struct merge_info *m, Peftd__V1__Blob *blob,
	Peftd__V1__File *files, Peftd__V1__File **pointers, Peftd__V1__MergeReport *report);
void convert_times(Peftd__V1__InferenceTimes *pb, const struct forward_times *t);
void convert_eval(Peftd__V1__EvalReply *pb, const struct eval_info *e);
