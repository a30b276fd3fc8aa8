// Bands: a few rows of a tensor that a pass takes together, piece by piece, with every value in a register.
//
// Short rows come W at a time, so that the sums over them end in the lanes of one register; of longer rows
// four share each load and store of a column's sums. Rows below one register are left to the loops over runs.
#pragma once

#include "stencil.h"
#include "vectors.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t SHORT = 128;  // longest row of which W make a band
constexpr int64_t AHEAD = 256;                // elements; a processor's own prefetch stops at the end of a page
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

// How the loops over a piece are unrolled. ROWS: rows, or 0 where that is known when it runs only; WHOLE: rows
// are whole registers long; ONE: rows are one register long and follow each other.
template <int ROWS, bool WHOLE, bool ONE = false>
struct Shape {
    static constexpr int most = ROWS ? ROWS : static_cast<int>(W);
    static constexpr bool whole = WHOLE;

    static AUTOMAGIC_INLINE int64_t columns(int64_t given) { return ONE ? W : given; }
    static AUTOMAGIC_INLINE int64_t stride(int64_t given) { return ONE ? W : given; }

    template <class F>
    static AUTOMAGIC_INLINE void each(int64_t given, F f) {
        if constexpr (ROWS != 0) {
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) f(r);
        } else {
            for (int64_t r = 0; r < given; ++r) f(r);
        }
    }
};

#define AUTOMAGIC_EACH [&](int64_t r) __attribute__((always_inline))

template <class F>
AUTOMAGIC_INLINE void shaped(const Band& b, bool one, F f) {
    bool whole = b.count % W == 0;
    if (b.rows == W)
        one ? f(Shape<W, true, true>()) : whole ? f(Shape<W, true>()) : f(Shape<W, false>());
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
    for (int64_t r = 0; r < smaller(rows, int64_t(S::most)); ++r) out[r] += total(acc[r]);
}

template <class S>
inline void add_row_squares(S s, Rows x, int64_t rows, int64_t n, float* out) {
    const int64_t columns = S::columns(n), stride = S::stride(x.stride);
    V acc[S::most];
    S::each(rows, AUTOMAGIC_EACH { acc[r] = all(0.0f); });
    for (int64_t c = 0; c < columns; c += W) {
        const float* from = x.p + c;
        S::each(rows, AUTOMAGIC_EACH {
            AUTOMAGIC_PREFETCH(from + r * stride + AHEAD);
            V v = get<S::whole>(from + r * stride, columns - c);
            acc[r] = fused(v, v, acc[r]);
        });
    }
    add_totals(s, acc, rows, out);
}

AUTOMAGIC_INLINE V lerp(V a, V b, float w) {
    return w < 0.5f ? a + all(w) * (b - a) : b - (b - a) * all(1.0f - w);
}

// Row statistic <- its running mean with sums / n + eps; and its reciprocal.
inline void move_row_means(const float* sums, float n, float eps, float weight, int64_t count, float* mean,
                           float* inverse) {
    const V each = all(1.0f / n), least = all(eps);
    for (int64_t i = 0; i < count; i += W) {
        V now = lerp(get<false>(mean + i, count - i), fused(load(sums + i), each, least), weight);
        put<false>(now, mean + i, count - i);
        store(all(1.0f) / now, inverse + i);
    }
}

// gain / sqrt(row / mean)
inline void root_row_means(const float* row, float mean, int64_t n, float gain, float* out) {
    const V scale = all(1.0f / mean), by = all(gain);
    for (int64_t i = 0; i < n; i += W) put<false>(by * inverse_root(get<false>(row + i, n - i) * scale), out + i, n - i);
}

// Column statistic <- its running mean; its reciprocal and the root of that.
inline void move_column_means(const float* means, float eps, float weight, int64_t n, float* mean, float* inverse,
                              float* root) {
    for (int64_t i = 0; i < n; i += W) {
        V now = lerp(get<false>(mean + i, n - i), get<false>(means + i, n - i) + all(eps), weight);
        V y = inverse_root(now);
        put<false>(now, mean + i, n - i);
        put<false>(y * y, inverse + i, n - i);
        put<false>(y, root + i, n - i);
    }
}

inline void clear_rows(const Band& b, float* row) {
    for (int64_t i = 0; i < b.rows; i += W) store(all(0.0f), row + i);
}

// ---- pass A ------------------------------------------------------------------------------------

// a += x^2, b += x^2 inverse, over the rows of a piece.
template <class S>
inline void add_column_squares(S, Rows x, const float* inverse, int64_t rows, int64_t n, float* a, float* b) {
    const int64_t columns = S::columns(n), stride = S::stride(x.stride);
    for (int64_t c = 0; c < columns; c += W) {
        const float* from = x.p + c;
        V s = load(a + c), t = load(b + c);
        S::each(rows, AUTOMAGIC_EACH {
            V v = get<S::whole>(from + r * stride, columns - c), q = v * v;
            s = s + q;
            t = fused(q, all(inverse[r]), t);
        });
        store(s, a + c);
        store(t, b + c);
    }
}

// a += x m root; returns the sum of m^2.
template <class S>
inline float add_column_products(S, Rows x, Rows m, const float* root, int64_t rows, int64_t n, float* a) {
    const int64_t columns = S::columns(n), stride = S::stride(x.stride), apart = S::stride(m.stride);
    V squares = all(0.0f);
    for (int64_t c = 0; c < columns; c += W) {
        const float *from = x.p + c, *mean = m.p + c;
        V s = load(a + c);
        S::each(rows, AUTOMAGIC_EACH {
            V y = get<S::whole>(mean + r * apart, columns - c);
            s = fused(get<S::whole>(from + r * stride, columns - c) * y, all(root[r]), s);
            squares = fused(y, y, squares);
        });
        store(s, a + c);
    }
    return total(squares);
}

// Sums over the raw gradient and the weights.
struct RawSums {
    float squares, magnitudes, along;
};

// `p` may be null.
inline RawSums raw_sums(const float* g, const float* p, int64_t n) {
    V one[2], two[2], three[2];
    for (int k = 0; k < 2; ++k) one[k] = two[k] = three[k] = all(0.0f);
    for (int64_t i = 0; i < n; i += 2 * W)
        for (int k = 0; k < 2; ++k) {
            int64_t left = n - i - k * W;
            if (left <= 0) break;
            AUTOMAGIC_PREFETCH(g + i + k * W + AHEAD);
            V x = get<false>(g + i + k * W, left);
            one[k] = fused(x, x, one[k]);
            two[k] = two[k] + magnitude(x);
            if (p == nullptr) continue;
            AUTOMAGIC_PREFETCH(p + i + k * W + AHEAD);
            three[k] = fused(x, get<false>(p + i + k * W, left), three[k]);
        }
    return {total(one[0] + one[1]), total(two[0] + two[1]), total(three[0] + three[1])};
}

}  // namespace AUTOMAGIC_ISA
