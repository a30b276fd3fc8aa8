// The update leans to the strongest directions of the weights (techniques/lowrank.py): u + (e - 1) Q Q^T u.
#pragma once

#include "job.h"
#include "vectors.h"

namespace AUTOMAGIC_ISA {

// ---- small dense products ------------------------------------------------------------------------

constexpr int64_t LARGEST_SIDE = 128;  // techniques/lowrank.py
constexpr int64_t COLUMNS = 32;        // that are turned at a time
constexpr int MOST_ROWS = 96;

// c[i][:] = sum_l a[i][l] b[l][:] for ROWS rows of WIDE registers, of which `width` floats are stored; their
// squares are added to `squares` (columns of b beyond the width are 0).
template <int ROWS, int WIDE>
inline void product(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t inner, float* c, int64_t ldc,
                    int64_t width, V& squares) {
    static_assert(WIDE <= 2, "the loops below name each register");
    // Unrolled by hand where the compiler would keep the sums in memory.
    V sum[ROWS], next[ROWS], found = squares;
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) sum[i] = next[i] = all(0.0f);
    for (int64_t l = 0; l < inner; ++l) {
        V right = load(b + l * ldb), further = WIDE == 2 ? load(b + l * ldb + W) : right;
#pragma GCC unroll 12
        for (int i = 0; i < ROWS; ++i) {
            V left = all(a[i * lda + l]);
            sum[i] = fused(left, right, sum[i]);
            if (WIDE == 2) next[i] = fused(left, further, next[i]);
        }
    }
    bool whole = width >= WIDE * W;
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
        found = fused(sum[i], sum[i], found);
        if (WIDE == 2) found = fused(next[i], next[i], found);
        float* to = c + i * ldc;
        if (whole) {
            store(sum[i], to);
            if (WIDE == 2) store(next[i], to + W);
        } else {
            put<false>(sum[i], to, width);
            if (WIDE == 2) put<false>(next[i], to + W, width - W);
        }
    }
    squares = found;
}

// The same for any number of rows and at most COLUMNS columns.
template <int WIDE>
inline void product_rows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t inner, int64_t rows,
                         float* c, int64_t ldc, int64_t width, V& squares) {
    constexpr int most = WIDE == 1 ? 12 : 6;  // enough sums to hide that each waits for its last
    int64_t i = 0;
    for (; i + most <= rows; i += most)
        product<most, WIDE>(a + i * lda, lda, b, ldb, inner, c + i * ldc, ldc, width, squares);
    for (; i + 4 <= rows; i += 4)
        product<4, WIDE>(a + i * lda, lda, b, ldb, inner, c + i * ldc, ldc, width, squares);
    for (; i < rows; ++i) product<1, WIDE>(a + i * lda, lda, b, ldb, inner, c + i * ldc, ldc, width, squares);
}

inline void product_columns(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t inner, int64_t rows,
                            int64_t columns, float* c, int64_t ldc, V& squares) {
    int64_t at = 0;
    for (; columns - at > W; at += 2 * W)
        product_rows<2>(a, lda, b + at, ldb, inner, rows, c + at, ldc, columns - at, squares);
    if (at < columns) product_rows<1>(a, lda, b + at, ldb, inner, rows, c + at, ldc, columns - at, squares);
}

// ---- the turn --------------------------------------------------------------------------------------

// r x r of every matrix: identity + (e - 1) Q Q^T, or e identity - (e - 1) T T^T where T are the other directions.
inline void build_turn(Job& j) {
    int64_t r = smaller(j.m, j.n), kept = j.t->kept, pitch = turn_pitch(r);
    float lean = static_cast<float>(j.o->emphasis - 1), whole = j.t->tail ? static_cast<float>(j.o->emphasis) : 1.0f;
    if (j.t->tail) lean = -lean;
    for (int64_t k = 0; k < j.K; ++k) {
        float* out = j.basis + k * r * pitch;
        for (int64_t i = 0; i < r * pitch; ++i) out[i] = 0.0f;
        for (int64_t i = 0; i < kept; ++i) {
            float q[LARGEST_SIDE];
            for (int64_t a = 0; a < r; ++a) {
                int64_t at = (k * r + a) * kept + i;
                q[a] = j.t->tail ? static_cast<float>(static_cast<const int8_t*>(j.t->basis)[at]) / 127.0f
                                 : from_bf16(static_cast<const uint16_t*>(j.t->basis)[at]);
            }
            for (int64_t a = 0; a < r; ++a)
                for (int64_t b = 0; b < r; ++b) out[a * pitch + b] = fused(lean * q[a], q[b], out[a * pitch + b]);
        }
        for (int64_t a = 0; a < r; ++a) out[a * pitch + a] += whole;
    }
}

// out = x rf cf; returns `squares` plus those of the products.
inline V scale_wide(const float* x, float rf, const float* AUTOMAGIC_RESTRICT cf, int64_t n, float* out, V squares) {
    V row = all(rf);
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        V u = load(x + i) * row * load(cf + i);
        squares = fused(u, u, squares);
        store(u, out + i);
    }
    if (i == n) return squares;
    float last[W] = {0};
    for (int64_t l = i; l < n; ++l) last[l - i] = x[l] * rf * cf[l];
    V u = load(last);
    store(u, out + i);
    return fused(u, u, squares);
}

// What the turn of a slab adds up: squares before and after.
struct TurnSums {
    double before, after;
};

// Rows of n <= 128 elements.
inline TurnSums turn_rows(const Job& j, int64_t slab, Local& w) {
    TurnSums sums{0, 0};
    int64_t pitch = turn_pitch(j.n), most = smaller(int64_t(MOST_ROWS), 3072 / pitch / 12 * 12);
    alignas(64) float held[3072 + COLUMNS];
    for_tiles(j, slab, [&](const Tile& tile) {
        const float* turn = j.basis + tile.k * j.n * pitch;
        const float* cf = j.cf + tile.k * j.n;
        for (int64_t r = tile.first; r < tile.end; r += most) {
            int64_t rows = smaller(most, tile.end - r);
            float* out = j.full[FILTERED] + r * j.n;
            V before = all(0.0f), after = all(0.0f);
            for (int64_t i = 0; i < rows; ++i) {
                const float* x = out + i * j.n;
                if (!j.filtered) x = load_run(j.t->g, j.t->g_type, (r + i) * j.n, j.n, w.raw);
                before = scale_wide(x, j.rf[r + i], cf, j.n, held + i * pitch, before);
            }
            product_columns(held, pitch, turn, pitch, j.n, rows, j.n, out, j.n, after);
            sums.before += total(before);
            sums.after += total(after);
        }
    });
    return sums;
}

// Columns of m <= 128 elements: tiles cut them, so this walks whole matrices, which are small in this direction.
inline TurnSums turn_columns(const Job& j, int64_t slab, Local& w) {
    TurnSums sums{0, 0};
    int64_t pitch = turn_pitch(j.m);
    alignas(64) float held[LARGEST_SIDE * COLUMNS];
    int64_t first = slab * j.slab_rows / j.m, end = smaller((slab + 1) * j.slab_rows, j.rows) / j.m;
    for (int64_t k = first; k < end; ++k) {
        const float* turn = j.basis + k * j.m * pitch;
        for (int64_t c = 0; c < j.n; c += COLUMNS) {
            int64_t columns = smaller(COLUMNS, j.n - c), start = k * j.m * j.n + c;
            float* out = j.full[FILTERED] + start;
            V before = all(0.0f), after = all(0.0f);
            for (int64_t i = 0; i < j.m; ++i) {
                const float* x = out + i * j.n;
                if (!j.filtered) x = load_run(j.t->g, j.t->g_type, start + i * j.n, columns, w.raw);
                float* to = held + i * COLUMNS;
                for (int64_t l = columns; l < COLUMNS; ++l) to[l] = 0.0f;
                before = scale_wide(x, j.rf[k * j.m + i], j.cf + k * j.n + c, columns, to, before);
            }
            product_columns(turn, pitch, held, COLUMNS, j.m, j.m, columns, out, j.n, after);
            sums.before += total(before);
            sums.after += total(after);
        }
    }
    return sums;
}

// Update of unit size of a slab, turned, into its plane; sums of squares before and after.
inline void pass_turn(Job& j, int64_t slab, Local& w) {
    Part& part = j.parts[slab];
    TurnSums sums = j.per_row ? turn_columns(j, slab, w) : turn_rows(j, slab, w);
    double cross = 0, mean2 = 0;
    int64_t start = slab * j.slab_rows * j.n, end = smaller((slab + 1) * j.slab_rows, j.rows) * j.n;
    for (int64_t i = start; j.torque && i < end; i += RUN) {
        int64_t n = smaller(RUN, end - i);
        const float* m = decode_run(j.t->exp_avg, i, n, decodes_early(j) ? j.full[MOMENTUM] + i : w.other);
        cross += dot(m, j.full[FILTERED] + i, n);
        mean2 += sum_squares(m, n);
    }
    part.sum[UPDATE2] = sums.before, part.sum[TURNED2] = sums.after, part.sum[CROSS] = cross, part.sum[MEAN2] = mean2;
}

}  // namespace AUTOMAGIC_ISA
