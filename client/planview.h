#pragma once
/* A plan, for people. */

#include "client/ctl.h"
#include "job.pb-c.h"

/* The memory table and the estimates, on standard output. */
void planview_print(const Peftd__V1__Plan *plan);

/* On standard error: rows that are not trained on as they are. Nothing when all are. */
void planview_note_rows(struct ctl *ctl, const Peftd__V1__Plan *plan);
