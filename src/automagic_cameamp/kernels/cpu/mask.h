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

#if defined(AUTOMAGIC_TABLES256)
// The same, thirty-two words in a register.
inline int64_t move_words_256(const float* g, int64_t n, int32_t by, uint8_t* word) {
    const __m256i step = _mm256_set1_epi8(static_cast<char>(smaller(by, MASK_HIGH - MASK_LOW)));
    const __m256i highest = _mm256_set1_epi8(MASK_HIGH - MASK_LOW), one = _mm256_set1_epi8(1);
    const __m256 zero = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i below[4], above[4];
        for (int k = 0; k < 4; ++k) {
            __m256 x = _mm256_loadu_ps(g + i + 8 * k);
            below[k] = _mm256_castps_si256(_mm256_cmp_ps(x, zero, _CMP_LT_OQ));
            above[k] = _mm256_castps_si256(_mm256_cmp_ps(x, zero, _CMP_GT_OQ));
        }
        __m256i negative = packed_signs(below), moves = _mm256_or_si256(negative, packed_signs(above));
        __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word + i)), last = _mm256_and_si256(w, one);
        __m256i other = _mm256_xor_si256(negative, _mm256_cmpeq_epi8(last, one)), by_now = _mm256_and_si256(moves, step);
        __m256i k = _mm256_and_si256(_mm256_srli_epi16(w, 1), _mm256_set1_epi8(127));
        k = _mm256_adds_epu8(k, _mm256_andnot_si256(other, by_now));
        k = _mm256_min_epu8(_mm256_subs_epu8(k, _mm256_and_si256(other, by_now)), highest);
        __m256i sign = _mm256_or_si256(_mm256_and_si256(negative, one), _mm256_andnot_si256(moves, last));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(word + i), _mm256_or_si256(_mm256_add_epi8(k, k), sign));
    }
    return i;
}
#endif

inline void move_run(const float* AUTOMAGIC_RESTRICT g, int64_t n, int32_t by, uint8_t* AUTOMAGIC_RESTRICT word) {
    int64_t start = 0;
#if defined(AUTOMAGIC_TABLES512)
    start = move_words_512(g, n, by, word);
#elif defined(AUTOMAGIC_TABLES256)
    start = move_words_256(g, n, by, word);
#endif
    for (int64_t i = start; i < n; ++i) {
        int32_t negative = g[i] < 0.0f, moves = (g[i] > 0.0f) | negative, last = word[i] & 1;
        int32_t bump = moves * by * (1 - 2 * (negative ^ last));
        int32_t k = smaller(larger((word[i] >> 1) + bump, 0), MASK_HIGH - MASK_LOW);
        word[i] = static_cast<uint8_t>(2 * k + (moves ? negative : last));
    }
}

// Signs of up to 64 elements, a bit each.
struct SignBits {
    uint64_t negative, moves;
};

template <bool FULL>
AUTOMAGIC_INLINE SignBits sign_bits(const float* g, int64_t n) {
    SignBits s{0, 0};
    for (int64_t i = 0; i < n; i += W) {
        V x = get<FULL>(g + i, n - i);
        uint64_t negative = lanes_of(x < all(0.0f));
        s.negative |= negative << i;
        s.moves |= (negative | lanes_of(all(0.0f) < x)) << i;
    }
    return s;
}

// Bits [first, first + n) of a plane, n <= 64, wherever they begin.
inline uint64_t read_bits(const uint8_t* plane, int64_t first, int64_t n) {
    const uint8_t* from = plane + (first >> 3);
    int64_t shift = first & 7, bytes = (shift + n + 7) >> 3;
    uint64_t low = 0;
    if (bytes >= 8)
        std::memcpy(&low, from, 8);
    else
        for (int64_t i = 0; i < bytes; ++i) low |= static_cast<uint64_t>(from[i]) << (8 * i);
    uint64_t x = low >> shift;
    return bytes > 8 ? x | static_cast<uint64_t>(from[8]) << (64 - shift) : x;
}

// The same bits written; those around them stay.
inline void write_bits(uint64_t x, int64_t first, int64_t n, uint8_t* plane) {
    uint8_t* to = plane + (first >> 3);
    int64_t shift = first & 7;
    if (shift == 0 && n == 64) {
        std::memcpy(to, &x, 8);
        return;
    }
    for (int64_t i = 0, done = 0; done < n; ++i) {
        int64_t from = i == 0 ? shift : 0, count = smaller(8 - from, n - done);
        uint32_t ones = ((1u << count) - 1u) << from;
        to[i] = static_cast<uint8_t>((to[i] & ~ones) | ((static_cast<uint32_t>(x >> done) << from) & ones));
        done += count;
    }
}

// Elements whose sign is that of their last gradient other than 0, and those whose sign is not, a bit each;
// the signs are kept.
struct Votes {
    uint64_t with, against;
};

inline Votes cast_votes(const float* g, int64_t first, int64_t n, uint8_t* plane) {
    SignBits s = n == 64 ? sign_bits<true>(g, 64) : sign_bits<false>(g, n);
    uint64_t last = read_bits(plane, first, n), other = s.negative ^ last;
    write_bits(s.negative | (last & ~s.moves), first, n, plane);
    return {s.moves & ~other, s.moves & other};
}

AUTOMAGIC_INLINE int32_t majority(Votes v) { return __builtin_popcountll(v.with) - __builtin_popcountll(v.against); }

AUTOMAGIC_INLINE int8_t moved(int8_t k, int32_t by) {
    return static_cast<int8_t>(smaller(larger(static_cast<int32_t>(k) + by, MASK_LOW), MASK_HIGH));
}

// What a counter stands for.
inline const float* mask_values() {
    struct Values {
        float of[MASK_HIGH - MASK_LOW + 1];
        Values() {
            for (int32_t k = MASK_LOW; k <= MASK_HIGH; ++k) of[k - MASK_LOW] = exp2_small(static_cast<float>(k) * MASK_STEP);
        }
    };
    static const Values values;
    return values.of - MASK_LOW;
}

// The votes of rows: where rows have counters, these move with the majority.
struct RowVotes {
    int8_t* counters;
    const float* value;
    int32_t by;
    double votes, masks;

    explicit RowVotes(const Job& j)
        : counters(j.o->mask == 3 ? nullptr : static_cast<int8_t*>(j.t->mask)), value(mask_values()), by(stride(j)), votes(0),
          masks(0) {}

    AUTOMAGIC_INLINE void count(int64_t r, int64_t sum) {
        if (counters == nullptr) {
            votes += static_cast<double>(sum);
            return;
        }
        counters[r] = moved(counters[r], by * ((sum > 0) - (sum < 0)));
        masks += static_cast<double>(value[counters[r]]);
    }
};

inline void vote(const Job& j, const Tile& tile, Part& part, Local& w) {
    const int64_t n = j.n;
    RowVotes rows(j);
    if (n < 64 && 64 % n == 0) {  // several rows in a word
        uint64_t ones = (uint64_t(1) << n) - 1;
        for (int64_t i = 0; i < tile.count; i += 64) {
            int64_t first = tile.start + i, count = smaller(tile.count - i, int64_t(64)), r = first / n;
            Votes v = cast_votes(load_run(j.t->g, j.t->g_type, first, count, w.raw), first, count, j.t->polarity);
            for (int64_t k = 0; k < count; k += n, ++r) rows.count(r, majority({v.with >> k & ones, v.against >> k & ones}));
        }
    } else {
        for (int64_t r = tile.first; r < tile.end; ++r) {
            int64_t votes = 0;
            for (int64_t c = 0; c < n; c += 64) {
                int64_t first = r * n + c, count = smaller(int64_t(64), n - c);
                votes += majority(
                    cast_votes(load_run(j.t->g, j.t->g_type, first, count, w.raw), first, count, j.t->polarity));
            }
            rows.count(r, votes);
        }
    }
    part.sum[VOTES] += rows.votes, part.sum[MASK] += rows.masks;
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

// Updates of elements [first, first + n) into the sketch of their slab.
inline void add_sketch(const Job& j, int64_t slab, const float* u, int64_t first, int64_t n) {
    add_cyclic(u, first, 0, n, j.sketches + slab * smaller(j.numel, SKETCH));
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
