// What all calls share: the store, limits, the budget of bytes in flight, transform sets, codecs
// and counters.
#ifndef OSCARKV_SERVER_RPC_RPC_CONTEXT_H_
#define OSCARKV_SERVER_RPC_RPC_CONTEXT_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

#include "kernels/base/log.h"
#include "kernels/base/task_queue.h"
#include "kernels/codec/page_codec.h"
#include "server/core/page_store.h"
#include "server/peer/device_holds.h"
#include "server/peer/peer_hub.h"
#include "server/rpc/call_stats.h"
#include "server/rpc/fetch_meter.h"
#include "server/rpc/path_negotiation.h"
#include "server/rpc/saved_state.h"
#include "server/rpc/transfer_stats.h"
#include "server/rpc/transform_registry.h"

#include "oscarkv/v1/kv_cache.pb.h"
#include "oscarkv/v1/types.pb.h"

namespace oscarkv {

class DevicePushes;

struct RpcOptions {
  uint32_t max_items = 1024;
  uint32_t max_chunk_bytes = 1u << 20;
  uint64_t max_inflight_bytes = 64ull << 20;
  absl::Duration lease_max = absl::Minutes(10);
  uint64_t max_transform_set_bytes = 1ull << 30;
  int codec_threads = 2;  // decode for DECODED reads
  // That may be used: [Direction].
  std::array<std::vector<DataPath>, 2> paths = {std::vector<DataPath>{DataPath::kGrpc},
                                                std::vector<DataPath>{DataPath::kGrpc}};
};

// Bytes taken from the budget of bytes in flight and from that of a tenant; given back on
// destruction.
class InflightBytes {
 public:
  InflightBytes() = default;
  InflightBytes(Budget* total, Budget* of_tenant, uint64_t bytes)
      : total_(total), of_tenant_(of_tenant), bytes_(bytes) {}
  InflightBytes(InflightBytes&& other) noexcept { *this = std::move(other); }
  InflightBytes& operator=(InflightBytes&& other) noexcept {
    Release();
    total_ = std::exchange(other.total_, nullptr);
    of_tenant_ = other.of_tenant_;
    bytes_ = other.bytes_;
    return *this;
  }
  ~InflightBytes() { Release(); }
  void Release() {
    if (total_ == nullptr) return;
    total_->GiveBack(bytes_);
    of_tenant_->GiveBack(bytes_);
    total_ = nullptr;
  }
  explicit operator bool() const { return total_ != nullptr; }

 private:
  Budget* total_ = nullptr;
  Budget* of_tenant_ = nullptr;
  uint64_t bytes_ = 0;
};

// A stream that lives as long as its client wants; told when the server drains. Called on any
// thread.
class Drainable {
 public:
  virtual ~Drainable() = default;
  virtual void OnDrain() = 0;
};

// Thread-safe.
class RpcContext {
 public:
  // `catalog`, where not null, keeps namespaces and transform sets for the next start. All are
  // borrowed.
  RpcContext(const RpcOptions& options, PageStore& store, const Logger& logger,
             Catalog* catalog = nullptr);
  // Before serving: what the catalog has.
  void Restore();

  const RpcOptions& options() const { return options_; }
  PageStore& store() { return store_; }
  const Logger& logger() const { return logger_; }
  uint64_t epoch() const { return epoch_; }
  absl::Time start() const { return start_; }
  CallStats& calls() { return calls_; }
  TransferStats& transfers() { return transfers_; }
  PathNegotiation& paths() { return paths_; }
  TransformRegistry& transforms() { return transforms_; }
  SavedState& saved() { return saved_; }
  void FillLimits(v1::Limits* limits) const;
  // Null: no client reads a device's memory. Set before the first call, and kept by its owner until
  // after the last.
  DeviceHolds* device_holds() const { return device_holds_; }
  void set_device_holds(DeviceHolds* holds) { device_holds_ = holds; }
  // Likewise; null: nothing is sent from a device.
  PeerHub* peer_hub() const { return peer_hub_; }
  void set_peer_hub(PeerHub* hub) { peer_hub_ = hub; }
  // Likewise; null: nothing is pushed from clients' devices.
  DevicePushes* device_pushes() const { return device_pushes_; }
  void set_device_pushes(DevicePushes* pushes) { device_pushes_ = pushes; }

  // Opens the namespace with the settings that the request brings; the errors of
  // PageStore::OpenNamespace and NamespaceSpec, and kFailedPrecondition: another fingerprint than
  // expected, or the transform set is of another geometry.
  absl::StatusOr<const Namespace*> Open(const v1::OpenNamespaceRequest& request);

  // The namespace a call is addressed to. kAborted: another epoch. kFailedPrecondition: not a
  // fingerprint known here.
  absl::StatusOr<const Namespace*> Resolve(const v1::Scope& scope) const;

  // The namespace's codec. kFailedPrecondition: its transform set has not been uploaded, or is of
  // another geometry.
  absl::StatusOr<const PageCodec*> CodecFor(const Namespace& space);

  // Forgets a transform set; returns whether it was there. kFailedPrecondition: namespaces need it,
  // which are named. Waits for the device.
  absl::StatusOr<bool> DeleteTransformSet(const std::string& hash)
      ABSL_LOCKS_EXCLUDED(needs_mutex_);

  // Lets the store re-encode the namespace's WIDE pages, if its transform set is there. Takes long
  // the first time.
  void OfferCodec(const Namespace& space);

  // What the store is to know of a call with these hints, completed by those of the session that
  // they name. kInvalidArgument: a value that is none.
  absl::StatusOr<RequestTraits> TraitsOf(const v1::RequestHints& hints);
  // Told of every session's end, once the store knows it no more; the server sets it before it
  // serves.
  void set_on_session_end(absl::AnyInvocable<void(SessionId)> told) {
    on_session_end_ = std::move(told);
  }
  void SetSessionHints(SessionId session, const v1::RequestHints& hints);
  void ForgetSession(SessionId session);

  // Takes `bytes` from the budget of bytes in flight and from that of the namespace's tenant; empty
  // when one does not have them, and why not: kBusy, kQuota. What is larger than a budget goes when
  // nothing else is under way, or it could never move.
  InflightBytes TakeInflight(const Namespace& space, uint64_t bytes, ItemResult* why_not);
  uint64_t inflight_bytes() const { return inflight_.taken(); }

  // What fetching takes, from what it took lately.
  FetchMeter& fetches() { return fetches_; }

  // Runs work that takes long, off gRPC's threads.
  void RunAsync(absl::AnyInvocable<void() &&> task) { workers_.Add(std::move(task)); }

  // Draining: new calls are refused, streams are told.
  bool draining() const { return draining_.load(std::memory_order_acquire); }
  void StartDrain();
  void Register(Drainable* stream);
  void Unregister(Drainable* stream);
  // What Admin.Drain asks for, with the grace it asks for (zero: the configured one); the server
  // sets it.
  void set_drain_request(absl::AnyInvocable<void(absl::Duration)> request);
  void RequestDrain(absl::Duration grace);

  // Calls that were admitted and have not ended.
  uint64_t calls_in_flight() const { return calls_in_flight_.load(std::memory_order_relaxed); }
  void CallBegins() { calls_in_flight_.fetch_add(1, std::memory_order_relaxed); }
  void CallEnds();
  // After StartDrain: until the last of them has ended, or `deadline`.
  void WaitForCalls(absl::Time deadline);

 private:
  const RpcOptions options_;
  PageStore& store_;
  const Logger& logger_;
  DeviceHolds* device_holds_ = nullptr;
  PeerHub* peer_hub_ = nullptr;
  DevicePushes* device_pushes_ = nullptr;
  const uint64_t epoch_;
  const absl::Time start_;
  CallStats calls_;
  TransferStats transfers_;
  FetchMeter fetches_;
  PathNegotiation paths_;
  TransformRegistry transforms_;
  SavedState saved_;
  Budget inflight_;
  std::atomic<uint64_t> requests_ = 0;  // relaxed: numbers for requests that have none
  std::atomic<uint64_t> calls_in_flight_ = 0;
  std::atomic<bool> draining_ = false;  // release/acquire: a call that sees it is refused
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<const Namespace*, std::unique_ptr<PageCodec>> codecs_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<SessionId, v1::RequestHints> session_hints_ ABSL_GUARDED_BY(mutex_);
  // While a namespace is opened no set is deleted: before all others.
  absl::Mutex needs_mutex_;
  absl::AnyInvocable<void(SessionId)> on_session_end_;
  absl::Mutex calls_mutex_;  // notifies WaitForCalls; calls take it only while the server drains
  absl::Mutex streams_mutex_;
  absl::flat_hash_set<Drainable*> streams_ ABSL_GUARDED_BY(streams_mutex_);
  absl::AnyInvocable<void(absl::Duration)> drain_request_ ABSL_GUARDED_BY(streams_mutex_);
  TaskQueue workers_;  // last: its tasks use what is above
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_RPC_CONTEXT_H_
