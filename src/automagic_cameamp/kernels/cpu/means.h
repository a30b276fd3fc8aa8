// Pass B in bands: the unit update, the means that move with it, and the sums that they give.
#pragma once

#include "bands.h"

namespace AUTOMAGIC_ISA {

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

// column += (direction)^2 inverse, of a direction in which signs.with is 1; returns how many elements agree with
// the gradient, where COUNTED.
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
