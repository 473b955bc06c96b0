// The cache of large output buffers; see output_cache.h for why it exists.
#include "cpu/runtime/output_cache.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace pyops::cpu {
namespace {

constexpr size_t kPage = size_t{4} << 10;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLargest = size_t{1} << 46;
constexpr int64_t kDefaultLimit = int64_t{512} << 20;

// Whole pages from a huge page's boundary on: the system can use huge ones for all but the end. Up to the
// next huge page an output of a megabyte would be twice as large as it has to be.
void* map_aligned(size_t bytes, bool huge_pages) {
  void* raw = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (start + kHugePage - 1) / kHugePage * kHugePage;
  if (aligned > start) munmap(raw, aligned - start);
  const size_t behind = start + kHugePage - aligned;
  void* data = reinterpret_cast<void*>(aligned);
  if (behind > 0) munmap(static_cast<char*>(data) + bytes, behind);
  if (huge_pages) madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

bool environment_is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

// Never destroyed: tensors may outlive static destruction.
OutputCache& OutputCache::instance() {
  static OutputCache* cache = new OutputCache;
  return *cache;
}

// Whoever forks holds the lock meanwhile: of another thread that held it there would be no copy in the new
// process to give it back.
OutputCache::OutputCache() : limit_(kDefaultLimit), huge_pages_(environment_is_set("THP_MEM_ALLOC_ENABLE")) {
  pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                 [] { instance().mutex_.unlock(); });
}

namespace {

const OutputCache& made_before_there_are_threads = OutputCache::instance();

}  // namespace

void* OutputCache::acquire(size_t bytes) {
  bytes = (bytes + kPage - 1) / kPage * kPage;
  std::lock_guard<std::mutex> lock(mutex_);
  idle_.reserve(idle_.size() + in_use_.size() + 1);  // release() must not throw for want of memory
  Block block;
  if (!take_idle(bytes, block)) {
    block = {map_aligned(bytes, huge_pages_), bytes};
    if (block.data == nullptr && idle_bytes_ > 0) {  // what lies idle may be what is wanting
      const int64_t limit = std::exchange(limit_, 0);
      trim();
      limit_ = limit;
      block.data = map_aligned(bytes, huge_pages_);
    }
    if (block.data == nullptr) return nullptr;
  }
  try {
    in_use_[block.data] = block.bytes;
  } catch (...) {
    munmap(block.data, block.bytes);
    throw;
  }
  in_use_bytes_ += block.bytes;
  peak_in_use_ = std::max(peak_in_use_, in_use_bytes_);
  return block.data;
}

// The smallest idle block that fits and wastes at most a quarter.
bool OutputCache::take_idle(size_t bytes, Block& block) {
  auto best = idle_.end();
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    const bool fits = it->bytes >= bytes && it->bytes <= bytes + bytes / 4;
    if (fits && (best == idle_.end() || it->bytes <= best->bytes)) best = it;
  }
  if (best == idle_.end()) return false;
  block = *best;
  idle_.erase(best);
  idle_bytes_ -= block.bytes;
  return true;
}

void OutputCache::release(void* data) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = in_use_.find(data);
  if (it == in_use_.end()) return;
  idle_.push_back({data, it->second});
  idle_bytes_ += it->second;
  in_use_bytes_ -= it->second;
  in_use_.erase(it);
  trim();
}

void OutputCache::trim() {
  while (idle_bytes_ > limit_) {
    const Block oldest = idle_.front();
    idle_.erase(idle_.begin());
    idle_bytes_ -= oldest.bytes;
    munmap(oldest.data, oldest.bytes);
  }
}

void OutputCache::set_limit(int64_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  limit_ = bytes;
  peak_in_use_ = in_use_bytes_;
  trim();
}

OutputCache::Stats OutputCache::stats() {
  std::lock_guard<std::mutex> lock(mutex_);
  return {limit_, idle_bytes_, in_use_bytes_, peak_in_use_};
}

namespace {

size_t element_bytes(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Bool:
      return 1;
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return 2;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    default:
      return 8;
  }
}

// Memory for a tensor, or null where torch should allocate: for small tensors, and for what no machine holds,
// so that torch's error says so.
void* cached_memory(const std::vector<int64_t>& shape, ScalarType type) {
  size_t bytes = element_bytes(type);
  bool overflows = false;
  for (int64_t size : shape) overflows |= __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes);
  OutputCache& cache = OutputCache::instance();
  if (overflows || bytes > kLargest || !cache.serves(bytes)) return nullptr;
  return cache.acquire(bytes);
}

Tensor wrap(void* data, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
            const Tensor& like, ScalarType type) {
  void (*const give_back)(void*) = [](void* data) { OutputCache::instance().release(data); };
  return torch::stable::from_blob(data, shape, strides, like.device(), type, give_back);
}

}  // namespace

Tensor new_output(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  void* const data = cached_memory(shape, type);
  if (data == nullptr) return new_tensor(like, shape, type);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
  return wrap(data, shape, strides, like, type);
}

Tensor new_output_like(const Tensor& like) {
  const std::vector<int64_t> shape = shape_of(like);
  void* const data = cached_memory(shape, like.scalar_type());
  if (data == nullptr) return new_tensor_like(like);
  const auto strides = like.strides();
  return wrap(data, shape, {strides.begin(), strides.end()}, like, like.scalar_type());
}

namespace {

// Sets the limit unless it is negative, and tells how things stand.
std::tuple<int64_t, int64_t, int64_t, int64_t> output_cache(int64_t limit) {
  OutputCache& cache = OutputCache::instance();
  if (limit >= 0) cache.set_limit(limit);
  const OutputCache::Stats s = cache.stats();
  return {s.limit, s.idle, s.in_use, s.peak_in_use};
}

}  // namespace
}  // namespace pyops::cpu

STABLE_TORCH_LIBRARY_IMPL(pyops, CompositeExplicitAutograd, m) {
  m.impl("output_cache", TORCH_BOX(&pyops::cpu::output_cache));
}
