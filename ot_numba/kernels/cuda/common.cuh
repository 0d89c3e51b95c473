// What all kernels share. Nothing is included, so that users need no CUDA headers.
//
// State is kept in base 2: P_ij = 2^(F_i + G_j - scale c_ij). CuPy compiles with -ftz=true, so that a float power is
// one special-function instruction; 2^x in double is a polynomial without branches, as on the CPU.
typedef long long i64;
typedef unsigned long long u64;

#define FULL 0xffffffffu  // the mask of a whole warp

__device__ __forceinline__ float infinity(float) { return __int_as_float(0x7f800000); }
__device__ __forceinline__ double infinity(double) { return __longlong_as_double(0x7ff0000000000000ll); }

// Ends of the range of 2^x: `lowest` is the exponent of the least normal number, powers saturate at 2^`highest`, sums
// outside [tiny, 1 / tiny] are not believed, and no update takes a sum beyond 2^`reach`. All as in the other backends.
template <typename T> struct range;
template <> struct range<float> {
  static __device__ __forceinline__ float lowest() { return -126.0f; }
  static __device__ __forceinline__ float highest() { return 127.0f; }
  static __device__ __forceinline__ float largest() { return __int_as_float(0x7f7fffff); }
  static __device__ __forceinline__ double tiny() { return 1e-29; }
  static __device__ __forceinline__ double reach() { return 90.0; }
};
template <> struct range<double> {
  static __device__ __forceinline__ double lowest() { return -1022.0; }
  static __device__ __forceinline__ double highest() { return 960.0; }
  static __device__ __forceinline__ double largest() { return __longlong_as_double(0x7fefffffffffffffll); }
  static __device__ __forceinline__ double tiny() { return 1e-289; }
  static __device__ __forceinline__ double reach() { return 900.0; }
};

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return a > b ? a : b; }
__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double smaller(double a, double b) { return a < b ? a : b; }  // b if a is NaN
__device__ __forceinline__ i64 smaller(i64 a, i64 b) { return a < b ? a : b; }

// 2^x for x <= 127, in double x <= 1023; exactly 0 below the least normal number, and for x = -inf.
__device__ __forceinline__ float bounded_power2(float x) { return exp2f(x); }
__device__ __forceinline__ double bounded_power2(double x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: rounds to an integer, which the low bits of the sum hold
  const double t = x + magic;
  const double r = x - (t - magic);
  double p = 4.078071929588337e-10;  // minimax polynomial of 2^r, |r| <= 1/2; relative error 1.8e-17
  p = fma(p, r, 7.072570412814423e-09);
  p = fma(p, r, 1.0180647659234139e-07);
  p = fma(p, r, 1.3215442675329823e-06);
  p = fma(p, r, 1.5252727385193868e-05);
  p = fma(p, r, 0.0001540353044157213);
  p = fma(p, r, 0.0013333558153439966);
  p = fma(p, r, 0.009618129107607003);
  p = fma(p, r, 0.05550410866479039);
  p = fma(p, r, 0.24022650695910097);
  p = fma(p, r, 0.6931471805599457);
  p = fma(p, r, 1.0);
  const u64 shifted = (u64)__double_as_longlong(p) + ((u64)__double_as_longlong(t) << 52);
  return x >= -1022.0 ? __longlong_as_double((i64)shifted) : 0.0;
}

// 2^min(x, highest): the same for every x; the largest power also for NaN.
template <typename T> __device__ __forceinline__ T power2(T x) {
  return bounded_power2(smaller(x, range<T>::highest()));
}

// A sum that overflowed counts as the largest number.
template <typename T> __device__ __forceinline__ T saturated(T s) { return smaller(s, range<T>::largest()); }

// Sum, or maximum, over a warp; every lane gets it, the same bits always.
template <typename T> __device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int bit = 16; bit > 0; bit >>= 1) v += __shfl_xor_sync(FULL, v, bit);
  return v;
}
template <typename T> __device__ __forceinline__ T warp_max(T v) {
#pragma unroll
  for (int bit = 16; bit > 0; bit >>= 1) v = larger(v, __shfl_xor_sync(FULL, v, bit));
  return v;
}

// Sum over a block of whole warps, to every thread; `scratch` holds 32 numbers, and is free again after a barrier.
template <typename T> __device__ __forceinline__ T block_sum(T v, T* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = scratch[0];
  for (int w = 1; w < warps; ++w) v += scratch[w];
  return v;
}

// Sums over a warp of N numbers per lane (N a power of 2 up to 32): lanes exchange halves of what they hold, so that it
// takes N - 1 + 5 - log2 N shuffles and not 5 N. The lane gets, in v[0], the sum number `warp_sums_index<N>()`.
template <int N, int HELD, typename T> __device__ __forceinline__ void warp_sums_step(T (&v)[N]) {
  const int bit = N / HELD;
  if constexpr (HELD > 1) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int k = 0; k < HELD / 2; ++k) {
      const T kept = upper ? v[k + HELD / 2] : v[k], sent = upper ? v[k] : v[k + HELD / 2];
      v[k] = kept + __shfl_xor_sync(FULL, sent, bit);
    }
    warp_sums_step<N, HELD / 2>(v);
  } else {
#pragma unroll
    for (int b = bit; b < 32; b <<= 1) v[0] += __shfl_xor_sync(FULL, v[0], b);
  }
}
template <int N, typename T> __device__ __forceinline__ void warp_sums(T (&v)[N]) { warp_sums_step<N, N>(v); }
template <int N> __device__ __forceinline__ int warp_sums_index() {
  int index = 0;
#pragma unroll
  for (int bit = 1; bit < N; bit <<= 1) index = 2 * index + ((threadIdx.x & bit) != 0);
  return index;
}

// Radix selection counts numbers by a digit of 0 to 255 in bins. One more to the bin of each lane of a warp, to none if
// that is negative.
__device__ __forceinline__ void count_digit(unsigned* bins, int bin) {
  const unsigned same = __match_any_sync(FULL, bin);
  if (bin >= 0 && (threadIdx.x & 31) == __ffs(same) - 1) atomicAdd(&bins[bin], (unsigned)__popc(same));
}

// The digit of the number of this rank, the largest having rank 1, where bins of a column lie `stride` apart, and its
// rank among those with that digit; by a warp, true for the one lane that has it.
__device__ __forceinline__ bool ranked_digit(const unsigned* bins, int stride, unsigned& rank, int& digit) {
  const int lane = threadIdx.x & 31;  // it has 8 digits, lane 0 the largest
  digit = 255 - 8 * lane;
  unsigned sum = 0;
#pragma unroll 1
  for (int q = 0; q < 8; ++q) sum += bins[(digit - q) * stride];
  unsigned above = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const unsigned other = __shfl_up_sync(FULL, above, step);
    if (lane >= step) above += other;
  }
  if (rank <= above - sum || rank > above) return false;
  rank -= above - sum;
#pragma unroll 1
  for (; rank > bins[digit * stride]; --digit) rank -= bins[digit * stride];
  return true;
}

// Marginal that the optimality conditions ask for: weight * exp(-f / rho), or the weight itself.
__device__ __forceinline__ double marginal_target(double potential, double weight, double offset, double damping) {
  return damping == 1.0 ? weight : weight * power2((offset - potential) * (1.0 / damping - 1.0));
}

// Potential `next`, or one nearer to `old` where it would take its sum s, or a weight, out of the range of 2^x.
__device__ __forceinline__ double bounded(double old, double next, double s, double reach) {
  const double step = next - old;
  return step <= 16.0 ? next : old + smaller(step, smaller(reach - log2(s), reach + 30.0));  // the bound if NaN
}

// Relaxed and damped potential: damping = rho / (rho + reg), 1 when the marginal is a hard constraint.
__device__ __forceinline__ double updated(
    double old, double offset, double log_ratio, double damping, double relaxation) {
  return old + relaxation * (offset + damping * (old - offset + log_ratio) - old);
}

// Kinds of cost, as a template argument: a dense one, points of 2 or 3 coordinates, or of any number of them.
enum { DENSE = 0, ANY = -1 };

// Exponents F_i + G_j - scale c_ij of the R rows from i, column by column: the one place where a cost meets a kernel.
// x is C (n, m), or the points (n, d) with y (d, m), for which c = -<x_i, y_j>. All threads of a block make the object
// together; for ANY that takes two barriers and R * d numbers of shared memory, aligned to 32 bytes.
template <typename T, int D, int R> struct Rows {
  const T* c;       // row i of C, or y
  const T* shared;  // ANY: the R points, coordinate by coordinate
  T scale, x[R][D > 0 ? D : 1];
  int m, d;

  __device__ __forceinline__ Rows(const T* x_, const T* y, T scale_, int d_, int m_, i64 i, T* shared_)
      : c(D == DENSE ? x_ + i * m_ : y), shared(shared_), scale(scale_), m(m_), d(d_) {
    if constexpr (D > 0) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int p = 0; p < D; ++p) x[r][p] = scale * x_[(i + r) * D + p];
    } else if constexpr (D == ANY) {
      __syncthreads();
      for (int k = threadIdx.x; k < R * d; k += blockDim.x) shared_[(k % d) * R + k / d] = scale * x_[i * d + k];
      __syncthreads();
    }
  }

  // e[r] -= scale * c of row i + r and column j
  __device__ __forceinline__ void subtract_costs(int j, T (&e)[R]) const {
    if constexpr (D == DENSE) {
#pragma unroll
      for (int r = 0; r < R; ++r) e[r] = fma(-scale, c[(i64)r * m + j], e[r]);
    } else if constexpr (D > 0) {
#pragma unroll
      for (int p = 0; p < D; ++p) {
        const T t = c[(i64)p * m + j];
#pragma unroll
        for (int r = 0; r < R; ++r) e[r] = fma(x[r][p], t, e[r]);
      }
    } else {
      for (int p = 0; p < d; ++p) {
        const T t = c[(i64)p * m + j];
#pragma unroll
        for (int r = 0; r < R; ++r) e[r] = fma(shared[p * R + r], t, e[r]);
      }
    }
  }

  // e[r] = exponent of row i + r and column j, for f[r] = F_{i + r} and g = G_j
  __device__ __forceinline__ void exponents(int j, const T (&f)[R], T g, T (&e)[R]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) e[r] = f[r] + g;
    subtract_costs(j, e);
  }
};
