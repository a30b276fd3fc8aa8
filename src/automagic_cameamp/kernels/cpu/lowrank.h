// The update leans to the strongest directions of the weights (techniques/lowrank.py): u + (e - 1) Q Q^T u.
#pragma once

#include "job.h"

namespace AUTOMAGIC_ISA {

inline double basis_value(const Job& j, int64_t i) {
    if (j.t->tail) return static_cast<float>(static_cast<const int8_t*>(j.t->basis)[i]) / 127.0f;
    return from_bf16(static_cast<const uint16_t*>(j.t->basis)[i]);
}

// r x r of every matrix: identity + (e - 1) Q Q^T, or e identity - (e - 1) T T^T where T are the other directions.
inline void build_turn(Job& j) {
    int64_t r = smaller(j.m, j.n), kept = j.t->kept;
    double lean = j.o->emphasis - 1, whole = j.t->tail ? j.o->emphasis : 1.0;
    if (j.t->tail) lean = -lean;
    for (int64_t k = 0; k < j.K; ++k) {
        int64_t q = k * r * kept;
        float* out = j.basis + k * r * r;
        for (int64_t a = 0; a < r; ++a)
            for (int64_t b = a; b < r; ++b) {
                double s = 0;
                for (int64_t i = 0; i < kept; ++i) s += basis_value(j, q + a * kept + i) * basis_value(j, q + b * kept + i);
                out[a * r + b] = out[b * r + a] = static_cast<float>(lean * s + (a == b ? whole : 0.0));
            }
    }
}

constexpr int64_t COLUMNS = 64;

// out[i][c] = sum_l turn[i][l] u[l][c] over COLUMNS columns.
inline void turn_columns(const float* AUTOMAGIC_RESTRICT turn, const float* AUTOMAGIC_RESTRICT u, int64_t r,
                         float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < r; ++i) {
        float acc[COLUMNS] = {0};
        for (int64_t l = 0; l < r; ++l) {
            float f = turn[i * r + l];
            for (int64_t c = 0; c < COLUMNS; ++c) acc[c] = fused(f, u[l * COLUMNS + c], acc[c]);
        }
        copy_run(acc, COLUMNS, out + i * COLUMNS);
    }
}

template <int N>
inline void turn_short_rows(const float* AUTOMAGIC_RESTRICT turn, int64_t rows, float* AUTOMAGIC_RESTRICT u) {
    for (int64_t i = 0; i < rows; ++i) {
        float acc[N] = {0};
        for (int l = 0; l < N; ++l) {
            float f = u[i * N + l];
            for (int c = 0; c < N; ++c) acc[c] = fused(f, turn[l * N + c], acc[c]);
        }
        for (int c = 0; c < N; ++c) u[i * N + c] = acc[c];
    }
}

#if defined(AUTOMAGIC_TABLES512)
// Rows of sixteen: the matrix stays in registers.
inline void turn_rows_16(const float* turn, int64_t rows, float* u) {
    __m512 t[16];
    for (int l = 0; l < 16; ++l) t[l] = _mm512_loadu_ps(turn + 16 * l);
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        float* x = u + 16 * i;
        __m512 a = _mm512_setzero_ps(), b = a, c = a, d = a;
        for (int l = 0; l < 16; ++l) {
            a = _mm512_fmadd_ps(_mm512_set1_ps(x[l]), t[l], a);
            b = _mm512_fmadd_ps(_mm512_set1_ps(x[16 + l]), t[l], b);
            c = _mm512_fmadd_ps(_mm512_set1_ps(x[32 + l]), t[l], c);
            d = _mm512_fmadd_ps(_mm512_set1_ps(x[48 + l]), t[l], d);
        }
        _mm512_storeu_ps(x, a);
        _mm512_storeu_ps(x + 16, b);
        _mm512_storeu_ps(x + 32, c);
        _mm512_storeu_ps(x + 48, d);
    }
    for (; i < rows; ++i) {
        float* x = u + 16 * i;
        __m512 a = _mm512_setzero_ps();
        for (int l = 0; l < 16; ++l) a = _mm512_fmadd_ps(_mm512_set1_ps(x[l]), t[l], a);
        _mm512_storeu_ps(x, a);
    }
}

// Columns of sixteen, in place: a block of columns stays in registers.
inline void turn_columns_16(const float* turn, int64_t n, float* u) {
    for (int64_t c = 0; c < n; c += 16) {
        __mmask16 mask = lanes(n - c);
        __m512 x[16];
        for (int l = 0; l < 16; ++l) x[l] = _mm512_maskz_loadu_ps(mask, u + l * n + c);
        for (int i = 0; i < 16; i += 4) {
            const float* f = turn + 16 * i;
            __m512 a[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            for (int l = 0; l < 16; ++l)
                for (int k = 0; k < 4; ++k) a[k] = _mm512_fmadd_ps(_mm512_set1_ps(f[16 * k + l]), x[l], a[k]);
            for (int k = 0; k < 4; ++k) _mm512_mask_storeu_ps(u + (i + k) * n + c, mask, a[k]);
        }
    }
}
#endif

// Rows of n <= 128 elements, in place.
inline void turn_rows(const float* turn, int64_t rows, int64_t n, float* u) {
#if defined(AUTOMAGIC_TABLES512)
    if (n == 16) return turn_rows_16(turn, rows, u);
#endif
    if (n == 16) return turn_short_rows<16>(turn, rows, u);
    if (n == 32) return turn_short_rows<32>(turn, rows, u);
    if (n == 64) return turn_short_rows<64>(turn, rows, u);
    if (n == 128) return turn_short_rows<128>(turn, rows, u);
    for (int64_t i = 0; i < rows; ++i) {
        float acc[128] = {0};
        for (int64_t l = 0; l < n; ++l)
            for (int64_t c = 0; c < n; ++c) acc[c] = fused(u[i * n + l], turn[l * n + c], acc[c]);
        copy_run(acc, n, u + i * n);
    }
}

inline void scale_run(const float* x, const float* AUTOMAGIC_RESTRICT rf, const float* AUTOMAGIC_RESTRICT cf,
                      int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * rf[i] * cf[i];
}

inline void scale_row(const float* x, float rf, const float* AUTOMAGIC_RESTRICT cf, int64_t n, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * rf * cf[i];
}

// Update of unit size of a slab, turned, into its plane; sums of squares before and after.
inline void pass_turn(Job& j, int64_t slab, Local& w) {
    Part& part = j.parts[slab];
    double before = 0, after = 0, cross = 0, mean2 = 0;
    int64_t side = smaller(j.m, j.n);
    alignas(64) float held[128 * COLUMNS], turned[128 * COLUMNS];
    for_tiles(j, slab, [&](const Tile& tile) {
        const float* turn = j.basis + tile.k * side * side;
        const float* cf = j.cf + tile.k * j.n;
        float* out = j.full[FILTERED];
        for (int64_t r = tile.first; r < tile.end;) {
            int64_t rows = rows_at_once(j, r, tile.end);
            for_runs(j, r, rows, [&](const Run& run) {
                float* to = out + run.start;
                const float* x = j.filtered ? to : load_run(j.t->g, j.t->g_type, run.start, run.count, w.raw);
                if (j.group) {
                    spread(j.rf + r, rows, j.n, w.rf);
                    tile_rows(cf, rows, j.n, w.cf);
                    scale_run(x, w.rf, w.cf, run.count, to);
                } else {
                    scale_row(x, j.rf[r], cf + run.column, run.count, to);
                }
                before += sum_squares(to, run.count);
            });
            r += rows;
        }
        if (!j.per_row) turn_rows(turn, tile.end - tile.first, j.n, out + tile.start);
    });
    if (j.per_row) {  // tiles cut a column; this walks whole matrices, which are small in this direction
        int64_t first = slab * j.slab_rows / j.m, end = smaller((slab + 1) * j.slab_rows, j.rows) / j.m;
        for (int64_t k = first; k < end; ++k) {
            float* u = j.full[FILTERED] + k * j.m * j.n;
#if defined(AUTOMAGIC_TABLES512)
            if (j.m == 16) {
                turn_columns_16(j.basis + k * side * side, j.n, u);
                continue;
            }
#endif
            for (int64_t c = 0; c < j.n; c += COLUMNS) {
                int64_t n = smaller(COLUMNS, j.n - c);
                for (int64_t i = 0; i < j.m; ++i) {
                    copy_run(u + i * j.n + c, n, held + i * COLUMNS);
                    for (int64_t l = n; l < COLUMNS; ++l) held[i * COLUMNS + l] = 0.0f;
                }
                turn_columns(j.basis + k * side * side, held, j.m, turned);
                for (int64_t i = 0; i < j.m; ++i) copy_run(turned + i * COLUMNS, n, u + i * j.n + c);
            }
        }
    }
    int64_t start = slab * j.slab_rows * j.n, end = smaller((slab + 1) * j.slab_rows, j.rows) * j.n;
    for (int64_t i = start; i < end; i += RUN) {
        int64_t n = smaller(RUN, end - i);
        after += sum_squares(j.full[FILTERED] + i, n);
        if (j.torque) {
            const float* m = decode_run(j.t->exp_avg, i, n, w.u);
            cross += dot(m, j.full[FILTERED] + i, n);
            mean2 += sum_squares(m, n);
        }
    }
    part.sum[UPDATE2] = before, part.sum[TURNED2] = after, part.sum[CROSS] = cross, part.sum[MEAN2] = mean2;
}

}  // namespace AUTOMAGIC_ISA
