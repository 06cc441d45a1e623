#pragma once
/*
 * Checked encoding and decoding around protobuf-c, and the link between the core and its children.
 *
 * protobuf-c has no depth limit, lets a small message unpack to 92 times its size, and accepts bad
 * UTF-8. So no message of ours is recursive, decoding goes through an allocator with a budget, and
 * everything textual is `bytes`, taken out with proto_str() or proto_name() only.
 */

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/errmsg.h"

enum {
	PROTOCOL_VERSION = 1, /* client and daemon */
	LINK_VERSION = 1,     /* core and children */

	CHUNK_SIZE = 262128,      /* bulk data: 64 pages less LMDB's page header; store, link and wire */
	MESSAGE_MAX = 64 * 1024,  /* a packed Request or Reply */
	LINK_FRAME_MAX = CHUNK_SIZE + MESSAGE_MAX + 64 * 1024,
	UNPACK_BUDGET = 16 * 1024 * 1024, /* bytes of memory that one message may take */
	REQUEST_ID_SIZE = 16,
	DIGEST_SIZE = 32, /* BLAKE2b-256 */
	TRANSFER_WINDOW = 8, /* chunks under way in a transfer */
	SWEEP_MAX = 100,     /* jobs of a sweep */
	PROMPTS_MAX = 64,    /* of one generation */
	PROMPTS_BYTES_MAX = 48 * 1024,
	STOPS_MAX = 16,      /* texts that end an answer */
	STOP_TEXT_MAX = 256, /* bytes of one */
};

/* Unpacks a message of type `desc`; free it with proto_free(). NULL with `err` filled when the bytes
 * are no such message, longer than `max_len`, or take more memory than the budget. */
void *proto_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
	size_t max_len, struct errmsg *err);

/* Frees a message of proto_unpack() or proto_copy(); NULL is fine. */
void proto_free(void *msg);

/* Packs into memory that the caller frees; NULL without memory. `*ret_len` is its length. */
void *proto_pack(const void *msg, size_t *ret_len);

/* A deep copy by packing and unpacking; NULL without memory. */
void *proto_copy(const void *msg);

/* The text of a bytes field as a string the caller frees. STATUS_INVALID, with `what` named, when it
 * holds a NUL or is no UTF-8; -ENOMEM. */
int proto_str(const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err);

/* The same, for names (name_valid() of util/util.h). */
int proto_name(const ProtobufCBinaryData *b, const char *what, char **ret, struct errmsg *err);

/* A bytes field that borrows a string; valid as long as `s` is. NULL gives an empty field. */
ProtobufCBinaryData proto_bytes(const char *s);

/* A bytes field with its own copy of `s`, freed with its message by proto_free() (messages made by
 * hand whose memory is malloc's). */
ProtobufCBinaryData proto_bytes_dup(const char *s);

/* True when the field's bytes are those of `s`. */
bool proto_equal(const ProtobufCBinaryData *b, const char *s);

/*
 * One end of a link. Frames: u32 little-endian length of the packed message, the message, raw bytes
 * to the end of the frame. A link never blocks: what the socket does not take is queued.
 */
struct link;

/* Takes ownership of `fd`, a connected SOCK_SEQPACKET socket, makes it non-blocking and raises its
 * buffers to hold a frame. -errno. */
int link_new(struct link **ret, int fd);
void link_free(struct link *l);

/* A connected pair for a child: fds[0] stays, fds[1] is for the child. Both close-on-exec. */
int link_pair(int fds[2]);

int link_fd(const struct link *l);

/* Sends or queues a message and `raw_len` raw bytes (raw may be NULL). 0; -EMSGSIZE; -ENOMEM;
 * -EPIPE or -ECONNRESET when the other side is gone. */
int link_send(struct link *l, const void *msg, const void *raw, size_t raw_len);

/* Sends what is queued, as far as the socket takes it. 0, also when something is left; -errno. */
int link_flush(struct link *l);

/* Frames and bytes queued: poll for EPOLLOUT while there are any. */
size_t link_queued(const struct link *l);
size_t link_queued_bytes(const struct link *l);

/* Receives one message of type `desc` (free with proto_free()). *ret_raw points into the link's own
 * buffer until the next call. 1: received; 0: nothing there now; -ECONNRESET: the other side is
 * gone; -EPROTO: not a frame of ours (`err` says why). */
int link_recv(struct link *l, const ProtobufCMessageDescriptor *desc, void **ret_msg,
	const void **ret_raw, size_t *ret_raw_len, struct errmsg *err);

/* As link_recv(), but waits up to timeout_ms (-1: for ever); flushes what is queued meanwhile.
 * -ETIMEDOUT. For children that have nothing else to do. */
int link_recv_wait(struct link *l, int timeout_ms, const ProtobufCMessageDescriptor *desc,
	void **ret_msg, const void **ret_raw, size_t *ret_raw_len, struct errmsg *err);
