// A pool of threads of our own: torch's is not ours to use, and OpenMP's spins between regions.
#pragma once
#include <stdint.h>

typedef void (*Body)(void* context, int64_t index);

// body(context, i) for every i in [0, count), on at most `threads` threads, the caller among them.
// Which thread takes which i is open; nothing may depend on it.
void parallel_for(int threads, int64_t count, Body body, void* context);
