// Pages between a worker's cache in host memory and the store's form, on the CPU.
#ifndef OSCARKV_CLIENT_CPP_CPU_PAGES_H_
#define OSCARKV_CLIENT_CPP_CPU_PAGES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "client/cpp/stored_pages.h"
#include "kernels/codec/page_codec.h"

namespace oscarkv::client {

// Verifies and decodes each page as it comes: nothing of a page that fails is written. Borrows all
// that it is made of.
class CpuPageSink : public PageSink {
 public:
  CpuPageSink(const PageCodec& codec, const EngineView& cache, std::span<const int64_t> slots)
      : codec_(codec), cache_(cache), slots_(slots) {}

  uint64_t pages() const override { return slots_.size() / codec_.geometry().page_tokens; }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override { return {layers}; }
  absl::Status Begin(BlockRange layers, BlockRange heads) override;
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override;
  absl::Status Take(std::span<const uint32_t> block_crc32c) override;
  absl::Status TakeFrom(uint32_t page, Encoding encoding, BlockRange layers, ByteView bytes,
                        std::span<const uint32_t> block_crc32c) override;
  absl::Status EndLayers(BlockRange, uint32_t) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    return std::vector<absl::Status>();
  }
  void Abandon(const absl::Status&) override {}

 private:
  const PageCodec& codec_;
  const EngineView& cache_;
  const std::span<const int64_t> slots_;
  BlockRange heads_;
  // The page on its way.
  uint32_t page_ = 0;
  Encoding encoding_ = Encoding::kWide;
  BlockRange layers_;
  std::vector<std::byte> bytes_;
};

// Holds at most `bytes_max` of encoded pages at once, or one page. Borrows all that it is made of.
class CpuPageSource final : public PageSource {
 public:
  CpuPageSource(const PageCodec& codec, const EngineView& cache, std::span<const int64_t> slots,
                uint64_t bytes_max)
      : codec_(codec), cache_(cache), slots_(slots), bytes_max_(bytes_max) {}

  uint64_t pages() const override { return slots_.size() / codec_.geometry().page_tokens; }
  void UseRoom(MutableByteView room) override { room_ = room; }
  absl::StatusOr<std::span<const EncodedPage>> Encode(uint32_t first,
                                                      std::span<const Encoding> encodings,
                                                      EncodeReport* report) override;

 private:
  const PageCodec& codec_;
  const EngineView& cache_;
  const std::span<const int64_t> slots_;
  const uint64_t bytes_max_;
  MutableByteView room_;
  std::vector<uint32_t> block_crc32c_;
  std::vector<EncodedPage> encoded_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_CPU_PAGES_H_
