// The whole store against a plain map: many clients, host memory, copies on a device and an archive
// on disk, faults in each of them, and the death of the process. What must hold:
//   * A read returns the bytes that were written, or an honest miss: never other bytes, never a
//     page that was deleted, cleared or never stored. After a crash, what was on disk: the latest
//     that is durable there where the device is sound, perhaps an older one where it is not.
//   * A page that was durable is there after a crash, where the device is sound.
//   * What is leased or being read is there, and does not change.
//   * Space adds up after every step, and no tier holds more than it may.
//   * After all is let go nothing is held, and Clear brings all memory back.
//
// Everything follows from a seed: what the store lies in, which faults there are, what happens.
// A failure names its seed; --seed=N replays it, --seeds=N runs that many, --steps=N makes them
// longer, --trace says what happens.
#include <memory>
#include <string>

#include "gtest/gtest.h"

#include "tests/model/client.h"
#include "tests/model/model_flags.h"
#include "tests/model/model_run.h"
#include "tests/model/world.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kClients = 3;
constexpr uint64_t kRoots = 12;

constexpr uint64_t kSeedsOfTest = 5000;

ModelArguments& GetArguments() {
  static ModelArguments arguments{.seeds = kSeedsOfTest, .turns = 400};
  return arguments;
}

struct WorldOperation {
  const char* name;
  int weight;  // in 400
  void (World::*run)();
};
// To add an operation: write a method of World and give it a line here.
constexpr WorldOperation kWorldOperations[] = {
    {"copies move", 40, &World::MoveCopies},
    {"pages are written to disk", 40, &World::WriteSome},
    {"all is written to disk", 2, &World::WriteAll},
    {"pages are re-encoded", 24, &World::ReEncode},
    {"store_wide changes", 2, &World::ChangeStoreWide},
    {"a quota changes", 2, &World::ChangeQuota},
    {"time passes", 8, &World::PassTime},
    {"a reservation fails", 4, &World::FailReservation},
    {"a bit flips in memory", 1, &World::FlipBit},
    {"scrub", 2, &World::Scrub},
    {"clear", 1, &World::Clear},
    {"the GPU fails", 4, &World::FailDevice},
    {"the disk's faults change", 4, &World::ChangeDiskFaults},
    {"others fill the disk", 8, &World::FloodDisk},
    {"the catalog", 4, &World::SaveInCatalog},
};
constexpr size_t kWeights = 400;

// One run: clients that share a book take turns.
class ModelRun {
 public:
  explicit ModelRun(uint64_t seed)
      : world_(seed, Profile::Of(seed)), book_(world_.space(), 0, kRoots) {
    world_.Attach(&book_);
    for (uint64_t i = 0; i < kClients; ++i)
      clients_.push_back(std::make_unique<Client>(world_, book_, world_.random().Number()));
    // While a disk reads or writes, others go on.
    world_.OnDisk([this] {
      if (nested_ || !world_.random().OneIn(2)) return;
      nested_ = true;
      AnyClient().Step();
      nested_ = false;
    });
  }

  void Turn() {
    Step();
    CheckSpaceOf(world_, clients_, book_.leases().size());
  }

  void End(SeenCounts* seen) { EndAll(world_, clients_, seen); }

 private:
  void Step() {
    size_t draw = world_.random().Below(kWeights);
    for (const WorldOperation& operation : kWorldOperations) {
      if (draw < static_cast<size_t>(operation.weight)) {
        Tell(operation.name);
        return (world_.*operation.run)();
      }
      draw -= static_cast<size_t>(operation.weight);
    }
    if (draw < 2) return Die();
    AnyClient().Step();
  }

  Client& AnyClient() { return *clients_[world_.random().Below(clients_.size())]; }

  // The process dies: in good order, or in the middle of something.
  void Die() {
    Tell("the process dies");
    nested_ = true;  // nobody else's turn
    const auto let_go = [this] {
      for (const auto& client : clients_) client->LetGoOfAll();
    };
    let_go();
    if (world_.random().OneIn(4)) {
      world_.Restart();
    } else {
      world_.Crash([&] {
        if (world_.random().OneIn(2)) world_.WriteSome();
        AnyClient().Step();
        world_.WriteSome();
        let_go();
      });
    }
    nested_ = false;
    for (const auto& client : clients_) client->OpenSession();
  }

  World world_;
  Book book_;
  Clients<Client> clients_;
  bool nested_ = false;
};

TEST(WholeStoreTest, RandomOperationsAgreeWithAMap) {
  SeenCounts seen;
  RunSeeds<ModelRun>(GetArguments(), "step", &seen);
  if (HasFailure() || GetArguments().seed != 0 || GetArguments().seeds < kSeedsOfTest) return;
  // The runs were not idle ones: everything that can happen did.
  for (const char* name : {"oscarkv_puts_total OK",
                           "oscarkv_puts_total EXISTS",
                           "oscarkv_puts_total CONFLICT",
                           "oscarkv_puts_total SKIPPED",
                           "oscarkv_puts_total CORRUPT",
                           "oscarkv_puts_total NO_SPACE",
                           "oscarkv_puts_total BUSY",
                           "oscarkv_puts_total QUOTA",
                           "oscarkv_reencoded_pages_total outgrown",
                           "oscarkv_reencoded_pages_total pressure",
                           "oscarkv_leases_granted_total",
                           "oscarkv_leases_expired_total",
                           "oscarkv_leases_orphaned_total",
                           "oscarkv_moved_pages_total",
                           "oscarkv_corrupt_pages_total",
                           "oscarkv_gpu_tier_copied_pages_total",
                           "oscarkv_gpu_tier_failed_pages_total",
                           "oscarkv_disk_written_pages_total",
                           "oscarkv_disk_loaded_pages_total",
                           "oscarkv_disk_parent_loads_total loaded",
                           "oscarkv_disk_parent_loads_total no_room",
                           "oscarkv_disk_parent_loads_total failed",
                           "oscarkv_disk_reclaimed_pages_total",
                           "oscarkv_disk_corrupt_pages_total",
                           "oscarkv_disk_failed_writes_total",
                           "oscarkv_disk_failed_reads_total",
                           "restarts",
                           "pages checked",
                           "copies checked"})
    EXPECT_GT(seen[name], 0u) << name;
  for (size_t reason = 0; reason < kRemoveReasons; ++reason) {
    const std::string name(RemoveReasonName(static_cast<RemoveReason>(reason)));
    EXPECT_GT(seen["oscarkv_removed_pages_total " + name], 0u) << name;
  }
}

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  auto& arguments = oscarkv::testing::GetArguments();
  return oscarkv::testing::RunModelTests(argc, argv,
                                         {{"seed", &arguments.seed},
                                          {"seeds", &arguments.seeds},
                                          {"steps", &arguments.turns},
                                          {"trace", nullptr, &oscarkv::testing::Tracing()}});
}
