// Pass B: momentum, its surprise, the mask. S of a row is final once the row is read, so the squares of the
// direction are summed in the same pass: the final clip needs no pass of its own either.
#pragma once

#include "gradient.h"
#include "mask.h"

namespace AUTOMAGIC_ISA {

// `out` may be `old`.
inline void lerp_run(const float* old, const float* AUTOMAGIC_RESTRICT u, float gain, float weight,
                     int64_t n, float* out) {
    if (weight < 0.5f)
        for (int64_t i = 0; i < n; ++i) out[i] = fused(weight, u[i] * gain - old[i], old[i]);
    else
        for (int64_t i = 0; i < n; ++i) out[i] = fused(weight - 1.0f, u[i] * gain - old[i], u[i] * gain);
}

inline void weigh(const float* AUTOMAGIC_RESTRICT x, float weight, int64_t n, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * weight;
}

inline void add_weighed(const float* AUTOMAGIC_RESTRICT x, float weight, int64_t n, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) out[i] = fused(x[i], weight, out[i]);
}

// Update of unit size of a run, in w.u.
inline void unit_update(const Job& j, const Tile& tile, const Run& run, Local& w) {
    if (j.low_rank) return weigh(j.full[FILTERED] + run.start, j.turn, run.count, w.u);
    const float* x = gradient(j, tile, run, w);
    const float* cf = j.cf + tile.k * j.n;
    spread(j.rf + run.row, run.rows, j.n, w.rf);
    tile_rows(cf, run.rows, j.n, w.cf);
    scale_run(x, w.rf, w.cf, run.count, w.u);
}

// New means of a run into their planes; returns the momentum that the direction is made of.
inline const float* move_run_means(const Job& j, const Tile& tile, const Run& run, Local& w) {
    int64_t at = run.start - tile.origin;
    float* own = plane_of(j, w, MOMENTUM) + at;
    const float* old = decode_run(j.t->exp_avg, run.start, run.count, w.x);
    lerp_run(old, w.u, j.damping, 1.0f - j.beta1, run.count, own);
    if (!j.o->mixed) return own;
    float* mixture = plane_of(j, w, MIXTURE) + at;
    weigh(own, static_cast<float>(j.o->own_share), run.count, mixture);
    if (j.o->update_share != 0) add_weighed(w.u, static_cast<float>(j.o->update_share), run.count, mixture);
    for (int s = 0; s < j.o->scales; ++s) {
        float* mean = plane_of(j, w, FIRST_SCALE + s) + at;
        old = decode_run(j.t->scale[s], run.start, run.count, w.x);
        lerp_run(old, w.u, 1.0f, static_cast<float>(j.o->scale_rate[s]), run.count, mean);
        add_weighed(mean, static_cast<float>(j.o->share[s]), run.count, mixture);
    }
    return mixture;
}

AUTOMAGIC_INLINE const float* momentum_plane(const Job& j, const Local& w) {
    return plane_of(j, w, j.o->mixed ? MIXTURE : MOMENTUM);
}

// Codes of the means from element `done` of the tensor on, as far as blocks are complete; returns how far.
inline int64_t encode_means(const Job& j, const Tile& tile, int64_t done, int64_t end, const Local& w) {
    int64_t limit = end == j.numel ? end : end - end % (j.unit * j.n);
    for (int s = -1; s < j.o->scales; ++s) {
        const Coded& c = s < 0 ? j.t->exp_avg : j.t->scale[s];
        const float* x = plane_of(j, w, s < 0 ? MOMENTUM : FIRST_SCALE + s);
        if (x == c.q) continue;  // fp32 means that fit into the cache are moved where they lie
        encode_run(c, x + done - tile.origin, done, limit - done, j.numel, 0);
    }
    return limit;
}

inline void surprise(const float* AUTOMAGIC_RESTRICT u, const float* AUTOMAGIC_RESTRICT m, int64_t n,
                     float* AUTOMAGIC_RESTRICT column, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) {
        float d = u[i] - m[i], q = d * d;
        column[i] += q;
        out[i] = q;
    }
}

inline Signs signs_of(const Job& j) {
    if (!j.o->improved) return j.o->grams ? Signs{1.0f - 2.0f * j.mix, 1.0f, 1.0f} : Signs{1.0f, 1.0f, 1.0f};
    if (j.early) return j.o->grams ? Signs{-1.0f, 1.0f, 1.0f} : Signs{1.0f, 1.0f, 1.0f};
    return j.o->cautious ? Signs{0.0f, 0.0f, 1.0f} : Signs{1.0f, 1.0f, 1.0f};
}

AUTOMAGIC_INLINE float sign_weight(float m, float g, const Signs& s) {
    float product = m * g;
    return product < 0.0f ? s.against : product > 0.0f ? s.with : s.none;
}

inline void add_direction(const float* AUTOMAGIC_RESTRICT m, const float* AUTOMAGIC_RESTRICT g,
                          const float* AUTOMAGIC_RESTRICT inverse, Signs s, int64_t n,
                          float* AUTOMAGIC_RESTRICT column) {
    for (int64_t i = 0; i < n; ++i) {
        float d = m[i] * sign_weight(m[i], g[i], s);
        column[i] = fused(d * d, inverse[i], column[i]);
    }
}

inline float count_agreement(const float* AUTOMAGIC_RESTRICT m, const float* AUTOMAGIC_RESTRICT g, int64_t n) {
    int32_t s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += m[i] * g[i] > 0.0f;
    return static_cast<float>(s);
}

// Running variance <- that of rows with these sums of elements and of squares.
inline void move_variance(const float* AUTOMAGIC_RESTRICT sums, const float* AUTOMAGIC_RESTRICT squares, float n,
                          int64_t count, float* AUTOMAGIC_RESTRICT variance) {
    for (int64_t i = 0; i < count; ++i) {
        float mean = sums[i] / n;
        variance[i] = lerp(variance[i], larger(squares[i] / n - mean * mean, 0.0f), 0.1f);
    }
}

inline void add_moments(const float* AUTOMAGIC_RESTRICT u, int64_t n, float* AUTOMAGIC_RESTRICT sums,
                        float* AUTOMAGIC_RESTRICT squares) {
    for (int64_t i = 0; i < n; ++i) {
        sums[i] += u[i];
        squares[i] = fused(u[i], u[i], squares[i]);
    }
}

// The part of a tensor's step that every piece shares.
inline Means means_of(const Job& j, const Tile& tile, const Band& b, Local& w) {
    Means a{};
    a.turned = j.low_rank;
    a.turn = j.turn;
    a.x = j.low_rank ? Rows{j.full[FILTERED] + b.row * j.n + b.column, j.n} : gradient_piece(j, tile, b, w);
    a.rf = j.rf + b.row;
    a.cf = j.cf + tile.k * j.n + b.column;
    a.old = decoded_piece(j.t->exp_avg, j, b, w.band[1]);
    a.damping = j.damping;
    a.weight = 1.0f - j.beta1;
    a.m = plane_piece(j, tile, b, w, MOMENTUM);
    a.stride = j.n;
    return a;
}

// A mean of a piece in fp32: in place where it is that, else decoded into its plane.
inline Rows held_mean(const Coded& c, const Job& j, const Tile& tile, const Band& b, const Local& w, int plane) {
    if (c.code == PLAIN) return {static_cast<const float*>(c.q) + b.row * j.n + b.column, j.n};
    float* to = plane_of(j, w, plane) - tile.origin;
    for_lines(j, b, [&](int64_t first, int64_t n, int64_t) { decode_run(c, first, n, to + first); });
    return {plane_piece(j, tile, b, w, plane), j.n};
}

inline Mixture mixture_of(const Job& j, const Tile& tile, const Band& b, const Local& w) {
    Mixture x{};
    x.scales = j.o->scales;
    x.own = static_cast<float>(j.o->own_share), x.update = static_cast<float>(j.o->update_share);
    for (int s = 0; s < x.scales; ++s) {
        x.share[s] = static_cast<float>(j.o->share[s]), x.rate[s] = static_cast<float>(j.o->scale_rate[s]);
        x.old[s] = held_mean(j.t->scale[s], j, tile, b, w, FIRST_SCALE + s);
        x.mean[s] = plane_piece(j, tile, b, w, FIRST_SCALE + s);
    }
    x.mixture = plane_piece(j, tile, b, w, MIXTURE);
    x.stride = j.n;
    return x;
}

// The momentum that directions are made of.
AUTOMAGIC_INLINE int used_plane(const Job& j) { return j.o->mixed ? MIXTURE : MOMENTUM; }

// Pass B over the bands of a tile.
inline void momentum_bands(Job& j, const Tile& tile, int64_t slab, Part& part, Lines& lines, int64_t& done, Local& w) {
    const Options& o = *j.o;
    bool variance = has(j.t->spatial), by_row = variance && j.per_row, by_column = variance && !j.per_row;
    bool rows = j.confidence && j.matrix, counted = o.improved && o.cautious && !j.early;
    float weight = static_cast<float>(1 - o.beta[2]), eps = static_cast<float>(o.eps[1]);
    float *first = w.rate, *second = w.out;
    Signs signs = signs_of(j);
    bool one = j.n == W;  // every piece is its rows one after the other, in place or not
    for_bands(j, tile, [&](const Band& band) {
        clear_rows(band, w.row);
        clear_rows(band, first);
        clear_rows(band, second);
        for_pieces(j, band, [&](const Band& b) {
            Means a = means_of(j, tile, b, w);
            float* column = w.sums[0] + b.column;
            if (j.sketches) {  // before the momentum moves: band 1 may hold it
                write_updates(a, b, w.band[2]);
                for_lines(j, b, [&](int64_t start, int64_t n, int64_t at) {
                    add_sketch(j, slab, w.band[2] + at, start, n);
                });
            }
            if (variance) {
                float *p = by_column ? w.sums[2] + b.column : nullptr, *q = w.sums[3] + b.column;
                shaped(b, one, [&](auto s) { add_moments(s, a, b.rows, b.count, p, q, by_row ? first : nullptr, second); });
            }
            Mixture mixture{};
            if (o.mixed) mixture = mixture_of(j, tile, b, w);
            shaped(b, one, [&](auto s) {
                if (o.mixed)
                    move_mixed(s, a, mixture, b.rows, b.count, j.confidence ? column : nullptr, w.row);
                else if (j.confidence)
                    move_surprised(s, a, b.rows, b.count, column, w.row);
                else
                    move_means(s, a, b.rows, b.count);
            });
        });
        if (rows)
            move_row_means(w.row, static_cast<float>(j.n), eps, weight, band.rows, j.S + band.row, w.inverse);
        else
            fill(w.inverse, 1.0f, band.rows);
        if (by_row) move_variance(first, second, static_cast<float>(j.n), band.rows, j.row_var + band.row);
        for_pieces(j, band, [&](const Band& b) {
            Rows g = piece_of(j.t->g, j.t->g_type, j, b, w.band[0]);
            Rows m{plane_piece(j, tile, b, w, used_plane(j)), j.n};
            float* column = w.sums[1] + b.column;
            shaped(b, one, [&](auto s) {
                using S = decltype(s);
                if (counted)
                    part.sum[AGREE] += add_directions<S, true, true>(s, m, g, w.inverse, signs, b.rows, b.count, column);
                else
                    add_directions<S, false, false>(s, m, g, w.inverse, signs, b.rows, b.count, column);
            });
        });
        lines.after(j, tile, slab, band, w);
        int64_t end = (band.row + band.rows) * j.n;  // coded while the cache holds it
        if (j.resident && end - done >= BAND) done = encode_means(j, tile, done, end, w);
    });
    if (!j.warm || o.mask != 1) return;
    for (int64_t r = tile.first; r < tile.end;) {
        int64_t count = rows_at_once(j, r, tile.end);
        for_runs(j, r, count, [&](const Run& run) {
            move_words(j, run, load_run(j.t->g, j.t->g_type, run.start, run.count, w.raw), part);
        });
        r += count;
    }
}

// Pass B over the runs of a tile: rows shorter than a register.
inline void momentum_runs(Job& j, const Tile& tile, int64_t slab, Part& part, int count_columns, Local& w) {
    const Options& o = *j.o;
    bool variance = has(j.t->spatial), by_row = variance && j.per_row, by_column = variance && !j.per_row;
    bool rows = j.confidence && j.matrix, counted = o.improved && o.cautious && !j.early;
    float weight = static_cast<float>(1 - o.beta[2]), eps = static_cast<float>(o.eps[1]);
    Signs signs = signs_of(j);
    clear_sums(j, count_columns, w);
    const float* plane = momentum_plane(j, w) - tile.origin;
    for (int64_t r = tile.first; r < tile.end;) {
        int64_t count = rows_at_once(j, r, tile.end);
        float first[RUN], second[RUN];
        for_runs(j, r, count, [&](const Run& run) {
            unit_update(j, tile, run, w);
            const float* m = move_run_means(j, tile, run, w);
            if (j.sketches) add_sketch(j, slab, w.u, run.start, run.count);
            if (by_column) add_moments(w.u, run.count, w.sums[2], w.sums[3]);
            if (by_row) {
                row_sums(w.u, count, j.n, first);
                row_squares(w.u, count, j.n, w.out, second);
            }
            if (!j.confidence) return;
            surprise(w.u, m, run.count, w.sums[0], w.out);
            row_sums(w.out, count, j.n, w.row);
        });
        if (rows)
            move_row_means(w.row, static_cast<float>(j.n), eps, weight, count, j.S + r, w.inverse);
        else
            fill(w.inverse, 1.0f, count);
        if (by_row) move_variance(first, second, static_cast<float>(j.n), count, j.row_var + r);
        for_runs(j, r, count, [&](const Run& run) {
            const float* g = load_run(j.t->g, j.t->g_type, run.start, run.count, w.raw);
            const float* m = plane + run.start;
            spread(w.inverse, count, j.n, w.rf);
            add_direction(m, g, w.rf, signs, run.count, w.sums[1]);
            if (counted) part.sum[AGREE] += count_agreement(m, g, run.count);
            if (j.warm && o.mask == 1) move_words(j, run, g, part);
        });
        r += count;
    }
    flush_columns(j, tile, slab, count_columns, smaller(j.group, tile.end - tile.first), w);
}

inline void pass_momentum(Job& j, int64_t slab, Local& w) {
    Part& part = j.parts[slab];
    const Options& o = *j.o;
    int count_columns = has(j.t->spatial) && !j.per_row ? 4 : 2;
    clear_columns(j, slab, count_columns);
    if (j.sketches) fill(j.sketches + slab * smaller(j.numel, int64_t(4096)), 0.0f, smaller(j.numel, int64_t(4096)));
    int64_t done = slab * j.slab_rows * j.n;
    Lines lines(j, slab, count_columns, w);
    for_tiles(j, slab, [&](const Tile& tile) {
        if (!j.resident && j.filtered) filter_tile(j, tile, w);
        if (in_bands(j))
            momentum_bands(j, tile, slab, part, lines, done, w);
        else
            momentum_runs(j, tile, slab, part, count_columns, w);
        if (j.warm && o.mask >= 2) vote(j, tile, part, w);
        if (j.resident) done = encode_means(j, tile, done, tile.start + tile.count, w);
    });
    int64_t end = smaller((slab + 1) * j.slab_rows, j.rows) * j.n;
    if (j.resident && done < end) {
        Tile last{0, 0, 0, end, 0, 0};
        encode_means(j, last, done, end, w);
    }
}

}  // namespace AUTOMAGIC_ISA
