// What the kernels of gaussians.cu and tiles.cu hand to each other, besides rectangles (rectangles.cuh).
#pragma once
#include "gaussian.h"

namespace dreamkiln {

constexpr int kMoments = 6;
constexpr int kChannels = 4;
constexpr int kRow = kMoments + kChannels;

// A gaussian on the screen, as project_gaussians leaves it: 48 bytes.
struct alignas(16) Record {
    float mean_x, mean_y, conic_xx, conic_xy;
    float conic_yy, opacity, extent_x, extent_y;
    float channels[kChannels];
    DREAMKILN_FN Screen<float> screen() const {
        return {mean_x, mean_y, conic_xx, conic_xy, conic_yy, opacity, channels[3], extent_x, extent_y, true};
    }
};

// Numbers in a gaussian's row of totals: moments, the channels of the record, the features in chunks.
DREAMKILN_FN int numbers_in_row(int features) {
    return kMoments + kChannels * (1 + (features + kChannels - 1) / kChannels);
}

}  // namespace dreamkiln
