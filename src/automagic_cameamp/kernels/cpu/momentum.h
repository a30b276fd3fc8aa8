// Pass B: momentum, its surprise, the mask. S of a row is final once the row is read, so the squares of the
// direction are summed in the same pass: the final clip needs no pass of its own either.
#pragma once

#include "gradient.h"
#include "mask.h"

namespace AUTOMAGIC_ISA {

// Codes of the means from element `done` of the tensor on, as far as blocks are complete; returns how far.
inline int64_t encode_means(const Job& j, const Tile& tile, int64_t done, int64_t end, const Local& w) {
    int64_t limit = end == j.numel ? end : end - end % (j.unit * j.n);
    for (int s = -1; s < j.o->scales; ++s) {
        const Coded& c = s < 0 ? j.t->exp_avg : j.t->scale[s];
        const float* x = plane_of(j, w, s < 0 ? MOMENTUM : FIRST_SCALE + s);
        if (x == c.q) continue;  // fp32 means that fit into the cache are moved where they lie
        encode_run(c, x + done - tile.origin, done, limit - done, j.numel, j.noise(c.salt));
    }
    return limit;
}

inline Signs signs_of(const Job& j) {
    if (j.cautious) return Signs{0.0f, 0.0f, 1.0f};
    return j.o->grams ? Signs{1.0f - 2.0f * j.mix, 1.0f, 1.0f} : Signs{1.0f, 1.0f, 1.0f};
}

constexpr float FLAT = 1e-4f;  // techniques/spatial.py

// Running variance <- that of rows with these sums of elements and of squares.
inline void move_variance(const float* AUTOMAGIC_RESTRICT sums, const float* AUTOMAGIC_RESTRICT squares, float n,
                          int64_t count, float* AUTOMAGIC_RESTRICT variance) {
    for (int64_t i = 0; i < count; ++i) {
        float mean = sums[i] / n;
        float square = squares[i] / n;
        variance[i] = lerp(variance[i], larger(square - mean * mean, FLAT * square), 0.1f);
    }
}

// What the loops over a piece make its momentum of.
inline Means means_of(const Job& j, const Tile& tile, const Band& b, Local& w) {
    Means a{};
    a.turned = j.low_rank;
    a.turn = j.turn;
    a.x = j.low_rank ? Rows{j.full[FILTERED] + b.row * j.n + b.column, j.n} : gradient_piece(j, tile, b, w);
    a.rf = of_rows(j, b, j.rf + b.row, w.spread[0]);
    a.cf = w.cf + b.column;
    if (decodes_early(j))
        a.old = {plane_piece(j, tile, b, w, MOMENTUM), j.n};
    else
        a.old = decoded_piece(j.t->exp_avg, j, b, w.band[1]);
    a.damping = j.damping;
    a.weight = 1.0f - j.beta1;
    a.m = plane_piece(j, tile, b, w, MOMENTUM);
    a.stride = j.n;
    return a;
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

// New means of a piece; the squares of their surprise to `column` and w.row, where `column` is not null.
AUTOMAGIC_INLINE void move_piece(const Job& j, const Tile& tile, const Band& b, const Means& a, float* column, Local& w) {
    if (j.o->mixed) {
        const Mixture x = mixture_of(j, tile, b, w);
        summed(j, b, [&](auto s, int64_t r) { move_mixed(s, a.from(r), x.from(r), column, w.row + r); });
    } else {
        shaped(j, b, [&](auto s, int64_t r) {
            column != nullptr ? move_surprised(s, a.from(r), column, w.row + r) : move_means(s, a.from(r));
        });
    }
}

// Pass B over the bands of a tile.
inline void momentum_bands(Job& j, const Tile& tile, int64_t slab, Part& part, Columns& columns, int64_t& done,
                           Local& w) {
    const Options& o = *j.o;
    bool variance = has(j.t->spatial), across = variance && j.per_row, down = variance && !j.per_row;
    bool rows = j.confidence && j.matrix, counted = j.cautious;
    float weight = static_cast<float>(1 - o.beta[2]), eps = static_cast<float>(o.eps[1]);
    Signs signs = signs_of(j);
    w.cf = of_columns(j, tile, j.cf + tile.k * j.n, w.tiled[0]);
    for_bands(j, tile, [&](const Band& band) {
        clear_rows(band, w.row);
        clear_rows(band, w.first);
        clear_rows(band, w.second);
        for_pieces(j, band, [&](const Band& b) {
            Means a = means_of(j, tile, b, w);
            float* column = w.sums[0] + b.column;
            if (j.sketches) {  // before the momentum moves: band 1 may hold it
                by_row(j, b, [&](auto s) { write_updates(s, a, w.band[2]); });
                for_lines(j, b, [&](int64_t start, int64_t n, int64_t at) {
                    add_sketch(j, slab, w.band[2] + at, start, n);
                });
            }
            if (variance) {  // few have one, and sums in two directions fill no fewer registers by being unrolled
                float *p = down ? w.sums[2] + b.column : nullptr, *q = w.sums[3] + b.column;
                summed(j, b, [&](auto s, int64_t r) {
                    add_moments(s, a.from(r), p, q, across ? w.first + r : nullptr, w.second + r);
                });
            }
            move_piece(j, tile, b, a, j.confidence ? column : nullptr, w);
        });
        if (rows)
            move_row_means(w.row, static_cast<float>(j.n), eps, weight, band.rows, j.S + band.row, w.inverse);
        else
            fill(w.inverse, 1.0f, band.rows);
        if (across) move_variance(w.first, w.second, static_cast<float>(j.n), band.rows, j.row_var + band.row);
        const float* inverse = of_rows(j, band, w.inverse, w.spread[1]);
        for_pieces(j, band, [&](const Band& b) {
            Rows g = piece_of(j.t->g, j.t->g_type, j, b, w.band[0]);
            Rows m{plane_piece(j, tile, b, w, used_plane(j)), j.n};
            float* column = w.sums[1] + b.column;
            shaped(j, b, [&](auto s, int64_t r) {
                using S = decltype(s);
                if (counted)
                    part.sum[AGREE] += add_directions<S, true, true>(s, m.from(r), g.from(r), inverse + r, signs, column);
                else
                    add_directions<S, false, false>(s, m.from(r), g.from(r), inverse + r, signs, column);
            });
        });
        columns.after(j, tile, slab, band, w);
        int64_t end = (band.row + band.rows) * j.n;  // coded while the cache holds it
        if (j.resident && end - done >= BAND) done = encode_means(j, tile, done, end, w);
    });
    if (j.warm && o.mask == 1)
        for_runs(j, tile, [&](int64_t first, int64_t n) {
            const float* g = load_run(j.t->g, j.t->g_type, first, n, w.raw);
            move_run(g, n, stride(j), static_cast<uint8_t*>(j.t->mask) + first);
        });
}

inline void pass_momentum(Job& j, int64_t slab, Local& w) {
    Part& part = j.parts[slab];
    const Options& o = *j.o;
    int count_columns = has(j.t->spatial) && !j.per_row ? 4 : 2;
    clear_columns(j, slab, count_columns);
    if (j.sketches) fill(j.sketches + slab * smaller(j.numel, int64_t(4096)), 0.0f, smaller(j.numel, int64_t(4096)));
    int64_t done = slab * j.slab_rows * j.n;
    Columns columns(j, slab, count_columns, w);
    for_tiles(j, slab, [&](const Tile& tile) {
        if (!j.resident && j.filtered) filter_tile(j, tile, w);
        momentum_bands(j, tile, slab, part, columns, done, w);
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
