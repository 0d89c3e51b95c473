// Smoothed total variation of images: gradient, accelerated steps, products with the Hessian and with the derivative in
// weight and smoothing; see `contract`.
//
// A warp goes down a strip of columns, a lane each. Of a pixel it needs the flux (w phi' of the difference to the right
// and of the one down; for the Hessian w phi'' times those of a vector) and that of the pixels on the left and above:
// the former comes from the next lane by a shuffle, the latter was its own one row before. So each flux, whose root and
// division are most of the work in double, is computed once (but for the column before a strip and the row above it: 1 in
// 31, and 1 for `rows`, which are few only where there are too few of them for all warps), no block shares memory or
// waits, and an image is read from device memory once; neighbours on the right and the edges of strips are in L1. A tile in shared memory would store and load each pixel and
// both its fluxes, nine accesses where there are three here. A step of the accelerated method writes to another pair of
// images, since neighbours still look at the old one.
//
// Steps stop on the device. A launch first adds up what the blocks of the launch before left of the norm, each block
// all of it in the same order, and does nothing if that is enough: no second launch, no wait, and the images of the
// last step stay as they are until the host looks. Small images are one block's, which takes many steps in a launch.
//
// Roofline on an H100 (3.35 TB/s, 132 SMs at 1.755 GHz), from the counts alone and never measured; per pixel, s bytes
// each, isotropic:
//   tv_gradient, tv_hvp: 3 s bytes (x, y or v, out), about 45 issue slots and one rsqrt (in double about 45 fp64
//     operations): bound by memory, 4 us for 1024 x 1024 in float32 and 8 us in float64, so by the launch.
//   tv_steps: 5 s bytes, of which up to 10^6 pixels stay in L2, and 8 kB of partial sums for each of up to 528 blocks:
//     bound by the launch, 3 to 5 us a step up to 512 x 512, then by L2, then by memory, 7 us (float64 14 us) for
//     1024 x 1024. One block: bound by its issue slots, 4 us (float64 8 us) for 128 x 128, 0.5 us for 32 x 32.
//   tv_jacobian_t: 2 s bytes, bound by memory; by latency where images are few and small.

typedef float float32;
typedef double float64;

constexpr int THREADS = 256, LOOP_THREADS = 1024;
constexpr int STRIP = 31;  // columns from one strip to the next: the first lane of all but the first has none of its own

struct Shape {
  i64 images;
  int height, width, strips, rows;  // `rows` are gone down at a time
  __device__ __forceinline__ i64 groups() const { return (height + rows - 1) / rows; }
  __device__ __forceinline__ i64 tasks() const { return images * groups() * strips; }
};

// What a warp does at a time, as one of its lanes sees it.
struct Task {
  i64 image;
  int j, top, bottom;
  bool inside, right, mine;  // has a pixel, one with a neighbour on the right, one to write
  __device__ __forceinline__ Task(const Shape& shape, i64 number) {
    const int lane = threadIdx.x % 32, strip = (int)(number % shape.strips);
    const i64 groups = shape.groups(), rest = number / shape.strips;
    image = rest / groups;
    top = (int)(rest % groups) * shape.rows;
    bottom = top + shape.rows < shape.height ? top + shape.rows : shape.height;
    j = strip * STRIP + lane;
    inside = j < shape.width;
    right = j + 1 < shape.width;
    mine = inside && (lane > 0 || strip == 0);
  }
  static __device__ __forceinline__ i64 first() { return blockIdx.x * (i64)(blockDim.x / 32) + threadIdx.x / 32; }
  static __device__ __forceinline__ i64 stride() { return gridDim.x * (i64)(blockDim.x / 32); }
};

// A pixel and the one on its right, which is the pixel itself in the last column.
template <typename T> struct Pair {
  T own, next;
  __device__ __forceinline__ Pair(const T* image, i64 at, const Task& task)
      : own(task.inside ? image[at] : T()), next(task.right ? image[at + 1] : own) {}
};

template <typename T> struct Penalty {
  const T* weights;
  int per_pixel;
  T weight, nu_sq;
  int isotropic;

  // 1 / sqrt of what phi has under the root, to the right and down
  __device__ __forceinline__ void roots(T dx, T dy, T& rx, T& ry) const {
    if (isotropic) {
      rx = ry = rsqrt(fma(dx, dx, fma(dy, dy, nu_sq)));
    } else {
      rx = rsqrt(fma(dx, dx, nu_sq));
      ry = rsqrt(fma(dy, dy, nu_sq));
    }
  }
  __device__ __forceinline__ T at(i64 pixel, bool inside) const {
    return !inside ? T() : per_pixel ? weights[pixel] : weight;
  }
};

// For each pixel (own, v_own) at `at`: take(at, pixel of v where CURVED, else of x, D' flux, w phi).
template <bool CURVED, typename T, typename Take>
__device__ __forceinline__ void sweep(const Shape& shape, const Penalty<T>& penalty, const T* x, const T* v,
                                      const Take& take) {
  const int width = shape.width;
  for (i64 number = Task::first(); number < shape.tasks(); number += Task::stride()) {
    const Task task(shape, number);
    int i = task.top > 0 ? task.top - 1 : 0;  // of the row above, only the flux down is used
    i64 at = (task.image * shape.height + i) * width + task.j;
    Pair<T> pixel(x, at, task), arrow(CURVED ? v : x, at, task);
    T above = 0;
    for (; i < task.bottom; ++i, at += width) {
      const bool below = i + 1 < shape.height;
      const i64 under = below ? at + width : at;
      const Pair<T> low(x, under, task), arrow_low(CURVED ? v : x, under, task);
      const T w = penalty.at((i64)i * width + task.j, task.inside);
      const T dx = pixel.next - pixel.own, dy = low.own - pixel.own;
      T rx, ry, px, py, value = 0;
      penalty.roots(dx, dy, rx, ry);
      if (CURVED) {
        const T ax = arrow.next - arrow.own, ay = arrow_low.own - arrow.own;
        if (penalty.isotropic) {
          const T nx = dx * rx, ny = dy * rx, along = nx * ax + ny * ay;
          px = w * rx * (ax - nx * along);
          py = w * rx * (ay - ny * along);
        } else {
          px = w * rx * (penalty.nu_sq * rx * rx * ax);
          py = w * ry * (penalty.nu_sq * ry * ry * ay);
        }
      } else {
        px = w * rx * dx;
        py = w * ry * dy;
        if (penalty.isotropic) {
          if (task.right || below) value = w * rx * fma(dx, dx, fma(dy, dy, penalty.nu_sq));
        } else {
          if (task.right) value = w * rx * fma(dx, dx, penalty.nu_sq);
          if (below) value += w * ry * fma(dy, dy, penalty.nu_sq);
        }
      }
      const T before = __shfl_up_sync(FULL, px, 1);
      if (task.mine && i >= task.top) {
        const T left = task.j > 0 ? before : T();
        take(at, CURVED ? arrow.own : pixel.own, left - px + (above - py), value);
      }
      above = py;
      pixel = low;
      arrow = arrow_low;
    }
  }
}

// Two sums over the block, to a column of `partial`.
__device__ __forceinline__ void leave(double first, double second, double* partial) {
  __shared__ double scratch[2][32];
  first = block_sum(first, scratch[0]);
  second = block_sum(second, scratch[1]);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = first;
    partial[gridDim.x + blockIdx.x] = second;
  }
}

#define SHAPE i64 images, int height, int width, int strips, int rows
#define THIS_SHAPE Shape{images, height, width, strips, rows}
#define PENALTY(T) const T *weights, int per_pixel, T weight, T nu_sq, int isotropic
#define THIS_PENALTY(T) Penalty<T>{weights, per_pixel, weight, nu_sq, isotropic}

// Value and squared norm of the gradient in `partial`.
#define TV_GRADIENT(T)                                                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                             \
      tv_gradient_##T(const T* x, SHAPE, PENALTY(T), const T* y, T* out, double* partial) {                           \
    double value = 0, norm_sq = 0;                                                                                    \
    sweep<false>(THIS_SHAPE, THIS_PENALTY(T), x, x, [&](i64 at, T own, T adjoint, T phi) {                             \
      const T e = own - y[at], g = e + adjoint;                                                                       \
      out[at] = g;                                                                                                    \
      value += 0.5 * (double)e * (double)e + (double)phi;                                                             \
      norm_sq += (double)g * (double)g;                                                                               \
    });                                                                                                               \
    leave(value, norm_sq, partial);                                                                                   \
  }
// resources: tv_gradient registers <= 64, shared <= 512
TV_GRADIENT(float32)
TV_GRADIENT(float64)

// <v, H v> in the first row of `partial`.
#define TV_HVP(T)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(THREADS, 4)                                                             \
      tv_hvp_##T(const T* x, SHAPE, PENALTY(T), const T* v, T* out, double* partial) {                                \
    double energy = 0;                                                                                                \
    sweep<true>(THIS_SHAPE, THIS_PENALTY(T), x, v, [&](i64 at, T own, T adjoint, T) {                                  \
      const T product = own + adjoint;                                                                                \
      out[at] = product;                                                                                              \
      energy += (double)own * (double)product;                                                                        \
    });                                                                                                               \
    leave(energy, 0, partial);                                                                                        \
  }
// resources: tv_hvp registers <= 64, shared <= 512
TV_HVP(float32)
TV_HVP(float64)

// Products of q with the derivatives in log w and log nu, of each pixel over all images; `shape` is that of one of them.
template <typename T>
__device__ __forceinline__ void jacobian_t(const Shape& shape, const Penalty<T>& penalty, const T* x, const T* q,
                                           i64 images, int by_pixel, T* pixels, double* partial) {
  double by_weight = 0, by_nu = 0;
  for (i64 number = Task::first(); number < shape.tasks(); number += Task::stride()) {
    const Task task(shape, number);
    for (int i = task.top; i < task.bottom; ++i) {
      const i64 pixel = (i64)i * shape.width + task.j;
      const i64 under = i + 1 < shape.height ? pixel + shape.width : pixel;
      const T w = penalty.at(pixel, task.inside);
      double along = 0;
      for (i64 b = 0; b < images; ++b) {
        const i64 start = b * shape.height * shape.width;
        const Pair<T> own(x, start + pixel, task), arrow(q, start + pixel, task);
        const T low = task.inside ? x[start + under] : T(), arrow_low = task.inside ? q[start + under] : T();
        const T dx = own.next - own.own, dy = low - own.own;
        T rx, ry;
        penalty.roots(dx, dy, rx, ry);
        const T across = w * rx * dx * (arrow.next - arrow.own), down = w * ry * dy * (arrow_low - arrow.own);
        if (task.mine) {
          along += (double)(across + down);
          by_nu -= (double)(penalty.nu_sq * rx * rx * across + penalty.nu_sq * ry * ry * down);
        }
      }
      by_weight += along;
      if (by_pixel && task.mine) pixels[pixel] = (T)along;
    }
  }
  leave(by_weight, by_nu, partial);
}

#define TV_JACOBIAN_T(T)                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 4) tv_jacobian_t_##T(                                           \
      const T* x, SHAPE, PENALTY(T), const T* q, i64 count, int by_pixel, T* pixels, double* partial) {               \
    jacobian_t(THIS_SHAPE, THIS_PENALTY(T), x, q, count, by_pixel, pixels, partial);                                   \
  }
// resources: tv_jacobian_t registers <= 64, shared <= 512
TV_JACOBIAN_T(float32)
TV_JACOBIAN_T(float64)

template <typename T> struct State {
  T *x, *z;
};

// Steps number `first` up to `last` unless the gradient of the one before was small enough, of which `blocks` blocks
// have left the squared norm in `before`; this one's goes to `after`, and is left as it was where no step is taken. A
// launch of several blocks takes one step. `found` gets the number of steps and, from a single block, the last norm.
template <typename T>
__device__ __forceinline__ void steps(const Shape& shape, const Penalty<T>& penalty, const T* y, T step, T momentum,
                                      double limit, State<T> old, State<T> next, i64 first, i64 last, int blocks,
                                      const double* before, double* after, double* found) {
  __shared__ double scratch[2][32];
  double norm_sq = 0;
  for (int b = threadIdx.x; b < blocks; b += blockDim.x) norm_sq += before[b];
  norm_sq = block_sum(norm_sq, scratch[0]);
  i64 taken = first;
  for (; taken < last && (taken == 0 || sqrt(norm_sq) > limit); ++taken) {
    norm_sq = 0;
    sweep<false>(shape, penalty, old.z, old.z, [&](i64 at, T own, T adjoint, T) {
      const T g = own - y[at] + adjoint, moved = fma(-step, g, own);
      next.z[at] = fma(momentum, moved - old.x[at], moved);
      next.x[at] = moved;
      norm_sq += (double)g * (double)g;
    });
    norm_sq = block_sum(norm_sq, scratch[(taken - first + 1) % 2]);  // who waits there has left the other half
    const State<T> other = old;
    old = next;
    next = other;
  }
  if (threadIdx.x == 0) {
    after[blockIdx.x] = taken > first ? norm_sq : before[blockIdx.x];
    if (blockIdx.x == 0) {
      if (taken > first) found[0] = (double)taken;
      found[1] = sqrt(norm_sq);
    }
  }
}

#define TV_STEPS(T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(LOOP_THREADS) tv_steps_##T(                                             \
      T* x, SHAPE, PENALTY(T), const T* y, T* z, T* x_next, T* z_next, T step, T momentum, double limit, i64 first,    \
      i64 last, int blocks, const double* before, double* after, double* found) {                                     \
    steps(THIS_SHAPE, THIS_PENALTY(T), y, step, momentum, limit, State<T>{x, z}, State<T>{x_next, z_next}, first, last, \
          blocks, before, after, found);                                                                              \
  }
// resources: tv_steps registers <= 64, shared <= 512
TV_STEPS(float32)
TV_STEPS(float64)
