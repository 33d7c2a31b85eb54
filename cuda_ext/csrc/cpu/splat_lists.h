// The lists of the tiles: the second step of a drawing.
#pragma once
#include "splat_project.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

// A gaussian of the view in a tile, and the slot that this pair has.
struct Pair {
    uint32_t gaussian, slot;
};

struct Lists {
    int64_t* begin;  // [views * tiles + 1]
    Pair* pairs;
};

// What listing needs for the length of the call.
struct Desk {
    Scratch<uint32_t> tile;  // of each slot
    Scratch<DepthKey> keys, other;
    Scratch<uint32_t> found;  // [views, runs, tiles]
    Desk(int64_t pairs, int64_t gaussians, int64_t counters)
        : tile(pairs), keys(gaussians), other(gaussians), found(counters) {}
    explicit operator bool() const { return tile && keys && other && found; }
};

// The tile of every slot of a group of gaussians.
template <class F>
void mark_group(const Picture& picture, const Record<Scalar<F>>* records, const int64_t* begin, int count,
                uint32_t* tile_of) {
    constexpr int width = LaneTraits<F>::count;
    const Screen<F> screen = Recorded<F>(records, count).screen;
    int64_t next[width];
    for (int i = 0; i < width; i++) next[i] = begin[i < count ? i : count - 1];
    for_each_span(picture, screen, [&](int lane, int row, int first, int last) {
        if (lane >= count) return;
        for (int column = first; column <= last; column++) tile_of[next[lane]++] = row * picture.columns + column;
    });
}

// The drawn gaussians of a view, near to far.
template <class S>
const DepthKey* order_view(const Record<S>* records, int64_t n, DepthKey* keys, DepthKey* other, uint32_t& count) {
    count = 0;
    for (int64_t i = 0; i < n; i++)
        if (records[i].drawn()) keys[count++] = {bits_of(records[i].depth), uint32_t(i)};
    return sort_by_depth(keys, other, count);
}

// Lists for all views: a stable counting sort of each view's pairs by tile, its depth order cut into `runs` that threads
// take; the result is the same for any number of runs.
template <class F>
bool list_all(const Picture& picture, int64_t views, int64_t n, const Record<Scalar<F>>* records, const int64_t* begin,
              int threads, const Lists& lists) {
    const int64_t tiles = picture.tiles(), groups = Group<F>::groups(n), pairs = begin[views * n];
    const int64_t runs = views >= threads ? 1 : (threads + views - 1) / (views ? views : 1);
    Desk desk(pairs, views * n, views * runs * tiles);
    Scratch<const DepthKey*> order(views);
    Scratch<uint32_t> drawn(views);
    if (!desk || !order || !drawn) return false;
    auto for_run = [&](int64_t j, auto visit) {  // visit(gaussian, slot, counter of the tile)
        const int64_t view = j / runs, run = j % runs, first = drawn[view] * run / runs;
        uint32_t* found = &desk.found[j * tiles];
        for (int64_t k = first; k < int64_t(drawn[view]) * (run + 1) / runs; k++) {
            const uint32_t gaussian = order[view][k].gaussian;
            const int64_t at = view * n + gaussian;
            for (int64_t slot = begin[at]; slot < begin[at + 1]; slot++) visit(gaussian, slot, found[desk.tile[slot]]);
        }
    };
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t view = 0; view < views; view++)
            order[view] = order_view(records + view * n, n, &desk.keys[view * n], &desk.other[view * n], drawn[view]);
#pragma omp for schedule(static)
        for (int64_t j = 0; j < views * groups; j++) {
            const int64_t first = j % groups * Group<F>::width, at = j / groups * n + first;
            const int count = n - first < Group<F>::width ? int(n - first) : Group<F>::width;
            mark_group<F>(picture, records + at, begin + at, count, desk.tile.get());
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < views * runs; j++) {
            std::memset(&desk.found[j * tiles], 0, sizeof(uint32_t) * tiles);
            for_run(j, [](uint32_t, int64_t, uint32_t& counter) { counter++; });
        }
#pragma omp single
        {
            int64_t total = 0;
            for (int64_t view = 0; view < views; view++)
                for (int64_t tile = 0; tile < tiles; tile++) {
                    lists.begin[view * tiles + tile] = total;
                    for (int64_t run = 0; run < runs; run++) {
                        uint32_t& counter = desk.found[(view * runs + run) * tiles + tile];
                        const uint32_t count = counter;
                        counter = uint32_t(total);
                        total += count;
                    }
                }
            lists.begin[views * tiles] = total;
        }
#pragma omp for schedule(static)
        for (int64_t j = 0; j < views * runs; j++)
            for_run(j, [&](uint32_t gaussian, int64_t slot, uint32_t& counter) {
                lists.pairs[counter++] = {gaussian, uint32_t(slot)};
            });
    }
    return true;
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
