/*
 * A look at LMDB's data file without LMDB.
 *
 * LMDB maps the file and trusts every page number, offset and length in it. In a truncated file the
 * first access behind its end is a SIGBUS, and a damaged tree page can lead anywhere. Neither is a
 * way to learn that a disk is bad. So the file is read here with pread() and checked first: the
 * meta pages, then the trees from their roots.
 *
 * The format is that of LMDB 0.9 (data version 1, the layout is in its mdb.c): two meta pages, of
 * which that with the higher transaction number counts; two trees from there, the free list (keys
 * are transaction numbers, values lists of pages) and the main tree, whose values are the named
 * trees. A page begins with its own number (8 bytes), 2 bytes, flags (2), and either the bounds of
 * its free space (2 + 2) or, for a run of overflow pages, their count (4); then 2-byte offsets of
 * nodes.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "store/store-internal.h"

enum {
	PAGE_BRANCH = 0x01,
	PAGE_LEAF = 0x02,
	PAGE_OVERFLOW = 0x04,
	PAGE_META = 0x08,
	PAGE_KIND = 0x6F, /* all but the mark of a page in memory */

	NODE_OVERFLOW = 0x01, /* the value is elsewhere, the node holds its page */
	NODE_TREE = 0x02,     /* the value is a tree */

	PAGE_HEADER = 16,
	NODE_HEADER = 8,
	TREE_SIZE = 48,
	TREE_DEPTH_MAX = 32, /* LMDB's own limit */
	META_MAGIC_AT = PAGE_HEADER,
	META_TREES_AT = PAGE_HEADER + 24,
	META_LAST_AT = META_TREES_AT + 2 * TREE_SIZE,
	META_SIZE = META_LAST_AT + 16,
	KEY_LIMIT = 511,

	FEW_LEAVES = 8192, /* 32 MiB: read at every opening */

	TREE_NUMBERS = 0x08, /* keys are numbers: the free list's */
	TREE_FLAGS = 0x7F,
};

static const uint32_t lmdb_magic = 0xBEEFC0DE;
static const uint64_t no_page = UINT64_MAX;

struct tree {
	uint16_t flags, depth;
	uint64_t branches, leaves, overflow; /* pages */
	uint64_t entries, root;
};

struct walk {
	int fd;
	struct pages_header h;
	struct tree trees[2]; /* the free list, the main tree */
	bool all;
	uint8_t *seen; /* a bit a page */
	struct errmsg *err;
};

static struct tree tree_read(const uint8_t *p)
{
	return (struct tree){
		.flags = le16_read(p + 4),
		.depth = le16_read(p + 6),
		.branches = le64_read(p + 8),
		.leaves = le64_read(p + 16),
		.overflow = le64_read(p + 24),
		.entries = le64_read(p + 32),
		.root = le64_read(p + 40),
	};
}

/* pread() of all of it; 0; 1 at the end of the file; -errno. */
static int read_at(int fd, uint64_t offset, void *out, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (uint8_t *)out + done, len - done, (off_t)(offset + done));
		if (n < 0 && errno == EINTR) {
			continue;
		}
		if (n <= 0) {
			return n < 0 ? -errno : 1;
		}
		done += (size_t)n;
	}
	return 0;
}

__attribute__((format(printf, 2, 3))) static int damaged(struct errmsg *err, const char *fmt, ...)
{
	char what[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	return errmsg_set(err, STATUS_INVALID,
		"the store is damaged (%s); restore it from a backup or move it away", what);
}

static int read_meta(int fd, uint64_t offset, uint8_t out[META_SIZE], struct errmsg *err)
{
	int r = read_at(fd, offset, out, META_SIZE);
	if (r != 0) {
		return r < 0 ? r : damaged(err, "the file ends within its meta pages");
	}
	if (!(le16_read(out + 10) & PAGE_META) || le32_read(out + META_MAGIC_AT) != lmdb_magic) {
		return damaged(err, "no LMDB meta page at offset %" PRIu64, offset);
	}
	uint32_t version = le32_read(out + META_MAGIC_AT + 4);
	if (version != 1) {
		return errmsg_set(err, STATUS_VERSION,
			"written in LMDB's data version %" PRIu32 "; this peftd reads version 1, of LMDB 0.9",
			version);
	}
	return 0;
}

static int load(struct walk *w)
{
	uint8_t a[META_SIZE], b[META_SIZE];
	struct stat st;
	int r = read_meta(w->fd, 0, a, w->err);
	if (r != 0) {
		return r;
	}
	uint32_t page_size = le32_read(a + META_TREES_AT); /* in the first tree's unused field */
	if (page_size < 512 || page_size > 65536 || (page_size & (page_size - 1)) != 0) {
		return damaged(w->err, "pages of %" PRIu32 " bytes", page_size);
	}
	r = read_meta(w->fd, page_size, b, w->err);
	if (r != 0) {
		return r;
	}
	if (fstat(w->fd, &st) < 0) {
		return -errno;
	}
	/* Transactions write the two in turn, so their numbers follow each other; a number that got
	 * wrong would bring back an older state. */
	uint64_t txn_a = le64_read(a + META_LAST_AT + 8), txn_b = le64_read(b + META_LAST_AT + 8);
	bool fresh = txn_a == 0 && txn_b == 0;
	if (!fresh &&
		(txn_a % 2 != 0 || txn_b % 2 != 1 || (txn_a + 1 != txn_b && txn_b + 1 != txn_a))) {
		return damaged(
			w->err, "the meta pages are of transactions %" PRIu64 " and %" PRIu64, txn_a, txn_b);
	}
	const uint8_t *m = txn_b > txn_a ? b : a;
	w->h = (struct pages_header){
		.page_size = page_size,
		.last_page = le64_read(m + META_LAST_AT),
		.txn = le64_read(m + META_LAST_AT + 8),
		.file_pages = (uint64_t)st.st_size / page_size,
	};
	w->trees[0] = tree_read(m + META_TREES_AT);
	w->trees[1] = tree_read(m + META_TREES_AT + TREE_SIZE);
	if (w->h.file_pages < 2) {
		return damaged(w->err, "the file ends within its meta pages");
	}
	if (w->h.last_page < 1 || w->h.last_page > UINT64_C(1) << 44) {
		return damaged(w->err, "its last page is %" PRIu64, w->h.last_page);
	}
	return 0;
}

int pages_header(int fd, struct pages_header *ret, struct errmsg *err)
{
	struct walk w = {.fd = fd, .err = err};
	int r = load(&w);
	if (r == 0) {
		*ret = w.h;
	}
	return r;
}

/* ---- trees --------------------------------------------------------------------------------- */

/* Takes `n` pages from `page` on: inside the file, and not taken before. */
static int take_pages(struct walk *w, uint64_t page, uint64_t n)
{
	if (page < 2 || page > w->h.last_page || n > w->h.last_page - page + 1) {
		return damaged(
			w->err, "page %" PRIu64 " of %" PRIu64 " is referred to", page, w->h.last_page + 1);
	}
	if (page + n > w->h.file_pages) {
		return damaged(w->err,
			"the file is cut off: page %" PRIu64 " is needed, %" PRIu64 " are there", page + n - 1,
			w->h.file_pages);
	}
	for (uint64_t p = page; p < page + n; p++) {
		if (w->seen[p / 8] & 1u << p % 8) {
			return damaged(w->err, "page %" PRIu64 " is used twice", p);
		}
		w->seen[p / 8] |= (uint8_t)(1u << p % 8);
	}
	return 0;
}

/* What was counted on the way through a tree. */
struct level {
	enum { FREE_LIST, MAIN, NAMED } kind;
	bool read_leaves;
	uint64_t branches, leaves, overflow, entries;
};

static int check_overflow(struct walk *w, struct level *l, uint64_t page, uint64_t len)
{
	uint8_t header[PAGE_HEADER];
	uint64_t n = (PAGE_HEADER - 1 + len) / w->h.page_size + 1;
	l->overflow += n;
	int r = take_pages(w, page, n);
	if (r != 0 || !w->all) {
		return r;
	}
	r = read_at(w->fd, page * w->h.page_size, header, sizeof(header));
	if (r != 0) {
		return r == 1 ? damaged(w->err, "page %" PRIu64 " is cut off", page) : r;
	}
	if (le64_read(header) != page || (le16_read(header + 10) & PAGE_KIND) != PAGE_OVERFLOW ||
		le32_read(header + 12) < n) {
		return damaged(w->err, "page %" PRIu64 " is not the %" PRIu64 " pages of a value", page, n);
	}
	return 0;
}

struct node {
	const uint8_t *key;
	size_t key_len;
	uint16_t flags;
	uint64_t low; /* value's length, or a branch's page */
	const uint8_t *value;
};

/* Node i of a page, all of it inside the page. */
static bool node_read(
	const struct walk *w, const uint8_t *page, size_t i, bool branch, struct node *ret)
{
	size_t upper = le16_read(page + 14), at = le16_read(page + PAGE_HEADER + 2 * i);
	if (at < upper || at % 2 != 0 || at + NODE_HEADER > w->h.page_size) {
		return false;
	}
	const uint8_t *p = page + at;
	ret->low = (uint64_t)le16_read(p) | (uint64_t)le16_read(p + 2) << 16;
	ret->flags = le16_read(p + 4);
	ret->key_len = le16_read(p + 6);
	ret->key = p + NODE_HEADER;
	ret->value = ret->key + ret->key_len;

	size_t stored = ret->flags & NODE_OVERFLOW ? 8 : (size_t)ret->low;
	if (branch) {
		ret->low |= (uint64_t)ret->flags << 32; /* 48 bits of page number */
		ret->flags = 0;
		stored = 0;
	} else if (ret->flags & ~(NODE_OVERFLOW | NODE_TREE)) {
		return false; /* no duplicates in our databases */
	}
	size_t room = w->h.page_size - at - NODE_HEADER;
	return ret->key_len <= KEY_LIMIT && ret->key_len <= room && stored <= room - ret->key_len;
}

static bool keys_rise(const struct node *a, const struct node *b, bool numbers)
{
	if (numbers) {
		return a->key_len == 8 && b->key_len == 8 && le64_read(a->key) < le64_read(b->key);
	}
	size_t n = a->key_len < b->key_len ? a->key_len : b->key_len;
	int c = memcmp(a->key, b->key, n);
	return c < 0 || (c == 0 && a->key_len < b->key_len);
}

static int walk_tree(struct walk *w, const struct tree *tree, int kind);

/* A value of the free list: a count, then as many pages that are used for nothing. */
static int check_free(struct walk *w, const struct node *n)
{
	_cleanup_(freep) uint8_t *list = malloc(n->low + 8);
	if (!list) {
		return -ENOMEM;
	}
	int r = 0;
	if (n->flags & NODE_OVERFLOW) {
		r = read_at(w->fd, le64_read(n->value) * w->h.page_size + PAGE_HEADER, list, n->low);
	} else {
		memcpy(list, n->value, n->low);
	}
	if (r < 0) {
		return r;
	}
	if (r > 0 || n->low < 8 || le64_read(list) > n->low / 8 - 1) {
		return damaged(w->err, "a damaged entry in the list of free pages");
	}
	uint64_t count = le64_read(list);
	for (uint64_t i = 1; i <= count; i++) {
		uint64_t page = le64_read(list + 8 * i);
		if (page < 2 || page > w->h.last_page) {
			return damaged(w->err, "page %" PRIu64 " of %" PRIu64 " is in the list of free pages",
				page, w->h.last_page + 1);
		}
		/* Those behind the end of the file were never written; no bits are kept for them. */
		if (page < w->h.file_pages && (r = take_pages(w, page, 1)) != 0) {
			return r;
		}
	}
	return 0;
}

static int check_leaf_node(struct walk *w, struct level *l, const struct node *n, uint64_t page)
{
	l->entries++;
	if (l->kind == MAIN) {
		if (n->flags != NODE_TREE || n->low != TREE_SIZE) {
			return damaged(w->err, "page %" PRIu64 " has an entry out of place", page);
		}
		struct tree tree = tree_read(n->value);
		return walk_tree(w, &tree, NAMED);
	}
	if (n->flags & NODE_TREE) {
		return damaged(w->err, "page %" PRIu64 " has an entry out of place", page);
	}
	int r = n->flags & NODE_OVERFLOW ? check_overflow(w, l, le64_read(n->value), n->low) : 0;
	return r == 0 && l->kind == FREE_LIST && w->all ? check_free(w, n) : r;
}

/* The page itself, without its nodes. */
static int page_load(struct walk *w, uint64_t page, bool branch, uint8_t *p, size_t *ret_nodes)
{
	int r = read_at(w->fd, page * w->h.page_size, p, w->h.page_size);
	if (r != 0) {
		return r == 1 ? damaged(w->err, "page %" PRIu64 " is cut off", page) : r;
	}
	size_t lower = le16_read(p + 12), upper = le16_read(p + 14);
	unsigned kind = le16_read(p + 10) & PAGE_KIND;
	if (le64_read(p) != page || kind != (branch ? PAGE_BRANCH : PAGE_LEAF) ||
		lower <= PAGE_HEADER || lower > upper || upper > w->h.page_size || lower % 2 != 0) {
		return damaged(w->err, "page %" PRIu64 " is not a page of its tree", page);
	}
	*ret_nodes = (lower - PAGE_HEADER) / 2;
	return 0;
}

static int walk_page(struct walk *w, struct level *l, uint64_t page, unsigned depth)
{
	bool branch = depth > 1;
	size_t n = 0, first = branch ? 1 : 0; /* a branch page's first key is not looked at */
	struct node before = {0};

	branch ? l->branches++ : l->leaves++;
	int r = take_pages(w, page, 1);
	if (r != 0 || (!branch && !l->read_leaves)) {
		return r;
	}
	_cleanup_(freep) uint8_t *p = malloc(w->h.page_size);
	if (!p) {
		return -ENOMEM;
	}
	r = page_load(w, page, branch, p, &n);
	for (size_t i = 0; i < n && r == 0; i++) {
		struct node node;
		if (!node_read(w, p, i, branch, &node) ||
			(i > first && !keys_rise(&before, &node, l->kind == FREE_LIST))) {
			return damaged(w->err, "page %" PRIu64 " has a damaged entry", page);
		}
		r = branch ? walk_page(w, l, node.low, depth - 1) : check_leaf_node(w, l, &node, page);
		before = node;
	}
	return r;
}

static int walk_tree(struct walk *w, const struct tree *tree, int kind)
{
	struct level l = {.kind = kind};
	l.read_leaves = w->all || kind == MAIN || tree->leaves <= FEW_LEAVES;
	if ((tree->flags & TREE_FLAGS) != (kind == FREE_LIST ? TREE_NUMBERS : 0)) {
		return damaged(w->err, "a tree has the flags %#x", tree->flags);
	}
	if (tree->depth > TREE_DEPTH_MAX || (tree->depth == 0) != (tree->root == no_page)) {
		return damaged(w->err, "a tree of %u levels at page %" PRIu64, tree->depth, tree->root);
	}
	int r = tree->depth > 0 ? walk_page(w, &l, tree->root, tree->depth) : 0;
	if (r != 0 || !l.read_leaves) {
		return r;
	}
	if (l.entries != tree->entries || l.branches != tree->branches || l.leaves != tree->leaves ||
		l.overflow != tree->overflow) {
		return damaged(w->err,
			"a tree's counts are %" PRIu64 " entries in %" PRIu64 " + %" PRIu64 " + %" PRIu64
			" pages, and it has %" PRIu64 " in %" PRIu64 " + %" PRIu64 " + %" PRIu64,
			tree->entries, tree->branches, tree->leaves, tree->overflow, l.entries, l.branches,
			l.leaves, l.overflow);
	}
	return 0;
}

int pages_walk(int fd, bool all, struct errmsg *err)
{
	struct walk w = {.fd = fd, .all = all, .err = err};
	int r = load(&w);
	if (r != 0) {
		return r;
	}
	/* A bit for each page that can be there, not for each that a damaged meta page may speak of. */
	uint64_t last = w.h.last_page < w.h.file_pages ? w.h.last_page : w.h.file_pages;
	_cleanup_(freep) uint8_t *seen = calloc_array(last / 8 + 1, 1);
	if (!seen) {
		return -ENOMEM;
	}
	w.seen = seen;
	r = walk_tree(&w, &w.trees[0], FREE_LIST);
	return r == 0 ? walk_tree(&w, &w.trees[1], MAIN) : r;
}
