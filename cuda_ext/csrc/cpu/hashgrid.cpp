// The multiresolution hash grid on CPUs; the mathematics is in hashgrid.h.
//
// Rows' numbers and weights are computed for lanes<F>() points at a time; features are then read and added point by
// point, a row of the table as one small vector, since a row is what lies together in memory. Points go through in
// chunks, one level after the other, so that a level's part of the table stays in the cache that is closest.
//
// Forward, and backward to the points: threads share the chunks. Backward to the table: threads share the levels, each
// of which is added up by one thread in the order of the points. So no two threads write to one place, and results are
// the same bits for every number of threads.
#include "hashgrid.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {
namespace {

constexpr int kChunk = 4096;  // points; a multiple of every lanes<F>()

// A row of the table as a vector.
template <class S, int features>
struct Packed {
    typedef S Type __attribute__((vector_size(sizeof(S) * features)));
};
template <class S>
struct Packed<S, 1> {
    using Type = S;
};

template <class T, class S>
DREAMKILN_FN T read(const S* from) {
    T out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

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

    alignas(64) S axes[3][kChunk];
    alignas(64) uint32_t valid[kBlocks];  // a bit for each lane that holds a finite point
    int size, blocks;

    void read(const S* points, int64_t first, int64_t n) {
        size = static_cast<int>(n - first < kChunk ? n - first : kChunk);
        blocks = (size + lanes<F>() - 1) / lanes<F>();
        for (int i = 0; i < size; i++)
            for (int axis = 0; axis < 3; axis++) axes[axis][i] = points[3 * (first + i) + axis];
        for (int axis = 0; axis < 3; axis++)
            for (int i = size; i < blocks * lanes<F>(); i++) axes[axis][i] = 0;
        for (int block = 0; block < blocks; block++) clamp(block);
        if (size < blocks * lanes<F>()) valid[blocks - 1] &= (1u << (size % lanes<F>())) - 1;
    }

    void load_block(int block, F (&point)[3]) const {
        for (int axis = 0; axis < 3; axis++) point[axis] = load<F>(axes[axis] + block * lanes<F>());
    }

  private:
    void clamp(int block) {
        F point[3];
        load_block(block, point);
        valid[block] = static_cast<uint32_t>(bits(is_valid<F>(point)));
        for (int axis = 0; axis < 3; axis++)
            store<F>(axes[axis] + block * lanes<F>(), clamp_to_cube(point[axis]));
    }
};

// The corners of the cells around the points of a block, lane by lane.
template <class F>
struct Corners {
    alignas(64) uint32_t rows[8][lanes<F>()];
    alignas(64) Scalar<F> weights[8][lanes<F>()];

    DREAMKILN_FN void find(const GridLevel& level, const GridCell<F>& cell) {
        for (int corner = 0; corner < 8; corner++) {
            const Row<F> row = row_of<F>(level, cell, corner);
            std::memcpy(rows[corner], &row, sizeof row);
            store<F>(weights[corner], weight_of(cell, corner));
        }
    }
};

template <class F>
DREAMKILN_FN GridCell<F> cell_of(const GridLevel& level, const Chunk<F>& chunk, int block) {
    F point[3];
    chunk.load_block(block, point);
    return locate<F>(level, point);
}

template <class F>
DREAMKILN_FN void scale(GridCell<F>& cell, Scalar<F> weight) {
    cell.z[0] = cell.z[0] * weight;
    cell.z[1] = cell.z[1] * weight;
}

// Features of a chunk of points on one level; out and stride: where a point's go, and how far it is to the next's.
template <class F, int features>
void read_level(const GridLevel& level, Scalar<F> weight, const Scalar<F>* table, const Chunk<F>& chunk,
                Scalar<F>* out, int64_t stride) {
    using Features = typename Packed<Scalar<F>, features>::Type;
    const Scalar<F>* rows = table + int64_t(level.first) * features;
    for (int block = 0; block < chunk.blocks; block++) {
        const int first = block * lanes<F>();
        const int count = chunk.size - first < lanes<F>() ? chunk.size - first : lanes<F>();
        Corners<F> corners;
        GridCell<F> cell = cell_of(level, chunk, block);
        scale(cell, weight);
        corners.find(level, cell);
        for (int lane = 0; lane < count; lane++) {
            Features sum{};
            for (int corner = 0; corner < 8; corner++)
                sum += corners.weights[corner][lane] *
                       read<Features>(rows + int64_t(corners.rows[corner][lane]) * features);
            if (!(chunk.valid[block] >> lane & 1)) sum = Features{};
            std::memcpy(out + (first + lane) * stride, &sum, sizeof sum);
        }
    }
}

template <class S>
void clear_columns(S* out, int64_t stride, int rows, int columns) {
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++) out[row * stride + column] = 0;
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
            Scalar<F>* column = out + first * stride + l * features;
            if (grid.weight(l) != 0)
                read_level<F, features>(grid.levels[l], grid.weight(l), table, chunk, column, stride);
            else
                clear_columns(column, stride, chunk.size, features);
        }
    }
}

// Adds the gradient of one level's rows.
template <class F, int features>
void pull_rows(const GridLevel& level, Scalar<F> weight, const Scalar<F>* pull, int64_t stride, const Chunk<F>& chunk,
               Scalar<F>* table_pull) {
    using Features = typename Packed<Scalar<F>, features>::Type;
    Scalar<F>* rows = table_pull + int64_t(level.first) * features;
    for (int block = 0; block < chunk.blocks; block++) {
        Corners<F> corners;
        GridCell<F> cell = cell_of(level, chunk, block);
        scale(cell, weight);
        corners.find(level, cell);
        const uint32_t valid = chunk.valid[block];
        for (int lane = 0; lane < lanes<F>(); lane++) {
            if (!(valid >> lane & 1)) continue;
            const Features features_pull = read<Features>(pull + (block * lanes<F>() + lane) * stride);
            for (int corner = 0; corner < 8; corner++) {
                Scalar<F>* row = rows + int64_t(corners.rows[corner][lane]) * features;
                const Features sum = read<Features>(row) + corners.weights[corner][lane] * features_pull;
                std::memcpy(row, &sum, sizeof sum);
            }
        }
    }
}

// The levels that a thread of `threads` takes, as a range: even in what they cost.
struct Share {
    int64_t begin, end;
};
template <class S>
Share share_of(const Grid<S>& grid, int thread, int threads) {
    int64_t active = 0, before = 0;
    for (int64_t l = 0; l < grid.count; l++) active += grid.weight(l) != 0;
    const int64_t from = active * thread / threads, to = active * (thread + 1) / threads;
    Share share = {thread == 0 ? 0 : grid.count, grid.count};
    for (int64_t l = 0; l < grid.count; before += grid.weight(l) != 0, l++) {
        if (thread > 0 && before == from && share.begin == grid.count) share.begin = l;
        if (thread + 1 < threads && before == to) {
            share.end = l;
            break;
        }
    }
    return share;
}

template <class F, int features>
void encode_backward_table(const Scalar<F>* pull, const Scalar<F>* points, const Grid<Scalar<F>>& grid,
                           Scalar<F>* table_pull, int64_t rows, int64_t n, int threads) {
    const int64_t stride = grid.count * features;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        const Share share = share_of(grid, thread, threads);
        if (share.begin >= share.end) continue;
        const int64_t first_row = grid.levels[share.begin].first;
        const int64_t last_row = share.end < grid.count ? grid.levels[share.end].first : rows;
        std::memset(table_pull + first_row * features, 0, sizeof(Scalar<F>) * features * (last_row - first_row));
        for (int64_t first = 0; first < n; first += kChunk) {
            Chunk<F> chunk;
            chunk.read(points, first, n);
            for (int64_t l = share.begin; l < share.end; l++)
                if (grid.weight(l) != 0)
                    pull_rows<F, features>(grid.levels[l], grid.weight(l), pull + first * stride + l * features, stride,
                                           chunk, table_pull);
        }
    }
}

template <class S, class T, int features>
DREAMKILN_FN S total(T values) {
    if constexpr (features == 1) {
        return values;
    } else {
        S sum = values[0];
        for (int i = 1; i < features; i++) sum += values[i];
        return sum;
    }
}

// Adds one level's part of the gradient of the points.
template <class F, int features>
void pull_points(const GridLevel& level, Scalar<F> weight, const Scalar<F>* pull, int64_t stride,
                 const Scalar<F>* table, const Chunk<F>& chunk, Scalar<F> (&slopes)[3][kChunk]) {
    using S = Scalar<F>;
    using Features = typename Packed<S, features>::Type;
    const S* rows = table + int64_t(level.first) * features;
    for (int block = 0; block < chunk.blocks; block++) {
        const int first = block * lanes<F>();
        Corners<F> corners;
        const GridCell<F> cell = cell_of(level, chunk, block);
        corners.find(level, cell);
        alignas(64) S sums[8][lanes<F>()] = {};
        for (int lane = 0; lane < lanes<F>(); lane++) {
            if (!(chunk.valid[block] >> lane & 1)) continue;
            const Features features_pull = weight * read<Features>(pull + (first + lane) * stride);
            for (int corner = 0; corner < 8; corner++)
                sums[corner][lane] = total<S, Features, features>(
                    features_pull * read<Features>(rows + int64_t(corners.rows[corner][lane]) * features));
        }
        F dots[8], slope[3];
        for (int corner = 0; corner < 8; corner++) dots[corner] = load<F>(sums[corner]);
        for (int axis = 0; axis < 3; axis++) slope[axis] = load<F>(slopes[axis] + first);
        add_slope<F>(level, cell, dots, slope);
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
        for (int64_t l = 0; l < grid.count; l++)
            if (grid.weight(l) != 0)
                pull_points<F, features>(grid.levels[l], grid.weight(l), pull + first * stride + l * features, stride,
                                         table, chunk, slopes);
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
