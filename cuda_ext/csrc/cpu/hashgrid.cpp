// The multiresolution hash grid on CPUs; the mathematics is in hashgrid.h.
//
// Forward, and backward to the points: threads share the chunks of points (grid_chunk.h). Backward to the table: they
// share the levels, each of which is added up by one thread in the order of the points. So no two threads write to one
// place, and results are the same bits for every number of threads.
#include "grid_chunk.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {
namespace {

int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// One level and a chunk of points.
template <class F>
struct Visit {
    using S = Scalar<F>;
    const GridLevel level;
    const S weight;
    const Chunk<F>& chunk;

    DREAMKILN_FN GridCell<F> cell(int64_t block) const {
        F point[3];
        chunk.load_block(block, point);
        return locate<F>(level, point);
    }

    // With the level's weight in the corners' weights.
    DREAMKILN_FN GridCell<F> weighted_cell(int64_t block) const {
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

// --- forward ----------------------------------------------------------------------------------------------------------

template <class F, int features>
DREAMKILN_FN void read_block(const Visit<F>& visit, int64_t block, const Scalar<F>* rows, Scalar<F>* out) {
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
void read_level(const Visit<F>& visit, const Scalar<F>* rows, Scalar<F>* out, Ahead ahead) {
    for (int64_t block = 0; block < visit.chunk.blocks; block++, ahead.step())
        read_block<F, features>(visit, block, rows, out + block * lanes<F>() * features);
}

template <class F, int features>
int encode(const Scalar<F>* points, const Scalar<F>* table, const Grid<Scalar<F>>& grid, Scalar<F>* out, int64_t n,
           int threads) {
    const int64_t stride = grid.count * features;
    const Cut cut = Cut::of(n, stride, threads);
    const Room room(threads, Chunk<F>::bytes(cut, stride));
    if (!room) return 1;
    ask_for_large_pages(out, n * stride * sizeof(Scalar<F>));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < cut.count; c++) {
        Chunk<F> chunk(room.of(thread_number()), cut, stride);
        chunk.read(points, c * cut.size, n);
        for (int64_t l = 0; l < grid.count; l++) {
            const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
            if (visit.weight != 0)
                read_level<F, features>(visit, table + int64_t(visit.level.first) * features,
                                        chunk.features + l * chunk.capacity * features,
                                        Ahead(grid, l + 1, table, features, chunk.blocks));
        }
        spread_out<F, features>(chunk, grid, out + c * cut.size * stride);
    }
    return 0;
}

// --- backward to the table --------------------------------------------------------------------------------------------

// Adds a block's share to the gradient of the rows.
template <class F, int features>
DREAMKILN_FN void pull_block(const Visit<F>& visit, const GridCell<F>& cell, const Scalar<F>* pull, Scalar<F>* rows) {
    using S = Scalar<F>;
    alignas(64) uint32_t row[8][lanes<F>()];
    alignas(64) S increment[8][lanes<F>() * features];
    for (int corner = 0; corner < 8; corner++) {
        visit.rows(cell, corner, row[corner]);
        const F weight = weight_of(cell, corner);
        if constexpr (kInLanes<F, features>) {
            unroll<features>([&](auto g) {
                const F times = repeat<features, g>(weight) * load<F>(pull + g * lanes<F>());
                store<F>(increment[corner] + g * lanes<F>(), times);
            });
        } else {
            alignas(64) S number[lanes<F>()];
            store<F>(number, weight);
            for (int i = 0; i < lanes<F>() * features; i++) increment[corner][i] = number[i / features] * pull[i];
        }
    }
    for (int lane = 0; lane < lanes<F>(); lane++)
        for (int corner = 0; corner < 8; corner++)
            add_row<features>(rows + int64_t(row[corner][lane]) * features, increment[corner] + lane * features);
}

#if defined(DREAMKILN_ROW_PAIRS)
// The same for rows of two floats, both rows of an edge along x at once: a tenth less time.
DREAMKILN_FN void pull_block_in_pairs(const Visit<Vector>& visit, const GridCell<Vector>& cell, const float* pull,
                                      float* rows) {
    constexpr int width = kWidth<2>, half = width / 2;
    alignas(64) uint32_t row[8][DREAMKILN_LANES];
    alignas(64) float increment[4][2][2][half][4];  // edge, group, parity of the point, point, two rows
    for (int corner = 0; corner < 8; corner++) visit.rows(cell, corner, row[corner]);
    for (int edge = 0; edge < 4; edge++) {
        const Vector low = weight_of(cell, 2 * edge), high = weight_of(cell, 2 * edge + 1);
        unroll<2>([&](auto g) {
            const Vector p = load<Vector>(pull + g * DREAMKILN_LANES);
            const Vector a = repeat<2, g>(low) * p, b = repeat<2, g>(high) * p;
            store<Vector>(increment[edge][g][0][0], pair_rows<false>(a, b, AllLanes()));
            store<Vector>(increment[edge][g][1][0], pair_rows<true>(a, b, AllLanes()));
        });
    }
    for (int lane = 0; lane < DREAMKILN_LANES; lane++)
        for (int edge = 0; edge < 4; edge++)
            add_row_pair(rows + 2 * int64_t(row[2 * edge][lane]), rows + 2 * int64_t(row[2 * edge + 1][lane]),
                         increment[edge][lane / width][lane % 2][lane % width / 2]);
}
#endif

template <class F, int features>
void pull_rows(const Visit<F>& visit, const Scalar<F>* pull, Scalar<F>* rows, Ahead ahead) {
    for (int64_t block = 0; block < visit.chunk.blocks; block++, pull += lanes<F>() * features, ahead.step()) {
        const GridCell<F> cell = visit.weighted_cell(block);
#if defined(DREAMKILN_ROW_PAIRS)
        if constexpr (lanes<F>() > 1 && features == 2) {
            pull_block_in_pairs(visit, cell, pull, rows);
            continue;
        }
#endif
        pull_block<F, features>(visit, cell, pull, rows);
    }
}

template <class F, int features>
int encode_backward_table(const Scalar<F>* pull, const Scalar<F>* points, const Grid<Scalar<F>>& grid,
                          Scalar<F>* table_pull, int64_t n, int threads) {
    const int64_t stride = grid.count * features, width = (grid.count + threads - 1) / threads * features;
    const Cut cut = Cut::of(n, width, 1);
    const Room room(threads, Chunk<F>::bytes(cut, width));
    if (!room) return 1;
    ask_for_large_pages(table_pull, grid.rows_until(grid.count) * features * sizeof(Scalar<F>));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        // Every threads-th level: coarse ones cost less than fine ones, so ranges of them would not be equal shares.
        for (int64_t l = thread; l < grid.count; l += threads) {
            const int64_t begin = grid.rows_until(l), end = grid.rows_until(l + 1);
            std::memset(table_pull + begin * features, 0, sizeof(Scalar<F>) * features * (end - begin));
        }
        Chunk<F> chunk(room.of(thread), cut, width);
        for (int64_t c = 0; c < cut.count; c++) {
            chunk.read(points, c * cut.size, n);
            collect<F, features>(pull + c * cut.size * stride, grid, thread, threads, chunk);
            const Scalar<F>* column = chunk.features;
            for (int64_t l = thread; l < grid.count; l += threads, column += chunk.capacity * features) {
                const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
                if (visit.weight != 0)
                    pull_rows<F, features>(visit, column, table_pull + int64_t(visit.level.first) * features,
                                           Ahead(grid, l + threads, table_pull, features, chunk.blocks));
            }
        }
    }
    return 0;
}

// --- backward to the points -------------------------------------------------------------------------------------------

// Features of a corner times their gradients, for each point.
template <class F, int features>
DREAMKILN_FN F dot_rows(const Scalar<F>* rows, const uint32_t (&row)[lanes<F>()], const Scalar<F>* pull) {
    if constexpr (kInLanes<F, features>) {
        F products[features];
        unroll<features>([&](auto g) {
            products[g] = read_rows<features, g>(rows, row) * load<F>(pull + g * lanes<F>());
        });
        add_features<features>(products);
        return products[0];
    } else {
        alignas(64) Scalar<F> sums[lanes<F>()] = {};
        for (int lane = 0; lane < lanes<F>(); lane++)
            for (int f = 0; f < features; f++)
                sums[lane] += rows[int64_t(row[lane]) * features + f] * pull[lane * features + f];
        return load<F>(sums);
    }
}

template <class F, int features>
void pull_points(const Visit<F>& visit, const Scalar<F>* pull, const Scalar<F>* rows, Scalar<F>* const (&slopes)[3],
                 Ahead ahead) {
    for (int64_t block = 0; block < visit.chunk.blocks; block++, pull += lanes<F>() * features, ahead.step()) {
        const int64_t first = block * lanes<F>();
        const GridCell<F> cell = visit.cell(block);
        F dots[8], slope[3];
        for (int corner = 0; corner < 8; corner++) {
            alignas(64) uint32_t row[lanes<F>()];
            visit.rows(cell, corner, row);
            dots[corner] = dot_rows<F, features>(rows, row, pull) * visit.weight;
        }
        for (int axis = 0; axis < 3; axis++) slope[axis] = load<F>(slopes[axis] + first);
        add_slope<F>(visit.level, cell, dots, slope);
        for (int axis = 0; axis < 3; axis++) store<F>(slopes[axis] + first, slope[axis]);
    }
}

template <class F, int features>
int encode_backward_points(const Scalar<F>* pull, const Scalar<F>* points, const Scalar<F>* table,
                           const Grid<Scalar<F>>& grid, Scalar<F>* points_pull, int64_t n, int threads) {
    using S = Scalar<F>;
    const int64_t stride = grid.count * features;
    const Cut cut = Cut::of(n, stride, threads);
    const Room room(threads, Chunk<F>::bytes(cut, stride));
    if (!room) return 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < cut.count; c++) {
        Chunk<F> chunk(room.of(thread_number()), cut, stride);
        chunk.read(points, c * cut.size, n);
        collect<F, features>(pull + c * cut.size * stride, grid, 0, 1, chunk);
        for (S* slope : chunk.slopes) std::memset(slope, 0, sizeof(S) * chunk.blocks * lanes<F>());
        for (int64_t l = 0; l < grid.count; l++) {
            const Visit<F> visit = {grid.levels[l], grid.weight(l), chunk};
            if (visit.weight != 0)
                pull_points<F, features>(visit, chunk.features + l * chunk.capacity * features,
                                         table + int64_t(visit.level.first) * features, chunk.slopes,
                                         Ahead(grid, l + 1, table, features, chunk.blocks));
        }
        for (int64_t i = 0; i < chunk.size; i++)
            for (int axis = 0; axis < 3; axis++) {
                const int64_t at = 3 * (c * cut.size + i) + axis;
                points_pull[at] = chunk.is_valid_at(i) && moves(points[at]) ? chunk.slopes[axis][i] : S(0);
            }
    }
    return 0;
}

// Calls run with the number of features as a constant.
template <class Run>
int with_features(int64_t features, Run run) {
    switch (features) {
        case 1: return run(std::integral_constant<int, 1>());
        case 2: return run(std::integral_constant<int, 2>());
        case 4: return run(std::integral_constant<int, 4>());
        default: return run(std::integral_constant<int, 8>());
    }
}

template <class F>
int run_encode(const Scalar<F>* points, const Scalar<F>* table, const Grid<Scalar<F>>& grid, Scalar<F>* out, int64_t n,
               int64_t features, int64_t threads) {
    return with_features(features, [&](auto f) {
        return encode<F, f()>(points, table, grid, out, n, static_cast<int>(threads));
    });
}

template <class F>
int run_encode_backward(const Scalar<F>* pull, const Scalar<F>* points, const Scalar<F>* table,
                        const Grid<Scalar<F>>& grid, Scalar<F>* table_pull, Scalar<F>* points_pull, int64_t n,
                        int64_t features, int64_t threads) {
    const int crew = static_cast<int>(threads);
    return with_features(features, [&](auto f) {
        int failed = 0;
        if (table_pull) failed |= encode_backward_table<F, f()>(pull, points, grid, table_pull, n, crew);
        if (points_pull) failed |= encode_backward_points<F, f()>(pull, points, table, grid, points_pull, n, crew);
        return failed;
    });
}

}  // namespace
}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln

// Each function answers 0, or 1 where there was no memory to work in.

using dreamkiln::GridLevel;

// points [n, 3], table [rows, features], weights [count] or null, levels [count]; out [n, count * features].
DREAMKILN_EXPORT(int, hash_encode_f32)
(const float* points, const float* table, const float* weights, const GridLevel* levels, float* out, int64_t n,
 int64_t count, int64_t features, int64_t threads) {
    return dreamkiln::run_encode<dreamkiln::Lanes>(points, table, {levels, weights, count}, out, n, features, threads);
}

DREAMKILN_EXPORT(int, hash_encode_f64)
(const double* points, const double* table, const double* weights, const GridLevel* levels, double* out, int64_t n,
 int64_t count, int64_t features, int64_t threads) {
    return dreamkiln::run_encode<double>(points, table, {levels, weights, count}, out, n, features, threads);
}

// pull [n, count * features]: the gradient of out. table_pull [rows, features] and points_pull [n, 3] are written
// whole; each may be null.
DREAMKILN_EXPORT(int, hash_encode_backward_f32)
(const float* pull, const float* points, const float* table, const float* weights, const GridLevel* levels,
 float* table_pull, float* points_pull, int64_t n, int64_t count, int64_t features, int64_t threads) {
    return dreamkiln::run_encode_backward<dreamkiln::Lanes>(pull, points, table, {levels, weights, count}, table_pull,
                                                            points_pull, n, features, threads);
}

DREAMKILN_EXPORT(int, hash_encode_backward_f64)
(const double* pull, const double* points, const double* table, const double* weights, const GridLevel* levels,
 double* table_pull, double* points_pull, int64_t n, int64_t count, int64_t features, int64_t threads) {
    return dreamkiln::run_encode_backward<double>(pull, points, table, {levels, weights, count}, table_pull, points_pull,
                                                  n, features, threads);
}
