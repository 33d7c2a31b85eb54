// Gaussian splats on the CPU: project, list, draw; and backward: replay, gather.
//
// cuda_ext/cpu_gaussians.py owns all memory that outlives a call. Nothing here depends on the number of threads: each
// gaussian, tile and slot is worked out by one thread, and sums run in an order of their own.
#include "splat_gather.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {
namespace {

int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Sizes and inputs; the layout is that of _Call in cuda_ext/cpu_gaussians.py.
template <class S>
struct Call {
    int64_t n, views, harmonics, features, width, height, threads;
    double near;
    const S *means, *log_scales, *quaternions, *logits, *sh, *feature;
    const S *pose, *focal, *background;
    Record<S>* records;     // [views, n]
    S* radius;              // [views, n]
    int64_t* begin;         // [views * n + 1], first slot of each gaussian
    int64_t* tile_begin;    // [views * tiles + 1], first pair of each tile
    Pair* pairs;            // in the order of the tiles
    uint32_t* reached;      // [views * tiles], pairs that the drawing looked at
    S *image, *transmittance;
    const S* gradient;      // of the image
    S *means_gradient, *log_scales_gradient, *quaternions_gradient, *logits_gradient, *sh_gradient, *features_gradient,
        *probe_gradient, *background_gradient;

    Scene<S> scene() const {
        return {n, int(harmonics), int(features), means, log_scales, quaternions, logits, sh, feature};
    }
    Picture picture() const { return Picture(int(width), int(height)); }
    template <class F>
    Canvas<F> canvas(const Picture& picture, int64_t view) const {
        const int64_t pixels = width * height;
        return {picture,
                int(features),
                records + view * n,
                feature,
                background + 3 * view,
                image + view * (kPlanes + features) * pixels,
                transmittance + view * pixels};
    }
    int64_t room() const { return (features + 1) * (kTile * kTile + 64); }  // per thread, for features
};

template <class F>
int64_t run_project(const Call<Scalar<F>>& call) {
    return project_all<F>(call.scene(), call.views, call.pose, call.focal, call.picture(), Scalar<F>(call.near),
                          int(call.threads), call.records, call.radius, call.begin);
}

template <class F>
int run_draw(const Call<Scalar<F>>& call) {
    const Picture picture = call.picture();
    const int64_t tiles = picture.tiles();
    const Lists lists = {call.tile_begin, call.pairs};
    if (!list_all<F>(picture, call.views, call.n, call.records, call.begin, int(call.threads), lists)) return 1;
    Scratch<Scalar<F>> room(call.threads * call.room());
    if (!room) return 1;
#pragma omp parallel for num_threads(int(call.threads)) schedule(dynamic, 2)
    for (int64_t j = 0; j < call.views * tiles; j++) {
        const Canvas<F> canvas = call.template canvas<F>(picture, j / tiles);
        const int64_t first = lists.begin[j], count = lists.begin[j + 1] - first;
        const auto draw = call.features ? draw_tile<F, true> : draw_tile<F, false>;
        call.reached[j] =
            uint32_t(draw(canvas, j % tiles, lists.pairs + first, count, &room[thread_number() * call.room()]));
    }
    return 0;
}

template <class F>
int run_backward(const Call<Scalar<F>>& call) {
    using S = Scalar<F>;
    const Picture picture = call.picture();
    const int64_t tiles = picture.tiles(), pairs = call.begin[call.views * call.n], row = kRow + call.features;
    Scratch<S> room(call.threads * call.room()), rows(pairs * row), behind(call.views * tiles * 3);
    Scratch<uint8_t> written(pairs);
    Scratch<Camera<S>> cameras(call.views);
    if (!room || !rows || !behind || !written || !cameras) return 1;
    for (int64_t view = 0; view < call.views; view++)
        cameras[view] = camera_of(call.pose + 16 * view, call.focal[view], picture.width, picture.height, S(call.near));
    std::memset(written.get(), 0, pairs);
    const Slots<S> slots = {call.begin, rows.get(), written.get(), int(row)};
    const Gradients<S> into = {call.means_gradient, call.log_scales_gradient, call.quaternions_gradient,
                               call.logits_gradient, call.sh_gradient, call.features_gradient, call.probe_gradient};
    const Scene<S> scene = call.scene();
#pragma omp parallel num_threads(int(call.threads))
    {
#pragma omp for schedule(dynamic, 2)
        for (int64_t j = 0; j < call.views * tiles; j++) {
            const Canvas<F> canvas = call.template canvas<F>(picture, j / tiles);
            const S* gradient = call.gradient + j / tiles * (kPlanes + call.features) * canvas.pixels();
            Replay<F> replay(canvas, j % tiles, gradient, &room[thread_number() * call.room()], &behind[3 * j]);
            const int64_t first = call.tile_begin[j];
            for (int64_t pair = first; pair < first + call.reached[j]; pair++) {
                const auto [gaussian, slot] = call.pairs[pair];
                written[slot] = call.features ? replay.template pair<true>(gaussian, &rows[slot * row])
                                              : replay.template pair<false>(gaussian, &rows[slot * row]);
            }
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < Group<F>::groups(call.n); j++)
            gather_group(Group<F>(scene, j), call.views, cameras.get(), call.records, slots, into);
    }
    for (int64_t view = 0; view < call.views; view++)
        for (int c = 0; c < 3; c++) {
            S sum = 0;
            for (int64_t j = view * tiles; j < (view + 1) * tiles; j++) sum += behind[3 * j + c];
            call.background_gradient[3 * view + c] = sum;
        }
    return 0;
}

}  // namespace
}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln

using namespace dreamkiln;

// Records, radii and first slots; returns the number of pairs of gaussians and tiles.
DREAMKILN_EXPORT(int64_t, gaussians_project_f32)(const Call<float>* call) { return run_project<Lanes>(*call); }
DREAMKILN_EXPORT(int64_t, gaussians_project_f64)(const Call<double>* call) { return run_project<double>(*call); }
// The lists of the tiles, and the picture; not 0 where memory is short.
DREAMKILN_EXPORT(int, gaussians_draw_f32)(const Call<float>* call) { return run_draw<Lanes>(*call); }
DREAMKILN_EXPORT(int, gaussians_draw_f64)(const Call<double>* call) { return run_draw<double>(*call); }
// Gradients of all inputs; not 0 where memory is short.
DREAMKILN_EXPORT(int, gaussians_backward_f32)(const Call<float>* call) { return run_backward<Lanes>(*call); }
DREAMKILN_EXPORT(int, gaussians_backward_f64)(const Call<double>* call) { return run_backward<double>(*call); }
