// Lookups in tables of 128 numbers held in AVX-512 registers: a gather takes three times as long.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define AUTOMAGIC_TABLES512 1

#include "rounding.h"

namespace AUTOMAGIC_ISA {

AUTOMAGIC_INLINE __mmask16 lanes(int64_t left) {
    return left >= 16 ? static_cast<__mmask16>(0xFFFF) : static_cast<__mmask16>((1u << left) - 1u);
}

AUTOMAGIC_INLINE __m512i bytes(const uint8_t* q, __mmask16 mask) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, q));
}

struct Table128 {
    __m512 part[8];

    AUTOMAGIC_INLINE explicit Table128(const void* table) {
        const float* from = static_cast<const float*>(table);
        for (int i = 0; i < 8; ++i) part[i] = _mm512_loadu_ps(from + 16 * i);
    }

    // Entries of indices 0 .. 127; higher bits are ignored.
    AUTOMAGIC_INLINE __m512 at(__m512i index) const {
        __mmask16 odd = _mm512_test_epi32_mask(index, _mm512_set1_epi32(32));
        __mmask16 high = _mm512_test_epi32_mask(index, _mm512_set1_epi32(64));
        __m512 low = _mm512_mask_mov_ps(_mm512_permutex2var_ps(part[0], index, part[1]), odd,
                                        _mm512_permutex2var_ps(part[2], index, part[3]));
        __m512 top = _mm512_mask_mov_ps(_mm512_permutex2var_ps(part[4], index, part[5]), odd,
                                        _mm512_permutex2var_ps(part[6], index, part[7]));
        return _mm512_mask_mov_ps(low, high, top);
    }
};

// An odd table of 257 values, those of -128 .. 128: 128 of them in registers, and the last.
struct OddTable {
    Table128 table;
    __m512 last;

    // ``value``: entries of 0 .. 128.
    AUTOMAGIC_INLINE explicit OddTable(const float* value) : table(value), last(_mm512_set1_ps(value[128])) {}

    AUTOMAGIC_INLINE __m512 size(__m512i magnitude) const {
        __mmask16 end = _mm512_test_epi32_mask(magnitude, _mm512_set1_epi32(128));
        return _mm512_mask_mov_ps(table.at(magnitude), end, last);
    }

    AUTOMAGIC_INLINE __m512 at(__m512i code) const {
        __m512i sign = _mm512_and_si512(code, _mm512_set1_epi32(INT32_MIN));
        return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(size(_mm512_abs_epi32(code))), sign));
    }
};

// out = table[q - offset] * scale, of unsigned codes with the value 0 at ``offset``.
inline void odd_decode(const uint8_t* q, int32_t offset, const OddTable& table, float scale, int64_t count,
                       float* out) {
    __m512 factor = _mm512_set1_ps(scale);
    __m512i zero = _mm512_set1_epi32(offset);
    for (int64_t i = 0; i < count; i += 16) {
        __mmask16 mask = lanes(count - i);
        __m512i code = _mm512_sub_epi32(bytes(q + i, mask), zero);
        _mm512_mask_storeu_ps(out + i, mask, _mm512_mul_ps(table.at(code), factor));
    }
}

// A table of 256 numbers, looked up by byte: four planes of bytes, each in four registers. Every processor with
// AVX-512 since 2018 but Cascade Lake and Cooper Lake has the instruction.
#define AUTOMAGIC_BYTES512 __attribute__((target("avx512vbmi,avx512f,avx512bw,avx512dq,avx512vl"), noinline))
inline bool has_byte_tables() {
    static const bool has = __builtin_cpu_supports("avx512vbmi");
    return has;
}

struct BytePlanes {
    alignas(64) uint8_t plane[4][256];

    void fill(const float* table) {
        for (int i = 0; i < 256; ++i)
            for (int p = 0; p < 4; ++p) plane[p][i] = static_cast<uint8_t>(bits_of(table[i]) >> (8 * p));
    }
};

// out[i] = table[q[first + i]] * scale[block of first + i], over any range.
AUTOMAGIC_BYTES512 inline void byte_decode(const uint8_t* q, const BytePlanes& table, const float* scale, int64_t first,
                                           int64_t count, int64_t block, float* out) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i t[4][4];
    for (int p = 0; p < 4; ++p)
        for (int i = 0; i < 4; ++i) t[p][i] = _mm512_load_si512(table.plane[p] + 64 * i);
    int64_t number = first / block, end = smaller((number + 1) * block - first, count);
    for (int64_t i = 0; i < count; ++number, end = smaller(end + block, count)) {
        const __m512 factor = _mm512_set1_ps(scale[number]);
        for (; i < end; i += 64) {
            int64_t left = end - i;
            __mmask64 there = left >= 64 ? ~static_cast<__mmask64>(0) : (static_cast<__mmask64>(1) << left) - 1;
            // Interleaving works on quarters of a register: this order makes what comes out consecutive.
            __m512i code = _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(there, q + first + i));
            __mmask64 high = _mm512_movepi8_mask(code);
            __m512i b[4];
            for (int p = 0; p < 4; ++p)
                b[p] = _mm512_mask_blend_epi8(high, _mm512_permutex2var_epi8(t[p][0], code, t[p][1]),
                                              _mm512_permutex2var_epi8(t[p][2], code, t[p][3]));
            __m512i low = _mm512_unpacklo_epi8(b[0], b[1]), low2 = _mm512_unpacklo_epi8(b[2], b[3]);
            __m512i top = _mm512_unpackhi_epi8(b[0], b[1]), top2 = _mm512_unpackhi_epi8(b[2], b[3]);
            __m512 x[4] = {_mm512_castsi512_ps(_mm512_unpacklo_epi16(low, low2)),
                           _mm512_castsi512_ps(_mm512_unpackhi_epi16(low, low2)),
                           _mm512_castsi512_ps(_mm512_unpacklo_epi16(top, top2)),
                           _mm512_castsi512_ps(_mm512_unpackhi_epi16(top, top2))};
            float* to = out + i;
            if (left >= 64) {
                for (int k = 0; k < 4; ++k) _mm512_storeu_ps(to + 16 * k, _mm512_mul_ps(x[k], factor));
            } else {
                for (int k = 0; 16 * k < left; ++k)
                    _mm512_mask_storeu_ps(to + 16 * k, lanes(left - 16 * k), _mm512_mul_ps(x[k], factor));
            }
        }
        i = end;
    }
}

// The dynamic encoder. A number's octave names its decade but for one comparison; in a decade codes are
// equally spaced, which gives a code or the one below it; its upper midpoint decides.
struct DynamicEncoder {
    Table128 middle;
    __m512 border[2], slope[2], start[2];

    // ``tables``: 128 midpoints, then 32 borders, 32 slopes and 32 starts, by octave.
    AUTOMAGIC_INLINE explicit DynamicEncoder(const float* tables) : middle(tables) {
        for (int i = 0; i < 2; ++i) {
            border[i] = _mm512_loadu_ps(tables + 128 + 16 * i);
            slope[i] = _mm512_loadu_ps(tables + 160 + 16 * i);
            start[i] = _mm512_loadu_ps(tables + 192 + 16 * i);
        }
    }

    static constexpr int32_t first_octave = 104;

    static void fill(const float* middles, float* tables) {
        double decade[8];
        decade[0] = 1e-6;
        for (int e = 1; e < 8; ++e) decade[e] = decade[e - 1] * 10;
        for (int i = 0; i < 128; ++i) tables[i] = middles[i];
        for (int o = 0; o < 32; ++o) {
            double low = float_of(static_cast<uint32_t>(o + first_octave) << 23);
            int e = 0;
            while (e < 6 && low >= decade[e]) ++e;
            double count = static_cast<double>(1 << e);
            tables[128 + o] = e < 6 ? static_cast<float>(decade[e]) : 3e38f;
            tables[160 + o] = static_cast<float>(count / (0.9 * decade[e]));
            tables[192 + o] = static_cast<float>(count * 8 / 9);
        }
    }

    AUTOMAGIC_INLINE __m512i code(__m512 v) const {
        __m512i u = _mm512_castps_si512(v);
        __mmask16 negative = _mm512_movepi32_mask(u);
        __m512i size = _mm512_and_si512(u, _mm512_set1_epi32(INT32_MAX));
        __m512 a = _mm512_castsi512_ps(size);
        __m512i octave = _mm512_srli_epi32(size, 23);
        octave = _mm512_sub_epi32(_mm512_max_epi32(octave, _mm512_set1_epi32(first_octave)),
                                  _mm512_set1_epi32(first_octave));
        __mmask16 above = _mm512_cmp_ps_mask(a, _mm512_permutex2var_ps(border[0], octave, border[1]), _CMP_GT_OQ);
        __m512 by = _mm512_permutex2var_ps(slope[0], octave, slope[1]);
        __m512 from = _mm512_permutex2var_ps(start[0], octave, start[1]);
        by = _mm512_mask_mul_ps(by, above, by, _mm512_set1_ps(0.2f));
        from = _mm512_mask_add_ps(from, above, from, from);
        from = _mm512_sub_ps(from, _mm512_set1_ps(0.5f));
        __m512i k = _mm512_cvttps_epi32(_mm512_fmadd_ps(a, by, from));
        // On a tie the lower code: below 0 that is the larger number.
        __m512i reached = _mm512_mask_add_epi32(size, negative, size, _mm512_set1_epi32(1));
        __mmask16 next = _mm512_cmpgt_epi32_mask(reached, _mm512_castps_si512(middle.at(k)));
        k = _mm512_mask_add_epi32(k, next, k, _mm512_set1_epi32(1));
        __m512i zero = _mm512_set1_epi32(127);
        k = _mm512_mask_min_epi32(k, negative, k, zero);  // -1 has no code of its own
        return _mm512_mask_sub_epi32(_mm512_add_epi32(zero, k), negative, zero, k);
    }

    inline void run(const float* x, float inverse, int64_t count, uint8_t* q) const {
        __m512 factor = _mm512_set1_ps(inverse);
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        int64_t i = 0;
        for (; i + 64 <= count; i += 64) {
            __m512i c[4];
            for (int j = 0; j < 4; ++j) c[j] = code(_mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * j), factor));
            __m512i low = _mm512_packus_epi32(c[0], c[1]), high = _mm512_packus_epi32(c[2], c[3]);
            __m512i packed = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
            _mm512_storeu_si512(q + i, packed);
        }
        for (; i < count; i += 16) {
            __mmask16 mask = lanes(count - i);
            __m512i c = code(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + i), factor));
            _mm_mask_storeu_epi8(q + i, mask, _mm512_cvtepi32_epi8(c));
        }
    }
};

}  // namespace AUTOMAGIC_ISA

#endif
