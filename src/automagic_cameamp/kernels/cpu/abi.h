// What Python and the kernels agree on. Plain data without padding; layout.py holds the same structures for ctypes,
// and fields.h the list by which the two are compared when the library is opened.
#pragma once
#include <stdint.h>

enum { ABI_VERSION = 10 };  // counts changes of this file, and functions that Python needs
enum Type { F32 = 0, BF16 = 1, F16 = 2 };
enum Code { PLAIN = 0, DYNAMIC8 = 1, SOFTSIGN8 = 2, AFFINE8 = 3, UNIT4 = 4, LOG16 = 6, LOG8 = 7, SOFTSIGN4 = 8 };
enum { MAX_SCALES = 6 };

// One state field of one tensor: its planes. q is null where the tensor has no such field.
struct Coded {
  void* q;
  void* scale;
  void* zero;
  void* residual;
  int32_t code;
  int32_t block;
  int32_t bits;  // of error correction: 0, 4 or 8
  int32_t salt;  // of its random numbers
};

// Options of a parameter group (and of this kind of tensor in it). The first block changes from step to step.
struct Options {
  double lr;
  double low, high;       // limits of the relative rate (0 and infinity: none)
  double floor;           // absolute floor of the relative rate
  double multiplier;      // of the controller
  double eps[3];
  double clip, final_clip;  // infinity: none
  double beta[3];         // beta[0]: coefficient of exp_avg
  double lowest_beta1;    // what beta[0] decays to
  double log_decay;       // ln(beta1_decay)
  double eta;
  double weight_decay;
  double warmup;
  double edge_penalty, edge_threshold, detail, frequency, emphasis, rank_strength;
  double own_share, update_share;
  double share[MAX_SCALES], scale_rate[MAX_SCALES];  // weight of each further mean, 1 / length
  int32_t scales;         // number of further means
  int32_t mixed;          // whether momentum is a mixture
  int32_t improved;       // signs and decay of the improved recipe
  int32_t allora, grams, cautious, decay_always, spd, background, d_coef;
  int32_t tam;            // torque-aware momentum in the early phase
  int32_t mask;           // 0 none, 1 per element, 2 per row, 3 per tensor
  int32_t signals;        // sketch and squares for a controller
  int32_t table;          // 1: rows are no neighbours, 2: nor are columns
};

// One parameter.
struct Task {
  void* p;
  const void* g;
  int64_t batch, rows, cols;    // K, m, n; a vector has rows = 1
  int64_t height, width;        // of the pictures; 0 where it is none
  int64_t sketch_place, sketch_offset;  // of its sketch in the fold, and where the signs of the fold start
  Coded exp_avg, sq, sq_row, sq_col, res, res_row, res_col, spatial, edge, scale[MAX_SCALES];
  float* step;
  float* avg_lr;
  float* torque;
  float* mask_sum;
  void* mask;
  uint8_t* polarity;
  const void* basis;            // [K, min(m, n), kept]: bf16, or int8 / 127 where tail
  float* lowrank_rate;
  float* level;                 // of the automatic level: evidence, and what it remembers
  float* anchor;                // [rows, sampled] weights that it looks back to
  int8_t* rest;                 // of weights of 24 bits: 256ths of their last place
  int32_t p_type, g_type;
  int32_t options;              // index
  int32_t key;                  // of its random numbers
  int32_t rounds;               // whether the weights are rounded stochastically
  int32_t matrix;
  int32_t kept;                 // columns of basis
  int32_t ok;                   // result: the gradient was usable
  int32_t tail;                 // the basis is that of the directions that are not kept
  int32_t sampled;              // columns of anchor
  double square;                // result: sum of squares of the raw gradient
};

// Everything of one step.
struct Step {
  Task* tasks;
  const Options* options;
  const float* const* mask_sums;  // of all parameters that keep one
  int64_t count, mask_count;
  double masked;                  // their elements
  double mask_mean;               // used where mask_count is 0
  double* sketch;                 // [4096] result, where a controller listens
  double square;                  // result
  int64_t bad;                    // result: tensors whose gradient was not usable
  float level[8];                 // what the automatic level remembers in this step
  int64_t looks;                  // whether it looks back at the way that the weights have come
  int32_t threads;
  int32_t flavour;                // -1: the best this machine can run
};
