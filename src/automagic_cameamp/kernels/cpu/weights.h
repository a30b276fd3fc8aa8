// Pass C: direction, rate of every element, weight decay, new weights.
#pragma once

#include "level.h"
#include "momentum.h"

namespace AUTOMAGIC_ISA {

// Rows that receive almost no gradient move half as much: factor *= gain.
inline void background(const float* AUTOMAGIC_RESTRICT energy, float mean, int64_t n, float* AUTOMAGIC_RESTRICT factor) {
    for (int64_t i = 0; i < n; ++i) {
        float share = (energy[i] + 1e-38f) / (mean + 1e-38f);
        factor[i] *= smaller(larger(sqrtf(share / 0.1f), 0.5f), 1.0f);
    }
}

// Rows, or columns, with more detail than the average move more: factor *= gain.
inline void detail(const float* AUTOMAGIC_RESTRICT variance, float mean, float strength, int64_t n,
                   float* AUTOMAGIC_RESTRICT factor) {
    for (int64_t i = 0; i < n; ++i) {
        float gain = 1.0f + strength * ((variance[i] + 1e-38f) / mean - 1.0f);
        factor[i] *= smaller(larger(gain, 0.5f), 1.5f);
    }
}

// New row and column statistics of the surprise, gains of rows and columns, and the final clip.
inline void finish_momentum(Job& j) {
    const Options& o = *j.o;
    float weight = static_cast<float>(1 - o.beta[2]), eps = static_cast<float>(o.eps[1]);
    double out2 = 0, count = static_cast<double>(j.numel);
    double each = 1 / static_cast<double>(j.m);
    float *inverse = j.first, *sums = j.second;
    for (int64_t k = 0; k < j.K; ++k) {
        int64_t first_row = k * j.m;
        float *D = j.D + k * j.n, *ds = j.ds + k * j.n;
        double sum_s = j.confidence && j.matrix ? wide_sum(j.S + first_row, j.m) : static_cast<double>(j.m);
        float mean = static_cast<float>(sum_s * each);
        if (j.confidence) {
            column_sums(j, 0, k, each, sums);
            move_column_means(sums, eps, weight, j.n, D, inverse, ds);
            column_sums(j, 1, k, 1, sums);
            out2 += wide_dot(sums, inverse, j.n) * mean;
        } else {
            fill(ds, 1.0f, j.n);
            column_sums(j, 1, k, 1, sums);
            out2 += wide_sum(sums, j.n) * mean;
        }
        if (j.confidence && j.matrix)
            root_row_means(j.S + first_row, mean, j.m, 1.0f, j.rs + first_row);
        else
            fill(j.rs + first_row, 1.0f, j.m);
        if (o.background && j.matrix)
            background(j.R + first_row, static_cast<float>(wide_sum(j.R + first_row, j.m) * each), j.m,
                       j.rs + first_row);
        if (!has(j.t->spatial)) continue;
        int64_t side = j.per_row ? j.m : j.n;
        float* variance = (j.per_row ? j.row_var : j.col_var) + k * side;
        if (!j.per_row) {
            column_sums(j, 2, k, 1, sums);
            column_sums(j, 3, k, 1, inverse);
            move_variance(sums, inverse, static_cast<float>(j.m), j.n, variance);
        }
        float mean_v = static_cast<float>(wide_sum(variance, side) / static_cast<double>(side)) + 1e-38f;
        detail(variance, mean_v, static_cast<float>(o.detail), side, j.per_row ? j.rs + first_row : ds);
    }
    j.agree_gain = 1.0f;
    if (j.cautious)
        j.agree_gain = 1.0f / larger(static_cast<float>(j.total(AGREE) / count), 1e-3f);
    float rms = static_cast<float>(sqrt(out2 / count)) * j.agree_gain;
    j.gain = isinf(o.final_clip) ? 1.0f : 1.0f / larger(1.0f, rms / static_cast<float>(o.final_clip));
    Task& t = *j.t;
    if (has(t.res_row)) {
        encode_vector(t.res_row, j.S, j.rows, j.noise(t.res_row.salt));
        encode_vector(t.res_col, j.D, j.K * j.n, j.noise(t.res_col.salt));
    } else if (has(t.res)) {
        encode_vector(t.res, j.D, j.n, j.noise(t.res.salt));
    }
    if (has(t.spatial))
        encode_vector(t.spatial, j.per_row ? j.row_var : j.col_var, j.K * (j.per_row ? j.m : j.n),
                      j.noise(t.spatial.salt));
    if (!j.warm || o.mask < 2) return;
    if (o.mask == 3) {
        int8_t* counter = static_cast<int8_t*>(t.mask);
        double votes = j.total(VOTES);
        *counter = moved(*counter, stride(j) * ((votes > 0) - (votes < 0)));
        *t.mask_sum = exp2_small(static_cast<float>(*counter) * MASK_STEP) * static_cast<float>(j.numel);
    } else {
        *t.mask_sum = static_cast<float>(j.total(MASK) * static_cast<double>(j.n));
    }
}

inline EdgeRule edge_rule(const Job& j) {
    return {static_cast<float>(sqrt(j.total(EDGES) / static_cast<double>(j.numel))),
            static_cast<float>(j.o->edge_threshold), static_cast<float>(j.o->edge_penalty)};
}

// What pass C multiplies with, the same for every element of a tensor.
inline Move factors_of(const Job& j, bool dry) {
    const Options& o = *j.o;
    Move a{};
    a.signs = signs_of(j);
    a.signs.with *= j.agree_gain;
    a.bounds = {static_cast<float>(o.low), static_cast<float>(o.high), static_cast<float>(o.floor)};
    double count = static_cast<double>(j.numel);
    double average = j.total(ABS) / count, square_mean = j.total(SQUARE) / count;
    double deviation = sqrt(square_mean > average * average ? square_mean - average * average : 0.0);
    a.average = static_cast<float>(average);
    // A single number deviates from nothing: its decay is the usual one.
    a.slope = j.numel < 2 ? 0.0f : static_cast<float>(-4.0 / (deviation + 1e-4 * average + 1e-30));
    a.decay = j.decays ? static_cast<float>(o.lr * o.weight_decay) : 0.0f;
    a.shrink = dry ? 1.0f : j.shrink;
    a.dry = dry;
    return a;
}

// Rates of rows in w.row, from the squares of their norms where ALLoRA wants them, and what multiplies their
// direction in w.inverse. Returns the sum of the rates where elements have none of their own.
AUTOMAGIC_LOOP double row_rates(const Job& j, const Bounds& b, int64_t r, int64_t rows, Local& w) {
    const Options& o = *j.o;
    const bool allora = o.allora && j.matrix, counters = o.mask == 2;
    const int8_t* counter = o.mask >= 2 ? static_cast<const int8_t*>(j.t->mask) : nullptr;
    const V share = all(static_cast<float>(o.multiplier / j.mask_mean)), gain = all(j.gain * static_cast<float>(o.lr));
    const V least = all(static_cast<float>(1 / (o.eta * o.eta))), highest = all(127.0f);
    const V low = all(larger(b.low, b.floor)), high = all(larger(b.high, b.floor));
    V sum = all(0.0f), k = all(o.mask == 3 ? static_cast<float>(*counter) : 0.0f);
    for (int64_t i = 0; i < rows; i += W) {
        const int64_t left = rows - i;
        V rate = share;
        if (allora) rate = rate * inverse_root(root(get<false>(w.row + i, left)) + least);  // norms may be 0
        if (counters) {
            V byte = get_bytes(reinterpret_cast<const uint8_t*>(counter) + r + i, left);
            k = choose(highest < byte, byte - all(256.0f), byte);
        }
        if (counter != nullptr) rate = rate * exp2_small(k * all(MASK_STEP));
        if (o.mask != 1) rate = smaller(larger(rate, low), high);
        sum = fused(rate, first_ones(left), sum);
        put<false>(rate, w.row + i, left);
        put<false>(get<false>(j.rs + r + i, left) * gain, w.inverse + i, left);
    }
    return o.mask == 1 ? 0 : static_cast<double>(total(sum)) * static_cast<double>(j.n);
}

template <class S, bool EXTRA, bool DRY>
AUTOMAGIC_INLINE Weighed weigh_signed(S s, const Move& a) {
    if (strict(a.signs))
        return a.word != nullptr ? weigh_piece<S, true, true, EXTRA, DRY>(s, a) : weigh_piece<S, true, false, EXTRA, DRY>(s, a);
    return a.word != nullptr ? weigh_piece<S, false, true, EXTRA, DRY>(s, a) : weigh_piece<S, false, false, EXTRA, DRY>(s, a);
}

// Pass C over the bands of a tile.
inline void weight_bands(Job& j, const Tile& tile, Part& part, Move a, Local& w) {
    const Task& t = *j.t;
    bool allora = j.o->allora && j.matrix;
    bool extra = j.edges || j.decays || a.shrink != 1.0f;
    // Where nothing goes through a buffer: memory is read fastest along a row.
    bool rows = j.resident && !j.edges && t.p_type == F32 && t.g_type == F32;
    int64_t along = rows ? j.decays ? RUN : BAND : 0;  // what a decay takes is held in the first cache
    uint32_t base = j.noise(0), edge_base = j.noise(t.edge.salt);
    const EdgeRule edges = edge_rule(j);
    a.stride = j.n;
    if (!j.resident) w.cf = of_columns(j, tile, j.cf + tile.k * j.n, w.tiled[0]);
    w.ds = of_columns(j, tile, j.ds + tile.k * j.n, w.tiled[1]);
    Look look(j);
    for_bands(j, tile, [&](const Band& band) {
        if (!a.dry) look.at(band, w);
        if (allora) {
            clear_rows(band, w.row);
            for_pieces(j, band, [&](const Band& b) {
                Rows p = weights_of(j, b, w.band[2]);
                shaped(j, b, [&](auto s, int64_t r) { add_row_squares<false>(s, p.from(r), w.row + r); });
            });
        }
        double rates = row_rates(j, a.bounds, band.row, band.rows, w);
        if (!a.dry) part.sum[RATE] += rates;
        for_pieces(j, band, [&](const Band& b) {
            if (!j.resident) move_piece(j, tile, b, means_of(j, tile, b, w), nullptr, w);
            int64_t first = b.row * j.n + b.column;
            a.g = piece_of(t.g, t.g_type, j, b, w.band[0]);
            a.m = {plane_piece(j, tile, b, w, used_plane(j)), j.n};
            a.p = weights_of(j, b, w.band[2]);
            a.to = const_cast<float*>(a.p.p);
            const int64_t r = b.row - band.row;
            a.gain = of_rows(j, b, w.inverse + r, w.spread[0]), a.rate = of_rows(j, b, w.row + r, w.spread[1]);
            a.ds = w.ds + b.column;
            if (j.o->mask == 1) a.word = static_cast<const uint8_t*>(t.mask) + first;
            if (j.edges) {
                const float* laplace = plane_of(j, w, LAPLACIAN) - tile.origin;
                for_lines(j, b, [&](int64_t from, int64_t n, int64_t at) {
                    move_edges(t.edge, laplace + from, edges, from, n, j.numel, edge_base, a.dry, w.band[1],
                                     w.band[3] + at);
                });
                a.factor = {w.band[3], b.count};
            }
            if (j.decays) {
                by_row(j, b, [&](auto s) { fade_piece(s, a, w.band[1]); });
                a.fade = {w.band[1], b.count};
            }
            by_row(j, b, [&](auto s) {
                using S = decltype(s);
                if (a.dry) {
                    Weighed sums = weigh_signed<S, true, true>(s, a);
                    part.sum[WEIGHT2] += sums.before, part.sum[NEW2] += sums.after;
                    return;
                }
                Weighed sums = extra ? weigh_signed<S, true, false>(s, a) : weigh_signed<S, false, false>(s, a);
                part.sum[RATE] += sums.rates;
                if (a.word != nullptr) part.sum[MASK] += sums.masks;
            });
            if (t.p_type == F32 || a.dry) return;
            for_lines(j, b, [&](int64_t from, int64_t n, int64_t at) {
                store_weights(a.to + at, t, from, n, base);
            });
        }, along);
    });
    if (!a.dry) look.into(part);
}

// The new weights of a slab, or, where `dry`, only the sums of squares of the old and the new ones.
inline void pass_weights(Job& j, int64_t slab, Local& w, bool dry) {
    Part& part = j.parts[slab];
    const Move factors = factors_of(j, dry);
    if (!dry) part.sum[MASK] = part.sum[RATE] = part.sum[WAY] = part.sum[SEEN2] = part.sum[WAY2] = 0;
    part.sum[NEW2] = part.sum[WEIGHT2] = 0;
    int64_t done = slab * j.slab_rows * j.n;
    for_tiles(j, slab, [&](const Tile& tile) {
        if (!j.resident && (j.filtered || j.edges)) filter_tile(j, tile, w);
        weight_bands(j, tile, part, factors, w);
        if (dry) return;
        if (!j.resident) done = encode_means(j, tile, done, tile.start + tile.count, w);
    });
}

// How much Selective Projection Decay pulls back.
inline void finish_dry(Job& j) {
    float before = sqrtf(static_cast<float>(j.total(WEIGHT2))), after = sqrtf(static_cast<float>(j.total(NEW2)));
    float ratio = after > 0 ? larger(0.0f, smaller(1.0f, 1.0f - before / after)) : 0.0f;
    j.shrink = 1.0f - smaller(static_cast<float>(j.o->weight_decay) * ratio, 1.0f);
}

inline void finish_weights(Job& j) {
    Task& t = *j.t;
    float mean = static_cast<float>(j.total(RATE) / static_cast<double>(j.numel)) * static_cast<float>(j.o->lr);
    *t.avg_lr = mean;
    if (j.warm && j.o->mask == 1) *t.mask_sum = static_cast<float>(j.total(MASK));
    if (t.level != nullptr) finish_look(j);
    *t.step += 1.0f;
    if (t.lowrank_rate != nullptr) *t.lowrank_rate += mean * static_cast<float>(j.o->rank_strength);
}

}  // namespace AUTOMAGIC_ISA
