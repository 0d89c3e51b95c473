// Fields of experts: gradient, products with the Hessian and with the derivative in weights, smoothings and filters; see
// `contract`.
//
// A block takes a tile of the image: all pixels that see a region of rows x columns responses and no other one. The
// part of the image that those see lies in shared memory. For each filter the block computes the slopes of the region
// into shared memory, and adds to the pixels, which stay in registers, what comes back through the filter: the adjoint
// is a correlation with the filter turned round. So nothing of the size of an image is stored for a filter; slopes at
// the edge of a tile are computed by the neighbours too, 36% more for 32 x 64 responses and 7 x 7 taps. Taps are in
// shared memory as well, where all lanes read the same one at once; those of the next filter come in meanwhile.
//
// A thread has R responses, or pixels, of a column: each number that it reads of the image serves all of the R sums
// that see it, so that R products take two reads, one of them of the tap.
//
// For the derivative in the parameters a thread keeps the slopes of its responses, and goes through the image again:
// for each tap it sums R products, and the warp the sums of GROUP taps at once. Blocks go on from tile to tile, and
// leave their sums in rows of their own.
//
// Roofline on an H100 (132 SMs at 1.755 GHz), from the counts alone and never measured; 7 x 7 taps and 32 x 64
// responses, per pixel and filter; images themselves are 3 s bytes a pixel, once:
//   foe_gradient: 133 products, 50 reads of shared memory and 240 issue slots in all: bound by the last, 0.4 ms for 48
//     filters and 1024 x 1024 pixels; in float64 by the reads, twice as long each, 0.6 ms. foe_hvp: half as much again.
//   foe_jacobian_t: 98 products for the responses and 98 for the taps, 80 reads and shuffles, 370 issue slots: bound by
//     the last, 0.65 ms; in float64 by reads and shuffles, 0.9 ms.

typedef float float32;
typedef double float64;

constexpr int R = 8, GROUP = 4, THREADS = 256;

// Calls step(p, Count<P>()) for the rows p, p + 1, ..., p + P - 1 of a filter.
template <int P> struct Count {
  static constexpr int value = P;
};
template <typename Step> __device__ __forceinline__ void in_groups(int kh, const Step& step) {
  int p = 0;
#pragma unroll 1
  for (; p + GROUP <= kh; p += GROUP) step(p, Count<GROUP>());
  if (kh - p == 3) step(p, Count<3>());
  if (kh - p == 2) step(p, Count<2>());
  if (kh - p == 1) step(p, Count<1>());
}

// Rows of a column of an image, the first R - 1 of which are kept for the next P.
template <typename T> struct Window {
  const T* source;
  int pitch;
  T kept[R - 1];
  __device__ __forceinline__ Window(const T* source_, int pitch_) : source(source_), pitch(pitch_) {
#pragma unroll
    for (int r = 0; r < R - 1; ++r) kept[r] = source[r * pitch];
  }
  template <int P> __device__ __forceinline__ void move(int p, T (&rows)[R + P - 1]) {
#pragma unroll
    for (int r = 0; r < R - 1; ++r) rows[r] = kept[r];
#pragma unroll
    for (int r = R - 1; r < R + P - 1; ++r) rows[r] = source[(p + r) * pitch];
#pragma unroll
    for (int r = 0; r < R - 1; ++r) kept[r] = rows[P + r];
  }
};

// sum[r] += sum_pq taps[p, q] source[r + p, q]; with direction -1 taps go backwards from `taps`.
template <typename T>
__device__ __forceinline__ void correlate(const T* source, int pitch, const T* taps, int direction, int kh, int kw,
                                          T (&sum)[R]) {
#pragma unroll 1
  for (int q = 0; q < kw; ++q) {
    Window<T> window(source + q, pitch);
    in_groups(kh, [&](int first, auto count) {
      constexpr int P = decltype(count)::value;
      T rows[R + P - 1];
      window.template move<P>(first, rows);
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const T tap = taps[direction * ((first + p) * kw + q)];
#pragma unroll
        for (int r = 0; r < R; ++r) sum[r] = fma(tap, rows[p + r], sum[r]);
      }
    });
  }
}

// A part of an image, with zeros beyond the edges of the image.
template <typename T>
__device__ __forceinline__ void load(const T* image, int height, int width, int top, int left, int rows, int columns,
                                     T* tile) {
  for (int e = threadIdx.x; e < rows * columns; e += blockDim.x) {
    const int i = top + e / columns, j = left + e % columns;
    tile[e] = i >= 0 && i < height && j >= 0 && j < width ? image[(i64)i * width + j] : T();
  }
}

template <typename T> __device__ __forceinline__ void copy(const T* from, int size, T* to) {
  for (int e = threadIdx.x; e < size; e += blockDim.x) to[e] = from[e];
}

// Images, the region of responses of a tile, and filters; no nu is below `least`.
template <typename T> struct Experts {
  int height, width, rows, columns;
  const T* filters;
  int count, kh, kw;
  const double *weights, *nus;
  double least;
  __device__ __forceinline__ bool is_response(int i, int j) const {
    return i >= 0 && i <= height - kh && j >= 0 && j <= width - kw;
  }
  __device__ __forceinline__ T nu_sq(int k) const {
    const double nu = larger(nus[k], least);
    return (T)(nu * nu);
  }
};

// v is the data, or the vector that is multiplied. Two sums of a block go to a column of `partial`: 1/2 ||x - y||^2 and
// the values of the experts, and squared norm of the gradient; or <v, H v>, second.
template <bool HESSIAN, typename T>
__device__ __forceinline__ void tile(const Experts<T>& experts, const T* x, const T* v, T* out, double* partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int height = experts.height, width = experts.width, kh = experts.kh, kw = experts.kw, size = kh * kw;
  const int rows = experts.rows, columns = experts.columns, pitch = columns + kw - 1, part = (rows + kh - 1) * pitch;
  T* const slopes = (T*)memory;  // windows with pixels below the tile go on into the image, and come to nothing
  T* const image = slopes + rows * columns;
  T* const vector = image + part;
  T* const taps = HESSIAN ? vector + part : vector;
  const int high = rows - kh + 1, wide = columns - kw + 1;  // pixels
  const int across = (width + wide - 1) / wide, down = (height + high - 1) / high;
  const int top = blockIdx.x / across % down * high, left = blockIdx.x % across * wide;
  const i64 start = (i64)(blockIdx.x / across / down) * height * width;
  load(x + start, height, width, top - kh + 1, left - kw + 1, rows + kh - 1, pitch, image);
  if (HESSIAN) load(v + start, height, width, top - kh + 1, left - kw + 1, rows + kh - 1, pitch, vector);
  copy(experts.filters, size, taps);
  __syncthreads();
  const int first = threadIdx.x / columns * R, column = threadIdx.x % columns;
  double value = 0, product = 0;
  T sum[R] = {};
#pragma unroll 1
  for (int k = 0; k < experts.count; ++k) {
    const T* const own = taps + k % 2 * size;
    const T weight = (T)experts.weights[k], nu_sq = experts.nu_sq(k);
    T u[R] = {}, cv[R] = {};
    correlate(image + first * pitch + column, pitch, own, 1, kh, kw, u);
    if (HESSIAN) correlate(vector + first * pitch + column, pitch, own, 1, kh, kw, cv);
    double roots = 0;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const T s_sq = fma(u[r], u[r], nu_sq), inverse = rsqrt(s_sq);
      T slope = weight * inverse * (HESSIAN ? nu_sq * inverse * inverse * cv[r] : u[r]);
      if (!experts.is_response(top - kh + 1 + first + r, left - kw + 1 + column)) {
        slope = 0;
      } else if (first + r >= kh - 1 && column >= kw - 1) {  // else it is another tile's
        roots += (double)(s_sq * inverse);
      }
      slopes[(first + r) * columns + column] = slope;
    }
    if (!HESSIAN) value += experts.weights[k] * roots;
    if (k + 1 < experts.count) copy(experts.filters + (k + 1) * size, size, taps + (k + 1) % 2 * size);
    __syncthreads();
    if (first + kh <= rows && column + kw <= columns)
      correlate(slopes + first * columns + column, columns, own + size - 1, -1, kh, kw, sum);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int i = top + first + r, j = left + column;
    if (first + r + kh <= rows && column + kw <= columns && i < height && j < width) {
      const int here = (first + r + kh - 1) * pitch + column + kw - 1;
      const i64 at = start + (i64)i * width + j;
      const T e = HESSIAN ? vector[here] : image[here] - v[at], g = sum[r] + e;
      out[at] = g;
      if (!HESSIAN) value += 0.5 * (double)e * (double)e;
      product += (double)g * (double)(HESSIAN ? e : g);
    }
  }
  value = block_sum(value, (double*)memory);
  product = block_sum(product, (double*)memory + 32);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = value;
    partial[gridDim.x + blockIdx.x] = product;
  }
}

// Sums of this block for the filters blockIdx.y, + gridDim.y, ...: rows of `partial` (gridDim.x, filters, 2 + taps) for
// the log weight, the log smoothing and the taps of a filter, to which they are added. Tiles are regions of responses.
template <typename T>
__device__ __forceinline__ void sensitivities(const Experts<T>& experts, const T* x, const T* q, i64 tiles,
                                              double* partial) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int height = experts.height, width = experts.width, kh = experts.kh, kw = experts.kw, size = kh * kw;
  const int rows = experts.rows, columns = experts.columns, pitch = columns + kw - 1, part = (rows + kh - 1) * pitch;
  const int warps = blockDim.x / 32, lane = threadIdx.x % 32, slots = size + 2;
  double* const sums = (double*)memory;  // (warps, slots)
  T* const image = (T*)(sums + warps * slots);
  T* const vector = image + part;
  T* const taps = vector + part;
  const int across = (width - kw + columns) / columns, down = (height - kh + rows) / rows;
  const int first = threadIdx.x / columns * R, column = threadIdx.x % columns;
  for (i64 number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int top = (int)(number / across % down) * rows, left = (int)(number % across) * columns;
    const i64 start = number / across / down * height * width;
    load(x + start, height, width, top, left, rows + kh - 1, pitch, image);
    load(q + start, height, width, top, left, rows + kh - 1, pitch, vector);
    copy(experts.filters + blockIdx.y * size, size, taps);
    __syncthreads();
    int turn = 0;
#pragma unroll 1
    for (int k = blockIdx.y; k < experts.count; k += gridDim.y, turn ^= 1) {
      const T* const own = taps + turn * size;
      const T nu_sq = experts.nu_sq(k);
      T slope[R] = {}, curved[R] = {};
      correlate(image + first * pitch + column, pitch, own, 1, kh, kw, slope);  // u and cq so far
      correlate(vector + first * pitch + column, pitch, own, 1, kh, kw, curved);
      double sum[GROUP] = {};
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const T u = slope[r], cq = curved[r], inverse = rsqrt(fma(u, u, nu_sq));
        const bool is_response = experts.is_response(top + first + r, left + column);
        slope[r] = is_response ? u * inverse : T();
        curved[r] = is_response ? nu_sq * inverse * inverse * cq * inverse : T();
        sum[0] += (double)cq * (double)slope[r];
        sum[1] -= (double)curved[r] * (double)u;
      }
      double* const mine = sums + threadIdx.x / 32 * slots;
      const int index = warp_sums_index<GROUP>();
      warp_sums(sum);
      if (lane < GROUP && index < 2) mine[index] = sum[0];
#pragma unroll 1
      for (int c = 0; c < kw; ++c) {
        Window<T> pixels(image + first * pitch + column + c, pitch), others(vector + first * pitch + column + c, pitch);
        in_groups(kh, [&](int row, auto count) {
          constexpr int P = decltype(count)::value;
          T a[R + P - 1], b[R + P - 1];
          pixels.template move<P>(row, a);
          others.template move<P>(row, b);
          double dots[GROUP] = {};
#pragma unroll
          for (int p = 0; p < P; ++p) {
            T dot = 0;
#pragma unroll
            for (int r = 0; r < R; ++r) dot = fma(b[p + r], slope[r], fma(a[p + r], curved[r], dot));
            dots[p] = (double)dot;
          }
          warp_sums(dots);
          if (lane < GROUP && index < P) mine[2 + (row + index) * kw + c] = dots[0];
        });
      }
      const int next = k + gridDim.y;
      if (next < experts.count) copy(experts.filters + next * size, size, taps + (turn ^ 1) * size);
      __syncthreads();
      for (int s = threadIdx.x; s < slots; s += blockDim.x) {
        double total = 0;
        for (int w = 0; w < warps; ++w) total += sums[w * slots + s];
        partial[((i64)blockIdx.x * experts.count + k) * slots + s] += experts.weights[k] * total;
      }
      __syncthreads();
    }
  }
}

#define EXPERTS(T)                                                                                                    \
  int height, int width, int rows, int columns, const T *filters, int count, int kh, int kw, const double *weights,    \
      const double *nus, double least
#define THESE_EXPERTS(T) Experts<T>{height, width, rows, columns, filters, count, kh, kw, weights, nus, least}

#define FOE_GRADIENT(T)                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                              \
      foe_gradient_##T(const T* x, EXPERTS(T), const T* y, T* out, double* partial) {                                 \
    tile<false>(THESE_EXPERTS(T), x, y, out, partial);                                                                \
  }
// resources: foe_gradient registers <= 104, shared <= 0
FOE_GRADIENT(float32)
FOE_GRADIENT(float64)

#define FOE_HVP(T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                              \
      foe_hvp_##T(const T* x, EXPERTS(T), const T* v, T* out, double* partial) {                                      \
    tile<true>(THESE_EXPERTS(T), x, v, out, partial);                                                                 \
  }
// resources: foe_hvp registers <= 120, shared <= 0
FOE_HVP(float32)
FOE_HVP(float64)

#define FOE_JACOBIAN_T(T)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                              \
      foe_jacobian_t_##T(const T* x, EXPERTS(T), const T* q, i64 tiles, double* partial) {                            \
    sensitivities(THESE_EXPERTS(T), x, q, tiles, partial);                                                            \
  }
// resources: foe_jacobian_t registers <= 128, shared <= 0
FOE_JACOBIAN_T(float32)
FOE_JACOBIAN_T(float64)
