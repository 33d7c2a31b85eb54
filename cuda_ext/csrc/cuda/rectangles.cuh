// Which gaussians meet which tiles of 8 x 8 pixels, front to back, without a list of the pairs.
//
// Gaussians are numbered by rank: their place in the depth order of a view. The rectangles of a view lie in that order,
// so a warp that draws a tile finds its gaussians by testing 32 rectangles at a time. In larger pictures it tests only
// those of its bin of 64 x 64 pixels, whose ranks were listed before.
#pragma once
#include "warp.cuh"

namespace dreamkiln {

constexpr int kTile = 8;             // pixels
constexpr int kBin = 8;              // tiles
constexpr int kWarps = 4;            // tiles a block draws
constexpr int kPixels = 2;           // pixels a lane draws: the same column, 4 rows apart
constexpr int kQueue = 64;

struct View {
    int width, height, columns, rows, bin_columns, bin_rows;  // pixels, tiles, bins
    DREAMKILN_FN View(int w, int h)
        : width(w), height(h), columns((w + kTile - 1) / kTile), rows((h + kTile - 1) / kTile),
          bin_columns((columns + kBin - 1) / kBin), bin_rows((rows + kBin - 1) / kBin) {}
};

// The pixel nearest to a coordinate that may lie far outside the picture.
DREAMKILN_FN int pixel_in(float coordinate, int side) {
    return int(minimum(maximum(coordinate, 0.0f), float(side - 1)));
}

// Tiles x0..x1-1, y0..y1-1; empty where a gaussian is not drawn.
using Rectangle = short4;  // x0, y0, x1, y1
DREAMKILN_FN Rectangle rectangle_of(int x0, int y0, int x1, int y1) {
    return make_short4(short(x0), short(y0), short(x1), short(y1));
}
DREAMKILN_FN int tiles_in(Rectangle r) { return (r.z - r.x) * (r.w - r.y); }
DREAMKILN_FN bool meets(Rectangle r, int x, int y) { return x >= r.x && x < r.z && y >= r.y && y < r.w; }
DREAMKILN_FN bool meets_bin(Rectangle r, int x, int y) {
    return (x + 1) * kBin > r.x && x * kBin < r.z && (y + 1) * kBin > r.y && y * kBin < r.w;
}

// The ranks that may meet a tile, ascending.
struct Candidates {
    const int* list;  // null: 0, 1, 2, ...
    int count;
    DREAMKILN_FN int rank(int i) const { return list ? list[i] : i; }
};

// Lists of the bins, one after the other; `ends` are running totals. A list that does not fit is not written, and its
// tiles look at every rank.
struct Bins {
    const int64_t* ends;  // null: no bins
    const int* ranks;
    int64_t capacity;
};
DREAMKILN_FN Candidates candidates_of_tile(const Bins& bins, const View& view, int image, int x, int y, int drawn) {
    if (!bins.ends) return {nullptr, drawn};
    const int bin = (image * view.bin_rows + y / kBin) * view.bin_columns + x / kBin;
    const int64_t begin = bin ? bins.ends[bin - 1] : 0, end = bins.ends[bin];
    if (end > bins.capacity) return {nullptr, drawn};
    return {bins.ranks + begin, int(end - begin)};
}

// Calls `draw(count)` with up to 32 ranks in `queue`, ascending, until all ranks below `limit` whose rectangle meets the
// tile were there or `draw` answers that it has had enough.
template <class Draw>
DREAMKILN_FN void for_each_meeting(const Candidates& all, const Rectangle* rectangles, int x, int y, int limit, int* queue,
                                   Draw draw) {
    const int lane = lane_index();
    int queued = 0;
    for (int base = 0; base < all.count; base += 32) {
        const int i = base + lane;
        const int rank = i < all.count ? all.rank(i) : limit;
        const bool meeting = rank < limit && meets(rectangles[rank], x, y);
        const unsigned meetings = __ballot_sync(kWholeWarp, meeting);
        const bool last = base + 32 >= all.count || __any_sync(kWholeWarp, rank >= limit);
        if (meeting) queue[queued + place_in(meetings)] = rank;
        queued += __popc(meetings);
        __syncwarp();
        while (queued >= 32 || (last && queued > 0)) {
            const int count = queued < 32 ? queued : 32;
            if (!draw(count)) return;
            queued -= count;
            if (lane < queued) queue[lane] = queue[lane + 32];  // from the upper half to the lower
            __syncwarp();
        }
        if (last) return;
    }
}

}  // namespace dreamkiln
