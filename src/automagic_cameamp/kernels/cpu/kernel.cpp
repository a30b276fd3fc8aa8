// One step of all tensors; compiled once per instruction set.
#include <algorithm>

#include "pool.h"
#include "weights.h"

namespace AUTOMAGIC_ISA {

namespace {

thread_local Arena shared_arena;  // what the passes of a tensor share
thread_local Local local;         // what a thread needs to walk a tile

constexpr int64_t BUNDLE = 65536;  // elements that one thread takes at a time
constexpr int64_t ALONE = 1 << 19; // from here on the slabs of a tensor may be spread over all threads
constexpr int64_t EVEN = 4;        // tensors of this part of a thread's work: so many fill it about as evenly as slabs do

// What the step counter and the options decide before anything is read.
void begin(Job& j, Task& t, const Step& s, double mask_mean) {
    const Options& o = s.options[t.options];
    j.t = &t, j.o = &o, j.step = &s;
    cut(j);
    j.now = static_cast<double>(*t.step) + 1;
    j.early = j.now < o.warmup / 2, j.warm = j.now < o.warmup;
    float faded = expf(static_cast<float>(j.now * o.log_decay)), beta = static_cast<float>(o.beta[0]);
    j.mix = faded;
    // Grams fades into Cautious (recipes/improved.py, HANDOVER).
    j.cautious = o.improved && o.cautious && !j.early && (!o.grams || faded <= 0.500001f);
    j.beta1 = j.early ? beta : larger(faded * beta, static_cast<float>(o.lowest_beta1));
    j.key = static_cast<uint32_t>(t.key);
    j.mask_mean = o.mask ? mask_mean : 1.0;
    j.torque = j.early && o.tam && t.torque != nullptr;
    j.decays = !o.improved && o.weight_decay != 0 && (j.early || o.decay_always);
    j.along = (o.spd && j.warm) || (o.d_coef > 1 && j.early);
    j.sums_needed = j.decays || j.along || o.signals;
    j.damping = j.gain = j.turn = j.agree_gain = j.shrink = 1.0f;
    j.grows = false;
}

void read_statistics(Job& j) {
    const Task& t = *j.t;
    int64_t columns = j.K * j.n;
    if (j.matrix) {
        decode_vector(t.sq_row, j.rows, j.R);
        decode_vector(t.sq_col, columns, j.C);
    } else {
        decode_vector(t.sq, columns, j.C);
    }
    if (has(t.res_row)) {
        decode_vector(t.res_row, j.rows, j.S);
        decode_vector(t.res_col, columns, j.D);
    } else if (has(t.res)) {
        decode_vector(t.res, columns, j.D);
    }
    if (has(t.spatial))
        decode_vector(t.spatial, j.K * (j.per_row ? j.m : j.n), j.per_row ? j.row_var : j.col_var);
}

typedef void (*Pass)(Job&, int64_t, Local&);
void weights(Job& j, int64_t slab, Local& w) { pass_weights(j, slab, w, false); }
void rehearsal(Job& j, int64_t slab, Local& w) { pass_weights(j, slab, w, true); }

struct Spread {
    Job* job;
    Pass pass;
    bool failed;
};

void one_slab(void* context, int64_t slab) {
    Spread& s = *static_cast<Spread*>(context);
    if (!local.prepare(*s.job)) {
        s.failed = true;
        return;
    }
    if (s.job->picture && (s.pass == pass_gradient || !s.job->resident)) neighbours(*s.job, local);
    s.pass(*s.job, slab, local);
}

// All slabs of a tensor; false where there was no memory for it.
bool every_slab(Job& j, Pass pass, int threads) {
    Spread s{&j, pass, false};
    parallel_for(threads, j.slabs, one_slab, &s);
    return !s.failed;
}

// One tensor from its gradient to its weights. Memory is asked for before anything is written.
void update(Job& j, int threads, double* sketch) {
    Task& t = *j.t;
    t.ok = -1;
    if (!lay_out(j, shared_arena) || !local.prepare(j)) return;
    look(j);
    read_statistics(j);
    if (j.low_rank) build_turn(j);
    if (!every_slab(j, pass_gradient, threads)) return;
    t.ok = finish_gradient(j);
    t.square = t.ok ? j.total(SQUARE) : 0;
    if (!t.ok) return;
    if (j.low_rank) {
        every_slab(j, pass_turn, threads);
        finish_turn(j);
    }
    every_slab(j, pass_momentum, threads);
    finish_momentum(j);
    if (j.sketches) fold_sketch(j, sketch);
    if (j.o->spd && j.warm && static_cast<float>(j.total(ALONG)) > 0.0f) {
        every_slab(j, rehearsal, threads);
        finish_dry(j);
    }
    every_slab(j, weights, threads);
    finish_weights(j);
}

// Consecutive tensors that one thread takes together; where they begin depends on shapes alone. Who takes which, and
// when, changes nothing.
struct Bundles {
    Step* step;
    double mask_mean;
    const int64_t *first, *order;
    double* sketches;
};

void one_bundle(void* context, int64_t place) {
    Bundles& b = *static_cast<Bundles*>(context);
    Step& s = *b.step;
    const int64_t index = b.order[place];
    for (int64_t i = b.first[index]; i < b.first[index + 1]; ++i) {
        Job j;
        begin(j, s.tasks[i], s, b.mask_mean);
        update(j, 1, b.sketches ? b.sketches + index * SKETCH : nullptr);
    }
}

int64_t size_of(const Task& t) { return t.batch * t.rows * t.cols; }

// Whether the slabs of a tensor are spread over all threads, which wait for each other after every pass. So it is where
// they would wait longer for the one that has it, or where each would need, and keep, scratch as large as itself in fp32.
bool spreads(const Job& j, int64_t total, int threads) {
    if (j.numel < ALONE) return 2 * j.numel >= total;
    return EVEN * threads * j.numel > total || Sizes(j).bytes > static_cast<size_t>(4 * j.numel);
}

}  // namespace

void step(Step* s) {
    double masks = 0;
    for (int64_t i = 0; i < s->mask_count; ++i) masks += *s->mask_sums[i];
    double mask_mean = s->mask_count > 0 ? static_cast<float>(masks / s->masked) : s->mask_mean;
    int64_t total = 0, bundles = 0;
    for (int64_t i = 0; i < s->count; ++i) total += size_of(s->tasks[i]);
    // At most 256 bundles: each may hold a sketch of the model.
    int64_t target = larger(BUNDLE, total / 256);
    int64_t* first = static_cast<int64_t*>(malloc(static_cast<size_t>(2 * s->count + 2) * sizeof(int64_t)));
    if (first == nullptr) {
        for (int64_t i = 0; i < s->count; ++i) s->tasks[i].ok = -1;
        return;
    }
    for (int64_t i = 0, held = target; i < s->count; ++i) {
        int64_t size = size_of(s->tasks[i]);
        if (held + size > target) first[bundles++] = i, held = 0;
        held += size;
    }
    first[bundles] = s->count;
    double* sketches = nullptr;
    if (s->sketch != nullptr) sketches = static_cast<double*>(calloc(static_cast<size_t>(bundles + 1) * SKETCH, 8));
    int64_t *order = first + bundles + 1, waiting = 0;
    for (int64_t i = 0; i < bundles; ++i) {
        if (first[i + 1] - first[i] == 1) {
            Job j;
            begin(j, s->tasks[first[i]], *s, mask_mean);
            if (spreads(j, total, s->threads)) {
                update(j, s->threads, sketches ? sketches + i * SKETCH : nullptr);
                continue;
            }
        }
        order[waiting++] = i;
    }
    // The largest first: nobody is left with one when all others have ended.
    const auto size = [&](int64_t i) { return first[i + 1] - first[i] == 1 ? size_of(s->tasks[first[i]]) : 0; };
    std::stable_sort(order, order + waiting, [&](int64_t a, int64_t b) { return size(a) > size(b); });
    Bundles b{s, mask_mean, first, order, sketches};
    parallel_for(s->threads, waiting, one_bundle, &b);
    s->bad = 0;
    s->square = 0;
    for (int64_t i = 0; i < s->count; ++i) {
        s->bad += s->tasks[i].ok != 1;
        s->square += s->tasks[i].square;
    }
    for (int64_t c = 0; sketches != nullptr && c < SKETCH; ++c) s->sketch[c] = 0;
    for (int64_t i = 0; sketches != nullptr && i < bundles; ++i)
        for (int64_t c = 0; c < SKETCH; ++c) s->sketch[c] += sketches[i * SKETCH + c];
    free(sketches);
    free(first);
}

}  // namespace AUTOMAGIC_ISA
