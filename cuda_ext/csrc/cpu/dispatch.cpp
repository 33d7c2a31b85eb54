// Which builds of the kernels are in this library, and which of them this processor can run.
//
// Compiled without flags for any instruction set. cuda_ext/native.py asks here once, then looks functions up by name:
// dreamkiln_<operation>_<instruction set>.

#if defined(_WIN32)
#define DREAMKILN_PUBLIC extern "C" __declspec(dllexport)
#else
#define DREAMKILN_PUBLIC extern "C" __attribute__((visibility("default")))
#endif

namespace {

bool has_avx2() {
#if defined(DREAMKILN_HAS_avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

bool has_avx512() {
#if defined(DREAMKILN_HAS_avx512)
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return false;
#endif
}

}  // namespace

// Names of the builds that run here, separated by spaces, the fastest first. The processor is asked once.
DREAMKILN_PUBLIC const char* dreamkiln_instruction_sets() {
#if defined(DREAMKILN_HAS_neon)
    return "neon scalar";
#else
    return has_avx512() ? "avx512 avx2 scalar" : has_avx2() ? "avx2 scalar" : "scalar";
#endif
}

// Raised whenever a function's arguments change, so that a stale library is refused and not called.
DREAMKILN_PUBLIC int dreamkiln_abi() { return 3; }
