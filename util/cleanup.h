#pragma once
/* Owning locals that free themselves at the end of their scope. */

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(f) __attribute__((cleanup(f)))

/* Defines a cleanup function `f##p` for pointers whose destructor is `f` (which takes NULL). */
#define DEFINE_CLEANUP(type, f)        \
	static inline void f##p(type *p)   \
	{                                  \
		f(*p);                         \
	}                                  \
	struct util_swallow_semicolon

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void closep(int *fd)
{
	if (*fd >= 0) {
		close(*fd);
	}
}

static inline void fclosep(FILE **f)
{
	if (*f) {
		fclose(*f);
	}
}

/* Hands ownership of a pointer on: returns it and leaves NULL behind. */
#define steal_ptr(p)                \
	__extension__({                 \
		__typeof__(p) steal_ = (p); \
		(p) = NULL;                 \
		steal_;                     \
	})

static inline int steal_fd(int *fd)
{
	int stolen = *fd;
	*fd = -1;
	return stolen;
}
