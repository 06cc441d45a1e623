#include "client/subcommand.h"

#include <string.h>

#include "util/buf.h"
#include "util/cleanup.h"

static const char *last_word(const char *name)
{
	const char *space = strrchr(name, ' ');
	return space ? space + 1 : name;
}

int subcommand_run(struct ctl *ctl, const struct command *list, size_t n, int argc, char **argv)
{
	_cleanup_(buf_deinit) struct buf names = {0};
	for (size_t i = 0; i < n; i++) {
		if (argc > 1 && strcmp(argv[1], last_word(list[i].name)) == 0) {
			ctl->command = &list[i];
			return list[i].run(ctl, argc - 1, argv + 1);
		}
		buf_appendf(&names, "%s%s", i > 0 ? ", " : "", last_word(list[i].name));
	}
	_cleanup_(texts_deinit) struct texts operands = {0};
	int status;
	if (args_parse(ctl, argc, argv, NULL, 0, 0, SIZE_MAX, &operands, &status) != 0) {
		return status;
	}
	const char *known = buf_cstr(&names);
	return operands.n == 0 ? ctl_usage(ctl, "%s what? %s", ctl->command->name, known ? known : "")
		: ctl_usage(ctl, "no command '%s %s'; there are: %s", ctl->command->name,
			operands.items[0], known ? known : "");
}
