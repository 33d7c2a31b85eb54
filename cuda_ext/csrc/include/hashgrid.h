// The mathematics of the multiresolution hash grid (Instant-NGP, arXiv 2201.05989), one copy for CPU and CUDA.
//
// A level cuts the unit cube into cells^3 cells; vertex (0, 0, 0) lies at 0, vertex (cells, cells, cells) at 1. A level
// of few vertices has a row of the table for each of them, x fastest; a level of many shares rows by the spatial hash
// x ^ y * 2654435761 ^ z * 805459861, cut to the length of the level's part of the table. Which of the two it is
// shows in GridLevel::mask.
//
// How a kernel uses it, for one point or for lanes<F>() of them (F: float, double or Vector, see lanes.h):
//
//     clamped[3] = clamp_to_cube(p[3])               the point, moved into the cube; a NaN becomes 0
//     GridCell<F> cell = locate(level, clamped)      the cell around it: weights and parts of the rows' numbers
//     for corner in 0..7:                            bit 0: x, bit 1: y, bit 2: z; 0 the lower side
//         row = row_of(level, cell, corner)          within the level: the table's row is level.first + row
//         weight = weight_of(cell, corner)           the eight sum to 1
//     out[f] = sum of weight * table[row][f]
//
// Backward, with `pull` the gradient of the level's features at the point:
//     gradient of table[row][f] += weight * pull[f]
//     dots[corner] = sum over f of table[row][f] * pull[f];  add_slope(level, cell, dots, slope)
//     gradient of p[axis] = slope[axis] where moves(p[axis]), else 0
//
// A point that is not finite (is_valid) has zeros for features and gives no gradient.
#pragma once

#include "lanes.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

// Five 32-bit numbers, as cuda_ext/hashgrid.py packs them.
struct GridLevel {
    int32_t cells;      // a side, at most 2^20
    uint32_t factor_y;  // dense: vertices a side;   hashed: 2654435761
    uint32_t factor_z;  // dense: its square;        hashed: 805459861
    uint32_t mask;      // dense: 0;                 hashed: rows of the level - 1, the rows a power of two
    uint32_t first;     // row of the table where the level begins
};

// Row numbers: unsigned, since the hash multiplies modulo 2^32.
template <class F>
struct RowTraits {
    using Row = uint32_t;
};
template <class F>
using Row = typename RowTraits<F>::Row;

DREAMKILN_FN uint32_t whole_part(float a) { return static_cast<uint32_t>(static_cast<int32_t>(a)); }
DREAMKILN_FN uint32_t whole_part(double a) { return static_cast<uint32_t>(static_cast<int32_t>(a)); }
template <class F>
DREAMKILN_FN F number(uint32_t a) {
    return static_cast<F>(static_cast<int32_t>(a));
}

#if DREAMKILN_LANES > 1
typedef uint32_t RowVector __attribute__((vector_size(4 * DREAMKILN_LANES)));
template <>
struct RowTraits<Vector> {
    using Row = RowVector;
};
// Through signed numbers: AVX2 has no conversion of unsigned ones.
DREAMKILN_FN RowVector whole_part(Vector a) { return (RowVector)__builtin_convertvector(a, IntVector); }
template <class F>
DREAMKILN_FN F number(RowVector a) {
    return __builtin_convertvector((IntVector)a, Vector);
}
#endif

// The lower and the upper side along each axis.
template <class F>
struct GridCell {
    F x[2], y[2], z[2];                      // weights
    Row<F> row_x[2], row_y[2], row_z[2];     // parts of the rows' numbers
};

template <class F>
DREAMKILN_FN Mask<F> is_valid(const F (&p)[3]) {
    return is_finite(p[0]) & is_finite(p[1]) & is_finite(p[2]);
}

// Whether moving the coordinate changes the features: not where it was clamped.
template <class F>
DREAMKILN_FN Mask<F> moves(F p) {
    return at_most(F{}, p) & at_most(p, spread<F>(1));
}

template <class F>
DREAMKILN_FN F clamp_to_cube(F p) {
    return minimum(maximum(p, F{}), spread<F>(1));  // in this order: maximum(NaN, 0) is 0
}

// The number of the cell along an axis, and the place in it, 0 to 1.
template <class F>
DREAMKILN_FN Row<F> locate_axis(int32_t cells, F clamped, F (&weight)[2]) {
    // The last vertex belongs to the last cell. The place is a fused product: rounding p * cells first would cost all
    // its digits on fine levels.
    const F count = spread<F>(static_cast<Scalar<F>>(cells));
    Row<F> low = whole_part(minimum(clamped * count, count - Scalar<F>(0.5)));
    weight[1] = fma(clamped, count, -number<F>(low));
    weight[0] = Scalar<F>(1) - weight[1];
    return low;
}

template <class F>
DREAMKILN_FN GridCell<F> locate(const GridLevel& level, const F (&clamped)[3]) {
    GridCell<F> cell;
    cell.row_x[0] = locate_axis(level.cells, clamped[0], cell.x);
    cell.row_y[0] = locate_axis(level.cells, clamped[1], cell.y) * level.factor_y;
    cell.row_z[0] = locate_axis(level.cells, clamped[2], cell.z) * level.factor_z;
    cell.row_x[1] = cell.row_x[0] + 1u;
    cell.row_y[1] = cell.row_y[0] + level.factor_y;
    cell.row_z[1] = cell.row_z[0] + level.factor_z;
    return cell;
}

template <class F>
DREAMKILN_FN Row<F> row_of(const GridLevel& level, const GridCell<F>& cell, int corner) {
    const Row<F> x = cell.row_x[corner & 1], y = cell.row_y[corner >> 1 & 1], z = cell.row_z[corner >> 2];
    return level.mask ? (x ^ y ^ z) & level.mask : x + y + z;
}

template <class F>
DREAMKILN_FN F weight_of(const GridCell<F>& cell, int corner) {
    return cell.x[corner & 1] * (cell.y[corner >> 1 & 1] * cell.z[corner >> 2]);
}

// Adds the gradient of the point, but for clamping, to slope. dots: features times pull at each corner.
template <class F>
DREAMKILN_FN void add_slope(const GridLevel& level, const GridCell<F>& cell, const F (&dots)[8], F (&slope)[3]) {
    const F scale = spread<F>(static_cast<Scalar<F>>(level.cells));
    F along_x[4], at_x[4];  // for the four edges in the direction of x: what rises along it, what is at the point's x
    for (int i = 0; i < 4; i++) {
        along_x[i] = dots[2 * i + 1] - dots[2 * i];
        at_x[i] = fma(cell.x[1], along_x[i], dots[2 * i]);
    }
    const F low = at_x[1] - at_x[0], high = at_x[3] - at_x[2];
    slope[0] = fma(scale, cell.z[0] * fma(cell.y[0], along_x[0], cell.y[1] * along_x[1]) +
                              cell.z[1] * fma(cell.y[0], along_x[2], cell.y[1] * along_x[3]),
                   slope[0]);
    slope[1] = fma(scale, fma(cell.z[0], low, cell.z[1] * high), slope[1]);
    slope[2] = fma(scale, fma(cell.y[0], at_x[2] - at_x[0], cell.y[1] * (at_x[3] - at_x[1])), slope[2]);
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
