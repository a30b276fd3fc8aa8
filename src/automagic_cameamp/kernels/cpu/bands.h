// Bands: a few rows of a tensor that a pass takes together, piece by piece, with every value in a register.
//
// Short rows come W at a time, so that the sums over them end in the lanes of one register; of longer rows
// four share each load and store of a column's sums. Rows below one register, and what only some options
// need, are left to the loops over runs.
#pragma once

#include "stencil.h"
#include "vectors.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t SHORT = 128;  // longest row of which W make a band
constexpr int64_t FLUSH = 256;               // rows whose column sums are added in fp32

AUTOMAGIC_INLINE bool in_bands(const Job& j) { return j.n >= W; }

// Rows [row, row + rows), columns [column, column + count).
struct Band {
    int64_t row, rows, column, count;
};

// Element (r, c) of a piece lies at p[r * stride + c].
struct Rows {
    const float* p;
    int64_t stride;
};

// How a loop over a piece is unrolled. ROWS: rows, or 0 where that is known when it runs only.
template <int ROWS, bool WHOLE>
struct Shape {
    static constexpr int most = ROWS ? ROWS : static_cast<int>(W);
    static constexpr bool whole = WHOLE;  // rows are whole registers long
    static AUTOMAGIC_INLINE int64_t rows(int64_t given) { return ROWS ? ROWS : given; }
};

template <class F>
AUTOMAGIC_INLINE void shaped(const Band& b, F f) {
    bool whole = b.count % W == 0;
    if (b.rows == W)
        whole ? f(Shape<W, true>()) : f(Shape<W, false>());
    else if (W != 4 && b.rows == 4)
        whole ? f(Shape<4, true>()) : f(Shape<4, false>());
    else if (b.rows == 1)
        whole ? f(Shape<1, true>()) : f(Shape<1, false>());
    else
        whole ? f(Shape<0, true>()) : f(Shape<0, false>());
}

template <class F>
inline void for_bands(const Job& j, const Tile& tile, F f) {
    for (int64_t r = tile.first; r < tile.end;) {
        int64_t rows = j.n <= SHORT ? smaller(W, tile.end - r) : tile.end - r >= 4 ? 4 : 1;
        f(Band{r, rows, 0, j.n});
        r += rows;
    }
}

template <class F>
inline void for_pieces(const Job& j, const Band& b, F f) {
    if (j.n <= RUN) return f(b);
    for (int64_t c = 0; c < j.n; c += j.piece) f(Band{b.row, b.rows, c, smaller(j.piece, j.n - c)});
}

// Calls f(first element, elements, place in a buffer) for what of a piece is contiguous.
template <class F>
AUTOMAGIC_INLINE void for_lines(const Job& j, const Band& b, F f) {
    int64_t first = b.row * j.n + b.column;
    if (b.count == j.n) return f(first, b.rows * j.n, int64_t(0));
    for (int64_t r = 0; r < b.rows; ++r) f(first + r * j.n, b.count, r * b.count);
}

// A piece in fp32: in place where it is that already, else in `held`.
inline Rows piece_of(const void* x, int32_t type, const Job& j, const Band& b, float* held) {
    if (type == F32) return {static_cast<const float*>(x) + b.row * j.n + b.column, j.n};
    for_lines(j, b, [&](int64_t first, int64_t n, int64_t at) { load_run(x, type, first, n, held + at); });
    return {held, b.count};
}

inline Rows decoded_piece(const Coded& c, const Job& j, const Band& b, float* held) {
    if (c.code == PLAIN) return {static_cast<const float*>(c.q) + b.row * j.n + b.column, j.n};
    for_lines(j, b, [&](int64_t first, int64_t n, int64_t at) { decode_run(c, first, n, held + at); });
    return {held, b.count};
}

// A piece of a scratch plane.
AUTOMAGIC_INLINE float* plane_piece(const Job& j, const Tile& tile, const Band& b, const Local& w, int plane) {
    return plane_of(j, w, plane) + b.row * j.n + b.column - tile.origin;
}

inline Rows gradient_piece(const Job& j, const Tile& tile, const Band& b, Local& w) {
    if (j.filtered) return {plane_piece(j, tile, b, w, FILTERED), j.n};
    return piece_of(j.t->g, j.t->g_type, j, b, w.band[0]);
}

// ---- sums over rows ----------------------------------------------------------------------------

// out[r] += the lanes of acc[r].
template <class S>
AUTOMAGIC_INLINE void add_totals(S, const V* acc, int64_t rows, float* out) {
    if (S::most == W && rows == W) return store(load(out) + totals(acc), out);
    for (int64_t r = 0; r < S::rows(rows); ++r) out[r] += total(acc[r]);
}

template <class S>
inline void add_row_squares(S s, Rows x, int64_t given, int64_t n, float* out) {
    const int64_t rows = S::rows(given);
    V acc[S::most];
    for (int64_t r = 0; r < rows; ++r) acc[r] = all(0.0f);
    for (int64_t c = 0; c < n; c += W)
        for (int64_t r = 0; r < rows; ++r) {
            V v = get<S::whole>(x.p + r * x.stride + c, n - c);
            acc[r] = fused(v, v, acc[r]);
        }
    add_totals(s, acc, rows, out);
}

AUTOMAGIC_INLINE V lerp(V a, V b, float w) {
    return w < 0.5f ? a + all(w) * (b - a) : b - (b - a) * all(1.0f - w);
}

// Row statistic <- its running mean with sums / n + eps; and its reciprocal.
inline void move_row_means(const float* sums, float n, float eps, float weight, int64_t count, float* mean,
                           float* inverse) {
    for (int64_t i = 0; i < count; i += W) {
        V now = lerp(get<false>(mean + i, count - i), load(sums + i) / all(n) + all(eps), weight);
        put<false>(now, mean + i, count - i);
        store(all(1.0f) / now, inverse + i);
    }
}

inline void clear_rows(const Band& b, float* row) {
    for (int64_t i = 0; i < b.rows; i += W) store(all(0.0f), row + i);
}

// ---- pass A ------------------------------------------------------------------------------------

// a += x^2, b += x^2 inverse, over the rows of a piece.
template <class S>
inline void add_column_squares(S, Rows x, const float* inverse, int64_t given, int64_t n, float* a, float* b) {
    const int64_t rows = S::rows(given);
    for (int64_t c = 0; c < n; c += W) {
        V s = load(a + c), t = load(b + c);
        for (int64_t r = 0; r < rows; ++r) {
            V v = get<S::whole>(x.p + r * x.stride + c, n - c), q = v * v;
            s = s + q;
            t = fused(q, all(inverse[r]), t);
        }
        store(s, a + c);
        store(t, b + c);
    }
}

// a += x m root; returns the sum of m^2.
template <class S>
inline float add_column_products(S, Rows x, Rows m, const float* root, int64_t given, int64_t n, float* a) {
    const int64_t rows = S::rows(given);
    V squares = all(0.0f);
    for (int64_t c = 0; c < n; c += W) {
        V s = load(a + c);
        for (int64_t r = 0; r < rows; ++r) {
            V y = get<S::whole>(m.p + r * m.stride + c, n - c);
            s = fused(get<S::whole>(x.p + r * x.stride + c, n - c) * y, all(root[r]), s);
            squares = fused(y, y, squares);
        }
        store(s, a + c);
    }
    return total(squares);
}

// ---- pass B ------------------------------------------------------------------------------------

// The new momentum of a piece and the sums that it gives.
struct Means {
    Rows x, old;
    const float *rf, *cf;  // of the rows of the band, of the columns of the piece
    float turn;            // factor of a turned update, which needs no other
    bool turned;
    float damping, weight;
    float* m;              // new momentum, rows j.n apart
    int64_t stride;
    float *surprise, *first, *second;                 // column sums; the last two of u and u^2, or null
    float *row_surprise, *row_first, *row_second;     // row sums, or null
};

template <class S, bool QUIET>
inline void move_piece(S s, const Means& a, int64_t given, int64_t n) {
    const int64_t rows = S::rows(given);
    const bool near = a.weight < 0.5f, by_row = a.row_first != nullptr, by_column = a.first != nullptr;
    const bool surprised = a.row_surprise != nullptr;
    const V weight = all(near ? a.weight : a.weight - 1.0f), damping = all(a.damping), turn = all(a.turn);
    V acc[S::most], one[S::most], two[S::most];
    if (!QUIET)
        for (int64_t r = 0; r < rows; ++r) acc[r] = one[r] = two[r] = all(0.0f);
    for (int64_t c = 0; c < n; c += W) {
        V cf = a.turned ? turn : get<S::whole>(a.cf + c, n - c), column, p, q;
        if (!QUIET && surprised) column = load(a.surprise + c);
        if (!QUIET && by_column) p = load(a.first + c), q = load(a.second + c);
        for (int64_t r = 0; r < rows; ++r) {
            V u = get<S::whole>(a.x.p + r * a.x.stride + c, n - c);
            u = a.turned ? u * cf : u * all(a.rf[r]) * cf;
            V old = get<S::whole>(a.old.p + r * a.old.stride + c, n - c), target = u * damping;
            V m = fused(weight, target - old, near ? old : target);
            put<S::whole>(m, a.m + r * a.stride + c, n - c);
            if (QUIET) continue;
            if (by_row) {
                one[r] = one[r] + u;
                two[r] = fused(u, u, two[r]);
            }
            if (by_column) {
                p = p + u;
                q = fused(u, u, q);
            }
            if (surprised) {
                V d = u - m, square = d * d;
                column = column + square;
                acc[r] = acc[r] + square;
            }
        }
        if (!QUIET && surprised) store(column, a.surprise + c);
        if (!QUIET && by_column) store(p, a.first + c), store(q, a.second + c);
    }
    if (QUIET) return;
    if (surprised) add_totals(s, acc, rows, a.row_surprise);
    if (by_row) {
        add_totals(s, one, rows, a.row_first);
        add_totals(s, two, rows, a.row_second);
    }
}

// What a sign costs or gains: weight of the elements that disagree with the gradient, and that agree.
struct Signs {
    float against, none, with;
};

struct SignWeights {
    V against, none, with;

    AUTOMAGIC_INLINE explicit SignWeights(const Signs& s) : against(all(s.against)), none(all(s.none)), with(all(s.with)) {}

    AUTOMAGIC_INLINE V of(V product) const {
        V zero = all(0.0f);
        return choose(product < zero, against, choose(zero < product, with, none));
    }
};

// column += (direction)^2 inverse; returns how many elements agree with the gradient, where `counted`.
template <class S>
inline float add_directions(S, Rows m, Rows g, const float* inverse, const Signs& signs, bool counted, int64_t given,
                            int64_t n, float* column) {
    const int64_t rows = S::rows(given);
    const SignWeights weights(signs);
    V agree = all(0.0f);
    for (int64_t c = 0; c < n; c += W) {
        V s = load(column + c);
        for (int64_t r = 0; r < rows; ++r) {
            V x = get<S::whole>(m.p + r * m.stride + c, n - c);
            V product = x * get<S::whole>(g.p + r * g.stride + c, n - c), d = x * weights.of(product);
            s = fused(d * d, all(inverse[r]), s);
            if (counted) agree = agree + choose(all(0.0f) < product, all(1.0f), all(0.0f));
        }
        store(s, column + c);
    }
    return total(agree);
}

// ---- pass C ------------------------------------------------------------------------------------

// Value of the counters in mask words; the second factor of the product is exact at a fresh counter.
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
                fine[i] = exp2_small(static_cast<float>(i) * MASK_STEP);
                coarse[i] = exp2_small(static_cast<float>(16 * i - 96) * MASK_STEP);
            }
        }
    };

    AUTOMAGIC_INLINE V at(const uint8_t* word, int64_t left) const {
        __m512i w = bytes(word, lanes(left));
        w = _mm512_add_epi32(w, _mm512_set1_epi32(2 * (96 + MASK_LOW)));
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
    const float *gain, *rate;      // of the rows of the band
    const float* ds;               // of the columns of the piece
    const uint8_t* word;           // mask words, rows j.n apart, or null
    Rows laplace, edge;            // edges: of the gradient, and their history
    float* history;                // new one, rows j.n apart, or null
    int64_t stride;                // of word and history
    Signs signs;
    Bounds bounds;
    float edge_scale, threshold, penalty;
    float average, slope, decay;   // adaptive decay, none where 0
    float shrink;
};

// 1 in the first lanes.
AUTOMAGIC_INLINE V first_ones(int64_t left) {
    alignas(64) static const float ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    return load(ones + 16 - smaller(left, int64_t(16)));
}

// Returns the sum of the rates of the elements, where they have their own.
template <class S>
inline float weigh_piece(S, const Move& a, int64_t given, int64_t n) {
    const int64_t rows = S::rows(given);
    const SignWeights weights(a.signs);
    const MaskValues values;
    const V low = all(a.bounds.low), high = all(a.bounds.high), floor = all(a.bounds.floor), shrink = all(a.shrink);
    V sum = all(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
        const V gain = all(a.gain[r]), row_rate = all(a.rate[r]);
        const float *m = a.m.p + r * a.m.stride, *g = a.g.p + r * a.g.stride, *p = a.p.p + r * a.p.stride;
        float* to = a.to + r * a.p.stride;
        for (int64_t c = 0; c < n; c += W) {
            const int64_t left = n - c;
            V x = get<S::whole>(m + c, left), y = get<S::whole>(g + c, left), rate = row_rate;
            V move = x * gain * get<S::whole>(a.ds + c, left) * weights.of(x * y);
            if (a.word != nullptr) {
                rate = larger(smaller(larger(values.at(a.word + r * a.stride + c, left) * rate, low), high), floor);
                sum = S::whole || left >= W ? sum + rate : fused(rate, first_ones(left), sum);
            }
            if (a.history != nullptr) {
                V edge = magnitude(get<S::whole>(a.laplace.p + r * a.laplace.stride + c, left));
                V share = edge / (edge + all(a.edge_scale) + all(1e-38f));
                V seen = choose(all(a.threshold) < share, share, all(0.0f));
                V h = lerp(get<S::whole>(a.edge.p + r * a.edge.stride + c, left), seen, 0.1f);
                put<S::whole>(h, a.history + r * a.stride + c, left);
                move = move * (all(1.0f) - all(a.penalty) * h);
            }
            V w = get<S::whole>(p + c, left);
            if (a.decay != 0.0f) {
                V z = (magnitude(y) - all(a.average)) * all(a.slope);
                z = smaller(larger(z, all(-87.0f)), all(87.0f)) * all(1.44269504f);
                V sigmoid = all(2.0f) / (all(1.0f) + exp2_small(z));
                w = fused_minus(w, sigmoid * rate * all(a.decay), w);
            }
            w = fused_minus(move, rate, w) * shrink;
            put<S::whole>(w, to + c, left);
        }
    }
    return total(sum);
}

}  // namespace AUTOMAGIC_ISA
