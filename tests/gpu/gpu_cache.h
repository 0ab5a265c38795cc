// An EngineCache mirrored in device memory, and batches of pages there.
#ifndef OSCARKV_TESTS_GPU_GPU_CACHE_H_
#define OSCARKV_TESTS_GPU_GPU_CACHE_H_

#include <cstdint>
#include <vector>

#include "kernels/base/bytes.h"
#include "kernels/codec/oscar/cuda_page_codec.h"
#include "kernels/device/buffer.h"
#include "tests/codec/engine_cache.h"
#include "tests/codec/page_testing.h"

namespace oscarkv::testing {

// Ends the test program with a message when CUDA refuses.
template <typename T>
T OrDie(absl::StatusOr<T> value);
void OrDie(const absl::Status& status);

// Device memory of `bytes` in which `pattern` stands again and again.
device::DeviceBuffer Repeated(ByteView pattern, size_t bytes);

// A copy of `count` pointers in device memory, one of them another.
device::DeviceBuffer WithPointer(const void* pointers, size_t count, size_t which, uintptr_t value);

// Device memory with the contents of `cache` when it was made.
class GpuCache {
 public:
  explicit GpuCache(EngineCache& cache);
  cuda::DeviceEngineView View() const { return view_; }
  // Copies the device's memory over that of `cache`, which has the same shape.
  void CopyTo(EngineCache& cache) const;

 private:
  std::vector<device::DeviceBuffer> layers_;
  device::DeviceBuffer k_base_;
  device::DeviceBuffer v_base_;
  cuda::DeviceEngineView view_;
};

// Pages, slots and checksums in device memory, and their status words, zero at first.
class GpuBatch {
 public:
  GpuBatch(std::vector<EncodedPage> pages, const std::vector<std::vector<int64_t>>& slots,
           BlockRange layers, BlockRange heads, Encoding encoding = Encoding::kPacked);
  const cuda::DeviceDecodeBatch& batch() const { return batch_; }
  std::vector<uint32_t> Status() const;  // [pages][layers.count][heads.count]

 private:
  std::vector<device::DeviceBuffer> pages_;
  device::DeviceBuffer page_bytes_;
  device::DeviceBuffer slots_;
  device::DeviceBuffer crcs_;
  device::DeviceBuffer status_;
  cuda::DeviceDecodeBatch batch_;
};

// Pages, or the same part of each, to be written in device memory, filled with a pattern first.
class GpuEncodeBatch {
 public:
  GpuEncodeBatch(const PageLayout& layout, const std::vector<std::vector<int64_t>>& slots);
  GpuEncodeBatch(const PageLayout& layout, const std::vector<std::vector<int64_t>>& slots,
                 BlockRange layers, BlockRange heads);
  const cuda::DeviceEncodeBatch& batch() const { return batch_; }
  std::vector<EncodedPage> Pages() const;
  std::vector<uint32_t> Status() const;
  cuda::DeviceEncodeCounts Counts() const;

 private:
  size_t page_bytes_each_;
  device::DeviceBuffer pages_;
  device::DeviceBuffer page_bytes_;
  device::DeviceBuffer slots_;
  device::DeviceBuffer crcs_;
  device::DeviceBuffer status_;
  device::DeviceBuffer counts_;
  cuda::DeviceEncodeBatch batch_;
};

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  OrDie(value.status());
  return *std::move(value);
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_GPU_GPU_CACHE_H_
