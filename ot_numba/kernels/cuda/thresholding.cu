// Elementwise passes of sparse recovery, each array read once and written once (read twice where all of it decides how
// it is written), sums of columns, and their k largest entries; see `contract`. Products with the matrix are those of
// cuBLAS.
//
// The numbers of blocks depend on the sizes alone, partial sums are in double and added in the order of the threads, of
// the warps and of the blocks, in a launch of their own: the bits are always the same. The k-th largest absolute value
// of a column is found by its digits, 8 bits at a time, in counts of integers, whose order changes nothing; where
// equal ones must be told apart, by the digits of their places too.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per entry, s bytes
// each, for 10^7 entries in float32 (float64):
//   proximal_step: 3 s bytes for X alone, 4 s where Z is another array, 5 s with momentum, 1 for the signs, about 20
//     issue slots: bound by memory, 0.04 ms (0.07 ms), and 0.06 ms (0.12 ms). Below 10^6 entries the launch takes
//     longer.
//   accelerated_step: 8 s bytes in three launches, two of which evaluate the layer, so that nothing is stored between
//     them, about 60 issue slots: bound by memory, 0.10 ms (0.19 ms).
//   lasso_values: 2 s bytes for an entry of X, and as many for one of R, about 20 issue slots: bound by memory, 0.02 ms
//     (0.05 ms), and as long for 10^7 of R.
//   masked_adjoint: 3 s + 1 bytes, about 20 issue slots: bound by memory, 0.04 ms (0.07 ms).
//   keep_largest: s bytes in each of 5 passes (float64: 9), more where entries are equal, and s bytes for what becomes
//     0, from L2 where it holds X, about 40 issue slots each: bound by memory, 0.07 ms (0.24 ms), if there are columns
//     for all multiprocessors. A pass takes 3 barriers and the choice of a digit, some 2 us. One launch does it all;
//     where several blocks share long columns, each pass is one.

typedef float float32;
typedef double float64;

constexpr int THREADS = 256, MOST_THREADS = 1024, MOST_COLUMNS = 8, AT_ONCE = 4;

// ---------------------------------------------------------------- layers

// prox(z - step g)
template <typename T> __device__ __forceinline__ T layer(int soft, T step, T tau, T z, T g) {
  const T v = fma(-step, g, z);
  return fabs(v) <= tau ? (T)0 : !soft ? v : v > 0 ? v - tau : v + tau;  // a NaN passes
}

// With Z = X unless they are a pair; the signs, if any, are those of what it makes.
template <typename T>
__device__ __forceinline__ void proximal_step(int soft, T step, T tau, T momentum, T* X, T* Z, int pair, const T* G,
                                              signed char* signs, int signing, i64 size) {
  for (i64 i = blockIdx.x * (i64)THREADS + threadIdx.x; i < size; i += gridDim.x * (i64)THREADS) {
    const T z = pair ? Z[i] : X[i], x = momentum != 0 ? X[i] : (T)0;
    const T w = layer(soft, step, tau, z, G[i]);
    if (signing) signs[i] = (w > 0) - (w < 0);
    if (pair) Z[i] = momentum != 0 ? fma(momentum, w - x, w) : w;
    X[i] = w;
  }
}

#define PROXIMAL_STEP(T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) proximal_step_##T(                                          \
      int soft, T step, T tau, T momentum, T *X, T *Z, int pair, const T *G, signed char *signs, int signing,          \
      i64 size) {                                                                                                     \
    proximal_step(soft, step, tau, momentum, X, Z, pair, G, signs, signing, size);                                     \
  }
// resources: proximal_step registers <= 32, shared <= 0
PROXIMAL_STEP(float32)
PROXIMAL_STEP(float64)

// P where its sign is not 0; partial sums of its products with G, and with the signs.
template <typename T>
__device__ __forceinline__ void masked_adjoint(T* P, const signed char* signs, const T* G, i64 size, double* partial) {
  __shared__ double scratch[2][32];
  double sum = 0, signed_sum = 0;
  for (i64 i = blockIdx.x * (i64)THREADS + threadIdx.x; i < size; i += gridDim.x * (i64)THREADS) {
    const int sign = signs[i];
    const T p = P[i], q = sign != 0 ? p : (T)0;
    sum += (double)q * (double)G[i];
    signed_sum += (double)q * sign;
    P[i] = q;
  }
  sum = block_sum(sum, scratch[0]);
  signed_sum = block_sum(signed_sum, scratch[1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    partial[gridDim.x + blockIdx.x] = signed_sum;
  }
}

#define MASKED_ADJOINT(T)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) masked_adjoint_##T(                                         \
      T *P, const signed char *signs, const T *G, i64 size, double *partial) {                                        \
    masked_adjoint(P, signs, G, size, partial);                                                                       \
  }
// resources: masked_adjoint registers <= 32, shared <= 512
MASKED_ADJOINT(float32)
MASKED_ADJOINT(float64)

// Sums of the rows of `partial`, a block for each.
// resources: sum_partials registers <= 32, shared <= 256
extern "C" __global__ void __launch_bounds__(THREADS) sum_partials(const double* partial, int count, double* sums) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int b = threadIdx.x; b < count; b += THREADS) sum += partial[blockIdx.x * (i64)count + b];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// ---------------------------------------------------------------- sums of every column

// What a thread has of arrays (n, B): a column of the block's `width` side by side, a power of 2 up to 32, so that
// neighbours in memory go to neighbours among the threads, for one column as for many; and every so many rows.
struct Share {
  int width;
  i64 column, row;

  __device__ __forceinline__ explicit Share(int width_)
      : width(width_), column(blockIdx.x * (i64)width_ + threadIdx.x % width_), row(threadIdx.x / width_) {}
  __device__ __forceinline__ int stride() const { return THREADS / width; }
  // of the piece of n rows that a block has where gridDim.y do them together
  __device__ __forceinline__ i64 rows(i64 n) const { return (n + gridDim.y - 1) / gridDim.y; }
  __device__ __forceinline__ i64 first(i64 n) const { return blockIdx.y * rows(n) + row; }
  __device__ __forceinline__ i64 end(i64 n) const { return smaller(n, (blockIdx.y + 1) * rows(n)); }
};

// The larger of two, a NaN if there is one.
__device__ __forceinline__ double top_of(double a, double b) { return a >= b || a != a ? a : b; }

// Sums of what the threads of each column have, to the thread of its row 0; the maximum of the last if TOP.
template <bool TOP, int N> __device__ __forceinline__ void join_rows(double (&v)[N], int width) {
  __shared__ double scratch[N][THREADS];
  for (int half = THREADS / 2; half >= width; half /= 2) {  // a part of `scratch` for each
    if (threadIdx.x / half == 1)
#pragma unroll
      for (int k = 0; k < N; ++k) scratch[k][threadIdx.x] = v[k];
    __syncthreads();
    if (threadIdx.x / half == 0)
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double other = scratch[k][threadIdx.x + half];
        v[k] = TOP && k == N - 1 ? top_of(v[k], other) : v[k] + other;
      }
  }
}

// The same of the pieces of rows, partial (N, pieces, B), by blocks that go through all of them.
template <bool TOP, int N>
__device__ __forceinline__ void join_pieces(const double* partial, int pieces, i64 B, const Share& share,
                                            double (&v)[N]) {
  for (i64 p = share.row; p < pieces && share.column < B; p += share.stride())
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const double other = partial[(k * (i64)pieces + p) * B + share.column];
      v[k] = TOP && k == N - 1 ? top_of(v[k], other) : v[k] + other;
    }
  join_rows<TOP>(v, share.width);
}

// The product of every column that tells whether it restarts, by pieces of rows.
template <typename T>
__device__ __forceinline__ void restart_products(int soft, T step, T tau, const T* X, const T* Z, const T* G, i64 n,
                                                 i64 B, int width, double* partial) {
  const Share share(width);
  double product[1] = {0};
  if (share.column < B)
    for (i64 i = share.first(n), end = share.end(n); i < end; i += share.stride()) {
      const i64 e = i * B + share.column;
      const T x = X[e], z = Z[e], w = layer(soft, step, tau, z, G[e]);
      product[0] += (double)(z - w) * (double)(w - x);
    }
  join_rows<false>(product, width);
  if (share.row == 0 && share.column < B) partial[blockIdx.y * B + share.column] = product[0];
}

#define RESTART_PRODUCTS(T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) restart_products_##T(                                       \
      int soft, T step, T tau, const T *X, const T *Z, const T *G, i64 n, i64 B, int width, double *partial) {        \
    restart_products(soft, step, tau, X, Z, G, n, B, width, partial);                                                  \
  }
// resources: restart_products registers <= 32, shared <= 2048
RESTART_PRODUCTS(float32)
RESTART_PRODUCTS(float64)

// Momentum of every column, and what theta becomes.
// resources: update_momenta registers <= 32, shared <= 2048
extern "C" __global__ void __launch_bounds__(THREADS)
    update_momenta(const double* partial, int pieces, i64 B, int width, double* theta, double* momenta) {
  const Share share(width);
  double product[1] = {0};
  join_pieces<false>(partial, pieces, B, share, product);
  if (share.row == 0 && share.column < B) {
    const bool restart = product[0] > 0;
    const double before = theta[share.column], following = 0.5 * (1.0 + sqrt(1.0 + 4.0 * before * before));
    momenta[share.column] = restart ? 0.0 : (before - 1.0) / following;
    theta[share.column] = restart ? 1.0 : following;
  }
}

template <typename T>
__device__ __forceinline__ void accelerated_step(int soft, T step, T tau, const double* momenta, T* X, T* Z,
                                                 const T* G, i64 n, i64 B, int width) {
  const Share share(width);
  if (share.column >= B) return;
  const T momentum = (T)momenta[share.column];
  for (i64 i = share.first(n), end = share.end(n); i < end; i += share.stride()) {
    const i64 e = i * B + share.column;
    const T x = X[e], w = layer(soft, step, tau, Z[e], G[e]);
    Z[e] = fma(momentum, w - x, w);
    X[e] = w;
  }
}

#define ACCELERATED_STEP(T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 8) accelerated_step_##T(                                       \
      int soft, T step, T tau, const double *momenta, T *X, T *Z, const T *G, i64 n, i64 B, int width) {              \
    accelerated_step(soft, step, tau, momenta, X, Z, G, n, B, width);                                                  \
  }
// resources: accelerated_step registers <= 32, shared <= 0
ACCELERATED_STEP(float32)
ACCELERATED_STEP(float64)

// Of every column sum R R, sum R Y, sum |X| and max |G|, by pieces of rows.
template <typename T>
__device__ __forceinline__ void lasso_sums(const T* X, const T* Y, const T* R, const T* G, i64 m, i64 n, i64 B,
                                           int width, double* partial) {
  const Share share(width);
  double v[4] = {0, 0, 0, 0};
  if (share.column < B) {
    for (i64 i = share.first(m), end = share.end(m); i < end; i += share.stride()) {
      const double r = R[i * B + share.column], y = Y[i * B + share.column];
      v[0] += r * r;
      v[1] += r * y;
    }
    for (i64 i = share.first(n), end = share.end(n); i < end; i += share.stride()) {
      v[2] += fabs((double)X[i * B + share.column]);
      v[3] = top_of(v[3], fabs((double)G[i * B + share.column]));
    }
  }
  join_rows<true>(v, width);
  if (share.row == 0 && share.column < B)
#pragma unroll
    for (int k = 0; k < 4; ++k) partial[(k * (i64)gridDim.y + blockIdx.y) * B + share.column] = v[k];
}

#define LASSO_SUMS(T)                                                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS, 6) lasso_sums_##T(                                             \
      const T *X, const T *Y, const T *R, const T *G, i64 m, i64 n, i64 B, int width, double *partial) {              \
    lasso_sums(X, Y, R, G, m, n, B, width, partial);                                                                  \
  }
// resources: lasso_sums registers <= 40, shared <= 8192
LASSO_SUMS(float32)
LASSO_SUMS(float64)

// resources: lasso_values registers <= 40, shared <= 8192
extern "C" __global__ void __launch_bounds__(THREADS)
    lasso_values(double reg, const double* partial, int pieces, i64 B, int width, double* out) {
  const Share share(width);
  double v[4] = {0, 0, 0, 0};
  join_pieces<true>(partial, pieces, B, share, v);
  if (share.row == 0 && share.column < B) {
    const double scale = v[3] > reg ? reg / v[3] : 1.0;
    const double gap = 0.5 * (1.0 + scale * scale) * v[0] + scale * v[1] + reg * v[2];
    out[share.column] = 0.5 * v[0] + reg * v[2];
    out[B + share.column] = gap < 0 ? 0.0 : gap;
  }
}

// ---------------------------------------------------------------- the k largest of every column

// What is known of the k-th largest of a column, in the order of sizes, and of places from the end where these are
// equal: the leading digits of its size, then of its place, others 0; and which of the entries with these digits it is.
// Where all of them are among the k, that is 0, and no more need be known.
struct Kth {
  u64 size, place;
  unsigned left;
};

// Unsigned numbers in the order of the absolute values, NaN as infinity.
__device__ __forceinline__ unsigned magnitude(float v) {
  const unsigned bits = __float_as_uint(v) & 0x7fffffffu;
  return bits <= 0x7f800000u ? bits : 0x7f800000u;
}
__device__ __forceinline__ u64 magnitude(double v) {
  const u64 bits = __double_as_longlong(v) & 0x7fffffffffffffffull;
  return bits <= 0x7ff0000000000000ull ? bits : 0x7ff0000000000000ull;
}

// The columns of X (n, B) that a block has, `width` side by side, a power of 2, for all threads in turn, and its rows
// from lo to hi. The last of the passes finds a single entry.
template <typename T> struct Columns {
  typedef decltype(magnitude(T())) Size;
  T* X;
  i64 n, B, lo, hi;
  unsigned k;
  int width, passes;

  __device__ __forceinline__ i64 column() const { return blockIdx.x * (i64)width + mine(); }
  __device__ __forceinline__ int mine() const { return threadIdx.x % width; }
  __device__ __forceinline__ i64 first() const { return lo + threadIdx.x / 32 * (32 / width); }  // of a warp's rows
  __device__ __forceinline__ int row() const { return threadIdx.x % 32 / width; }                // of a lane, from it
  __device__ __forceinline__ int rows() const { return blockDim.x / width; }                     // of all threads
  __device__ __forceinline__ u64 place(i64 i) const { return n - 1 - i; }
  __device__ __forceinline__ bool of_place(int pass) const { return pass >= (int)sizeof(T); }
  __device__ __forceinline__ int shift_of(int pass) const {
    return 8 * ((of_place(pass) ? passes : (int)sizeof(T)) - 1 - pass);
  }

  __device__ __forceinline__ Kth unknown() const { return Kth{0, 0, column() < B ? k : 0}; }

  // Count the next digit of what may be the k-th largest.
  __device__ __forceinline__ void count(const Kth* kth, int pass, unsigned* bins) const {
    const Kth known = kth[mine()];
    const bool by_place = of_place(pass);
    const int shift = shift_of(pass);
#pragma unroll 1
    for (i64 start = first(); start < hi; start += AT_ONCE * rows()) {
      Size size[AT_ONCE];
      bool here[AT_ONCE];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const i64 i = start + u * rows() + row();
        here[u] = known.left > 0 && i < hi;
        size[u] = here[u] ? magnitude(X[i * B + column()]) : 0;
      }
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const u64 number = by_place ? place(start + u * rows() + row()) : size[u];
        const u64 other = by_place ? known.place : known.size;
        const bool may = here[u] && (!by_place || size[u] == known.size) && number >> shift >> 8 == other >> shift >> 8;
        count_digit(bins, may ? (int)(number >> shift & 255) * width + mine() : -1);
      }
    }
  }

  // The digit that was counted, by a warp for each column; whether another is needed, to the lane that has found it.
  __device__ __forceinline__ bool choose(Kth* kth, int pass, const unsigned* bins) const {
    const int warp = threadIdx.x / 32;
    unsigned rank = warp >= width ? 0 : kth[warp].left;
    __syncwarp();
    if (rank == 0) return false;
    int digit;
    if (!ranked_digit(bins + warp, width, rank, digit)) return false;
    (of_place(pass) ? kth[warp].place : kth[warp].size) |= (u64)digit << shift_of(pass);
    kth[warp].left = rank == bins[digit * width + warp] ? 0 : rank;
    return kth[warp].left > 0;
  }

  __device__ __forceinline__ void drop_rest(const Kth* kth) const {
    const Kth known = kth[mine()];
    if (column() >= B) return;
#pragma unroll 4
    for (i64 i = first() + row(); i < hi; i += rows()) {
      const Size size = magnitude(X[i * B + column()]);
      if (size < known.size || (size == known.size && place(i) < known.place)) X[i * B + column()] = 0;
    }
  }
};

__device__ __forceinline__ void clear(unsigned* bins, int width) {
  for (int bin = threadIdx.x; bin < 256 * width; bin += blockDim.x) bins[bin] = 0;
}

// All digits in a launch, for columns whose rows one block goes through.
template <typename T> __device__ __forceinline__ void keep_largest(const Columns<T>& columns) {
  __shared__ unsigned bins[256 * MOST_COLUMNS];
  __shared__ Kth kth[MOST_COLUMNS];
  if (threadIdx.x < columns.width) kth[threadIdx.x] = columns.unknown();
  for (int pass = 0;; ++pass) {
    clear(bins, columns.width);
    __syncthreads();
    columns.count(kth, pass, bins);
    __syncthreads();
    if (!__syncthreads_or(columns.choose(kth, pass, bins))) break;
  }
  columns.drop_rest(kth);
}

#define KEEP_LARGEST(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) keep_largest_##T(                                      \
      T *X, i64 n, i64 B, unsigned k, int width, int passes) {                                                        \
    keep_largest(Columns<T>{X, n, B, 0, n, k, width, passes});                                                        \
  }
// resources: keep_largest registers <= 56, shared <= 8384
KEEP_LARGEST(float32)
KEEP_LARGEST(float64)

// A launch for each digit, for long columns: blocks of one x have pieces of the same columns. What is known before a
// pass, from the counts of the last one and what was known before that, which all of these blocks join, and one of them
// keeps; whether more need be known.
template <typename T>
__device__ __forceinline__ bool join(const Columns<T>& columns, Kth* kth, int pass, u64* known,
                                     const unsigned* counts) {
  const i64 all = gridDim.x * (i64)columns.width;
  const bool mine = threadIdx.x < columns.width;
  u64* const state = known + 3 * pass * all + columns.column();
  if (mine && pass == 0) kth[threadIdx.x] = columns.unknown();
  if (mine && pass > 0) kth[threadIdx.x] = Kth{state[-3 * all], state[-2 * all], (unsigned)state[-all]};
  __syncthreads();
  const unsigned* const last = counts + ((pass - 1) * (i64)gridDim.x + blockIdx.x) * 256 * columns.width;
  const bool more = pass == 0 || __syncthreads_or(columns.choose(kth, pass - 1, last));
  if (mine && blockIdx.y == 0) {
    state[0] = kth[threadIdx.x].size;
    state[all] = kth[threadIdx.x].place;
    state[2 * all] = kth[threadIdx.x].left;
  }
  return more;
}

template <typename T>
__device__ __forceinline__ void count_digits(const Columns<T>& columns, int pass, u64* known, unsigned* counts) {
  __shared__ unsigned bins[256 * MOST_COLUMNS];
  __shared__ Kth kth[MOST_COLUMNS];
  if (!join(columns, kth, pass, known, counts)) return;
  clear(bins, columns.width);
  __syncthreads();
  columns.count(kth, pass, bins);
  __syncthreads();
  unsigned* const total = counts + (pass * (i64)gridDim.x + blockIdx.x) * 256 * columns.width;
  for (int bin = threadIdx.x; bin < 256 * columns.width; bin += blockDim.x)
    if (bins[bin] > 0) atomicAdd(&total[bin], bins[bin]);
}

template <typename T>
__device__ __forceinline__ void drop_rest(const Columns<T>& columns, u64* known, const unsigned* counts) {
  __shared__ Kth kth[MOST_COLUMNS];
  join(columns, kth, columns.passes, known, counts);
  columns.drop_rest(kth);
}

#define PIECES(T)                                                                                                     \
  const i64 lo = blockIdx.y * rows;                                                                                   \
  const Columns<T> columns{X, n, B, lo, smaller(n, lo + rows), k, width, passes};
#define COUNT_DIGITS(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) count_digits_##T(                                      \
      T *X, i64 n, i64 B, unsigned k, int width, int passes, int pass, i64 rows, u64 *known, unsigned *counts) {       \
    PIECES(T)                                                                                                         \
    count_digits(columns, pass, known, counts);                                                                       \
  }
// resources: count_digits registers <= 56, shared <= 8384
COUNT_DIGITS(float32)
COUNT_DIGITS(float64)

#define DROP_REST(T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1) drop_rest_##T(                                         \
      T *X, i64 n, i64 B, unsigned k, int width, int passes, i64 rows, u64 *known, const unsigned *counts) {           \
    PIECES(T)                                                                                                         \
    drop_rest(columns, known, counts);                                                                                \
  }
// resources: drop_rest registers <= 48, shared <= 192
DROP_REST(float32)
DROP_REST(float64)
