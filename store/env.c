/*
 * Opening and closing the environment.
 *
 * Three rules. What exists is never started over: a store that cannot be read is refused as it is.
 * Nothing of LMDB sees a file that was not looked at before, for it maps the file and trusts it.
 * And a new store appears whole: it is made beside its place and renamed into it.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "store/store-internal.h"
#include "util/log.h"

static const char *const db_names[DB_N] = {
	[DB_META] = "meta",
	[DB_JOBS] = "jobs",
	[DB_EVENTS] = "events",
	[DB_REQUESTS] = "requests",
	[DB_MODELS] = "models",
	[DB_DATASETS] = "datasets",
	[DB_BLOBS] = "blobs",
	[DB_CHUNKS] = "chunks",
	[DB_DIGESTS] = "digests",
	[DB_DUE] = "due",
	[DB_TRASH] = "trash",
};

const char *store_db_name(enum store_db db)
{
	return db_names[db];
}

/* The magic numbers of linux/magic.h, of statfs(2), and of cluster file systems' own sources. */
const char *store_refused_fs(uint64_t magic)
{
	switch (magic) {
	case 0x6969:
		return "NFS";
	case 0x517B:
	case 0xFF534D42:
	case 0xFE534D42:
		return "SMB";
	case 0x5346414F:
	case 0x6B414653:
		return "AFS";
	case 0x00C36400:
		return "Ceph";
	case 0x01021997:
		return "9P";
	case 0x65735546:
		return "FUSE";
	case 0x73757245:
		return "Coda";
	case 0x564C:
		return "NCP";
	case 0x7461636F:
		return "OCFS2";
	case 0x01161970:
		return "GFS2";
	case 0x0BD00BD0:
		return "Lustre";
	case 0x47504653:
		return "GPFS";
	case 0x19830326:
		return "BeeGFS";
	default:
		return NULL;
	}
}

static int cannot(struct errmsg *err, const char *what, const char *path)
{
	return errmsg_set(err, errno == ENOSPC ? STATUS_DISK_FULL : STATUS_INVALID, "%s: cannot %s: %s",
		path, what, strerror(errno));
}

/* A number of bytes from the environment; `fallback` where the variable is not set. */
static int env_bytes(const char *name, uint64_t fallback, uint64_t *ret, struct errmsg *err)
{
	const char *s = getenv(name);
	if (!s) {
		*ret = fallback;
		return 0;
	}
	char *end;
	errno = 0;
	unsigned long long v = strtoull(s, &end, 10);
	if (errno != 0 || end == s || *end != '\0' || s[0] == '-') {
		return errmsg_set(err, STATUS_INVALID, "%s=%s: not a number of bytes", name, s);
	}
	*ret = v;
	return 0;
}

/* ---- the place ----------------------------------------------------------------------------- */

static int open_state_dir(const char *state_dir, int *ret_fd, struct errmsg *err)
{
	if (mkdir(state_dir, 0700) < 0 && errno != EEXIST) {
		return cannot(err, "make the directory", state_dir);
	}
	_cleanup_(closep) int fd = open(state_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		return cannot(err, "open the directory", state_dir);
	}
	struct statfs fs;
	if (fstatfs(fd, &fs) < 0) {
		return cannot(err, "look at the file system", state_dir);
	}
	/* The type is signed on some machines: keep its low 32 bits. */
	const char *refused = store_refused_fs((uint32_t)fs.f_type);
	if (refused) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: lies on a %s file system; the store needs a local one, such as ext4 or xfs",
			state_dir, refused);
	}
	*ret_fd = steal_fd(&fd);
	return 0;
}

/* The lock is the kernel's, on the open file: it ends with the process, however that ends. The
 * process id inside is for people. */
static int take_lock(int dir_fd, const char *state_dir, int *ret_fd, struct errmsg *err)
{
	_cleanup_(closep) int fd =
		openat(dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		return errmsg_set(
			err, STATUS_INVALID, "%s/lock: cannot open: %s", state_dir, strerror(errno));
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		if (errno != EWOULDBLOCK) {
			return errmsg_set(
				err, STATUS_INVALID, "%s/lock: cannot lock: %s", state_dir, strerror(errno));
		}
		char text[32] = "";
		ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
		long pid = n > 0 ? strtol(text, NULL, 10) : 0;
		if (pid > 0) {
			return errmsg_set(err, STATUS_CONFLICT,
				"%s: in use by another peftd (process %ld holds "
				"%s/lock); stop it first",
				state_dir, pid, state_dir);
		}
		return errmsg_set(err, STATUS_CONFLICT,
			"%s: in use by another peftd (it holds %s/lock); "
			"stop it first",
			state_dir, state_dir);
	}
	/* Only for the message above, so a full disk does not matter here. */
	if (ftruncate(fd, 0) < 0 || dprintf(fd, "%ld\n", (long)getpid()) < 0) {
		log_debug("%s/lock: cannot write the process id: %s", state_dir, strerror(errno));
	}
	*ret_fd = steal_fd(&fd);
	return 0;
}

/* ---- the environment ----------------------------------------------------------------------- */

/* LMDB writes its table of readers through a map. Where the file has a hole and the disk is full,
 * that is a SIGBUS; so see to it that there is none. (All of the data file is written by write().)
 */
static int allocate_lock_file(const char *dir, struct errmsg *err)
{
	char path[4096];
	if ((size_t)snprintf(path, sizeof(path), "%s/lock.mdb", dir) >= sizeof(path)) {
		return -ENAMETOOLONG;
	}
	_cleanup_(closep) int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		return cannot(err, "open", path);
	}
	errno = posix_fallocate(fd, 0, 16384);
	if (errno != 0) {
		return cannot(err, "allocate", path);
	}
	return 0;
}

static int map_environment(struct store *s, const char *dir, struct errmsg *err)
{
	MDB_env *env;
	int code, r = allocate_lock_file(dir, err);
	if (r != 0) {
		return r;
	}
	code = mdb_env_create(&env);
	if (code == 0) {
		code = mdb_env_set_mapsize(env, s->map_size);
	}
	if (code == 0) {
		code = mdb_env_set_maxdbs(env, DB_N + 8);
	}
	if (code != 0) {
		return -ENOMEM;
	}
	/* The default sync, and a map that is only read: never MDB_NOSYNC, MDB_NOMETASYNC,
	 * MDB_WRITEMAP. */
	code = mdb_env_open(env, dir, MDB_NOTLS, 0600);
	if (code != 0) {
		mdb_env_close(env);
	}
	switch (code) {
	case 0:
		s->env = env;
		return 0;
	case ENOSPC:
		return errmsg_set(err, STATUS_DISK_FULL, "%s: the disk is full", dir);
	case ENOMEM:
		return errmsg_set(err, STATUS_INVALID,
			"%s: cannot map %" PRIu64 " bytes of address space; "
			"lift its limit (ulimit -v unlimited, LimitAS=infinity), or set PEFTD_STORE_MAP to the "
			"most bytes the store may ever hold",
			dir, s->map_size);
	case MDB_VERSION_MISMATCH:
		return errmsg_set(err, STATUS_VERSION,
			"%s/data.mdb: written by another version of LMDB than "
			"0.9",
			dir);
	case EACCES:
	case EPERM:
	case EROFS:
	case EMFILE:
	case ENFILE:
		return errmsg_set(
			err, STATUS_INVALID, "%s: cannot open the store: %s", dir, mdb_strerror(code));
	default:
		return errmsg_set(err, STATUS_INVALID,
			"%s: the store is damaged (%s); restore it from a "
			"backup or move it away",
			dir, mdb_strerror(code));
	}
}

static int open_databases(struct store *s, MDB_txn *txn, unsigned flags, struct errmsg *err)
{
	for (int db = 0; db < DB_N; db++) {
		int code = mdb_dbi_open(txn, db_names[db], flags, &s->dbi[db]);
		if (code == MDB_NOTFOUND) {
			return errmsg_set(err, STATUS_INVALID,
				"%s: the store is damaged: no database \"%s\"; "
				"restore it from a backup or move it away",
				s->dir, db_names[db]);
		}
		if (code != 0) {
			int r = store_errno(code);
			return r < 0 ? r : errmsg_set(err, r, "%s: no room for a new store", s->dir);
		}
	}
	return 0;
}

/* The version comes before everything else: a newer store may have other databases. */
static int check_version(struct store *s, MDB_txn *txn, struct errmsg *err)
{
	struct store_txn t = {.store = s, .txn = txn};
	struct meta_record meta;
	int r, code = mdb_dbi_open(txn, db_names[DB_META], 0, &s->dbi[DB_META]);

	r = code == 0 ? meta_load(&t, &meta) : store_errno(code);
	if (r == STATUS_NOT_FOUND || r == -EIO || r == -EINVAL) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: the store is damaged: its meta record is %s; "
			"restore it from a backup or move it away",
			s->dir, r == STATUS_NOT_FOUND ? "missing" : "unreadable");
	}
	if (r != 0) {
		return r;
	}
	if (meta.version > STORE_VERSION) {
		return errmsg_set(err, STATUS_VERSION,
			"%s: written by a newer peftd (store version %" PRIu32
			", this one knows %d); run that one",
			s->dir, meta.version, STORE_VERSION);
	}
	if (meta.version < 1) {
		return errmsg_set(err, STATUS_INVALID, "%s: the store is damaged: its version is %" PRIu32,
			s->dir, meta.version);
	}
	return 0;
}

/* Looks at a file before LMDB maps it. One that does not end with its last page need not be
 * damaged: pages handed out and given back within a transaction are never written, and those of a
 * transaction that was killed lie behind the end. But then all of it is looked at. */
static int check_file(const char *dir, struct errmsg *err)
{
	char path[4096];
	struct stat st;
	if ((size_t)snprintf(path, sizeof(path), "%s/data.mdb", dir) >= sizeof(path)) {
		return -ENAMETOOLONG;
	}
	_cleanup_(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT) {
		return errmsg_set(err, STATUS_INVALID,
			"%s: the store is damaged: data.mdb is missing; restore it from a backup or move the "
			"directory away",
			dir);
	}
	if (fd < 0) {
		return cannot(err, "open", path);
	}
	if (fstat(fd, &st) < 0) {
		return cannot(err, "look at", path);
	}
	if (!S_ISREG(st.st_mode)) {
		return errmsg_set(err, STATUS_INVALID, "%s: not a regular file", path);
	}
	struct pages_header h;
	int r = pages_header(fd, &h, err);
	if (r == 0) {
		r = pages_walk(fd, h.file_pages != h.last_page + 1, err);
	}
	if (r > 0) {
		return errmsg_prefix(err, r, "%s", path);
	}
	return r;
}

static int open_existing(struct store *s, struct errmsg *err)
{
	int r = check_file(s->dir, err);
	if (r != 0) {
		return r;
	}
	r = map_environment(s, s->dir, err);
	if (r != 0) {
		return r;
	}
	MDB_txn *txn;
	r = store_errno(mdb_txn_begin(s->env, NULL, MDB_RDONLY, &txn));
	if (r != 0) {
		return r < 0 ? r : -EIO;
	}
	r = check_version(s, txn, err);
	if (r == 0) {
		r = open_databases(s, txn, 0, err);
	}
	if (r != 0) {
		mdb_txn_abort(txn);
		return r;
	}
	/* Handles opened in a read transaction stay when it commits, not when it is aborted. */
	r = store_errno(mdb_txn_commit(txn));
	return r > 0 ? -EIO : r;
}

/* ---- a new store --------------------------------------------------------------------------- */

static int fill_new(struct store *s, const char *dir, struct errmsg *err)
{
	int r = map_environment(s, dir, err);
	if (r != 0) {
		return r;
	}
	struct store_txn *t = NULL;
	struct meta_record meta = {.version = STORE_VERSION, .next_job = 1, .next_blob = 1};
	r = store_errno(mdb_env_get_fd(s->env, &s->data_fd));
	if (r == 0) {
		r = store_begin(s, true, &t);
	}
	if (r == 0) {
		r = open_databases(s, t->txn, MDB_CREATE, err);
	}
	if (r == 0) {
		r = meta_save(t, &meta);
	}
	if (r == 0) {
		r = store_commit(steal_ptr(t));
	}
	store_abort(t);
	mdb_env_close(s->env);
	s->env = NULL;
	s->data_fd = -1;
	return r == STATUS_DISK_FULL ? errmsg_set(err, r, "%s: the disk is full", dir) : r;
}

/* What a creation that was interrupted left. Only files of ours: anything else makes rmdir fail. */
static int remove_half_made(int dir_fd, const char *dir, struct errmsg *err)
{
	_cleanup_(closep) int fd =
		openat(dir_fd, "store.new", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0) {
		return errno == ENOENT ? 0 : cannot(err, "open", dir);
	}
	if ((unlinkat(fd, "data.mdb", 0) < 0 && errno != ENOENT) ||
		(unlinkat(fd, "lock.mdb", 0) < 0 && errno != ENOENT) ||
		unlinkat(dir_fd, "store.new", AT_REMOVEDIR) < 0) {
		return cannot(err, "remove this left-over of a first start", dir);
	}
	return 0;
}

static int create(struct store *s, int dir_fd, const char *state_dir, struct errmsg *err)
{
	char dir[4096];
	if ((size_t)snprintf(dir, sizeof(dir), "%s/store.new", state_dir) >= sizeof(dir)) {
		return -ENAMETOOLONG;
	}
	int r = remove_half_made(dir_fd, dir, err);
	if (r != 0) {
		return r;
	}
	if (mkdirat(dir_fd, "store.new", 0700) < 0) {
		return cannot(err, "make the directory", dir);
	}
	r = fill_new(s, dir, err);
	if (r != 0) {
		return r;
	}
	_cleanup_(closep) int fd = openat(dir_fd, "store.new", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0 || renameat(dir_fd, "store.new", dir_fd, "store") < 0 ||
		fsync(dir_fd) < 0) {
		return cannot(err, "put the new store in its place", dir);
	}
	return 0;
}

/* ---- public -------------------------------------------------------------------------------- */

static int open_in(struct store *s, const char *state_dir, struct errmsg *err)
{
	_cleanup_(closep) int dir_fd = -1;
	struct stat st;
	int r = open_state_dir(state_dir, &dir_fd, err);
	if (r != 0) {
		return r;
	}
	r = take_lock(dir_fd, state_dir, &s->lock_fd, err);
	if (r != 0) {
		return r;
	}
	if (fstatat(dir_fd, "store", &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno != ENOENT) {
			return cannot(err, "look at", s->dir);
		}
		r = create(s, dir_fd, state_dir, err);
		if (r != 0) {
			return r;
		}
	} else if (!S_ISDIR(st.st_mode)) {
		return errmsg_set(err, STATUS_INVALID, "%s: not a directory", s->dir);
	}
	r = open_existing(s, err);
	if (r != 0) {
		return r;
	}
	MDB_envinfo info;
	mdb_env_info(s->env, &info);
	s->map_size = info.me_mapsize; /* never less than what the file needs */
	return store_errno(mdb_env_get_fd(s->env, &s->data_fd));
}

int store_open(struct store **ret, const char *state_dir, struct errmsg *err)
{
	if (sodium_init() < 0) {
		return -ENOSYS;
	}
	/* The state of libsodium's digests wants to lie on a cache line. */
	struct store *s = aligned_alloc(64, align_up(sizeof(*s), 64));
	if (!s) {
		return -ENOMEM;
	}
	memset(s, 0, sizeof(*s));
	s->lock_fd = -1;
	s->data_fd = -1;

	int r = env_bytes("PEFTD_STORE_MAP", UINT64_C(1) << 40, &s->map_size, err);
	if (r == 0) {
		r = env_bytes("PEFTD_STORE_RESERVE", UINT64_MAX, &s->reserve, err);
	}
	if (r == 0 && asprintf(&s->dir, "%s/store", state_dir) < 0) {
		s->dir = NULL;
		r = -ENOMEM;
	}
	if (r == 0) {
		r = open_in(s, state_dir, err);
	}
	if (r != 0) {
		store_close(s);
		return r;
	}
	*ret = s;
	return 0;
}

void store_close(struct store *s)
{
	if (!s) {
		return;
	}
	if (s->env) {
		mdb_env_close(s->env);
	}
	if (s->lock_fd >= 0) {
		close(s->lock_fd);
	}
	free(s->dir);
	free(s);
}

static int live_pages(struct store *s, uint64_t *ret_pages, uint64_t *ret_page_size)
{
	MDB_txn *txn;
	MDB_stat st;
	uint64_t pages = 2; /* the meta pages */
	int r = store_errno(mdb_txn_begin(s->env, NULL, MDB_RDONLY, &txn));
	if (r != 0) {
		return r < 0 ? r : -EIO;
	}
	/* 0 and 1 are LMDB's own: the free list and the list of named databases. */
	for (int i = 0; i < DB_N + 2 && r == 0; i++) {
		r = store_errno(mdb_stat(txn, i < 2 ? (MDB_dbi)i : s->dbi[i - 2], &st));
		if (r == 0) {
			pages += st.ms_branch_pages + st.ms_leaf_pages + st.ms_overflow_pages;
			*ret_page_size = st.ms_psize;
		}
	}
	mdb_txn_abort(txn);
	*ret_pages = pages;
	return r > 0 ? -EIO : r;
}

int store_space(struct store *s, struct store_space *ret)
{
	uint64_t pages, page_size = 0;
	struct statvfs fs;
	int r = live_pages(s, &pages, &page_size);
	if (r != 0) {
		return r;
	}
	if (fstatvfs(s->data_fd, &fs) < 0) {
		return -errno;
	}
	*ret = (struct store_space){
		.used = pages * page_size,
		.fs_free = (uint64_t)fs.f_bavail * fs.f_frsize,
		.fs_total = (uint64_t)fs.f_blocks * fs.f_frsize,
	};
	return 0;
}

static double mib(uint64_t bytes)
{
	return (double)bytes / 1048576;
}

/* The file never shrinks: what was deleted is used again. Not all of it, for a chunk wants 64 pages
 * in a row; a file that took 200 rotating checkpoints was 1.24 times its live pages, so count on
 * four fifths. */
int store_room(struct store *s, uint64_t bytes, struct errmsg *err)
{
	const uint64_t gib = UINT64_C(1) << 30;
	struct store_space space;
	struct stat st;
	int r = store_space(s, &space);
	if (r != 0) {
		return r;
	}
	if (fstat(s->data_fd, &st) < 0) {
		return -errno;
	}
	uint64_t file = (uint64_t)st.st_size;
	uint64_t reusable = file > space.used ? (file - space.used) / 5 * 4 : 0;
	uint64_t reserve = s->reserve;
	if (reserve == UINT64_MAX) {
		reserve = space.fs_total / 20 < 2 * gib ? space.fs_total / 20 : 2 * gib;
	}
	uint64_t spare = space.fs_free > reserve ? space.fs_free - reserve : 0;
	if (bytes > spare + reusable) {
		return errmsg_set(err, STATUS_DISK_FULL,
			"%s: the disk is full: %.1f MiB are wanted, %.1f MiB are free, and %.1f MiB of them must stay "
			"free; make room on the disk, or remove datasets",
			s->dir, mib(bytes), mib(space.fs_free + reusable), mib(reserve));
	}
	uint64_t map_left = s->map_size > space.used ? s->map_size - space.used : 0;
	if (bytes > map_left) {
		return errmsg_set(err, STATUS_DISK_FULL,
			"%s: %.1f MiB are wanted, and the store's limit of %.1f MiB leaves %.1f (PEFTD_STORE_MAP)",
			s->dir, mib(bytes), mib(s->map_size), mib(map_left));
	}
	return 0;
}
