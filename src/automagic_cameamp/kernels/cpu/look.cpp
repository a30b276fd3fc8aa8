// What is there before a step: where many tensors lie and of what kind they are, and whether dictionaries still hold
// the same objects. Asked one by one through Python, the state of a thousand LoRA matrices takes longer than their update.
//
// Tensors are asked through torch's stable C interface (AOTInductor's, torch/csrc/inductor/aoti_torch/c/shim.h), whose
// functions Python hands over: this library is linked to neither torch nor Python.

#include <cstdint>

#if defined(_WIN32)
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace {

// A handle of that interface is the address of a tensor, which is the address of its implementation.
using Handle = const void*;

struct Torch {
  int32_t (*device_type)(Handle, int32_t*);
  int32_t (*layout)(Handle, int32_t*);
  int32_t (*dtype)(Handle, int32_t*);
  int32_t (*dim)(Handle, int64_t*);
  int32_t (*numel)(Handle, int64_t*);
  int32_t (*data)(Handle, void**);
  int32_t (*sizes)(Handle, int64_t**);
  int32_t (*strides)(Handle, int64_t**);
};

constexpr int64_t AHEAD = 8, BRIEF = 3, DIMS = 256;

void fetch(const void* implementation) {
#if defined(__GNUC__) || defined(__clang__)
  const char* at = static_cast<const char*>(implementation);
  for (int line = 0; line < 3; line++) __builtin_prefetch(at + 64 * line);
#endif
}

// One row: address, kind, number of elements, sizes, strides. False where there is no room for them, or no address.
bool describe(const Torch& torch, Handle tensor, int64_t* row, int64_t width) {
  int32_t device = 0, layout = 0, dtype = 0;
  int64_t dim = 0;
  void* data = nullptr;
  for (int64_t i = 0; i < width; i++) row[i] = 0;
  if (torch.device_type(tensor, &device) || torch.layout(tensor, &layout) || layout) return false;
  if (torch.dtype(tensor, &dtype) || torch.dim(tensor, &dim) || torch.numel(tensor, row + 2)) return false;
  if (torch.data(tensor, &data)) return false;
  row[0] = static_cast<int64_t>(reinterpret_cast<intptr_t>(data));
  row[1] = dtype + DIMS * dim + DIMS * DIMS * static_cast<int64_t>(device);
  if (width == BRIEF) return true;
  int64_t *sizes = nullptr, *strides = nullptr, room = (width - BRIEF) / 2;
  if (dim > room || torch.sizes(tensor, &sizes) || torch.strides(tensor, &strides)) return false;
  for (int64_t i = 0; i < dim; i++) row[BRIEF + i] = sizes[i], row[BRIEF + room + i] = strides[i];
  return true;
}

}  // namespace

// Describe tensors in rows of `width` numbers. Returns how many were: less than `count` where one cannot be.
PUBLIC int64_t automagic_look(const Torch* torch, const void* const* tensors, int64_t count, int64_t* rows, int64_t width) {
  for (int64_t i = 0; i < count; i++) {
    if (i + AHEAD < count) fetch(tensors[i + AHEAD]);
    if (!describe(*torch, tensors + i, rows + i * width, width)) return i;
  }
  return count;
}

// Whether dictionaries hold these objects, in this order; `ends` has the number of objects up to the end of each.
// `next` is PyDict_Next: to be called with Python's lock, which nothing here gives away.
PUBLIC int32_t automagic_hold(int (*next)(const void*, intptr_t*, void**, void**), const void* const* dictionaries,
                              int64_t count, const void* const* objects, const int64_t* ends) {
  int64_t seen = 0;
  for (int64_t i = 0; i < count; i++) {
    intptr_t place = 0;
    void* value = nullptr;
    while (next(dictionaries[i], &place, nullptr, &value)) {
      if (seen == ends[i] || objects[seen] != value) return 0;
      seen++;
    }
    if (seen != ends[i]) return 0;
  }
  return 1;
}
