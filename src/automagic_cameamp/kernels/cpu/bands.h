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
            AUTOMAGIC_PREFETCH(p + i + k * W + AHEAD);
            V x = get<false>(g + i + k * W, left);
            one[k] = fused(x, x, one[k]);
            two[k] = two[k] + magnitude(x);
            if (p != nullptr) three[k] = fused(x, get<false>(p + i + k * W, left), three[k]);
        }
    return {total(one[0] + one[1]), total(two[0] + two[1]), total(three[0] + three[1])};
}

// ---- pass B ------------------------------------------------------------------------------------

// Update, momentum and where it goes, of a piece.
struct Means {
    Rows x, old;
    const float *rf, *cf;  // of the rows of the band, of the columns of the piece
    float turn;            // factor of a turned update, which needs no other
    bool turned;
    float damping, weight;
    float* m;              // new momentum
    int64_t stride;        // of its rows
};

// Unit update, new momentum; u and m are handed to `see(row, column, u, m)`, between `open` and `close` of a column.
template <class S, class Open, class See, class Close>
AUTOMAGIC_INLINE void each_mean(S, const Means& a, int64_t rows, int64_t n, Open open, See see, Close close) {
    const int64_t columns = S::columns(n), stride = S::stride(a.x.stride), apart = S::stride(a.old.stride);
    const int64_t step = S::stride(a.stride);
    const bool turned = a.turned;
    const V weight = all(a.weight * a.damping), kept = all(1.0f - a.weight), turn = all(a.turn);
    const float *x = a.x.p, *was = a.old.p, *rf = a.rf, *cf = a.cf;
    float* to = a.m;
    for (int64_t c = 0; c < columns; c += W) {
        const V column = turned ? turn : get<S::whole>(cf + c, columns - c);
        const float *from = x + c, *before = was + c;
        float* now = to + c;
        open(c);
        S::each(rows, AUTOMAGIC_EACH {
            V u = get<S::whole>(from + r * stride, columns - c) * column;
            if (!turned) u = u * all(rf[r]);
            AUTOMAGIC_PREFETCH(before + r * apart + AHEAD);
            AUTOMAGIC_PREFETCH(from + r * stride + AHEAD);
            V m = fused(u, weight, get<S::whole>(before + r * apart, columns - c) * kept);
            put<S::whole>(m, now + r * step, columns - c);
            see(r, c, u, m);
        });
        close(c);
    }
}

template <class S>
inline void move_means(S s, const Means& a, int64_t rows, int64_t n) {
    each_mean(s, a, rows, n, [](int64_t) {}, [](int64_t, int64_t, V, V) {}, [](int64_t) {});
}

// The same, and the squares of the surprise into column and row sums.
template <class S>
inline void move_surprised(S s, const Means& a, int64_t rows, int64_t n, float* column, float* row) {
    V acc[S::most], sum = all(0.0f);
    S::each(rows, AUTOMAGIC_EACH { acc[r] = all(0.0f); });
    each_mean(
        s, a, rows, n, [&](int64_t c) { sum = load(column + c); },
        [&](int64_t r, int64_t, V u, V m) __attribute__((always_inline)) {
            V d = u - m;
            sum = fused(d, d, sum);
            acc[r] = fused(d, d, acc[r]);
        },
        [&](int64_t c) { store(sum, column + c); });
    add_totals(s, acc, rows, row);
}

// Further means of a piece, and what the momentum is mixed of.
struct Mixture {
    int scales;
    float own, update;          // shares of the momentum itself and of the update
    float share[MAX_SCALES], rate[MAX_SCALES];
    Rows old[MAX_SCALES];
    float* mean[MAX_SCALES];    // rows `stride` apart, like the mixture
    float* mixture;
    int64_t stride;
};

// The same as move_surprised with the mixture in place of the momentum; `column` may be null.
template <class S>
inline void move_mixed(S s, const Means& a, const Mixture& given, int64_t rows, int64_t n, float* column, float* row) {
    const Mixture x = given;
    V acc[S::most], sum = all(0.0f);
    S::each(rows, AUTOMAGIC_EACH { acc[r] = all(0.0f); });
    each_mean(
        s, a, rows, n,
        [&](int64_t c) {
            if (column != nullptr) sum = load(column + c);
        },
        [&](int64_t r, int64_t c, V u, V m) __attribute__((always_inline)) {
            const int64_t left = n - c;
            V mix = fused(u, all(x.update), m * all(x.own));
            for (int k = 0; k < x.scales; ++k) {
                V old = get<S::whole>(x.old[k].p + r * x.old[k].stride + c, left);
                V mean = fused(u, all(x.rate[k]), old * all(1.0f - x.rate[k]));
                put<S::whole>(mean, x.mean[k] + r * x.stride + c, left);
                mix = fused(mean, all(x.share[k]), mix);
            }
            put<S::whole>(mix, x.mixture + r * x.stride + c, left);
            V d = u - mix;
            sum = fused(d, d, sum);
            acc[r] = fused(d, d, acc[r]);
        },
        [&](int64_t c) {
            if (column != nullptr) store(sum, column + c);
        });
    if (column != nullptr) add_totals(s, acc, rows, row);
}

// The unit update of a piece, rows `count` apart.
inline void write_updates(const Means& a, const Band& b, float* out) {
    for (int64_t r = 0; r < b.rows; ++r)
        for (int64_t c = 0; c < b.count; c += W) {
            const int64_t left = b.count - c;
            V u = get<false>(a.x.p + r * a.x.stride + c, left);
            u = a.turned ? u * all(a.turn) : u * get<false>(a.cf + c, left) * all(a.rf[r]);
            put<false>(u, out + r * b.count + c, left);
        }
}

// Sums of the update and its squares, over the rows and over the columns of a piece; either may be null.
template <class S>
inline void add_moments(S s, const Means& a, int64_t rows, int64_t n, float* first, float* second, float* row_first,
                        float* row_second) {
    const int64_t columns = S::columns(n), stride = S::stride(a.x.stride);
    V one[S::most], two[S::most];
    S::each(rows, AUTOMAGIC_EACH { one[r] = two[r] = all(0.0f); });
    for (int64_t c = 0; c < columns; c += W) {
        const V column = a.turned ? all(a.turn) : get<S::whole>(a.cf + c, columns - c);
        const float* from = a.x.p + c;
        V p = all(0.0f), q = all(0.0f);
        S::each(rows, AUTOMAGIC_EACH {
            V u = get<S::whole>(from + r * stride, columns - c) * column;
            if (!a.turned) u = u * all(a.rf[r]);
            p = p + u;
            q = fused(u, u, q);
            one[r] = one[r] + u;
            two[r] = fused(u, u, two[r]);
        });
        if (first == nullptr) continue;
        store(load(first + c) + p, first + c);
        store(load(second + c) + q, second + c);
    }
    if (row_first == nullptr) return;
    add_totals(s, one, rows, row_first);
    add_totals(s, two, rows, row_second);
}

// What a sign costs or gains: weight of the elements that disagree with the gradient, and that agree.
struct Signs {
    float against, none, with;
};

// Elements without a sign go with those that agree, or (STRICT) with those that disagree. What both are
// multiplied with is left to the caller: `ratio` = against / with.
template <bool STRICT>
AUTOMAGIC_INLINE V signed_by(V x, V product, V ratio) {
    V zero = all(0.0f);
    if (STRICT) return choose(zero < product, x, x * ratio);
    return scaled(product < zero, x, ratio);
}

AUTOMAGIC_INLINE bool strict(const Signs& s) { return s.none != s.with; }

// column += (direction)^2 inverse, of a direction in which signs.with is 1; returns how many elements agree with the gradient, where COUNTED.
template <class S, bool STRICT, bool COUNTED>
inline float add_directions(S, Rows m, Rows g, const float* inverse, const Signs& signs, int64_t rows, int64_t n,
                            float* column) {
    const int64_t columns = S::columns(n), stride = S::stride(m.stride), apart = S::stride(g.stride);
    const V ratio = all(signs.against);
    V agree = all(0.0f);
    for (int64_t c = 0; c < columns; c += W) {
        const float *mean = m.p + c, *gradient = g.p + c;
        V s = load(column + c);
        S::each(rows, AUTOMAGIC_EACH {
            V x = get<S::whole>(mean + r * stride, columns - c);
            V product = x * get<S::whole>(gradient + r * apart, columns - c), d = signed_by<STRICT>(x, product, ratio);
            s = fused(d * d, all(inverse[r]), s);
            if (COUNTED) agree = agree + choose(all(0.0f) < product, all(1.0f), all(0.0f));
        });
        store(s, column + c);
    }
    return total(agree);
}

}  // namespace AUTOMAGIC_ISA
