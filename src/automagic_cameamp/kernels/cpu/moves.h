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

    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        __m512i w = bytes(word, lanes(left));
        __m512 low = _mm512_permutexvar_ps(_mm512_srli_epi32(w, 1), fine);
        return {_mm512_mul_ps(low, _mm512_permutexvar_ps(_mm512_srli_epi32(w, 5), coarse))};
    }
#else
    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        V k = fused(get_bytes(word, left), all(0.5f), all(-0.25f));  // the lowest bit is a sign
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
    Rows factor;                   // of each element, or null
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

// Sum of the rates of the elements, where they have their own (WORDS); where nothing is written, sums of the
// squares of the old weights and of the new ones.
struct Weighed {
    float rates, before, after;
};

template <class S, bool STRICT, bool WORDS, bool EXTRA>
AUTOMAGIC_LOOP Weighed weigh_piece(S s, const Move& a) {
    const int64_t rows = s.rows(), columns = s.columns(), step = a.stride;
    const MaskValues values;
    const V low = all(larger(a.bounds.low, a.bounds.floor)), high = all(larger(a.bounds.high, a.bounds.floor));
    const V ratio = all(a.signs.against / a.signs.with), with = all(a.signs.with), shrink = all(a.shrink);
    const Rows means = a.m, gradients = a.g, old = a.p;
    const float *gains = a.gain, *rates = a.rate, *ds = a.ds;
    const uint8_t* words = a.word;
    float* out = a.to;
    V sum = all(0.0f), before = sum, after = sum;
    for (int64_t r = 0; r < rows; ++r) {
        const auto gain = s.of_row(gains, r), own = s.of_row(rates, r);
        const float *m = means.p + r * means.stride, *g = gradients.p + r * gradients.stride, *p = old.p + r * old.stride;
        const uint8_t* word = WORDS ? words + r * step : nullptr;
        float* to = out + r * old.stride;
        for (int64_t c = 0; c < columns; c += W) {
            const int64_t left = columns - c;
            AUTOMAGIC_PREFETCH(m + c + AHEAD);
            AUTOMAGIC_PREFETCH(g + c + AHEAD);
            V x = get<S::whole>(m + c, left), y = get<S::whole>(g + c, left), rate = own.at(c, left);
            V move = signed_by<STRICT>(x * get<S::whole>(ds + c, left) * (gain.at(c, left) * with), x * y, ratio);
            if (WORDS) {
                rate = smaller(larger(values.at(word + c, left) * rate, low), high);
                sum = S::whole || left >= W ? sum + rate : fused(rate, first_ones(left), sum);
            }
            V w = get<S::whole>(p + c, left);
            if (EXTRA && a.dry) before = fused(w, w, before);
            if (EXTRA && a.factor.p != nullptr) move = move * get<S::whole>(a.factor.p + r * a.factor.stride + c, left);
            if (EXTRA && a.decay != 0.0f) {
                V z = (magnitude(y) - all(a.average)) * all(a.slope);
                z = smaller(larger(z, all(-87.0f)), all(87.0f)) * all(1.44269504f);
                V sigmoid = inverse(all(1.0f) + exp2_small(z));
                w = fused_minus(w, sigmoid * rate * all(2.0f * a.decay), w);
            }
            w = fused_minus(move, rate, w);
            if (EXTRA && a.dry) {
                after = fused(w, w, after);
                continue;
            }
            if (EXTRA) w = w * shrink;
            put<S::whole>(w, to + c, left);
        }
    }
    if (EXTRA && a.dry) return {0.0f, total(before), total(after)};
    return {total(sum), 0.0f, 0.0f};
}

}  // namespace AUTOMAGIC_ISA
