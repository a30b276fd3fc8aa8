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

constexpr int64_t PICTURE_AHEAD = 256;  // elements; further than the processor's own prefetch at the end of a page

// Where the strip of a picture lies: on both borders, as all of a row of one register; on one of them; or within.
enum Place { ROW, BORDER, WITHIN };

// Rows [first, end) of a picture with rows [top, bottom) of n columns.
struct Picture {
    const void* g;
    int64_t first, end, top, bottom, n;
    float penalty;
    float *filtered, *laplace;
    bool across;  // whether elements of a row are neighbours
};

// One register of a row of the picture, walked downwards. With a = x(left) + x(right) - 2 x and D the second
// difference from row to row, the Laplacian is L = a + D x, and one quarter of it, with D a / 16, the step to the
// filtered picture. A difference to the row below serves both rows.
template <int TYPE, int PLACE>
struct Column {
    __m512 x, across, fall, fall_across, squares;  // fall: differences to the row above
    __mmask16 mask, left, right;

    // Beyond the border of the picture lies its last column again.
    AUTOMAGIC_INLINE void read(const void* g, int64_t at, __m512& here, __m512& second) const {
        __m512 before, after;
        if (PLACE == WITHIN) {
            here = load_lanes<TYPE>(g, at, 0xFFFF);
            before = load_lanes<TYPE>(g, at - 1, 0xFFFF);
            after = load_lanes<TYPE>(g, at + 1, 0xFFFF);
        } else if (PLACE == ROW) {
            here = load_lanes<TYPE>(g, at, 0xFFFF);
            before = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), here);
            after = _mm512_permutexvar_ps(_mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15), here);
        } else {
            here = load_lanes<TYPE>(g, at, mask);
            before = _mm512_mask_mov_ps(here, left, load_lanes<TYPE>(g, at - 1, left));
            after = _mm512_mask_mov_ps(here, right, load_lanes<TYPE>(g, at + 1, right));
        }
        second = _mm512_add_ps(_mm512_sub_ps(before, here), _mm512_sub_ps(after, here));
    }

    AUTOMAGIC_INLINE void begin(const Picture& p, int64_t c) {
        int64_t there = p.n - c, at = p.first * p.n + c;
        mask = lanes(there);
        left = !p.across ? 0 : c > 0 ? mask : static_cast<__mmask16>(mask & ~1);
        right = !p.across ? 0 : there > 16 ? mask : static_cast<__mmask16>(mask >> 1);
        squares = fall = fall_across = _mm512_setzero_ps();
        read(p.g, at, x, across);
        if (p.first == p.top) return;
        __m512 above, above_across;
        read(p.g, at - p.n, above, above_across);
        fall = _mm512_sub_ps(x, above), fall_across = _mm512_sub_ps(across, above_across);
    }

    AUTOMAGIC_INLINE void put(float* to, __m512 y) const {
        if (PLACE == BORDER)
            _mm512_mask_storeu_ps(to, mask, y);
        else
            _mm512_storeu_ps(to, y);
    }

    // The row at element `at`, the element `to` of the planes; `last`: no row is below.
    AUTOMAGIC_INLINE void row(const Picture& p, int64_t at, int64_t to, bool last, __m512 quarter, __m512 sixteenth) {
        __m512 next = _mm512_setzero_ps(), next_across = next, below = x, below_across = across;
        if (!last) {
            AUTOMAGIC_PREFETCH(static_cast<const char*>(p.g) + (at + p.n + PICTURE_AHEAD) * (TYPE == F32 ? 4 : 2));
            read(p.g, at + p.n, below, below_across);
            next = _mm512_sub_ps(below, x), next_across = _mm512_sub_ps(below_across, across);
        }
        __m512 l = _mm512_add_ps(across, _mm512_sub_ps(next, fall));
        if (p.laplace != nullptr) {
            put(p.laplace + to, l);
            squares = PLACE == BORDER ? _mm512_mask3_fmadd_ps(l, l, squares, mask) : _mm512_fmadd_ps(l, l, squares);
        }
        if (p.filtered != nullptr) {
            __m512 y = _mm512_fmadd_ps(quarter, l, x);
            put(p.filtered + to, _mm512_fmadd_ps(sixteenth, _mm512_sub_ps(next_across, fall_across), y));
        }
        x = below, across = below_across, fall = next, fall_across = next_across;
    }
};

// WIDE registers from column c on.
template <int TYPE, int PLACE, int WIDE>
inline double picture_strip(const Picture& given, int64_t c) {
    const Picture p = given;
    const __m512 quarter = _mm512_set1_ps(p.penalty * 0.25f), sixteenth = _mm512_set1_ps(p.penalty * 0.0625f);
    Column<TYPE, PLACE> one, two;
    one.begin(p, c);
    if (WIDE == 2) two.begin(p, c + 16);
    for (int64_t r = p.first, at = r * p.n + c, to = c; r < p.end; ++r, at += p.n, to += p.n) {
        bool last = r + 1 == p.bottom;
        one.row(p, at, to, last, quarter, sixteenth);
        if (WIDE == 2) two.row(p, at + 16, to + 16, last, quarter, sixteenth);
    }
    __m512 squares = WIDE == 2 ? _mm512_add_ps(one.squares, two.squares) : one.squares;
    return static_cast<double>(_mm512_reduce_add_ps(squares));
}

template <int TYPE>
inline double picture_strips(const Picture& p) {
    if (p.n == 16 && p.across) return picture_strip<TYPE, ROW, 1>(p, 0);
    double sum = 0;
    int64_t c = 0;
    for (; p.n - c > 16; c += 32)
        sum += c > 0 && p.n - c > 32 && p.across ? picture_strip<TYPE, WITHIN, 2>(p, c) : picture_strip<TYPE, BORDER, 2>(p, c);
    return c < p.n ? sum + picture_strip<TYPE, BORDER, 1>(p, c) : sum;
}

// Filtered rows and their Laplacian, where wanted; the planes start at the first row. Returns the sum of squares of
// the Laplacian.
inline double picture_rows(const Picture& p, int32_t type) {
    if (type == F32) return picture_strips<F32>(p);
    if (type == BF16) return picture_strips<BF16>(p);
    return picture_strips<F16>(p);
}

// The same where no row is a neighbour of another.
inline double table_rows(const Picture& p, int32_t type) {
    double sum = 0;
    for (int64_t r = p.first, at = 0; r < p.end; ++r, at += p.n) {
        Picture row = p;
        row.first = row.top = r, row.end = row.bottom = r + 1;
        if (p.filtered != nullptr) row.filtered += at;
        if (p.laplace != nullptr) row.laplace += at;
        sum += picture_rows(row, type);
    }
    return sum;
}

// The low 13 bits of random_bits of sixteen elements; `place` is GOLDEN times their index.
AUTOMAGIC_INLINE __m512i noise_lanes(__m512i place, __m512i key) {
    __m512i x = _mm512_xor_si512(place, key);
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(static_cast<int>(MIX_A)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(static_cast<int>(MIX_B)));
    return _mm512_ternarylogic_epi32(x, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x1FFF), 0x28);  // (a ^ b) & c
}

// Histories of edges in four bits, fifteen times what they stand for: h = 0.9 old + 1.5 e.
struct Edges512 {
    __m512 kept, rest, least, weight;
    __m512i key, place;

    Edges512(float scale, float threshold, float penalty, int64_t first, uint32_t base) {
        const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        kept = _mm512_mul_ps(_mm512_cvtepi32_ps(order), _mm512_set1_ps(0.9f));
        rest = _mm512_set1_ps(scale + 1e-38f);
        least = _mm512_set1_ps(threshold);
        weight = _mm512_set1_ps(-penalty / 15.0f);
        key = _mm512_set1_epi32(static_cast<int>(base));
        place = _mm512_add_epi32(order, _mm512_set1_epi32(static_cast<int>(first)));
        place = _mm512_mullo_epi32(place, _mm512_set1_epi32(static_cast<int>(GOLDEN)));
    }

    // Gains of sixteen elements, and their eight bytes of history, which are replaced.
    AUTOMAGIC_INLINE __m512 move(__m512 laplace, __m128i& bytes) {
        __m512 edge = _mm512_abs_ps(laplace), one = _mm512_set1_ps(1.0f);
        // A real division: it is done while the random bits are made.
        __m512 e = _mm512_div_ps(edge, _mm512_add_ps(edge, rest));
        // The lookup heeds four bits of each index, so a byte needs no masks in becoming two of them.
        __m512i q = _mm512_cvtepu8_epi64(bytes);
        __m512 old = _mm512_permutexvar_ps(_mm512_or_si512(q, _mm512_slli_epi64(q, 28)), kept);
        __m512 h = _mm512_mask3_fmadd_ps(e, _mm512_set1_ps(1.5f), old, _mm512_cmp_ps_mask(e, least, _CMP_GT_OQ));
        __m512 noise = _mm512_cvtepi32_ps(noise_lanes(place, key));
        place = _mm512_add_epi32(place, _mm512_set1_epi32(static_cast<int>(16 * GOLDEN)));
        __m512i c = _mm512_cvttps_epi32(_mm512_fmadd_ps(noise, _mm512_set1_ps(0x1p-13f), h));  // below 16, as e <= 1
        bytes = _mm512_cvtepi64_epi8(_mm512_or_si512(c, _mm512_srli_epi64(c, 28)));
        return _mm512_fmadd_ps(weight, h, one);
    }
};

// edge_gains of stencil.h on a history of four bits, read and written here: `first` is even.
inline void edges_512(uint8_t* plane, const float* laplace, Edges512 edges, int64_t first, int64_t n, float* factor) {
    uint8_t* byte = plane + (first >> 1);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, byte += 8) {
        __m128i held = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(byte));
        __m512 gain = edges.move(_mm512_loadu_ps(laplace + i), held);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(byte), held);
        _mm512_storeu_ps(factor + i, gain);
    }
    if (i == n) return;
    __mmask16 there = lanes(n - i), bytes_there = lanes((n - i + 1) >> 1);
    __m128i held = _mm_maskz_loadu_epi8(bytes_there, byte);
    __m512 gain = edges.move(_mm512_maskz_loadu_ps(there, laplace + i), held);
    if ((n - i) & 1) {  // the end of the tensor: the half byte behind it is 0
        alignas(16) uint8_t last[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(last), held);
        last[(n - i) >> 1] &= 15;
        held = _mm_load_si128(reinterpret_cast<const __m128i*>(last));
    }
    _mm_mask_storeu_epi8(byte, bytes_there, held);
    _mm512_mask_storeu_ps(factor + i, there, gain);
}

}  // namespace AUTOMAGIC_ISA

#endif
