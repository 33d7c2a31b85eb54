// The multiresolution hash grid on CUDA, for FEATURES features a level (a macro: 1, 2, 4 or 8).
//
// Reading: a thread takes one point and as many levels as fill a 32-byte sector of the output, so that no sector is
// written twice; blocks go through all points before the next levels, so that few tables compete for the L2 cache.
// Gradients of the table: atomics in global memory, as vectors from sm_90 on; coarse levels that fit in shared memory
// are added up there by each block first, since their few entries would be fought over. Gradients of the points: a
// thread a point through all levels, no atomics. The sums of atomics are not the same in every run; all else is.
#include "hashgrid.h"

namespace dreamkiln {

constexpr int kFeatures = FEATURES;
constexpr int kLevels = 8 / kFeatures;  // levels a thread reads
constexpr int kShared = 10240;          // floats of a level that is added up in shared memory

// One entry of the table; loads are as wide as the hardware has them.
struct alignas(kFeatures < 4 ? 4 * kFeatures : 16) Features {
    float value[kFeatures];
};

DREAMKILN_FN void add_atomically(float* to, const Features& features) {
#if __CUDA_ARCH__ >= 900 && FEATURES >= 4
#pragma unroll
    for (int i = 0; i < kFeatures; i += 4)
        atomicAdd(reinterpret_cast<float4*>(to + i), make_float4(features.value[i], features.value[i + 1],
                                                                 features.value[i + 2], features.value[i + 3]));
#elif __CUDA_ARCH__ >= 900 && FEATURES == 2
    atomicAdd(reinterpret_cast<float2*>(to), make_float2(features.value[0], features.value[1]));
#else
#pragma unroll
    for (int i = 0; i < kFeatures; i++) atomicAdd(to + i, features.value[i]);
#endif
}

struct Point {
    float own[3], clamped[3];
    bool valid;
};

DREAMKILN_FN Point load_point(const float* points, int i) {
    Point point;
    for (int k = 0; k < 3; k++) {
        point.own[k] = points[3 * size_t(i) + k];
        point.clamped[k] = clamp_to_cube(point.own[k]);
    }
    point.valid = is_valid(point.own);
    return point;
}

// Levels may be masked by weights; a null pointer stands for ones.
DREAMKILN_FN float weight_of_level(const float* weights, int level) { return weights ? weights[level] : 1.0f; }

DREAMKILN_FN Features load_features(const float* table, const GridLevel& level, uint32_t row) {
    return reinterpret_cast<const Features*>(table)[level.first + row];
}

// registers: 64
extern "C" __global__ void __launch_bounds__(256) hash_forward(int n, int levels, const GridLevel* layout,
                                                               const float* weights, const float* points,
                                                               const float* table, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, first = blockIdx.y * kLevels;
    if (i >= n) return;
    const Point point = load_point(points, i);
    float row[kLevels * kFeatures] = {};
#pragma unroll
    for (int l = 0; l < kLevels; l++) {
        const float factor = first + l < levels ? weight_of_level(weights, first + l) : 0.0f;
        if (factor == 0 || !point.valid) continue;
        const GridLevel level = layout[first + l];
        const GridCell<float> cell = locate(level, point.clamped);
#pragma unroll
        for (int corner = 0; corner < 8; corner++) {
            const Features features = load_features(table, level, row_of(level, cell, corner));
            const float weight = factor * weight_of(cell, corner);
#pragma unroll
            for (int f = 0; f < kFeatures; f++) row[l * kFeatures + f] += weight * features.value[f];
        }
    }
    float* to = out + (size_t(i) * levels + first) * kFeatures;
    if (levels * kFeatures % 4 == 0 && first + kLevels <= levels) {
        reinterpret_cast<float4*>(to)[0] = make_float4(row[0], row[1], row[2], row[3]);
        reinterpret_cast<float4*>(to)[1] = make_float4(row[4], row[5], row[6], row[7]);
        return;
    }
#pragma unroll
    for (int k = 0; k < kLevels * kFeatures; k++)
        if (first + k / kFeatures < levels) to[k] = row[k];
}

// The gradient of a level's features at a point, weighted; zero where there is none.
DREAMKILN_FN Features load_pull(const float* pulls, const float* weights, int levels, int i, int level) {
    Features pull;
    const float factor = weight_of_level(weights, level);
#pragma unroll
    for (int f = 0; f < kFeatures; f++)
        pull.value[f] = factor != 0 ? factor * pulls[(size_t(i) * levels + level) * kFeatures + f] : 0.0f;
    return pull;
}

// Calls add(row, features) for the rows of a level that a point touches.
template <class Add>
DREAMKILN_FN void spread_pull(const GridLevel& level, const Point& point, const Features& pull, Add add) {
    const GridCell<float> cell = locate(level, point.clamped);
#pragma unroll
    for (int corner = 0; corner < 8; corner++) {
        const float weight = weight_of(cell, corner);
        Features part;
#pragma unroll
        for (int f = 0; f < kFeatures; f++) part.value[f] = weight * pull.value[f];
        add(row_of(level, cell, corner), part);
    }
}

// The levels from `begin` on, in global memory.
// registers: 64
extern "C" __global__ void __launch_bounds__(256) hash_pull_table(int n, int levels, int begin, const GridLevel* layout,
                                                                  const float* weights, const float* points,
                                                                  const float* pulls, float* table_gradient) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x, first = begin + blockIdx.y * kLevels;
    if (i >= n) return;
    const Point point = load_point(points, i);
    if (!point.valid) return;
    for (int l = first; l < first + kLevels && l < levels; l++) {
        if (weight_of_level(weights, l) == 0) continue;
        const GridLevel level = layout[l];
        spread_pull(level, point, load_pull(pulls, weights, levels, i, l), [&](uint32_t row, const Features& part) {
            add_atomically(table_gradient + (size_t(level.first) + row) * kFeatures, part);
        });
    }
}

// A coarse level a row of blocks, each of which adds up its share of the points in shared memory.
// registers: 56
extern "C" __global__ void __launch_bounds__(256) hash_pull_coarse(int n, int levels, const GridLevel* layout,
                                                                   const float* weights, const float* points,
                                                                   const float* pulls, float* table_gradient) {
    __shared__ float sums[kShared];
    const int l = blockIdx.y;
    if (weight_of_level(weights, l) == 0) return;
    const GridLevel level = layout[l];
    const int numbers = int(level.factor_y * level.factor_z) * kFeatures;  // a dense level: vertices, cubed
    for (int k = threadIdx.x; k < numbers; k += blockDim.x) sums[k] = 0.0f;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        const Point point = load_point(points, i);
        if (!point.valid) continue;
        spread_pull(level, point, load_pull(pulls, weights, levels, i, l), [&](uint32_t row, const Features& part) {
#pragma unroll
            for (int f = 0; f < kFeatures; f++) atomicAdd(&sums[row * kFeatures + f], part.value[f]);
        });
    }
    __syncthreads();
    float* own = table_gradient + size_t(level.first) * kFeatures;
    for (int k = threadIdx.x; k < numbers; k += blockDim.x)
        if (sums[k] != 0) atomicAdd(&own[k], sums[k]);
}

// registers: 72
extern "C" __global__ void __launch_bounds__(256) hash_pull_points(int n, int levels, const GridLevel* layout,
                                                                   const float* weights, const float* points,
                                                                   const float* table, const float* pulls,
                                                                   float* points_gradient) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Point point = load_point(points, i);
    float slope[3] = {};
    for (int l = 0; l < levels && point.valid; l++) {
        if (weight_of_level(weights, l) == 0) continue;
        const GridLevel level = layout[l];
        const GridCell<float> cell = locate(level, point.clamped);
        const Features pull = load_pull(pulls, weights, levels, i, l);
        float dots[8] = {};
#pragma unroll
        for (int corner = 0; corner < 8; corner++) {
            const Features features = load_features(table, level, row_of(level, cell, corner));
#pragma unroll
            for (int f = 0; f < kFeatures; f++) dots[corner] += features.value[f] * pull.value[f];
        }
        add_slope(level, cell, dots, slope);
    }
#pragma unroll
    for (int k = 0; k < 3; k++) points_gradient[3 * size_t(i) + k] = moves(point.own[k]) ? slope[k] : 0.0f;
}

}  // namespace dreamkiln
