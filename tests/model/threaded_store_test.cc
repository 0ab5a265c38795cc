// The whole store as in whole_store_test, with clients that do what they do at the same time: each
// on a thread of its own, beside one that writes to disk and one to which everything else happens,
// moves between tiers, time, scrubs, faults of every tier. What must hold is what holds there, of
// every answer for which some order of what overlapped it explains it (history.h).
//
// A run has rounds. Between two of them nobody does anything: space adds up, a bit may flip in
// memory, all may be cleared or written; and some rounds end with the death of the process, whose
// disk stops somewhere in the middle of the round.
//
// A seed says what the store lies in and what everybody does, though not who comes first; --seed=N
// repeats that, --seeds=N runs that many, --rounds=N makes them longer.
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "tests/model/history.h"
#include "tests/model/model_flags.h"
#include "tests/model/model_run.h"
#include "tests/model/threaded_client.h"
#include "tests/model/world.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kClients = 4;
constexpr uint64_t kRoots = 12;
constexpr uint64_t kStepsOfRound = 60;  // of every thread

constexpr uint64_t kSeedsOfTest = 200;

ModelArguments& GetArguments() {
  static ModelArguments arguments{.seeds = kSeedsOfTest, .turns = 12};
  return arguments;
}

class ThreadedRun {
 public:
  explicit ThreadedRun(uint64_t seed)
      : world_(seed, Profile::Of(seed)), universe_(world_.space(), 0, kRoots), history_(universe_) {
    world_.Attach(&universe_);
    for (uint64_t i = 0; i < kClients; ++i) {
      clients_.push_back(
          std::make_unique<ThreadedClient>(world_, universe_, history_, world_.random().Number()));
    }
  }

  // A round.
  void Turn() {
    if (world_.random().OneIn(5)) {
      Die();
    } else {
      AllAtOnce();
      history_.Settle();
      CheckSpaceOf(world_, clients_, world_.store().Stats().leases);
      Between();
    }
  }

  void End(SeenCounts* seen) { EndAll(world_, clients_, seen); }

 private:
  // Until all have done their part.
  void AllAtOnce() {
    std::vector<std::thread> threads;
    for (const auto& client : clients_) {
      threads.emplace_back([&client] {
        for (uint64_t step = 0; step < kStepsOfRound; ++step) client->Step();
      });
    }
    threads.emplace_back([this] {
      for (uint64_t step = 0; step < kStepsOfRound; ++step) Happen();
    });
    if (world_.has_disk()) {
      threads.emplace_back([this] {
        ArchiveWriter writer(world_.store());
        for (uint64_t step = 0; step < kStepsOfRound; ++step)
          if (!writer.Step()) std::this_thread::yield();
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // Something that no client does.
  void Happen() {
    const size_t draw = world_.random().Below(120);
    if (draw < 50) return world_.MoveCopies();
    if (draw < 78) return world_.ReEncode();
    if (draw < 79) return world_.ChangeStoreWide();
    if (draw < 80) return world_.ChangeQuota();
    if (draw < 90) return PassTime();
    if (draw < 94) return world_.FailReservation();
    if (draw < 98) return world_.Scrub();
    if (draw < 104) return world_.FailDevice();
    if (draw < 108) return world_.ChangeDiskFaults();
    if (draw < 116) return world_.FloodDisk();
    world_.SaveInCatalog();
  }

  void PassTime() {
    world_.clock().Advance(absl::Seconds(world_.random().Below(10)));
    world_.store().ExpirePages();
    world_.store().ExpireLeases();
    world_.store().EnforceQuotas();
    const StoreStats stats = world_.store().Stats();
    for (const TierStats& tier : stats.tiers) EXPECT_LE(tier.used_bytes, tier.capacity_bytes);
    EXPECT_LE(stats.leased_bytes, stats.leasable_bytes);
  }

  void Between() {
    const size_t draw = world_.random().Below(10);
    if (draw < 2) return world_.FlipBit();
    if (draw == 2) return WriteAll();
    if (draw == 3) return Clear();
  }

  void WriteAll() {
    world_.WriteAll();
    if (world_.has_disk() && world_.disk_is_sound()) history_.DiskIsUpToDate();
  }

  void Clear() {
    LetGoOfAll();
    for (const auto& client : clients_) client->EndSession();
    world_.Clear();
    history_.Cleared();
  }

  void LetGoOfAll() {
    for (const auto& client : clients_) client->LetGoOfAll();
  }

  // In good order, or in the middle of a round.
  void Die() {
    if (world_.random().OneIn(4)) {
      LetGoOfAll();
      if (world_.has_disk()) WriteAll();
      world_.Crash([] {});
    } else {
      world_.Crash([this] {
        AllAtOnce();
        LetGoOfAll();
      });
    }
    history_.Restarted();
    for (const auto& client : clients_) client->OpenSession();
  }

  World world_;
  Book universe_;
  History history_;
  Clients<ThreadedClient> clients_;
};

TEST(ThreadedStoreTest, EveryAnswerHasAnOrderThatExplainsIt) {
  SeenCounts seen;
  RunSeeds<ThreadedRun>(GetArguments(), "round", &seen);
  if (HasFailure() || GetArguments().seed != 0 || GetArguments().seeds < kSeedsOfTest) return;
  // The runs were not idle ones.
  for (const char* name :
       {"oscarkv_puts_total OK", "oscarkv_puts_total EXISTS", "oscarkv_puts_total CONFLICT",
        "oscarkv_puts_total SKIPPED", "oscarkv_leases_granted_total", "oscarkv_corrupt_pages_total",
        "oscarkv_gpu_tier_copied_pages_total", "oscarkv_disk_written_pages_total",
        "oscarkv_disk_loaded_pages_total", "oscarkv_reencoded_pages_total outgrown", "restarts",
        "pages checked", "copies checked"})
    EXPECT_GT(seen[name], 0u) << name;
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  auto& arguments = oscarkv::testing::GetArguments();
  return oscarkv::testing::RunModelTests(
      argc, argv,
      {{"seed", &arguments.seed}, {"seeds", &arguments.seeds}, {"rounds", &arguments.turns}});
}
