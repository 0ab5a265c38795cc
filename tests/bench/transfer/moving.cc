#include "tests/bench/transfer/moving.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"

#include "kernels/base/status_macros.h"
#include "tests/bench/transfer/timing.h"

namespace oscarkv::bench {
namespace {

constexpr uint64_t kVerifyEvery = 32;  // of the calls, the bytes of one are compared

// What is measured at once.
struct Cell {
  std::string work;
  uint32_t connections;
  uint32_t batch;
};

// What one thread did.
struct Share {
  std::vector<double> us;  // of each call that went well
  double busy_s = 0.0;
  uint64_t failed = 0;
  uint64_t verified = 0;    // calls whose bytes were compared
  uint64_t mismatched = 0;  // and were others
  absl::Status first_failure;
};

// What all of them did, over all turns.
struct Tally {
  std::vector<double> us;
  std::vector<double> rates;  // bytes a second, of each turn
  uint64_t failed = 0, verified = 0, mismatched = 0;
  std::string first_failure;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// One call, timed and counted. Whether it worked, and is one of those whose bytes are looked at.
bool Timed(uint64_t number, absl::FunctionRef<absl::Status()> call, Share* share) {
  const Clock::time_point start = Clock::now();
  const absl::Status status = call();
  const double us = MicrosSince(start);
  share->busy_s += us / 1e6;
  if (!status.ok()) {
    if (share->failed++ == 0) share->first_failure = status;
    return false;
  }
  share->us.push_back(us);
  if (number % kVerifyEvery != 0) return false;
  ++share->verified;
  return true;
}

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
    if (!Timed(
            call, [&] { return peer.Get(place * batch, room); }, share))
      continue;
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
    const ByteView pages = set.subspan(place * bytes, bytes);
    if (!Timed(
            call, [&] { return peer.Put(place * batch, pages); }, share))
      continue;
    if (!peer.Get(place * batch, back).ok() ||
        std::memcmp(back.data(), set.data() + place * bytes, bytes) != 0) {
      ++share->mismatched;
    }
  }
}

using Peers = std::vector<std::unique_ptr<TransferPeer>>;

// As many connections as the largest cell needs, to a peer that holds the set.
absl::StatusOr<Peers> Filled(const std::string& name, const PeerOptions& options, const Plan& plan,
                             ByteView set, uint64_t unit) {
  const uint32_t most = *std::max_element(plan.connections.begin(), plan.connections.end());
  Peers peers;
  for (uint32_t i = 0; i < most; ++i) {
    OSCARKV_ASSIGN_OR_RETURN(auto peer, Connect(name, options));
    // What has its pages to itself gets them all.
    for (size_t at = 0; (i == 0 || name == "memcpy") && at < set.size(); at += unit) {
      const uint64_t page_bytes = options.page_bytes;
      peer->Remove(at / page_bytes, unit / page_bytes).IgnoreError();
      OSCARKV_RETURN_IF_ERROR(peer->Put(at / page_bytes, set.subspan(at, unit)));
    }
    peers.push_back(std::move(peer));
  }
  return peers;
}

// One turn of a cell.
void RunTurn(const Peers& peers, const Plan& plan, ByteView set, const Cell& cell, uint64_t turn,
             Tally* tally) {
  std::vector<Share> shares(cell.connections);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < cell.connections; ++i) {
    threads.emplace_back([&, i] {
      if (cell.work == "get") {
        RunGets(*peers[i], plan, set, cell.batch, turn * cell.connections + i, &shares[i]);
      } else {
        RunPuts(*peers[i], plan, set, cell.batch, i, cell.connections, &shares[i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  double rate = 0.0;
  for (const Share& share : shares) {
    rate += static_cast<double>(share.us.size()) * cell.batch * plan.options.page_bytes /
            std::max(share.busy_s, 1e-9);
    tally->us.insert(tally->us.end(), share.us.begin(), share.us.end());
    tally->failed += share.failed;
    tally->verified += share.verified;
    tally->mismatched += share.mismatched;
    if (tally->first_failure.empty() && !share.first_failure.ok())
      tally->first_failure = share.first_failure.ToString();
  }
  tally->rates.push_back(rate);
}

nlohmann::json ToJson(const Plan& plan, const Cell& cell, Tally& tally) {
  nlohmann::json json = {{"work", cell.work},
                         {"page_bytes", plan.options.page_bytes},
                         {"connections", cell.connections},
                         {"batch", cell.batch},
                         {"checksum", plan.options.checksum},
                         {"calls", tally.us.size()},
                         {"failed", tally.failed},
                         {"verified", tally.verified},
                         {"mismatched", tally.mismatched},
                         {"bytes_per_second", Median(tally.rates)}};
  AddQuantiles(&tally.us, &json);
  if (!tally.first_failure.empty()) json["first_failure"] = tally.first_failure;
  return json;
}

// What each turn reached of the turn beside it.
void AddShares(const Tally& ours, const Tally& beside, nlohmann::json* json) {
  std::vector<double> shares;
  for (size_t i = 0; i < ours.rates.size(); ++i)
    shares.push_back(ours.rates[i] / std::max(beside.rates[i], 1e-9));
  std::sort(shares.begin(), shares.end());
  (*json)["share"] = shares[shares.size() / 2];
  (*json)["share_least"] = shares[shares.size() / 4];
  (*json)["share_most"] = shares[shares.size() - 1 - shares.size() / 4];
  (*json)["beside_bytes_per_second"] = Median(beside.rates);
  (*json)["failed"] = ours.failed + beside.failed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransferPeer>> Connect(const std::string& peer,
                                                      const PeerOptions& options) {
  if (peer == "ours") return ConnectOurs(options);
  if (peer == "bare") return ConnectBareStream(options);
  if (peer == "raw") return ConnectRawSocket(options);
  if (peer == "redis") return ConnectRedis(options);
  return MakeMemcpyPeer(options);
}

absl::Status Measure(const Plan& plan) {
  // A whole number of the largest batches.
  const uint64_t unit = uint64_t{plan.options.page_bytes} *
                        *std::max_element(plan.batches.begin(), plan.batches.end());
  std::vector<std::byte> set(plan.set_bytes / unit * unit);
  std::mt19937_64 random(7);
  for (size_t at = 0; at < set.size(); at += 8) StoreLe(&set[at], random());
  OSCARKV_ASSIGN_OR_RETURN(const Peers peers, Filled(plan.peer, plan.options, plan, set, unit));
  Peers others;
  if (!plan.beside.empty()) {
    PeerOptions options = plan.options;
    options.endpoint = plan.beside_endpoint;
    OSCARKV_ASSIGN_OR_RETURN(others, Filled(plan.beside, options, plan, set, unit));
  }
  for (const std::string& work : plan.works) {
    for (const uint32_t connections : plan.connections) {
      for (const uint32_t batch : plan.batches) {
        const Cell cell{work, connections, batch};
        Tally tally;
        Tally beside;
        for (uint32_t turn = 0; turn < (others.empty() ? 1 : plan.turns); ++turn) {
          RunTurn(peers, plan, set, cell, turn, &tally);
          if (!others.empty()) RunTurn(others, plan, set, cell, turn, &beside);
        }
        nlohmann::json json = ToJson(plan, cell, tally);
        if (!others.empty()) AddShares(tally, beside, &json);
        std::printf("%s\n", json.dump().c_str());
        std::fflush(stdout);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace oscarkv::bench
