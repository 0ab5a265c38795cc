// A worker's GPU in host memory: a sink and a source that have what a server's fake of a device
// holds (tests/support/fake_device_memory.h), or what a fabric brings. They stand around a sink and
// a source of host memory, which decode, encode, and take or give what comes and goes otherwise.
#ifndef OSCARKV_TESTS_CLIENT_DEVICE_ENDS_H_
#define OSCARKV_TESTS_CLIENT_DEVICE_ENDS_H_

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/cpp/device_source.h"
#include "client/cpp/peer_link.h"
#include "client/cpp/stored_pages.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {

class DeviceSinkAround final : public client::PageSink, private client::DevicePages {
 public:
  // `fabric`: by which pages come into `shape`; null: by none.
  DeviceSinkAround(client::PageSink& sink, std::unique_ptr<comm::PeerFabric> fabric,
                   const comm::SlotShape& shape)
      : sink_(sink), slots_(shape.bytes()) {
    if (fabric != nullptr)
      link_ = std::make_unique<client::PeerLink>(std::move(fabric), slots_.data(), shape);
  }

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
  absl::Status Take(std::span<const uint32_t> crcs) override { return sink_.Take(crcs); }
  absl::Status EndLayers(BlockRange layers, uint32_t pages) override {
    return sink_.EndLayers(layers, pages);
  }
  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    auto results = sink_.Finish();
    if (results.ok()) results->resize(pages());
    for (auto& [first, count, hold] : kept_) {
      const absl::Status ended = hold->End();
      for (uint32_t page = first; results.ok() && !ended.ok() && page < first + count; ++page)
        (*results)[page] = absl::AbortedError(ended.message());
    }
    kept_.clear();
    return results;
  }
  void Abandon(const absl::Status& reason) override {
    kept_.clear();
    sink_.Abandon(reason);
  }
  client::DevicePages* device_pages() override { return this; }

 private:
  absl::Status Open(const std::string& handle) override {
    shared_ = FakeDeviceMemory::Open(handle);
    return shared_ != nullptr ? absl::OkStatus() : absl::InvalidArgumentError("not a handle");
  }
  void Keep(uint32_t first, uint32_t count, std::unique_ptr<client::PagesHold> hold) override {
    kept_.emplace_back(first, count, std::move(hold));
  }
  client::PeerLink* receiver() override { return link_.get(); }
  bool receives() const override { return link_ != nullptr; }
  absl::StatusOr<uint64_t> ReceiveSlot() override { return 0; }  // what was there has been read
  absl::Status TakeAt(uint32_t page, const client::DevicePlace& place,
                      std::span<const uint32_t> crcs) override {
    const bool received = place.memory == client::DevicePlace::Memory::kReceived;
    const ByteView bytes((received ? slots_.data() : shared_) + place.offset, place.bytes);
    return sink_.TakeFrom(page, place.encoding, place.layers, bytes, crcs);
  }

  client::PageSink& sink_;
  std::byte* shared_ = nullptr;
  std::vector<std::byte> slots_;
  std::unique_ptr<client::PeerLink> link_;  // goes before its slots
  std::vector<std::tuple<uint32_t, uint32_t, std::unique_ptr<client::PagesHold>>> kept_;
};

class DeviceSourceAround final : public client::PageSource, private client::DeviceSource {
 public:
  // As the sink's; `bytes`: that lie in the device's memory at once, one page at least.
  DeviceSourceAround(client::PageSource& source, std::unique_ptr<comm::PeerFabric> fabric,
                     uint64_t bytes)
      : source_(source), memory_(bytes) {
    if (fabric != nullptr) {
      link_ = std::make_unique<client::PeerLink>(std::move(fabric), memory_.data(),
                                                 comm::SlotShape{.slots = 1, .slot_bytes = bytes});
    }
  }

  uint64_t pages() const override { return source_.pages(); }
  void UseRoom(MutableByteView room) override { source_.UseRoom(room); }
  absl::StatusOr<std::span<const client::EncodedPage>> Encode(uint32_t first,
                                                              std::span<const Encoding> encodings,
                                                              EncodeReport* report) override {
    return source_.Encode(first, encodings, report);
  }
  client::DeviceSource* device_source() override { return this; }

 private:
  absl::StatusOr<std::span<const client::EncodedPage>> EncodeOnDevice(
      uint32_t first, std::span<const Encoding> encodings, uint64_t,
      EncodeReport* report) override {
    source_.UseRoom({});
    auto encoded = source_.Encode(first, encodings, report);
    if (!encoded.ok()) return encoded;
    encoded_.clear();
    size_t used = 0;
    for (const client::EncodedPage& page : *encoded) {
      if (page.bytes.size() > memory_.size() - used) break;
      std::memcpy(memory_.data() + used, page.bytes.data(), page.bytes.size());
      encoded_.push_back(
          {page.encoding, ByteView(memory_).subspan(used, page.bytes.size()), page.block_crc32c});
      used += page.bytes.size();
    }
    return std::span<const client::EncodedPage>(encoded_);
  }
  absl::StatusOr<std::span<const client::EncodedPage>> BringToHost() override {
    host_ = memory_;
    for (client::EncodedPage& page : encoded_)
      page.bytes = {host_.data() + (page.bytes.data() - memory_.data()), page.bytes.size()};
    return std::span<const client::EncodedPage>(encoded_);
  }
  absl::Status OpenStaging(const std::string& handle) override {
    staging_ = FakeDeviceMemory::Open(handle);
    return staging_ != nullptr ? absl::OkStatus() : absl::InvalidArgumentError("not a handle");
  }
  absl::Status Write(std::span<const Placed> pages) override {
    for (const Placed& placed : pages)
      std::memcpy(staging_ + placed.offset, placed.page.data(), placed.page.size());
    return absl::OkStatus();
  }
  client::PeerLink* sender() override { return link_.get(); }

  client::PageSource& source_;
  std::vector<std::byte> memory_;
  std::vector<std::byte> host_;
  std::unique_ptr<client::PeerLink> link_;  // goes before its memory
  std::byte* staging_ = nullptr;
  std::vector<client::EncodedPage> encoded_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_DEVICE_ENDS_H_
