// Pass C in bands: the values of mask words, and the new weights of a piece.
#pragma once

#include "means.h"

namespace AUTOMAGIC_ISA {

// Value of the counters in mask words: a product of two, both 1 at a fresh counter.
struct MaskValues {
#if defined(AUTOMAGIC_TABLES512)
    __m512 fine, coarse;

    AUTOMAGIC_INLINE MaskValues() {
        alignas(64) static const Tables tables;
        fine = _mm512_load_ps(tables.fine), coarse = _mm512_load_ps(tables.coarse);
    }

    struct Tables {
        float fine[16], coarse[16];
        Tables() {
            for (int i = 0; i < 16; ++i) {
                fine[i] = exp2_small(static_cast<float>(i - 4) * MASK_STEP);
                coarse[i] = exp2_small(static_cast<float>(16 * i + 4 + MASK_LOW) * MASK_STEP);
            }
        }
    };

    template <bool FULL>
    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        __m512i w = bytes(word, FULL ? lanes(W) : lanes(left));
        __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(w, 1), fine);
        return {_mm512_mul_ps(low, _mm512_permutexvar_ps(_mm512_srli_epi32(w, 5), coarse))};
    }
#elif defined(AUTOMAGIC_TABLES256)
    __m256 fine, coarse, coarsest;

    AUTOMAGIC_INLINE MaskValues() {
        alignas(32) static const Tables tables;
        fine = _mm256_load_ps(tables.fine);
        coarse = _mm256_load_ps(tables.coarse), coarsest = _mm256_load_ps(tables.coarse + 8);
    }

    struct Tables {
        float fine[8], coarse[16];
        Tables() {
            for (int i = 0; i < 8; ++i) fine[i] = exp2_small(static_cast<float>(i - 4) * MASK_STEP);
            for (int i = 0; i < 16; ++i) coarse[i] = exp2_small(static_cast<float>(8 * i + 4 + MASK_LOW) * MASK_STEP);
        }
    };

    template <bool FULL>
    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        uint64_t held = 0;
        std::memcpy(&held, word, FULL || left >= W ? 8 : static_cast<size_t>(left));
        __m256i w = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(held)));
        __m256i place = _mm256_srli_epi32(w, 4);  // a lookup heeds three bits
        __m256 high = _mm256_castsi256_ps(_mm256_slli_epi32(w, 24));
        high = _mm256_blendv_ps(_mm256_permutevar8x32_ps(coarse, place), _mm256_permutevar8x32_ps(coarsest, place), high);
        return {_mm256_mul_ps(_mm256_permutevar8x32_ps(fine, _mm256_srli_epi32(w, 1)), high)};
    }
#else
    template <bool FULL>
    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        V k = fused(FULL ? from_bytes(word) : get_bytes(word, left), all(0.5f), all(-0.25f));  // the lowest bit is a sign
        k = (k + all(ROUNDER)) - all(ROUNDER);
        return exp2_small((k + all(static_cast<float>(MASK_LOW))) * all(MASK_STEP));
    }
#endif
};

struct Bounds {
    float low, high, floor;
};

// The new weights of a piece.
struct Move {
    Rows m, g, p;
    float* to;                     // the weights again, as far apart
    const float *gain, *rate;      // of the rows of the band (of_rows)
    const float* ds;               // of the columns of the piece
    const uint8_t* word;           // mask words, or null
    Rows factor, fade;             // of each element, or null
    int64_t stride;                // of the mask words
    Signs signs;
    Bounds bounds;
    float average, slope, decay;   // adaptive decay, none where 0
    float shrink;
    bool dry;                      // only add up squares
};

// 1 in the first lanes, 0 in the others.
AUTOMAGIC_INLINE V first_ones(int64_t left) {
    alignas(64) static const float ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return load(ones + 16 - smaller(left, int64_t(16)));
}

// How much of each weight an adaptive decay takes at a rate of 1. A loop of its own: the sigmoid is a long chain, and a
// processor has more of them under way where nothing else lies between them.
template <class S>
AUTOMAGIC_LOOP void fade_piece(S s, const Move& a, float* out) {
    const int64_t rows = s.rows(), columns = s.columns();
    const V average = all(a.average), slope = all(a.slope * 1.44269504f), decay = all(2.0f * a.decay);
    const Rows gradients = a.g;
    for (int64_t r = 0; r < rows; ++r) {
        const float* g = gradients.p + r * gradients.stride;
        float* to = out + r * columns;
        for (int64_t c = 0; c < columns; c += W) {
            V y = magnitude(get<S::whole>(g + c, columns - c));
            V z = smaller(larger((y - average) * slope, all(-125.0f)), all(125.0f));
            put<S::whole>(decay / (all(1.0f) + exp2_quick(z)), to + c, columns - c);
        }
    }
}

// Sums of the values of the words and of the rates of the elements, where they have their own (WORDS); where nothing is
// written, sums of the squares of the old weights and of the new ones.
struct Weighed {
    float masks, rates, before, after;
};

// EXTRA: with a factor for each element, adaptive decay or a shrinking of the weights. DRY: nothing is written.
template <class S, bool STRICT, bool WORDS, bool EXTRA, bool DRY>
AUTOMAGIC_LOOP Weighed weigh_piece(S s, const Move& a) {
    const int64_t rows = s.rows(), columns = s.columns(), step = a.stride;
    const MaskValues values;
    const V low = all(larger(a.bounds.low, a.bounds.floor)), high = all(larger(a.bounds.high, a.bounds.floor));
    const V ratio = all(a.signs.against / a.signs.with), with = all(a.signs.with), shrink = all(a.shrink);
    const Rows means = a.m, gradients = a.g, old = a.p, factors = a.factor, fades = a.fade;
    const float *gains = a.gain, *rates = a.rate, *ds = a.ds;
    const uint8_t* words = a.word;
    float* out = a.to;
    V masks = all(0.0f), sum = masks, before = masks, after = masks;
    for (int64_t r = 0; r < rows; ++r) {
        const auto gain = s.of_row(gains, r), own = s.of_row(rates, r);
        const float *m = means.p + r * means.stride, *g = gradients.p + r * gradients.stride, *p = old.p + r * old.stride;
        const float* factor = factors.p != nullptr ? factors.p + r * factors.stride : nullptr;
        const float* fade = fades.p != nullptr ? fades.p + r * fades.stride : nullptr;
        const uint8_t* word = WORDS ? words + r * step : nullptr;
        float* to = out + r * old.stride;
        for (int64_t c = 0; c < columns; c += W) {
            const int64_t left = columns - c;
            AUTOMAGIC_PREFETCH(m + c + AHEAD);
            AUTOMAGIC_PREFETCH(g + c + AHEAD);
            AUTOMAGIC_PREFETCH(p + c + AHEAD);
            V x = get<S::whole>(m + c, left), y = get<S::whole>(g + c, left), rate = own.at(c, left);
            V move = signed_by<STRICT>(x * get<S::whole>(ds + c, left) * (gain.at(c, left) * with), x * y, ratio);
            if (WORDS) {
                const V mask = values.template at<S::whole>(word + c, left);
                rate = smaller(larger(mask * rate, low), high);
                const bool whole = S::whole || left >= W;
                masks = whole ? masks + mask : fused(mask, first_ones(left), masks);
                sum = whole ? sum + rate : fused(rate, first_ones(left), sum);
            }
            V w = get<S::whole>(p + c, left);
            if (DRY) before = fused(w, w, before);
            if (EXTRA && factor != nullptr) move = move * get<S::whole>(factor + c, left);
            if (EXTRA && fade != nullptr) w = fused_minus(w, rate * get<S::whole>(fade + c, left), w);
            w = fused_minus(move, rate, w);
            if (DRY) {
                after = fused(w, w, after);
                continue;
            }
            if (EXTRA) w = w * shrink;
            put<S::whole>(w, to + c, left);
        }
    }
    return {total(masks), total(sum), total(before), total(after)};
}

}  // namespace AUTOMAGIC_ISA
