// Version 5: all cores. Planes do not depend on each other, and a gather never writes where another thread
// does.
//
// Forward and backward of a thread's planes could follow each other while their data is in cache; a network
// does not allow it, because the loss lies between them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t kLanes = 16;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
inline void store(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

inline Floats even_of(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
inline Floats odd_of(Floats a, Floats b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
inline Floats first_half(Floats even, Floats odd) {
  return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Floats second_half(Floats even, Floats odd) {
  return __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Calls f(j) for blocks of kLanes that cover first, ..., end - 1; the last one may repeat what was done
// before. Returns where the rest begins: end, or first where not even one block fits.
template <class F>
int64_t in_blocks(int64_t first, int64_t end, F f) {
  if (end - first < kLanes) return first;
  int64_t j = first;
  for (; j + kLanes <= end; j += kLanes) f(j);
  if (j < end) f(end - kLanes);
  return end;
}

struct Plane {
  int64_t height, width, columns;

  // The maximum of one window, and its place.
  void window(const float* x, int64_t i, int64_t j, float* out, uint8_t* where) const {
    const int64_t top = std::max<int64_t>(2 * i - 1, 0), bottom = std::min(2 * i + 2, height);
    const int64_t left = std::max<int64_t>(2 * j - 1, 0), right = std::min(2 * j + 2, width);
    int64_t best = top * width + left;
    for (int64_t h = top; h < bottom; ++h)
      for (int64_t w = left; w < right; ++w)
        if (x[h * width + w] > x[best]) best = h * width + w;
    out[i * columns + j] = x[best];
    where[i * columns + j] = 3 * (best / width - (2 * i - 1)) + best % width - (2 * j - 1);
  }

  // 16 windows, none of them at the left or right border.
  void windows(const float* x, int64_t i, int64_t j, float* out, uint8_t* where) const {
    const int64_t top = std::max<int64_t>(2 * i - 1, 0), bottom = std::min(2 * i + 2, height);
    Floats best = {};
    Ints at = {};
    for (int64_t h = top; h < bottom; ++h) {
      const int32_t tap = 3 * static_cast<int32_t>(h - (2 * i - 1));
      const float* p = x + h * width + 2 * j;
      const Floats a = load<Floats>(p), b = load<Floats>(p + kLanes);
      const Floats left = even_of(load<Floats>(p - 1), load<Floats>(p - 1 + kLanes));
      const Floats middle = even_of(a, b), right = odd_of(a, b);
      const Ints none = {};
      const Ints wins = h == top ? ~none : Ints(left > best);
      at = wins ? none + tap : at;
      best = wins ? left : best;
      at = middle > best ? none + (tap + 1) : at;
      best = middle > best ? middle : best;
      at = right > best ? none + (tap + 2) : at;
      best = right > best ? right : best;
    }
    store(out + i * columns + j, best);
    store(where + i * columns + j, __builtin_convertvector(at, Bytes));
  }

  void forward(const float* x, float* out, uint8_t* where) const {
    for (int64_t i = 0; 2 * i < height; ++i) {
      window(x, i, 0, out, where);
      int64_t j = in_blocks(1, width / 2, [&](int64_t j) { windows(x, i, j, out, where); });
      for (; j < columns; ++j) window(x, i, j, out, where);
    }
  }

  // The gradient of one element: of the windows whose maximum it was.
  float element(const float* grad_out, const uint8_t* where, int64_t h, int64_t w) const {
    float sum = 0;
    for (int64_t i = h / 2; i <= (h + 1) / 2 && 2 * i < height; ++i)
      for (int64_t j = w / 2; j <= (w + 1) / 2 && j < columns; ++j)
        if (where[i * columns + j] == 3 * (h - (2 * i - 1)) + w - (2 * j - 1))
          sum += grad_out[i * columns + j];
    return sum;
  }

  // Those of the 32 elements from column 2 j.
  void elements(const float* grad_out, const uint8_t* where, int64_t h, int64_t j, float* grad) const {
    Floats even = {}, odd = {};
    const Floats none = {};
    for (int64_t i = h / 2; i <= (h + 1) / 2 && 2 * i < height; ++i) {
      const int32_t tap = 3 * static_cast<int32_t>(h - (2 * i - 1));
      const int64_t o = i * columns + j;
      const Ints here = __builtin_convertvector(load<Bytes>(where + o), Ints);
      const Ints next = __builtin_convertvector(load<Bytes>(where + o + 1), Ints);
      const Floats g = load<Floats>(grad_out + o), g_next = load<Floats>(grad_out + o + 1);
      odd += next == tap ? g_next : none;
      even += here == tap + 1 ? g : none;
      odd += here == tap + 2 ? g : none;
    }
    store(grad + h * width + 2 * j, first_half(even, odd));
    store(grad + h * width + 2 * j + kLanes, second_half(even, odd));
  }

  void backward(const float* grad_out, const uint8_t* where, float* grad) const {
    const int64_t with_next = std::min(columns - 1, width / 2);
    for (int64_t h = 0; h < height; ++h) {
      const int64_t j = in_blocks(0, with_next, [&](int64_t j) { elements(grad_out, where, h, j, grad); });
      for (int64_t w = 2 * j; w < width; ++w) grad[h * width + w] = element(grad_out, where, h, w);
    }
  }
};

}  // namespace

extern "C" void max_pool(const float* x, const float* grad_out, int64_t planes, int64_t height, int64_t width,
                         float* out, float* grad, uint8_t* where) {
  const int64_t rows = (height + 1) / 2, columns = (width + 1) / 2,
                cores = std::thread::hardware_concurrency();
  const int64_t threads = std::max<int64_t>(1, std::min(cores, planes));
  const Plane plane{height, width, columns};
  auto in_parallel = [&](auto one_plane) {
    auto work = [&](int64_t t) {
      for (int64_t p = planes * t / threads; p < planes * (t + 1) / threads; ++p) one_plane(p);
    };
    std::vector<std::thread> others;
    for (int64_t t = 1; t < threads; ++t) others.emplace_back(work, t);
    work(0);
    for (std::thread& other : others) other.join();
  };
  in_parallel([&](int64_t p) {
    plane.forward(x + p * height * width, out + p * rows * columns, where + p * rows * columns);
  });
  in_parallel([&](int64_t p) {
    plane.backward(grad_out + p * rows * columns, where + p * rows * columns, grad + p * height * width);
  });
}
