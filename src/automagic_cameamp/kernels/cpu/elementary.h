// Logarithm and exponential of fp32 numbers: evaluated in double so that nearly every result is the
// correctly rounded one, or in fp32, two units in the last place at most from it, where a code's step is
// larger than that. Plain arithmetic, so that a compiler can turn the loops into vectors.
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

// The same in fp32: ln(1 + f) = f - f^2 / 2 + f^3 P(f), P of least largest relative error for these f (2^-27).
AUTOMAGIC_INLINE float quick_log(float x) {
    uint32_t u = bits_of(x);
    int32_t whole = static_cast<int32_t>(u - 0x3F3504F3u) >> 23;
    float e = static_cast<float>(whole), f = float_of(u - (static_cast<uint32_t>(whole) << 23)) - 1.0f, z = f * f;
    float series = -0.0763449302f;
    series = fused(series, f, 0.127615756f);
    series = fused(series, f, -0.131601831f);
    series = fused(series, f, 0.142017582f);
    series = fused(series, f, -0.166233573f);
    series = fused(series, f, 0.200012269f);
    series = fused(series, f, -0.25000821f);
    series = fused(series, f, 0.333333317f);
    // ln 2 in two parts, the first with so few bits that its product with an exponent is exact.
    float low = fused(e, -2.12194440e-4f, series * (f * z));
    low = fused(z, -0.5f, low);
    return fused(e, 0.693359375f, f + low);
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

// The same in fp32, for |x| < 88.3: e^r = 1 + r + r^2 Q(r), Q as above (2^-28).
AUTOMAGIC_INLINE float quick_exp(float x) {
    float shifted = fused(x, 1.44269504f, ROUNDER), n = shifted - ROUNDER;
    float r = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, x));
    float series = 0.00138145984f;
    series = fused(series, r, 0.0083687169f);
    series = fused(series, r, 0.0416683881f);
    series = fused(series, r, 0.166665206f);
    series = fused(series, r, 0.499999934f);
    series = fused(series, r * r, r) + 1.0f;
    return series * float_of((bits_of(shifted) - 0x4B400000u + 127u) << 23);
}

}  // namespace AUTOMAGIC_ISA
