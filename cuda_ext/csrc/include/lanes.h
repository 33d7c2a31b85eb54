// Lanes: the numbers that the mathematics of the kernels is written in.
//
// The headers beside this one are templates over a type F, which is
//   - float or double: one number, as in a CUDA thread, in the scalar CPU build, and in double for gradient checks;
//   - Vector: DREAMKILN_LANES floats side by side, in the vector builds for CPUs.
// What F needs beyond + - * / is here, with the same name for each: fma, minimum, maximum, absolute, square_root,
// reciprocal, exponential, logarithm, below, at_most, select, any, is_finite. A comparison gives a Mask<F>, which knows
// & | ~; plain code must not branch on it but select. Scalar<F> is what one lane holds, lanes<F>() how many there are.
//
// fma is always one rounding, and a * b + c in the headers is written with it where two kernels must come to the same
// bits (alpha in blending and in its replay): what a compiler contracts by itself may differ from one place to another.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define DREAMKILN_FN __device__ __forceinline__
#else
#define DREAMKILN_FN inline __attribute__((always_inline))
#include <cmath>
#include <cstring>
#include <utility>
#endif
#include <cstdint>  // under NVRTC from csrc/rtc_shim

// Each build for an instruction set has a namespace of its own: functions that were compiled for one must not be called
// from another through the linker's merging of equal names.
#if !defined(DREAMKILN_ISA)
#define DREAMKILN_ISA device
#endif
#if !defined(DREAMKILN_LANES)
#define DREAMKILN_LANES 1
#endif

// What the library exports: DREAMKILN_EXPORT(int, name)(...) defines dreamkiln_name_avx2 and so on.
#define DREAMKILN_JOIN_(name, isa) dreamkiln_##name##_##isa
#define DREAMKILN_JOIN(name, isa) DREAMKILN_JOIN_(name, isa)
#if defined(_WIN32)
#define DREAMKILN_EXPORT(type, name) extern "C" __declspec(dllexport) type DREAMKILN_JOIN(name, DREAMKILN_ISA)
#else
#define DREAMKILN_EXPORT(type, name) \
    extern "C" __attribute__((visibility("default"))) type DREAMKILN_JOIN(name, DREAMKILN_ISA)
#endif

#if DREAMKILN_LANES > 1
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

// --- one number ------------------------------------------------------------------------------------------------------

template <class F>
struct LaneTraits {
    using Scalar = F;
    using Mask = bool;
    static constexpr int count = 1;
};

template <class F>
using Scalar = typename LaneTraits<F>::Scalar;
template <class F>
using Mask = typename LaneTraits<F>::Mask;
template <class F>
DREAMKILN_FN constexpr int lanes() {
    return LaneTraits<F>::count;
}

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
DREAMKILN_FN float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
DREAMKILN_FN double fma(double a, double b, double c) { return ::fma(a, b, c); }
DREAMKILN_FN float square_root(float a) { return ::sqrtf(a); }
DREAMKILN_FN double square_root(double a) { return ::sqrt(a); }
DREAMKILN_FN float exponential(float a) { return ::__expf(a); }
DREAMKILN_FN double exponential(double a) { return ::exp(a); }
DREAMKILN_FN float logarithm(float a) { return ::logf(a); }
DREAMKILN_FN double logarithm(double a) { return ::log(a); }
#else
DREAMKILN_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DREAMKILN_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
DREAMKILN_FN float square_root(float a) { return std::sqrt(a); }
DREAMKILN_FN double square_root(double a) { return std::sqrt(a); }
DREAMKILN_FN float exponential(float a) { return std::exp(a); }
DREAMKILN_FN double exponential(double a) { return std::exp(a); }
DREAMKILN_FN float logarithm(float a) { return std::log(a); }
DREAMKILN_FN double logarithm(double a) { return std::log(a); }
#endif
DREAMKILN_FN float reciprocal(float a) { return 1.0f / a; }
DREAMKILN_FN double reciprocal(double a) { return 1.0 / a; }
DREAMKILN_FN float minimum(float a, float b) { return a < b ? a : b; }
DREAMKILN_FN double minimum(double a, double b) { return a < b ? a : b; }
DREAMKILN_FN float maximum(float a, float b) { return a > b ? a : b; }
DREAMKILN_FN double maximum(double a, double b) { return a > b ? a : b; }
DREAMKILN_FN float absolute(float a) { return a < 0 ? -a : a; }
DREAMKILN_FN double absolute(double a) { return a < 0 ? -a : a; }
DREAMKILN_FN bool below(float a, float b) { return a < b; }
DREAMKILN_FN bool below(double a, double b) { return a < b; }
DREAMKILN_FN bool at_most(float a, float b) { return a <= b; }
DREAMKILN_FN bool at_most(double a, double b) { return a <= b; }
DREAMKILN_FN float select(bool mask, float a, float b) { return mask ? a : b; }
DREAMKILN_FN double select(bool mask, double a, double b) { return mask ? a : b; }
DREAMKILN_FN bool negate(bool mask) { return !mask; }
DREAMKILN_FN bool any(bool mask) { return mask; }
DREAMKILN_FN int bits(bool mask) { return mask; }
template <class F>
DREAMKILN_FN F spread(Scalar<F> value) {
    return F{} + value;
}

#if DREAMKILN_LANES > 1
// --- many numbers ----------------------------------------------------------------------------------------------------

typedef float Vector __attribute__((vector_size(4 * DREAMKILN_LANES)));
typedef int32_t IntVector __attribute__((vector_size(4 * DREAMKILN_LANES)));

DREAMKILN_FN Vector spread(float value) { return Vector{} + value; }

#if defined(__AVX512F__)

struct VectorMask {
    __mmask16 lanes;
};
DREAMKILN_FN VectorMask operator&(VectorMask a, VectorMask b) { return {_kand_mask16(a.lanes, b.lanes)}; }
DREAMKILN_FN VectorMask operator|(VectorMask a, VectorMask b) { return {_kor_mask16(a.lanes, b.lanes)}; }
DREAMKILN_FN VectorMask negate(VectorMask a) { return {_knot_mask16(a.lanes)}; }
DREAMKILN_FN VectorMask below(Vector a, Vector b) { return {_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)}; }
DREAMKILN_FN VectorMask at_most(Vector a, Vector b) { return {_mm512_cmp_ps_mask(a, b, _CMP_LE_OQ)}; }
DREAMKILN_FN Vector select(VectorMask m, Vector a, Vector b) { return _mm512_mask_blend_ps(m.lanes, b, a); }
DREAMKILN_FN bool any(VectorMask m) { return m.lanes != 0; }
DREAMKILN_FN int bits(VectorMask m) { return m.lanes; }
DREAMKILN_FN Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
DREAMKILN_FN Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
DREAMKILN_FN Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
DREAMKILN_FN Vector square_root(Vector a) { return _mm512_sqrt_ps(a); }
DREAMKILN_FN Vector times_power_of_two(Vector a, Vector power) { return _mm512_scalef_ps(a, power); }
DREAMKILN_FN Vector rounded(Vector a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The processor's estimate and one Newton step: within 1 unit in the last place, at a third of the price of a division.
DREAMKILN_FN Vector reciprocal(Vector a) {
    Vector estimate = _mm512_rcp14_ps(a);
    return fma(estimate, fma(-a, estimate, spread(1.0f)), estimate);
}

#else

typedef IntVector VectorMask;
DREAMKILN_FN VectorMask negate(VectorMask a) { return ~a; }
DREAMKILN_FN VectorMask below(Vector a, Vector b) { return a < b; }
DREAMKILN_FN VectorMask at_most(Vector a, Vector b) { return a <= b; }
DREAMKILN_FN Vector select(VectorMask m, Vector a, Vector b) { return m ? a : b; }
DREAMKILN_FN Vector reciprocal(Vector a) { return 1.0f / a; }
DREAMKILN_FN Vector times_power_of_two(Vector a, Vector power) {
    IntVector raw;
    std::memcpy(&raw, &a, sizeof raw);
    raw += __builtin_convertvector(power, IntVector) << 23;  // into the exponent
    std::memcpy(&a, &raw, sizeof raw);
    return a;
}

#if defined(__AVX2__)

DREAMKILN_FN bool any(VectorMask m) { return _mm256_movemask_ps((__m256)m) != 0; }
DREAMKILN_FN int bits(VectorMask m) { return _mm256_movemask_ps((__m256)m); }
DREAMKILN_FN Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
DREAMKILN_FN Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
DREAMKILN_FN Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
DREAMKILN_FN Vector square_root(Vector a) { return _mm256_sqrt_ps(a); }
DREAMKILN_FN Vector rounded(Vector a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

#elif defined(__ARM_NEON)

DREAMKILN_FN bool any(VectorMask m) { return vmaxvq_u32((uint32x4_t)m) != 0; }
DREAMKILN_FN int bits(VectorMask m) {
    const IntVector places = {1, 2, 4, 8};
    return vaddvq_s32((int32x4_t)(m & places));
}
DREAMKILN_FN Vector fma(Vector a, Vector b, Vector c) {
    return (Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
DREAMKILN_FN Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
DREAMKILN_FN Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
DREAMKILN_FN Vector square_root(Vector a) { return (Vector)vsqrtq_f32((float32x4_t)a); }
DREAMKILN_FN Vector rounded(Vector a) { return (Vector)vrndnq_f32((float32x4_t)a); }

#else
#error "vectors of lanes are written for AVX-512, AVX2 and NEON"
#endif
#endif

DREAMKILN_FN Vector absolute(Vector a) { return maximum(a, -a); }

// exp, within 3e-7 of the true value (relative) on [-6, 0] and within 2e-6 everywhere: 2^k times 2^f with |f| <= 1/2 by a
// minimax polynomial. Arguments are held to [-87, 88], where results are normal numbers.
DREAMKILN_FN Vector exponential(Vector a) {
    const float log2_e = 1.44269504f;
    a = minimum(maximum(a, spread(-87.0f)), spread(88.0f));
    Vector power = rounded(a * log2_e);
    Vector f = fma(a, spread(log2_e), -power);
    Vector p = fma(spread(1.329176477e-3f), f, spread(9.675624780e-3f));
    p = fma(p, f, spread(5.550653860e-2f));
    p = fma(p, f, spread(2.402212024e-1f));
    p = fma(p, f, spread(6.931470037e-1f));
    p = fma(p, f, spread(1.000000119f));
    return times_power_of_two(p, power);
}

// Natural logarithm of a positive normal number: the exponent, and the series of artanh for what is left.
DREAMKILN_FN Vector logarithm(Vector a) {
    IntVector raw;
    std::memcpy(&raw, &a, sizeof raw);
    IntVector exponent = (raw - 0x3f3504f3) >> 23;  // so that the mantissa lies between sqrt(1/2) and sqrt(2)
    raw -= exponent << 23;
    Vector m;
    std::memcpy(&m, &raw, sizeof raw);
    Vector s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    Vector series = fma(s2, fma(s2, fma(s2, spread(2.0f / 7), spread(2.0f / 5)), spread(2.0f / 3)), spread(2.0f));
    return fma(__builtin_convertvector(exponent, Vector), spread(0.693147181f), s * series);
}

template <>
struct LaneTraits<Vector> {
    using Scalar = float;
    using Mask = VectorMask;
    static constexpr int count = DREAMKILN_LANES;
};

using Lanes = Vector;

// From a and b, in runs of `run` lanes: the even runs of both, or the odd runs of both.
template <int run, bool odd, int... lane>
DREAMKILN_FN Vector runs_of(Vector a, Vector b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (2 * (lane / run) + odd) * run + lane % run...);
}

// One step of adding up the lanes of many vectors at once: halves the vectors and the lanes that a vector's sum is
// spread over. In the end lane i of the first vector is the sum of vector i.
template <int run>
DREAMKILN_FN void fold(Vector (&group)[DREAMKILN_LANES]) {
    constexpr auto all = std::make_integer_sequence<int, DREAMKILN_LANES>();
    for (int i = 0; i < run; i++)
        group[i] = runs_of<run, false>(group[2 * i], group[2 * i + 1], all) +
                   runs_of<run, true>(group[2 * i], group[2 * i + 1], all);
    if constexpr (run > 1) fold<run / 2>(group);
}
#else
using Lanes = float;
#endif

// Neither infinite nor NaN: the difference of a number and itself is then 0.
template <class F>
DREAMKILN_FN Mask<F> is_finite(F a) {
    return at_most(a - a, F{});
}

#if !defined(__CUDACC__) && !defined(__CUDACC_RTC__)
// --- memory ----------------------------------------------------------------------------------------------------------

// Lane i takes from[index(i)], whatever the width.
template <class F, class Index>
DREAMKILN_FN F gather(const Scalar<F>* from, Index index) {
    if constexpr (LaneTraits<F>::count == 1) {
        return from[index(0)];
    } else {
        F out{};
        for (int i = 0; i < LaneTraits<F>::count; i++) out[i] = from[index(i)];
        return out;
    }
}

template <class F>
DREAMKILN_FN F load(const Scalar<F>* from) {
    F out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

template <class F>
DREAMKILN_FN void store(Scalar<F>* to, F value) {
    std::memcpy(to, &value, sizeof value);
}

// out[i] = sum of the lanes of values[i]; the order of additions depends on the number of lanes alone.
template <class F, int count>
DREAMKILN_FN void sum_lanes(const F (&values)[count], Scalar<F>* out) {
    if constexpr (LaneTraits<F>::count == 1) {
        for (int i = 0; i < count; i++) out[i] = values[i];
    }
#if DREAMKILN_LANES > 1
    if constexpr (LaneTraits<F>::count > 1) {
        constexpr int width = LaneTraits<F>::count;
        for (int first = 0; first < count; first += width) {
            F group[width];
            for (int i = 0; i < width; i++) group[i] = first + i < count ? values[first + i] : F{};
            fold<width / 2>(group);
            std::memcpy(out + first, &group[0], sizeof(float) * (count - first < width ? count - first : width));
        }
    }
#endif
}
#endif

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
