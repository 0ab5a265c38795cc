// A sink around another, to which all goes but what a class derived from it says.
#ifndef OSCARKV_CLIENT_CPP_SINK_AROUND_H_
#define OSCARKV_CLIENT_CPP_SINK_AROUND_H_

#include <cstdint>
#include <span>
#include <vector>

#include "client/cpp/stored_pages.h"

namespace oscarkv::client {

// Borrows it.
class SinkAround : public PageSink {
 public:
  explicit SinkAround(PageSink& sink) : sink_(sink) {}

  uint64_t pages() const override { return sink_.pages(); }
  std::vector<BlockRange> LayerGroups(BlockRange layers) const override {
    return sink_.LayerGroups(layers);
  }
  absl::Status Begin(BlockRange layers, BlockRange heads) override {
    return sink_.Begin(layers, heads);
  }
  absl::StatusOr<MutableByteView> Room(uint32_t page, Encoding encoding, BlockRange layers,
                                       uint64_t bytes) override {
    return sink_.Room(page, encoding, layers, bytes);
  }
  void Filled(uint64_t bytes) override { sink_.Filled(bytes); }
  absl::Status Take(std::span<const uint32_t> block_crc32c) override {
    return sink_.Take(block_crc32c);
  }
  absl::Status TakeFrom(uint32_t page, Encoding encoding, BlockRange layers, ByteView bytes,
                        std::span<const uint32_t> block_crc32c) override {
    return sink_.TakeFrom(page, encoding, layers, bytes, block_crc32c);
  }
  DevicePages* device_pages() override { return sink_.device_pages(); }
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override {
    return sink_.EndLayers(layers, pages);
  }
  absl::StatusOr<std::vector<absl::Status>> Finish() override { return sink_.Finish(); }
  void Abandon(const absl::Status& reason) override { sink_.Abandon(reason); }

 protected:
  PageSink& sink() { return sink_; }
  const PageSink& sink() const { return sink_; }

 private:
  PageSink& sink_;
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_SINK_AROUND_H_
