// Gradients of the gaussians: the rows of each are added up and taken back through projection and colour.
#pragma once
#include "splat_replay.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

template <class S>
struct Gradients {
    S *means, *log_scales, *quaternions, *logits, *sh, *features, *probe;
};

// The slots of all gaussians of all views.
template <class S>
struct Slots {
    const int64_t* begin;
    const S* rows;
    const uint8_t* written;
    int row;
};

// Adds the slots of each lane's gaussian in one view: moments and colours by lanes; features go to their gradient.
template <class F>
void add_slots(const Slots<Scalar<F>>& slots, int64_t at, const Group<F>& group, Scalar<F>* feature_gradient,
               F (&sums)[kRow]) {
    using S = Scalar<F>;
    S by_lane[kRow][LaneTraits<F>::count] = {};
    for (int i = 0; i < group.count; i++)
        for (int64_t slot = slots.begin[at + i]; slot < slots.begin[at + i + 1]; slot++) {
            if (!slots.written[slot]) continue;
            const S* row = slots.rows + slot * slots.row;
            for (int k = 0; k < kRow; k++) by_lane[k][i] += row[k];
            S* features = feature_gradient + (group.first + i) * group.scene.features;
            for (int f = 0; f < group.scene.features; f++) features[f] += row[kRow + f];
        }
    for (int k = 0; k < kRow; k++) sums[k] = load<F>(by_lane[k]);
}

template <class F>
void gather_group(const Group<F>& group, int64_t views, const Camera<Scalar<F>>* cameras,
                  const Record<Scalar<F>>* records, const Slots<Scalar<F>>& slots, const Gradients<Scalar<F>>& into) {
    using S = Scalar<F>;
    constexpr int width = Group<F>::width;
    const Scene<S>& scene = group.scene;
    const Gaussian<F> gaussian = group.gaussian();
    Gaussian<F> total = {};
    F sh[3 * kMostHarmonics] = {}, probe = F{};
    std::memset(into.features + group.first * scene.features, 0, sizeof(S) * group.count * scene.features);
    for (int64_t view = 0; view < views; view++) {
        const int64_t at = view * scene.n + group.first;
        if (slots.begin[at] == slots.begin[at + group.count]) continue;
        F sums[kRow];
        add_slots(slots, at, group, into.features, sums);
        const Recorded<F> recorded(records + at, group.count);
        const Screen<F>& screen = recorded.screen;
        const Moments<F> moments = {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]};
        const Pulled<F> pulled = pull_from(moments, screen.conic_xx, screen.conic_xy, screen.conic_yy, screen.opacity,
                                           sums[kMoments + 3]);
        Gaussian<F> here = {};
        project_backward(cameras[view], gaussian, screen, pulled, here);
        const F pull_rgb[3] = {sums[kMoments], sums[kMoments + 1], sums[kMoments + 2]};
        colour_backward<F>(
            cameras[view], gaussian.mean, scene.harmonics, [&](int i, int c) { return group.harmonic(i, c); },
            recorded.rgb, pull_rgb, [&](int i, int c, F value) { sh[3 * i + c] += select(screen.drawn, value, F{}); }, here.mean);
        for (int k = 0; k < 3; k++) total.mean[k] += select(screen.drawn, here.mean[k], F{});
        for (int k = 0; k < 3; k++) total.log_scale[k] += select(screen.drawn, here.log_scale[k], F{});
        for (int k = 0; k < 4; k++) total.quaternion[k] += select(screen.drawn, here.quaternion[k], F{});
        total.logit += select(screen.drawn, here.logit, F{});
        probe += select(screen.drawn, probe_of(cameras[view], pulled), F{});
    }
    auto write = [&](S* table, int stride, int offset, F value) {
        S values[width];
        store<F>(values, value);
        for (int i = 0; i < group.count; i++) table[(group.first + i) * stride + offset] = values[i];
    };
    for (int k = 0; k < 3; k++) write(into.means, 3, k, total.mean[k]);
    for (int k = 0; k < 3; k++) write(into.log_scales, 3, k, total.log_scale[k]);
    for (int k = 0; k < 4; k++) write(into.quaternions, 4, k, total.quaternion[k]);
    write(into.logits, 1, 0, total.logit);
    write(into.probe, 1, 0, probe);
    for (int k = 0; k < 3 * scene.harmonics; k++) write(into.sh, 3 * scene.harmonics, k, sh[k]);
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
