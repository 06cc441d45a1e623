#pragma once
/* What the files of store/ share; nothing outside the folder includes this. */

#include <lmdb.h>
#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/proto.h"
#include "store/store.h"
#include "util/cleanup.h"
#include "util/util.h"

enum {
	STORE_VERSION = 1, /* of the layout; record.c says how it is raised */

	SEAL_SIZE = 16,                   /* BLAKE2b-128 before every record */
	KEY_MAX = 160,                    /* the longest key of ours: a name of 128 bytes, with room */
	RECORD_MAX = 1024 * 1024,         /* a packed record */
	TXN_CHUNKS_MAX = 8 * 1024 * 1024, /* bytes of chunks that one transaction takes */
	UPLOADS_MAX = 64,                 /* uploads whose running digest is kept in memory */
};

/* The named databases. Their names are on disk; the order here is not. */
enum store_db {
	DB_META,     /* "meta" → MetaRecord */
	DB_JOBS,     /* id be64 → JobRecord */
	DB_EVENTS,   /* job be64, seq be64 → kind byte, packed Event */
	DB_REQUESTS, /* uid be32, id[16] → RequestRecord */
	DB_MODELS,   /* name → ModelRecord */
	DB_DATASETS, /* name → DatasetRecord */
	DB_BLOBS,    /* digest[32] → BlobRecord */
	DB_CHUNKS,   /* blob be64, index be32 → content; no seal: its digest is in DB_DIGESTS */
	DB_DIGESTS,  /* blob be64, index be32 → BLAKE2b-256 of the chunk; no seal */
	DB_DUE,      /* enum due_kind, wall time be64, id → nothing: what retention looks at */
	DB_TRASH,    /* blob be64 → nothing: dropped blobs whose chunks are still to be deleted */
	DB_N,
};

enum due_kind {
	DUE_BLOB = 'b',       /* touched; digest[32]: a blob without references */
	DUE_JOB_EVENTS = 'e', /* ended; id be64: a job that has ended and may have events */
	DUE_JOB = 'j',        /* ended; id be64: a job that has ended */
	DUE_REQUEST = 'r',    /* answered; uid be32, id[16] */
};

/* The digest of an upload's first `hashed` bytes. */
struct running_digest {
	crypto_generichash_state state;
	uint64_t hashed;
};

/* The running digests of uploads live in memory only (docs/storage.md says why). `working` belongs
 * to the open transaction and becomes `durable` when it commits. */
struct upload {
	struct running_digest durable, working;
	uint64_t number;  /* 0: the slot is free */
	uint64_t used_at; /* for the choice of a slot to reuse */
	bool doomed; /* the whole's digest was wrong: drop it, whatever became of that transaction */
};

struct store {
	struct upload uploads[UPLOADS_MAX];
	uint64_t uploads_clock;
	char *dir; /* STATE_DIR/store */
	int lock_fd;
	int data_fd; /* LMDB's; not ours to close */
	MDB_env *env;
	MDB_dbi dbi[DB_N];
	uint64_t map_size;
	uint64_t reserve; /* PEFTD_STORE_RESERVE, or UINT64_MAX for the rule of store_room() */
	bool writing;     /* a write transaction is open */
	bool failed;      /* a commit failed: nothing goes on with this store */
};

struct store_txn {
	struct store *store;
	MDB_txn *txn;
	bool write;
	int failed;         /* the first error that makes the transaction useless; 0 */
	uint64_t put_bytes; /* for an estimate of the pages it will write */
	uint64_t puts, deletes;
	uint64_t chunk_bytes;
};

/* ---- txn.c --------------------------------------------------------------------------------- */

/* MDB code → 0; STATUS_NOT_FOUND; STATUS_DISK_FULL (the map is full); negative errno. */
int store_errno(int mdb_code);

struct bytes {
	const uint8_t *data;
	size_t len;
};

/* Raw access. What db_get() returns lies in the map and dies with the next write of `t`. */
int db_get(
	struct store_txn *t, enum store_db db, const void *key, size_t key_len, struct bytes *ret);
int db_put(struct store_txn *t, enum store_db db, const void *key, size_t key_len, const void *data,
	size_t len);
int db_del(struct store_txn *t, enum store_db db, const void *key, size_t key_len);

/* Sealed access: the value is a digest of database, key and content, then the content. -EIO when it
 * does not check. *ret lies in the map. */
int record_get(
	struct store_txn *t, enum store_db db, const void *key, size_t key_len, struct bytes *ret);
int record_put(struct store_txn *t, enum store_db db, const void *key, size_t key_len,
	const void *data, size_t len);
/* Takes the content out of a sealed value. */
int record_open(enum store_db db, struct bytes key, struct bytes sealed, struct bytes *ret);

/* Walks a database in the order of keys. Between two steps anything may be written or deleted. */
struct db_iter {
	struct store_txn *txn;
	enum store_db db;
	MDB_cursor *cursor;
	uint8_t key[KEY_MAX]; /* where it is; before the first step: where to begin */
	size_t key_len;
	bool begun;
};
int db_iter_init(
	struct db_iter *it, struct store_txn *t, enum store_db db, const void *from, size_t from_len);
void db_iter_deinit(struct db_iter *it);
/* 0; STATUS_NOT_FOUND at the end; negative. *ret_key is a copy inside `it`, *ret_value is in the
 * map. */
int db_iter_next(struct db_iter *it, struct bytes *ret_key, struct bytes *ret_value);

/* The last key below `key` (exclusive), copied to out[KEY_MAX]; STATUS_NOT_FOUND. */
int db_last_below(struct store_txn *t, enum store_db db, const void *key, size_t key_len,
	uint8_t *out, size_t *ret_len);

static inline void be32_write(uint8_t *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
}

static inline void be64_write(uint8_t *p, uint64_t v)
{
	v = __builtin_bswap64(v);
	memcpy(p, &v, 8);
}

static inline uint32_t be32_read(const uint8_t *p)
{
	uint32_t v;
	memcpy(&v, p, 4);
	return __builtin_bswap32(v);
}

static inline uint64_t be64_read(const uint8_t *p)
{
	uint64_t v;
	memcpy(&v, p, 8);
	return __builtin_bswap64(v);
}

/* ---- env.c --------------------------------------------------------------------------------- */

/* The name of a file system that the store must not lie on ("NFS"), by its statfs magic; NULL:
 * fine. */
const char *store_refused_fs(uint64_t magic);
const char *store_db_name(enum store_db db);

/* ---- record.c ------------------------------------------------------------------------------ */

struct meta_record {
	uint32_t version;
	uint64_t next_job, next_blob;
};

struct blob_record {
	uint8_t digest[DIGEST_SIZE];
	uint64_t size, number, received, touched_wall_ns;
	uint32_t references;
};

/* Pack into memory that the caller frees: 0; STATUS_INVALID when it could not be read back (a text
 * that is no UTF-8, sizes that do not add up, too long); -ENOMEM. */
int meta_pack(const struct meta_record *m, struct packed *ret);
int blob_pack(const struct blob_record *b, struct packed *ret);
int job_pack(const struct store_job *j, struct packed *ret);
int model_pack(const struct store_model *m, struct packed *ret);
int dataset_pack(const struct store_dataset *d, struct packed *ret);
int request_pack(const struct store_request *r, struct packed *ret);

/* The way back; *ret owns its memory. -EIO when it is no such record; -ENOMEM. meta_unpack() reads
 * records of every version. */
int meta_unpack(struct bytes b, struct meta_record *ret);
int blob_unpack(struct bytes b, struct blob_record *ret);
int job_unpack(struct bytes b, struct store_job *ret);
int model_unpack(struct bytes b, struct store_model *ret);
int dataset_unpack(struct bytes b, struct store_dataset *ret);
int request_unpack(struct bytes b, struct store_request *ret);

/* For store_check(): NULL, or what is wrong inside the packed messages that the store hands on. */
const char *job_fault(const struct store_job *j);
const char *model_fault(const struct store_model *m);
const char *request_fault(const struct store_request *r);
const char *event_fault(struct bytes event, uint64_t seq, unsigned kind);

/* ---- blob.c -------------------------------------------------------------------------------- */

int blob_load(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], struct blob_record *ret);
/* Forgets a blob: it cannot be found any more; its chunks go to the trash. */
int blob_drop(struct store_txn *t, const struct blob_record *b);
/* Adds to a blob's references; STATUS_NOT_FOUND when there is no complete blob of that digest. */
int blob_count(struct store_txn *t, const uint8_t digest[DIGEST_SIZE], int64_t add);
/* One chunk in the map, its digest checked; its length must be `len`. */
int chunk_get(struct store_txn *t, uint64_t number, uint32_t index, size_t len, struct bytes *ret);
static inline size_t chunk_len(uint64_t size, uint64_t offset)
{
	return size - offset < CHUNK_SIZE ? (size_t)(size - offset) : CHUNK_SIZE;
}
/* The transaction has ended: what `working` says is true, or is not. */
void uploads_settle(struct store *s, bool committed);

/* ---- job.c, event.c ------------------------------------------------------------------------ */

bool job_ended(const struct store_job *j);
/* Removes a job's record and gives its references back; its events must be gone. */
int job_remove(struct store_txn *t, const struct store_job *j);
int due_key(
	uint8_t out[KEY_MAX], enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len);
int due_put(
	struct store_txn *t, enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len);
int due_del(
	struct store_txn *t, enum due_kind kind, uint64_t wall_ns, const void *id, size_t id_len);

/* What a job refers to, in no particular order; fn for each. */
int job_each_blob(
	const struct store_job *j, int (*fn)(void *ctx, const struct store_files *f), void *ctx);

/* ---- request.c ----------------------------------------------------------------------------- */

int request_remove(struct store_txn *t, uint32_t uid, const uint8_t id[REQUEST_ID_SIZE]);

/* ---- meta.c -------------------------------------------------------------------------------- */

int meta_load(struct store_txn *t, struct meta_record *ret);
int meta_save(struct store_txn *t, const struct meta_record *m);

/* ---- pages.c ------------------------------------------------------------------------------- */

/* What the newest meta page of a data file says. */
struct pages_header {
	uint32_t page_size;
	uint64_t last_page;
	uint64_t txn;
	uint64_t file_pages; /* whole pages in the file */
};

/* Reads it without mapping the file. 0; STATUS_INVALID or STATUS_VERSION with `err`; -errno. */
int pages_header(int fd, struct pages_header *ret, struct errmsg *err);

/* Walks the trees of the newest snapshot without mapping the file and verifies that every page is
 * inside the file, used once, and what its place says it is. LMDB trusts its pages: a damaged one
 * can end the process (SIGBUS, SIGSEGV), so this comes first. `all` false, for every opening: the
 * leaves of big trees, the pages of long values and the lists of free pages are not read, so that
 * it takes well below a second. 0; STATUS_INVALID with `err`; -errno. */
int pages_walk(int fd, bool all, struct errmsg *err);
