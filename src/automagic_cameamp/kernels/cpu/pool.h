// A pool of threads of our own: torch's is not ours to use, and OpenMP's spins between regions.
#pragma once
#include <stdint.h>

typedef void (*Body)(void* context, int64_t index);

// body(context, i) for every i in [0, count), on at most `threads` threads, the caller among them.
// Which thread takes which i is open; nothing may depend on it.
void parallel_for(int threads, int64_t count, Body body, void* context);

// What one call of `body` took, where somebody watches.
struct Share {
  int64_t section, index, nanoseconds;  // which parallel_for since the watch began
};

// Watch one step: from now on the caller of the outermost parallel_for does all shares itself, however many threads are
// asked for, and notes them in `shares`, as many as there is room for. With null, the watch ends.
// Returns how many shares there have been.
int64_t watch(Share* shares, int64_t room);
