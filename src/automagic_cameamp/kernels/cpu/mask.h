// The Automagic mask of the geometric rule (techniques/learning_rate.py), and the sketch of a controller.
#pragma once

#include "moves.h"

namespace AUTOMAGIC_ISA {

// Steps of a counter where signs agree: 0 while nothing is learned.
AUTOMAGIC_INLINE int32_t stride(const Job& j) {
    return j.warm && j.now > 1 ? (j.grows ? j.o->d_coef : 1) : 0;
}

#if defined(AUTOMAGIC_TABLES512)
// Sixty-four words in a register: signs are masks, and adding and subtracting saturates at an end of the range.
inline int64_t move_words_512(const float* g, int64_t n, int32_t by, uint8_t* word) {
    const __m512i step = _mm512_set1_epi8(static_cast<char>(smaller(by, MASK_HIGH - MASK_LOW)));
    const __m512i highest = _mm512_set1_epi8(MASK_HIGH - MASK_LOW), one = _mm512_set1_epi8(1);
    const __m512 zero = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __mmask64 negative = 0, positive = 0;
        for (int k = 0; k < 4; ++k) {
            __m512 x = _mm512_loadu_ps(g + i + 16 * k);
            negative |= static_cast<__mmask64>(_mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ)) << (16 * k);
            positive |= static_cast<__mmask64>(_mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ)) << (16 * k);
        }
        __m512i w = _mm512_loadu_si512(word + i);
        __mmask64 last = _mm512_test_epi8_mask(w, one), moves = negative | positive, other = negative ^ last;
        __m512i k = _mm512_and_si512(_mm512_srli_epi16(w, 1), _mm512_set1_epi8(127));
        k = _mm512_mask_adds_epu8(k, moves & ~other, k, step);
        k = _mm512_min_epu8(_mm512_mask_subs_epu8(k, moves & other, k, step), highest);
        k = _mm512_add_epi8(k, k);
        _mm512_storeu_si512(word + i, _mm512_mask_add_epi8(k, negative | (last & ~moves), k, one));
    }
    return i;
}
#endif

inline void move_run(const float* AUTOMAGIC_RESTRICT g, int64_t n, int32_t by, uint8_t* AUTOMAGIC_RESTRICT word) {
    int64_t start = 0;
#if defined(AUTOMAGIC_TABLES512)
    start = move_words_512(g, n, by, word);
#endif
    for (int64_t i = start; i < n; ++i) {
        int32_t negative = g[i] < 0.0f, moves = (g[i] > 0.0f) | negative, last = word[i] & 1;
        int32_t bump = moves * by * (1 - 2 * (negative ^ last));
        int32_t k = smaller(larger((word[i] >> 1) + bump, 0), MASK_HIGH - MASK_LOW);
        word[i] = static_cast<uint8_t>(2 * k + (moves ? negative : last));
    }
}

inline float sum_masks(const uint8_t* word, int64_t n) {
    const MaskValues values;
    V s = all(0.0f);
    int64_t i = 0;
    for (; i + W <= n; i += W) s = s + values.at(word + i, W);
    return total(i < n ? fused(values.at(word + i, n - i), first_ones(n - i), s) : s);
}

inline void move_words(const Job& j, const Run& run, const float* g, Part& part) {
    uint8_t* word = static_cast<uint8_t*>(j.t->mask) + run.start;
    move_run(g, run.count, stride(j), word);
    part.sum[MASK] += sum_masks(word, run.count);
}

inline void keep_signs(const float* AUTOMAGIC_RESTRICT g, int64_t n, int8_t* AUTOMAGIC_RESTRICT sign) {
    for (int64_t i = 0; i < n; ++i) sign[i] = static_cast<int8_t>((g[i] > 0.0f) - (g[i] < 0.0f));
}

inline void unpack_signs(const uint8_t* plane, int64_t first, int64_t n, int8_t* AUTOMAGIC_RESTRICT out) {
    int64_t i = 0;
    for (; i < n && ((first + i) & 7); ++i) out[i] = static_cast<int8_t>(1 - 2 * bit_at(plane, first + i));
    const uint8_t* AUTOMAGIC_RESTRICT from = plane + ((first + i) >> 3);
    int64_t whole = (n - i) >> 3;
    int8_t* AUTOMAGIC_RESTRICT to = out + i;
    for (int64_t b = 0; b < whole; ++b)
        for (int s = 0; s < 8; ++s) to[8 * b + s] = static_cast<int8_t>(1 - 2 * ((from[b] >> s) & 1));
    for (i += whole * 8; i < n; ++i) out[i] = static_cast<int8_t>(1 - 2 * bit_at(plane, first + i));
}

inline void set_bit(uint8_t* plane, int64_t i, bool on) {
    uint8_t bit = static_cast<uint8_t>(1 << (i & 7));
    plane[i >> 3] = static_cast<uint8_t>(on ? plane[i >> 3] | bit : plane[i >> 3] & ~bit);
}

inline void pack_signs(const int8_t* AUTOMAGIC_RESTRICT last, int64_t first, int64_t n, uint8_t* plane) {
    int64_t i = 0;
    for (; i < n && ((first + i) & 7); ++i) set_bit(plane, first + i, last[i] < 0);
    uint8_t* AUTOMAGIC_RESTRICT to = plane + ((first + i) >> 3);
    int64_t whole = (n - i) >> 3;
    const int8_t* AUTOMAGIC_RESTRICT from = last + i;
    for (int64_t b = 0; b < whole; ++b) {
        uint32_t byte = 0;
        for (int s = 0; s < 8; ++s) byte |= static_cast<uint32_t>(from[8 * b + s] < 0) << s;
        to[b] = static_cast<uint8_t>(byte);
    }
    for (i += whole * 8; i < n; ++i) set_bit(plane, first + i, last[i] < 0);
}

// sign <- bump, last <- sign of the last gradient that was not 0.
inline void agree_run(int8_t* AUTOMAGIC_RESTRICT sign, int8_t* AUTOMAGIC_RESTRICT last, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t s = sign[i], l = last[i];
        sign[i] = static_cast<int8_t>(s * l);
        last[i] = static_cast<int8_t>(s ? s : l);
    }
}

inline int32_t count_votes(const int8_t* AUTOMAGIC_RESTRICT bump, int64_t n) {
    int32_t s = 0;
    for (int64_t i = 0; i < n; ++i) s += bump[i];
    return s;
}

AUTOMAGIC_INLINE int8_t moved(int8_t k, int32_t by) {
    return static_cast<int8_t>(smaller(larger(static_cast<int32_t>(k) + by, MASK_LOW), MASK_HIGH));
}

// Votes of the rows of a tile: the counter of a row moves with the majority of its signs.
inline void vote(const Job& j, const Tile& tile, Part& part, Local& w) {
    unpack_signs(j.t->polarity, tile.start, tile.count, w.last);
    agree_run(w.sign, w.last, tile.count);
    pack_signs(w.last, tile.start, tile.count, j.t->polarity);
    if (j.o->mask == 3) {
        for (int64_t i = 0; i < tile.count; i += TILE)
            part.sum[VOTES] += count_votes(w.sign + i, smaller(TILE, tile.count - i));
        return;
    }
    int8_t* counter = static_cast<int8_t*>(j.t->mask);
    int32_t by = stride(j);
    for (int64_t r = tile.first; r < tile.end; ++r) {
        int32_t votes = count_votes(w.sign + (r - tile.first) * j.n, j.n);
        counter[r] = moved(counter[r], by * ((votes > 0) - (votes < 0)));
        part.sum[MASK] += exp2_small(static_cast<float>(counter[r]) * MASK_STEP);
    }
}

// ---- sketch ------------------------------------------------------------------------------------

constexpr int64_t SKETCH = 4096, PERIOD = 65537;

// The cyclic table of random signs, long enough that no run crosses its end.
struct SignTable {
    float value[PERIOD + SKETCH];

    SignTable() {
        for (int64_t i = 0; i < PERIOD + SKETCH; ++i)
            value[i] = mix32(static_cast<uint32_t>(i % PERIOD + 1)) >> 31 ? -1.0f : 1.0f;
    }
};

inline const float* sign_table() {
    static const SignTable table;
    return table.value;
}

inline void add_signed(const float* AUTOMAGIC_RESTRICT x, const float* AUTOMAGIC_RESTRICT sign, int64_t n,
                       float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) out[i] = fused(x[i], sign[i], out[i]);
}

// Every 4096th element shares a bucket.
inline void add_cyclic(const float* x, int64_t first, int64_t offset, int64_t n, float* buckets) {
    const float* sign = sign_table();
    for (int64_t i = 0; i < n;) {
        int64_t bucket = (first + i) % SKETCH, size = smaller(n - i, SKETCH - bucket);
        add_signed(x + i, sign + (offset + first + i) % PERIOD, size, buckets + bucket);
        i += size;
    }
}

inline void add_sketch(const Job& j, int64_t slab, const Run& run, const Local& w) {
    add_cyclic(w.u, run.start, 0, run.count, j.sketches + slab * smaller(j.numel, SKETCH));
}

// Sketch of the tensor into that of the model.
// Doubles: the order in which tensors come (one by one under gradient release) leaves no trace in the float result.
inline void fold_sketch(Job& j, double* model) {
    int64_t width = smaller(j.numel, SKETCH), place = j.t->sketch_place;
    for (int64_t s = 1; s < j.slabs; ++s)
        for (int64_t i = 0; i < width; ++i) j.sketches[i] += j.sketches[s * width + i];
    const float* sign = sign_table();
    for (int64_t i = 0; i < width; ++i)
        model[(place + i) % SKETCH] += j.sketches[i] * sign[(j.t->sketch_offset + place + i) % PERIOD];
}

}  // namespace AUTOMAGIC_ISA
