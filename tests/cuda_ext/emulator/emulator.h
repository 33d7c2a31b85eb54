// Runs CUDA kernels on a CPU, so that their logic is tested where there is no GPU.
//
// A kernel's own text is compiled by g++ with this header in front of it. Every CUDA thread of a block is a fiber with
// its own stack; one runs at a time until it ends or waits in a barrier or a warp collective, so the order in which
// threads advance is the emulator's choice: forward, or backward, in which a missing barrier gives another result.
// Blocks run one after the other. Shared memory is filled with NaNs before each block.
//
// Stricter than a GPU: a warp collective must be the same one for all live lanes and name all of them, a barrier that
// not all reach ends the launch with an error, and so do out-of-bounds accesses (the launcher puts a guard page behind
// every argument), misaligned vectors and undefined casts (the sanitiser's traps). Not emulated: timing, caches, memory
// ordering between warps, partial warp masks, inline PTX, dynamic shared memory.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static __attribute__((section("emulated_shared")))

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) short4 { short x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline short4 make_short4(short x, short y, short z, short w) { return {x, y, z, w}; }

extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));

namespace dreamkiln {}
namespace emulator {

enum class Collective { none, barrier, ballot, shuffle };

struct Warp {
  unsigned live = 0, arrived = 0, generation = 0;
  Collective kind = Collective::none;
  uint64_t slots[32], results[32];
};

struct Fiber {
  uint3 thread;
  unsigned lane;
  Warp* warp;
  bool done;
  const unsigned* waits_for;  // a generation count that has to move on from `generation` first
  unsigned generation;
  bool started;
  ucontext_t entry;
  jmp_buf where;
};

constexpr size_t stack_bytes = 64 << 10;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Fiber* self = nullptr;
inline jmp_buf scheduler;
inline ucontext_t scheduler_context;
inline sigjmp_buf outside;
inline dim3 block_dim, grid_dim;
inline uint3 block_index;
inline unsigned block_live, block_arrived, block_generation;
inline char failure[512];
inline void (*body)(void*);
inline void* body_arguments;

[[noreturn]] inline void fail(const char* what) {
  snprintf(failure, sizeof failure, "%s (block %u,%u,%u thread %u,%u,%u)", what, block_index.x, block_index.y,
           block_index.z, self ? self->thread.x : 0, self ? self->thread.y : 0, self ? self->thread.z : 0);
  siglongjmp(outside, 1);
}

inline void on_signal(int signal) {
  fail(signal == SIGSEGV || signal == SIGBUS ? "memory access outside the arguments"
                                             : "misaligned access, or an operation that C++ leaves undefined");
}

// Back to the scheduler; returns when this fiber is chosen again.
inline void yield() {
  if (!_setjmp(self->where)) _longjmp(scheduler, 1);
}

inline void wait_for(const unsigned& generation) {
  self->waits_for = &generation;
  self->generation = generation;
  yield();
  self->waits_for = nullptr;
}

inline void complete(Warp& warp) {
  memcpy(warp.results, warp.slots, sizeof warp.slots);
  memset(warp.slots, 0xff, sizeof warp.slots);
  warp.arrived = 0;
  warp.kind = Collective::none;
  warp.generation++;
}

// All live lanes of the warp give a value; afterwards `results` has them all.
inline const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value) {
  Warp& warp = *self->warp;
  if (mask != 0xffffffffu) fail("a warp collective with a partial mask");
  if (warp.kind != Collective::none && warp.kind != kind) fail("lanes of a warp met in different collectives");
  warp.kind = kind;
  warp.slots[self->lane] = value;
  warp.arrived |= 1u << self->lane;
  if (warp.arrived == warp.live) complete(warp);
  else wait_for(warp.generation);
  return warp.results;
}

inline void leave() {
  Warp& warp = *self->warp;
  self->done = true;
  warp.live &= ~(1u << self->lane);
  if (warp.live && warp.arrived == warp.live) complete(warp);
  block_live--;
  if (block_live && block_arrived == block_live) block_arrived = 0, block_generation++;
}

inline void enter() {
  body(body_arguments);
  leave();
  _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
  self = &fiber;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  setcontext(&fiber.entry);
}

inline char* stacks() {
  static char* memory = static_cast<char*>(
      mmap(nullptr, 1024 * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return memory;
}

inline void start_block(unsigned threads) {
  if (__start_emulated_shared) memset(__start_emulated_shared, 0xff, __stop_emulated_shared - __start_emulated_shared);
  warps.assign((threads + 31) / 32, Warp{});
  fibers.resize(threads);
  block_live = threads;
  block_arrived = 0;
  for (unsigned t = 0; t < threads; t++) {
    Fiber& fiber = fibers[t];
    fiber.thread = {t % block_dim.x, t / block_dim.x % block_dim.y, t / block_dim.x / block_dim.y};
    fiber.lane = t % 32;
    fiber.warp = &warps[t / 32];
    fiber.warp->live |= 1u << fiber.lane;
    fiber.done = fiber.started = false;
    fiber.waits_for = nullptr;
    getcontext(&fiber.entry);
    fiber.entry.uc_stack = {stacks() + t * stack_bytes, 0, stack_bytes};
    fiber.entry.uc_link = nullptr;
    makecontext(&fiber.entry, enter, 0);
  }
}

inline void run_block(unsigned threads, bool backward) {
  start_block(threads);
  while (block_live) {
    bool moved = false;
    for (unsigned i = 0; i < threads; i++) {
      Fiber& fiber = fibers[backward ? threads - 1 - i : i];
      if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.generation)) continue;
      resume(fiber);
      moved = true;
    }
    if (!moved) fail("deadlock: a barrier or collective that not all threads reach");
  }
}

inline const char* run_grid(void (*kernel)(void*), void* arguments, dim3 grid, dim3 block, bool backward) {
  const unsigned threads = block.x * block.y * block.z;
  if (!threads || threads > 1024) return "a block must have 1 to 1024 threads";
  if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) return "a grid that CUDA refuses";
  static char signal_stack[64 << 10];
  stack_t alternative{signal_stack, 0, sizeof signal_stack}, old_stack;
  struct sigaction action{}, old[3];
  const int signals[3] = {SIGSEGV, SIGBUS, SIGILL};
  sigaltstack(&alternative, &old_stack);
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  for (int i = 0; i < 3; i++) sigaction(signals[i], &action, &old[i]);
  body = kernel, body_arguments = arguments, grid_dim = grid, block_dim = block, failure[0] = 0;
  if (!sigsetjmp(outside, 1))
    for (unsigned z = 0; z < grid.z; z++)
      for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
          block_index = {x, y, z};
          run_block(threads, backward);
        }
  for (int i = 0; i < 3; i++) sigaction(signals[i], &old[i], nullptr);
  sigaltstack(&old_stack, nullptr);
  return failure[0] ? failure : nullptr;
}

template <class... A, size_t... I>
const char* call(void (*kernel)(A...), void** arguments, dim3 grid, dim3 block, bool backward,
                 std::index_sequence<I...>) {
  struct Bound { void (*kernel)(A...); std::tuple<A...> values; };
  Bound bound{kernel, {*static_cast<std::remove_reference_t<A>*>(arguments[I])...}};
  auto enter = [](void* p) { std::apply(static_cast<Bound*>(p)->kernel, static_cast<Bound*>(p)->values); };
  return run_grid(enter, &bound, grid, block, backward);
}

// As the driver launches: an array of pointers to the arguments. Returns what went wrong, or null.
template <class... A>
const char* launch(void (*kernel)(A...), unsigned count, void** arguments, dim3 grid, dim3 block, bool backward) {
  if (count != sizeof...(A)) return "the number of arguments is not the kernel's";
  return call(kernel, arguments, grid, block, backward, std::index_sequence_for<A...>{});
}

// Memory that ends, but for its alignment to 16 bytes, where a forbidden page begins.
inline size_t whole_pages(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }
inline void* guarded(size_t bytes) {
  const size_t room = whole_pages(bytes);
  char* memory = static_cast<char*>(
      mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(memory + room, 4096, PROT_NONE);
  return memory + room - (bytes + 15) / 16 * 16;
}
inline void release(void* memory, size_t bytes) {
  munmap(reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) / 4096 * 4096), whole_pages(bytes) + 4096);
}

template <class T> uint64_t pack(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T> T unpack(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace emulator

#define EMULATE(kernel)                                                                                             \
  extern "C" const char* emulate_##kernel(unsigned count_, void** values_, unsigned gx_, unsigned gy_, unsigned gz_, \
                                          unsigned bx_, unsigned by_, unsigned bz_, bool backward_) {                \
    return emulator::launch(kernel, count_, values_, {gx_, gy_, gz_}, {bx_, by_, bz_}, backward_);                   \
  }

#define threadIdx (emulator::self->thread)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_dim)
#define gridDim (emulator::grid_dim)

inline void __syncthreads() {
  using namespace emulator;
  if (++block_arrived == block_live) block_arrived = 0, block_generation++;
  else wait_for(block_generation);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange(emulator::Collective::barrier, mask, 0); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned live = emulator::self->warp->live;
  const uint64_t* all = emulator::exchange(emulator::Collective::ballot, mask, predicate != 0);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++) bits |= unsigned(live >> i & 1 && all[i] == 1) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int base = emulator::self->lane & ~(width - 1);
  const uint64_t* all = emulator::exchange(emulator::Collective::shuffle, mask, emulator::pack(value));
  return emulator::unpack<T>(all[base + (source & (width - 1))]);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const uint64_t* all = emulator::exchange(emulator::Collective::shuffle, mask, emulator::pack(value));
  const int source = emulator::self->lane ^ bits;
  return source / width > int(emulator::self->lane) / width ? value : emulator::unpack<T>(all[source]);
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const uint64_t* all = emulator::exchange(emulator::Collective::shuffle, mask, emulator::pack(value));
  const unsigned lane = emulator::self->lane;
  return (lane & (width - 1)) < by ? value : emulator::unpack<T>(all[lane - by]);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const uint64_t* all = emulator::exchange(emulator::Collective::shuffle, mask, emulator::pack(value));
  const unsigned lane = emulator::self->lane;
  return (lane & (width - 1)) + by >= unsigned(width) ? value : emulator::unpack<T>(all[lane + by]);
}

template <class T> T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
inline float2 atomicAdd(float2* address, float2 value) {
  const float2 old = *address;
  *address = {old.x + value.x, old.y + value.y};
  return old;
}
inline float4 atomicAdd(float4* address, float4 value) {
  const float4 old = *address;
  *address = {old.x + value.x, old.y + value.y, old.z + value.z, old.w + value.w};
  return old;
}
template <class T> T atomicMax(T* address, T value) {
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}
template <class T> T atomicOr(T* address, T value) {
  const T old = *address;
  *address = old | value;
  return old;
}
inline void __threadfence() {}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(int(x)); }
inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline int __float_as_int(float x) { return emulator::unpack<int>(emulator::pack(x)); }
inline unsigned __float_as_uint(float x) { return emulator::unpack<unsigned>(emulator::pack(x)); }
inline float __int_as_float(int x) { return emulator::unpack<float>(emulator::pack(x)); }
inline float __uint_as_float(unsigned x) { return emulator::unpack<float>(emulator::pack(x)); }
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
