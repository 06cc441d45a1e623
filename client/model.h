#pragma once
/* What the commands that register base models share. */

#include "client/ctl.h"

/* Registers what lies at `path`, on the daemon's machine. 0 and *ret (free with proto_free()), its
 * `model` set; or the exit status after saying what is wrong. */
int model_add(struct ctl *ctl, const char *name, const char *path, Peftd__V1__Reply **ret);

void model_print(const Peftd__V1__Model *m);

/* Whether the daemon's files are those of this machine: its endpoint is a socket here, or the
 * loopback interface. Settles ctl->endpoint. */
bool model_endpoint_is_local(struct ctl *ctl);
