// How a full-size state is held: the arithmetic of storage/*.py on runs of one flattened tensor.
//
// decode(planes, first, count, block, out): elements [first, first + count) of the tensor, any range;
//     planes point at element 0 and block 0 of the tensor, ``out`` at element ``first``.
// encode(x, first, count, block, planes): ``first`` is a multiple of ``block``; the range ends at the end
//     of a block or of the tensor; ``x`` points at element ``first``.
// ``block`` is min(block_size, numel). Codes equal the reference's bit for bit, given the same fp32
// input; Log8 differs where a logarithm one rounding away falls on the other side of a midpoint.
#pragma once

#include "dynamic_map.h"
#include "elementary.h"
#include "rounding.h"
#include "tables256.h"
#include "tables512.h"

namespace AUTOMAGIC_ISA {

// ---- blocks ---------------------------------------------------------------------------------

// Calls f(block number, position in the run, elements) for the part of every block that lies in a range.
template <class F>
AUTOMAGIC_INLINE void for_blocks(int64_t first, int64_t count, int64_t block, F f) {
    int64_t number = first / block, done = 0;
    int64_t part = smaller(block - (first - number * block), count);
    while (done < count) {
        f(number, done, part);
        done += part;
        ++number;
        part = smaller(block, count - done);
    }
}

// max |x|; NaN where there is one. Magnitudes order like their bits.
AUTOMAGIC_INLINE float absmax(const float* x, int64_t count) {
    int32_t top = 0;
    for (int64_t i = 0; i < count; ++i) top = larger(top, static_cast<int32_t>(bits_of(x[i]) & 0x7FFFFFFFu));
    return float_of(static_cast<uint32_t>(top));
}

struct Range {
    float low, high;
};

// Smallest and largest element and 0.
AUTOMAGIC_INLINE Range range_with_zero(const float* x, int64_t count) {
    int32_t high = 0;
    uint32_t low = 0x80000000u;  // bits of negative numbers grow with their size
    for (int64_t i = 0; i < count; ++i) {
        uint32_t u = bits_of(x[i]);
        high = larger(high, static_cast<int32_t>(u));
        low = low > u ? low : u;
    }
    return {float_of(low), float_of(static_cast<uint32_t>(high))};
}

// A block's scale as the divisor of many numbers: 1 where the whole block is 0. With a fused multiply-add
// x / d takes a product with the rounded 1 / d and one correction, and is still the correctly rounded
// quotient (Markstein 1990); only scales near the ends of the exponent range need a real division.
struct Divider {
    float d, r;
    bool fused;

    AUTOMAGIC_INLINE explicit Divider(float scale) {
        d = scale > 0.0f ? scale : 1.0f;
        r = 1.0f / d;
#if defined(AUTOMAGIC_FMA)
        fused = d > 0x1p-60f && d < 0x1p60f;
#else
        fused = false;
#endif
    }

    template <bool FUSED>
    AUTOMAGIC_INLINE float divide(float x) const {
#if defined(AUTOMAGIC_FMA)
        if (FUSED) {
            float q = x * r;
            return __builtin_fmaf(__builtin_fmaf(-q, d, x), r, q);
        }
#endif
        return x / d;
    }
};

// ---- bitsandbytes' dynamic map -----------------------------------------------------------------

struct DynamicTables {
    alignas(64) float value[256];
    alignas(64) uint32_t cell[CELLS];
#if defined(AUTOMAGIC_TABLES256)
    DecadeShifts shifts;
#endif
#if defined(AUTOMAGIC_TABLES512)
    DecadeLines lines;
    DynamicEncoder::Tables encoder;
    BytePlanes planes;
#endif

    DynamicTables() {
        float middle[128];
        for (int k = 0; k < 128; ++k) {
            float v = float_of(DYNAMIC_MAGNITUDES[k]);
            float next = k < 127 ? float_of(DYNAMIC_MAGNITUDES[k + 1]) : 1.0f;
            value[127 + k] = v;
            value[127 - k] = k ? -v : 0.0f;
            middle[k] = (v + next) / 2;
        }
        value[255] = 1.0f;
        int k = 0;
        for (int32_t i = 0; i < CELLS; ++i) {
            uint32_t start = static_cast<uint32_t>(i + FIRST_CELL) << CELL_BITS;
            uint32_t entry = static_cast<uint32_t>(k) << 18;
            if (k < 128 && bits_of(middle[k]) >> CELL_BITS == start >> CELL_BITS) {
                entry += 0x3FFFFu - (bits_of(middle[k]) & 0x1FFFFu);
                ++k;
            }
            cell[i] = entry;
        }
#if defined(AUTOMAGIC_TABLES256)
        shifts.fill(middle);
#endif
#if defined(AUTOMAGIC_TABLES512)
        lines.fill(middle);
        encoder.fill(lines);
        planes.fill(value);
#endif
    }
};

inline const DynamicTables& dynamic_tables() {
    static const DynamicTables tables;
    return tables;
}

// out = table[q] * scale.
inline void table_decode(const uint8_t* AUTOMAGIC_RESTRICT q, const float* AUTOMAGIC_RESTRICT table, float scale,
                         int64_t count, float* AUTOMAGIC_RESTRICT out) {
    int64_t i = 0;
#if defined(AUTOMAGIC_TABLES256)
    const __m256 factor = _mm256_set1_ps(scale);
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, _mm256_mul_ps(look_up(table, q + i), factor));
#endif
    for (; i < count; ++i) out[i] = table[q[i]] * scale;
}

struct Dynamic8 {
    // q: uint8 codes; scale: fp32 max |x| of each block.
    static inline void decode(const uint8_t* q, const float* scale, int64_t first, int64_t count, int64_t block,
                              float* out) {
#if defined(AUTOMAGIC_TABLES512)
        if (has_byte_tables()) return byte_decode(q, dynamic_tables().planes, scale, first, count, block, out);
        const OddTable table(dynamic_tables().value + 127);
        for_blocks(first, count, block, [=, &table](int64_t b, int64_t at, int64_t n) {
            odd_decode(q + first + at, 127, table, scale[b], n, out + at);
        });
#else
        const float* table = dynamic_tables().value;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            table_decode(q + first + at, table, scale[b], n, out + at);
        });
#endif
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, uint8_t* q,
                              float* scale) {
#if defined(AUTOMAGIC_TABLES512)
        const DynamicEncoder encoder(dynamic_tables().encoder);
#elif defined(AUTOMAGIC_TABLES256)
        const DynamicEncoder encoder(dynamic_tables().shifts);
#else
        const Cells encoder;
#endif
        const uint32_t* cell = dynamic_tables().cell;
        for_blocks(first, count, block, [=, &encoder](int64_t b, int64_t at, int64_t n) {
            float top = absmax(x + at, n), inverse = 1.0f / (top > 0.0f ? top : 1.0f);
            scale[b] = top;
            if (inverse <= 0x1.fffffep127f)
                encoder.run(x + at, inverse, n, q + first + at, cell);
            else  // a block below 2^-128: the reciprocal overflows, and the reference keeps only signs
                for (int64_t i = at; i < at + n; ++i) q[first + i] = static_cast<uint8_t>(x[i] > 0.0f ? 128 : 127);
        });
    }

    struct Cells {
        inline void run(const float* AUTOMAGIC_RESTRICT x, float inverse, int64_t n, uint8_t* AUTOMAGIC_RESTRICT q,
                        const uint32_t* AUTOMAGIC_RESTRICT cell) const {
            for (int64_t i = 0; i < n; ++i) q[i] = static_cast<uint8_t>(dynamic_code(x[i] * inverse, cell));
        }
    };
};

// ---- the documents' affine code ----------------------------------------------------------------

struct Affine8 {
    // q: uint8 codes; scale: fp32 (max - min) / 255, zero: uint8 code of 0, of each block.
    static inline void decode(const uint8_t* q, const float* scale, const uint8_t* zero, int64_t first,
                              int64_t count, int64_t block, float* out) {
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            decode_block(q + first + at, scale[b], zero[b], n, out + at);
        });
    }

    static inline void decode_block(const uint8_t* AUTOMAGIC_RESTRICT q, float scale, int32_t zero, int64_t n,
                                    float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(static_cast<int32_t>(q[i]) - zero) * scale;
    }

    // How a block is coded; ``zero`` is a whole number.
    struct Rule {
        float scale, zero;
        Divider by;
    };

    static AUTOMAGIC_INLINE Rule rule(const float* x, int64_t n) {
        Range r = range_with_zero(x, n);
        float scale = (r.high - r.low) / 255.0f;
        Divider by(scale);
        return {scale, nearest(-r.low / by.d), by};
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, uint8_t* q,
                              float* scale, uint8_t* zero) {
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            const Rule found = rule(x + at, n);
            scale[b] = found.scale, zero[b] = static_cast<uint8_t>(static_cast<int32_t>(found.zero));
            encode_block(x + at, found, n, q + first + at);
        });
    }

    static AUTOMAGIC_INLINE void encode_block(const float* x, const Rule& r, int64_t n, uint8_t* q) {
        r.by.fused ? encode_block<true>(x, r.by, r.zero, n, q) : encode_block<false>(x, r.by, r.zero, n, q);
    }

    template <bool FUSED>
    static inline void encode_block(const float* AUTOMAGIC_RESTRICT x, Divider by, float zero, int64_t n,
                                    uint8_t* AUTOMAGIC_RESTRICT q) {
        for (int64_t i = 0; i < n; ++i) {
            float code = nearest(by.divide<FUSED>(x[i])) + zero;
            q[i] = static_cast<uint8_t>(static_cast<int32_t>(smaller(larger(code, 0.0f), 255.0f)));
        }
    }
};

// ---- softsign code -----------------------------------------------------------------------------

// Value of a code and half its width, both for scale 1, by the code's bits.
struct SoftsignTables {
    alignas(64) float value[256];
    alignas(64) float width[256];
#if defined(AUTOMAGIC_TABLES512)
    BytePlanes planes;
#endif

    SoftsignTables() {
        for (int i = 0; i < 256; ++i) {
            int q = i < 128 ? i : i - 256;
            float y = static_cast<float>(q) / 127.0f, size = y < 0.0f ? -y : y;
            value[i] = (1.0f / (2.0f - size)) * y;
            float edge = smaller((static_cast<float>(q < 0 ? -q : q) + 0.5f) / 127.0f, 1.0f);
            width[i] = 1.0f / ((2.0f - edge) * (2.0f - edge));
        }
#if defined(AUTOMAGIC_TABLES512)
        planes.fill(value);
#endif
    }
};

inline const SoftsignTables& softsign_tables() {
    static const SoftsignTables tables;
    return tables;
}

struct Softsign8 {
    // q: int8 codes; scale: fp32 max |x| of each block.
    static inline void decode(const uint8_t* q, const float* scale, int64_t first, int64_t count, int64_t block,
                              float* out) {
#if defined(AUTOMAGIC_TABLES512)
        if (has_byte_tables()) return byte_decode(q, softsign_tables().planes, scale, first, count, block, out);
#endif
        const float* table = softsign_tables().value;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            table_decode(q + first + at, table, scale[b], n, out + at);
        });
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, uint8_t* q,
                              float* scale) {
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            scale[b] = absmax(x + at, n);
            Divider by(scale[b]);
            if (by.fused)
                encode_block<true>(x + at, by, n, q + first + at);
            else
                encode_block<false>(x + at, by, n, q + first + at);
        });
    }

    template <bool FUSED>
    static inline void encode_block(const float* AUTOMAGIC_RESTRICT x, Divider by, int64_t n,
                                    uint8_t* AUTOMAGIC_RESTRICT q) {
        for (int64_t i = 0; i < n; ++i) {
            float v = by.divide<FUSED>(x[i]);
            float bent = (1.0f / (float_of(bits_of(v) & 0x7FFFFFFFu) + 1.0f)) * v;
            q[i] = static_cast<uint8_t>(nearest_int(bent * 254.0f));
        }
    }
};

// ---- logarithmic code --------------------------------------------------------------------------

struct Log8 {
    static constexpr float octaves = 19.40812180f, least = 0x1p-126f;  // 28 ln 2
    static constexpr int64_t part = 4096;

    // q: uint8 codes; scale: fp32 [blocks, 2], lowest logarithm and step of each block.
    static inline void decode(const uint8_t* q, const float* scale, int64_t first, int64_t count, int64_t block,
                              float* out) {
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            decode_block(q + first + at, scale[2 * b], scale[2 * b + 1], n, out + at);
        });
    }

    static inline void decode_block(const uint8_t* AUTOMAGIC_RESTRICT q, float low, float step, int64_t n,
                                    float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i)
            out[i] = exp_float(static_cast<float>(static_cast<int32_t>(q[i])) * step + low);
    }

    static inline void encode(const float* x, int64_t first, int64_t count, int64_t block, uint8_t* q,
                              float* scale) {
        alignas(64) float logs[part];
        float* held = logs;
        for_blocks(first, count, block, [=](int64_t b, int64_t at, int64_t n) {
            int32_t top = INT32_MIN, bottom = INT32_MAX;
            for (int64_t i = 0; i < n; i += part) {
                int64_t size = smaller(part, n - i);
                logarithms(x + at + i, size, held);
                extend(held, size, bottom, top);
            }
            float high = float_of(unordered(top));
            float low = larger(float_of(unordered(bottom)), high - octaves);
            float step = (high - low) / 255.0f;
            scale[2 * b] = low;
            scale[2 * b + 1] = step;
            for (int64_t i = 0; i < n; i += part) {
                int64_t size = smaller(part, n - i);
                if (n > part) logarithms(x + at + i, size, held);
                quantise(held, low, Divider(step), size, q + first + at + i);
            }
        });
    }

    static inline void logarithms(const float* AUTOMAGIC_RESTRICT x, int64_t n, float* AUTOMAGIC_RESTRICT out) {
        for (int64_t i = 0; i < n; ++i) out[i] = log_normal(larger(x[i], least));
    }

    static inline void quantise(const float* AUTOMAGIC_RESTRICT logs, float low, Divider by, int64_t n,
                                uint8_t* AUTOMAGIC_RESTRICT q) {
        for (int64_t i = 0; i < n; ++i) {
            float code = (logs[i] - low) / by.d;
            q[i] = static_cast<uint8_t>(nearest_int(smaller(larger(code, 0.0f), 255.0f)));
        }
    }

    // Integers that order like the numbers: those of negative numbers turned round.
    static AUTOMAGIC_INLINE int32_t ordered(float x) {
        int32_t i = static_cast<int32_t>(bits_of(x));
        return i ^ ((i >> 31) & 0x7FFFFFFF);
    }
    static AUTOMAGIC_INLINE uint32_t unordered(int32_t i) {
        return static_cast<uint32_t>(i ^ ((i >> 31) & 0x7FFFFFFF));
    }

    static inline void extend(const float* x, int64_t n, int32_t& bottom, int32_t& top) {
        int32_t low = bottom, high = top;
        for (int64_t i = 0; i < n; ++i) {
            low = smaller(low, ordered(x[i]));
            high = larger(high, ordered(x[i]));
        }
        bottom = low;
        top = high;
    }
};

}  // namespace AUTOMAGIC_ISA
