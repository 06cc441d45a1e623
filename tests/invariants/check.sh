#!/bin/bash
# Holds the source tree and the built programs against the invariants of ARCHITECTURE.md.
# Usage: check.sh SOURCE_DIR BUILD_DIR; prints TAP.
set -uo pipefail
shopt -s lastpipe # check() counts in this shell, not in that of its pipe
export LC_ALL=C.UTF-8
src=$1
build=$2
cd "$src"

n=0
failed=0
check() { # check NAME: reads offending lines on standard input; none is good
	local offenders
	offenders=$(cat)
	n=$((n + 1))
	if [ -z "$offenders" ]; then
		echo "ok $n - $1"
	else
		echo "not ok $n - $1"
		sed 's/^/# /' <<<"$offenders" | head -n 20
		failed=1
	fi
}
sources() { find "$@" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort; }
linked() { ldd "$build/$1" 2>&1; }

sources engine kernels |
	xargs grep -nE '#include *[<"](zmq|protobuf-c|lmdb|systemd|proto/|store/|daemon/|client/|.*pb-c\.h)' |
	check "engine and kernels see no ZeroMQ, protobuf, LMDB or systemd"

sources kernels | xargs grep -nE '#include *"engine/' | check "kernels do not see the engine"

sources util proto kernels engine daemon client | xargs grep -nE '\bmdb_[a-z]' |
	check "only store calls mdb_*"

sources util proto kernels engine store client daemon/front daemon/trainer |
	xargs grep -nE '\bstore_open *\(' | grep -v '^store/' |
	check "only the core opens the store"

for p in daemon/front/peftd-front daemon/trainer/peftd-trainer client/peftctl; do
	linked $p | grep -i lmdb
done | check "only the core links LMDB"

sources util proto kernels engine store daemon/core daemon/trainer | xargs grep -nE '\bzmq_[a-z]' |
	check "only the front and the client call ZeroMQ"

for p in daemon/core/peftd daemon/trainer/peftd-trainer; do linked $p | grep -i zmq; done |
	check "core and trainer do not link ZeroMQ"

linked client/peftctl | grep -iE 'lmdb|dnnl|cuda|cublas|blas|gomp|pcre|systemd' |
	check "peftctl links no store and no engine"

for p in daemon/core/peftd daemon/front/peftd-front; do
	linked $p | grep -iE 'dnnl|cuda|cublas|blas|gomp'
done | check "core and front link no engine"

for p in daemon/core/peftd daemon/front/peftd-front daemon/trainer/peftd-trainer client/peftctl; do
	linked $p | grep -i libcurl
done | check "only peftctl-pull links libcurl"

linked daemon/core/peftd | grep -i jansson | check "the core reads no JSON"

sources util kernels engine store daemon client | xargs grep -nE '#include *".*pb-c\.h"' |
	grep -vE '^(store/record[a-z_-]*\.[ch]|daemon/[a-z]+/convert[a-z_-]*\.[ch]|daemon/front/[a-z_-]*\.[ch]|client/[a-z_-]+\.[ch]):' |
	check "only record.c, the converters of core and trainer, the front and the client see *.pb-c.h"

sources util proto kernels engine store daemon client |
	grep -v '^util/' | xargs grep -nE '\b(time|gettimeofday|ftime) *\( *(NULL|0|&)|CLOCK_REALTIME' |
	check "wall time is read through clock_wall_ns alone"

sources kernels engine daemon/trainer | xargs grep -nE 'clock_wall_ns' |
	check "engine and trainer never read the wall clock"

sources util proto kernels engine store daemon client | xargs grep -nE '\b(atoi|atol|strcpy|strcat|sprintf|gets|alloca) *\(' |
	check "no call that cannot report a fault or overruns"

sources util proto kernels engine store daemon client | xargs grep -nE '\b(usleep|nanosleep|sleep) *\(' |
	check "nothing sleeps to synchronise"

sources util proto kernels engine store daemon client | while read -r f; do
	expand -t 4 "$f" | grep -nE '^.{111}' | sed "s|^|$f:|"
done | check "no line is much over 100 columns"

echo "1..$n"
exit $failed
