// Gaussian splats on the CPU: project, list, draw; and backward: replay, gather.
//
// cuda_ext/gaussians.py owns all memory that outlives a call. Nothing here depends on the number of threads: each
// gaussian, tile and slot is worked out by one thread, and sums run in an order of their own.
#include "harmonics.h"
#include "tiles.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {
namespace {

constexpr int kColours = 4;  // red, green, blue and depth are blended alike
constexpr int kPlanes = 5;   // of the picture before the features: red, green, blue, alpha, depth
constexpr int kMoments = 6;
constexpr int kRow = kMoments + kColours;  // numbers in a slot before the features
constexpr int kCheckEvery = 8;             // pairs, between looks at whether a tile is finished

int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// --- project ----------------------------------------------------------------------------------------------------------

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

// --- list -------------------------------------------------------------------------------------------------------------

// What the lists of the tiles hold, and where.
struct Lists {
    int64_t* begin;      // [views * tiles + 1]
    uint32_t* gaussian;  // of each pair
    uint32_t* slot;      // of each pair
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
    using S = Scalar<F>;
    constexpr int width = LaneTraits<F>::count;
    auto field = [&](S Record<S>::*member) {
        return gather<F>(&(records->*member), [&](int lane) {
            return (lane < count ? lane : count - 1) * int(sizeof(Record<S>) / sizeof(S));
        });
    };
    Screen<F> screen;
    screen.mean_x = field(&Record<S>::mean_x), screen.mean_y = field(&Record<S>::mean_y);
    screen.conic_xx = field(&Record<S>::conic_xx), screen.conic_xy = field(&Record<S>::conic_xy);
    screen.conic_yy = field(&Record<S>::conic_yy), screen.opacity = field(&Record<S>::opacity);
    screen.depth = field(&Record<S>::depth);
    screen.extent_x = field(&Record<S>::extent_x), screen.extent_y = field(&Record<S>::extent_y);
    screen.drawn = below(F{}, screen.extent_x);
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
                lists.gaussian[counter] = gaussian;
                lists.slot[counter++] = uint32_t(slot);
            });
    }
    return true;
}

// --- draw -------------------------------------------------------------------------------------------------------------

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
int64_t draw_tile(const Canvas<F>& canvas, int64_t tile, const uint32_t* gaussians, int64_t count, Scalar<F>* room) {
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
        const Record<S>& record = canvas.records[gaussians[pair]];
        const S* feature = canvas.feature + int64_t(gaussians[pair]) * features;
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

// --- replay -----------------------------------------------------------------------------------------------------------

// What the replay of a tile adds up of one pair: moments, and gradients of colours; a row of a slot.
template <class F>
struct Sums {
    F moments[kMoments] = {}, colours[kColours] = {};
};

template <class F>
struct Replay {
    using S = Scalar<F>;
    using B = Blocks<F>;
    const Canvas<F>& canvas;
    Place<F> place;
    F transmittance[B::count], remaining[B::count], colours[B::count][kColours];
    Mask<F> open[B::count];
    S* features;  // gradients of the feature planes of the tile's pixels, and the sums of a pair

    Replay(const Canvas<F>& c, int64_t tile, const S* gradient, S* room, S* background)
        : canvas(c), place(c.picture, tile), features(room) {
        S sums[LaneTraits<F>::count == 1 ? 3 : LaneTraits<F>::count] = {};
        F behind[3] = {};
        const int64_t pixels = canvas.pixels();
        for (int k = 0; k < B::count; k++) {
            transmittance[k] = spread<F>(1), open[k] = place.inside(k);
            const F left = place.read(canvas.transmittance, k);
            remaining[k] = -left * place.read(gradient + 3 * pixels, k);
            for (int c = 0; c < kColours; c++) {
                const int plane = c < 3 ? c : 4;
                colours[k][c] = place.read(gradient + plane * pixels, k);
                remaining[k] = fma(colours[k][c], place.read(canvas.plane(plane), k), remaining[k]);
                if (c < 3) behind[c] = fma(left, colours[k][c], behind[c]);
            }
            for (int f = 0; f < canvas.features; f++) {
                const F slope = place.read(gradient + (kPlanes + f) * pixels, k);
                store<F>(features + (f * B::count + k) * B::lanes, slope);
                remaining[k] = fma(slope, place.read(canvas.plane(kPlanes + f), k), remaining[k]);
            }
        }
        sum_lanes<F>(behind, sums);
        for (int c = 0; c < 3; c++) background[c] = sums[c];
    }

    // The gradients of one pair, into its slot; false, and nothing is written, where it does not count in this tile.
    template <bool has_features>
    bool pair(uint32_t gaussian, S* slot) {
        const Record<S>& record = canvas.records[gaussian];
        const S* feature = canvas.feature + int64_t(gaussian) * canvas.features;
        const auto range = place.range(record);
        Sums<F> sums;
        S* feature_sums = features + canvas.features * B::count * B::lanes;
        std::memset(feature_sums, 0, sizeof(F) * canvas.features);
        F touched = F{};
        for_each_block_column<F>(range, [&](int column) {
            const F dx = record.mean_x - place.column_centres(column);
            F pull_0 = F{}, pull_1 = F{}, pull_2 = F{};
            for_each_block_row<F>(range, [&](int row) {
                const int k = column * B::rows + row;
                const F dy = record.mean_y - place.row_centres(row);
                const F alpha = alpha_at(record.conic_xx, record.conic_xy, record.conic_yy, record.opacity, dx, dy);
                F dot = record.depth * colours[k][3];
                for (int c = 0; c < 3; c++) dot = fma(spread<F>(record.rgb[c]), colours[k][c], dot);
                for (int f = 0; has_features && f < canvas.features; f++)
                    dot = fma(spread<F>(feature[f]), load<F>(features + (f * B::count + k) * B::lanes), dot);
                F pull;
                const F weight = replay(alpha, dot, transmittance[k], remaining[k], open[k], pull);
                touched += weight;
                for (int c = 0; c < kColours; c++) sums.colours[c] = fma(weight, colours[k][c], sums.colours[c]);
                for (int f = 0; has_features && f < canvas.features; f++) {
                    const F slope = load<F>(features + (f * B::count + k) * B::lanes);
                    store<F>(feature_sums + f * B::lanes, fma(weight, slope, load<F>(feature_sums + f * B::lanes)));
                }
                const F lever = pull * dy;
                pull_0 += pull;
                pull_1 += lever;
                pull_2 = fma(lever, dy, pull_2);
            });
            const F lever = pull_0 * dx;
            F* moments = sums.moments;
            moments[0] += pull_0;
            moments[1] += lever;
            moments[2] += pull_1;
            moments[3] = fma(lever, dx, moments[3]);
            moments[4] = fma(pull_1, dx, moments[4]);
            moments[5] += pull_2;
        });
        if (!any(below(F{}, touched))) return false;
        F all[kRow];
        for (int i = 0; i < kMoments; i++) all[i] = sums.moments[i];
        for (int c = 0; c < kColours; c++) all[kMoments + c] = sums.colours[c];
        sum_lanes<F>(all, slot);
        for (int f = 0; f < canvas.features; f++) {
            S total = 0;
            for (int i = 0; i < B::lanes; i++) total += feature_sums[f * B::lanes + i];
            slot[kRow + f] = total;
        }
        return true;
    }
};

// --- gather -----------------------------------------------------------------------------------------------------------

template <class S>
struct Gradients {
    S *means, *log_scales, *quaternions, *logits, *sh, *features, *probe;
};

// The slots of all gaussians of all views.
template <class S>
struct Slots {
    const int64_t* begin;
    const S* rows;
    const uint8_t* written;
    int row;
};

// Adds the slots of each lane's gaussian in one view: moments and colours by lanes; features go to their gradient.
template <class F>
void add_slots(const Slots<Scalar<F>>& slots, int64_t at, const Group<F>& group, Scalar<F>* feature_gradient,
               F (&sums)[kRow]) {
    using S = Scalar<F>;
    S by_lane[kRow][LaneTraits<F>::count] = {};
    for (int i = 0; i < group.count; i++)
        for (int64_t slot = slots.begin[at + i]; slot < slots.begin[at + i + 1]; slot++) {
            if (!slots.written[slot]) continue;
            const S* row = slots.rows + slot * slots.row;
            for (int k = 0; k < kRow; k++) by_lane[k][i] += row[k];
            S* features = feature_gradient + (group.first + i) * group.scene.features;
            for (int f = 0; f < group.scene.features; f++) features[f] += row[kRow + f];
        }
    for (int k = 0; k < kRow; k++) sums[k] = load<F>(by_lane[k]);
}

template <class F>
void gather_group(const Group<F>& group, int64_t views, const Camera<Scalar<F>>* cameras,
                  const Record<Scalar<F>>* records, const Slots<Scalar<F>>& slots, const Gradients<Scalar<F>>& into) {
    using S = Scalar<F>;
    constexpr int width = Group<F>::width;
    const Scene<S>& scene = group.scene;
    const Gaussian<F> gaussian = group.gaussian();
    Gaussian<F> total = {};
    F sh[3 * kMostHarmonics] = {}, probe = F{};
    std::memset(into.features + group.first * scene.features, 0, sizeof(S) * group.count * scene.features);
    for (int64_t view = 0; view < views; view++) {
        const int64_t at = view * scene.n + group.first;
        if (slots.begin[at] == slots.begin[at + group.count]) continue;
        F sums[kRow];
        add_slots(slots, at, group, into.features, sums);
        const Record<S>* own = records + at;
        auto field = [&](S Record<S>::*member) {
            return gather<F>(&(own->*member), [&](int lane) {
                return (lane < group.count ? lane : group.count - 1) * int(sizeof(Record<S>) / sizeof(S));
            });
        };
        const Mask<F> drawn = below(F{}, field(&Record<S>::extent_x));
        Screen<F> screen;
        screen.conic_xx = field(&Record<S>::conic_xx);
        screen.conic_xy = field(&Record<S>::conic_xy);
        screen.conic_yy = field(&Record<S>::conic_yy);
        screen.opacity = field(&Record<S>::opacity);
        const Moments<F> moments = {sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]};
        const Pulled<F> pulled = pull_from(moments, screen.conic_xx, screen.conic_xy, screen.conic_yy, screen.opacity,
                                           sums[kMoments + 3]);
        Gaussian<F> here = {};
        project_backward(cameras[view], gaussian, screen, pulled, here);
        const F rgb[3] = {gather<F>(&own->rgb[0], [&](int lane) { return (lane < group.count ? lane : 0) * 12; }),
                          gather<F>(&own->rgb[1], [&](int lane) { return (lane < group.count ? lane : 0) * 12; }),
                          gather<F>(&own->rgb[2], [&](int lane) { return (lane < group.count ? lane : 0) * 12; })};
        const F pull_rgb[3] = {sums[kMoments], sums[kMoments + 1], sums[kMoments + 2]};
        colour_backward<F>(
            cameras[view], gaussian.mean, scene.harmonics, [&](int i, int c) { return group.harmonic(i, c); }, rgb,
            pull_rgb, [&](int i, int c, F value) { sh[3 * i + c] += select(drawn, value, F{}); }, here.mean);
        for (int k = 0; k < 3; k++) total.mean[k] += select(drawn, here.mean[k], F{});
        for (int k = 0; k < 3; k++) total.log_scale[k] += select(drawn, here.log_scale[k], F{});
        for (int k = 0; k < 4; k++) total.quaternion[k] += select(drawn, here.quaternion[k], F{});
        total.logit += select(drawn, here.logit, F{});
        probe += select(drawn, probe_of(cameras[view], pulled), F{});
    }
    auto write = [&](S* table, int stride, int offset, F value) {
        S values[width];
        store<F>(values, value);
        for (int i = 0; i < group.count; i++) table[(group.first + i) * stride + offset] = values[i];
    };
    for (int k = 0; k < 3; k++) write(into.means, 3, k, total.mean[k]);
    for (int k = 0; k < 3; k++) write(into.log_scales, 3, k, total.log_scale[k]);
    for (int k = 0; k < 4; k++) write(into.quaternions, 4, k, total.quaternion[k]);
    write(into.logits, 1, 0, total.logit);
    write(into.probe, 1, 0, probe);
    for (int k = 0; k < 3 * scene.harmonics; k++) write(into.sh, 3 * scene.harmonics, k, sh[k]);
}

// --- what Python calls ------------------------------------------------------------------------------------------------

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
    uint32_t *pair_gaussian, *pair_slot;
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
    const Lists lists = {call.tile_begin, call.pair_gaussian, call.pair_slot};
    if (!list_all<F>(picture, call.views, call.n, call.records, call.begin, int(call.threads), lists)) return 1;
    Scratch<Scalar<F>> room(call.threads * call.room());
    if (!room) return 1;
#pragma omp parallel for num_threads(int(call.threads)) schedule(dynamic, 2)
    for (int64_t j = 0; j < call.views * tiles; j++) {
        const Canvas<F> canvas = call.template canvas<F>(picture, j / tiles);
        const int64_t first = lists.begin[j], count = lists.begin[j + 1] - first;
        const auto draw = call.features ? draw_tile<F, true> : draw_tile<F, false>;
        call.reached[j] =
            uint32_t(draw(canvas, j % tiles, lists.gaussian + first, count, &room[thread_number() * call.room()]));
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
                const uint32_t slot = call.pair_slot[pair];
                const uint32_t gaussian = call.pair_gaussian[pair];
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
