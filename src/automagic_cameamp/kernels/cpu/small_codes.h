// Codes of less than a byte, error correction, sixteen-bit vectors, sign bits and words of the mask.
#pragma once

#include "codecs.h"
#include "corrected.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t PART = 512;  // elements worked on at a time where a scratch buffer is needed

// ---- nibbles -----------------------------------------------------------------------------------

// Elements [first, first + n) of a packed plane; the first of a pair is in the low half.
inline void unpack_nibbles(const uint8_t* packed, int64_t first, int64_t n, uint8_t* AUTOMAGIC_RESTRICT out) {
    if (n > 0 && (first & 1)) {
        *out++ = packed[first >> 1] >> 4;
        ++first;
        --n;
    }
    const uint8_t* AUTOMAGIC_RESTRICT from = packed + (first >> 1);
    for (int64_t i = 0; i < n >> 1; ++i) {
        out[2 * i] = from[i] & 15;
        out[2 * i + 1] = from[i] >> 4;
    }
    if (n & 1) out[n - 1] = from[n >> 1] & 15;
}

// Write elements [first, first + n); where the run ends inside a byte at ``numel``, its high half is 0.
inline void pack_nibbles(const uint8_t* AUTOMAGIC_RESTRICT x, int64_t first, int64_t n, int64_t numel,
                         uint8_t* packed) {
    if (n > 0 && (first & 1)) {
        packed[first >> 1] = static_cast<uint8_t>((packed[first >> 1] & 15) | (*x++ << 4));
        ++first;
        --n;
    }
    uint8_t* AUTOMAGIC_RESTRICT to = packed + (first >> 1);
    for (int64_t i = 0; i < n >> 1; ++i) to[i] = static_cast<uint8_t>(x[2 * i] | (x[2 * i + 1] << 4));
    if (n & 1) {
        uint8_t high = first + n == numel ? 0 : to[n >> 1] & 0xF0;
        to[n >> 1] = static_cast<uint8_t>(x[n - 1] | high);
    }
}

// ---- error correction --------------------------------------------------------------------------

// The residual plane of ErrorCorrected: one byte per element (BITS 8) or two elements per byte (BITS 4).
template <int BITS>
struct Residual {
    static constexpr float levels = static_cast<float>((1 << (BITS - 1)) - 1);

    // The residuals of elements [first, first + n), as bytes: in ``buffer``, or the plane itself.
    static AUTOMAGIC_INLINE const uint8_t* read(const uint8_t* plane, int64_t first, int64_t n, uint8_t* buffer) {
        if (BITS == 8) return plane + first;
        unpack_nibbles(plane, first, n, buffer);
        return buffer;
    }

    static AUTOMAGIC_INLINE float fraction(uint8_t r) {
        float k = static_cast<float>(static_cast<int32_t>(r)) - levels;
#if defined(AUTOMAGIC_FMA)
        constexpr float inverse = 1.0f / levels;
        float q = k * inverse;
        return __builtin_fmaf(__builtin_fmaf(-q, levels, k), inverse, q);
#else
        return k / levels;
#endif
    }

    // A block so small that ``unit`` is infinite makes NaN of a zero error: the reference holds code 0.
    static AUTOMAGIC_INLINE uint8_t code(float error, float unit) {
        float t = smaller(larger(error * unit, -levels), levels);
        return static_cast<uint8_t>(nearest_int(t) + static_cast<int32_t>(levels));
    }

    template <class F>
    static AUTOMAGIC_INLINE void write(int64_t first, int64_t n, int64_t numel, uint8_t* plane, F coded) {
        alignas(64) uint8_t buffer[PART];
        for (int64_t i = 0; i < n; i += PART) {
            int64_t size = smaller(PART, n - i);
            uint8_t* to = BITS == 8 ? plane + first + i : buffer;
            coded(i, size, to);
            if (BITS == 4) pack_nibbles(buffer, first + i, size, numel, plane);
        }
    }

    // out += residual * half width of the block's codes; ``width`` by code, or nullptr where all are alike.
    static inline void add(const uint8_t* AUTOMAGIC_RESTRICT r, const uint8_t* AUTOMAGIC_RESTRICT q,
                           const float* AUTOMAGIC_RESTRICT width, float unit, int64_t n,
                           float* AUTOMAGIC_RESTRICT out) {
        if (width == nullptr)
            for (int64_t i = 0; i < n; ++i) out[i] += fraction(r[i]) * unit;
        else
            for (int64_t i = 0; i < n; ++i) out[i] += fraction(r[i]) * (width[q[i]] * unit);
    }

    static AUTOMAGIC_INLINE float affine_unit(float scale) {
        float width = scale / 2.0f;
        return width > 0.0f ? (1.0f / width) * levels : 0.0f;
    }

    static inline void affine_codes(const float* AUTOMAGIC_RESTRICT x, const uint8_t* AUTOMAGIC_RESTRICT q,
                                    float scale, int32_t zero, int64_t n, uint8_t* AUTOMAGIC_RESTRICT r) {
        const float unit = affine_unit(scale);
        for (int64_t i = 0; i < n; ++i)
            r[i] = code(x[i] - static_cast<float>(static_cast<int32_t>(q[i]) - zero) * scale, unit);
    }

    static inline void softsign_codes(const float* AUTOMAGIC_RESTRICT x, const uint8_t* AUTOMAGIC_RESTRICT q,
                                      float scale, const SoftsignTables& t, int64_t n,
                                      uint8_t* AUTOMAGIC_RESTRICT r) {
        const float* AUTOMAGIC_RESTRICT value = t.value;
        const float* AUTOMAGIC_RESTRICT width = t.width;
        float unit = scale / 127.0f;
        for (int64_t i = 0; i < n; ++i) {
            float w = width[q[i]] * unit, inverse = (1.0f / w) * levels;
            r[i] = code(x[i] - value[q[i]] * scale, w > 0.0f ? inverse : 0.0f);
        }
    }
};

// Affine8 with BITS bits of error; ``numel`` is the size of the whole tensor.
template <int BITS>
struct CorrectedAffine8 {
    using R = Residual<BITS>;

    static inline void decode(const uint8_t* q, const float* scale, const uint8_t* zero, const uint8_t* residual,
                              int64_t first, int64_t count, int64_t block, float* out) {
        alignas(64) uint8_t held[PART];
        uint8_t* buffer = held;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            int64_t i = at, end = at + n;
#if defined(AUTOMAGIC_CORRECTED)
            if (BITS == 4 && ((first + at) & 1) == 0) {
                float rests[16];
                for (int r = 0; r < 16; ++r) rests[r] = R::fraction(static_cast<uint8_t>(r)) * (scale[b] / 2.0f);
                const uint8_t* nibbles = residual + ((first + at) >> 1);
                i += corrected_decode(q + first + at, nibbles, scale[b], zero[b], rests, n, out + at);
            }
#endif
            for (; i < end; i += PART) {
                int64_t size = smaller(PART, end - i);
                Affine8::decode_block(q + first + i, scale[b], zero[b], size, out + i);
                const uint8_t* r = R::read(residual, first + i, size, buffer);
                R::add(r, q + first + i, nullptr, scale[b] / 2.0f, size, out + i);
            }
        });
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, int64_t numel,
                              uint8_t* q, float* scale, uint8_t* zero, uint8_t* residual) {
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            const Affine8::Rule rule = Affine8::rule(x + at, n);
            scale[b] = rule.scale, zero[b] = static_cast<uint8_t>(static_cast<int32_t>(rule.zero));
            int64_t done = 0;
#if defined(AUTOMAGIC_CORRECTED)
            if (BITS == 4 && rule.by.fused && ((first + at) & 1) == 0)
                done = corrected_encode(x + at, rule.by, rule.scale, rule.zero, R::affine_unit(rule.scale), n,
                                        q + first + at, residual + ((first + at) >> 1));
#endif
            const int64_t start = at + done;
            if (done == n) return;
            Affine8::encode_block(x + start, rule, n - done, q + first + start);
            R::write(first + start, n - done, numel, residual, [=](int64_t i, int64_t size, uint8_t* to) {
                R::affine_codes(x + start + i, q + first + start + i, rule.scale, zero[b], size, to);
            });
        });
    }
};

// Softsign8 with BITS bits of error.
template <int BITS>
struct CorrectedSoftsign8 {
    using R = Residual<BITS>;

    static inline void decode(const uint8_t* q, const float* scale, const uint8_t* residual, int64_t first,
                              int64_t count, int64_t block, float* out) {
        const SoftsignTables& t = softsign_tables();
        alignas(64) uint8_t held[PART];
        uint8_t* buffer = held;
        for_blocks(first, count, block, [=, &t](int64_t b, int64_t at, int64_t n) {
            for (int64_t i = at; i < at + n; i += PART) {
                int64_t size = smaller(PART, at + n - i);
                table_decode(q + first + i, t.value, scale[b], size, out + i);
                const uint8_t* r = R::read(residual, first + i, size, buffer);
                R::add(r, q + first + i, t.width, scale[b] / 127.0f, size, out + i);
            }
        });
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, int64_t numel,
                              uint8_t* q, float* scale, uint8_t* residual) {
        const SoftsignTables& t = softsign_tables();
        Softsign8::encode(x, first, count, block, q, scale);
        for_blocks(first, count, block, [=, &t](int64_t b, int64_t at, int64_t n) {
            R::write(first + at, n, numel, residual, [=, &t](int64_t i, int64_t size, uint8_t* to) {
                R::softsign_codes(x + at + i, q + first + at + i, scale[b], t, size, to);
            });
        });
    }
};

// ---- four bits of [0, 1] -----------------------------------------------------------------------

struct Unit4 {
    static inline void decode(const uint8_t* packed, int64_t first, int64_t count, float* out) {
        alignas(64) uint8_t buffer[PART];
        for (int64_t i = 0; i < count; i += PART) {
            int64_t size = smaller(PART, count - i);
            unpack_nibbles(packed, first + i, size, buffer);
            values(buffer, size, out + i);
        }
    }

    static inline void values(const uint8_t* AUTOMAGIC_RESTRICT q, int64_t n, float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int32_t>(q[i])) / 15.0f;
    }

    // ``base``: random_base(key ^ salt, step); rounds to the nearest where ``random`` is false.
    static inline void encode(const float* x, int64_t first, int64_t count, int64_t numel, bool random,
                              uint32_t base, uint8_t* packed) {
        alignas(64) uint8_t buffer[PART];
        for (int64_t i = 0; i < count; i += PART) {
            int64_t size = smaller(PART, count - i);
            if (random)
                random_codes(x + i, static_cast<uint32_t>(first + i), size, base, buffer);
            else
                nearest_codes(x + i, size, buffer);
            pack_nibbles(buffer, first + i, size, numel, packed);
        }
    }

    static inline void random_codes(const float* AUTOMAGIC_RESTRICT x, uint32_t first, int64_t n, uint32_t base,
                                    uint8_t* AUTOMAGIC_RESTRICT q) {
        int32_t size = static_cast<int32_t>(n);
        for (int32_t i = 0; i < size; ++i) {
            float code = round_to_grid(x[i] * 15.0f, random_bits(base, first + static_cast<uint32_t>(i)));
            q[i] = static_cast<uint8_t>(static_cast<int32_t>(smaller(larger(code, 0.0f), 15.0f)));
        }
    }

    static inline void nearest_codes(const float* AUTOMAGIC_RESTRICT x, int64_t n, uint8_t* AUTOMAGIC_RESTRICT q) {
        for (int64_t i = 0; i < n; ++i)
            q[i] = static_cast<uint8_t>(nearest_int(smaller(larger(x[i] * 15.0f, 0.0f), 15.0f)));
    }
};

// ---- four bits of a running mean ---------------------------------------------------------------

// Softsign4: codes two to a byte, a bf16 scale per block. ``base``: random_base(key ^ salt, step).
struct Softsign4 {
    static AUTOMAGIC_INLINE float size_of(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

    static inline void decode(const uint8_t* packed, const uint16_t* scale, int64_t first, int64_t count,
                              int64_t block, float* out) {
        alignas(64) uint8_t held[PART];
        uint8_t* buffer = held;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            for (int64_t i = at; i < at + n; i += PART) {
                int64_t size = smaller(PART, at + n - i);
                unpack_nibbles(packed, first + i, size, buffer);
                values(buffer, from_bf16(scale[b]), size, out + i);
            }
        });
    }

    static inline void values(const uint8_t* AUTOMAGIC_RESTRICT q, float scale, int64_t n,
                              float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i) {
            float k = static_cast<float>(static_cast<int32_t>(q[i]) - 8);
            out[i] = 1.0f / (14.0f - size_of(k)) * k * scale;
        }
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, int64_t numel,
                              uint32_t base, uint8_t* packed, uint16_t* scale) {
        alignas(64) uint8_t held[PART];
        uint8_t* buffer = held;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            uint32_t up = (bits_of(absmax(x + at, n)) + 0xFFFFu) & 0xFFFF0000u;
            scale[b] = static_cast<uint16_t>(up >> 16);
            const Divider by(float_of(up));
            for (int64_t i = at; i < at + n; i += PART) {
                int64_t size = smaller(PART, at + n - i);
                uint32_t index = static_cast<uint32_t>(first + i);
                by.fused ? codes<true>(x + i, by, index, size, base, buffer)
                         : codes<false>(x + i, by, index, size, base, buffer);
                pack_nibbles(buffer, first + i, size, numel, packed);
            }
        });
    }

    template <bool FUSED>
    static inline void codes(const float* AUTOMAGIC_RESTRICT x, Divider by, uint32_t first, int64_t n, uint32_t base,
                             uint8_t* AUTOMAGIC_RESTRICT q) {
        int32_t count = static_cast<int32_t>(n);
        for (int32_t i = 0; i < count; ++i) {
            float v = by.divide<FUSED>(x[i]), size = size_of(v);
            float k = smaller(floor_small(size * 14.0f / (size + 1.0f)), 6.0f);
            float part = ((14.0f - k) * size - k) * (13.0f - k) / 14.0f;
            uint32_t bits = random_bits(base, first + static_cast<uint32_t>(i)) & 0x1FFFu;
            float noise = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-13f;
            int32_t code = static_cast<int32_t>(k) + static_cast<int32_t>(part > noise);
            q[i] = static_cast<uint8_t>(8 + (v < 0.0f ? -code : code));
        }
    }
};

// ---- sixteen-bit logarithms --------------------------------------------------------------------

// Log16 of a whole row or column statistic. q: int16 codes, -32768 for 0; scale: two fp16 numbers, lowest
// logarithm and step.
struct Log16 {
    static inline void decode(const int16_t* AUTOMAGIC_RESTRICT q, const uint16_t* scale, int64_t count,
                              float* AUTOMAGIC_RESTRICT out) {
        float low = from_fp16(scale[0]), step = from_fp16(scale[1]);
        for (int64_t i = 0; i < count; ++i) {
            float x = quick_exp(static_cast<float>(static_cast<int32_t>(q[i]) + 32767) * step + low);
            out[i] = q[i] == INT16_MIN ? 0.0f : x;
        }
    }

    static AUTOMAGIC_INLINE float logarithm(float x) { return quick_log(smaller(larger(x, 0x1p-126f), 0x1p127f)); }

    // ``base``: random_base(key ^ salt, step); rounds to the nearest where ``random`` is false.
    static inline void encode(const float* AUTOMAGIC_RESTRICT x, int64_t count, bool random, uint32_t base,
                              int16_t* AUTOMAGIC_RESTRICT q, uint16_t* scale) {
        constexpr int64_t part = 2048;  // logarithms that are held until they are coded
        alignas(64) float held[part];
        float high = -0x1p100f, low = 0x1p100f;
        for (int64_t i = 0; i < count; i += part) {
            logarithms(x + i, smaller(part, count - i), held);
            extend(x + i, held, smaller(part, count - i), low, high);
        }
        low = floor_small(smaller(low, high) * 16.0f) / 16.0f;
        float steps = (high - low) * 8.0002441480757f;  // 2^19 / 65534
        float whole = floor_small(steps);
        float step = larger(whole < steps ? whole + 1.0f : whole, 1.0f) * 0x1p-19f;
        scale[0] = to_fp16(low);
        scale[1] = to_fp16(step);
        for (int64_t i = 0; i < count; i += part) {
            if (count > part) logarithms(x + i, smaller(part, count - i), held);
            auto coded = random ? codes<true> : codes<false>;
            coded(x + i, held, static_cast<uint32_t>(i), smaller(part, count - i), low, Divider(step), base, q + i);
        }
    }

    static inline void logarithms(const float* AUTOMAGIC_RESTRICT x, int64_t n, float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i) out[i] = logarithm(x[i]);
    }

    // Range of the logarithms; what is held as 0 has no say in the lower end.
    static inline void extend(const float* AUTOMAGIC_RESTRICT x, const float* AUTOMAGIC_RESTRICT logs, int64_t n,
                              float& bottom, float& top) {
        float low = bottom, high = top;
#pragma omp simd reduction(max : high) reduction(min : low)
        for (int64_t i = 0; i < n; ++i) {
            float l = x[i] >= 0x1p-126f ? logs[i] : 0x1p100f;
            high = high > logs[i] ? high : logs[i];
            low = low < l ? low : l;
        }
        bottom = low, top = high;
    }

    template <bool RANDOM>
    static inline void codes(const float* AUTOMAGIC_RESTRICT x, const float* AUTOMAGIC_RESTRICT logs, uint32_t first,
                             int64_t n, float low, Divider step, uint32_t base, int16_t* AUTOMAGIC_RESTRICT q) {
        int32_t size = static_cast<int32_t>(n);
        for (int32_t i = 0; i < size; ++i) {
            float t = step.divide<true>(logs[i] - low);
            int32_t f = static_cast<int32_t>(t), c = nearest_int(t);  // t is not negative where x counts
            uint32_t bits = random_bits(base, first + static_cast<uint32_t>(i)) & 0x1FFFu;
            float noise = static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-13f;
            if (RANDOM) c = f + (t - static_cast<float>(f) > noise);
            c = smaller(larger(c, 0), 65534) - 32767;
            int32_t live = -static_cast<int32_t>(x[i] >= 0x1p-126f);  // as bits: a branch would keep the loop scalar
            q[i] = static_cast<int16_t>((c & live) | (INT16_MIN & ~live));
        }
    }
};

}  // namespace AUTOMAGIC_ISA
