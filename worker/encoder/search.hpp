// The search for the scale of a sub-block (and its minimum), LANES sub-blocks at a time.
//
// A lane does what ggml does for its sub-block: the same operations on floats, in the same order, so that each
// sum is rounded as ggml's is. What would be a branch there is a choice by mask here. Levels are kept as floats,
// where small integers are exact.
//
// The levels that a search ends with are used only where the stored scale came out as zero. They are not
// carried along: `ratio` and `base` make them again.
#pragma once

#include "lanes.hpp"

// Have element e of LANES sub-blocks, which lie one after another, in columns[e].
template <int SIZE>
static inline void load_columns(const float *sub_blocks, Lanes *columns) {
    for (int e = 0; e < SIZE; ++e)
        for (int lane = 0; lane < LANES; ++lane) columns[e][lane] = sub_blocks[lane * SIZE + e];
}

// --- scale and minimum: Q4_K, Q5_K ----------------------------------------------------------------------

struct ScaleAndMinimum {
    Lanes scale, minimum;  // x is about scale * level - minimum
    Lanes ratio, base;     // level = nearest(ratio * (x - base))
    Mask odd;              // sub-blocks with a ratio that ROUNDER does not round: left to ggml
};

static constexpr int LONG = 32;  // elements of such a sub-block

// Levels 0 … MOST. Tried are the ratios (FIRST_TENTHS / 10 + 0.1 * step + MOST) / range, step = 0 … STEPS.
template <int MOST, int FIRST_TENTHS, int STEPS>
static inline ScaleAndMinimum fit_scale_and_minimum(const Lanes *x) {
    constexpr Lanes ZERO = {};
    Lanes squares = ZERO;
    for (int e = 0; e < LONG; ++e) squares += x[e] * x[e];
    Lanes mean = square_root(squares / (float)LONG);

    Lanes weight[LONG];
    for (int e = 0; e < LONG; ++e) weight[e] = mean + magnitude(x[e]);

    Lanes lowest = x[0], highest = x[0];
    Lanes sum_w = weight[0], sum_wx = sum_w * x[0];
    for (int e = 1; e < LONG; ++e) {
        lowest = x[e] < lowest ? x[e] : lowest;
        highest = x[e] > highest ? x[e] : highest;
        sum_w += weight[e];
        sum_wx += weight[e] * x[e];
    }

    ScaleAndMinimum best;
    Lanes base = lowest > 0.0f ? ZERO : lowest;
    Mask flat = highest == base;
    best.odd = Mask{};
    Lanes level[LONG], least_error = ZERO;

    // The error of a scale and a minimum on the present levels.
    auto error_of = [&](Lanes scale, Lanes offset) {
        Lanes error = ZERO;
        for (int e = 0; e < LONG; ++e) {
            Lanes difference = scale * level[e] + offset - x[e];
            error += weight[e] * (difference * difference);
        }
        return error;
    };
    // x is linear in between, so that the lowest and the highest tell for all.
    auto note_odd = [&](Lanes ratio) {
        Mask fits = (magnitude(ratio * (highest - base)) <= ROUNDS_UP_TO) &
                    (magnitude(ratio * (lowest - base)) <= ROUNDS_UP_TO);
        best.odd |= ~fits & ~flat;
    };

    best.ratio = (float)MOST / (highest - base);
    best.scale = 1.0f / best.ratio;
    best.base = base;
    note_odd(best.ratio);
    for (int e = 0; e < LONG; ++e) level[e] = nearest_within(best.ratio * (x[e] - base), 0, MOST);
    least_error = error_of(best.scale, base);

    for (int step = 0; step <= STEPS; ++step) {
        Lanes ratio = ((FIRST_TENTHS / 10.0f + 0.1f * step) + MOST) / (highest - base);
        note_odd(ratio);
        Lanes sum_l = ZERO, sum_ll = ZERO, sum_lx = ZERO;  // each weighted
        for (int e = 0; e < LONG; ++e) {
            level[e] = nearest_within(ratio * (x[e] - base), 0, MOST);
            Lanes weighted = weight[e] * level[e];
            sum_l += weighted;
            sum_ll += weighted * level[e];
            sum_lx += weighted * x[e];
        }
        // The least squares for these levels; its minimum may not be above zero.
        Lanes determinant = sum_w * sum_ll - sum_l * sum_l;
        Lanes scale = (sum_w * sum_lx - sum_wx * sum_l) / determinant;
        Lanes offset = (sum_ll * sum_wx - sum_l * sum_lx) / determinant;
        Mask above = offset > 0.0f;
        scale = above ? sum_lx / sum_ll : scale;
        offset = above ? ZERO : offset;

        Lanes error = error_of(scale, offset);
        Mask better = (determinant > 0.0f) & (error < least_error);
        least_error = better ? error : least_error;
        best.scale = better ? scale : best.scale;
        best.ratio = better ? ratio : best.ratio;
        best.base = better ? base : best.base;
        base = better ? offset : base;  // from here on the steps start from it
    }
    best.minimum = flat ? -(lowest > 0.0f ? ZERO : lowest) : -base;
    best.scale = flat ? ZERO : best.scale;
    best.ratio = flat ? ZERO : best.ratio;
    best.base = flat ? ZERO : best.base;
    return best;
}

// --- scale alone: Q6_K ----------------------------------------------------------------------------------

struct Scale {
    Lanes scale;  // x is about scale * level
    Lanes ratio;  // level = nearest(ratio * x); zero in a sub-block of zeros alone
};

static constexpr int SHORT = 16;  // elements of such a sub-block

// Levels -MOST … MOST - 1, weighted by x². The largest magnitude gets -MOST, and ratios up to 0.9 steps around
// it are tried.
template <int MOST>
static inline Scale fit_scale(const Lanes *x) {
    constexpr Lanes ZERO = {};
    Lanes largest = ZERO, extreme = ZERO;  // the largest magnitude, and the first element that has it
    Lanes weight[SHORT], weighted_x[SHORT];
    for (int e = 0; e < SHORT; ++e) {
        Mask larger = magnitude(x[e]) > largest;
        largest = larger ? magnitude(x[e]) : largest;
        extreme = larger ? x[e] : extreme;
        weight[e] = x[e] * x[e];
        weighted_x[e] = weight[e] * x[e];
    }
    Lanes sum_lx, sum_ll;  // each weighted
    auto try_ratio = [&](Lanes ratio) {
        sum_lx = sum_ll = ZERO;
        for (int e = 0; e < SHORT; ++e) {
            Lanes level = nearest_within(ratio * x[e], -MOST, MOST - 1);
            sum_lx += weighted_x[e] * level;
            sum_ll += (weight[e] * level) * level;
        }
    };

    Scale best;
    best.ratio = (float)-MOST / extreme;
    try_ratio(best.ratio);
    best.scale = sum_ll != 0.0f ? sum_lx / sum_ll : ZERO;
    Lanes most = best.scale * sum_lx;
    for (int tenths = -9; tenths <= 9; ++tenths) {
        if (tenths == 0) continue;
        Lanes ratio = -(MOST + 0.1f * tenths) / extreme;
        try_ratio(ratio);
        Mask better = (sum_ll > 0.0f) & (sum_lx * sum_lx > most * sum_ll);
        Lanes scale = sum_lx / sum_ll;
        best.scale = better ? scale : best.scale;
        most = better ? scale * sum_lx : most;
        best.ratio = better ? ratio : best.ratio;
    }
    Mask zeros = largest < ALL_ZERO;
    best.scale = zeros ? ZERO : best.scale;
    best.ratio = zeros ? ZERO : best.ratio;
    return best;
}
