// What a kernel sees of CUDA C++ when g++ compiles it: this header is included in front of its source. The device
// itself, and all checks, are in runtime.cpp.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// ---- the device

struct uint3 { unsigned x, y, z; };
extern "C" {
// "const": they do not change while a thread lives, so that they may be read once
__attribute__((const)) uint3 emu_thread_index();
__attribute__((const)) uint3 emu_block_index();
__attribute__((const)) uint3 emu_block_size();
__attribute__((const)) uint3 emu_grid_size();
void* emu_shared(int number, const void* type, size_t bytes, size_t alignment, const char* name);
void* emu_dynamic_shared();
int emu_barrier(int kind, int value, int line);
uint64_t emu_warp(int kind, unsigned mask, uint64_t value, int argument, int width, int line);
unsigned emu_active_mask();
uint64_t emu_atomic(int operation, int type, void* address, uint64_t value, uint64_t other);
}

// ---- keywords

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define threadIdx (emu_thread_index())
#define blockIdx (emu_block_index())
#define blockDim (emu_block_size())
#define gridDim (emu_grid_size())
#define warpSize 32

// `__shared__ T a[N];` has become `emu_type<T[N]>& a = emu_static_shared<...>(...)`: see compiler.py
template <class T> using emu_type = T;
template <class T> struct emu_tag { static inline char tag = 0; };
template <class T> inline T& emu_static_shared(int number, const char* name) {
  return *reinterpret_cast<T*>(emu_shared(number, &emu_tag<T>::tag, sizeof(T), alignof(T), name));
}

// ---- barriers, votes, shuffles: the numbers of the kinds are known to runtime.cpp

inline void __syncthreads(int line = __builtin_LINE()) { emu_barrier(0, 0, line); }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) { return emu_barrier(1, !!p, line); }
inline int __syncthreads_and(int p, int line = __builtin_LINE()) { return emu_barrier(2, !!p, line); }
inline int __syncthreads_or(int p, int line = __builtin_LINE()) { return emu_barrier(3, !!p, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T> inline uint64_t emu_bits(T value) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "a number of 4 or 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T> inline T emu_number(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

constexpr unsigned EMU_FULL = 0xffffffffu;
inline void __syncwarp(unsigned mask = EMU_FULL, int line = __builtin_LINE()) { emu_warp(0, mask, 0, 0, 32, line); }
template <class T> inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32, int line = __builtin_LINE()) {
  return emu_number<T>(emu_warp(1, mask, emu_bits(v), lane, width, line));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
  return emu_number<T>(emu_warp(2, mask, emu_bits(v), int(by), width, line));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, int line = __builtin_LINE()) {
  return emu_number<T>(emu_warp(3, mask, emu_bits(v), int(by), width, line));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int by, int width = 32, int line = __builtin_LINE()) {
  return emu_number<T>(emu_warp(4, mask, emu_bits(v), by, width, line));
}
inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return unsigned(emu_warp(5, mask, !!p, 0, 32, line));
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return int(emu_warp(6, mask, !!p, 0, 32, line));
}
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return int(emu_warp(7, mask, !!p, 0, 32, line));
}
template <class T> inline unsigned __match_any_sync(unsigned mask, T v, int line = __builtin_LINE()) {
  return unsigned(emu_warp(8, mask, emu_bits(v), 0, 32, line));
}
inline unsigned __activemask() { return emu_active_mask(); }

// ---- atomics: CUDA's overloads and no more

typedef unsigned long long emu_u64;
typedef long long emu_i64;
#define EMU_ATOMIC(NAME, OPERATION, T, TYPE) \
  inline T NAME(T* p, T v) { return emu_number<T>(emu_atomic(OPERATION, TYPE, p, emu_bits(v), 0)); }
#define EMU_ATOMIC_INTEGERS(NAME, OPERATION) \
  EMU_ATOMIC(NAME, OPERATION, int, 0) EMU_ATOMIC(NAME, OPERATION, unsigned, 1) EMU_ATOMIC(NAME, OPERATION, emu_u64, 3)
EMU_ATOMIC_INTEGERS(atomicAdd, 0)
EMU_ATOMIC(atomicAdd, 0, float, 4)
EMU_ATOMIC(atomicAdd, 0, double, 5)
EMU_ATOMIC(atomicSub, 1, int, 0)
EMU_ATOMIC(atomicSub, 1, unsigned, 1)
EMU_ATOMIC_INTEGERS(atomicMin, 2)
EMU_ATOMIC(atomicMin, 2, emu_i64, 2)
EMU_ATOMIC_INTEGERS(atomicMax, 3)
EMU_ATOMIC(atomicMax, 3, emu_i64, 2)
EMU_ATOMIC_INTEGERS(atomicExch, 4)
EMU_ATOMIC(atomicExch, 4, float, 4)
EMU_ATOMIC_INTEGERS(atomicAnd, 6)
EMU_ATOMIC_INTEGERS(atomicOr, 7)
EMU_ATOMIC_INTEGERS(atomicXor, 8)
#define EMU_CAS(T, TYPE) \
  inline T atomicCAS(T* p, T old, T v) { return emu_number<T>(emu_atomic(5, TYPE, p, emu_bits(old), emu_bits(v))); }
EMU_CAS(int, 0)
EMU_CAS(unsigned, 1)
EMU_CAS(emu_u64, 3)

// ---- mathematics

using std::abs, std::ceil, std::copysign, std::cos, std::exp, std::exp2, std::expm1, std::fabs, std::floor, std::fma;
using std::fmax, std::fmin, std::isfinite, std::isinf, std::isnan, std::log, std::log1p, std::log2, std::pow, std::rint;
using std::round, std::signbit, std::sin, std::sqrt, std::tanh, std::trunc;
#define EMU_MIN_MAX(T) \
  inline T max(T a, T b) { return a > b ? a : b; } \
  inline T min(T a, T b) { return b < a ? b : a; }
EMU_MIN_MAX(int) EMU_MIN_MAX(unsigned) EMU_MIN_MAX(long) EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(emu_i64) EMU_MIN_MAX(emu_u64)
inline float max(float a, float b) { return std::fmax(a, b); }
inline float min(float a, float b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline float rsqrt(float x) { return float(1 / std::sqrt(double(x))); }
inline float rsqrtf(float x) { return rsqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
// the approximate instructions work in base 2: what they lose is in the scaled argument
inline float __expf(float x) { return exp2f(x * 1.4426950408889634f); }
inline float __log2f(float x) { return log2f(x); }
inline float __logf(float x) { return 0.6931471805599453f * log2f(x); }
inline float __powf(float x, float y) { return exp2f(y * log2f(x)); }
inline float __fdividef(float a, float b) { return a * (1 / b); }
inline int __float_as_int(float x) { return emu_number<int>(emu_bits(x)); }
inline float __int_as_float(int i) { return emu_number<float>(emu_bits(i)); }
inline unsigned __float_as_uint(float x) { return emu_number<unsigned>(emu_bits(x)); }
inline float __uint_as_float(unsigned i) { return emu_number<float>(emu_bits(i)); }
inline emu_i64 __double_as_longlong(double x) { return emu_number<emu_i64>(emu_bits(x)); }
inline double __longlong_as_double(emu_i64 i) { return emu_number<double>(emu_bits(i)); }
inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
inline double __hiloint2double(int hi, int lo) {
  return __longlong_as_double(emu_i64(emu_u64(hi) << 32 | unsigned(lo)));
}
inline int __double2int_rn(double x) { return int(std::fmin(std::fmax(std::rint(x), -2147483648.0), 2147483647.0)); }
inline int __float2int_rn(float x) { return __double2int_rn(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(emu_u64 x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(emu_i64 x) { return x ? __builtin_clzll(emu_u64(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
template <class T> __forceinline__ T __ldg(const T* p) { return *p; }
template <class T> __forceinline__ T __ldcs(const T* p) { return *p; }
template <class T> __forceinline__ void __stcs(T* p, T v) { *p = v; }

// ---- vectors, with the alignment that their loads need

#define EMU_VECTOR2(NAME, T) \
  struct alignas(2 * sizeof(T)) NAME { T x, y; }; \
  inline NAME make_##NAME(T x, T y) { return NAME{x, y}; }
#define EMU_VECTOR4(NAME, T) \
  struct alignas(16) NAME { T x, y, z, w; }; \
  inline NAME make_##NAME(T x, T y, T z, T w) { return NAME{x, y, z, w}; }
EMU_VECTOR2(float2, float) EMU_VECTOR2(double2, double) EMU_VECTOR2(int2, int)
EMU_VECTOR4(float4, float) EMU_VECTOR4(double4, double) EMU_VECTOR4(int4, int)

// ---- the table of kernels: the compiler tells what the parameters are, so that nothing parses them

struct emu_parameter { char pointer, kind, is_const; unsigned size; };
struct emu_entry { const char* name; void (*run)(void**); int (*signature)(emu_parameter*, int); int max_threads; };
template <class T> inline constexpr char emu_kind = std::is_same<T, bool>::value ? 'b'
    : std::is_floating_point<T>::value ? 'f'
    : !std::is_integral<T>::value ? 's'
    : std::is_signed<T>::value ? 'i' : 'u';
template <class A> emu_parameter emu_describe() {
  using Pointed = std::remove_pointer_t<std::remove_cv_t<A>>;
  using T = std::remove_cv_t<Pointed>;
  return {std::is_pointer<A>::value, emu_kind<T>, std::is_const<Pointed>::value, unsigned(sizeof(T))};
}
#define EMU_UNSEEN __attribute__((noinline, no_sanitize("thread", "undefined")))
template <class... A, size_t... I>
EMU_UNSEEN void emu_call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<A>*>(values[I])...);
}
template <class... A> EMU_UNSEEN void emu_enter(void (*kernel)(A...), void** values) {
  emu_call(kernel, values, std::index_sequence_for<A...>{});
}
template <class... A> EMU_UNSEEN int emu_signature(void (*)(A...), emu_parameter* out, int size) {
  emu_parameter all[] = {emu_describe<A>()..., emu_parameter{}};
  for (int i = 0; i < int(sizeof...(A)) && i < size; ++i) out[i] = all[i];
  return int(sizeof...(A));
}
template <class... More> constexpr int emu_first(int first, More...) { return first; }
