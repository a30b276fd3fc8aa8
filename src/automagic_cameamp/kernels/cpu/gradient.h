// Pass A: what the gradient alone decides. R of a row is final once the row is read, so the same pass that
// sums g^2 over columns also sums g^2 / R, and with it sum u^2 = mean(R) sum_j (sum_i g_ij^2 / R_i) / C_j:
// the clip of the update needs no pass of its own. The same holds for <u, m>.
#pragma once

#include <math.h>

#include "bands.h"
#include "lowrank.h"

namespace AUTOMAGIC_ISA {

// Column sums of bands into those of the slab; those of packed bands lie side by side, `rows` of them.
inline void flush_columns(const Job& j, const Tile& tile, int64_t slab, int count, int64_t rows, Local& w) {
    for (int c = 0; c < count; ++c) {
        double* AUTOMAGIC_RESTRICT to = j.own_columns(c, slab) + tile.k * j.n;
        for (int64_t r = 0; r < rows; ++r) {
            const float* AUTOMAGIC_RESTRICT from = w.sums[c] + r * j.n;
            for (int64_t i = 0; i < j.n; ++i) to[i] += from[i];
        }
    }
}

inline void clear_columns(const Job& j, int64_t slab, int count) {
    int64_t first = j.K == 1 ? 0 : slab * j.slab_rows / j.m;
    int64_t end = j.K == 1 ? 1 : smaller((slab + 1) * j.slab_rows, j.rows) / j.m;
    for (int c = 0; c < count; ++c) {
        double* to = j.own_columns(c, slab);
        for (int64_t i = first * j.n; i < end * j.n; ++i) to[i] = 0;
    }
}

// Sums over the raw gradient and the weights.
inline void add_raw_sums(const Job& j, int64_t first, int64_t n, Part& part, Local& w) {
    const float* g = load_run(j.t->g, j.t->g_type, first, n, w.raw);
    const float* p = j.along ? load_weights(*j.t, first, n, w.other) : nullptr;
    RawSums sums = raw_sums(g, p, n);
    part.sum[SQUARE] += sums.squares, part.sum[ABS] += sums.magnitudes, part.sum[ALONG] += sums.along;
}

// The column sums of bands: added in fp32 over some rows, whatever tiles they are in (packed: over a tile), then in
// doubles.
struct Columns {
    int64_t rows, last;
    int count;

    Columns(const Job& j, int64_t slab, int columns, Local& w)
        : rows(0), last(smaller((slab + 1) * j.slab_rows, j.rows)), count(columns) {
        clear(j, w);
    }

    void clear(const Job& j, Local& w) {
        for (int c = 0; c < count; ++c) fill(w.sums[c], 0.0f, packed(j) ? j.group * j.n : j.n);
        rows = 0;
    }

    void after(const Job& j, const Tile& tile, int64_t slab, const Band& b, Local& w) {
        rows += b.rows;
        int64_t end = b.row + b.rows;
        if (packed(j) ? end < tile.end : rows < FLUSH && end < last && end < (tile.k + 1) * j.m) return;
        flush_columns(j, tile, slab, count, packed(j) ? smaller(j.group, tile.end - tile.first) : 1, w);
        clear(j, w);
    }
};

// Pass A over the bands of a tile.
inline void gradient_bands(Job& j, const Tile& tile, int64_t slab, Part& part, bool torque, Columns& columns, Local& w) {
    float weight = static_cast<float>(1 - j.o->beta[1]), eps = static_cast<float>(j.o->eps[0]);
    // The sums over a gradient that nothing filtered come with those of its rows.
    const bool aside = j.sums_needed && (j.filtered || j.along || !j.matrix), beside = j.sums_needed && !aside;
    for_bands(j, tile, [&](const Band& band) {
        if (aside)
            for_lines(j, band, [&](int64_t first, int64_t n, int64_t) {
                for (int64_t i = 0; i < n; i += RUN) add_raw_sums(j, first + i, smaller(RUN, n - i), part, w);
            });
        if (j.matrix) {
            clear_rows(band, w.row);
            for_pieces(j, band, [&](const Band& b) {
                Rows x = gradient_piece(j, tile, b, w);
                shaped(j, b, [&](auto s, int64_t r) {
                    if (beside)
                        part.sum[ABS] += static_cast<double>(add_row_squares<true>(s, x.from(r), w.row + r));
                    else
                        add_row_squares<false>(s, x.from(r), w.row + r);
                });
            });
            for (int64_t i = 0; beside && i < band.rows; ++i) part.sum[SQUARE] += static_cast<double>(w.row[i]);
            move_row_means(w.row, static_cast<float>(j.n), eps, weight, band.rows, j.R + band.row, w.inverse);
        } else {
            fill(w.inverse, 1.0f, band.rows);
        }
        for (int64_t i = 0; torque && i < band.rows; ++i) w.first[i] = sqrtf(w.inverse[i]);
        const float* inverse = of_rows(j, band, w.inverse, w.spread[0]);
        const float* root = torque ? of_rows(j, band, w.first, w.spread[1]) : nullptr;
        for_pieces(j, band, [&](const Band& b) {
            Rows x = gradient_piece(j, tile, b, w);
            float *first = w.sums[0] + b.column, *second = w.sums[1] + b.column, *third = w.sums[2] + b.column;
            shaped(j, b, [&](auto s, int64_t r) { add_column_squares(s, x.from(r), inverse + r, first, second); });
            if (!torque) return;
            const Coded& mean = j.t->exp_avg;
            Rows m = decodes_early(j) ? held_mean(mean, j, tile, b, w, MOMENTUM) : decoded_piece(mean, j, b, w.band[1]);
            shaped(j, b, [&](auto s, int64_t r) {
                part.sum[MEAN2] += add_column_products(s, x.from(r), m.from(r), root + r, third);
            });
        });
        columns.after(j, tile, slab, band, w);
    });
}

inline void pass_gradient(Job& j, int64_t slab, Local& w) {
    Part& part = j.parts[slab];
    for (double& s : part.sum) s = 0;
    bool torque = j.torque && !j.low_rank;
    clear_columns(j, slab, torque ? 3 : 2);
    Columns columns(j, slab, torque ? 3 : 2, w);
    for_tiles(j, slab, [&](const Tile& tile) {
        if (j.filtered || j.edges) part.sum[EDGES] += filter_tile(j, tile, w);
        gradient_bands(j, tile, slab, part, torque, columns, w);
    });
}

// torque-aware momentum: how much this update counts.
inline void finish_torque(Job& j, double cross, double mean2, double update2) {
    float norms = sqrtf(static_cast<float>(mean2) * static_cast<float>(update2));
    float cosine = norms > 0 ? larger(-1.0f, smaller(1.0f, static_cast<float>(cross) / norms)) : 0.0f;
    float s = lerp(*j.t->torque, cosine, 0.1f);
    *j.t->torque = s;
    j.damping = 1.0f + s + static_cast<float>(j.o->eps[2]);
}

// Sum of a vector, in several double lanes.
inline double wide_sum(const float* AUTOMAGIC_RESTRICT x, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += static_cast<double>(x[i]);
    return s;
}

inline double wide_dot(const float* AUTOMAGIC_RESTRICT x, const float* AUTOMAGIC_RESTRICT y, int64_t n) {
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += static_cast<double>(x[i]) * static_cast<double>(y[i]);  // may be 1e20 each
    return s;
}

// Column sums of matrix k over all slabs, times a factor.
inline void column_sums(const Job& j, int which, int64_t k, double factor, float* AUTOMAGIC_RESTRICT out) {
    const double* AUTOMAGIC_RESTRICT first = j.columns[which] + k * j.n;
    if (j.K > 1 || j.slabs == 1) {
        for (int64_t i = 0; i < j.n; ++i) out[i] = static_cast<float>(first[i] * factor);
        return;
    }
    // Slab by slab over some columns: rows of so many slabs lie in the same few places of a cache.
    constexpr int64_t SOME = 64;
    for (int64_t start = 0; start < j.n; start += SOME) {
        const int64_t n = smaller(SOME, j.n - start);
        double s[SOME] = {0};
        for (int64_t p = 0; p < j.slabs; ++p) {
            const double* AUTOMAGIC_RESTRICT from = first + p * j.n + start;
            for (int64_t i = 0; i < n; ++i) s[i] += from[i];
        }
        for (int64_t i = 0; i < n; ++i) out[start + i] = static_cast<float>(s[i] * factor);
    }
}

// New statistics; false, and nothing written, where the gradient was not finite.
inline bool finish_gradient(Job& j) {
    const Options& o = *j.o;
    float weight = static_cast<float>(1 - o.beta[1]), eps = static_cast<float>(o.eps[0]);
    double rows = 0, columns = 0, update2 = 0, cross = 0, each = 1 / static_cast<double>(j.m);
    float *inverse = j.first, *sums = j.second;
    for (int64_t k = 0; k < j.K; ++k) {
        double sum_r = j.matrix ? wide_sum(j.R + k * j.m, j.m) : 1.0;
        float mean = static_cast<float>(sum_r * each), *C = j.C + k * j.n, *cf = j.cf + k * j.n;
        rows += sum_r;
        column_sums(j, 0, k, each, sums);
        move_column_means(sums, eps, weight, j.n, C, inverse, cf);
        columns += wide_sum(C, j.n);
        column_sums(j, 1, k, 1, sums);
        update2 += wide_dot(sums, inverse, j.n) * mean;
        if (j.torque && !j.low_rank) {
            column_sums(j, 2, k, 1, sums);
            cross += wide_dot(sums, cf, j.n) * sqrt(static_cast<double>(mean));
        }
        if (j.matrix)
            root_row_means(j.R + k * j.m, mean, j.m, 1.0f, j.rf + k * j.m);
        else
            j.rf[k] = 1.0f;
    }
    if (!isfinite(static_cast<float>(rows)) || !isfinite(static_cast<float>(columns))) return false;
    double count = static_cast<double>(j.numel);
    float rms = static_cast<float>(sqrt(update2 / count)), clip = 1.0f;
    if (!isinf(o.clip)) clip = 1.0f / larger(1.0f, rms / static_cast<float>(o.clip));
    for (int64_t i = 0; i < j.rows; ++i) j.rf[i] *= clip;
    if (j.torque && !j.low_rank)
        finish_torque(j, cross * clip, j.total(MEAN2), update2 * clip * static_cast<double>(clip));
    j.grows = j.early && o.d_coef > 1 && static_cast<float>(j.total(ALONG)) < 0.0f;
    if (j.matrix) {
        encode_vector(j.t->sq_row, j.R, j.rows, j.noise(j.t->sq_row.salt));
        encode_vector(j.t->sq_col, j.C, j.K * j.n, j.noise(j.t->sq_col.salt));
    } else {
        encode_vector(j.t->sq, j.C, j.n, j.noise(j.t->sq.salt));
    }
    return true;
}

inline void finish_turn(Job& j) {
    double before = j.total(UPDATE2), after = j.total(TURNED2);
    j.turn = after > 0 ? sqrtf(static_cast<float>(before) / static_cast<float>(after)) : 1.0f;
    if (j.torque) finish_torque(j, j.total(CROSS) * j.turn, j.total(MEAN2), after * j.turn * j.turn);
}

}  // namespace AUTOMAGIC_ISA
