// Gaussian splats: the mathematics of one gaussian, forward and backward, for every kind of lane (lanes.h).
//
// The specification is cuda_ext/gaussians_reference.py; names are the same. The caller loops, loads and stores:
//
//   camera = camera_of(pose, focal, width, height, near)         once a view; pose is camera-to-world, OpenGL axes
//   screen = project(camera, gaussian)                           Screen: mean, conic, opacity, depth, extent, drawn
//   colour(camera, mean, count, load, rgb)                       in harmonics.h; load(i, channel) gives a coefficient
//   ... then drawn &= is_finite(rgb and features): gaussians that are not drawn get extent 0 and must get zero gradients.
//   row_span(...)                                                the exact columns that a band of rows touches
//
//   alpha = alpha_at(conic.., opacity, dx, dy)                   dx, dy: mean on the screen less the pixel's centre
//   weight = blend(alpha, transmittance, open)                   front to back; start with 1 and true inside the picture
//   sum += weight * channel                                      rgb += transmittance * background at the end
//
// Backward goes front to back again with one number a pixel, what remains:
//   remaining = sum over channels of value * gradient - transmittance * gradient of alpha   (at the end of the drawing;
//               values are the picture's, background included)
//   weight = replay(alpha_at(..), dot, transmittance, remaining, open, pull)                dot: channels . gradients
// where pull is dL/dsigma, sigma being the exponent's size. Summed over pixels, per gaussian and view:
//   gradient of channel += weight * gradient of that plane;   moments: pull times 1, dx, dy, dx^2, dx dy, dy^2
//   pulled = pull_from(moments, conic..)                         gradients on the screen
//   project_backward(camera, gaussian, pulled, into), colour_backward(...)                  both add to what is there
// The gradient for the probe is probe_of(camera, pulled), summed over views.
//
// blend and replay must see the same bits of alpha: both go through alpha_at, whose roundings are all explicit.
#pragma once
#include "lanes.h"

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

// The same as in gaussians_reference.py.
constexpr double kAlphaMin = 1.0 / 255;
constexpr double kAlphaMax = 0.99;
constexpr double kTransmittanceMin = 1e-4;
constexpr double kLowPass = 0.3;
constexpr double kExtentMax = 3.33;
constexpr double kFrustum = 1.3;
constexpr double kQuaternionMin = 1e-12;

// --- cameras ----------------------------------------------------------------------------------------------------------

// S is a scalar. Axes: x right, y down, z forward.
template <class S>
struct Camera {
    S rotation[3][3];  // world to camera
    S eye[3];
    S focal, half_width, half_height;  // pixels
    S limit_x, limit_y;                // of x/z and y/z where the projection is linearised
    S near;
};

template <class S>
DREAMKILN_FN Camera<S> camera_of(const S* pose, S focal, int width, int height, S near) {
    Camera<S> camera;
    for (int k = 0; k < 3; k++) {
        camera.rotation[0][k] = pose[4 * k];
        camera.rotation[1][k] = -pose[4 * k + 1];
        camera.rotation[2][k] = -pose[4 * k + 2];
        camera.eye[k] = pose[4 * k + 3];
    }
    camera.focal = focal;
    camera.half_width = S(0.5) * S(width);
    camera.half_height = S(0.5) * S(height);
    camera.limit_x = S(kFrustum) * camera.half_width / focal;
    camera.limit_y = S(kFrustum) * camera.half_height / focal;
    camera.near = near;
    return camera;
}

// --- projection -------------------------------------------------------------------------------------------------------

// Raw parameters.
template <class F>
struct Gaussian {
    F mean[3], log_scale[3], quaternion[4], logit;
};

template <class F>
struct Screen {
    F mean_x, mean_y;                    // pixels
    F conic_xx, conic_xy, conic_yy;      // inverse covariance
    F opacity, depth;
    F extent_x, extent_y;                // half sides of the rectangle in which alpha reaches kAlphaMin
    Mask<F> drawn;
};

// What projection and its backward share: the way from the gaussian's own axes to the screen.
template <class F>
struct Axes {
    F x, y, z, inverse_z;  // the mean in camera axes
    F u, v;                // x / z and y / z, held to the camera's limits
    F scale[3];
    F unit[4], inverse_length;  // quaternion
    F rotation[3][3];           // own axes to world
    F to_screen[2][3];          // world to screen, linearised at the mean
    F turned[2][3];             // to_screen * rotation; times scale these are the axes on the screen
};

template <class F>
DREAMKILN_FN void rotation_of(const F (&q)[4], F (&r)[3][3]) {
    const F w = q[0], x = q[1], y = q[2], z = q[3];
    const F one = spread<F>(1), two = spread<F>(2);
    r[0][0] = one - two * (y * y + z * z);
    r[0][1] = two * (x * y - w * z);
    r[0][2] = two * (x * z + w * y);
    r[1][0] = two * (x * y + w * z);
    r[1][1] = one - two * (x * x + z * z);
    r[1][2] = two * (y * z - w * x);
    r[2][0] = two * (x * z - w * y);
    r[2][1] = two * (y * z + w * x);
    r[2][2] = one - two * (x * x + y * y);
}

template <class F>
DREAMKILN_FN Axes<F> axes_of(const Camera<Scalar<F>>& camera, const Gaussian<F>& gaussian) {
    Axes<F> axes;
    F offset[3], along[3];
    for (int k = 0; k < 3; k++) offset[k] = gaussian.mean[k] - camera.eye[k];
    for (int i = 0; i < 3; i++) {
        const auto& row = camera.rotation[i];
        along[i] = row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2];
    }
    axes.x = along[0], axes.y = along[1], axes.z = along[2];
    axes.inverse_z = spread<F>(1) / axes.z;
    const F limit_x = spread<F>(camera.limit_x), limit_y = spread<F>(camera.limit_y);
    axes.u = minimum(maximum(axes.x * axes.inverse_z, -limit_x), limit_x);
    axes.v = minimum(maximum(axes.y * axes.inverse_z, -limit_y), limit_y);
    F squared = F{};
    for (int i = 0; i < 4; i++) squared += gaussian.quaternion[i] * gaussian.quaternion[i];
    axes.inverse_length = spread<F>(1) / square_root(squared);
    for (int i = 0; i < 4; i++) axes.unit[i] = gaussian.quaternion[i] * axes.inverse_length;
    rotation_of(axes.unit, axes.rotation);
    const F per_pixel = camera.focal * axes.inverse_z;
    for (int k = 0; k < 3; k++) {
        axes.scale[k] = exponential(gaussian.log_scale[k]);
        axes.to_screen[0][k] = per_pixel * (camera.rotation[0][k] - axes.u * camera.rotation[2][k]);
        axes.to_screen[1][k] = per_pixel * (camera.rotation[1][k] - axes.v * camera.rotation[2][k]);
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 3; k++)
            axes.turned[i][k] = axes.to_screen[i][0] * axes.rotation[0][k] + axes.to_screen[i][1] * axes.rotation[1][k] +
                                axes.to_screen[i][2] * axes.rotation[2][k];
    return axes;
}

// How many squared standard deviations a gaussian of this opacity reaches before alpha is below kAlphaMin; 0 if never.
template <class F>
DREAMKILN_FN F reach_of(F opacity) {
    const F over = maximum(opacity * Scalar<F>(1 / kAlphaMin), spread<F>(1));
    return minimum(spread<F>(2) * logarithm(over), spread<F>(Scalar<F>(kExtentMax * kExtentMax)));
}

template <class F>
DREAMKILN_FN Mask<F> drawable(const Camera<Scalar<F>>& camera, const Gaussian<F>& gaussian, const Axes<F>& axes,
                              const Screen<F>& screen) {
    using S = Scalar<F>;
    F nothing = gaussian.logit - gaussian.logit;  // 0 if all is finite, else NaN
    for (int k = 0; k < 3; k++)
        nothing += (gaussian.mean[k] - gaussian.mean[k]) + (gaussian.log_scale[k] - gaussian.log_scale[k]);
    for (int i = 0; i < 4; i++) nothing += gaussian.quaternion[i] - gaussian.quaternion[i];
    const F values[] = {screen.mean_x,   screen.mean_y, screen.conic_xx, screen.conic_xy,
                        screen.conic_yy, screen.depth,  screen.extent_x, screen.extent_y};
    for (const F& value : values) nothing += value - value;
    const F zero = F{};
    return at_most(nothing, zero) & at_most(spread<F>(camera.near), axes.z) &
           at_most(axes.inverse_length, spread<F>(S(1 / kQuaternionMin))) &
           below(spread<F>(S(kAlphaMin)), screen.opacity) & below(zero, screen.mean_x + screen.extent_x) &
           below(zero, screen.mean_y + screen.extent_y) &
           below(screen.mean_x - screen.extent_x, spread<F>(2 * camera.half_width)) &
           below(screen.mean_y - screen.extent_y, spread<F>(2 * camera.half_height));
}

template <class F>
DREAMKILN_FN Screen<F> project(const Camera<Scalar<F>>& camera, const Gaussian<F>& gaussian) {
    using S = Scalar<F>;
    const Axes<F> axes = axes_of(camera, gaussian);
    F first[3], second[3];
    for (int k = 0; k < 3; k++) {
        first[k] = axes.turned[0][k] * axes.scale[k];
        second[k] = axes.turned[1][k] * axes.scale[k];
    }
    F xx = first[0] * first[0] + first[1] * first[1] + first[2] * first[2];
    F yy = second[0] * second[0] + second[1] * second[1] + second[2] * second[2];
    const F xy = first[0] * second[0] + first[1] * second[1] + first[2] * second[2];
    // The determinant of the covariance is the squared area that the axes span (Cauchy-Binet): a sum of positive terms,
    // where xx yy - xy^2 would cancel for needles.
    const F a = first[1] * second[2] - first[2] * second[1];
    const F b = first[2] * second[0] - first[0] * second[2];
    const F c = first[0] * second[1] - first[1] * second[0];
    const S low_pass = S(kLowPass);
    const F inverse = spread<F>(1) / (a * a + b * b + c * c + low_pass * (xx + yy) + low_pass * low_pass);
    xx = xx + low_pass;
    yy = yy + low_pass;
    Screen<F> screen;
    screen.mean_x = camera.focal * axes.x * axes.inverse_z + camera.half_width;
    screen.mean_y = camera.focal * axes.y * axes.inverse_z + camera.half_height;
    screen.conic_xx = yy * inverse;
    screen.conic_xy = -xy * inverse;
    screen.conic_yy = xx * inverse;
    screen.opacity = spread<F>(1) / (spread<F>(1) + exponential(-gaussian.logit));
    screen.depth = axes.z;
    const F reach = reach_of(screen.opacity);
    screen.extent_x = square_root(reach * xx);
    screen.extent_y = square_root(reach * yy);
    screen.drawn = drawable(camera, gaussian, axes, screen);
    return screen;
}

// The columns left..right that the gaussian reaches between rows top and bottom (pixels, not whole numbers), which
// should overlap mean_y +- extent_y. The edge of the ellipse is furthest out at dy = -conic_xy / conic_yy * extent_x.
template <class F>
DREAMKILN_FN void row_span(const Screen<F>& screen, F top, F bottom, F& left, F& right) {
    const F determinant = reach_of(screen.opacity) * screen.conic_yy / (screen.extent_x * screen.extent_x);
    const F inverse = spread<F>(1) / screen.conic_xx;
    const F low = maximum(top - screen.mean_y, -screen.extent_y), high = minimum(bottom - screen.mean_y, screen.extent_y);
    const F furthest = -screen.conic_xy * screen.extent_x / screen.conic_yy;
    const F at_right = minimum(maximum(furthest, low), high), at_left = minimum(maximum(-furthest, low), high);
    const F square = screen.extent_y * screen.extent_y, zero = F{};
    const F wide_right = square_root(determinant * maximum(square - at_right * at_right, zero));
    const F wide_left = square_root(determinant * maximum(square - at_left * at_left, zero));
    right = screen.mean_x + (wide_right - screen.conic_xy * at_right) * inverse;
    left = screen.mean_x - (wide_left + screen.conic_xy * at_left) * inverse;
}

// --- blending ---------------------------------------------------------------------------------------------------------

// Opacity at an offset, before it is held to kAlphaMax. S may be a scalar beside lanes.
template <class F, class S>
DREAMKILN_FN F alpha_at(S conic_xx, S conic_xy, S conic_yy, S opacity, F dx, F dy) {
    const F half_x = dx * (S(-0.5) * conic_xx), half_y = dy * (S(-0.5) * conic_yy);
    const F exponent = fma(dx, fma(dy, spread<F>(-conic_xy), half_x), dy * half_y);
    return opacity * exponential(exponent);
}

// The weight of a gaussian at a pixel, 0 where it does not count; lowers the transmittance, closes finished pixels.
template <class F>
DREAMKILN_FN F blend(F alpha, F& transmittance, Mask<F>& open) {
    using S = Scalar<F>;
    const F zero = F{};
    const Mask<F> counts = open & at_most(spread<F>(S(kAlphaMin)), alpha);
    const F weight = select(counts, minimum(alpha, spread<F>(S(kAlphaMax))) * transmittance, zero);
    const F after = transmittance - weight;
    open = open & below(spread<F>(S(kTransmittanceMin)), after);
    transmittance = select(open, after, transmittance);
    return select(open, weight, zero);
}

// The same step again, and the gradient of the exponent's size in `pull`.
template <class F>
DREAMKILN_FN F replay(F alpha, F dot, F& transmittance, F& remaining, Mask<F>& open, F& pull) {
    using S = Scalar<F>;
    const F before = transmittance, limit = spread<F>(S(kAlphaMax));
    const F weight = blend(alpha, transmittance, open);
    remaining = fma(-weight, dot, remaining);
    const F passed = reciprocal(spread<F>(1) - minimum(alpha, limit));
    const F slope = fma(before, dot, -(remaining * passed));
    const Mask<F> moves = below(F{}, weight) & at_most(alpha, limit);
    pull = select(moves, -(alpha * slope), F{});
    return weight;
}

// --- gradients --------------------------------------------------------------------------------------------------------

// On the screen.
template <class F>
struct Pulled {
    F mean_x, mean_y, conic_xx, conic_xy, conic_yy, logit, depth;
};

template <class F>
struct Moments {
    F one, x, y, xx, xy, yy;  // of pull: sums of pull times 1, dx, dy, dx^2, dx dy, dy^2
};

template <class F>
DREAMKILN_FN Pulled<F> pull_from(const Moments<F>& sum, F conic_xx, F conic_xy, F conic_yy, F opacity, F depth) {
    const Scalar<F> half = Scalar<F>(0.5);
    return {conic_xx * sum.x + conic_xy * sum.y,
            conic_xy * sum.x + conic_yy * sum.y,
            half * sum.xx,
            sum.xy,
            half * sum.yy,
            -sum.one * (spread<F>(1) - opacity),  // through the sigmoid: opacity cancels
            depth};
}

template <class F>
DREAMKILN_FN F probe_of(const Camera<Scalar<F>>& camera, const Pulled<F>& pulled) {
    const F x = pulled.mean_x * camera.half_width, y = pulled.mean_y * camera.half_height;
    return square_root(x * x + y * y);
}

// `g` holds the gradient of the rotation matrix; gives that of the quaternion before it was normalised.
template <class F>
DREAMKILN_FN void rotation_backward(const Axes<F>& axes, const F (&g)[3][3], F (&into)[4]) {
    const F w = axes.unit[0], x = axes.unit[1], y = axes.unit[2], z = axes.unit[3], two = spread<F>(2);
    const F a = g[2][1] - g[1][2], b = g[0][2] - g[2][0], c = g[1][0] - g[0][1];
    const F d = g[1][0] + g[0][1], e = g[2][0] + g[0][2], f = g[2][1] + g[1][2];
    const F unit[4] = {two * (x * a + y * b + z * c),
                       two * (w * a + y * d + z * e - two * x * (g[1][1] + g[2][2])),
                       two * (w * b + x * d + z * f - two * y * (g[0][0] + g[2][2])),
                       two * (w * c + x * e + y * f - two * z * (g[0][0] + g[1][1]))};
    const F along = unit[0] * w + unit[1] * x + unit[2] * y + unit[3] * z;
    for (int i = 0; i < 4; i++) into[i] += (unit[i] - along * axes.unit[i]) * axes.inverse_length;
}

// Adds the gradients of the raw parameters.
template <class F>
DREAMKILN_FN void project_backward(const Camera<Scalar<F>>& camera, const Gaussian<F>& gaussian,
                                   const Screen<F>& screen, const Pulled<F>& pulled, Gaussian<F>& into) {
    using S = Scalar<F>;
    const Axes<F> axes = axes_of(camera, gaussian);
    // The inverse's rule: the gradient of the covariance is -conic G conic.
    const F xx = screen.conic_xx, xy = screen.conic_xy, yy = screen.conic_yy, off = S(0.5) * pulled.conic_xy;
    const F m00 = xx * pulled.conic_xx + xy * off, m01 = xx * off + xy * pulled.conic_yy;
    const F m10 = xy * pulled.conic_xx + yy * off, m11 = xy * off + yy * pulled.conic_yy;
    const F cov_xx = -(m00 * xx + m01 * xy), cov_xy = -(m00 * xy + m01 * yy), cov_yy = -(m10 * xy + m11 * yy);
    F turned[2][3], to_screen[2][3], rotation[3][3];
    for (int k = 0; k < 3; k++) {
        const F first = axes.turned[0][k] * axes.scale[k], second = axes.turned[1][k] * axes.scale[k];
        const F pull_first = S(2) * (cov_xx * first + cov_xy * second);
        const F pull_second = S(2) * (cov_xy * first + cov_yy * second);
        into.log_scale[k] += pull_first * first + pull_second * second;
        turned[0][k] = pull_first * axes.scale[k];
        turned[1][k] = pull_second * axes.scale[k];
    }
    for (int r = 0; r < 3; r++) {
        for (int k = 0; k < 3; k++)
            rotation[r][k] = axes.to_screen[0][r] * turned[0][k] + axes.to_screen[1][r] * turned[1][k];
        for (int i = 0; i < 2; i++)
            to_screen[i][r] = turned[i][0] * axes.rotation[r][0] + turned[i][1] * axes.rotation[r][1] +
                              turned[i][2] * axes.rotation[r][2];
    }
    rotation_backward(axes, rotation, into.quaternion);
    F forward_x = F{}, forward_y = F{}, size = F{};  // along the camera's z axis, and of the size on the screen
    for (int r = 0; r < 3; r++) {
        forward_x += to_screen[0][r] * camera.rotation[2][r];
        forward_y += to_screen[1][r] * camera.rotation[2][r];
        size += to_screen[0][r] * axes.to_screen[0][r] + to_screen[1][r] * axes.to_screen[1][r];
    }
    const F per_pixel = camera.focal * axes.inverse_z, zero = F{};
    const F limit_x = spread<F>(camera.limit_x), limit_y = spread<F>(camera.limit_y);
    const F ratio_x = axes.x * axes.inverse_z, ratio_y = axes.y * axes.inverse_z;
    // Through x / z: of the mean on the screen, and of the linearisation where it is not held to the limits.
    const F held_x = select(at_most(absolute(ratio_x), limit_x), forward_x, zero);
    const F held_y = select(at_most(absolute(ratio_y), limit_y), forward_y, zero);
    const F along_x = camera.focal * pulled.mean_x - per_pixel * held_x;
    const F along_y = camera.focal * pulled.mean_y - per_pixel * held_y;
    const F pull_x = along_x * axes.inverse_z, pull_y = along_y * axes.inverse_z;
    const F pull_z = pulled.depth - axes.inverse_z * (size + along_x * ratio_x + along_y * ratio_y);
    const auto& turn = camera.rotation;
    for (int k = 0; k < 3; k++) into.mean[k] += turn[0][k] * pull_x + turn[1][k] * pull_y + turn[2][k] * pull_z;
    into.logit += pulled.logit;
}

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
