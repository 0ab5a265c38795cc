// NCCL tells nobody that a rank of the other process is gone, may take a while to take a group on,
// and takes one at a time: operations wait here for their turn, and calls only look how far it is.
#include "kernels/comm/nccl_fabric.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"
#include "kernels/comm/nccl_api.h"
#include "kernels/device/buffer.h"
#include "kernels/device/device.h"
#include "kernels/device/status.h"
#include "kernels/device/stream.h"

namespace oscarkv::comm {
namespace {

using device::DeviceBuffer;
using device::DeviceScope;
using device::Event;
using device::PinnedBuffer;
using device::Stream;

class NcclComm final : public PeerComm {
 public:
  static absl::StatusOr<std::unique_ptr<PeerComm>> Open(const NcclApi& api,
                                                        const NcclOptions& options,
                                                        const PairId& pair, int rank,
                                                        uint64_t epoch) {
    const DeviceScope scope(options.device);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    OSCARKV_ASSIGN_OR_RETURN(Stream stream, Stream::Create());
    OSCARKV_ASSIGN_OR_RETURN(DeviceBuffer epochs, DeviceBuffer::Allocate(2 * sizeof(uint64_t)));
    OSCARKV_ASSIGN_OR_RETURN(PinnedBuffer heard, PinnedBuffer::Allocate(sizeof(uint64_t)));
    OSCARKV_RETURN_IF_ERROR(epochs.CopyFrom(std::as_bytes(std::span(&epoch, 1))));
    std::unique_ptr<NcclComm> peer(new NcclComm(api, options.device, rank, epoch, std::move(stream),
                                                std::move(epochs), std::move(heard)));
    OSCARKV_RETURN_IF_ERROR(peer->Init(pair, options.processors_max));
    return peer;
  }
  ~NcclComm() override {
    Abort(absl::CancelledError("closed"));
    if (aborter_.joinable()) aborter_.join();
  }

 protected:
  absl::StatusOr<bool> DoReady() override {
    const DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    OSCARKV_RETURN_IF_ERROR(Advance());
    if (taking_) return false;
    if (!greeted_) {
      greeted_ = true;
      return Greet();
    }
    OSCARKV_ASSIGN_OR_RETURN(const bool heard, Passed(0));
    if (!heard) return false;
    return CheckEpoch();
  }

  absl::Status DoStart(uint64_t operation, Way way, std::span<const Block> blocks) override {
    const DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    // The greeting was the first.
    if (operation + 1 != first_ + operations_.size())
      return absl::InternalError("NCCL: operations out of order");
    operations_.push_back({.way = way, .blocks = {blocks.begin(), blocks.end()}});
    return Advance();
  }

  // Of a send: the bytes have left this device. Over sockets NCCL may have them still: an end that
  // comes at once can fail the other rank's operation, so a sender lets the other one say first
  // that it has all, where that matters.
  absl::StatusOr<bool> DoDone(uint64_t operation) override {
    const DeviceScope scope(device_);
    OSCARKV_RETURN_IF_ERROR(scope.status());
    OSCARKV_RETURN_IF_ERROR(Advance());
    return Passed(operation + 1);
  }

  // NCCL's own abort may wait for the device, on which another communicator may wait for its peer:
  // it must not hold up whoever drives both.
  void DoAbort() override {
    aborter_ = std::thread([this] {
      const DeviceScope scope(device_);
      if (comm_ != nullptr) api_.comm_abort(comm_);
      stream_.Synchronize().IgnoreError();  // it ends, however it does
      closed_.store(true, std::memory_order_release);
    });
  }
  bool DoClosed() override { return closed_.load(std::memory_order_acquire); }

 private:
  struct Operation {
    std::optional<Way> way = std::nullopt;  // none: the greeting
    std::vector<Block> blocks = {};
    std::optional<Event> passed = std::nullopt;  // once NCCL has taken it
  };

  NcclComm(const NcclApi& api, int device, int rank, uint64_t epoch, Stream stream,
           DeviceBuffer epochs, PinnedBuffer heard)
      : PeerComm(epoch),
        api_(api),
        device_(device),
        other_(1 - rank),
        stream_(std::move(stream)),
        epochs_(std::move(epochs)),
        heard_(std::move(heard)) {}

  absl::Status Init(const PairId& pair, int processors_max) {
    ncclUniqueId id;
    static_assert(sizeof(id.internal) == kPairIdBytes);
    std::memcpy(id.internal, pair.data(), kPairIdBytes);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.minCTAs = 1;
    config.maxCTAs = processors_max;
    config.splitShare = 0;
    taking_ = true;
    return api_.ToStatus(api_.comm_init_rank_config(&comm_, 2, id, 1 - other_, &config), comm_,
                         "opening a communicator");
  }

  // Both epochs cross, so that ranks of different ones never go on; it makes NCCL connect, too.
  absl::StatusOr<bool> Greet() {
    operations_.push_back({});
    OSCARKV_RETURN_IF_ERROR(Advance());
    return false;
  }
  absl::StatusOr<bool> CheckEpoch() {
    uint64_t found = 0;
    OSCARKV_RETURN_IF_ERROR(
        device::ToStatus(cudaMemcpyAsync(heard_.bytes().data(), epochs_.data() + sizeof(found),
                                         sizeof(found), cudaMemcpyDeviceToHost, stream_.get()),
                         "copying an epoch"));
    OSCARKV_RETURN_IF_ERROR(stream_.Synchronize());  // nothing else is on it
    std::memcpy(&found, heard_.bytes().data(), sizeof(found));
    if (found == epoch()) return true;
    return absl::AbortedError(
        absl::StrCat("this rank is of epoch ", epoch(), ", the other one of ", found));
  }

  // How far NCCL is with what was given to it, and the next operation if it is ready for that.
  absl::Status Advance() {
    ncclResult_t state = ncclSuccess;
    OSCARKV_RETURN_IF_ERROR(
        api_.ToStatus(api_.comm_get_async_error(comm_, &state), comm_, "asking for its state"));
    OSCARKV_RETURN_IF_ERROR(api_.ToStatus(state, comm_, "moving bytes"));
    if (state == ncclInProgress) return absl::OkStatus();
    if (taking_) OSCARKV_RETURN_IF_ERROR(Taken());
    while (!taking_ && given_ < first_ + operations_.size()) {
      OSCARKV_ASSIGN_OR_RETURN(taking_, Give(operations_[given_ - first_]));
      ++given_;
      if (!taking_) OSCARKV_RETURN_IF_ERROR(Taken());
    }
    return absl::OkStatus();
  }

  // NCCL has taken what it was given last.
  absl::Status Taken() {
    taking_ = false;
    if (given_ == 0) return absl::OkStatus();  // the communicator itself
    OSCARKV_ASSIGN_OR_RETURN(Event passed, Event::Create());
    OSCARKV_RETURN_IF_ERROR(passed.Record(stream_.get()));
    operations_[given_ - 1 - first_].passed = std::move(passed);
    return absl::OkStatus();
  }

  // Whether NCCL is still taking it when it returns.
  absl::StatusOr<bool> Give(const Operation& operation) {
    OSCARKV_RETURN_IF_ERROR(api_.ToStatus(api_.group_start(), comm_, "starting a group"));
    const absl::Status added = AddTo(operation);
    const ncclResult_t ended = api_.group_end();  // also where something was not added
    OSCARKV_RETURN_IF_ERROR(added);
    OSCARKV_RETURN_IF_ERROR(api_.ToStatus(ended, comm_, "ending a group"));
    return ended == ncclInProgress;
  }
  absl::Status AddTo(const Operation& operation) {
    if (!operation.way.has_value()) {
      OSCARKV_RETURN_IF_ERROR(Send({epochs_.data(), sizeof(uint64_t)}));
      return Receive({epochs_.data() + sizeof(uint64_t), sizeof(uint64_t)});
    }
    for (const Block& block : operation.blocks)
      OSCARKV_RETURN_IF_ERROR(*operation.way == Way::kSend ? Send(block) : Receive(block));
    return absl::OkStatus();
  }
  absl::Status Send(const Block& block) {
    return api_.ToStatus(
        api_.send(block.data, block.bytes, ncclUint8, other_, comm_, stream_.get()), comm_,
        "sending");
  }
  absl::Status Receive(const Block& block) {
    return api_.ToStatus(
        api_.recv(block.data, block.bytes, ncclUint8, other_, comm_, stream_.get()), comm_,
        "receiving");
  }

  absl::StatusOr<bool> Passed(uint64_t number) {
    const std::optional<Event>& passed = operations_[number - first_].passed;
    if (!passed.has_value()) return false;
    OSCARKV_ASSIGN_OR_RETURN(const bool done, passed->Done());
    if (!done) return false;
    while (first_ <= number) {
      operations_.pop_front();
      ++first_;
    }
    return true;
  }

  const NcclApi& api_;
  const int device_;
  const int other_;
  const Stream stream_;
  const DeviceBuffer epochs_;  // ours, the other's
  const PinnedBuffer heard_;
  ncclComm_t comm_ = nullptr;
  bool greeted_ = false;
  bool taking_ = false;  // NCCL has not answered yet to what it was given last
  uint64_t given_ = 0;   // operations so far, the greeting first
  uint64_t first_ = 0;   // number of the first of operations_
  std::deque<Operation> operations_;
  std::thread aborter_;
  std::atomic<bool> closed_ = false;  // release/acquire: nothing touches blocks any more
};

class NcclFabric final : public PeerFabric {
 public:
  NcclFabric(const NcclApi& api, const NcclOptions& options) : api_(api), options_(options) {}

  uint32_t version() const override { return static_cast<uint32_t>(api_.version); }
  absl::StatusOr<PairId> NewPair() override {
    ncclUniqueId id;
    OSCARKV_RETURN_IF_ERROR(
        api_.ToStatus(api_.get_unique_id(&id), nullptr, "making the id of a pair"));
    PairId pair;
    std::memcpy(pair.data(), id.internal, kPairIdBytes);
    return pair;
  }
  absl::StatusOr<std::unique_ptr<PeerComm>> Open(const PairId& pair, int rank,
                                                 uint64_t epoch) override {
    if (rank != 0 && rank != 1)
      return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " of two"));
    return NcclComm::Open(api_, options_, pair, rank, epoch);
  }

 private:
  const NcclApi api_;
  const NcclOptions options_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PeerFabric>> MakeNcclFabric(const NcclOptions& options) {
  OSCARKV_RETURN_IF_ERROR(device::CheckDevice(options.device));
  OSCARKV_ASSIGN_OR_RETURN(const NcclApi api, NcclApi::Load(options.library));
  return std::make_unique<NcclFabric>(api, options);
}

}  // namespace oscarkv::comm
