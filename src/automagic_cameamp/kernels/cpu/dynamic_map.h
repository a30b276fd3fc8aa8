// The 127 fractions and the 0 of bitsandbytes' dynamic map, as fp32 bits in ascending order.
//
// The map is these with both signs, and 1 (which has no negative). storage/dynamic8.py derives them;
// tests/native/test_codecs.py compares every bit.
#pragma once

#include <cstdint>

#include "rounding.h"

namespace AUTOMAGIC_ISA {

constexpr uint32_t DYNAMIC_MAGNITUDES[128] = {
    0x00000000u, 0x3513a3b7u, 0x365a1a94u, 0x370205ffu, 0x37b24206u, 0x38378034u, 0x388aefb3u, 0x38ba1f4bu,
    0x3923d70bu, 0x398ce705u, 0x39c7e283u, 0x3a016f01u, 0x3a1eecc1u, 0x3a3c6a80u, 0x3a59e83eu, 0x3a7765ffu,
    0x3aa7ef9du, 0x3af1a9fcu, 0x3b1db22du, 0x3b428f5cu, 0x3b676c8au, 0x3b8624ddu, 0x3b989374u, 0x3bab020du,
    0x3bbd70a4u, 0x3bcfdf3bu, 0x3be24dd3u, 0x3bf4bc6au, 0x3c039581u, 0x3c0ccccdu, 0x3c160418u, 0x3c1f3b64u,
    0x3c3ae148u, 0x3c68f5c3u, 0x3c8b851fu, 0x3ca28f5du, 0x3cb9999au, 0x3cd0a3d7u, 0x3ce7ae15u, 0x3cfeb852u,
    0x3d0ae148u, 0x3d166667u, 0x3d21eb85u, 0x3d2d70a3u, 0x3d38f5c3u, 0x3d447ae1u, 0x3d500000u, 0x3d5b851fu,
    0x3d670a3du, 0x3d728f5du, 0x3d7e147bu, 0x3d84cccdu, 0x3d8a8f5du, 0x3d9051ebu, 0x3d96147bu, 0x3d9bd70au,
    0x3da1999au, 0x3da75c2au, 0x3dad1eb8u, 0x3db2e148u, 0x3db8a3d7u, 0x3dbe6667u, 0x3dc428f7u, 0x3dc9eb85u,
    0x3ddb3334u, 0x3df80000u, 0x3e0a6666u, 0x3e18cccdu, 0x3e273333u, 0x3e35999au, 0x3e440000u, 0x3e526666u,
    0x3e60cccdu, 0x3e6f3333u, 0x3e7d9999u, 0x3e860000u, 0x3e8d3334u, 0x3e946666u, 0x3e9b999au, 0x3ea2ccccu,
    0x3eaa0000u, 0x3eb13333u, 0x3eb86666u, 0x3ebf999au, 0x3ec6ccccu, 0x3ece0000u, 0x3ed53333u, 0x3edc6666u,
    0x3ee3999au, 0x3eeaccccu, 0x3ef20000u, 0x3ef93332u, 0x3f003333u, 0x3f03ccccu, 0x3f076666u, 0x3f0b0000u,
    0x3f0e999au, 0x3f123334u, 0x3f15cccdu, 0x3f196666u, 0x3f1d0000u, 0x3f20999au, 0x3f243334u, 0x3f27cccdu,
    0x3f2b6666u, 0x3f2f0000u, 0x3f32999au, 0x3f363334u, 0x3f39cccdu, 0x3f3d6666u, 0x3f410000u, 0x3f44999au,
    0x3f483333u, 0x3f4bcccdu, 0x3f4f6666u, 0x3f530000u, 0x3f56999au, 0x3f5a3333u, 0x3f5dcccdu, 0x3f616666u,
    0x3f650000u, 0x3f68999au, 0x3f6c3333u, 0x3f6fcccdu, 0x3f736666u, 0x3f770000u, 0x3f7a999au, 0x3f7e3333u,
};

// A cell holds the numbers of equal sign, exponent and first six bits of the fraction; none holds two
// midpoints of the map. Its entry is (midpoints below it) << 18 plus 0x3FFFF - (low 17 bits of the
// midpoint inside it): adding the low bits of a number beyond the midpoint carries.
constexpr int32_t CELL_BITS = 17, FIRST_CELL = (105 << 6) - 1, CELLS = (23 << 6) + 2;

// Code of v in [-1, 1]: nearest value, the lower code on a tie.
AUTOMAGIC_INLINE uint32_t dynamic_code(float v, const uint32_t* cell) {
    uint32_t u = bits_of(v), negative = u >> 31, size = u & 0x7FFFFFFFu;
    int32_t key = static_cast<int32_t>(size >> CELL_BITS) - FIRST_CELL;
    key = smaller(larger(key, 0), CELLS - 1);
    int32_t k = static_cast<int32_t>((cell[key] + (size & 0x1FFFFu) + negative) >> 18);
    int32_t sign = -static_cast<int32_t>(negative);
    k = smaller(k, 128 + sign);  // -1 has no code of its own
    return static_cast<uint32_t>(127 + ((k ^ sign) - sign));
}

// Encoding by a line. In a decade of the map codes are equally spaced: a line gives the code and, in sixteen bits
// below it, how far a number is from the midpoints around it. Numbers so close to one that the line's rounding
// matters (one of 4,000) are looked up in the cells.
struct DecadeLines {
    static constexpr int32_t unit = 65536, decades = 7;
    static constexpr int32_t unsure = 8;  // units; the line is off by three at most

    alignas(32) float border[8], slope[8], start[8];  // a decade ends at its border
    float steep_start;                                // of the line between the last midpoint and 1: half a code

    // ``middle``: 128 midpoints; code k ends at number k.
    void fill(const float* middle) {
        double size = 1e-6;
        for (int e = 0; e < 8; ++e, size *= 10) {
            if (e >= decades) {
                border[e] = slope[e] = start[e] = 0.0f;
                continue;
            }
            double count = static_cast<double>(1 << e), rise = count / (0.9 * size);
            // Code 2^e + i ends at (0.1 + 0.9 (i + 1) / 2^e) of the decade; below the first one lies 0.
            double first = e == 0 ? 1 - rise * static_cast<double>(middle[0]) : count * 8 / 9;
            border[e] = e < decades - 1 ? middle[(2 << e) - 1] : 3e38f;
            slope[e] = static_cast<float>(rise * unit);
            start[e] = static_cast<float>(first * unit + unsure);
        }
        steep_start = static_cast<float>((128 - 128 * static_cast<double>(middle[127])) * unit + unsure);
    }
};

// The same by one line for all decades: scaled by `rise`, the numbers of decade e run from 1 to 2, and the first e bits
// of their fraction are the code's. Decade 7 is the code of 1; decade 0 also holds the code of 0, below 1.
struct DecadeShifts {
    static constexpr int32_t first_pair = 53;  // pairs of exponents from here on hold a border, one at most
    static constexpr float start = 0.8888889f + 0x1p-21f;
    static constexpr float last = 2.0f - 0x1p-7f;
    static constexpr int sure = 18;  // bits of a fraction: midpoints lie within 2^-21 of where the line has them

    // Of decade e at (23 - e) % 8: the last number of its codes, as bits, and its scale.
    alignas(32) int32_t border[8];
    alignas(32) float rise[8];
    // 23 - e of the decade before the border in a pair of exponents.
    alignas(16) uint8_t below[16];

    void fill(const float* middle) {
        double size = 0.9e-6;
        int decade = 0;
        for (int e = 0; e < 8; ++e, size *= 10) {
            const int at = (23 - e) & 7;
            border[at] = e < 7 ? static_cast<int32_t>(bits_of(middle[(2 << e) - 1])) : INT32_MAX;
            rise[at] = static_cast<float>(e == 0 ? 1 / (9 * static_cast<double>(middle[0])) : e < 7 ? 1 / size : 0.1155);
        }
        for (int i = 0; i < 16; ++i) below[i] = 0;
        for (int pair = first_pair; pair < 64; ++pair) {
            while (border[(23 - decade) & 7] < pair << 24) ++decade;
            below[pair & 15] = static_cast<uint8_t>(23 - decade);
        }
    }
};

}  // namespace AUTOMAGIC_ISA
