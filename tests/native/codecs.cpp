// Entry points by which tests reach the codecs alone; compiled once per instruction set.
#include "mask.h"

#if defined(_WIN32)
#define AUTOMAGIC_EXPORT extern "C" __declspec(dllexport)
#else
#define AUTOMAGIC_EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define AUTOMAGIC_JOIN2(a, b) a##_##b
#define AUTOMAGIC_JOIN(a, b) AUTOMAGIC_JOIN2(a, b)

using namespace AUTOMAGIC_ISA;

namespace {

enum class Known : int32_t {
    DYNAMIC = 0,
    AFFINE = 1,
    AFFINE4 = 2,
    AFFINE8 = 3,
    SOFTSIGN = 4,
    SOFTSIGN4 = 5,
    SOFTSIGN8 = 6,
    LOG = 7,
    UNIT = 8,
    LOG16 = 9,
    FOUR = 10,
};

}  // namespace

// Planes in the order of Codec.planes; null where a code has fewer.
AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_decode, AUTOMAGIC_ISA)(int32_t code, const void* a, const void* b,
                                                                     const void* c, const void* d, int64_t first,
                                                                     int64_t count, int64_t block, float* out) {
    const uint8_t* q = static_cast<const uint8_t*>(a);
    const float* scale = static_cast<const float*>(b);
    const uint8_t *third = static_cast<const uint8_t*>(c), *fourth = static_cast<const uint8_t*>(d);
    switch (static_cast<Known>(code)) {
        case Known::DYNAMIC: return Dynamic8::decode(q, scale, first, count, block, out);
        case Known::AFFINE: return Affine8::decode(q, scale, third, first, count, block, out);
        case Known::AFFINE4: return CorrectedAffine8<4>::decode(q, scale, third, fourth, first, count, block, out);
        case Known::AFFINE8: return CorrectedAffine8<8>::decode(q, scale, third, fourth, first, count, block, out);
        case Known::SOFTSIGN: return Softsign8::decode(q, scale, first, count, block, out);
        case Known::SOFTSIGN4: return CorrectedSoftsign8<4>::decode(q, scale, third, first, count, block, out);
        case Known::SOFTSIGN8: return CorrectedSoftsign8<8>::decode(q, scale, third, first, count, block, out);
        case Known::LOG: return Log8::decode(q, scale, first, count, block, out);
        case Known::UNIT: return Unit4::decode(q, first, count, out);
        case Known::FOUR: return Softsign4::decode(q, static_cast<const uint16_t*>(b), first, count, block, out);
        case Known::LOG16: return Log16::decode(static_cast<const int16_t*>(a), static_cast<const uint16_t*>(b), count, out);
        default: return;
    }
}

AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_encode, AUTOMAGIC_ISA)(int32_t code, const float* x, int64_t first,
                                                                     int64_t count, int64_t block, int64_t numel,
                                                                     int32_t random, uint32_t base, void* a, void* b,
                                                                     void* c, void* d) {
    uint8_t* q = static_cast<uint8_t*>(a);
    float* scale = static_cast<float*>(b);
    uint8_t *third = static_cast<uint8_t*>(c), *fourth = static_cast<uint8_t*>(d);
    switch (static_cast<Known>(code)) {
        case Known::DYNAMIC: return Dynamic8::encode(x, first, count, block, q, scale);
        case Known::AFFINE: return Affine8::encode(x, first, count, block, q, scale, third);
        case Known::AFFINE4: return CorrectedAffine8<4>::encode(x, first, count, block, numel, q, scale, third, fourth);
        case Known::AFFINE8: return CorrectedAffine8<8>::encode(x, first, count, block, numel, q, scale, third, fourth);
        case Known::SOFTSIGN: return Softsign8::encode(x, first, count, block, q, scale);
        case Known::SOFTSIGN4: return CorrectedSoftsign8<4>::encode(x, first, count, block, numel, q, scale, third);
        case Known::SOFTSIGN8: return CorrectedSoftsign8<8>::encode(x, first, count, block, numel, q, scale, third);
        case Known::LOG: return Log8::encode(x, first, count, block, q, scale);
        case Known::UNIT: return Unit4::encode(x, first, count, numel, random != 0, base, q);
        case Known::FOUR:
            return Softsign4::encode(x, first, count, block, numel, base, q, static_cast<uint16_t*>(b));
        case Known::LOG16:
            return Log16::encode(x, count, random != 0, base, static_cast<int16_t*>(a), static_cast<uint16_t*>(b));
        default: return;
    }
}

// fp32 <-> a type; mode 0 loads, 1 stores to the nearest, 2 stores stochastically.
AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_convert, AUTOMAGIC_ISA)(int32_t mode, int32_t type, uint32_t key,
                                                                      int32_t step, int64_t first, int64_t count,
                                                                      float* x, void* typed) {
    if (mode != 0) return store_run(x, typed, type, first, count, mode == 2, random_base(key, step));
    const float* from = load_run(typed, type, first, count, x);
    if (from != x) copy_run(from, count, x);
}

AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_random, AUTOMAGIC_ISA)(uint32_t key, int32_t step, int64_t count,
                                                                     uint32_t* out) {
    uint32_t base = random_base(key, step);
    for (int64_t i = 0; i < count; ++i) out[i] = random_bits(base, static_cast<uint32_t>(i));
}

// Weights of 24 bits: joined into x (0), or x split into them (1).
AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_whole, AUTOMAGIC_ISA)(int32_t mode, int32_t type, int32_t rounds,
                                                                    uint32_t key, int32_t step, int64_t first,
                                                                    int64_t count, float* x, void* p, int8_t* rest) {
    Task t{};
    t.p = p, t.rest = rest, t.p_type = type, t.rounds = rounds;
    if (mode == 0)
        load_weights(t, first, count, x);
    else
        store_weights(x, t, first, count, random_base(key, step));
}

// One step of the mask's words by `by`, their values, and the signs of g, which are kept.
AUTOMAGIC_EXPORT void AUTOMAGIC_JOIN(automagic_mask, AUTOMAGIC_ISA)(const float* g, int64_t count, int32_t by,
                                                                   uint8_t* word, float* value, uint8_t* negative) {
    const MaskValues values;
    move_run(g, count, by, word);
    for (int64_t i = 0; i < count; i += W) put<false>(values.at<false>(word + i, count - i), value + i, count - i);
    for (int64_t i = 0; i < count; i += 64) cast_votes(g + i, i, smaller(int64_t(64), count - i), negative);
}
