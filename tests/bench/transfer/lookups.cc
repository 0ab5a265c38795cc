#include "tests/bench/transfer/lookups.h"

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/bytes.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/moving.h"
#include "tests/bench/transfer/timing.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

constexpr uint32_t kSmallPageBytes = 64 << 10;
constexpr uint32_t kAnswerBytes = 2 << 10;  // about what 128 keys are answered with
constexpr uint32_t kBulkPageBytes = 1 << 20;
constexpr uint32_t kBulkBatch = 16;

// One client's small calls.
class Asker {
 public:
  static absl::StatusOr<Asker> Make(const LookupPlan& plan) {
    Asker asker;
    asker.keys_ = plan.keys;
    if (plan.peer != "ours") {
      OSCARKV_ASSIGN_OR_RETURN(asker.other_, Connect(plan.peer, {.endpoint = plan.endpoint,
                                                                 .page_bytes = kAnswerBytes}));
      return asker;
    }
    OSCARKV_ASSIGN_OR_RETURN(
        asker.ours_, ConnectForLookups({.endpoint = plan.endpoint, .page_bytes = kSmallPageBytes}));
    const std::vector<std::byte> page(uint64_t{plan.keys} * kSmallPageBytes, std::byte{1});
    OSCARKV_RETURN_IF_ERROR(asker.ours_->Remove(0, 1));
    OSCARKV_RETURN_IF_ERROR(asker.ours_->Put(0, page));
    return asker;
  }

  absl::Status Ask() {
    if (ours_ != nullptr) return ours_->LookUp(keys_);
    std::byte room[kAnswerBytes];
    return other_->Get(0, room);
  }

 private:
  std::unique_ptr<LookupPeer> ours_;
  std::unique_ptr<TransferPeer> other_;
  uint32_t keys_ = 0;
};

}  // namespace

absl::Status MeasureLookups(const LookupPlan& plan) {
  std::vector<Asker> clients;
  for (uint32_t i = 0; i < plan.clients; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(Asker client, Asker::Make(plan));
    clients.push_back(std::move(client));
  }
  std::vector<std::unique_ptr<TransferPeer>> bulk;
  for (uint32_t i = 0; i < plan.bulk; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(
        auto peer,
        Connect(plan.bulk_peer,
                {.endpoint = plan.bulk_endpoint.empty() ? plan.endpoint : plan.bulk_endpoint,
                 .page_bytes = kBulkPageBytes}));
    const std::vector<std::byte> pages(uint64_t{kBulkBatch} * kBulkPageBytes, std::byte{2});
    const uint64_t first = uint64_t{i} * kBulkBatch;
    OSCARKV_RETURN_IF_ERROR(peer->Remove(first, kBulkBatch));
    OSCARKV_RETURN_IF_ERROR(peer->Put(first, pages));
    bulk.push_back(std::move(peer));
  }
  // Relaxed: one call more or less does not matter, and threads are joined before sums are read.
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> bulk_bytes = 0;
  std::atomic<uint64_t> bulk_failed = 0;
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < plan.bulk; ++i) {
    threads.emplace_back([&, i] {
      std::vector<std::byte> room(uint64_t{kBulkBatch} * kBulkPageBytes);
      while (!stop.load(std::memory_order_relaxed)) {
        if (bulk[i]->Get(uint64_t{i} * kBulkBatch, room).ok()) {
          bulk_bytes.fetch_add(room.size(), std::memory_order_relaxed);
        } else {
          bulk_failed.fetch_add(1, std::memory_order_relaxed);
        }
      }
    });
  }
  std::vector<std::vector<double>> us(plan.clients);
  std::vector<uint64_t> failed(plan.clients);
  std::vector<std::thread> lookers;
  const Clock::time_point start = Clock::now();
  for (uint32_t i = 0; i < plan.clients; ++i) {
    lookers.emplace_back([&, i] {
      while (Clock::now() < start + Seconds(plan.seconds)) {
        const Clock::time_point begin = Clock::now();
        const absl::Status status = clients[i].Ask();
        if (status.ok()) {
          us[i].push_back(MicrosSince(begin));
        } else {
          ++failed[i];
        }
      }
    });
  }
  for (std::thread& thread : lookers) thread.join();
  const double seconds = MicrosSince(start) / 1e6;
  stop.store(true, std::memory_order_relaxed);
  for (std::thread& thread : threads) thread.join();
  std::vector<double> all;
  uint64_t failures = 0;
  for (uint32_t i = 0; i < plan.clients; ++i) {
    all.insert(all.end(), us[i].begin(), us[i].end());
    failures += failed[i];
  }
  nlohmann::json json = {
      {"peer", plan.peer},
      {"bulk_peer", plan.bulk_peer},
      {"keys", plan.keys},
      {"clients", plan.clients},
      {"bulk", plan.bulk},
      {"calls", all.size()},
      {"failed", failures + bulk_failed.load()},
      {"keys_per_second", static_cast<double>(all.size()) * plan.keys / seconds},
      {"bulk_bytes_per_second", static_cast<double>(bulk_bytes.load()) / seconds}};
  AddQuantiles(&all, &json);
  std::printf("%s\n", json.dump().c_str());
  return absl::OkStatus();
}

}  // namespace oscarkv::bench
