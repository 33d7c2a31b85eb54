// Gaussian splats on CUDA, gaussian by gaussian: to the screen, into the order and place that tiles.cu draws them from,
// and the gradients back.
//
// In order: project_gaussians, (torch sorts the depths), place_gaussians, (torch adds up the tiles and bins), list_bins
// in larger pictures, draw_tiles; and backward: replay_tiles, reduce_slots, pull_gaussians.
#include "gaussian.h"
#include "harmonics.h"
#include "records.cuh"
#include "rectangles.cuh"

namespace dreamkiln {

// --- projection -------------------------------------------------------------------------------------------------------

// Calls with the number as a compile-time constant: arrays of that length then live in registers.
template <int N>
struct Constant {
    static constexpr int value = N;
};
template <class Call>
DREAMKILN_FN void with_constant(int harmonics, Call call) {
    switch (harmonics) {
        case 1: return call(Constant<1>{});
        case 4: return call(Constant<4>{});
        case 9: return call(Constant<9>{});
        default: return call(Constant<16>{});
    }
}

struct Parameters {
    int n, harmonics, features, width, height;
    const float *means, *log_scales, *quaternions, *logits, *sh, *table;
    DREAMKILN_FN Gaussian<float> gaussian(int i) const {
        Gaussian<float> g;
        for (int k = 0; k < 3; k++) g.mean[k] = means[3 * i + k], g.log_scale[k] = log_scales[3 * i + k];
        for (int k = 0; k < 4; k++) g.quaternion[k] = quaternions[4 * i + k];
        g.logit = logits[i];
        return g;
    }
    DREAMKILN_FN auto harmonic(int i) const {
        return [own = sh + size_t(i) * harmonics * 3](int j, int channel) { return own[3 * j + channel]; };
    }
    DREAMKILN_FN bool finite_features(int i) const {
        bool finite = true;
        for (int k = 0; k < features; k++) finite = finite && is_finite(table[size_t(i) * features + k]);
        return finite;
    }
};

// registers: 64
extern "C" __global__ void __launch_bounds__(256) project_gaussians(
    int n, int harmonics, int features, int width, int height, float near, const float* means, const float* log_scales,
    const float* quaternions, const float* logits, const float* sh, const float* table, const float* pose,
    const float* focal, Record* records, float* keys, float* radius) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, picture = blockIdx.y;
    if (i >= n) return;
    const Parameters all{n, harmonics, features, width, height, means, log_scales, quaternions, logits, sh, table};
    const Camera<float> camera = camera_of(pose + 16 * picture, focal[picture], width, height, near);
    const Gaussian<float> gaussian = all.gaussian(i);
    const Screen<float> screen = project(camera, gaussian);
    bool drawn = screen.drawn && screen.extent_x > 0 && all.finite_features(i);
    float rgb[3] = {};
    if (drawn) {
        with_constant(harmonics, [&](auto count) { colour(camera, gaussian.mean, count.value, all.harmonic(i), rgb); });
        drawn = is_finite(rgb[0] + rgb[1] + rgb[2]);
    }
    const size_t place = size_t(picture) * n + i;
    const float infinity = __int_as_float(0x7f800000);
    keys[place] = drawn ? screen.depth : infinity;
    radius[place] = drawn ? maximum(screen.extent_x, screen.extent_y) : 0.0f;
    const Record nothing{};
    records[place] = drawn ? Record{screen.mean_x,   screen.mean_y,   screen.conic_xx, screen.conic_xy,
                                    screen.conic_yy, screen.opacity,  screen.extent_x, screen.extent_y,
                                    {rgb[0], rgb[1], rgb[2], screen.depth}}
                           : nothing;
}

// Tiles with a pixel centre inside the gaussian's extent, or a hair outside: alpha decides, not the rectangle's rounding.
DREAMKILN_FN Rectangle rectangle_in(const View& view, const Record& record) {
    const float slack = 0.01f, half = 0.5f;
    const int left = pixel_in(ceilf(record.mean_x - record.extent_x - half - slack), view.width);
    const int right = pixel_in(floorf(record.mean_x + record.extent_x - half + slack), view.width);
    const int top = pixel_in(ceilf(record.mean_y - record.extent_y - half - slack), view.height);
    const int bottom = pixel_in(floorf(record.mean_y + record.extent_y - half + slack), view.height);
    const bool empty = !(record.extent_x > 0) || left > right || top > bottom;
    return empty ? rectangle_of(0, 0, 0, 0)
                 : rectangle_of(left / kTile, top / kTile, right / kTile + 1, bottom / kTile + 1);
}

// --- order and place --------------------------------------------------------------------------------------------------

// Rectangles and their number of tiles in depth order; how many gaussians are drawn; how many each bin gets.
// registers: 32
extern "C" __global__ void __launch_bounds__(256) place_gaussians(
    int n, int width, int height, const Record* records, const int64_t* order, Rectangle* rectangles, int* tiles,
    int* drawn, int* in_bins) {
    const int rank = blockIdx.x * blockDim.x + threadIdx.x, picture = blockIdx.y;
    if (rank >= n) return;
    const View view(width, height);
    const size_t begin = size_t(picture) * n;
    const Record* own = records + begin;
    const Rectangle rectangle = rectangle_in(view, own[order[begin + rank]]);
    rectangles[begin + rank] = rectangle;
    tiles[begin + rank] = tiles_in(rectangle);
    // Gaussians that are not drawn come last; they have no extent.
    const bool seen = own[order[begin + rank]].extent_x > 0;
    if (seen && (rank == n - 1 || !(own[order[begin + rank + 1]].extent_x > 0))) drawn[picture] = rank + 1;
    if (!in_bins || !tiles_in(rectangle)) return;
    for (int y = rectangle.y / kBin; y <= (rectangle.w - 1) / kBin; y++)
        for (int x = rectangle.x / kBin; x <= (rectangle.z - 1) / kBin; x++)
            atomicAdd(&in_bins[(picture * view.bin_rows + y) * view.bin_columns + x], 1);
}

// The ranks that meet each bin, ascending: a block goes through all ranks of a view for one bin.
// registers: 40
extern "C" __global__ void __launch_bounds__(256) list_bins(
    int n, int width, int height, const Rectangle* rectangles, const int* drawn, const int64_t* bin_ends,
    int* bin_ranks, int bin_capacity) {
    __shared__ int found[256 / 32];
    const View view(width, height);
    const int picture = blockIdx.y, warp = threadIdx.x / 32;
    const int bin_x = blockIdx.x % view.bin_columns, bin_y = blockIdx.x / view.bin_columns;
    const int bin = picture * view.bin_columns * view.bin_rows + blockIdx.x;
    int64_t to = bin ? bin_ends[bin - 1] : 0;
    if (bin_ends[bin] > bin_capacity) return;  // its tiles look at every rank
    for (int base = 0; base < drawn[picture]; base += blockDim.x) {
        const int rank = base + threadIdx.x;
        const bool inside = rank < drawn[picture] && meets_bin(rectangles[size_t(picture) * n + rank], bin_x, bin_y);
        const unsigned members = __ballot_sync(kWholeWarp, inside);
        if (lane_index() == 0) found[warp] = __popc(members);
        __syncthreads();
        int before = 0, all = 0;
#pragma unroll
        for (int w = 0; w < 256 / 32; w++) {
            before += w < warp ? found[w] : 0;
            all += found[w];
        }
        if (inside) bin_ranks[to + before + place_in(members)] = rank;
        to += all;
        __syncthreads();
    }
}

// --- the gradients -----------------------------------------------------------------------------------------------------

// Through the projection: every gaussian, all views in order.
// registers: 96
extern "C" __global__ void __launch_bounds__(128) pull_gaussians(
    int n, int pictures, int harmonics, int features, int width, int height, const float* means,
    const float* log_scales, const float* quaternions, const float* logits, const float* sh, const float* table,
    const float* pose, const float* focal, const Record* records, const float* totals, float* means_gradient,
    float* log_scales_gradient, float* quaternions_gradient, float* logits_gradient, float* sh_gradient,
    float* table_gradient, float* probe_gradient) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Parameters all{n, harmonics, features, width, height, means, log_scales, quaternions, logits, sh, table};
    const Gaussian<float> gaussian = all.gaussian(i);
    const int row = numbers_in_row(features);
    Gaussian<float> into{};
    float probe = 0.0f;
    float* own_sh = sh_gradient + size_t(i) * harmonics * 3;
    float* own_table = table_gradient + size_t(i) * features;
    for (int k = 0; k < harmonics * 3; k++) own_sh[k] = 0.0f;
    for (int k = 0; k < features; k++) own_table[k] = 0.0f;
    for (int picture = 0; picture < pictures; picture++) {
        const Record record = records[size_t(picture) * n + i];
        if (!(record.extent_x > 0)) continue;
        const float* total = totals + (size_t(picture) * n + i) * row;
        const Camera<float> camera = camera_of(pose + 16 * picture, focal[picture], width, height, 0.0f);
        const Moments<float> moments{total[0], total[1], total[2], total[3], total[4], total[5]};
        const Pulled<float> pulled = pull_from(moments, record.conic_xx, record.conic_xy, record.conic_yy,
                                               record.opacity, total[kMoments + 3]);
        const Screen<float> screen = record.screen();
        project_backward(camera, gaussian, screen, pulled, into);
        probe += probe_of(camera, pulled);
        const float rgb[3] = {record.channels[0], record.channels[1], record.channels[2]};
        const float pull[3] = {total[kMoments], total[kMoments + 1], total[kMoments + 2]};
        const auto add = [&](int j, int channel, float value) { own_sh[3 * j + channel] += value; };
        with_constant(harmonics, [&](auto count) {
            colour_backward(camera, gaussian.mean, count.value, all.harmonic(i), rgb, pull, add, into.mean);
        });
        for (int k = 0; k < features; k++) own_table[k] += total[kRow + k];
    }
    for (int k = 0; k < 3; k++) means_gradient[3 * i + k] = into.mean[k];
    for (int k = 0; k < 3; k++) log_scales_gradient[3 * i + k] = into.log_scale[k];
    for (int k = 0; k < 4; k++) quaternions_gradient[4 * i + k] = into.quaternion[k];
    logits_gradient[i] = into.logit;
    probe_gradient[i] = probe;
}

}  // namespace dreamkiln
