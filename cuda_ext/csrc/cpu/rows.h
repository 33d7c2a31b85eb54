// Rows of a table in lanes: reading, weighing and adding up rows of 1, 2, 4 or 8 floats for a block of points at once.
//
// The rows of a block of DREAMKILN_LANES points fill `features` vectors as they lie in memory, point after point:
// vector `group` has those of the kWidth points from group * kWidth on.
#pragma once

#include "hashgrid.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace dreamkiln {
inline namespace DREAMKILN_ISA {

// Calls run with 0, 1, ... as constants.
template <class Run, int... group>
DREAMKILN_FN void unroll(Run run, std::integer_sequence<int, group...>) {
    (run(std::integral_constant<int, group>()), ...);
}
template <int count, class Run>
DREAMKILN_FN void unroll(Run run) {
    unroll(run, std::make_integer_sequence<int, count>());
}

// A row as one small vector, which compilers handle well but for two floats on x86, see below.
template <class S, int features>
struct Packed {
    typedef S Type __attribute__((vector_size(sizeof(S) * features)));
};
template <class S>
struct Packed<S, 1> {
    using Type = S;
};

// row += increment
template <int features, class S>
DREAMKILN_FN void add_row(S* row, const S* increment) {
#if defined(__SSE2__)
    if constexpr (features == 2 && sizeof(S) == 4) {
        const auto halves = [](const S* from) { return (__m128)_mm_loadl_epi64((const __m128i*)from); };
        return _mm_storel_epi64((__m128i*)row, (__m128i)_mm_add_ps(halves(row), halves(increment)));
    }
#endif
    typename Packed<S, features>::Type sum, more;
    std::memcpy(&sum, row, sizeof sum);
    std::memcpy(&more, increment, sizeof more);
    sum += more;
    std::memcpy(row, &sum, sizeof sum);
}

// Whether rows are handled in lanes; where not (one lane, double, rows longer than a vector), point by point.
template <class F, int features>
constexpr bool kInLanes = lanes<F>() > 1 && features <= lanes<F>();

#if DREAMKILN_LANES > 1

template <int features>
constexpr int kWidth = DREAMKILN_LANES / features;
using AllLanes = std::make_integer_sequence<int, DREAMKILN_LANES>;

// The numbers of a group's points, each once for every feature.
template <int features, int group, int... lane>
DREAMKILN_FN Vector repeat(Vector numbers, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(numbers, numbers, (group * kWidth<features> + lane / features)...);
}
template <int features, int group>
DREAMKILN_FN Vector repeat(Vector numbers) {
    if constexpr (features == 1) return numbers;
    return repeat<features, group>(numbers, AllLanes());
}

// Sums over features: the first vector becomes one number a point.
template <int features>
DREAMKILN_FN void add_features(Vector* rows) {
    if constexpr (features > 1) {
        for (int i = 0; i < features / 2; i++)
            rows[i] = runs_of<1, false>(rows[2 * i], rows[2 * i + 1], AllLanes()) +
                      runs_of<1, true>(rows[2 * i], rows[2 * i + 1], AllLanes());
        add_features<features / 2>(rows);
    }
}

#if defined(__SSE2__)
#define DREAMKILN_ROW_PAIRS

// From rows of two floats in a and b: those of the points with even, or odd, numbers, a's beside b's.
template <bool odd, int... lane>
DREAMKILN_FN Vector pair_rows(Vector a, Vector b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (lane / 4 * 4 + lane % 2 + 2 * odd + (lane & 2 ? DREAMKILN_LANES : 0))...);
}

// Adds to two different rows of two floats.
DREAMKILN_FN void add_row_pair(float* first, float* second, const float* increments) {
    const __m128 low = (__m128)_mm_loadl_epi64((const __m128i*)first);
    const __m128 sum = _mm_add_ps(_mm_loadh_pi(low, (const __m64*)second), _mm_load_ps(increments));
    _mm_storel_pi((__m64*)first, sum);
    _mm_storeh_pi((__m64*)second, sum);
}
#endif

// The rows of a group; row: numbers of the block's rows in the table.
template <int features, int group>
DREAMKILN_FN Vector read_rows(const float* table, const uint32_t* row) {
    row += group * kWidth<features>;
    const auto at = [&](int point) { return table + int64_t(row[point]) * features; };
#if defined(__AVX512F__)
    if constexpr (features == 1) return _mm512_i32gather_ps(_mm512_load_si512(row), table, 4);
    if constexpr (features == 2)
        return (Vector)_mm512_i32gather_pd(_mm256_load_si256((const __m256i*)row), table, 8);
    if constexpr (features == 4) {
        const auto pair = [&](int point) {
            const __m256 first = _mm256_castps128_ps256(_mm_loadu_ps(at(point)));
            return _mm256_insertf128_ps(first, _mm_loadu_ps(at(point + 1)), 1);
        };
        return _mm512_insertf32x8(_mm512_castps256_ps512(pair(0)), pair(2), 1);
    }
    if constexpr (features == 8)
        return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(at(0))), _mm256_loadu_ps(at(1)), 1);
#elif defined(__AVX2__)
    if constexpr (features == 1) return _mm256_i32gather_ps(table, _mm256_load_si256((const __m256i*)row), 4);
    if constexpr (features == 2)
        return (Vector)_mm256_i32gather_pd((const double*)table, _mm_load_si128((const __m128i*)row), 8);
    if constexpr (features == 4)
        return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(at(0))), _mm_loadu_ps(at(1)), 1);
    if constexpr (features == 8) return _mm256_loadu_ps(at(0));
#endif
    Vector out;
    for (int point = 0; point < kWidth<features>; point++)
        std::memcpy((float*)&out + point * features, at(point), sizeof(float) * features);
    return out;
}

#else

// Named, never called.
template <int features, int group>
float repeat(float);
template <int features, int group>
float read_rows(const float*, const uint32_t*);
template <int features>
void add_features(float*);

#endif

}  // namespace DREAMKILN_ISA
}  // namespace dreamkiln
