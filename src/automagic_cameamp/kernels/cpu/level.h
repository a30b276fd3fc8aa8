// What a tensor says about the way that its weights have come (techniques/level.py, look_back).
#pragma once

#include "bands.h"

namespace AUTOMAGIC_ISA {

constexpr int SINCE = 4;  // of the numbers of a level; three of evidence stand before them

// Whether the weights are remembered anew: at the first update since the level asked for it (Level.renews).
inline bool renews(const Job& j) {
    const float since = j.step->level[SINCE];
    return since > 0.0f && since != j.t->level[3 + SINCE];
}

// Rows against their remembered columns, the first `sampled` ones. It looks at a band right before that is written:
// looked at long before, weights would come from memory while nothing is computed.
class Look {
public:
    explicit Look(const Job& j)
        : j_(j), renews_(j.t->level != nullptr && renews(j)), wants_(j.t->level != nullptr && (renews_ || j.step->looks)) {}

    void at(const Band& band, Local& w) {
        if (!wants_) return;
        const Task& t = *j_.t;
        if (t.sampled < 4 && t.p_type == F32 && t.g_type == F32) return down(band);
        const int64_t width = t.sampled;
        for (int64_t r = band.row; r < band.row + band.rows; ++r)
            for (int64_t c = 0; c < width; c += RUN) {
                const int64_t n = smaller(RUN, width - c), first = r * j_.n + c;
                float* anchor = t.anchor + r * width + c;
                const float* p = load_weights(t, first, n, w.other);
                if (renews_) copy_run(p, n, anchor);
                const float* g = load_run(t.g, t.g_type, first, n, w.raw);
                for (int64_t i = 0; i < n; i += W)
                    add(get<false>(g + i, n - i), get<false>(anchor + i, n - i) - get<false>(p + i, n - i));
            }
    }

    void into(Part& part) const {
        if (!wants_ || !j_.step->looks) return;
        part.sum[WAY] += static_cast<double>(total(along_));
        part.sum[SEEN2] += static_cast<double>(total(square_));
        part.sum[WAY2] += static_cast<double>(total(way_));
    }

private:
    void add(V x, V d) { along_ = fused(x, d, along_), square_ = fused(x, x, square_), way_ = fused(d, d, way_); }

    // A few columns of a narrow fp32 matrix, such as those of a LoRA: whole registers are gathered from many rows.
    void down(const Band& band) {
        const Task& t = *j_.t;
        const float* p = static_cast<const float*>(t.p);
        const float* g = static_cast<const float*>(t.g);
        alignas(64) float x[W], d[W];
        int64_t held = 0;
        for (int64_t r = band.row; r < band.row + band.rows; ++r)
            for (int64_t c = 0; c < t.sampled; ++c) {
                const int64_t i = r * j_.n + c;
                float& anchor = t.anchor[r * t.sampled + c];
                if (renews_) anchor = p[i];
                x[held] = g[i], d[held] = anchor - p[i];
                if (++held == W) add(load(x), load(d)), held = 0;
            }
        for (int64_t i = held; i < W; ++i) x[i] = d[i] = 0.0f;
        if (held > 0) add(load(x), load(d));
    }

    const Job& j_;
    const bool renews_, wants_;
    V along_ = all(0.0f), square_ = all(0.0f), way_ = all(0.0f);
};

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
