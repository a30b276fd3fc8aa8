// Neighbourhoods: the frequency filter and the Laplacian of a gradient seen as pictures (techniques/stencil.py).
//
// A picture is a whole matrix, or the kernel of a convolution, many of which lie in one row.
#pragma once

#include "edges.h"
#include "neighbours.h"
#include "picture.h"

namespace AUTOMAGIC_ISA {

// Where a neighbour exists in the kernels of a convolution: over one row of the matrix, or the whole rows of a run.
inline void neighbours(const Job& j, Local& w) {
    if (whole_picture(j)) return;
    int64_t width = j.t->width, height = j.t->height;
    for (int64_t i = 0, column = 0, row = 0; i < j.n; ++i) {
        w.left[i] = column > 0;
        w.right[i] = column < width - 1;
        w.up[i] = row > 0;
        w.down[i] = row < height - 1;
        if (++column < width) continue;
        column = 0;
        if (++row == height) row = 0;
    }
    float* masks[] = {w.left, w.right, w.up, w.down};
    for (float* v : masks)
        for (int64_t r = 1; r < j.group; ++r) copy_run(v, j.n, v + r * j.n);
}

inline void smooth_row(const float* x, const float* AUTOMAGIC_RESTRICT left, const float* AUTOMAGIC_RESTRICT right,
                       int64_t n, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i)
        out[i] = x[i] + 0.25f * (left[i] * (x[i - 1] - x[i]) + right[i] * (x[i + 1] - x[i]));
}

// Vertical half of the filter, then the blend; v is the distance to the row below.
inline void blend(const float* AUTOMAGIC_RESTRICT x, const float* h, const float* AUTOMAGIC_RESTRICT up,
                  const float* AUTOMAGIC_RESTRICT down, int64_t v, float penalty, int64_t n,
                  float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) {
        float s = h[i] + 0.25f * (up[i] * (h[i - v] - h[i]) + down[i] * (h[i + v] - h[i]));
        out[i] = lerp(x[i], s, penalty);
    }
}

inline void laplacian(const float* x, const float* AUTOMAGIC_RESTRICT left, const float* AUTOMAGIC_RESTRICT right,
                      const float* AUTOMAGIC_RESTRICT up, const float* AUTOMAGIC_RESTRICT down, int64_t v, int64_t n,
                      float* AUTOMAGIC_RESTRICT out) {
    for (int64_t i = 0; i < n; ++i) {
        float across = left[i] * (x[i - 1] - x[i]) + right[i] * (x[i + 1] - x[i]);
        out[i] = across + (up[i] * (x[i - v] - x[i]) + down[i] * (x[i + v] - x[i]));
    }
}

inline void fill(float* AUTOMAGIC_RESTRICT x, float value, int64_t n) {
    for (int64_t i = 0; i < n; ++i) x[i] = value;
}

// Elements [first, first + n) in fp32, copied.
inline void fetch(const Job& j, int64_t first, int64_t n, float* out) {
    const float* x = load_run(j.t->g, j.t->g_type, first, n, out);
    if (x != out) copy_run(x, n, out);
}

AUTOMAGIC_INLINE float* plane_of(const Job& j, const Local& w, int which) {
    return j.resident ? j.full[which] : w.plane[which];
}

// Filtered gradient and Laplacian of a tile into their planes; returns the sum of squares of the Laplacian.
inline double filter_tile(const Job& j, const Tile& tile, Local& w) {
    const float penalty = static_cast<float>(j.o->frequency);
    const int64_t at = tile.start - tile.origin;
    float* filtered = j.filtered ? plane_of(j, w, FILTERED) + at : nullptr;
    float* laplace = j.edges ? plane_of(j, w, LAPLACIAN) + at : nullptr;
    if (whole_picture(j)) {
        const int32_t sides = j.sides[tile.k];
        Picture p{j.t->g, tile.first, tile.end, tile.k * j.m, (tile.k + 1) * j.m, j.n, penalty, filtered, laplace,
                  (sides & ACROSS) != 0};
        return sides & DOWN ? picture_rows(p, j.t->g_type) : table_rows(p, j.t->g_type);
    }
    double edges = 0;
    const int64_t v = j.t->width, period = j.group ? j.group * j.n : j.n;
    float *x = w.pad + 16 + v, *h = w.smooth + 16 + v;
    fetch(j, tile.start, tile.count, x);
    fill(w.pad, 0.0f, 16 + v);
    fill(x + tile.count, 0.0f, 16 + v);
    if (j.filtered) {
        fill(h - v, 0.0f, v);
        fill(h + tile.count, 0.0f, v);
        for (int64_t i = 0; i < tile.count; i += period)
            smooth_row(x + i, w.left, w.right, smaller(period, tile.count - i), h + i);
        for (int64_t i = 0; i < tile.count; i += period)
            blend(x + i, h + i, w.up, w.down, v, penalty, smaller(period, tile.count - i), filtered + i);
    }
    for (int64_t i = 0; j.edges && i < tile.count; i += period) {
        const int64_t n = smaller(period, tile.count - i);
        laplacian(x + i, w.left, w.right, w.up, w.down, v, n, laplace + i);
        edges += sum_squares(laplace + i, n);
    }
    return edges;
}

// What makes an edge: size of a usual Laplacian, and from which share on it counts.
struct EdgeRule {
    float scale, threshold, penalty;
};

// New history of edges and its gain, element by element: history[i], factor[i] = 1 - penalty history. The history
// may replace the old one, which a compiler has to be told is no obstacle.
inline void edge_gains(const float* AUTOMAGIC_RESTRICT laplace, const float* old, EdgeRule rule, int64_t n,
                       float* history, float* AUTOMAGIC_RESTRICT factor) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        float edge = magnitude(laplace[i]);
        float e = edge / (edge + rule.scale + 1e-38f);
        float h = lerp(old[i], e > rule.threshold ? e : 0.0f, 0.1f);
        history[i] = h;
        factor[i] = 1.0f - rule.penalty * h;
    }
}

// The same for elements [first, first + n) of a coded history, which is written back unless `dry`; `held` is
// scratch of n elements. Runs of one slab come in order, so a byte that two of them share is read before it is lost.
inline void move_edges(const Coded& c, const float* laplace, EdgeRule rule, int64_t first, int64_t n, int64_t numel,
                       uint32_t base, bool dry, float* held, float* factor) {
#if defined(AUTOMAGIC_EDGES)
    if (c.code == UNIT4 && (first & 1) == 0 && ((n & 1) == 0 || first + n == numel)) {
        Edges edges(rule.scale, rule.threshold, rule.penalty, first, base);
        uint8_t* plane = static_cast<uint8_t*>(c.q);
        return dry ? move_nibbles<true>(plane, laplace, edges, first, n, factor)
                   : move_nibbles<false>(plane, laplace, edges, first, n, factor);
    }
#endif
    const float* old = decode_run(c, first, n, held);
    edge_gains(laplace, old, rule, n, held, factor);
    if (!dry) encode_run(c, held, first, n, numel, base);
}

}  // namespace AUTOMAGIC_ISA
