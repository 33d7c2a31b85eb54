// Tiles of the picture: the third step of a drawing.
#pragma once
#include "splat_lists.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

constexpr int kColours = 4;     // red, green, blue and depth are blended alike
constexpr int kPlanes = 5;      // of the picture before the features: red, green, blue, alpha, depth
constexpr int kCheckEvery = 8;  // pairs, between looks at whether a tile is finished

// How lanes lie in a tile: blocks of `across` x `down` pixels.
template <class F>
struct Blocks {
    static constexpr int lanes = LaneTraits<F>::count;
    static constexpr int across = lanes < kTile ? lanes : kTile, down = lanes / across;
    static constexpr int columns = kTile / across, rows = kTile / down, count = columns * rows;
    // Few blocks: to go through all of them, unrolled and in registers, is cheaper than to find out which are met and to
    // have the processor guess how many come.
    static constexpr bool all = count <= 8;
};

// Calls visit(column, row) for the blocks of a range, or for all where that is cheaper.
template <class F, class Range, class Visit>
DREAMKILN_FN void for_each_block_column(const Range& range, Visit visit) {
    using B = Blocks<F>;
    if constexpr (B::all) {
        for (int column = 0; column < B::columns; column++) visit(column);
    } else {
        for (int column = range.left; column <= range.right; column++) visit(column);
    }
}
template <class F, class Range, class Visit>
DREAMKILN_FN void for_each_block_row(const Range& range, Visit visit) {
    using B = Blocks<F>;
    if constexpr (B::all) {
#pragma GCC unroll 8
        for (int row = 0; row < B::rows; row++) visit(row);
    } else {
        for (int row = range.top; row <= range.bottom; row++) visit(row);
    }
}

// Where a tile is, and the centres of its first block's pixels.
template <class F>
struct Place {
    using S = Scalar<F>;
    using B = Blocks<F>;
    const Picture& picture;
    int x, y;  // first pixel
    F centre_x, centre_y;
    Place(const Picture& p, int64_t tile)
        : picture(p), x(int(tile % p.columns) * kTile), y(int(tile / p.columns) * kTile) {
        S column[B::lanes], row[B::lanes];
        for (int i = 0; i < B::lanes; i++) {
            column[i] = S(x + i % B::across) + S(0.5);
            row[i] = S(y + i / B::across) + S(0.5);
        }
        centre_x = load<F>(column), centre_y = load<F>(row);
    }
    F column_centres(int column) const { return centre_x + S(column * B::across); }
    F row_centres(int row) const { return centre_y + S(row * B::down); }
    Mask<F> inside(int block) const {
        return below(column_centres(block / B::rows), spread<F>(S(picture.width))) &
               below(row_centres(block % B::rows), spread<F>(S(picture.height)));
    }
    // Calls visit(lane, pixel) for the pixels of a block that are in the picture.
    template <class Visit>
    void for_each_pixel(int block, Visit visit) const {
        for (int i = 0; i < B::lanes; i++) {
            const int px = x + block / B::rows * B::across + i % B::across;
            const int py = y + block % B::rows * B::down + i / B::across;
            if (px < picture.width && py < picture.height) visit(i, int64_t(py) * picture.width + px);
        }
    }
    F read(const S* plane, int block) const {
        S values[B::lanes] = {};
        for_each_pixel(block, [&](int lane, int64_t pixel) { values[lane] = plane[pixel]; });
        return load<F>(values);
    }
    void write(S* plane, int block, F value) const {
        S values[B::lanes];
        store<F>(values, value);
        for_each_pixel(block, [&](int lane, int64_t pixel) { plane[pixel] = values[lane]; });
    }
    // Blocks that the rectangle of a gaussian meets, first..last in each direction.
    struct Range {
        int left, right, top, bottom;
    };
    Range range(const Record<S>& record) const {
        auto limit = [](S value) { return int(value < S(-1) ? S(-1) : value > S(kTile) ? S(kTile) : value); };
        const S mean_x = record.mean_x - S(x), mean_y = record.mean_y - S(y);
        const int left = limit(mean_x - record.extent_x + S(0.5)), top = limit(mean_y - record.extent_y + S(0.5));
        const int right = limit(mean_x + record.extent_x + S(0.5)) - 1;
        const int bottom = limit(mean_y + record.extent_y + S(0.5)) - 1;
        return {left > 0 ? left / B::across : 0, right / B::across, top > 0 ? top / B::down : 0, bottom / B::down};
    }
};

template <class F>
struct Canvas {
    using S = Scalar<F>;
    const Picture& picture;
    int features;
    const Record<S>* records;  // of the view
    const S* feature;
    const S* background;  // of the view
    S *image, *transmittance;  // of the view
    int64_t pixels() const { return int64_t(picture.width) * picture.height; }
    S* plane(int i) const { return image + i * pixels(); }
};

template <class F>
bool any_open(const Mask<F> (&open)[Blocks<F>::count]) {
    Mask<F> some = open[0];
    for (int k = 1; k < Blocks<F>::count; k++) some = some | open[k];
    return any(some);
}

// One pair after the other, until every pixel is finished; returns how many pairs were looked at.
template <class F, bool has_features>
int64_t draw_tile(const Canvas<F>& canvas, int64_t tile, const Pair* pairs, int64_t count, Scalar<F>* room) {
    using S = Scalar<F>;
    using B = Blocks<F>;
    const Place<F> place(canvas.picture, tile);
    F transmittance[B::count], colours[B::count][kColours];
    Mask<F> open[B::count];
    for (int k = 0; k < B::count; k++) {
        transmittance[k] = spread<F>(1), open[k] = place.inside(k);
        for (int c = 0; c < kColours; c++) colours[k][c] = F{};
    }
    const int features = canvas.features;
    std::memset(room, 0, sizeof(F) * features * B::count);
    int64_t pair = 0;
    while (pair < count) {
        const int64_t gaussian = pairs[pair].gaussian;
        const Record<S>& record = canvas.records[gaussian];
        const S* feature = canvas.feature + gaussian * features;
        const auto range = place.range(record);
        pair++;
        for_each_block_column<F>(range, [&](int column) {
            const F dx = record.mean_x - place.column_centres(column);
            for_each_block_row<F>(range, [&](int row) {
                const int k = column * B::rows + row;
                const F dy = record.mean_y - place.row_centres(row);
                const F alpha = alpha_at(record.conic_xx, record.conic_xy, record.conic_yy, record.opacity, dx, dy);
                const F weight = blend(alpha, transmittance[k], open[k]);
                for (int c = 0; c < 3; c++) colours[k][c] = fma(weight, spread<F>(record.rgb[c]), colours[k][c]);
                colours[k][3] = fma(weight, spread<F>(record.depth), colours[k][3]);
                if constexpr (has_features)
                    for (int f = 0; f < features; f++) {
                        S* sum = room + (f * B::count + k) * B::lanes;
                        store<F>(sum, fma(weight, spread<F>(feature[f]), load<F>(sum)));
                    }
            });
        });
        if (pair % kCheckEvery == 0 && !any_open<F>(open)) break;
    }
    for (int k = 0; k < B::count; k++) {
        for (int c = 0; c < 3; c++)
            place.write(canvas.plane(c), k, fma(transmittance[k], spread<F>(canvas.background[c]), colours[k][c]));
        place.write(canvas.plane(3), k, spread<F>(1) - transmittance[k]);
        place.write(canvas.plane(4), k, colours[k][3]);
        place.write(canvas.transmittance, k, transmittance[k]);
        for (int f = 0; f < features; f++)
            place.write(canvas.plane(kPlanes + f), k, load<F>(room + (f * B::count + k) * B::lanes));
    }
    return pair;
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
