// Bands: a few rows of a tensor that a pass takes together, piece by piece, with every value in a register.
//
// Short rows are summed W at a time, so that the sums over them end in the lanes of one register, and a band holds some
// such groups, so that what is done once a band weighs little; of longer rows four share each load and store of a
// column's sums. Rows below one register come packed, a run of them as one row:
// the loops are the same, and only what a row has one of (a factor, a sum) is found in another way.
#pragma once

#include "stencil.h"
#include "vectors.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t SHORT = 128;  // longest row of which W make a group
constexpr int64_t GROUPS = 1024; // elements of a band of short rows, unless one group has more
constexpr int64_t AHEAD = 256;                // elements; a processor's own prefetch stops at the end of a page
constexpr int64_t FLUSH = 256;               // rows whose column sums are added in fp32

AUTOMAGIC_INLINE bool packed(const Job& j) { return j.n < W; }

// Rows [row, row + rows), columns [column, column + count).
struct Band {
    int64_t row, rows, column, count;
};

// Element (r, c) of a piece lies at p[r * stride + c].
struct Rows {
    const float* p;
    int64_t stride;

    AUTOMAGIC_INLINE Rows from(int64_t r) const { return {p + r * stride, stride}; }
};

// A value of each row, as the loops over a piece find it: the same for the whole row, or one for each element.
struct OfRow {
    V value;
    AUTOMAGIC_INLINE V at(int64_t, int64_t) const { return value; }
};
struct OfElements {
    const float* value;
    AUTOMAGIC_INLINE V at(int64_t c, int64_t left) const { return get<false>(value + c, left); }
};

// A loop over a piece: a function of its own, so that its registers are its own. Inlined into a pass, where dozens of
// them meet, they spilled twice as often and took longer to compile.
#define AUTOMAGIC_LOOP inline __attribute__((noinline))

// How the loops over a piece are unrolled. ROWS: rows, or 0 where that is known when it runs only; WHOLE: rows
// are whole registers long; ONE: rows are one register long and follow each other.
template <int ROWS, bool WHOLE, bool ONE = false>
struct Shape {
    static constexpr int most = ROWS ? ROWS : static_cast<int>(W);
    static constexpr bool whole = WHOLE;
    int64_t given, width;

    AUTOMAGIC_INLINE int64_t rows() const { return ROWS ? ROWS : given; }
    AUTOMAGIC_INLINE int64_t columns() const { return ONE ? W : width; }
    static AUTOMAGIC_INLINE int64_t stride(int64_t apart) { return ONE ? W : apart; }
    static AUTOMAGIC_INLINE OfRow of_row(const float* values, int64_t r) { return {all(values[r])}; }

    template <class F>
    AUTOMAGIC_INLINE void each(F f) const {
        if constexpr (ROWS != 0) {
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) f(r);
        } else {
            for (int64_t r = 0; r < given; ++r) f(r);
        }
    }
};

// Rows below one register: the one row that holds them all.
struct Packed {
    static constexpr int most = 1;
    static constexpr bool whole = false;
    int64_t held, n;  // rows, and their elements

    AUTOMAGIC_INLINE int64_t rows() const { return 1; }
    AUTOMAGIC_INLINE int64_t columns() const { return held * n; }
    static AUTOMAGIC_INLINE int64_t stride(int64_t apart) { return apart; }
    static AUTOMAGIC_INLINE OfElements of_row(const float* values, int64_t) { return {values}; }

    template <class F>
    AUTOMAGIC_INLINE void each(F f) const {
        f(0);
    }
};

// Sums over each row of a piece.
template <class S>
struct RowSums {
    V sum[S::most];

    explicit AUTOMAGIC_INLINE RowSums(S s) {
        s.each([&](int64_t r) __attribute__((always_inline)) { sum[r] = all(0.0f); });
    }
    AUTOMAGIC_INLINE void add(int64_t r, int64_t, V x) { sum[r] = sum[r] + x; }
    AUTOMAGIC_INLINE void add_square(int64_t r, int64_t, V x) { sum[r] = fused(x, x, sum[r]); }
    // out[r] += the sum of row r
    AUTOMAGIC_INLINE void into(S s, float* out) const {
        if (S::most == W && s.rows() == W) return store(load(out) + totals(sum), out);
        for (int64_t r = 0; r < smaller(s.rows(), int64_t(S::most)); ++r) out[r] += total(sum[r]);
    }
};
template <>
struct RowSums<Packed> {
    float held[RUN + W];

    explicit AUTOMAGIC_INLINE RowSums(Packed) {}
    AUTOMAGIC_INLINE void add(int64_t, int64_t c, V x) { store(x, held + c); }
    AUTOMAGIC_INLINE void add_square(int64_t, int64_t c, V x) { store(x * x, held + c); }
    AUTOMAGIC_INLINE void into(Packed s, float* out) const { row_sums(held, s.held, s.n, out); }  // no other piece adds
};

#define AUTOMAGIC_EACH [&](int64_t r) __attribute__((always_inline))

// The rows of a piece, as many at a time as end in one register of sums: f(rows, the first of them).
template <class F>
AUTOMAGIC_INLINE void for_groups(const Band& b, F f) {
    for (int64_t r = 0; r < b.rows; r += W) f(smaller(W, b.rows - r), r);
}

// f(shape of some rows of a piece, the first of them), for loops that take all of these at once.
template <class F>
AUTOMAGIC_INLINE void shaped(const Job& j, const Band& b, F f) {
    const int64_t n = b.count;
    const bool whole = n % W == 0;
    if (packed(j)) return f(Packed{b.rows, n}, int64_t(0));
    for_groups(b, [&](int64_t rows, int64_t r) __attribute__((always_inline)) {
        if (rows == W)
            j.n == W ? f(Shape<W, true, true>{rows, n}, r) : whole ? f(Shape<W, true>{rows, n}, r) : f(Shape<W, false>{rows, n}, r);
        else if (W != 4 && rows == 4)
            whole ? f(Shape<4, true>{rows, n}, r) : f(Shape<4, false>{rows, n}, r);
        else if (rows == 1)
            f(Shape<1, false>{rows, n}, r);
        else
            f(Shape<0, false>{rows, n}, r);
    });
}

// The same for loops that take one row after the other, which need no copy for each number of rows, but sum them.
template <class F>
AUTOMAGIC_INLINE void summed(const Job& j, const Band& b, F f) {
    const int64_t n = b.count;
    if (packed(j)) return f(Packed{b.rows, n}, int64_t(0));
    for_groups(b, [&](int64_t rows, int64_t r) __attribute__((always_inline)) {
        if (j.n == W)
            f(Shape<0, true, true>{rows, n}, r);
        else if (n % W == 0)
            f(Shape<0, true>{rows, n}, r);
        else
            f(Shape<0, false>{rows, n}, r);
    });
}

// f(shape), for loops over any number of rows that do not.
template <class F>
AUTOMAGIC_INLINE void by_row(const Job& j, const Band& b, F f) {
    if (packed(j))
        f(Packed{b.rows, b.count});
    else if (j.n == W)
        f(Shape<0, true, true>{b.rows, b.count});
    else if (b.count % W == 0)
        f(Shape<0, true>{b.rows, b.count});
    else
        f(Shape<0, false>{b.rows, b.count});
}

// Values of the rows of a band, where the loops look for them: of_row.
AUTOMAGIC_INLINE const float* of_rows(const Job& j, const Band& b, const float* values, float* held) {
    if (!packed(j)) return values;
    spread(values, b.rows, j.n, held);
    return held;
}

// Values of columns, as far as the bands of a tile reach.
AUTOMAGIC_INLINE const float* of_columns(const Job& j, const Tile& tile, const float* values, float* held) {
    if (!packed(j)) return values;
    tile_rows(values, smaller(j.group, tile.end - tile.first), j.n, held);
    return held;
}

template <class F>
inline void for_bands(const Job& j, const Tile& tile, F f) {
    int64_t most = packed(j) ? j.group : j.n <= SHORT ? W * larger(int64_t(1), GROUPS / (W * j.n)) : 4;
    for (int64_t r = tile.first; r < tile.end;) {
        int64_t left = tile.end - r, rows = smaller(most, left);
        if (j.n > SHORT && left < most) rows = 1;
        f(Band{r, rows, 0, j.n});
        r += rows;
    }
}

// `along`: so many elements of one row after the other, in the order in which they lie in memory.
template <class F>
inline void for_pieces(const Job& j, const Band& b, F f, int64_t along = 0) {
    if (j.n <= RUN) return f(b);
    const int64_t rows = along ? 1 : b.rows, most = along ? along : j.piece;
    for (int64_t r = 0; r < b.rows; r += rows)
        for (int64_t c = 0; c < j.n; c += most) f(Band{b.row + r, rows, c, smaller(most, j.n - c)});
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

inline Rows weights_of(const Job& j, const Band& b, float* held) {
    const Task& t = *j.t;
    if (t.rest == nullptr) return piece_of(t.p, t.p_type, j, b, held);
    for_lines(j, b, [&](int64_t first, int64_t n, int64_t at) { load_weights(t, first, n, held + at); });
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

// A mean of a piece in fp32: in place where it is that, else decoded into its plane.
inline Rows held_mean(const Coded& c, const Job& j, const Tile& tile, const Band& b, const Local& w, int plane) {
    if (c.code == PLAIN) return {static_cast<const float*>(c.q) + b.row * j.n + b.column, j.n};
    float* to = plane_of(j, w, plane) - tile.origin;
    for_lines(j, b, [&](int64_t first, int64_t n, int64_t) { decode_run(c, first, n, to + first); });
    return {plane_piece(j, tile, b, w, plane), j.n};
}

inline Rows gradient_piece(const Job& j, const Tile& tile, const Band& b, Local& w) {
    if (j.filtered) return {plane_piece(j, tile, b, w, FILTERED), j.n};
    return piece_of(j.t->g, j.t->g_type, j, b, w.band[0]);
}

// ---- sums over rows ----------------------------------------------------------------------------

// Returns the sum of magnitudes, where SIZES.
template <bool SIZES, class S>
AUTOMAGIC_LOOP float add_row_squares(S s, Rows x, float* out) {
    const int64_t columns = s.columns(), stride = s.stride(x.stride);
    RowSums<S> sums(s);
    V sizes[2] = {all(0.0f), all(0.0f)};
    for (int64_t c = 0; c < columns; c += W) {
        const float* from = x.p + c;
        s.each(AUTOMAGIC_EACH {
            AUTOMAGIC_PREFETCH(from + r * stride + AHEAD);
            V v = get<S::whole>(from + r * stride, columns - c);
            sums.add_square(r, c, v);
            if (SIZES) sizes[r & 1] = sizes[r & 1] + magnitude(v);
        });
    }
    sums.into(s, out);
    return SIZES ? total(sizes[0] + sizes[1]) : 0.0f;
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
AUTOMAGIC_LOOP void add_column_squares(S s, Rows x, const float* inverse, float* a, float* b) {
    const int64_t columns = s.columns(), stride = s.stride(x.stride);
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t left = columns - c;
        const float* from = x.p + c;
        V sum = load(a + c), weighed = load(b + c);
        s.each(AUTOMAGIC_EACH {
            V v = get<S::whole>(from + r * stride, left), q = v * v;
            sum = sum + q;
            weighed = fused(q, s.of_row(inverse, r).at(c, left), weighed);
        });
        store(sum, a + c);
        store(weighed, b + c);
    }
}

// a += x m root; returns the sum of m^2.
template <class S>
AUTOMAGIC_LOOP float add_column_products(S s, Rows x, Rows m, const float* root, float* a) {
    const int64_t columns = s.columns(), stride = s.stride(x.stride), apart = s.stride(m.stride);
    V squares = all(0.0f);
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t left = columns - c;
        const float *from = x.p + c, *mean = m.p + c;
        V sum = load(a + c);
        s.each(AUTOMAGIC_EACH {
            V y = get<S::whole>(mean + r * apart, left);
            sum = fused(get<S::whole>(from + r * stride, left) * y, s.of_row(root, r).at(c, left), sum);
            squares = fused(y, y, squares);
        });
        store(sum, a + c);
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
