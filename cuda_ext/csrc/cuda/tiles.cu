// Gaussian splats on CUDA, tile by tile: the picture, and the gradients on the screen.
//
// A warp draws a tile of 8 x 8 pixels, two a lane, in chunks of four channels: chunk 0 is red, green, blue and depth,
// chunk k > 0 four of the features. Alpha comes from the same function everywhere, so that the replay takes the very
// path of the drawing.
//
// The replay adds up, per gaussian and tile, what a gaussian's gradient needs (moments of dL/dsigma and the gradients of
// its channels) into a row of its own, a slot; the rows of a gaussian are added in a fixed order afterwards. So gradients
// are the same, bit for bit, in every run. Slots lie one after the other by view, rank and tile; the memory for them was
// set aside before their number was known, and what would lie beyond it is added by atomics instead.
#include "gaussian.h"
#include "records.cuh"
#include "rectangles.cuh"

namespace dreamkiln {

// Chunks of channels: where they come from and which planes of the picture they are.
struct Chunk {
    int index, features;
    DREAMKILN_FN int count() const {
        return index == 0 ? kChannels : features - first() < kChannels ? features - first() : kChannels;
    }
    DREAMKILN_FN int first() const { return (index - 1) * kChannels; }
    // Planes are red, green, blue, alpha, depth, features.
    DREAMKILN_FN int plane(int channel) const { return index == 0 ? (channel < 3 ? channel : 4) : 5 + first() + channel; }
    DREAMKILN_FN float channel(const Record& record, const float* table, int gaussian, int channel) const {
        if (index == 0) return record.channels[channel];
        return channel < count() ? table[size_t(gaussian) * features + first() + channel] : 0.0f;
    }
};

// What a warp keeps of the gaussian that it blends next.
struct alignas(16) Splat {
    float mean_x, mean_y, conic_xx, conic_xy;
    float conic_yy, opacity;
    int rank, slot;  // slot: of this tile, -1 where there is none
    float channels[kChannels];
    DREAMKILN_FN float alpha(float x, float y) const {
        return alpha_at(conic_xx, conic_xy, conic_yy, opacity, mean_x - x, mean_y - y);
    }
};

// The pixels of one lane.
struct Pixels {
    float x, y[kPixels];
    int column, row[kPixels];
    bool inside[kPixels];
    DREAMKILN_FN Pixels(const View& view, int tile_x, int tile_y) {
        column = tile_x * kTile + (lane_index() & 7);
        x = float(column) + 0.5f;
#pragma unroll
        for (int k = 0; k < kPixels; k++) {
            row[k] = tile_y * kTile + (lane_index() >> 3) + 4 * k;
            y[k] = float(row[k]) + 0.5f;
            inside[k] = column < view.width && row[k] < view.height;
        }
    }
    DREAMKILN_FN size_t place(const View& view, int k) const { return size_t(row[k]) * view.width + column; }
};

// Gaussians in depth order, of one view.
struct Ordered {
    const Record* records;
    const int64_t* order;
    const Rectangle* rectangles;
    DREAMKILN_FN Ordered(const Record* r, const int64_t* o, const Rectangle* t, size_t begin)
        : records(r + begin), order(o + begin), rectangles(t + begin) {}
    DREAMKILN_FN Splat splat(int rank, const Chunk& chunk, const float* table) const {
        const int gaussian = int(order[rank]);
        const Record record = records[gaussian];
        Splat splat{record.mean_x,   record.mean_y,  record.conic_xx, record.conic_xy,
                    record.conic_yy, record.opacity, rank,            -1};
#pragma unroll
        for (int c = 0; c < kChannels; c++) splat.channels[c] = chunk.channel(record, table, gaussian, c);
        return splat;
    }
};

// --- drawing ----------------------------------------------------------------------------------------------------------

// registers: 56
extern "C" __global__ void __launch_bounds__(128) draw_tiles(
    int n, int width, int height, int features, const Record* records, const int64_t* order,
    const Rectangle* rectangles, const int* drawn, const int64_t* bin_ends, const int* bin_ranks, int bin_capacity,
    const float* table, const float* background, float* image, float* transmittance, int* reached) {
    __shared__ int queues[kWarps][kQueue];
    __shared__ Splat batches[kWarps][32];
    const View view(width, height);
    const int warp = threadIdx.x / 32, tile = blockIdx.x * kWarps + warp, picture = blockIdx.z;
    if (tile >= view.columns * view.rows) return;
    const int tile_x = tile % view.columns, tile_y = tile / view.columns;
    const Chunk chunk{int(blockIdx.y), features};
    const Ordered gaussians(records, order, rectangles, size_t(picture) * n);
    const Pixels pixels(view, tile_x, tile_y);
    Splat* batch = batches[warp];

    float left[kPixels], sums[kPixels][kChannels] = {};
    bool open[kPixels];
    int last = -1;
#pragma unroll
    for (int k = 0; k < kPixels; k++) {
        left[k] = 1.0f;
        open[k] = pixels.inside[k];
    }
    const Candidates all =
        candidates_of_tile({bin_ends, bin_ranks, bin_capacity}, view, picture, tile_x, tile_y, drawn[picture]);
    for_each_meeting(all, gaussians.rectangles, tile_x, tile_y, n, queues[warp], [&](int count) {
        if (lane_index() < count) batch[lane_index()] = gaussians.splat(queues[warp][lane_index()], chunk, table);
        __syncwarp();
        for (int i = 0; i < count; i++) {
            const Splat splat = batch[i];
#pragma unroll
            for (int k = 0; k < kPixels; k++) {
                const float weight = blend(splat.alpha(pixels.x, pixels.y[k]), left[k], open[k]);
                if (weight > 0) last = splat.rank;
#pragma unroll
                for (int c = 0; c < kChannels; c++) sums[k][c] += weight * splat.channels[c];
            }
        }
        __syncwarp();
        return __any_sync(kWholeWarp, open[0] || open[1]) != 0;
    });

    last = warp_maximum(last);
    if (chunk.index == 0 && lane_index() == 0) reached[size_t(picture) * view.columns * view.rows + tile] = last + 1;
    const size_t plane = size_t(width) * height;
    float* own = image + size_t(picture) * (5 + features) * plane;
#pragma unroll
    for (int k = 0; k < kPixels; k++) {
        if (!pixels.inside[k]) continue;
        const size_t place = pixels.place(view, k);
#pragma unroll
        for (int c = 0; c < kChannels; c++) {
            if (c >= chunk.count()) continue;
            const float behind = chunk.index == 0 && c < 3 ? left[k] * background[picture * 3 + c] : 0.0f;
            own[chunk.plane(c) * plane + place] = sums[k][c] + behind;
        }
        if (chunk.index > 0) continue;
        own[3 * plane + place] = 1.0f - left[k];
        transmittance[picture * plane + place] = left[k];
    }
}

// --- the gradients ----------------------------------------------------------------------------------------------------

// Where the replay of one pixel stands.
struct Replay {
    float gradient[kChannels];
    float left, remaining;  // transmittance; what is still to come, see gaussian.h
    bool open;
};

DREAMKILN_FN Replay replay_from(const View& view, const Chunk& chunk, int picture, size_t place, bool inside,
                                const float* image, const float* transmittance, const float* image_gradient) {
    const size_t plane = size_t(view.width) * view.height;
    const size_t begin = size_t(picture) * (5 + chunk.features) * plane + place;
    Replay pixel{};
    pixel.left = 1.0f;
    pixel.open = inside;
    if (!inside) return pixel;
#pragma unroll
    for (int c = 0; c < kChannels; c++) {
        if (c >= chunk.count()) continue;
        pixel.gradient[c] = image_gradient[begin + chunk.plane(c) * plane];
        pixel.remaining += image[begin + chunk.plane(c) * plane] * pixel.gradient[c];
    }
    if (chunk.index == 0) pixel.remaining -= transmittance[picture * plane + place] * image_gradient[begin + 3 * plane];
    return pixel;
}

DREAMKILN_FN void add_moments(float pull, float dx, float dy, float* sums) {
    const float x = pull * dx, y = pull * dy;
    sums[0] += pull;
    sums[1] += x;
    sums[2] += y;
    sums[3] += x * dx;
    sums[4] += x * dy;
    sums[5] += y * dy;
}

// registers: 72
extern "C" __global__ void __launch_bounds__(128, 7) replay_tiles(
    int n, int width, int height, int features, const Record* records, const int64_t* order,
    const Rectangle* rectangles, const int* drawn, const int64_t* bin_ends, const int* bin_ranks, int bin_capacity,
    const float* table, const float* image, const float* transmittance, const int* reached, const int64_t* ends,
    const float* image_gradient, int chunk_index, float* slots, int capacity, float* totals) {
    __shared__ int queues[kWarps][kQueue];
    __shared__ Splat batches[kWarps][32];
    const View view(width, height);
    const int warp = threadIdx.x / 32, tile = blockIdx.x * kWarps + warp, picture = blockIdx.z;
    if (tile >= view.columns * view.rows) return;
    const int tile_x = tile % view.columns, tile_y = tile / view.columns;
    const Chunk chunk{chunk_index, features};
    const size_t begin = size_t(picture) * n;
    const Ordered gaussians(records, order, rectangles, begin);
    const Pixels pixels(view, tile_x, tile_y);
    Splat* batch = batches[warp];

    Replay at[kPixels];
#pragma unroll
    for (int k = 0; k < kPixels; k++)
        at[k] = replay_from(view, chunk, picture, pixels.place(view, k), pixels.inside[k], image, transmittance,
                            image_gradient);
    // This lane's number of the row: moments first, then this chunk's channels. Later chunks add to the moments.
    const int number = sum_of_lane<kRow>();
    const int column = number < kMoments ? number : number + chunk_index * kChannels;
    const int row = numbers_in_row(features);
    const bool adds = chunk_index > 0 && number < kMoments;

    const int limit = reached[size_t(picture) * view.columns * view.rows + tile];
    const Candidates all =
        candidates_of_tile({bin_ends, bin_ranks, bin_capacity}, view, picture, tile_x, tile_y, drawn[picture]);
    for_each_meeting(all, gaussians.rectangles, tile_x, tile_y, limit, queues[warp], [&](int count) {
        if (lane_index() < count) {
            const int rank = queues[warp][lane_index()];
            const Rectangle r = rectangles[begin + rank];
            Splat splat = gaussians.splat(rank, chunk, table);
            const int64_t slot = ends[begin + rank] - tiles_in(r) + (tile_y - r.y) * (r.z - r.x) + (tile_x - r.x);
            splat.slot = slot < capacity ? int(slot) : -1;
            batch[lane_index()] = splat;
        }
        __syncwarp();
        for (int i = 0; i < count; i++) {
            const Splat splat = batch[i];
            float sums[kRow] = {};
            bool touched = false;
            const float dx = splat.mean_x - pixels.x;
#pragma unroll
            for (int k = 0; k < kPixels; k++) {
                const float dy = splat.mean_y - pixels.y[k];
                float dot = 0.0f, pull;
#pragma unroll
                for (int c = 0; c < kChannels; c++) dot += splat.channels[c] * at[k].gradient[c];
                const float alpha = splat.alpha(pixels.x, pixels.y[k]);
                const float weight = replay(alpha, dot, at[k].left, at[k].remaining, at[k].open, pull);
                touched = touched || weight > 0;
                add_moments(pull, dx, dy, sums);
#pragma unroll
                for (int c = 0; c < kChannels; c++) sums[kMoments + c] += weight * at[k].gradient[c];
            }
            const float sum = __any_sync(kWholeWarp, touched) ? warp_sums<kRow>(sums) : 0.0f;
            if (number < 0) continue;
            if (splat.slot < 0) {
                if (sum != 0) atomicAdd(&totals[(begin + size_t(order[begin + splat.rank])) * row + column], sum);
            } else {
                float* to = &slots[size_t(splat.slot) * row + column];
                *to = adds ? *to + sum : sum;
            }
        }
        __syncwarp();
        return true;
    });
}

// The rows of each gaussian, added tile by tile. Eight threads a gaussian, every eighth number each.
// registers: 40
extern "C" __global__ void __launch_bounds__(256) reduce_slots(
    int n, int width, int height, int row, const int64_t* order, const Rectangle* rectangles, const int* drawn,
    const int64_t* ends, const int* reached, const float* slots, int capacity, float* totals) {
    const int rank = (blockIdx.x * blockDim.x + threadIdx.x) / 8, picture = blockIdx.y;
    if (rank >= drawn[picture]) return;
    const View view(width, height);
    const size_t place = size_t(picture) * n + rank;
    const Rectangle rectangle = rectangles[place];
    const int tiles = tiles_in(rectangle), across = rectangle.z - rectangle.x;
    const int64_t first = ends[place] - tiles;
    const int* reached_here = reached + size_t(picture) * view.columns * view.rows;
    float* total = totals + (size_t(picture) * n + size_t(order[place])) * row;
    for (int number = threadIdx.x & 7; number < row; number += 8) {
        float sum = 0.0f;
#pragma unroll 4
        for (int i = 0; i < tiles; i++) {
            const int tile = (rectangle.y + i / across) * view.columns + rectangle.x + i % across;
            // A tile that was full before this gaussian has not written its row.
            if (first + i < capacity && rank < reached_here[tile]) sum += slots[size_t(first + i) * row + number];
        }
        total[number] += sum;  // the atomics of what did not fit have been here
    }
}

}  // namespace dreamkiln
