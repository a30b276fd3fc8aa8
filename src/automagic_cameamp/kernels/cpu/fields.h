// The fields of abi.h, by name, place and kind, for the loader (native.py) to compare with layout.py one by one.
#pragma once
#include <stddef.h>

#include <type_traits>

#include "abi.h"

struct Field {
  const char* name;
  int32_t offset, size;
  const char* kind;  // of its elements, where it is an array
};

template <class T>
constexpr const char* kind_of() {
  using E = std::remove_all_extents_t<T>;
  if (std::is_pointer<E>::value) return "address";
  if (std::is_same<E, double>::value) return "float64";
  if (std::is_same<E, float>::value) return "float32";
  if (std::is_same<E, int64_t>::value) return "int64";
  if (std::is_same<E, int32_t>::value) return "int32";
  if (std::is_same<E, Coded>::value) return "Coded";
  return "unknown";
}

// Whether a list leaves nothing out: abi.h has no padding.
template <class S, size_t N>
constexpr bool complete(const Field (&fields)[N]) {
  size_t bytes = 0;
  for (size_t i = 0; i < N; i++) {
    if (fields[i].offset != static_cast<int32_t>(bytes)) return false;
    bytes += static_cast<size_t>(fields[i].size);
  }
  return bytes == sizeof(S);
}

#define FIELD(S, f) {#S "." #f, (int32_t)offsetof(S, f), (int32_t)sizeof(S::f), kind_of<decltype(S::f)>()}

constexpr Field CODED_FIELDS[] = {
    FIELD(Coded, q), FIELD(Coded, scale), FIELD(Coded, zero), FIELD(Coded, residual), FIELD(Coded, code),
    FIELD(Coded, block), FIELD(Coded, bits), FIELD(Coded, salt),
};
static_assert(complete<Coded>(CODED_FIELDS), "fields.h: a field of Coded is missing");

constexpr Field OPTIONS_FIELDS[] = {
    FIELD(Options, lr), FIELD(Options, low), FIELD(Options, high), FIELD(Options, floor), FIELD(Options, multiplier),
    FIELD(Options, eps), FIELD(Options, clip), FIELD(Options, final_clip), FIELD(Options, beta),
    FIELD(Options, lowest_beta1), FIELD(Options, log_decay), FIELD(Options, eta), FIELD(Options, weight_decay),
    FIELD(Options, warmup),
    FIELD(Options, edge_penalty), FIELD(Options, edge_threshold), FIELD(Options, detail), FIELD(Options, frequency),
    FIELD(Options, emphasis), FIELD(Options, rank_strength), FIELD(Options, own_share), FIELD(Options, update_share),
    FIELD(Options, share), FIELD(Options, scale_rate), FIELD(Options, scales), FIELD(Options, mixed),
    FIELD(Options, improved), FIELD(Options, allora), FIELD(Options, grams), FIELD(Options, cautious),
    FIELD(Options, decay_always), FIELD(Options, spd), FIELD(Options, background), FIELD(Options, d_coef),
    FIELD(Options, tam), FIELD(Options, mask), FIELD(Options, signals), FIELD(Options, table),
};
static_assert(complete<Options>(OPTIONS_FIELDS), "fields.h: a field of Options is missing");

constexpr Field TASK_FIELDS[] = {
    FIELD(Task, p), FIELD(Task, g), FIELD(Task, batch), FIELD(Task, rows), FIELD(Task, cols), FIELD(Task, height),
    FIELD(Task, width), FIELD(Task, sketch_place), FIELD(Task, sketch_offset), FIELD(Task, exp_avg), FIELD(Task, sq),
    FIELD(Task, sq_row), FIELD(Task, sq_col), FIELD(Task, res), FIELD(Task, res_row), FIELD(Task, res_col),
    FIELD(Task, spatial), FIELD(Task, edge), FIELD(Task, scale), FIELD(Task, step), FIELD(Task, avg_lr),
    FIELD(Task, torque), FIELD(Task, mask_sum), FIELD(Task, mask), FIELD(Task, polarity), FIELD(Task, basis),
    FIELD(Task, lowrank_rate), FIELD(Task, level), FIELD(Task, anchor),
    FIELD(Task, rest), FIELD(Task, p_type), FIELD(Task, g_type), FIELD(Task, options), FIELD(Task, key),
    FIELD(Task, rounds), FIELD(Task, matrix), FIELD(Task, kept), FIELD(Task, ok), FIELD(Task, tail),
    FIELD(Task, sampled), FIELD(Task, square),
};
static_assert(complete<Task>(TASK_FIELDS), "fields.h: a field of Task is missing");

constexpr Field STEP_FIELDS[] = {
    FIELD(Step, tasks), FIELD(Step, options), FIELD(Step, mask_sums), FIELD(Step, count), FIELD(Step, mask_count),
    FIELD(Step, masked), FIELD(Step, mask_mean), FIELD(Step, sketch), FIELD(Step, square), FIELD(Step, bad),
    FIELD(Step, level), FIELD(Step, looks), FIELD(Step, threads), FIELD(Step, flavour),
};
static_assert(complete<Step>(STEP_FIELDS), "fields.h: a field of Step is missing");

#undef FIELD
