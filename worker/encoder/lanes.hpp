// Vectors in which each lane is a sub-block of its own, and the numbers that all of the encoder shares.
//
// They are GCC's and Clang's vector extensions: on AVX-512 a `Lanes` is one register, elsewhere the compiler
// splits it into as many as it takes. Compile with -ffp-contract=off: a fused multiply-add rounds once where
// ggml rounds twice.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE2, NEON
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));  // all bits of a lane set: true

// 1.5 * 2^23: a float of this size has no bits left for a fraction, so adding it rounds to the nearest
// integer, ties to even, and taking it away again is exact.
constexpr float ROUNDER = 12582912.0f;
// Beyond this the sum leaves the range of floats that are 1 apart, and the rounding is none any more.
constexpr float ROUNDS_UP_TO = 4194303.0f;
// ggml takes a sub-block whose largest magnitude is below this for one of zeros.
constexpr float ALL_ZERO = 1e-15f;

static inline Lanes magnitude(Lanes v) {
    Mask bits = (Mask)v & 0x7fffffff;
    return (Lanes)bits;
}

static inline Lanes square_root(Lanes v) {
    for (int lane = 0; lane < LANES; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
    return v;
}

// The nearest integer within [low, high], as a float. Clamped first, which comes to the same for integers
// `low` and `high`: so that every lane is in the range where ROUNDER rounds.
static inline Lanes nearest_within(Lanes v, float low, float high) {
    Lanes lows = low - Lanes{}, highs = high - Lanes{};
    v = v > lows ? v : lows;
    v = v < highs ? v : highs;
    return (v + ROUNDER) - ROUNDER;
}

// The nearest integer, and for what ROUNDER does not round the same bits that ggml makes of it.
static inline int nearest(float v) {
    float sum = v + ROUNDER;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (bits & 0x007fffff) - 0x00400000;
}

static inline int within(int v, int low, int high) {
    v = v < low ? low : v;
    return v > high ? high : v;
}

// --- halves -------------------------------------------------------------------------------------------

#if defined(__F16C__)
#include <immintrin.h>
static inline uint16_t half_bits(float v) { return _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT); }
static inline float half_value(uint16_t bits) { return _cvtsh_ss(bits); }
#else
static inline uint16_t half_bits(float v) {
    _Float16 half = (_Float16)v;
    uint16_t bits;
    memcpy(&bits, &half, sizeof bits);
    return bits;
}
static inline float half_value(uint16_t bits) {
    _Float16 half;
    memcpy(&half, &bits, sizeof bits);
    return (float)half;
}
#endif
