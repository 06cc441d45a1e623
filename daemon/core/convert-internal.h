#pragma once
/* What the converters share. */

#include "common.pb-c.h"
#include "event.pb-c.h"
#include "job.pb-c.h"
#include "link.pb-c.h"
#include "rpc.pb-c.h"

#include "daemon/core/convert.h"
#include "proto/proto.h"
#include "util/cleanup.h"

DEFINE_CLEANUP(void *, proto_free);

/* Memory for messages that are built, packed and forgotten. After an allocation failed, all further
 * ones give NULL and scratch_pack() gives -ENOMEM, so that builders need not check each. */
struct scratch {
	void **blocks; /* calloc's */
	size_t n_blocks, cap_blocks;
	void **messages; /* proto_unpack's */
	size_t n_messages, cap_messages;
	bool failed;
};
void scratch_deinit(struct scratch *s);
void *scratch_alloc(struct scratch *s, size_t n, size_t size); /* zeroed */
/* Unpacks what the core itself has packed or checked before. NULL: the scratch has failed. */
void *scratch_unpack(
	struct scratch *s, const ProtobufCMessageDescriptor *desc, const struct packed *p);
int scratch_pack(struct scratch *s, const void *msg, struct packed *ret);

/* A message of TYPE with its defaults; evaluates to NULL when memory ran out. */
#define scratch_message(s, TYPE, INIT)                                                             \
	__extension__({                                                                                \
		TYPE *m_ = scratch_alloc(s, 1, sizeof(TYPE));                                              \
		if (m_) {                                                                                  \
			*m_ = (TYPE)INIT;                                                                      \
		}                                                                                          \
		m_;                                                                                        \
	})

ProtobufCBinaryData bytes_of(const void *data, size_t len); /* borrows */

/* Sets an optional bytes field from a string; leaves it out when that is NULL or empty. */
#define set_text(msg, field, s)                                                                    \
	do {                                                                                           \
		const char *text_ = (s);                                                                   \
		if (text_ && text_[0]) {                                                                   \
			(msg)->has_##field = true;                                                             \
			(msg)->field = proto_bytes(text_);                                                     \
		}                                                                                          \
	} while (0)

#define set_value(msg, field, value)                                                               \
	do {                                                                                           \
		(msg)->has_##field = true;                                                                 \
		(msg)->field = (value);                                                                    \
	} while (0)

/* Packs `msg`, which lives elsewhere, into *ret. */
int pack_message(const void *msg, struct packed *ret);

/* Checked copies. STATUS_INVALID with `what` named. */
int take_files(
	const Peftd__V1__Blob *blob, const char *what, struct store_files *ret, struct errmsg *err);
int take_text(bool has, const ProtobufCBinaryData *b, const char *what, char **ret,
	struct errmsg *err); /* *ret NULL when it is missing or empty */

/* Borrows the names. */
Peftd__V1__Blob *build_blob(struct scratch *s, const struct store_files *f);
