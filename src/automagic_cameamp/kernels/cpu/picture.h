// The neighbourhoods of stencil.h in whole matrices: a strip of columns is walked from row to row, so that a row is
// loaded once and what its two neighbours need of it stays in registers.
#pragma once

#include "vectors.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t PICTURE_AHEAD = 256;  // elements; further than the processor's own prefetch at the end of a page

// Where a register of columns ends: inside the picture, with its last column, or beyond that.
enum End { INSIDE, BORDER, BEYOND };

// Rows [first, end) of a picture with rows [top, bottom) of n columns.
struct Picture {
    const void* g;
    int64_t first, end, top, bottom, n;
    float penalty;
    float *filtered, *laplace;
    bool across;  // whether elements of a row are neighbours
};

// One register of a row of the picture, walked downwards. With a = x(left) + x(right) - 2 x and D the second
// difference from row to row, the Laplacian is L = a + D x, and one quarter of it, with D a / 16, the step to the
// filtered picture. A difference to the row below serves both rows.
template <int TYPE, int END>
struct Column {
    V x, across, fall, fall_across, squares;  // fall: differences to the row above
    int64_t there;                            // columns from here on
    bool begins;                              // whether the first of them is that of the picture

    // Beyond the border of the picture lies its last column again.
    AUTOMAGIC_INLINE void read(const Picture& p, int64_t at, V& here, V& second) const {
        here = END == BEYOND ? load_typed<TYPE>(p.g, at, there) : load_typed<TYPE>(p.g, at);
        second = all(0.0f);
        if (!p.across) return;
        V before, after;
        if (END == BEYOND) {
            before = begins ? first_twice(here) : load_typed<TYPE>(p.g, at - 1, there);
            after = choose(below(there - 1), load_typed<TYPE>(p.g, at + 1, there - 1), here);
            second = choose(below(there), (before - here) + (after - here), second);
            return;
        }
        before = begins ? first_twice(here) : load_typed<TYPE>(p.g, at - 1);
        after = END == BORDER ? last_twice(here) : load_typed<TYPE>(p.g, at + 1);
        second = (before - here) + (after - here);
    }

    AUTOMAGIC_INLINE void begin(const Picture& p, int64_t c) {
        int64_t at = p.first * p.n + c;
        there = p.n - c, begins = c == 0;
        squares = fall = fall_across = all(0.0f);
        read(p, at, x, across);
        if (p.first == p.top) return;
        V above, above_across;
        read(p, at - p.n, above, above_across);
        fall = x - above, fall_across = across - above_across;
    }

    AUTOMAGIC_INLINE void put(float* to, V y) const {
        if (END == BEYOND)
            store(y, to, there);
        else
            store(y, to);
    }

    // The row at element `at`, the element `to` of the planes; `last`: no row is below.
    AUTOMAGIC_INLINE void row(const Picture& p, int64_t at, int64_t to, bool last, V quarter, V sixteenth) {
        V next = all(0.0f), next_across = next, under = x, under_across = across;
        if (!last) {
            AUTOMAGIC_PREFETCH(static_cast<const char*>(p.g) + (at + p.n + PICTURE_AHEAD) * (TYPE == F32 ? 4 : 2));
            read(p, at + p.n, under, under_across);
            next = under - x, next_across = under_across - across;
        }
        V l = across + (next - fall);
        if (p.laplace != nullptr) {
            put(p.laplace + to, l);
            squares = fused(l, l, squares);
        }
        if (p.filtered != nullptr)
            put(p.filtered + to, fused(sixteenth, next_across - fall_across, fused(quarter, l, x)));
        x = under, across = under_across, fall = next, fall_across = next_across;
    }
};

// One register of columns from c on; the last one of a picture.
template <int TYPE, int END>
inline __attribute__((noinline)) double last_strip(const Picture& given, int64_t c) {
    const Picture p = given;
    const V quarter = all(p.penalty * 0.25f), sixteenth = all(p.penalty * 0.0625f);
    Column<TYPE, END> one;
    one.begin(p, c);
    for (int64_t r = p.first, at = r * p.n + c, to = c; r < p.end; ++r, at += p.n, to += p.n)
        one.row(p, at, to, r + 1 == p.bottom, quarter, sixteenth);
    return static_cast<double>(total(one.squares));
}

// Two of them; END is that of the second.
template <int TYPE, int END>
inline __attribute__((noinline)) double strip(const Picture& given, int64_t c) {
    const Picture p = given;
    const V quarter = all(p.penalty * 0.25f), sixteenth = all(p.penalty * 0.0625f);
    Column<TYPE, INSIDE> one;
    Column<TYPE, END> two;
    one.begin(p, c);
    two.begin(p, c + W);
    for (int64_t r = p.first, at = r * p.n + c, to = c; r < p.end; ++r, at += p.n, to += p.n) {
        const bool last = r + 1 == p.bottom;
        one.row(p, at, to, last, quarter, sixteenth);
        two.row(p, at + W, to + W, last, quarter, sixteenth);
    }
    return static_cast<double>(total(one.squares + two.squares));
}

template <int TYPE>
inline double strips(const Picture& p) {
    double sum = 0;
    int64_t c = 0;
    for (; p.n - c > 2 * W; c += 2 * W) sum += strip<TYPE, INSIDE>(p, c);
    const int64_t left = p.n - c;
    if (left > W) return sum + (left == 2 * W ? strip<TYPE, BORDER>(p, c) : strip<TYPE, BEYOND>(p, c));
    return sum + (left == W ? last_strip<TYPE, BORDER>(p, c) : last_strip<TYPE, BEYOND>(p, c));
}

// Filtered rows and their Laplacian, where wanted; the planes start at the first row. Returns the sum of squares of
// the Laplacian.
inline double picture_rows(const Picture& p, int32_t type) {
    if (type == F32) return strips<F32>(p);
    if (type == BF16) return strips<BF16>(p);
    return strips<F16>(p);
}

// The same where no row is a neighbour of another.
inline double table_rows(const Picture& p, int32_t type) {
    double sum = 0;
    for (int64_t r = p.first, at = 0; r < p.end; ++r, at += p.n) {
        Picture row = p;
        row.first = row.top = r, row.end = row.bottom = r + 1;
        if (p.filtered != nullptr) row.filtered += at;
        if (p.laplace != nullptr) row.laplace += at;
        sum += picture_rows(row, type);
    }
    return sum;
}

}  // namespace AUTOMAGIC_ISA
