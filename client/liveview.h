#pragma once
/* The live view of a job on a terminal: a few lines, drawn again in place. */

#include <stdio.h>

#include "client/ctl.h"
#include "event.pb-c.h"

struct liveview;

/* `out` is a terminal. -ENOMEM. */
int liveview_new(struct liveview **ret, FILE *out, bool utf8);

/* Leaves the last picture standing. */
void liveview_free(struct liveview *v);

void liveview_job(struct liveview *v, const Peftd__V1__Job *job);
void liveview_event(struct liveview *v, const Peftd__V1__Event *e);
void liveview_lost(struct liveview *v, bool lost);

/* Draws when something changed or a second has passed, at most ten times a second unless `now`. */
void liveview_draw(struct liveview *v, bool now);
