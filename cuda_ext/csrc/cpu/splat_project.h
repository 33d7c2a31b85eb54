// Gaussians to records: the first step of a drawing, as many gaussians at a time as there are lanes.
#pragma once
#include "harmonics.h"
#include "tiles.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

template <class S>
struct Scene {
    int64_t n;
    int harmonics, features;
    const S *means, *log_scales, *quaternions, *logits, *sh, *feature;
};

// The gaussians of as many lanes; the last ones are repeated where fewer are left.
template <class F>
struct Group {
    static constexpr int width = LaneTraits<F>::count;
    const Scene<Scalar<F>>& scene;
    int64_t first;
    int count;
    Group(const Scene<Scalar<F>>& s, int64_t group)
        : scene(s), first(group * width), count(s.n - first < width ? int(s.n - first) : width) {}
    static int64_t groups(int64_t n) { return (n + width - 1) / width; }
    int64_t index(int lane) const { return first + (lane < count ? lane : count - 1); }
    F column(const Scalar<F>* table, int64_t stride, int64_t offset) const {
        return gather<F>(table, [&](int lane) { return index(lane) * stride + offset; });
    }
    Gaussian<F> gaussian() const {
        Gaussian<F> out;
        for (int k = 0; k < 3; k++) out.mean[k] = column(scene.means, 3, k);
        for (int k = 0; k < 3; k++) out.log_scale[k] = column(scene.log_scales, 3, k);
        for (int k = 0; k < 4; k++) out.quaternion[k] = column(scene.quaternions, 4, k);
        out.logit = column(scene.logits, 1, 0);
        return out;
    }
    F harmonic(int i, int channel) const { return column(scene.sh, 3 * scene.harmonics, 3 * i + channel); }
    Mask<F> features_finite() const {
        F nothing = F{};
        for (int k = 0; k < scene.features; k++) {
            const F value = column(scene.feature, scene.features, k);
            nothing += value - value;
        }
        return at_most(nothing, F{});
    }
};

// Fills the records and radii of a group, and the number of tiles that each gaussian meets.
template <class F>
void project_group(const Camera<Scalar<F>>& camera, const Picture& picture, const Group<F>& group,
                   Record<Scalar<F>>* records, Scalar<F>* radius, int64_t* tiles) {
    using S = Scalar<F>;
    constexpr int width = Group<F>::width;
    const Gaussian<F> gaussian = group.gaussian();
    Screen<F> screen = project(camera, gaussian);
    F rgb[3];
    colour<F>(camera, gaussian.mean, group.scene.harmonics, [&](int i, int c) { return group.harmonic(i, c); }, rgb);
    screen.drawn = screen.drawn & is_finite(rgb[0]) & is_finite(rgb[1]) & is_finite(rgb[2]) & group.features_finite();
    screen.extent_x = select(screen.drawn, screen.extent_x, F{});
    screen.extent_y = select(screen.drawn, screen.extent_y, F{});
    const F fields[] = {screen.mean_x,  screen.mean_y, screen.conic_xx, screen.conic_xy, screen.conic_yy, screen.opacity,
                        rgb[0],         rgb[1],        rgb[2],          screen.depth,    screen.extent_x, screen.extent_y};
    static_assert(sizeof(Record<S>) == 12 * sizeof(S), "the record is the list of its fields");
    for (int k = 0; k < 12; k++) {
        S lanes_of[width];
        store<F>(lanes_of, fields[k]);
        for (int i = 0; i < group.count; i++) reinterpret_cast<S*>(records + group.first + i)[k] = lanes_of[i];
    }
    int count[width] = {};
    for_each_span(picture, screen, [&](int lane, int, int first, int last) { count[lane] += last - first + 1; });
    for (int i = 0; i < group.count; i++) {
        const Record<S>& record = records[group.first + i];
        radius[group.first + i] = maximum(record.extent_x, record.extent_y);
        tiles[group.first + i] = count[i];
    }
}

// The first step of a drawing; returns the number of pairs of gaussians and tiles.
template <class F>
int64_t project_all(const Scene<Scalar<F>>& scene, int64_t views, const Scalar<F>* pose, const Scalar<F>* focal,
                    const Picture& picture, Scalar<F> near, int threads, Record<Scalar<F>>* records, Scalar<F>* radius,
                    int64_t* begin) {
    const int64_t groups = Group<F>::groups(scene.n);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < views * groups; j++) {
        const int64_t view = j / groups, at = view * scene.n;
        const auto camera = camera_of(pose + 16 * view, focal[view], picture.width, picture.height, near);
        project_group<F>(camera, picture, Group<F>(scene, j % groups), records + at, radius + at, begin + 1 + at);
    }
    begin[0] = 0;
    for (int64_t i = 0; i < views * scene.n; i++) begin[i + 1] += begin[i];
    return begin[views * scene.n];
}

// Records of as many gaussians as lanes, the last one repeated where there are fewer.
template <class F>
struct Recorded {
    Screen<F> screen;
    F rgb[3];
    DREAMKILN_FN Recorded(const Record<Scalar<F>>* records, int count) {
        const Scalar<F>* numbers = reinterpret_cast<const Scalar<F>*>(records);
        auto number = [&](int k) {
            return gather<F>(numbers + k, [&](int lane) { return 12 * (lane < count ? lane : count - 1); });
        };
        screen = {number(0), number(1), number(2), number(3), number(4),   number(5),
                  number(9), number(10), number(11), below(F{}, number(10))};
        for (int c = 0; c < 3; c++) rgb[c] = number(6 + c);
    }
};

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
