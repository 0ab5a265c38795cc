#include "tests/bench/transfer/lookups.h"

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

#include "kernels/base/bytes.h"
#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/timing.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

constexpr uint32_t kSmallPageBytes = 64 << 10;
constexpr uint32_t kBulkPageBytes = 1 << 20;
constexpr uint32_t kBulkBatch = 16;

absl::StatusOr<std::unique_ptr<LookupPeer>> Filled(const LookupPlan& plan) {
  OSCARKV_ASSIGN_OR_RETURN(
      auto peer, ConnectForLookups({.endpoint = plan.endpoint, .page_bytes = kSmallPageBytes}));
  const std::vector<std::byte> page(uint64_t{plan.keys} * kSmallPageBytes, std::byte{1});
  OSCARKV_RETURN_IF_ERROR(peer->Remove(0, 1));
  OSCARKV_RETURN_IF_ERROR(peer->Put(0, page));
  return peer;
}

}  // namespace

absl::Status MeasureLookups(const LookupPlan& plan) {
  std::vector<std::unique_ptr<LookupPeer>> clients;
  for (uint32_t i = 0; i < plan.clients; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(auto client, Filled(plan));
    clients.push_back(std::move(client));
  }
  std::vector<std::unique_ptr<TransferPeer>> bulk;
  for (uint32_t i = 0; i < plan.bulk; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(
        auto peer, ConnectOurs({.endpoint = plan.endpoint, .page_bytes = kBulkPageBytes}));
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
        const absl::Status status = clients[i]->LookUp(plan.keys);
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
