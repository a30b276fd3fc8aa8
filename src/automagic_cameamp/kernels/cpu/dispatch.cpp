// The library's plain C interface: picks the flavour that this processor can run.
#include <stddef.h>

#include "abi.h"

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

PUBLIC int32_t automagic_abi(int32_t what) {
  switch (what) {
    case 0: return ABI_VERSION;
    case 1: return (int32_t)sizeof(Coded);
    case 2: return (int32_t)sizeof(Options);
    case 3: return (int32_t)sizeof(Task);
    case 4: return (int32_t)sizeof(Step);
    case 5: return best();
    default: return -1;
  }
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
