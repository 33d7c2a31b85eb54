// Colours of gaussians that depend on the direction they are seen from, forward and backward.
//
// Real spherical harmonics up to degree 3, in the order and with the signs of 3D Gaussian Splatting; count is 1, 4, 9 or
// 16. The specification is `harmonics` in cuda_ext/gaussians_reference.py.
#pragma once
#include "gaussian.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

constexpr double kSh0 = 0.28209479177387814, kSh1 = 0.48860251190291992;
constexpr double kSh2a = 1.0925484305920792, kSh2b = 0.31539156525252005, kSh2c = 0.54627421529603959;
constexpr double kSh3a = 0.59004358992664352, kSh3b = 2.8906114426405538, kSh3c = 0.45704579946446572;
constexpr double kSh3d = 0.37317633259011540, kSh3e = 1.4453057213202769;
constexpr int kMostHarmonics = 16;

template <class F>
struct Direction {
    F unit[3], inverse_length;
};

template <class F>
DREAMKILN_FN Direction<F> direction_to(const Camera<Scalar<F>>& camera, const F (&mean)[3]) {
    const F x = mean[0] - camera.eye[0], y = mean[1] - camera.eye[1], z = mean[2] - camera.eye[2];
    const F inverse = spread<F>(1) / square_root(x * x + y * y + z * z);
    return {{x * inverse, y * inverse, z * inverse}, inverse};
}

template <class F>
DREAMKILN_FN void harmonics_at(const F (&unit)[3], int count, F (&basis)[kMostHarmonics]) {
    using S = Scalar<F>;
    const F x = unit[0], y = unit[1], z = unit[2], one = spread<F>(1);
    basis[0] = spread<F>(S(kSh0));
    if (count <= 1) return;
    basis[1] = S(-kSh1) * y;
    basis[2] = S(kSh1) * z;
    basis[3] = S(-kSh1) * x;
    if (count <= 4) return;
    const S a = S(kSh2a), b = S(kSh2b), c = S(kSh2c);
    const F xx = x * x, yy = y * y, zz = z * z;
    basis[4] = a * x * y;
    basis[5] = -a * y * z;
    basis[6] = b * (S(3) * zz - one);
    basis[7] = -a * x * z;
    basis[8] = c * (xx - yy);
    if (count <= 9) return;
    const S d = S(kSh3a), e = S(kSh3b), f = S(kSh3c), g = S(kSh3d), h = S(kSh3e);
    basis[9] = -d * y * (S(3) * xx - yy);
    basis[10] = e * x * y * z;
    basis[11] = -f * y * (S(5) * zz - one);
    basis[12] = g * z * (S(5) * zz - S(3) * one);
    basis[13] = -f * x * (S(5) * zz - one);
    basis[14] = h * z * (xx - yy);
    basis[15] = -d * x * (xx - S(3) * yy);
}

// Adds to `into` the gradient of the direction, given those of the basis.
template <class F>
DREAMKILN_FN void harmonics_backward(const F (&unit)[3], int count, const F (&pull)[kMostHarmonics], F (&into)[3]) {
    using S = Scalar<F>;
    if (count <= 1) return;
    const F x = unit[0], y = unit[1], z = unit[2], one = spread<F>(1);
    into[0] += S(-kSh1) * pull[3];
    into[1] += S(-kSh1) * pull[1];
    into[2] += S(kSh1) * pull[2];
    if (count <= 4) return;
    const S a = S(kSh2a), b = S(kSh2b), c = S(kSh2c);
    into[0] += a * (y * pull[4] - z * pull[7]) + S(2) * c * x * pull[8];
    into[1] += a * (x * pull[4] - z * pull[5]) - S(2) * c * y * pull[8];
    into[2] += S(6) * b * z * pull[6] - a * (y * pull[5] + x * pull[7]);
    if (count <= 9) return;
    const S d = S(kSh3a), e = S(kSh3b), f = S(kSh3c), g = S(kSh3d), h = S(kSh3e);
    const F xx = x * x, yy = y * y, zz = z * z, ring = f * (S(5) * zz - one), twist = S(3) * d * (xx - yy);
    into[0] += e * y * z * pull[10] + S(2) * h * x * z * pull[14] - S(6) * d * x * y * pull[9] - ring * pull[13] -
               twist * pull[15];
    into[1] += e * x * z * pull[10] - S(2) * h * y * z * pull[14] + S(6) * d * x * y * pull[15] - ring * pull[11] -
               twist * pull[9];
    into[2] += e * x * y * pull[10] + h * (xx - yy) * pull[14] + g * (S(15) * zz - S(3) * one) * pull[12] -
               S(10) * f * z * (y * pull[11] + x * pull[13]);
}

// load(i, channel) gives the coefficients of harmonic i.
template <class F, class Load>
DREAMKILN_FN void colour(const Camera<Scalar<F>>& camera, const F (&mean)[3], int count, Load load, F (&rgb)[3]) {
    using S = Scalar<F>;
    F basis[kMostHarmonics];
    harmonics_at(direction_to(camera, mean).unit, count, basis);
    for (int c = 0; c < 3; c++) rgb[c] = spread<F>(S(0.5));
    for (int i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) rgb[c] = fma(basis[i], load(i, c), rgb[c]);
    // Written so that a NaN stays one.
    for (int c = 0; c < 3; c++) rgb[c] = select(below(rgb[c], F{}), F{}, rgb[c]);
}

// `rgb` is the colour, `pull` its gradient; none passes where the colour is 0. add(i, channel, value) receives the
// gradients of the coefficients; that of the mean is added to `into`.
template <class F, class Load, class Add>
DREAMKILN_FN void colour_backward(const Camera<Scalar<F>>& camera, const F (&mean)[3], int count, Load load,
                                  const F (&rgb)[3], const F (&pull)[3], Add add, F (&into)[3]) {
    const Direction<F> direction = direction_to(camera, mean);
    F basis[kMostHarmonics], pull_basis[kMostHarmonics], passed[3];
    harmonics_at(direction.unit, count, basis);
    for (int c = 0; c < 3; c++) passed[c] = select(below(F{}, rgb[c]), pull[c], F{});
    for (int i = 0; i < count; i++) {
        pull_basis[i] = F{};
        for (int c = 0; c < 3; c++) {
            add(i, c, basis[i] * passed[c]);
            if (count > 1) pull_basis[i] = fma(load(i, c), passed[c], pull_basis[i]);
        }
    }
    F pull_unit[3] = {F{}, F{}, F{}};
    harmonics_backward(direction.unit, count, pull_basis, pull_unit);
    const F along = pull_unit[0] * direction.unit[0] + pull_unit[1] * direction.unit[1] + pull_unit[2] * direction.unit[2];
    for (int k = 0; k < 3; k++) into[k] += (pull_unit[k] - along * direction.unit[k]) * direction.inverse_length;
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
