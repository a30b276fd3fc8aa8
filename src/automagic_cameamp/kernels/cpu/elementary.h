// Logarithm and exponential of fp32 numbers, evaluated in double so that nearly every result is the
// correctly rounded one; plain arithmetic, so that a compiler can turn the loops into vectors.
#pragma once

#include "rounding.h"

namespace AUTOMAGIC_ISA {

AUTOMAGIC_INLINE uint64_t bits_of(double x) {
    uint64_t u;
    std::memcpy(&u, &x, 8);
    return u;
}

AUTOMAGIC_INLINE double float_of(uint64_t u) {
    double x;
    std::memcpy(&x, &u, 8);
    return x;
}

// ln x of a normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)).
AUTOMAGIC_INLINE float log_normal(float x) {
    uint32_t u = bits_of(x);
    int32_t e = static_cast<int32_t>(u - 0x3F3504F3u) >> 23;
    double m = static_cast<double>(float_of(u - (static_cast<uint32_t>(e) << 23)));
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double series = 2.0 / 15;
    series = series * z + 2.0 / 13;
    series = series * z + 2.0 / 11;
    series = series * z + 2.0 / 9;
    series = series * z + 2.0 / 7;
    series = series * z + 2.0 / 5;
    series = series * z + 2.0 / 3;
    series = series * z + 2.0;
    return static_cast<float>(static_cast<double>(e) * 0x1.62e42fefa39efp-1 + s * series);
}

// e^x for -700 < x < 700, as a double.
AUTOMAGIC_INLINE double exp_double(double x) {
    constexpr double rounder = 6755399441055744.0;  // 1.5 * 2^52
    double shifted = x * 0x1.71547652b82fep+0 + rounder;
    double n = shifted - rounder;
    double r = x - n * 0x1.62e42fefa39efp-1;
    double series = 1.0 / 39916800;
    series = series * r + 1.0 / 3628800;
    series = series * r + 1.0 / 362880;
    series = series * r + 1.0 / 40320;
    series = series * r + 1.0 / 5040;
    series = series * r + 1.0 / 720;
    series = series * r + 1.0 / 120;
    series = series * r + 1.0 / 24;
    series = series * r + 1.0 / 6;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    // The low bits of ``shifted`` are n; adding them to the exponent multiplies by 2^n.
    return float_of(bits_of(series) + (bits_of(shifted) << 52));
}

AUTOMAGIC_INLINE float exp_float(float x) { return static_cast<float>(exp_double(static_cast<double>(x))); }

}  // namespace AUTOMAGIC_ISA
