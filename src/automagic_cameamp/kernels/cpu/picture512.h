// The neighbourhoods of stencil.h in AVX-512: a strip of columns is walked from row to row, so that a row is
// loaded once and what its two neighbours need of it stays in registers.
#pragma once

#include "tables512.h"

#if defined(AUTOMAGIC_TABLES512)

namespace AUTOMAGIC_ISA {

// Elements of a tensor of any type; only the lanes of the mask are touched.
template <int TYPE>
AUTOMAGIC_INLINE __m512 load_lanes(const void* p, int64_t at, __mmask16 mask) {
    if (TYPE == F32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(p) + at);
    __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(p) + at);
    if (TYPE == F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// What the output of a row takes from its own row, from the one above and from the one below.
struct PictureRow {
    __m512 x, across, smooth;

    // Beyond the border of the picture lies its last column again.
    template <int TYPE>
    AUTOMAGIC_INLINE void read(const void* g, int64_t at, __mmask16 mask, __mmask16 left, __mmask16 right) {
        x = load_lanes<TYPE>(g, at, mask);
        __m512 before = _mm512_mask_mov_ps(x, left, load_lanes<TYPE>(g, at - 1, left));
        __m512 after = _mm512_mask_mov_ps(x, right, load_lanes<TYPE>(g, at + 1, right));
        across = _mm512_add_ps(_mm512_sub_ps(before, x), _mm512_sub_ps(after, x));
        smooth = _mm512_fmadd_ps(across, _mm512_set1_ps(0.25f), x);
    }
};

// Rows [first, end) of a tile of a picture with rows [top, bottom) of n elements; see picture_tile. A strip of
// WIDE registers from column c on.
template <int TYPE, int WIDE>
inline double picture_strip(const void* g, int64_t first, int64_t end, int64_t top, int64_t bottom, int64_t n,
                            int64_t c, float penalty, float* filtered, float* laplace) {
    PictureRow above[WIDE], here[WIDE], below[WIDE];
    __mmask16 mask[WIDE], left[WIDE], right[WIDE];
    __m512 squares[WIDE], quarter = _mm512_set1_ps(0.25f), share = _mm512_set1_ps(penalty);
    for (int i = 0; i < WIDE; ++i) {
        int64_t there = n - c - 16 * i;
        mask[i] = lanes(there);
        left[i] = c + i > 0 ? mask[i] : static_cast<__mmask16>(mask[i] & ~1);
        right[i] = there > 16 ? mask[i] : static_cast<__mmask16>(mask[i] >> 1);
        squares[i] = _mm512_setzero_ps();
        int64_t at = first * n + c + 16 * i;
        here[i].template read<TYPE>(g, at, mask[i], left[i], right[i]);
        above[i] = here[i];
        if (first > top) above[i].template read<TYPE>(g, at - n, mask[i], left[i], right[i]);
    }
    for (int64_t r = first; r < end; ++r) {
        for (int i = 0; i < WIDE; ++i) {
            int64_t at = r * n + c + 16 * i, to = at - first * n;
            below[i] = here[i];
            if (r + 1 < bottom) below[i].template read<TYPE>(g, at + n, mask[i], left[i], right[i]);
            if (filtered != nullptr) {
                __m512 h = here[i].smooth, x = here[i].x;
                __m512 down = _mm512_add_ps(_mm512_sub_ps(above[i].smooth, h), _mm512_sub_ps(below[i].smooth, h));
                h = _mm512_fmadd_ps(down, quarter, h);
                _mm512_mask_storeu_ps(filtered + to, mask[i], _mm512_fmadd_ps(share, _mm512_sub_ps(h, x), x));
            }
            if (laplace != nullptr) {
                __m512 x = here[i].x;
                __m512 down = _mm512_add_ps(_mm512_sub_ps(above[i].x, x), _mm512_sub_ps(below[i].x, x));
                __m512 l = _mm512_add_ps(here[i].across, down);
                _mm512_mask_storeu_ps(laplace + to, mask[i], l);
                squares[i] = _mm512_mask3_fmadd_ps(l, l, squares[i], mask[i]);
            }
            above[i] = here[i];
            here[i] = below[i];
        }
    }
    double sum = 0;
    for (int i = 0; i < WIDE; ++i) sum += _mm512_reduce_add_ps(squares[i]);
    return sum;
}

template <int TYPE>
inline double picture_strips(const void* g, int64_t first, int64_t end, int64_t top, int64_t bottom, int64_t n,
                             float penalty, float* filtered, float* laplace) {
    double sum = 0;
    int64_t c = 0;
    for (; n - c > 16; c += 32)
        sum += picture_strip<TYPE, 2>(g, first, end, top, bottom, n, c, penalty, filtered, laplace);
    if (c < n) sum += picture_strip<TYPE, 1>(g, first, end, top, bottom, n, c, penalty, filtered, laplace);
    return sum;
}

// Filtered rows [first, end) and their Laplacian, where wanted; the planes start at that row. Returns the sum of
// squares of the Laplacian.
inline double picture_tile(const void* g, int32_t type, int64_t first, int64_t end, int64_t top, int64_t bottom,
                           int64_t n, float penalty, float* filtered, float* laplace) {
    if (type == F32) return picture_strips<F32>(g, first, end, top, bottom, n, penalty, filtered, laplace);
    if (type == BF16) return picture_strips<BF16>(g, first, end, top, bottom, n, penalty, filtered, laplace);
    return picture_strips<F16>(g, first, end, top, bottom, n, penalty, filtered, laplace);
}

AUTOMAGIC_INLINE __m512i mix_lanes(__m512i x) {
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(static_cast<int>(MIX_A)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(static_cast<int>(MIX_B)));
    return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
}

// edge_gains of stencil.h on a history of four bits, read and written here: `first` is even.
inline void edges_512(uint8_t* plane, const float* laplace, float scale, float threshold, float penalty,
                      int64_t first, int64_t n, uint32_t base, float* factor) {
    alignas(64) float levels[16];
    for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(i) / 15.0f;
    const __m512 value = _mm512_load_ps(levels), one = _mm512_set1_ps(1.0f), rest = _mm512_set1_ps(scale + 1e-38f);
    const __m512 least = _mm512_set1_ps(threshold), weight = _mm512_set1_ps(-penalty), tenth = _mm512_set1_ps(0.1f);
    const __m512i key = _mm512_set1_epi32(static_cast<int>(base)), stride = _mm512_set1_epi32(static_cast<int>(16 * GOLDEN));
    __m512i place = _mm512_mullo_epi32(
        _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(first)),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)),
        _mm512_set1_epi32(static_cast<int>(GOLDEN)));
    uint8_t* byte = plane + (first >> 1);
    for (int64_t i = 0; i < n; i += 32, byte += 16) {
        int64_t pairs = (n - i + 1) >> 1;
        __mmask16 bytes_there = lanes(pairs);
        __m128i packed = _mm_maskz_loadu_epi8(bytes_there, byte);
        __m128i low = _mm_and_si128(packed, _mm_set1_epi8(15));
        __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), _mm_set1_epi8(15));
        __m128i codes[2] = {_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)};
        for (int k = 0; k < 2; ++k) {
            __mmask16 there = n - i - 16 * k > 0 ? lanes(n - i - 16 * k) : static_cast<__mmask16>(0);
            __m512 edge = _mm512_abs_ps(_mm512_maskz_loadu_ps(there, laplace + i + 16 * k));
            // A quotient in a third of a division's time: a step of Newton's for 1 / d, one for the quotient.
            __m512 d = _mm512_add_ps(edge, rest), y = _mm512_rcp14_ps(d);
            y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(d, y, one), y);
            __m512 e = _mm512_mul_ps(edge, y);
            e = _mm512_fmadd_ps(_mm512_fnmadd_ps(e, d, edge), y, e);
            __m512 old = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes[k]), value);
            __m512 hit = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(e, least, _CMP_GT_OQ), e);
            __m512 h = _mm512_fmadd_ps(tenth, _mm512_sub_ps(hit, old), old);
            __m512 gain = _mm512_fmadd_ps(weight, h, one);
            float* to = factor + i + 16 * k;
            _mm512_mask_storeu_ps(to, there, _mm512_mul_ps(_mm512_maskz_loadu_ps(there, to), gain));
            __m512i bits = _mm512_and_si512(mix_lanes(_mm512_xor_si512(key, place)), _mm512_set1_epi32(0x1FFF));
            place = _mm512_add_epi32(place, stride);
            __m512 noise = _mm512_mul_ps(_mm512_cvtepi32_ps(bits), _mm512_set1_ps(0x1p-13f));
            __m512i c = _mm512_cvttps_epi32(_mm512_add_ps(noise, _mm512_mul_ps(h, _mm512_set1_ps(15.0f))));
            c = _mm512_min_epi32(_mm512_max_epi32(c, _mm512_setzero_si512()), _mm512_set1_epi32(15));
            // Behind the end of the tensor the half byte is 0.
            codes[k] = _mm512_maskz_cvtepi32_epi8(there, c);
        }
        const __m128i places = _mm_set1_epi16(0x1001);
        __m128i out = _mm_packus_epi16(_mm_maddubs_epi16(codes[0], places), _mm_maddubs_epi16(codes[1], places));
        _mm_mask_storeu_epi8(byte, bytes_there, out);
    }
}

}  // namespace AUTOMAGIC_ISA

#endif
