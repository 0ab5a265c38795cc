// A sink and a source that stand around those of host memory, as a GPU's do: pages that a server's
// device holds, or a fabric brings, are copied from there to the sink; what the source has encoded
// is copied into the device's memory and goes from there.
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
#include "client/cpp/sink_around.h"
#include "client/cpp/stored_pages.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv::testing {

// A worker's device, and how it reaches a server's. Outlives what is made of it.
class WorkersDevice {
 public:
  virtual ~WorkersDevice() = default;
  // Memory of its own, for the object's life.
  virtual std::byte* Allocate(uint64_t bytes) = 0;
  // A server's memory, for the object's life. An error says why it cannot be reached.
  virtual absl::StatusOr<std::byte*> Open(const std::string& handle) = 0;
  // Done when it returns; either may be the host's.
  virtual void Copy(std::byte* to, ByteView from) = 0;
};

// In host memory, of servers whose device is a FakeDeviceMemory.
class FakeWorkersDevice final : public WorkersDevice {
 public:
  std::byte* Allocate(uint64_t bytes) override {
    memory_.push_back(std::vector<std::byte>(bytes));
    return memory_.back().data();
  }
  absl::StatusOr<std::byte*> Open(const std::string& handle) override {
    std::byte* const memory = FakeDeviceMemory::Open(handle);
    if (memory == nullptr) return absl::InvalidArgumentError("not a handle");
    return memory;
  }
  void Copy(std::byte* to, ByteView from) override { std::memcpy(to, from.data(), from.size()); }

 private:
  std::vector<std::vector<std::byte>> memory_;
};

class DeviceSinkAround final : public client::SinkAround, private client::DevicePages {
 public:
  // `fabric`: by which pages come into `shape`; null: by none.
  DeviceSinkAround(client::PageSink& sink, std::unique_ptr<WorkersDevice> device,
                   std::unique_ptr<comm::PeerFabric> fabric, const comm::SlotShape& shape)
      : SinkAround(sink), device_(std::move(device)) {
    if (fabric == nullptr) return;
    slots_ = device_->Allocate(shape.bytes());
    link_ = std::make_unique<client::PeerLink>(std::move(fabric), slots_, shape);
  }

  absl::StatusOr<std::vector<absl::Status>> Finish() override {
    auto results = sink().Finish();
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
    sink().Abandon(reason);
  }
  client::DevicePages* device_pages() override { return this; }

 private:
  absl::Status Open(const std::string& handle) override {
    if (handle == handle_) return absl::OkStatus();
    const auto opened = device_->Open(handle);
    if (!opened.ok()) return opened.status();
    shared_ = *opened;
    handle_ = handle;
    return absl::OkStatus();
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
    bytes_.resize(place.bytes);
    device_->Copy(bytes_.data(), {(received ? slots_ : shared_) + place.offset, place.bytes});
    return sink().TakeFrom(page, place.encoding, place.layers, bytes_, crcs);
  }

  const std::unique_ptr<WorkersDevice> device_;
  std::string handle_;
  std::byte* shared_ = nullptr;
  std::byte* slots_ = nullptr;
  std::unique_ptr<client::PeerLink> link_;  // goes before the device, whose memory it has
  std::vector<std::byte> bytes_;
  std::vector<std::tuple<uint32_t, uint32_t, std::unique_ptr<client::PagesHold>>> kept_;
};

class DeviceSourceAround final : public client::PageSource, private client::DeviceSource {
 public:
  // As the sink's; `bytes`: that lie in the device's memory at once, one page at least.
  DeviceSourceAround(client::PageSource& source, std::unique_ptr<WorkersDevice> device,
                     std::unique_ptr<comm::PeerFabric> fabric, uint64_t bytes)
      : source_(source), device_(std::move(device)), memory_(device_->Allocate(bytes), bytes) {
    if (fabric == nullptr) return;
    link_ = std::make_unique<client::PeerLink>(std::move(fabric), memory_.data(),
                                               comm::SlotShape{.slots = 1, .slot_bytes = bytes});
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
      uint32_t first, std::span<const Encoding> encodings, EncodeReport* report) override {
    source_.UseRoom({});
    auto encoded = source_.Encode(first, encodings, report);
    if (!encoded.ok()) return encoded;
    encoded_.clear();
    size_t used = 0;
    for (const client::EncodedPage& page : *encoded) {
      if (page.bytes.size() > memory_.size() - used) break;
      device_->Copy(memory_.data() + used, page.bytes);
      encoded_.push_back(
          {page.encoding, {memory_.data() + used, page.bytes.size()}, page.block_crc32c});
      used += page.bytes.size();
    }
    return std::span<const client::EncodedPage>(encoded_);
  }
  absl::StatusOr<std::span<const client::EncodedPage>> BringToHost() override {
    host_.resize(memory_.size());
    device_->Copy(host_.data(), memory_);
    for (client::EncodedPage& page : encoded_)
      page.bytes = {host_.data() + (page.bytes.data() - memory_.data()), page.bytes.size()};
    return std::span<const client::EncodedPage>(encoded_);
  }
  absl::Status OpenStaging(const std::string& handle) override {
    if (handle == handle_) return absl::OkStatus();
    const auto opened = device_->Open(handle);
    if (!opened.ok()) return opened.status();
    staging_ = *opened;
    handle_ = handle;
    return absl::OkStatus();
  }
  absl::Status Write(std::span<const Placed> pages) override {
    for (const Placed& placed : pages) device_->Copy(staging_ + placed.offset, placed.page);
    return absl::OkStatus();
  }
  client::PeerLink* sender() override { return link_.get(); }

  client::PageSource& source_;
  const std::unique_ptr<WorkersDevice> device_;
  const MutableByteView memory_;
  std::vector<std::byte> host_;
  std::unique_ptr<client::PeerLink> link_;  // goes before the device, whose memory it has
  std::string handle_;
  std::byte* staging_ = nullptr;
  std::vector<client::EncodedPage> encoded_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_CLIENT_DEVICE_ENDS_H_
