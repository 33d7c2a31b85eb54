// What the kernels do with a warp of 32 threads as a whole. Every function is called by all 32.
#pragma once
#include "lanes.h"

namespace dreamkiln {

constexpr unsigned kWholeWarp = 0xffffffffu;

DREAMKILN_FN int lane_index() { return threadIdx.x & 31; }

// Sum over the warp of each of N <= 16 numbers a lane holds, in about N + 3 shuffles: in each round a lane gives away one
// half of the numbers it still has and is given the other half by its partner. A lane gets the sum that sum_of_lane<N>()
// names; where that is -1 it gets nothing of use.
template <int N, int Bit>
DREAMKILN_FN void fold_sums(float* values) {
    constexpr int half = (N + 1) / 2;
    const bool upper = lane_index() & Bit;
#pragma unroll
    for (int i = 0; i < half; i++) {
        const float low = values[i], high = i + half < N ? values[i + half] : 0.0f;
        const float kept = upper ? high : low, given = upper ? low : high;
        values[i] = kept + __shfl_xor_sync(kWholeWarp, given, Bit);
    }
    if constexpr (Bit > 1) fold_sums<half, Bit / 2>(values);
}
template <int N>
DREAMKILN_FN float warp_sums(float* values) {
    fold_sums<N, 16>(values);
    return values[0];
}

// Which sum a lane was given by warp_sums<N>, or -1.
template <int N, int Bit = 16>
DREAMKILN_FN int sum_of_lane() {
    constexpr int half = (N + 1) / 2;
    const bool upper = lane_index() & Bit;
    int below = 0;
    if constexpr (Bit > 1) {
        // An upper half is one shorter where N is odd: its last place is padding.
        below = sum_of_lane<half, Bit / 2>();
    }
    if (below < 0 || (upper && below + half >= N)) return -1;
    return below + (upper ? half : 0);
}

DREAMKILN_FN int warp_maximum(int value) {
#pragma unroll
    for (int bit = 16; bit; bit /= 2) {
        const int other = __shfl_xor_sync(kWholeWarp, value, bit);
        value = other > value ? other : value;
    }
    return value;
}

// Position of this lane among those of `members`, in order.
DREAMKILN_FN int place_in(unsigned members) { return __popc(members & ((1u << lane_index()) - 1u)); }

}  // namespace dreamkiln
