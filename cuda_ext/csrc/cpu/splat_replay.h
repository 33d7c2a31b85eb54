// Gradients on the screen: each tile goes through its pairs again and leaves a row of numbers in the slot of each.
#pragma once
#include "splat_draw.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

constexpr int kMoments = 6;
constexpr int kRow = kMoments + kColours;  // numbers in a slot before the features

// What the replay of a tile adds up of one pair: moments, and gradients of colours; a row of a slot.
template <class F>
struct Sums {
    F moments[kMoments] = {}, colours[kColours] = {};
};

template <class F>
struct Replay {
    using S = Scalar<F>;
    using B = Blocks<F>;
    const Canvas<F>& canvas;
    Place<F> place;
    F transmittance[B::count], remaining[B::count], colours[B::count][kColours];
    Mask<F> open[B::count];
    S* features;  // gradients of the feature planes of the tile's pixels, and the sums of a pair

    Replay(const Canvas<F>& c, int64_t tile, const S* gradient, S* room, S* background)
        : canvas(c), place(c.picture, tile), features(room) {
        S sums[LaneTraits<F>::count == 1 ? 3 : LaneTraits<F>::count] = {};
        F behind[3] = {};
        const int64_t pixels = canvas.pixels();
        for (int k = 0; k < B::count; k++) {
            transmittance[k] = spread<F>(1), open[k] = place.inside(k);
            const F left = place.read(canvas.transmittance, k);
            remaining[k] = -left * place.read(gradient + 3 * pixels, k);
            for (int c = 0; c < kColours; c++) {
                const int plane = c < 3 ? c : 4;
                colours[k][c] = place.read(gradient + plane * pixels, k);
                remaining[k] = fma(colours[k][c], place.read(canvas.plane(plane), k), remaining[k]);
                if (c < 3) behind[c] = fma(left, colours[k][c], behind[c]);
            }
            for (int f = 0; f < canvas.features; f++) {
                const F slope = place.read(gradient + (kPlanes + f) * pixels, k);
                store<F>(features + (f * B::count + k) * B::lanes, slope);
                remaining[k] = fma(slope, place.read(canvas.plane(kPlanes + f), k), remaining[k]);
            }
        }
        sum_lanes<F>(behind, sums);
        for (int c = 0; c < 3; c++) background[c] = sums[c];
    }

    // The gradients of one pair, into its slot; false, and nothing is written, where it does not count in this tile.
    template <bool has_features>
    bool pair(uint32_t gaussian, S* slot) {
        const Record<S>& record = canvas.records[gaussian];
        const S* feature = canvas.feature + int64_t(gaussian) * canvas.features;
        const auto range = place.range(record);
        Sums<F> sums;
        S* feature_sums = features + canvas.features * B::count * B::lanes;
        std::memset(feature_sums, 0, sizeof(F) * canvas.features);
        F touched = F{};
        for_each_block_column<F>(range, [&](int column) {
            const F dx = record.mean_x - place.column_centres(column);
            F pull_0 = F{}, pull_1 = F{}, pull_2 = F{};
            for_each_block_row<F>(range, [&](int row) {
                const int k = column * B::rows + row;
                const F dy = record.mean_y - place.row_centres(row);
                const F alpha = alpha_at(record.conic_xx, record.conic_xy, record.conic_yy, record.opacity, dx, dy);
                F dot = record.depth * colours[k][3];
                for (int c = 0; c < 3; c++) dot = fma(spread<F>(record.rgb[c]), colours[k][c], dot);
                for (int f = 0; has_features && f < canvas.features; f++)
                    dot = fma(spread<F>(feature[f]), load<F>(features + (f * B::count + k) * B::lanes), dot);
                F pull;
                const F weight = replay(alpha, dot, transmittance[k], remaining[k], open[k], pull);
                touched += weight;
                for (int c = 0; c < kColours; c++) sums.colours[c] = fma(weight, colours[k][c], sums.colours[c]);
                for (int f = 0; has_features && f < canvas.features; f++) {
                    const F slope = load<F>(features + (f * B::count + k) * B::lanes);
                    store<F>(feature_sums + f * B::lanes, fma(weight, slope, load<F>(feature_sums + f * B::lanes)));
                }
                const F lever = pull * dy;
                pull_0 += pull;
                pull_1 += lever;
                pull_2 = fma(lever, dy, pull_2);
            });
            const F lever = pull_0 * dx;
            F* moments = sums.moments;
            moments[0] += pull_0;
            moments[1] += lever;
            moments[2] += pull_1;
            moments[3] = fma(lever, dx, moments[3]);
            moments[4] = fma(pull_1, dx, moments[4]);
            moments[5] += pull_2;
        });
        if (!any(below(F{}, touched))) return false;
        F all[kRow];
        for (int i = 0; i < kMoments; i++) all[i] = sums.moments[i];
        for (int c = 0; c < kColours; c++) all[kMoments + c] = sums.colours[c];
        sum_lanes<F>(all, slot);
        for (int f = 0; f < canvas.features; f++) {
            S total = 0;
            for (int i = 0; i < B::lanes; i++) total += feature_sums[f * B::lanes + i];
            slot[kRow + f] = total;
        }
        return true;
    }
};

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
