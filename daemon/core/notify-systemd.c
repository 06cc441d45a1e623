#include "daemon/core/notify.h"

#include <systemd/sd-daemon.h>

void notify_ready(void)
{
	sd_notify(0, "READY=1");
}

void notify_stopping(void)
{
	sd_notify(0, "STOPPING=1");
}

void notify_alive(void)
{
	sd_notify(0, "WATCHDOG=1");
}

int64_t notify_interval_ns(void)
{
	uint64_t us;
	return sd_watchdog_enabled(0, &us) > 0 ? (int64_t)us * 1000 / 2 : INT64_MAX;
}
