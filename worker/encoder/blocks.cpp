// Encoders of Q8_0, Q4_K, Q5_K and Q6_K whose bytes are ggml's own.
//
// Each takes `blocks` blocks of floats that lie one after another, writes them to `out` in GGUF's layout, sets
// left[i] for each block i that it leaves to ggml (its bytes are not to be used), and returns how many those
// are. Left are blocks with an infinity or a NaN, whose bytes hang on which operand's NaN a processor keeps,
// and with ratios that are too large to be rounded: what no trained weight is.
//
// The search, which takes nearly all of the time, is in search.hpp, across the lanes of a vector. What follows it
// here is plain loops over a sub-block's elements, which the compiler turns into vectors itself.
//
// Source: the layouts are GGUF's: github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h.
#include "search.hpp"

#pragma GCC visibility push(default)
extern "C" {
int64_t encode_q8_0(const float *x, uint8_t *out, int64_t blocks, uint8_t *left);
int64_t encode_q4_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left);
int64_t encode_q5_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left);
int64_t encode_q6_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left);
int lanes();
}
#pragma GCC visibility pop

namespace {

constexpr int BLOCK = 256;       // elements of a K-quant's block
constexpr int AT_ONCE = 2;       // blocks whose searches fill the lanes: 2 * 8 sub-blocks, or 2 * 16
constexpr int SMALL_BLOCK = 32;  // elements of a block of Q8_0

// The largest magnitude's bits, which are ordered as magnitudes are; infinity and NaN come last.
template <int SIZE>
uint32_t largest_bits(const float *x) {
    uint32_t largest = 0;
    for (int e = 0; e < SIZE; ++e) {
        uint32_t bits;
        memcpy(&bits, x + e, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

constexpr uint32_t INFINITE = 0x7f800000;

void put_half(uint8_t *out, uint16_t bits) { memcpy(out, &bits, sizeof bits); }

// --- Q4_K and Q5_K: d, dmin, 12 bytes of scales and minima, [fifth bits,] four bits -------------------------

constexpr int SUB_BLOCKS = BLOCK / LONG;

// The search's findings for the sub-blocks of AT_ONCE blocks.
struct Searched {
    static constexpr int MANY = AT_ONCE * SUB_BLOCKS;
    float scale[MANY], minimum[MANY], ratio[MANY], base[MANY];
    int32_t odd[MANY];
};

// Six bits each for eight scales and eight minima: the first four have a byte of their own, whose upper two
// bits are the upper two of the last four; these' lower four bits share a byte.
void put_six_bits(uint8_t *out, const uint8_t *scale, const uint8_t *minimum) {
    for (int j = 0; j < 4; ++j) {
        out[j] = scale[j] | (scale[j + 4] >> 4) << 6;
        out[j + 4] = minimum[j] | (minimum[j + 4] >> 4) << 6;
        out[j + 8] = (scale[j + 4] & 15) | (minimum[j + 4] & 15) << 4;
    }
}

// ggml's conversion to a byte before it takes the smaller is part of the result where a scale is negative.
uint8_t six_bits(float v) {
    uint8_t byte = (uint8_t)nearest(v);
    return byte < 63 ? byte : 63;
}

// Write the header of a block and have the level of each of its elements.
template <int MOST>
void settle(const float *x, const Searched &found, int first, uint8_t *out, uint8_t *level) {
    const float *scale = found.scale + first, *minimum = found.minimum + first;
    float most_scale = 0, most_minimum = 0;
    for (int j = 0; j < SUB_BLOCKS; ++j) {
        if (scale[j] > most_scale) most_scale = scale[j];
        if (minimum[j] > most_minimum) most_minimum = minimum[j];
    }
    float to_scale = most_scale > 0 ? 63.0f / most_scale : 0.0f;
    float to_minimum = most_minimum > 0 ? 63.0f / most_minimum : 0.0f;
    uint8_t scales[SUB_BLOCKS], minima[SUB_BLOCKS];
    for (int j = 0; j < SUB_BLOCKS; ++j) {
        scales[j] = six_bits(to_scale * scale[j]);
        minima[j] = six_bits(to_minimum * minimum[j]);
    }
    uint16_t d = half_bits(most_scale / 63.0f), dmin = half_bits(most_minimum / 63.0f);
    put_half(out, d);
    put_half(out + 2, dmin);
    put_six_bits(out + 4, scales, minima);

    for (int j = 0; j < SUB_BLOCKS; ++j, x += LONG, level += LONG) {
        float step = half_value(d) * scales[j];
        if (step != 0) {  // true of a NaN too, as ggml's question is
            float offset = half_value(dmin) * minima[j];
            for (int e = 0; e < LONG; ++e) level[e] = within(nearest((x[e] + offset) / step), 0, MOST);
        } else {
            float ratio = found.ratio[first + j], base = found.base[first + j];
            for (int e = 0; e < LONG; ++e) level[e] = within(nearest(ratio * (x[e] - base)), 0, MOST);
        }
    }
}

// Of each 64 elements the first 32 have the lower four bits of the bytes.
void put_nibbles(uint8_t *out, const uint8_t *level) {
    for (int part = 0; part < BLOCK; part += 64, out += 32)
        for (int e = 0; e < 32; ++e) out[e] = (level[part + e] & 15) | (level[part + 32 + e] & 15) << 4;
}

// Bit j of byte e is the fifth bit of sub-block j's element e.
void put_fifth_bits(uint8_t *out, const uint8_t *level) {
    for (int e = 0; e < LONG; ++e) {
        uint8_t bits = 0;
        for (int j = 0; j < SUB_BLOCKS; ++j) bits |= (level[j * LONG + e] >> 4) << j;
        out[e] = bits;
    }
}

template <int BITS, int FIRST_TENTHS, int STEPS>
struct WithMinimum {
    static constexpr int MOST = (1 << BITS) - 1;
    static constexpr int BYTES = 16 + BLOCK * BITS / 8;
    using Found = Searched;

    static void search(const float *x, Found &found) {
        for (int first = 0; first < Found::MANY; first += LANES) {
            Lanes columns[LONG];
            load_columns<LONG>(x + first * LONG, columns);
            ScaleAndMinimum fit = fit_scale_and_minimum<MOST, FIRST_TENTHS, STEPS>(columns);
            memcpy(found.scale + first, &fit.scale, sizeof fit.scale);
            memcpy(found.minimum + first, &fit.minimum, sizeof fit.minimum);
            memcpy(found.ratio + first, &fit.ratio, sizeof fit.ratio);
            memcpy(found.base + first, &fit.base, sizeof fit.base);
            memcpy(found.odd + first, &fit.odd, sizeof fit.odd);
        }
    }

    static bool is_odd(const Found &found, int which) {
        int32_t odd = 0;
        for (int j = 0; j < SUB_BLOCKS; ++j) odd |= found.odd[which * SUB_BLOCKS + j];
        return odd != 0;
    }

    static void put(const float *x, const Found &found, int which, uint8_t *out) {
        uint8_t level[BLOCK];
        settle<MOST>(x, found, which * SUB_BLOCKS, out, level);
        if (BITS == 5) put_fifth_bits(out + 16, level);
        put_nibbles(out + 16 + (BITS - 4) * BLOCK / 8, level);
    }
};

using Q4K = WithMinimum<4, -10, 20>;
using Q5K = WithMinimum<5, -5, 15>;

// --- Q6_K: lower four bits, upper two, 16 scales of eight bits, d --------------------------------------------

struct Q6K {
    static constexpr int BYTES = 210, PARTS = BLOCK / SHORT;
    struct Found {
        float scale[AT_ONCE * PARTS], ratio[AT_ONCE * PARTS];
    };

    static void search(const float *x, Found &found) {
        for (int first = 0; first < AT_ONCE * PARTS; first += LANES) {
            Lanes columns[SHORT];
            load_columns<SHORT>(x + first * SHORT, columns);
            Scale fit = fit_scale<32>(columns);
            memcpy(found.scale + first, &fit.scale, sizeof fit.scale);
            memcpy(found.ratio + first, &fit.ratio, sizeof fit.ratio);
        }
    }

    static void put(const float *x, const Found &found, int which, uint8_t *out) {
        const float *scale = found.scale + which * PARTS, *ratio = found.ratio + which * PARTS;
        float largest = 0, extreme = 0;  // the scale of the largest magnitude, and that magnitude
        for (int j = 0; j < PARTS; ++j)
            if (std::fabs(scale[j]) > largest) {
                largest = std::fabs(scale[j]);
                extreme = scale[j];
            }
        if (largest < ALL_ZERO) {
            memset(out, 0, BYTES);
            return;
        }
        float to_scale = -128.0f / extreme;
        uint16_t d = half_bits(1 / to_scale);
        uint8_t level[BLOCK], *levels = level;
        for (int j = 0; j < PARTS; ++j, x += SHORT, levels += SHORT) {
            int rounded = nearest(to_scale * scale[j]);
            int8_t part = (int8_t)(rounded < 127 ? rounded : 127);
            out[192 + j] = (uint8_t)part;
            float step = half_value(d) * part;
            if (step != 0) {
                for (int e = 0; e < SHORT; ++e) levels[e] = within(nearest(x[e] / step), -32, 31) + 32;
            } else if (ratio[j] != 0) {
                for (int e = 0; e < SHORT; ++e) levels[e] = within(nearest(ratio[j] * x[e]), -32, 31) + 32;
            } else {
                memset(levels, 0, SHORT);
            }
        }
        put_half(out + 208, d);
        put_levels(out, level);
    }

    // In each half of the block, of 128 elements: 64 bytes of lower bits, and 32 of upper ones.
    static void put_levels(uint8_t *out, const uint8_t *level) {
        for (int half = 0; half < 2; ++half, level += 128) {
            uint8_t *lower = out + 64 * half, *upper = out + 128 + 32 * half;
            for (int e = 0; e < 64; ++e) lower[e] = (level[e] & 15) | (level[e + 64] & 15) << 4;
            for (int e = 0; e < 32; ++e)
                upper[e] = level[e] >> 4 | (level[e + 32] >> 4) << 2 | (level[e + 64] >> 4) << 4 |
                           (level[e + 96] >> 4) << 6;
        }
    }

    static bool is_odd(const Found &, int) { return false; }
};

// --- blocks, two at a time ------------------------------------------------------------------------------

template <class Type>
int64_t encode(const float *x, uint8_t *out, int64_t blocks, uint8_t *left) {
    int64_t count = 0;
    for (int64_t first = 0; first < blocks; first += AT_ONCE) {
        float padded[AT_ONCE * BLOCK];
        int present = blocks - first < AT_ONCE ? (int)(blocks - first) : AT_ONCE;
        const float *two = x + first * BLOCK;
        if (present < AT_ONCE) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, two, present * BLOCK * sizeof(float));
            two = padded;
        }
        typename Type::Found found;
        uint32_t largest[AT_ONCE], any = 0;
        for (int which = 0; which < AT_ONCE; ++which)
            any |= largest[which] = largest_bits<BLOCK>(two + which * BLOCK);
        if (any) Type::search(two, found);
        for (int which = 0; which < present; ++which, out += Type::BYTES) {
            bool leave = largest[which] >= INFINITE || (any && Type::is_odd(found, which));
            left[first + which] = leave;
            count += leave;
            if (!any) memset(out, 0, Type::BYTES);  // rows of zeros, as a padded vocabulary has them
            else if (!leave) Type::put(two + which * BLOCK, found, which, out);
        }
    }
    return count;
}

}  // namespace

int lanes() { return LANES; }

int64_t encode_q4_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left) {
    return encode<Q4K>(x, out, blocks, left);
}

int64_t encode_q5_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left) {
    return encode<Q5K>(x, out, blocks, left);
}

int64_t encode_q6_k(const float *x, uint8_t *out, int64_t blocks, uint8_t *left) {
    return encode<Q6K>(x, out, blocks, left);
}

// d, then a byte for each element: the nearest integer to x / d, halves away from zero.
int64_t encode_q8_0(const float *x, uint8_t *out, int64_t blocks, uint8_t *left) {
    int64_t count = 0;
    for (int64_t i = 0; i < blocks; ++i, x += SMALL_BLOCK, out += 2 + SMALL_BLOCK) {
        uint32_t bits = largest_bits<SMALL_BLOCK>(x);
        float largest;
        memcpy(&largest, &bits, sizeof largest);
        float d = largest / 127.0f;
        float ratio = d != 0 ? 1.0f / d : 0.0f;
        left[i] = bits >= INFINITE || !(ratio <= FLT_MAX);
        count += left[i];
        if (left[i]) continue;
        put_half(out, half_bits(d));
        int8_t level[SMALL_BLOCK];
        for (int e = 0; e < SMALL_BLOCK; ++e) {
            float v = x[e] * ratio;
            // The largest float below a half: with a half itself, what is just below one would round up.
            level[e] = (int8_t)(int32_t)(v + __builtin_copysignf(0.49999997f, v));
        }
        memcpy(out + 2, level, sizeof level);
    }
    return count;
}
