// Lookups in tables of 128 numbers held in AVX-512 registers: a gather takes three times as long.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define AUTOMAGIC_TABLES512 1

#include "dynamic_map.h"
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
#if defined(AUTOMAGIC_NO_BYTE_TABLES)  // tests: the way of a processor without them
    return false;
#else
    static const bool has = __builtin_cpu_supports("avx512vbmi");
    return has;
#endif
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

// The dynamic encoder (DecadeLines): a number's octave names its decade but for one comparison.
struct DynamicEncoder {
    static constexpr int32_t first_octave = 104, unit = DecadeLines::unit, unsure = DecadeLines::unsure;

    struct Tables {
        alignas(64) float border[32], slope[32], start[32];  // of the octaves: a lookup heeds five bits
        float steep_start;

        void fill(const DecadeLines& lines) {
            for (int o = first_octave; o < first_octave + 32; ++o) {
                int e = 0;
                while (e < DecadeLines::decades - 1 && float_of(static_cast<uint32_t>(o) << 23) > lines.border[e]) ++e;
                border[o & 31] = lines.border[e], slope[o & 31] = lines.slope[e], start[o & 31] = lines.start[e];
            }
            steep_start = lines.steep_start;
        }
    };

    __m512 border[2], slope[2], start[2], steep_start;

    AUTOMAGIC_INLINE explicit DynamicEncoder(const Tables& from) {
        for (int i = 0; i < 2; ++i) {
            border[i] = _mm512_load_ps(from.border + 16 * i);
            slope[i] = _mm512_load_ps(from.slope + 16 * i);
            start[i] = _mm512_load_ps(from.start + 16 * i);
        }
        steep_start = _mm512_set1_ps(from.steep_start);
    }

    // Units (plus `unsure`) of |v|; a negative number takes the lower code on a tie, that of the larger |v|.
    AUTOMAGIC_INLINE __m512i units(__m512 v, __mmask16& negative) const {
        __m512i u = _mm512_castps_si512(v), one = _mm512_set1_epi32(1);
        negative = _mm512_movepi32_mask(u);
        u = _mm512_and_si512(u, _mm512_set1_epi32(INT32_MAX));
        u = _mm512_mask_add_epi32(u, negative, u, one);
        __m512 a = _mm512_castsi512_ps(u);
        __m512i octave = _mm512_max_epi32(_mm512_srli_epi32(u, 23), _mm512_set1_epi32(first_octave));
        __mmask16 above = _mm512_cmp_ps_mask(a, _mm512_permutex2var_ps(border[0], octave, border[1]), _CMP_GT_OQ);
        octave = _mm512_mask_add_epi32(octave, above, octave, one);  // the next one lies in the next decade
        __m512 from = _mm512_permutex2var_ps(start[0], octave, start[1]);
        __m512 y = _mm512_fmadd_ps(a, _mm512_permutex2var_ps(slope[0], octave, slope[1]), from);
        // A decade's last code reaches into the next decade: up to half a code below 2^(e + 1) = 2.25 start.
        y = _mm512_min_ps(y, _mm512_fmadd_ps(from, _mm512_set1_ps(2.25f), _mm512_set1_ps(-0.5f * unit)));
        y = _mm512_max_ps(y, _mm512_fmadd_ps(a, _mm512_set1_ps(128.0f * unit), steep_start));
        return _mm512_cvttps_epi32(y);
    }

    static AUTOMAGIC_INLINE __mmask16 doubtful(__m512i y) {
        return _mm512_testn_epi32_mask(y, _mm512_set1_epi32(unit - 2 * unsure));
    }

    inline void run(const float* x, float inverse, int64_t count, uint8_t* q, const uint32_t* cell) const {
        const __m512 factor = _mm512_set1_ps(inverse);
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const __m512i zero = _mm512_set1_epi8(127);
        for (int64_t i = 0; i < count; i += 64) {
            __m512i k[4];
            __mmask16 negative[4], doubt[4];
            int64_t left = count - i;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const float* from = x + i + 16 * j;
                __m512 v = left >= 64 ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(some(left - 16 * j), from);
                __m512i y = units(_mm512_mul_ps(v, factor), negative[j]);
                doubt[j] = doubtful(y);
                k[j] = _mm512_srli_epi32(y, 16);
            }
            __m512i low = _mm512_packus_epi32(k[0], k[1]), high = _mm512_packus_epi32(k[2], k[3]);
            __m512i packed = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high));
            __mmask64 below = joined(negative);
            // -1 has no code of its own.
            __m512i code = _mm512_mask_sub_epi8(_mm512_add_epi8(packed, zero), below, zero, _mm512_min_epu8(packed, zero));
            if (left >= 64)
                _mm512_storeu_si512(q + i, code);
            else
                _mm512_mask_storeu_epi8(q + i, (1ull << left) - 1, code);
            if (__builtin_expect((doubt[0] | doubt[1] | doubt[2] | doubt[3]) == 0, 1)) continue;
            for (uint64_t rest = joined(doubt); rest != 0; rest &= rest - 1) {
                int64_t at = i + __builtin_ctzll(rest);
                if (at < count) q[at] = static_cast<uint8_t>(dynamic_code(x[at] * inverse, cell));
            }
        }
    }

    static AUTOMAGIC_INLINE __mmask16 some(int64_t left) { return left > 0 ? lanes(left) : static_cast<__mmask16>(0); }

    static AUTOMAGIC_INLINE __mmask64 joined(const __mmask16* m) {
        return _mm512_kunpackd(_mm512_kunpackw(m[3], m[2]), _mm512_kunpackw(m[1], m[0]));
    }
};

}  // namespace AUTOMAGIC_ISA

#endif
