/* From the command line to the command. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl.h"
#include "util/util.h"

static int help(struct ctl *ctl, int argc, char **argv)
{
	char *ask[] = {"peftctl", "--help", NULL};
	int status;
	if (argc < 2) {
		args_parse_global(ctl, 2, ask, &status);
		return status;
	}
	const char *nearest;
	ctl->command = ctl_find_command(argv[1], &nearest);
	if (!ctl->command) {
		return nearest ? ctl_usage(ctl, "no command '%s'; did you mean '%s'?", argv[1], nearest)
			: ctl_usage(ctl, "no command '%s'", argv[1]);
	}
	ask[0] = argv[1];
	return ctl->command->run(ctl, 2, ask);
}

static int run(struct ctl *ctl, int argc, char **argv)
{
	int status;
	int at = args_parse_global(ctl, argc, argv, &status);
	if (at < 0) {
		return status;
	}
	if (at == argc) {
		return ctl_usage(ctl, "which command?");
	}
	if (strcmp(argv[at], "help") == 0) {
		return help(ctl, argc - at, argv + at);
	}
	const char *nearest;
	ctl->command = ctl_find_command(argv[at], &nearest);
	if (!ctl->command) {
		return nearest ? ctl_usage(ctl, "no command '%s'; did you mean '%s'?", argv[at], nearest)
			: ctl_usage(ctl, "no command '%s'", argv[at]);
	}
	return ctl->command->run(ctl, argc - at, argv + at);
}

int ctl_main(int argc, char **argv, ctl_pull pull)
{
	struct ctl ctl = {.timeout = CLIENT_CONNECT_MS / 1000.0, .program_args = argv, .pull = pull};
	term_init(&ctl.term);
	term_on_interrupt(NULL);
	int status = run(&ctl, argc, argv);
	client_free(ctl.client);
	free(ctl.endpoint);
	return status;
}
