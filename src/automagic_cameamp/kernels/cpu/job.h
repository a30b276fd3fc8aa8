// The work on one tensor: how it is cut, and what its passes hand to each other.
//
// The words, used so in every file:
//
//   tensor  [K, m, n]: K matrices of m rows and n columns; a vector has one row
//   slab    consecutive rows, the unit of work of a thread
//   tile    rows of a slab, of one matrix, whose scratch stays in the cache
//   band    the few rows of a tile that a pass takes together (for_bands); its sums are formed a group of rows at a time
//   piece   a band's rows in some of its columns, at most RUN: what the loops in registers walk (for_pieces)
//   line    what of a piece lies contiguously in memory (for_lines): all of it, or a part of one row
//   run     at most RUN contiguous elements, whatever rows they are in
//   plane   an array with a place for every element of a tensor or of a tile: codes, scratch
//   packed  said of rows below one register: a band holds a run of them, and loops walk it as one row
//
// How a tensor is cut depends on shapes and options alone, and sums are formed per piece, then per band, then per
// slab, in that order: the result does not depend on the number of threads.
#pragma once

#include <stdlib.h>

#include "lanes.h"

namespace AUTOMAGIC_ISA {

constexpr int64_t RUN = 512, BAND = 2048;  // elements of a run, and of a piece, at most
constexpr int64_t RESIDENT = 196608;  // up to here the scratch of a whole tensor fits into the L2 cache
constexpr int64_t TILE = 32768, SLABS = 32, LEAST_SLAB = 16384;
constexpr int PLANES = 4 + MAX_SCALES;  // full-size scratch, see below

// Scratch memory that grows and is given back when its thread ends.
struct Arena {
    char* base = nullptr;
    size_t size = 0, used = 0;

    ~Arena() { free(base); }

    // Everything that the following calls of `take` will ask for.
    bool reserve(size_t bytes) {
        used = 0;
        bytes += 64;
        if (bytes <= size) return true;
        free(base);
        size = 0;
        base = static_cast<char*>(malloc(bytes));
        if (base == nullptr) return false;
        size = bytes;
        return true;
    }

    template <class T>
    T* take(int64_t count) {
        size_t start = (reinterpret_cast<size_t>(base) + used + 63) / 64 * 64 - reinterpret_cast<size_t>(base);
        used = start + static_cast<size_t>(count) * sizeof(T);
        return reinterpret_cast<T*>(base + start);
    }
};

// Sums over a slab; the passes reuse the places.
enum { ABS, SQUARE, ALONG, EDGES, MEAN2, UPDATE2, TURNED2, CROSS, OUT2, AGREE, MASK, VOTES, RATE, NEW2, WEIGHT2, WAY, SEEN2, WAY2, SUMS };

struct Part {
    double sum[SUMS];
};

struct Job {
    Task* t;
    const Options* o;
    const Step* step;
    int64_t K, m, n, rows, numel;  // rows = K m
    int64_t group, piece;          // whole rows in a run (0: a row has several), and the elements of these
    int64_t unit;                  // rows after which blocks, nibbles and bits start anew
    int64_t slab_rows, slabs, tile_rows;
    bool resident, matrix, picture, filtered, edges, low_rank, per_row;  // per_row: side of the variance
    bool confidence, early, warm, torque, decays, cautious, sums_needed;
    double now, mask_mean;
    float beta1, mix;
    uint32_t key;
    // found on the way
    float damping, gain, turn, agree_gain, shrink;
    bool grows, along;
    // vectors: [rows] and [K n]
    float *R, *rf, *S, *rs, *row_var, *C, *cf, *D, *ds, *col_var;
    float *first, *second;  // [n] to work in
    double* columns[4];  // partial sums, [K == 1 ? slabs : 1][K n]
    Part* parts;
    float* sketches;  // [slabs][min(numel, 4096)]
    uint8_t* sides;   // [K] which neighbours a matrix has, see neighbours.h
    float* basis;     // [K][r][turn_pitch(r)] identity + (e - 1) Q Q^T
    float* full[PLANES];  // resident scratch, or null

    double total(int which) const {
        double s = 0;
        for (int64_t i = 0; i < slabs; ++i) s += parts[i].sum[which];
        return s;
    }
    double* own_columns(int which, int64_t slab) const { return columns[which] + (K == 1 ? slab * n : 0); }
    uint32_t noise(int32_t salt) const {
        return random_base(key ^ static_cast<uint32_t>(salt), static_cast<int32_t>(now));
    }
};

// Scratch planes: exp_avg, the gradient after its filter (or the turned update), its Laplacian, the mixture
// of the running means, the further running means.
enum { MOMENTUM = 0, FILTERED = 1, LAPLACIAN = 2, MIXTURE = 3, FIRST_SCALE = 4 };

inline int64_t gcd(int64_t a, int64_t b) {
    while (b) {
        int64_t c = a % b;
        a = b, b = c;
    }
    return a;
}

inline bool has(const Coded& c) { return c.q != nullptr; }

// Whether a field is cut into blocks; four bits of [0, 1] have no scale and need none.
inline bool in_blocks(const Coded& c) { return has(c) && c.code != PLAIN && c.code != UNIT4 && c.block > 0; }

// Rows after which every coded plane starts a new block and a new byte.
inline int64_t aligned_rows(const Task& t, int scales, int64_t n) {
    int64_t unit = 8;
    const Coded* coded[2 + MAX_SCALES] = {&t.exp_avg, &t.edge};
    for (int i = 0; i < scales; ++i) coded[2 + i] = &t.scale[i];
    for (int i = 0; i < 2 + scales; ++i)
        if (in_blocks(*coded[i])) {
            int64_t block = coded[i]->block;
            unit = unit / gcd(unit, block) * block;
        }
    return unit / gcd(n, unit);
}

// Everything that shapes and options decide.
inline void cut(Job& j) {
    const Task& t = *j.t;
    const Options& o = *j.o;
    j.K = t.batch, j.m = t.rows, j.n = t.cols, j.rows = j.K * j.m, j.numel = j.rows * j.n;
    j.matrix = t.matrix;
    j.filtered = t.width > 0 && o.frequency > 0 && larger(t.height, t.width) >= 3;
    j.edges = t.width > 0 && has(t.edge);
    j.picture = j.filtered || j.edges;
    j.low_rank = t.basis != nullptr && o.emphasis != 1;
    j.per_row = j.m <= j.n;
    j.confidence = has(t.res) || has(t.res_row);
    j.group = j.n <= RUN ? RUN / j.n : 0;
    int64_t pieces = (j.n + RUN - 1) / RUN;
    j.piece = j.group ? j.group * j.n : ((j.n + pieces - 1) / pieces + 15) / 16 * 16;
    j.unit = aligned_rows(t, o.scales, j.n);
    // Without scratch of its size a tensor may be as large as it likes.
    bool plain = t.exp_avg.code == PLAIN && !o.mixed && o.scales == 0 && !j.picture;
    j.resident = j.numel <= RESIDENT || j.low_rank || plain;
    if (j.K > 1) {
        int64_t matrix = j.m * j.n;
        bool whole = j.m % j.unit == 0;
        int64_t each = larger((larger(LEAST_SLAB, j.numel / SLABS) + matrix - 1) / matrix, int64_t(1));
        j.slab_rows = whole ? each * j.m : j.rows;
        if (!whole) j.resident = true;
    } else {
        int64_t each = larger(larger(LEAST_SLAB, j.numel / SLABS) / j.n, smaller(j.m, int64_t(16)));
        j.slab_rows = smaller((each + j.unit - 1) / j.unit * j.unit, j.rows);
        if (j.low_rank && j.per_row) j.slab_rows = j.rows;  // every row of a column is needed at once
    }
    j.slabs = (j.rows + j.slab_rows - 1) / j.slab_rows;
    int64_t each = larger(TILE / j.n, int64_t(8));
    j.tile_rows = (each + j.unit - 1) / j.unit * j.unit;
    if (j.K > 1 && j.m % j.unit != 0) j.tile_rows = j.m;  // tiles of a resident tensor may start anywhere
}

// Whether the running mean needs no scratch: once pass A let the gradient through, nothing reads the old one.
inline bool in_place(const Job& j) { return j.resident && j.t->exp_avg.code == PLAIN; }

// Whether what measures the torque leaves the old running mean, decoded, in its plane.
inline bool decodes_early(const Job& j) { return j.torque && j.resident && j.t->exp_avg.code != PLAIN; }

// Whether the scratch plane of this number is used.
inline bool uses(const Job& j, int plane) {
    if (plane == MOMENTUM) return !in_place(j);
    if (plane == FILTERED) return j.filtered || j.low_rank;
    if (plane == LAPLACIAN) return j.edges;
    if (plane == MIXTURE) return j.o->mixed;
    return plane - FIRST_SCALE < j.o->scales;
}

// From row to row of the matrices that turn an update, which registers load whole.
inline int64_t turn_pitch(int64_t r) { return (r + 31) / 32 * 32; }

inline int64_t rounded(int64_t n) { return (n + 31) / 16 * 16; }

// Sizes of the memory that the passes of one tensor share: elements of its arrays, and bytes in all.
struct Sizes {
    int64_t row, col, partial, sketch, basis, sides;
    size_t bytes;

    explicit Sizes(const Job& j) {
        row = rounded(j.rows), col = rounded(j.K * j.n), partial = (j.K == 1 ? j.slabs : 1) * j.K * j.n;
        sketch = j.o->signals ? j.slabs * smaller(j.numel, int64_t(4096)) : 0;
        int64_t side = smaller(j.m, j.n);
        basis = j.low_rank ? j.K * side * turn_pitch(side) : 0;
        sides = j.picture ? j.K : 0;
        int planes = 0;
        for (int i = 0; i < PLANES; ++i) planes += j.resident && uses(j, i);
        int64_t floats = 5 * row + 5 * col + 2 * rounded(j.n) + sketch + basis + planes * rounded(j.numel);
        bytes = static_cast<size_t>(floats) * 4 + static_cast<size_t>(4 * partial) * 8 +
                sizeof(Part) * static_cast<size_t>(j.slabs) + static_cast<size_t>(sides) + 64 * 41;
    }
};

// That memory.
inline bool lay_out(Job& j, Arena& a) {
    const Sizes of(j);
    if (!a.reserve(of.bytes)) return false;
    float** by_row[] = {&j.R, &j.rf, &j.S, &j.rs, &j.row_var};
    float** by_col[] = {&j.C, &j.cf, &j.D, &j.ds, &j.col_var};
    for (float** v : by_row) *v = a.take<float>(of.row);
    for (float** v : by_col) *v = a.take<float>(of.col);
    j.first = a.take<float>(rounded(j.n));
    j.second = a.take<float>(rounded(j.n));
    for (int i = 0; i < 4; ++i) j.columns[i] = a.take<double>(of.partial);
    j.parts = a.take<Part>(j.slabs);
    j.sketches = of.sketch ? a.take<float>(of.sketch) : nullptr;
    j.basis = of.basis ? a.take<float>(of.basis) : nullptr;
    j.sides = of.sides ? a.take<uint8_t>(of.sides) : nullptr;
    for (int i = 0; i < PLANES; ++i) j.full[i] = j.resident && uses(j, i) ? a.take<float>(rounded(j.numel)) : nullptr;
    if (in_place(j)) j.full[MOMENTUM] = static_cast<float*>(j.t->exp_avg.q);
    return true;
}

// What one thread needs to walk a tile.
struct Local {
    Arena arena;
    float *raw, *other;                       // runs
    float *row, *inverse, *first, *second;    // values of the rows of a band
    float *spread[2], *tiled[2];              // values of rows and of columns, for each element of a packed band
    const float *cf, *ds;                     // factors of the columns of a tile; packed: as long as a band
    float* band[4];                           // pieces
    float* sums[4];                           // column sums of some bands
    float* plane[PLANES];                     // tile scratch where the tensor is not resident
    float *pad, *smooth;                             // stencils
    float *left, *right, *up, *down;                 // 1 where a neighbour exists

    bool prepare(const Job& j) {
        int64_t tile = rounded(smaller(j.tile_rows, larger(j.slab_rows, j.m)) * j.n), wide = rounded(larger(j.n, RUN));
        int64_t halo = rounded((smaller(j.tile_rows, j.rows) + 2) * j.n + 2 * j.n + 64);
        int planes = 0;
        for (int i = 0; i < PLANES; ++i) planes += !j.resident && uses(j, i);
        int64_t floats = 10 * rounded(RUN) + 4 * rounded(BAND) + 4 * wide + planes * tile;
        if (j.picture) floats += 2 * halo + 4 * wide;
        if (!arena.reserve(static_cast<size_t>(floats) * 4 + 64 * 64))
            return false;
        float** runs[] = {&raw, &other, &row, &inverse, &first, &second, &spread[0], &spread[1], &tiled[0], &tiled[1]};
        for (float** v : runs) *v = arena.take<float>(rounded(RUN));
        for (float*& v : band) v = arena.take<float>(rounded(BAND));
        for (float*& v : sums) v = arena.take<float>(wide);
        for (int i = 0; i < PLANES; ++i) plane[i] = !j.resident && uses(j, i) ? arena.take<float>(tile) : nullptr;
        if (j.picture) {
            pad = arena.take<float>(halo);
            smooth = arena.take<float>(halo);
            float** masks[] = {&left, &right, &up, &down};
            for (float** v : masks) *v = arena.take<float>(wide);
        }
        return true;
    }
};

// Rows [first, end) of matrix k; scratch planes start at element `origin`.
struct Tile {
    int64_t first, end, k, start, count, origin;
};

template <class F>
inline void for_tiles(const Job& j, int64_t slab, F f) {
    int64_t end = smaller((slab + 1) * j.slab_rows, j.rows);
    for (int64_t r = slab * j.slab_rows; r < end;) {
        int64_t k = r / j.m;
        int64_t stop = smaller(smaller(r + j.tile_rows, end), (k + 1) * j.m);
        f(Tile{r, stop, k, r * j.n, (stop - r) * j.n, j.resident ? 0 : r * j.n});
        r = stop;
    }
}

// Calls f(first element, elements) for the runs of a tile.
template <class F>
inline void for_runs(const Job& j, const Tile& tile, F f) {
    int64_t length = j.group ? tile.count : j.n;  // a run holds whole rows, or ends with one
    for (int64_t i = 0; i < tile.count; i += length)
        for (int64_t c = 0; c < length; c += j.piece) f(tile.start + i + c, smaller(j.piece, length - c));
}

}  // namespace AUTOMAGIC_ISA
