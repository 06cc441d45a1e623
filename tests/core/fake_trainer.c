/* fake.h as a program: stands in for peftd-trainer where a test needs a real process but no engine.
 * FAKE_TRAINER_EXIT=N: ends at once with that status. FAKE_TRAINER_DELAY=MS: between small things.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tests/core/fake.h"

static long number(const char *s, long otherwise)
{
	return s ? strtol(s, NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
	bool inspect = false;
	int fd = -1;
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--inspect") == 0) {
			inspect = true;
		} else if (strcmp(argv[i], "--link-fd") == 0 && i + 1 < argc) {
			fd = (int)number(argv[++i], -1);
		}
	}
	if (getenv("FAKE_TRAINER_EXIT") && !inspect) {
		return (int)number(getenv("FAKE_TRAINER_EXIT"), 1);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	struct fake f;
	if (fake_init(&f, fd, inspect) < 0) {
		fprintf(stderr, "fake trainer: no link\n");
		return 1;
	}
	int delay = inspect ? 0 : (int)number(getenv("FAKE_TRAINER_DELAY"), 0);
	bool busy = true;
	while (!f.ended) {
		struct pollfd p = {fd, (short)(POLLIN | (link_queued(f.link) ? POLLOUT : 0)), 0};
		if (poll(&p, 1, busy ? delay : -1) < 0 && errno != EINTR) {
			break;
		}
		if (!fake_listen(&f)) {
			break;
		}
		link_flush(f.link);
		busy = fake_work(&f, 0);
	}
	while (link_queued(f.link) && f.ended) {
		struct pollfd p = {fd, POLLOUT, 0};
		if (poll(&p, 1, -1) < 0 || link_flush(f.link) < 0) {
			break;
		}
	}
	fake_deinit(&f);
	return 0;
}
