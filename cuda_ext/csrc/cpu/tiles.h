// Tiles of 8 x 8 pixels: which gaussians meet which, front to back.
//
// A pair of a gaussian and a tile that it meets has a slot: the slots of a gaussian lie together, row by row of tiles, in
// the order of (view, gaussian). The lists of the tiles hold the same pairs by (view, tile, depth).
#pragma once
#include <cstdlib>

#include "gaussian.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

constexpr int kTile = 8;

struct Picture {
    int width, height, columns, rows;  // pixels, tiles
    Picture(int w, int h) : width(w), height(h), columns((w + kTile - 1) / kTile), rows((h + kTile - 1) / kTile) {}
    int tiles() const { return columns * rows; }
};

// A gaussian on the screen, as it is kept for blending and the backward pass; not drawn where extent_x is 0.
template <class S>
struct Record {
    S mean_x, mean_y, conic_xx, conic_xy, conic_yy, opacity, rgb[3], depth, extent_x, extent_y;
    bool drawn() const { return extent_x > 0; }
};

// Memory for the length of a call.
template <class T>
class Scratch {
  public:
    explicit Scratch(size_t count) : data_(static_cast<T*>(std::malloc(sizeof(T) * (count ? count : 1)))) {}
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    T* get() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    T* data_;
};

// --- spans ------------------------------------------------------------------------------------------------------------

// Spans are worked out twice, to count the pairs and to list them, and must come out alike: the functions are compiled
// once and not into their callers, where a compiler may round differently.
#if defined(__clang__)
#define DREAMKILN_ONCE __attribute__((noinline))
#else
#define DREAMKILN_ONCE __attribute__((noinline, noclone))
#endif

// First and last pixel whose centre lies in low..high, a hair wider, so that alpha decides and not rounding; within
// 0..size - 1, and last < first where there is none.
template <class F>
struct PixelRange {
    int first[LaneTraits<F>::count], last[LaneTraits<F>::count];
};
template <class F>
DREAMKILN_FN PixelRange<F> pixels_between(F low, F high, int size) {
    using S = Scalar<F>;
    constexpr int width = LaneTraits<F>::count;
    const S slack = S(0.01);
    const F zero = F{}, end = spread<F>(S(size));
    S from[width], to[width];
    store<F>(from, end - minimum(maximum(low - (S(0.5) + slack), zero), end));  // counted from the far end: rounds up
    store<F>(to, minimum(maximum(high + (S(0.5) + slack), zero), end));
    PixelRange<F> range;
    for (int i = 0; i < width; i++) {
        range.first[i] = size - int(from[i]);
        range.last[i] = int(to[i]) - 1;
    }
    return range;
}

// The rows of pixels that gaussians reach.
template <class F>
DREAMKILN_ONCE void rows_of(const Picture& picture, const Screen<F>& screen, PixelRange<F>& rows) {
    rows = pixels_between<F>(screen.mean_y - screen.extent_y, screen.mean_y + screen.extent_y, picture.height);
}

// The columns that gaussians reach in the j-th of their rows of tiles.
template <class F>
DREAMKILN_ONCE void columns_of(const Picture& picture, const Screen<F>& screen, const PixelRange<F>& rows, int j,
                               PixelRange<F>& columns) {
    using S = Scalar<F>;
    constexpr int width = LaneTraits<F>::count;
    S top[width];
    for (int i = 0; i < width; i++) top[i] = S((rows.first[i] / kTile + j) * kTile) + S(0.5);
    const F above = load<F>(top);
    F left, right;
    row_span(screen, above, above + S(kTile - 1), left, right);
    columns = pixels_between<F>(left, right, picture.width);
}

// Calls visit(lane, row of tiles, first column, last column) for the rows of tiles that each drawn gaussian meets.
template <class F, class Visit>
inline void for_each_span(const Picture& picture, const Screen<F>& screen, Visit visit) {
    constexpr int width = LaneTraits<F>::count;
    PixelRange<F> rows, columns;
    rows_of(picture, screen, rows);
    int most = 0;
    const int drawn = bits(screen.drawn);
    for (int i = 0; i < width; i++) {
        if (!(drawn >> i & 1)) rows.first[i] = 0, rows.last[i] = -1;
        const int count = rows.last[i] < rows.first[i] ? 0 : rows.last[i] / kTile - rows.first[i] / kTile + 1;
        most = count > most ? count : most;
    }
    for (int j = 0; j < most; j++) {
        columns_of(picture, screen, rows, j, columns);
        for (int i = 0; i < width; i++) {
            const int row = rows.first[i] / kTile + j;
            if (row * kTile <= rows.last[i] && columns.first[i] <= columns.last[i])
                visit(i, row, columns.first[i] / kTile, columns.last[i] / kTile);
        }
    }
}

// --- depth order ------------------------------------------------------------------------------------------------------

inline uint64_t bits_of(float value) {  // of positive numbers these have the numbers' order
    uint32_t raw;
    std::memcpy(&raw, &value, sizeof raw);
    return raw;
}
inline uint64_t bits_of(double value) {
    uint64_t raw;
    std::memcpy(&raw, &value, sizeof raw);
    return raw;
}

struct DepthKey {
    uint64_t depth;
    uint32_t gaussian;
};

// Radix sort, stable: 11 bits at a time, leaving out those in which all keys are alike. `other` is room for as many
// keys; the result is in the one that is returned.
inline DepthKey* sort_by_depth(DepthKey* keys, DepthKey* other, uint32_t count) {
    constexpr int digit = 11, buckets = 1 << digit;
    uint64_t all = ~uint64_t(0), some = 0;
    for (uint32_t i = 0; i < count; i++) all &= keys[i].depth, some |= keys[i].depth;
    const uint64_t differing = count ? all ^ some : 0;
    uint32_t begin[buckets];
    for (int shift = 0; shift < 64; shift += digit) {
        if (!(differing >> shift & (buckets - 1))) continue;
        std::memset(begin, 0, sizeof begin);
        for (uint32_t i = 0; i < count; i++) begin[keys[i].depth >> shift & (buckets - 1)]++;
        uint32_t total = 0;
        for (uint32_t& place : begin) {
            const uint32_t size = place;
            place = total;
            total += size;
        }
        for (uint32_t i = 0; i < count; i++) other[begin[keys[i].depth >> shift & (buckets - 1)]++] = keys[i];
        DepthKey* swap = keys;
        keys = other;
        other = swap;
    }
    return keys;
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
