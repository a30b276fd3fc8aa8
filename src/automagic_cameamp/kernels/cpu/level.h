// What a tensor says about the way that its weights have come (techniques/level.py, look_back).
#pragma once

#include "bands.h"

namespace AUTOMAGIC_ISA {

// Rows of a tile against their remembered columns, the first `sampled` ones; sums go to the slab's part.
inline void look_back(const Job& j, const Tile& tile, Part& part, Local& w) {
    const Task& t = *j.t;
    const Step& s = *j.step;
    if (!s.renews && !s.looks) return;
    const int64_t width = t.sampled;
    V along = all(0.0f), square = all(0.0f), way = all(0.0f);
    double sums[3] = {0, 0, 0};
    for (int64_t r = tile.first; r < tile.end; ++r)
        for (int64_t c = 0; c < width; c += RUN) {
            const int64_t n = smaller(RUN, width - c), first = r * j.n + c;
            float* anchor = t.anchor + r * width + c;
            const float* p = load_weights(t, first, n, w.other);
            if (s.renews) copy_run(p, n, anchor);
            if (!s.looks) continue;
            const float* g = load_run(t.g, t.g_type, first, n, w.raw);
            if (n < 4) {  // narrow matrices, such as those of a LoRA
                for (int64_t i = 0; i < n; ++i) {
                    const double x = g[i], d = anchor[i] - p[i];
                    sums[0] += x * d, sums[1] += x * x, sums[2] += d * d;
                }
                continue;
            }
            for (int64_t i = 0; i < n; i += W) {
                const V x = get<false>(g + i, n - i), d = get<false>(anchor + i, n - i) - get<false>(p + i, n - i);
                along = fused(x, d, along), square = fused(x, x, square), way = fused(d, d, way);
            }
        }
    part.sum[WAY] += sums[0] + static_cast<double>(total(along));
    part.sum[SEEN2] += sums[1] + static_cast<double>(total(square));
    part.sum[WAY2] += sums[2] + static_cast<double>(total(way));
}

// The evidence of the whole tensor, and the level that this update was made at.
inline void finish_look(const Job& j) {
    const Step& s = *j.step;
    const double share = s.looks ? static_cast<double>(j.n) / static_cast<double>(j.t->sampled) : 0.0;
    const int sums[] = {WAY, SEEN2, WAY2};
    for (int i = 0; i < 3; ++i)
        j.t->level[i] = larger(-1e30f, smaller(1e30f, static_cast<float>(j.total(sums[i]) * share)));
    for (int i = 0; i < 8; ++i) j.t->level[3 + i] = s.level[i];
}

}  // namespace AUTOMAGIC_ISA
