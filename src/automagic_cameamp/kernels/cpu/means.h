// Pass B in bands: the unit update, the means that move with it, and the sums that they give.
#pragma once

#include "bands.h"

namespace AUTOMAGIC_ISA {

// The unit update of a piece, and its momentum.
struct Means {
    Rows x, old;
    const float *rf, *cf;  // of the rows of the band (of_rows), of the columns of the piece
    float turn;            // factor of a turned update, which needs no other
    bool turned;
    float damping, weight;
    float* m;              // new momentum
    int64_t stride;        // of its rows

    AUTOMAGIC_INLINE Means from(int64_t r) const {
        Means a = *this;
        a.x = x.from(r), a.old = old.from(r), a.rf += r, a.m += r * stride;
        return a;
    }
};

// The unit update u, everywhere this product in this order: see(row, column, elements left, u), between `open` and
// `close` of a register of columns.
template <class S, class Open, class See, class Close>
AUTOMAGIC_INLINE void each_update(S s, const Means& a, Open open, See see, Close close) {
    const int64_t columns = s.columns(), stride = s.stride(a.x.stride);
    const bool turned = a.turned;
    const V turn = all(a.turn);
    const float *x = a.x.p, *rf = a.rf, *cf = a.cf;
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t left = columns - c;
        const V column = turned ? turn : get<S::whole>(cf + c, left);
        const float* from = x + c;
        open(c);
        s.each(AUTOMAGIC_EACH {
            V u = get<S::whole>(from + r * stride, left) * column;
            if (!turned) u = u * s.of_row(rf, r).at(c, left);
            AUTOMAGIC_PREFETCH(from + r * stride + AHEAD);
            see(r, c, left, u);
        });
        close(c);
    }
}

// The same with the new momentum m, which is written: see(row, column, elements left, u, m).
template <class S, class Open, class See, class Close>
AUTOMAGIC_INLINE void each_mean(S s, const Means& a, Open open, See see, Close close) {
    const int64_t apart = s.stride(a.old.stride), step = s.stride(a.stride);
    const V weight = all(a.weight * a.damping), kept = all(1.0f - a.weight);
    const float *was = a.old.p, *before = was;
    float *to = a.m, *now = to;
    each_update(
        s, a,
        [&](int64_t c) __attribute__((always_inline)) {
            before = was + c, now = to + c;
            open(c);
        },
        [&](int64_t r, int64_t c, int64_t left, V u) __attribute__((always_inline)) {
            AUTOMAGIC_PREFETCH(before + r * apart + AHEAD);
            V m = fused(u, weight, get<S::whole>(before + r * apart, left) * kept);
            put<S::whole>(m, now + r * step, left);
            see(r, c, left, u, m);
        },
        close);
}

template <class S>
AUTOMAGIC_LOOP void move_means(S s, const Means& a) {
    each_mean(s, a, [](int64_t) {}, [](int64_t, int64_t, int64_t, V, V) {}, [](int64_t) {});
}

// The same, and the squares of the surprise into column and row sums.
template <class S>
AUTOMAGIC_LOOP void move_surprised(S s, const Means& a, float* column, float* row) {
    RowSums<S> rows(s);
    V sum = all(0.0f);
    each_mean(
        s, a, [&](int64_t c) { sum = load(column + c); },
        [&](int64_t r, int64_t c, int64_t, V u, V m) __attribute__((always_inline)) {
            V d = u - m;
            sum = fused(d, d, sum);
            rows.add_square(r, c, d);
        },
        [&](int64_t c) { store(sum, column + c); });
    rows.into(s, row);
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

    Mixture from(int64_t r) const {
        Mixture x = *this;
        for (int k = 0; k < scales; ++k) x.old[k] = old[k].from(r), x.mean[k] += r * stride;
        x.mixture += r * stride;
        return x;
    }
};

// The same as move_surprised with the mixture in place of the momentum; `column` may be null.
template <class S>
AUTOMAGIC_LOOP void move_mixed(S s, const Means& a, const Mixture& given, float* column, float* row) {
    const Mixture x = given;
    RowSums<S> rows(s);
    V sum = all(0.0f);
    each_mean(
        s, a,
        [&](int64_t c) {
            if (column != nullptr) sum = load(column + c);
        },
        [&](int64_t r, int64_t c, int64_t left, V u, V m) __attribute__((always_inline)) {
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
            rows.add_square(r, c, d);
        },
        [&](int64_t c) {
            if (column != nullptr) store(sum, column + c);
        });
    if (column != nullptr) rows.into(s, row);
}

// The unit update of a piece, rows as long as it is wide.
template <class S>
AUTOMAGIC_LOOP void write_updates(S s, const Means& a, float* out) {
    const int64_t columns = s.columns();
    each_update(
        s, a, [](int64_t) {},
        [&](int64_t r, int64_t c, int64_t left, V u) { put<S::whole>(u, out + r * columns + c, left); }, [](int64_t) {});
}

// Sums of the update and its squares, over the rows and over the columns of a piece; either may be null.
template <class S>
AUTOMAGIC_LOOP void add_moments(S s, const Means& a, float* first, float* second, float* row_first, float* row_second) {
    RowSums<S> one(s), two(s);
    V p = all(0.0f), q = p;
    each_update(
        s, a, [&](int64_t) { p = q = all(0.0f); },
        [&](int64_t r, int64_t c, int64_t, V u) __attribute__((always_inline)) {
            p = p + u;
            q = fused(u, u, q);
            one.add(r, c, u);
            two.add_square(r, c, u);
        },
        [&](int64_t c) {
            if (first == nullptr) return;
            store(load(first + c) + p, first + c);
            store(load(second + c) + q, second + c);
        });
    if (row_first == nullptr) return;
    one.into(s, row_first);
    two.into(s, row_second);
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
AUTOMAGIC_LOOP float add_directions(S s, Rows m, Rows g, const float* inverse, const Signs& signs, float* column) {
    const int64_t columns = s.columns(), stride = s.stride(m.stride), apart = s.stride(g.stride);
    const V ratio = all(signs.against);
    V agree = all(0.0f);
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t left = columns - c;
        const float *mean = m.p + c, *gradient = g.p + c;
        V sum = load(column + c);
        s.each(AUTOMAGIC_EACH {
            V x = get<S::whole>(mean + r * stride, left);
            V product = x * get<S::whole>(gradient + r * apart, left), d = signed_by<STRICT>(x, product, ratio);
            sum = fused(d * d, s.of_row(inverse, r).at(c, left), sum);
            if (COUNTED) agree = agree + choose(all(0.0f) < product, all(1.0f), all(0.0f));
        });
        store(sum, column + c);
    }
    return total(agree);
}

}  // namespace AUTOMAGIC_ISA
