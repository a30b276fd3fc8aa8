#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <process.h>
#define process_id _getpid
#else
#include <unistd.h>
#define process_id getpid
#endif

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__) && defined(__GNUC__)
#define relax() __asm__ __volatile__("yield")
#else
#define relax() ((void)0)
#endif

namespace {

constexpr int SPINS = 2000;  // some ten microseconds: the gap between two passes, not between two steps

struct Pool {
  std::mutex use;  // one caller at a time; a second one works alone
  std::mutex sleep;
  std::condition_variable wake;
  std::vector<std::thread> workers;
  std::atomic<uint64_t> round{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  int64_t count = 0;
  int helpers = 0;
  Body body = nullptr;
  void* context = nullptr;
  long owner = 0;

  void drain() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(context, i);
  }

  void work(int number, uint64_t seen) {
    for (;;) {
      int spins = 0;
      while (round.load(std::memory_order_acquire) == seen && spins++ < SPINS) relax();
      if (round.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(sleep);
        wake.wait(lock, [&] { return round.load(std::memory_order_acquire) != seen; });
      }
      seen = round.load(std::memory_order_acquire);
      if (number < helpers) drain();
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void run(int threads, int64_t total, Body what, void* with) {
    int wanted = threads - 1;
    while ((int)workers.size() < wanted) {
      int number = (int)workers.size();
      uint64_t seen = round.load();
      try {
        workers.emplace_back([this, number, seen] { work(number, seen); });
      } catch (...) {  // no more threads to be had: fewer do the same
        break;
      }
    }
    body = what, context = with, count = total, helpers = wanted;
    next.store(0);
    busy.store((int)workers.size());
    {
      std::lock_guard<std::mutex> lock(sleep);
      round.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    drain();
    while (busy.load(std::memory_order_acquire) != 0) {
      for (int i = 0; i < SPINS && busy.load(std::memory_order_acquire) != 0; i++) relax();
      if (busy.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }
  }
};

std::atomic<Pool*> current{nullptr};

// The pool of this process. Threads do not survive a fork, so a child makes a new one; neither is
// ever destroyed: at exit the threads sleep in it.
Pool* pool() {
  Pool* found = current.load(std::memory_order_acquire);
  if (found != nullptr && found->owner == (long)process_id()) return found;
  Pool* made = new Pool;
  made->owner = (long)process_id();
  if (current.compare_exchange_strong(found, made)) return made;
  delete made;
  return current.load(std::memory_order_acquire);
}

// A watch, of one step at a time.
std::atomic<Share*> watched{nullptr};
int64_t noted = 0, room_for = 0, sections = 0;

// All shares by the caller, each with its time.
void watch_all(int64_t count, Body body, void* context) {
  Share* shares = watched.exchange(nullptr);  // a body that calls parallel_for again takes the time of that, too
  for (int64_t i = 0; i < count; i++) {
    auto start = std::chrono::steady_clock::now();
    body(context, i);
    std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - start;
    if (noted++ < room_for) shares[noted - 1] = {sections, i, static_cast<int64_t>(taken.count())};
  }
  sections++;
  watched.store(shares);
}

}  // namespace

int64_t watch(Share* shares, int64_t room) {
  int64_t found = noted;
  noted = 0, sections = 0, room_for = room;
  watched.store(shares, std::memory_order_release);
  return found;
}

void parallel_for(int threads, int64_t count, Body body, void* context) {
  if (watched.load(std::memory_order_relaxed) != nullptr) return watch_all(count, body, context);
  if (threads > 1 && count > 1) {
    Pool* p = pool();
    if (p->use.try_lock()) {
      p->run(threads, count, body, context);
      p->use.unlock();
      return;
    }
  }
  for (int64_t i = 0; i < count; i++) body(context, i);
}
