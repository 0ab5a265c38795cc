// Moves pages between two processes of one machine, by every path and beside other stores.
// tests/bench/transfer.py starts the servers and runs this:
//
//   transfer_bench measure --peer ours --endpoint E --page-bytes N ...   one JSON object a line
//   transfer_bench lookups --endpoint E ...                              the same, of look-ups
//   transfer_bench serve-bare | serve-raw --endpoint E                   the other ends of two
//   peers
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"

#include "CLI/CLI.hpp"
#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/lookups.h"
#include "tests/bench/transfer/timing.h"
#include "tests/bench/transfer/transfer_peer.h"

namespace oscarkv::bench {
namespace {

constexpr uint64_t kVerifyEvery = 32;  // of the calls, the bytes of one are compared

struct Plan {
  std::string peer;
  PeerOptions options;
  std::vector<uint32_t> connections = {1, 2};
  std::vector<uint32_t> batches = {1, 16};
  std::vector<std::string> works = {"get", "put"};
  double seconds = 0.5;
  uint64_t set_bytes = 192 << 20;
};

absl::StatusOr<std::unique_ptr<TransferPeer>> Connect(const std::string& peer,
                                                      const PeerOptions& options) {
  if (peer == "ours") return ConnectOurs(options);
  if (peer == "bare") return ConnectBareStream(options);
  if (peer == "raw") return ConnectRawSocket(options);
  if (peer == "redis") return ConnectRedis(options);
  return MakeMemcpyPeer(options);
}

// What one thread did.
struct Share {
  std::vector<double> us;  // of each call that went well
  double busy_s = 0.0;
  uint64_t failed = 0;
  uint64_t verified = 0;    // calls whose bytes were compared
  uint64_t mismatched = 0;  // and were others
  absl::Status first_failure;
};

// Calls, one after the other, for plan.seconds. Gets are of any pages, puts of this thread's own.
void RunGets(TransferPeer& peer, const Plan& plan, ByteView set, uint32_t batch, uint64_t seed,
             Share* share) {
  const uint64_t bytes = uint64_t{batch} * plan.options.page_bytes;
  const uint64_t places = set.size() / bytes;
  std::vector<std::byte> room(bytes);
  std::mt19937_64 random(seed);
  const Clock::time_point end = Clock::now() + Seconds(plan.seconds);
  for (uint64_t call = 0; call == 0 || Clock::now() < end; ++call) {
    const uint64_t place = random() % places;
    const Clock::time_point start = Clock::now();
    const absl::Status status = peer.Get(place * batch, room);
    const double us = MicrosSince(start);
    share->busy_s += us / 1e6;
    if (!status.ok()) {
      if (share->failed++ == 0) share->first_failure = status;
      continue;
    }
    share->us.push_back(us);
    if (call % kVerifyEvery != 0) continue;
    ++share->verified;
    if (std::memcmp(room.data(), set.data() + place * bytes, bytes) != 0) ++share->mismatched;
    std::memset(room.data(), 0, room.size());  // so that nothing is taken for what did not come
  }
}

void RunPuts(TransferPeer& peer, const Plan& plan, ByteView set, uint32_t batch, uint64_t thread,
             uint64_t threads, Share* share) {
  const uint64_t bytes = uint64_t{batch} * plan.options.page_bytes;
  const uint64_t places = set.size() / bytes / threads;
  std::vector<std::byte> back(bytes);
  const Clock::time_point end = Clock::now() + Seconds(plan.seconds);
  for (uint64_t call = 0; call == 0 || Clock::now() < end; ++call) {
    const uint64_t place = thread * places + call % places;
    peer.Remove(place * batch, batch).IgnoreError();  // the put says so if it did not work
    const Clock::time_point start = Clock::now();
    const absl::Status status = peer.Put(place * batch, set.subspan(place * bytes, bytes));
    const double us = MicrosSince(start);
    share->busy_s += us / 1e6;
    if (!status.ok()) {
      if (share->failed++ == 0) share->first_failure = status;
      continue;
    }
    share->us.push_back(us);
    if (call % kVerifyEvery != 0) continue;
    ++share->verified;
    if (!peer.Get(place * batch, back).ok() ||
        std::memcmp(back.data(), set.data() + place * bytes, bytes) != 0) {
      ++share->mismatched;
    }
  }
}

nlohmann::json ToJson(const Plan& plan, const std::string& work, uint32_t connections,
                      uint32_t batch, std::vector<Share>& shares) {
  std::vector<double> us;
  double bytes_per_s = 0.0;
  uint64_t failed = 0, verified = 0, mismatched = 0;
  std::string first_failure;
  for (Share& share : shares) {
    bytes_per_s += static_cast<double>(share.us.size()) * batch * plan.options.page_bytes /
                   std::max(share.busy_s, 1e-9);
    us.insert(us.end(), share.us.begin(), share.us.end());
    failed += share.failed;
    verified += share.verified;
    mismatched += share.mismatched;
    if (first_failure.empty() && !share.first_failure.ok())
      first_failure = share.first_failure.ToString();
  }
  nlohmann::json json = {{"work", work},
                         {"page_bytes", plan.options.page_bytes},
                         {"connections", connections},
                         {"batch", batch},
                         {"checksum", plan.options.checksum},
                         {"calls", us.size()},
                         {"failed", failed},
                         {"verified", verified},
                         {"mismatched", mismatched},
                         {"bytes_per_second", bytes_per_s}};
  AddQuantiles(&us, &json);
  if (!first_failure.empty()) json["first_failure"] = first_failure;
  return json;
}

absl::Status Measure(const Plan& plan) {
  const uint64_t page_bytes = plan.options.page_bytes;
  // A whole number of the largest batches.
  const uint64_t unit = page_bytes * *std::max_element(plan.batches.begin(), plan.batches.end());
  std::vector<std::byte> set(plan.set_bytes / unit * unit);
  std::mt19937_64 random(7);
  for (size_t at = 0; at < set.size(); at += 8) StoreLe(&set[at], random());
  const uint32_t most = *std::max_element(plan.connections.begin(), plan.connections.end());
  std::vector<std::unique_ptr<TransferPeer>> peers;
  for (uint32_t i = 0; i < most; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(auto peer, Connect(plan.peer, plan.options));
    // What has its pages to itself gets them all.
    if (i == 0 || plan.peer == "memcpy") {
      for (size_t at = 0; at < set.size(); at += unit) {
        peer->Remove(at / page_bytes, unit / page_bytes).IgnoreError();
        OSCARKV_RETURN_IF_ERROR(peer->Put(at / page_bytes, ByteView(set).subspan(at, unit)));
      }
    }
    peers.push_back(std::move(peer));
  }
  for (const std::string& work : plan.works) {
    for (const uint32_t connections : plan.connections) {
      for (const uint32_t batch : plan.batches) {
        std::vector<Share> shares(connections);
        std::vector<std::thread> threads;
        for (uint32_t i = 0; i < connections; ++i) {
          threads.emplace_back([&, i] {
            if (work == "get") {
              RunGets(*peers[i], plan, set, batch, i, &shares[i]);
            } else {
              RunPuts(*peers[i], plan, set, batch, i, connections, &shares[i]);
            }
          });
        }
        for (std::thread& thread : threads) thread.join();
        std::printf("%s\n", ToJson(plan, work, connections, batch, shares).dump().c_str());
        std::fflush(stdout);
      }
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  // As processes that move much have it, and oscarkvd: freed memory is kept.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  CLI::App app("Moves pages between two processes of one machine.");
  app.require_subcommand(1);
  Plan plan;
  LookupPlan lookups;
  std::string endpoint;
  CLI::App* measure = app.add_subcommand("measure");
  measure->add_option("--peer", plan.peer)
      ->required()
      ->check(CLI::IsMember({"ours", "bare", "raw", "redis", "memcpy"}));
  measure->add_option("--endpoint", plan.options.endpoint);
  measure->add_option("--page-bytes", plan.options.page_bytes)->required();
  std::string path = "grpc";
  measure->add_option("--path", path)->check(CLI::IsMember({"grpc", "shm"}));
  measure->add_flag("!--no-checksum", plan.options.checksum);
  measure->add_option("--connections", plan.connections)->delimiter(',');
  measure->add_option("--batches", plan.batches)->delimiter(',');
  measure->add_option("--works", plan.works)->delimiter(',');
  measure->add_option("--seconds", plan.seconds);
  measure->add_option("--set-bytes", plan.set_bytes);
  CLI::App* lookup = app.add_subcommand("lookups");
  lookup->add_option("--endpoint", lookups.endpoint)->required();
  lookup->add_option("--keys", lookups.keys);
  lookup->add_option("--clients", lookups.clients);
  lookup->add_option("--bulk", lookups.bulk, "Clients that fetch pages meanwhile.");
  lookup->add_option("--seconds", lookups.seconds);
  CLI::App* bare = app.add_subcommand("serve-bare");
  CLI::App* raw = app.add_subcommand("serve-raw");
  for (CLI::App* serve : {bare, raw}) {
    serve->add_option("--endpoint", endpoint)->required();
    serve->add_option("--set-bytes", plan.set_bytes);
  }
  CLI11_PARSE(app, argc, argv);
  plan.options.path = ParseDataPath(path).value_or(DataPath::kGrpc);
  absl::Status status;
  if (measure->parsed()) status = Measure(plan);
  if (lookup->parsed()) status = MeasureLookups(lookups);
  if (bare->parsed()) status = ServeBareStream(endpoint, plan.set_bytes);
  if (raw->parsed()) status = ServeRawSocket(endpoint, plan.set_bytes);
  if (status.ok()) return 0;
  std::fprintf(stderr, "transfer_bench: %s\n", status.ToString().c_str());
  return 1;
}

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) { return oscarkv::bench::Main(argc, argv); }
