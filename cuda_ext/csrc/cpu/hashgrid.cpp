// The multiresolution hash grid on CPUs; the mathematics is in hashgrid.h.
//
// Points go through in chunks, one level after the other, so that a level's part of the table stays in the nearest cache
// that holds it. Forward, and backward to the points: threads share the chunks. Backward to the table: threads share the
// levels, each of which is added up by one thread in the order of the points. So no two threads write to one place, and
// results are the same bits for every number of threads.
#include "rows.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {
namespace {

constexpr int kChunk = 8192;  // points; a multiple of every lanes<F>(). Half as many cost a tenth more time

template <class S>
struct Grid {
    const GridLevel* levels;
    const S* weights;  // of each level, or null
    int64_t count;     // levels

    S weight(int64_t level) const { return weights ? weights[level] : S(1); }
};

// A chunk of points, axis by axis, moved into the cube.
template <class F>
struct Chunk {
    using S = Scalar<F>;
    static constexpr int kBlocks = kChunk / lanes<F>();
    static constexpr uint32_t kAll = (uint64_t(1) << lanes<F>()) - 1;

    alignas(64) S axes[3][kChunk];
    uint32_t valid[kBlocks];  // a bit for each lane that holds a finite point
    int size, blocks;

    void read(const S* points, int64_t first, int64_t n) {
        size = static_cast<int>(n - first < kChunk ? n - first : kChunk);
        blocks = (size + lanes<F>() - 1) / lanes<F>();
        for (int i = 0; i < size; i++)
            for (int axis = 0; axis < 3; axis++) axes[axis][i] = points[3 * (first + i) + axis];
        for (int axis = 0; axis < 3; axis++)
            for (int i = size; i < blocks * lanes<F>(); i++) axes[axis][i] = 0;
        for (int block = 0; block < blocks; block++) clamp(block);
        if (size % lanes<F>()) valid[blocks - 1] &= (1u << size % lanes<F>()) - 1;
    }

    DREAMKILN_FN void load_block(int block, F (&point)[3]) const {
        for (int axis = 0; axis < 3; axis++) point[axis] = load<F>(axes[axis] + block * lanes<F>());
    }

    int count(int block) const {
        const int left = size - block * lanes<F>();
        return left < lanes<F>() ? left : lanes<F>();
    }

  private:
    void clamp(int block) {
        F point[3];
        load_block(block, point);
        valid[block] = static_cast<uint32_t>(bits(is_valid<F>(point)));
        for (int axis = 0; axis < 3; axis++) store<F>(axes[axis] + block * lanes<F>(), clamp_to_cube(point[axis]));
    }
};

// A level's features or their gradients, within an array of points times all features.
template <class S>
struct Column {
    S* first;
    int64_t stride;

    Column from(int64_t point) const { return {first + point * stride, stride}; }
};

// One level and a chunk of points.
template <class F>
struct Visit {
    using S = Scalar<F>;
    const GridLevel& level;
    S weight;
    const Chunk<F>& chunk;

    DREAMKILN_FN GridCell<F> cell(int block) const {
        F point[3];
        chunk.load_block(block, point);
        return locate<F>(level, point);
    }

    // With the level's weight in the corners' weights.
    DREAMKILN_FN GridCell<F> weighted_cell(int block) const {
        GridCell<F> out = cell(block);
        out.z[0] = out.z[0] * weight;
        out.z[1] = out.z[1] * weight;
        return out;
    }

    DREAMKILN_FN void rows(const GridCell<F>& cell, int corner, uint32_t (&out)[lanes<F>()]) const {
        const Row<F> row = row_of<F>(level, cell, corner);
        std::memcpy(out, &row, sizeof row);
    }
};

// Gradients of a block's features, row after row; zero for points that do not count.
template <class F, int features>
DREAMKILN_FN void read_pull(const Column<const Scalar<F>>& pull, uint32_t valid, Scalar<F>* out) {
    for (int lane = 0; lane < lanes<F>(); lane++)
        for (int f = 0; f < features; f++)
            out[lane * features + f] = valid >> lane & 1 ? pull.first[lane * pull.stride + f] : Scalar<F>(0);
}

// --- forward ----------------------------------------------------------------------------------------------------------

template <class F, int features>
DREAMKILN_FN void read_block(const Visit<F>& visit, int block, const Scalar<F>* rows, Scalar<F>* out) {
    const GridCell<F> cell = visit.weighted_cell(block);
    alignas(64) uint32_t row[lanes<F>()];
    if constexpr (kInLanes<F, features>) {
        F sum[features] = {};
        for (int corner = 0; corner < 8; corner++) {
            visit.rows(cell, corner, row);
            const F weight = weight_of(cell, corner);
            unroll<features>([&](auto g) {
                sum[g] = fma(repeat<features, g>(weight), read_rows<features, g>(rows, row), sum[g]);
            });
        }
        for (int g = 0; g < features; g++) store<F>(out + g * lanes<F>(), sum[g]);
    } else {
        for (int i = 0; i < lanes<F>() * features; i++) out[i] = 0;
        for (int corner = 0; corner < 8; corner++) {
            visit.rows(cell, corner, row);
            alignas(64) Scalar<F> weight[lanes<F>()];
            store<F>(weight, weight_of(cell, corner));
            for (int lane = 0; lane < lanes<F>(); lane++)
                for (int f = 0; f < features; f++)
                    out[lane * features + f] += weight[lane] * rows[int64_t(row[lane]) * features + f];
        }
    }
}

template <class F, int features>
void read_level(const Visit<F>& visit, const Scalar<F>* rows, Column<Scalar<F>> out) {
    for (int block = 0; block < visit.chunk.blocks; block++) {
        alignas(64) Scalar<F> values[lanes<F>() * features];
        read_block<F, features>(visit, block, rows, values);
        const uint32_t valid = visit.chunk.valid[block];
        const Column<Scalar<F>> to = out.from(block * lanes<F>());
        if (valid == Chunk<F>::kAll) {
            for (int lane = 0; lane < lanes<F>(); lane++)
                std::memcpy(to.first + lane * to.stride, values + lane * features, sizeof(Scalar<F>) * features);
        } else {
            for (int lane = 0; lane < visit.chunk.count(block); lane++)
                for (int f = 0; f < features; f++)
                    to.first[lane * to.stride + f] = valid >> lane & 1 ? values[lane * features + f] : Scalar<F>(0);
        }
    }
}

template <class F, int features>
void encode(const Scalar<F>* points, const Scalar<F>* table, const Grid<Scalar<F>>& grid, Scalar<F>* out, int64_t n,
            int threads) {
    const int64_t stride = grid.count * features;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < n; first += kChunk) {
        Chunk<F> chunk;
        chunk.read(points, first, n);
        for (int64_t l = 0; l < grid.count; l++) {
            const Column<Scalar<F>> column = {out + first * stride + l * features, stride};
            const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
            if (visit.weight != 0) {
                read_level<F, features>(visit, table + int64_t(visit.level.first) * features, column);
            } else {
                for (int i = 0; i < chunk.size; i++)
                    for (int f = 0; f < features; f++) column.from(i).first[f] = 0;
            }
        }
    }
}

// --- backward to the table --------------------------------------------------------------------------------------------

template <class F, int features>
void pull_rows(const Visit<F>& visit, const Column<const Scalar<F>>& pull, Scalar<F>* rows) {
    using S = Scalar<F>;
    alignas(64) uint32_t row[8][lanes<F>()];
    alignas(64) S increment[8][lanes<F>() * features], pulled[lanes<F>() * features];
    for (int block = 0; block < visit.chunk.blocks; block++) {
        const GridCell<F> cell = visit.weighted_cell(block);
        read_pull<F, features>(pull.from(block * lanes<F>()), visit.chunk.valid[block], pulled);
        for (int corner = 0; corner < 8; corner++) {
            visit.rows(cell, corner, row[corner]);
            const F weight = weight_of(cell, corner);
            if constexpr (kInLanes<F, features>) {
                unroll<features>([&](auto g) {
                    const F times = repeat<features, g>(weight) * load<F>(pulled + g * lanes<F>());
                    store<F>(increment[corner] + g * lanes<F>(), times);
                });
            } else {
                alignas(64) S number[lanes<F>()];
                store<F>(number, weight);
                for (int i = 0; i < lanes<F>() * features; i++)
                    increment[corner][i] = number[i / features] * pulled[i];
            }
        }
        for (int lane = 0; lane < lanes<F>(); lane++)
            for (int corner = 0; corner < 8; corner++)
                add_row<features>(rows + int64_t(row[corner][lane]) * features, increment[corner] + lane * features);
    }
}

template <class F, int features>
void encode_backward_table(const Scalar<F>* pull, const Scalar<F>* points, const Grid<Scalar<F>>& grid,
                           Scalar<F>* table_pull, int64_t rows, int64_t n, int threads) {
    const int64_t stride = grid.count * features;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        // Every threads-th level: coarse ones cost less than fine ones, so ranges of them would not be equal shares.
        for (int64_t l = thread; l < grid.count; l += threads) {
            const int64_t begin = grid.levels[l].first, end = l + 1 < grid.count ? grid.levels[l + 1].first : rows;
            std::memset(table_pull + begin * features, 0, sizeof(Scalar<F>) * features * (end - begin));
        }
        for (int64_t first = 0; first < n; first += kChunk) {
            Chunk<F> chunk;
            chunk.read(points, first, n);
            for (int64_t l = thread; l < grid.count; l += threads) {
                const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
                if (visit.weight != 0)
                    pull_rows<F, features>(visit, {pull + first * stride + l * features, stride},
                                           table_pull + int64_t(visit.level.first) * features);
            }
        }
    }
}

// --- backward to the points -------------------------------------------------------------------------------------------

// Features of a corner times their gradients, for each point.
template <class F, int features>
DREAMKILN_FN F dot_rows(const Scalar<F>* rows, const uint32_t (&row)[lanes<F>()], const Scalar<F>* pulled) {
    if constexpr (kInLanes<F, features>) {
        F products[features];
        unroll<features>([&](auto g) {
            products[g] = read_rows<features, g>(rows, row) * load<F>(pulled + g * lanes<F>());
        });
        add_features<features>(products);
        return products[0];
    } else {
        alignas(64) Scalar<F> sums[lanes<F>()] = {};
        for (int lane = 0; lane < lanes<F>(); lane++)
            for (int f = 0; f < features; f++)
                sums[lane] += rows[int64_t(row[lane]) * features + f] * pulled[lane * features + f];
        return load<F>(sums);
    }
}

template <class F, int features>
void pull_points(const Visit<F>& visit, const Column<const Scalar<F>>& pull, const Scalar<F>* rows,
                 Scalar<F> (&slopes)[3][kChunk]) {
    for (int block = 0; block < visit.chunk.blocks; block++) {
        const int first = block * lanes<F>();
        const GridCell<F> cell = visit.cell(block);
        alignas(64) Scalar<F> pulled[lanes<F>() * features];
        read_pull<F, features>(pull.from(first), visit.chunk.valid[block], pulled);
        F dots[8], slope[3];
        for (int corner = 0; corner < 8; corner++) {
            alignas(64) uint32_t row[lanes<F>()];
            visit.rows(cell, corner, row);
            dots[corner] = dot_rows<F, features>(rows, row, pulled) * visit.weight;
        }
        for (int axis = 0; axis < 3; axis++) slope[axis] = load<F>(slopes[axis] + first);
        add_slope<F>(visit.level, cell, dots, slope);
        for (int axis = 0; axis < 3; axis++) store<F>(slopes[axis] + first, slope[axis]);
    }
}

template <class F, int features>
void encode_backward_points(const Scalar<F>* pull, const Scalar<F>* points, const Scalar<F>* table,
                            const Grid<Scalar<F>>& grid, Scalar<F>* points_pull, int64_t n, int threads) {
    using S = Scalar<F>;
    const int64_t stride = grid.count * features;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < n; first += kChunk) {
        Chunk<F> chunk;
        alignas(64) S slopes[3][kChunk] = {};
        chunk.read(points, first, n);
        for (int64_t l = 0; l < grid.count; l++) {
            const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
            if (visit.weight != 0)
                pull_points<F, features>(visit, {pull + first * stride + l * features, stride},
                                         table + int64_t(visit.level.first) * features, slopes);
        }
        for (int i = 0; i < chunk.size; i++)
            for (int axis = 0; axis < 3; axis++) {
                const int64_t at = 3 * (first + i) + axis;
                const bool felt = chunk.valid[i / lanes<F>()] >> (i % lanes<F>()) & 1 && moves(points[at]);
                points_pull[at] = felt ? slopes[axis][i] : S(0);
            }
    }
}

// Calls run with the number of features as a constant.
template <class Run>
void with_features(int64_t features, Run run) {
    switch (features) {
        case 1: return run(std::integral_constant<int, 1>());
        case 2: return run(std::integral_constant<int, 2>());
        case 4: return run(std::integral_constant<int, 4>());
        case 8: return run(std::integral_constant<int, 8>());
    }
}

int64_t rows_of(const GridLevel* levels, int64_t count) {
    const GridLevel& last = levels[count - 1];
    const int64_t side = last.cells + 1;
    return last.first + (last.mask ? int64_t(last.mask) + 1 : side * side * side);
}

template <class F>
void run_encode(const Scalar<F>* points, const Scalar<F>* table, const Scalar<F>* weights, const GridLevel* levels,
                Scalar<F>* out, int64_t n, int64_t count, int64_t features, int64_t threads) {
    const Grid<Scalar<F>> grid = {levels, weights, count};
    with_features(features, [&](auto f) { encode<F, f()>(points, table, grid, out, n, static_cast<int>(threads)); });
}

template <class F>
void run_encode_backward(const Scalar<F>* pull, const Scalar<F>* points, const Scalar<F>* table,
                         const Scalar<F>* weights, const GridLevel* levels, Scalar<F>* table_pull,
                         Scalar<F>* points_pull, int64_t n, int64_t count, int64_t features, int64_t threads) {
    const Grid<Scalar<F>> grid = {levels, weights, count};
    with_features(features, [&](auto f) {
        if (table_pull)
            encode_backward_table<F, f()>(pull, points, grid, table_pull, rows_of(levels, count), n,
                                          static_cast<int>(threads));
        if (points_pull)
            encode_backward_points<F, f()>(pull, points, table, grid, points_pull, n, static_cast<int>(threads));
    });
}

}  // namespace
}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln

using dreamkiln::GridLevel;

// points [n, 3], table [rows, features], weights [count] or null, levels [count]; out [n, count * features].
DREAMKILN_EXPORT(void, hash_encode_f32)
(const float* points, const float* table, const float* weights, const GridLevel* levels, float* out, int64_t n,
 int64_t count, int64_t features, int64_t threads) {
    dreamkiln::run_encode<dreamkiln::Lanes>(points, table, weights, levels, out, n, count, features, threads);
}

DREAMKILN_EXPORT(void, hash_encode_f64)
(const double* points, const double* table, const double* weights, const GridLevel* levels, double* out, int64_t n,
 int64_t count, int64_t features, int64_t threads) {
    dreamkiln::run_encode<double>(points, table, weights, levels, out, n, count, features, threads);
}

// pull [n, count * features]: the gradient of out. table_pull [rows, features] and points_pull [n, 3] are written whole;
// each may be null.
DREAMKILN_EXPORT(void, hash_encode_backward_f32)
(const float* pull, const float* points, const float* table, const float* weights, const GridLevel* levels,
 float* table_pull, float* points_pull, int64_t n, int64_t count, int64_t features, int64_t threads) {
    dreamkiln::run_encode_backward<dreamkiln::Lanes>(pull, points, table, weights, levels, table_pull, points_pull, n,
                                                     count, features, threads);
}

DREAMKILN_EXPORT(void, hash_encode_backward_f64)
(const double* pull, const double* points, const double* table, const double* weights, const GridLevel* levels,
 double* table_pull, double* points_pull, int64_t n, int64_t count, int64_t features, int64_t threads) {
    dreamkiln::run_encode_backward<double>(pull, points, table, weights, levels, table_pull, points_pull, n, count,
                                           features, threads);
}
