// Which neighbours the elements of a matrix have (techniques/stencil.py, `neighbours`).
//
// A matrix with a row that has no gradient in this step is a table, whose rows are no neighbours; the same holds
// for columns. Gradients without a zero, and rows that begin with another number, cost one look.
#pragma once

#include "job.h"

namespace AUTOMAGIC_ISA {

enum { DOWN = 1, ACROSS = 2 };  // neighbours in other rows, in the same row

// Bits of numbers, whatever else they are read as.
typedef uint32_t __attribute__((may_alias)) Word;
typedef uint16_t __attribute__((may_alias)) Half;

// All bits but the sign: of 0 none is set.
template <class U>
constexpr U VALUE = static_cast<U>(static_cast<U>(~U(0)) >> 1);

template <class U>
inline bool any_zero(const U* x, int64_t n) {
    for (int64_t first = 0; first < n; first += 256) {
        U zeros = 0;
        for (int64_t i = first; i < smaller(first + 256, n); ++i) zeros |= (x[i] & VALUE<U>) == 0;
        if (zeros) return true;
    }
    return false;
}

template <class U>
inline bool any_value(const U* x, int64_t n) {
    for (int64_t first = 0; first < n; first += 64) {
        U found = 0;
        for (int64_t i = first; i < smaller(first + 64, n); ++i) found |= x[i] & VALUE<U>;
        if (found) return true;
    }
    return false;
}

template <class U>
inline bool every_row(const U* x, int64_t m, int64_t n) {
    for (int64_t r = 0; r < m; ++r, x += n)
        if ((x[0] & VALUE<U>) == 0 && !any_value(x, n)) return false;
    return true;
}

// `seen` is scratch of n numbers.
template <class U>
inline bool every_column(const U* x, int64_t m, int64_t n, Word* seen) {
    for (int64_t i = 0; i < n; ++i) seen[i] = 0;
    for (int64_t r = 0; r < m; ++r, x += n) {
        Word missing = 0;
        for (int64_t i = 0; i < n; ++i) {
            seen[i] |= x[i] & VALUE<U>;
            missing |= seen[i] == 0;
        }
        if (!missing) return true;
    }
    return false;
}

template <class U>
inline void look(Job& j, const U* x) {
    int32_t table = j.o->table;
    for (int64_t k = 0; k < j.K; ++k, x += j.m * j.n) {
        bool full = j.n <= 128 && !any_zero(x, j.m * j.n);
        bool down = table < 1 && (full || every_row(x, j.m, j.n));
        bool across = table < 2 && (full || every_column(x, j.m, j.n, reinterpret_cast<Word*>(j.first)));
        j.sides[k] = static_cast<uint8_t>((down ? DOWN : 0) | (across ? ACROSS : 0));
    }
}

AUTOMAGIC_INLINE bool whole_picture(const Job& j) { return j.t->width == j.n && j.t->height == j.m; }

// Finds the neighbours of every matrix that is a picture; the kernels of a convolution always are.
inline void look(Job& j) {
    if (!j.picture || !whole_picture(j)) return;
    if (j.t->g_type == F32)
        look(j, static_cast<const Word*>(j.t->g));
    else
        look(j, static_cast<const Half*>(j.t->g));
}

}  // namespace AUTOMAGIC_ISA
