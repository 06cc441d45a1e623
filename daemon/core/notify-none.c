#include "daemon/core/notify.h"

void notify_ready(void)
{
}

void notify_stopping(void)
{
}

void notify_alive(void)
{
}

int64_t notify_interval_ns(void)
{
	return INT64_MAX;
}
