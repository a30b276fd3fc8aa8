// The library's plain C interface: picks the flavour that this processor can run.
#include "fields.h"
#include "pool.h"

#if defined(_WIN32)
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace isa_base {
void step(Step* s);
}
#if defined(AUTOMAGIC_X86)
namespace isa_avx2 {
void step(Step* s);
}
namespace isa_avx512 {
void step(Step* s);
}
#endif

namespace {

int best() {
#if defined(AUTOMAGIC_X86)
  __builtin_cpu_init();
  bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
            __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return v4 ? 2 : v3 ? 1 : 0;
#else
  return 0;
#endif
}

}  // namespace

// The argument is 0: libraries of version 1 had further numbers to tell.
PUBLIC int32_t automagic_abi(int32_t) { return ABI_VERSION; }

// Number of the best flavour that this processor runs: 0 base, 1 AVX2, 2 AVX-512.
PUBLIC int32_t automagic_best(void) { return best(); }

// Field `index` of the structures of abi.h: its name and kind, and in `place` its offset and size; null beyond the last.
PUBLIC const char* automagic_field(int32_t index, int32_t* place, const char** kind) {
  const Field* lists[] = {CODED_FIELDS, OPTIONS_FIELDS, TASK_FIELDS, STEP_FIELDS};
  const size_t counts[] = {sizeof(CODED_FIELDS), sizeof(OPTIONS_FIELDS), sizeof(TASK_FIELDS), sizeof(STEP_FIELDS)};
  for (int l = 0; l < 4; l++) {
    int32_t count = (int32_t)(counts[l] / sizeof(Field));
    if (index < count) {
      const Field& f = lists[l][index];
      place[0] = f.offset, place[1] = f.size, *kind = f.kind;
      return f.name;
    }
    index -= count;
  }
  return nullptr;
}

// How a step spreads over threads, for benchmarks/scaling.py.
PUBLIC int64_t automagic_watch(Share* shares, int64_t room) { return watch(shares, room); }

// Rows of `width` numbers from all over the memory, one behind another.
PUBLIC void automagic_gather(const float* const* rows, int64_t count, int64_t width, float* out) {
  for (int64_t r = 0; r < count; r++)
    for (int64_t i = 0; i < width; i++) out[r * width + i] = rows[r][i];
}

PUBLIC void automagic_step(Step* s) {
#if defined(AUTOMAGIC_X86)
  int limit = best();
  int flavour = s->flavour < 0 || s->flavour > limit ? limit : s->flavour;
  if (flavour == 2) return isa_avx512::step(s);
  if (flavour == 1) return isa_avx2::step(s);
#endif
  isa_base::step(s);
}
