#include "client/outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/buf.h"
#include "util/cleanup.h"

static int fault(struct errmsg *err, const char *path)
{
	return errmsg_set(err, STATUS_FAILED, "%s: %s", path, strerror(errno));
}

static bool write_all(int fd, const uint8_t *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);
		if (n < 0 && errno != EINTR) {
			return false;
		}
		data += n > 0 ? n : 0;
		len -= n > 0 ? (size_t)n : 0;
	}
	return true;
}

/* Takes fd, which may be -1 after a fault. NFS tells of a full disk only when a file is closed. */
static bool write_and_close(int fd, const void *data, size_t len)
{
	if (fd < 0) {
		return false;
	}
	bool good = write_all(fd, data, len);
	int code = errno;
	bool closed = close(fd) == 0;
	errno = good ? errno : code;
	return good && closed;
}

/* A copy of standard output's or standard error's descriptor where `st` is that very file (as
 * /dev/stdout is): opened anew, a file would be written from its beginning, over what is there. */
static int standard_stream(const struct stat *st)
{
	for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++) {
		struct stat other;
		if (fstat(fd, &other) == 0 && other.st_dev == st->st_dev && other.st_ino == st->st_ino) {
			fflush(stdout);
			return fcntl(fd, F_DUPFD_CLOEXEC, 3);
		}
	}
	return -1;
}

static int write_through(const char *path, int fd, const void *data, size_t len,
	struct errmsg *err)
{
	return write_and_close(fd, data, len) ? 0 : fault(err, path);
}

/* `place` is `path` without links; `old`, where there is one, is the file whose place it takes. */
static int replace(const char *path, const char *place, const struct stat *old, const void *data,
	size_t len, struct errmsg *err)
{
	_cleanup_(buf_deinit) struct buf b = {0};
	if (buf_appendf(&b, "%s.%ld.part", place, (long)getpid()) < 0 || !buf_cstr(&b)) {
		return -ENOMEM;
	}
	const char *part = (char *)b.data;
	int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0) {
		return fault(err, path);
	}
	bool good = !old || fchmod(fd, old->st_mode & 07777) == 0;
	int r = good ? 0 : fault(err, path);
	if (!write_and_close(fd, data, len) || (r == 0 && rename(part, place) < 0)) {
		r = r ? r : fault(err, path);
	}
	if (r != 0) {
		unlink(part);
	}
	return r;
}

int outfile_write(const char *path, const void *data, size_t len, struct errmsg *err)
{
	struct stat st;
	if (stat(path, &st) < 0) {
		if (errno != ENOENT) {
			return fault(err, path);
		}
		/* A link that leads to nothing: what it leads to is made. */
		bool link = lstat(path, &st) == 0;
		return link ? write_through(path, open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666), data,
			len, err) : replace(path, path, NULL, data, len, err);
	}
	int stream = standard_stream(&st);
	if (stream >= 0 || !S_ISREG(st.st_mode)) {
		return write_through(path, stream >= 0 ? stream
			: open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC), data, len, err);
	}
	_cleanup_(freep) char *place = realpath(path, NULL);
	return place ? replace(path, place, &st, data, len, err) : fault(err, path);
}
