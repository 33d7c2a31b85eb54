// Chunks of points on their way through a hash grid, level by level.
//
// A chunk goes through one level before it goes to the next, so that this level's part of the table stays in the cache;
// as each chunk fetches each level anew, chunks are long. What belongs to a level, its features or their gradients, is
// kept together meanwhile: picked from an array of points times levels, it would cost a line of the cache for every
// point and level, and a second one as long chunks push out the first.
#pragma once

#include <cstdlib>

#include "rows.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

template <class S>
struct Grid {
    const GridLevel* levels;
    const S* weights;  // of each level, or null
    int64_t count;     // levels

    S weight(int64_t level) const { return weights ? weights[level] : S(1); }
    int64_t rows_until(int64_t level) const { return level < count ? levels[level].first : rows_until_end(); }

  private:
    int64_t rows_until_end() const {
        const GridLevel& last = levels[count - 1];
        const int64_t side = last.cells + 1;
        return last.first + (last.mask ? int64_t(last.mask) + 1 : side * side * side);
    }
};

// Asks for large pages where an array of tens of MB is about to be filled: the allocator has such an array from the
// system anew each time, and faults of 4 KB each were a quarter of a backward pass into a table of 47 MB. Smaller
// arrays it mostly has had before.
inline void ask_for_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr int64_t kPage = 4096, kFresh = 32 << 20;
    if (bytes < kFresh) return;
    const int64_t ahead = (kPage - reinterpret_cast<uintptr_t>(memory) % kPage) % kPage;
    madvise(static_cast<char*>(memory) + ahead, (bytes - ahead) / kPage * kPage, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// How n points are cut into chunks.
struct Cut {
    int64_t size;  // points, a multiple of kUnit
    int64_t count;

    static constexpr int64_t kUnit = 64;  // a multiple of every lanes<F>()
    static constexpr int64_t kMost = 32768;
    static constexpr int64_t kNumbers = 1 << 20;  // features of a chunk: what is kept of them stays near, too

    // threads: those that share the chunks.
    static Cut of(int64_t n, int64_t width, int64_t threads) {
        const int64_t most = width * kMost > kNumbers ? (kNumbers / width + kUnit) / kUnit * kUnit : kMost;
        const int64_t rounds = (n + most * threads - 1) / (most * threads);
        if (rounds == 0) return {kUnit, 0};
        const int64_t size = (n + rounds * threads * kUnit - 1) / (rounds * threads * kUnit) * kUnit;
        return {size, (n + size - 1) / size};
    }
};

// Memory for the threads' chunks; freed when it goes.
class Room {
  public:
    Room(int64_t threads, int64_t bytes) : bytes_((bytes + 63) / 64 * 64 + 64) {
        memory_ = static_cast<char*>(std::malloc(threads * bytes_ + 64));
    }
    ~Room() { std::free(memory_); }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;

    explicit operator bool() const { return memory_ != nullptr; }
    // At the beginning of a line of the cache.
    char* of(int64_t thread) const {
        return (char*)((reinterpret_cast<uintptr_t>(memory_) + 63) / 64 * 64) + thread * bytes_;
    }

  private:
    int64_t bytes_;
    char* memory_;
};

// A chunk of points, axis by axis, moved into the cube; with room for numbers of theirs.
template <class F>
struct Chunk {
    using S = Scalar<F>;
    static constexpr int kLanes = lanes<F>();
    static constexpr uint32_t kAll = (uint64_t(1) << kLanes) - 1;

    S *axes[3], *slopes[3];
    S* features;      // level by level
    uint32_t* valid;  // a bit for each lane that holds a finite point, a number a block
    int64_t capacity, size = 0, blocks = 0;

    static int64_t bytes(const Cut& cut, int64_t width) { return cut.size * (sizeof(S) * (6 + width) + 4); }

    Chunk(char* memory, const Cut& cut, int64_t width) : capacity(cut.size) {
        S* next = reinterpret_cast<S*>(memory);
        features = next;
        next += capacity * width;
        for (S*& axis : axes) axis = next, next += capacity;
        for (S*& slope : slopes) slope = next, next += capacity;
        valid = reinterpret_cast<uint32_t*>(next);
    }

    void read(const S* points, int64_t first, int64_t n) {
        size = n - first < capacity ? n - first : capacity;
        blocks = (size + kLanes - 1) / kLanes;
        for (int64_t i = 0; i < size; i++)
            for (int axis = 0; axis < 3; axis++) axes[axis][i] = points[3 * (first + i) + axis];
        for (int axis = 0; axis < 3; axis++)
            for (int64_t i = size; i < blocks * kLanes; i++) axes[axis][i] = 0;
        for (int64_t block = 0; block < blocks; block++) clamp(block);
        if (size % kLanes) valid[blocks - 1] &= (1u << size % kLanes) - 1;
    }

    DREAMKILN_FN void load_block(int64_t block, F (&point)[3]) const {
        for (int axis = 0; axis < 3; axis++) point[axis] = load<F>(axes[axis] + block * kLanes);
    }

    bool is_valid_at(int64_t i) const { return valid[i / kLanes] >> i % kLanes & 1; }

    int count(int64_t block) const {
        const int64_t left = size - block * kLanes;
        return left < kLanes ? static_cast<int>(left) : kLanes;
    }

  private:
    void clamp(int64_t block) {
        F point[3];
        load_block(block, point);
        valid[block] = static_cast<uint32_t>(bits(is_valid<F>(point)));
        for (int axis = 0; axis < 3; axis++) store<F>(axes[axis] + block * kLanes, clamp_to_cube(point[axis]));
    }
};

// The part of a table that is wanted next, brought into the second cache, a few lines with every block.
class Ahead {
  public:
    template <class S>
    Ahead(const Grid<S>& grid, int64_t level, const S* table, int64_t features, int64_t blocks) {
        if (level >= grid.count) return;
        const int64_t first = grid.rows_until(level) * features, last = grid.rows_until(level + 1) * features;
        const int64_t lines = (last - first) * int64_t(sizeof(S)) / kLine + 1;
        if (lines > kMost) return;
        next_ = reinterpret_cast<const char*>(table + first);
        end_ = reinterpret_cast<const char*>(table + last);
        step_ = (lines + blocks - 1) / blocks;
    }

    DREAMKILN_FN void step() {
        for (int64_t i = 0; i < step_ && next_ < end_; i++, next_ += kLine) __builtin_prefetch(next_, 0, 2);
    }

  private:
    static constexpr int64_t kLine = 64, kMost = (1 << 20) / kLine;  // more would push out what is in use
    const char *next_ = nullptr, *end_ = nullptr;
    int64_t step_ = 0;
};

// Brings the gradients of the features of every step-th level, beginning with `begin`, into the chunk: one level after
// the other, zero for points that do not count. pull: the chunk's first point's.
template <class F, int features>
void collect(const Scalar<F>* pull, const Grid<Scalar<F>>& grid, int64_t begin, int64_t step, Chunk<F>& chunk) {
    using S = Scalar<F>;
    const int64_t stride = grid.count * features;
    for (int64_t block = 0; block < chunk.blocks; block++) {
        const int64_t first = block * lanes<F>();
        S* to = chunk.features + first * features;
        for (int64_t l = begin; l < grid.count; l += step, to += chunk.capacity * features) {
            if (grid.weight(l) == 0) continue;
            const S* from = pull + first * stride + l * features;
            if (chunk.valid[block] == Chunk<F>::kAll) {
                for (int lane = 0; lane < lanes<F>(); lane++)
                    std::memcpy(to + lane * features, from + lane * stride, sizeof(S) * features);
            } else {
                for (int lane = 0; lane < lanes<F>(); lane++)
                    for (int f = 0; f < features; f++)
                        to[lane * features + f] = chunk.valid[block] >> lane & 1 ? from[lane * stride + f] : S(0);
            }
        }
    }
}

// The other way: the features of all levels to where they belong. out: for the chunk's first point.
template <class F, int features>
void spread_out(const Chunk<F>& chunk, const Grid<Scalar<F>>& grid, Scalar<F>* out) {
    using S = Scalar<F>;
    const int64_t stride = grid.count * features;
    for (int64_t block = 0; block < chunk.blocks; block++) {
        const int64_t first = block * lanes<F>();
        const bool all = chunk.valid[block] == Chunk<F>::kAll;
        for (int64_t l = 0; l < grid.count; l++) {
            const S* from = chunk.features + (l * chunk.capacity + first) * features;
            S* to = out + first * stride + l * features;
            if (all && grid.weight(l) != 0) {
                for (int lane = 0; lane < lanes<F>(); lane++)
                    std::memcpy(to + lane * stride, from + lane * features, sizeof(S) * features);
            } else {
                for (int lane = 0; lane < chunk.count(block); lane++)
                    for (int f = 0; f < features; f++)
                        to[lane * stride + f] = chunk.valid[block] >> lane & 1 && grid.weight(l) != 0
                                                    ? from[lane * features + f]
                                                    : S(0);
            }
        }
    }
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
