// How long fetches take against what their look-ups said, under several loads: clients of their own
// in one process, closed loops over a server that runs beside. Prints JSON.
//
//   advice_bench ENDPOINT SECONDS memory|shm|disk
//
// `shm`: fetched by shared memory, the others by gRPC. `disk`: the sequences are more than the
// server's host memory is to hold, and lie on its disk.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/cpp/client.h"

namespace oscarkv::bench {
namespace {

using client::Client;
using client::Hit;

constexpr uint32_t kPagesMax = 128;
constexpr uint64_t kSequences = 8;
constexpr uint64_t kSequencesOnDisk = 32;
constexpr size_t kWarmUp = 30;  // fetches of each client that do not count
constexpr uint64_t kFetchesMin = 300;

// Pages of 128 KiB.
NamespaceSpec Spec() {
  NamespaceSpec spec;
  spec.model = "advice";
  spec.geometry = {
      .layers = 8, .kv_heads = 4, .k_head_dim = 64, .v_head_dim = 64, .page_tokens = 16};
  return spec;
}

std::vector<std::string> KeysOf(uint64_t sequence) {
  std::vector<std::string> keys;
  for (uint64_t page = 0; page < kPagesMax; ++page) {
    std::string key = std::to_string(sequence * 1000 + page);
    keys.push_back(key + std::string(32 - key.size(), 'k'));
  }
  return keys;
}

struct Timed {
  double ratio;
  bool from_disk;
};

// A worker with a paged cache of its own.
class Worker {
 public:
  Worker(const std::string& endpoint, DataPath path) {
    client_ = *Client::Create({.endpoint = endpoint,
                               .lookup_timeout = absl::Seconds(20),
                               .fetch_timeout = absl::Seconds(20),
                               .push_timeout = absl::Seconds(60),
                               .fetch_paths = {path}});
    space_ = *client_->OpenNamespace(Spec(), "");
    const Geometry& geometry = space_->spec().geometry;
    const int64_t tokens = int64_t{kPagesMax} * geometry.page_tokens;
    const int64_t row = int64_t{geometry.kv_heads} * geometry.k_head_dim;
    memory_.resize(static_cast<size_t>(2 * geometry.layers * tokens * row) * sizeof(uint16_t));
    for (uint32_t i = 0; i < 2 * geometry.layers; ++i)
      bases_.push_back(memory_.data() + int64_t{i} * tokens * row * 2);
    const std::span<std::byte* const> bases(bases_);
    // Token-major, as SGLang has it.
    const EngineSide side = {.layer_base = bases.first(geometry.layers),
                             .block_stride = row * 2,
                             .token_stride = row * 2,
                             .head_stride = int64_t{geometry.k_head_dim} * 2,
                             .dtype = geometry.dtype};
    view_ = {.k = side, .v = side, .block_tokens = 1, .slots = tokens};
    view_.v.layer_base = bases.subspan(geometry.layers);
    for (int64_t slot = 0; slot < tokens; ++slot) slots_.push_back(slot);
  }

  void Push(uint64_t sequence) {
    const std::vector<std::string> keys = KeysOf(sequence);
    const auto report = space_->Push(view_, {.keys = keys, .slots = slots_});
    if (!report.ok() || !report->store.ok()) std::abort();
  }

  // Waits until the sequence is on disk.
  void Persist(uint64_t sequence) {
    const auto report = space_->Persist(KeysOf(sequence), absl::Seconds(60));
    if (!report.ok() || !report->durable()) std::abort();
  }

  // The time that a fetch of a random prefix of one of `sequences` took, against what its look-up
  // said; and whether some of it was to be read from disk.
  Timed FetchOne(std::mt19937_64& random, uint64_t sequences) {
    const std::vector<std::string> keys = KeysOf(random() % sequences);
    const size_t pages = 8 + random() % (kPagesMax - 7);
    const std::span<const std::string> wanted = std::span(keys).first(pages);
    const auto hit = space_->Lookup(wanted);
    if (!hit.ok() || hit->pages != pages) std::abort();
    const auto start = std::chrono::steady_clock::now();
    const auto report = space_->Fetch(
        view_, {.keys = wanted,
                .slots = std::span(slots_).first(pages * space_->spec().geometry.page_tokens),
                .forecast = hit->forecast});
    if (!report.ok() || report->pages != pages) std::abort();
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
    return {took.count() / hit->expected_ms, hit->forecast.loading_ms > 0.0};
  }

 private:
  std::unique_ptr<Client> client_;
  std::unique_ptr<client::Namespace> space_;
  std::vector<std::byte> memory_;
  std::vector<std::byte*> bases_;
  EngineView view_;
  std::vector<int64_t> slots_;
};

struct Load {
  const char* name;
  size_t clients;
  int pause_ms;  // between fetches, at most
  bool pushes;   // one more client stores pages all the time
};
constexpr Load kLoadsOnDisk[] = {{"1 client", 1, 0, false},
                                 {"2 clients", 2, 0, false},
                                 {"4 clients", 4, 0, false},
                                 {"4 clients, pauses of 0..40 ms", 4, 40, false}};
constexpr Load kLoads[] = {{"1 client", 1, 0, false},
                           {"2 clients", 2, 0, false},
                           {"4 clients", 4, 0, false},
                           {"8 clients", 8, 0, false},
                           {"4 clients, pauses of 0..40 ms", 4, 40, false},
                           {"4 clients, and one that stores", 4, 0, true}};

nlohmann::json Run(const Load& load, const std::string& endpoint, DataPath path, double seconds,
                   uint64_t sequences) {
  std::vector<std::vector<double>> ratios(load.clients);
  std::atomic<bool> over = false;
  std::atomic<uint64_t> from_disk = 0, fetches = 0;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < load.clients; ++i) {
    threads.emplace_back([&, i] {
      Worker worker(endpoint, path);
      std::mt19937_64 random(i);
      while (!over) {
        const Timed timed = worker.FetchOne(random, sequences);
        ratios[i].push_back(timed.ratio);
        ++fetches;
        if (timed.from_disk) ++from_disk;
        if (load.pause_ms > 0)
          std::this_thread::sleep_for(
              std::chrono::milliseconds(random() % static_cast<uint64_t>(load.pause_ms)));
      }
    });
  }
  if (load.pushes) {
    threads.emplace_back([&] {
      Worker worker(endpoint, path);
      for (uint64_t sequence = 100; !over; ++sequence) worker.Push(sequence);
    });
  }
  // Longer on a machine that has much else to do: a p99 of few fetches says nothing.
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end ||
         fetches < load.clients * kWarmUp * 2 + kFetchesMin)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  over = true;
  for (std::thread& thread : threads) thread.join();
  std::vector<double> all;
  double first = 0.0;
  for (const std::vector<double>& one : ratios) {
    first = std::max(first, one.front());
    if (one.size() > kWarmUp) all.insert(all.end(), one.begin() + kWarmUp, one.end());
  }
  std::sort(all.begin(), all.end());
  const auto at = [&](double share) {
    return all[static_cast<size_t>(share * static_cast<double>(all.size() - 1))];
  };
  return {{"load", load.name},
          {"fetches", all.size()},
          {"first", first},
          {"from_disk", static_cast<double>(from_disk) / static_cast<double>(fetches)},
          {"p10", at(0.1)},
          {"p50", at(0.5)},
          {"p90", at(0.9)},
          {"p99", at(0.99)},
          {"max", all.back()}};
}

}  // namespace
}  // namespace oscarkv::bench

int main(int argc, char** argv) {
  using namespace oscarkv::bench;  // NOLINT(google-build-using-namespace)
  const std::string where = argc == 4 ? argv[3] : "";
  if (where != "memory" && where != "shm" && where != "disk") {
    std::fprintf(stderr, "usage: advice_bench ENDPOINT SECONDS memory|shm|disk\n");
    return 2;
  }
  const std::string endpoint = argv[1];
  const bool disk = where == "disk";
  const auto path = where == "shm" ? oscarkv::DataPath::kShm : oscarkv::DataPath::kGrpc;
  const uint64_t sequences = disk ? kSequencesOnDisk : kSequences;
  {
    Worker worker(endpoint, path);
    for (uint64_t sequence = 0; sequence < sequences; ++sequence) {
      worker.Push(sequence);
      if (disk) worker.Persist(sequence);
    }
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const Load& load :
       disk ? std::span<const Load>(kLoadsOnDisk) : std::span<const Load>(kLoads)) {
    nlohmann::json row = Run(load, endpoint, path, std::atof(argv[2]), sequences);
    row["where"] = where;
    rows.push_back(std::move(row));
  }
  std::printf("%s\n", rows.dump(1).c_str());
  return 0;
}
