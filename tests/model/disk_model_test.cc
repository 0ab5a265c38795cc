// Random operations on the disk store against a plain map, with faults, kills and power cuts in the
// middle of any call. What must hold:
//   * A read returns bytes that were written for that key, the latest that are durable, or an
//     honest miss. Where the device lies or fails, perhaps older ones; never others.
//   * A page that was durable, and there, before a crash is there after it.
//   * A page whose removal is durable does not come back.
//   * Space adds up, and the files never pass the capacity.
//
// Seeds are printed; --seed=N replays one, --seeds=N runs that many.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "server/tier/disk/posix_io.h"
#include "tests/model/model_flags.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

struct Arguments {
  uint64_t seed = 0;  // 0: some, at random
  uint64_t seeds = 25;
  uint64_t steps = 200;
};
Arguments& GetArguments() {
  static Arguments arguments;
  return arguments;
}

constexpr uint64_t kKeys = 80;
constexpr uint64_t kVersions = 1000;  // of one key

struct Known {
  uint64_t versions = 0;       // that were tried
  uint64_t durable = 0;        // the latest that was acknowledged; 0: none
  bool removed = false;        // durably, since
  std::set<uint64_t> perhaps;  // others that a crash may bring back
};

class DiskModel : public ::testing::Test {
 protected:
  // How the device is: what it may do to what was written.
  enum class Device { kSound, kFails, kLies };

  void Start(uint64_t seed, Device device) {
    random_.seed(seed);
    device_ = device;
    known_.assign(kKeys, {});
    store_.reset();
    folder_.emplace(ScopedFolder::Where::kMemory);
    options_ = TestOptions(folder_->path(), 3 + Below(3));
    options_.staging_bytes = 300'000;
    Open();
  }
  void Open() {
    store_.reset();
    auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), random_());
    io_ = io.get();
    auto store = DiskStore::Open(options_, std::move(io));
    ASSERT_OK(store);
    store_ = *std::move(store);
    SetFaults();
  }
  void SetFaults() {
    IoFaults faults;
    if (device_ == Device::kFails) {
      faults = {.write_error = 20, .no_space = 10, .short_write = 20, .sync_error = 20};
      if (Below(10) == 0) faults.read_only = 1000;
      if (Below(4) == 0) faults.read_error = 20;
    } else if (device_ == Device::kLies) {
      faults = {.lost_write = 10, .misdirected_write = 10, .flipped_write = 20, .flipped_read = 10};
    }
    io_->SetFaults(faults);
  }
  uint64_t Below(uint64_t bound) { return random_() % bound; }

  // A page of a key and a version: their bodies differ.
  static TestDiskPage PageOf(uint64_t key, uint64_t version) {
    const uint64_t number = key * kVersions + version;
    TestDiskPage page(number, 16 + number * 7919 % 120'000);
    page.key = TestKey(key);
    return page;
  }
  bool Holds(uint64_t key) const {
    return store_->Find(TestFingerprint(), TestKey(key)).has_value();
  }

  void WriteSome() {
    std::vector<TestDiskPage> pages;
    std::vector<uint64_t> keys;
    std::vector<DiskPut> puts;
    for (uint64_t i = 0; i < 1 + Below(8); ++i) {
      const uint64_t key = Below(kKeys);
      if (Holds(key) || std::ranges::find(keys, key) != keys.end()) continue;
      keys.push_back(key);
      pages.push_back(PageOf(key, ++known_[key].versions));
    }
    for (const TestDiskPage& page : pages) puts.push_back(page.put());
    store_->Write(puts);
    for (size_t i = 0; i < keys.size(); ++i) {
      Known& known = known_[keys[i]];
      if (known.durable != 0 && device_ != Device::kSound) known.perhaps.insert(known.durable);
      if (!puts[i].status.ok()) {
        ASSERT_TRUE(device_ == Device::kFails || stopped_) << puts[i].status;
        known.perhaps.insert(known.versions);
        continue;
      }
      ++acknowledged_;
      known.durable = known.versions;
      known.removed = false;
      // What a crash could have brought back is older.
      if (device_ == Device::kSound) known.perhaps.clear();
    }
  }

  void ReadSome() {
    const uint64_t key = Below(kKeys);
    Known& known = known_[key];
    const ReadBack found = ReadOne(*store_, TestKey(key));
    if (!found.status.ok()) {
      // A power cut leaves parts of what was never acknowledged.
      ASSERT_TRUE(device_ != Device::kSound || absl::IsNotFound(found.status) ||
                  (absl::IsDataLoss(found.status) && !known.perhaps.empty()))
          << found.status;
      return;
    }
    ++hits_;
    const auto is = [&](uint64_t version) {
      return version != 0 && found.body == PageOf(key, version).body;
    };
    ASSERT_TRUE((is(known.durable) && (!known.removed || device_ != Device::kSound)) ||
                std::ranges::any_of(known.perhaps, is))
        << "key " << key << " durable version " << known.durable;
  }

  void ForgetOne() {
    const uint64_t key = Below(kKeys);
    Known& known = known_[key];
    if (!store_->Forget(TestFingerprint(), TestKey(key))) return;
    const uint64_t version = known.durable;
    const bool done = store_->WriteRemovals().ok();
    ASSERT_FALSE(Holds(key));
    known.removed = true;
    if (!done && version != 0) known.perhaps.insert(version);
    if (done && device_ == Device::kSound) known.perhaps.clear();
  }

  // The process is killed, or the power goes, in the middle of something.
  void Crash() {
    const bool power = Below(2) == 0;
    std::vector<uint64_t> held;
    for (uint64_t key = 0; key < kKeys; ++key)
      if (Holds(key)) held.push_back(key);
    stopped_ = true;
    io_->StopAfter(Below(25));
    const uint64_t what = Below(3);
    if (what == 0) WriteSome();
    if (what == 1) ForgetOne();
    if (what == 2) WriteSome(), WriteSome();
    std::erase_if(held, [&](uint64_t key) { return !Holds(key); });  // reclaimed, or forgotten
    if (power) io_->LosePower();
    stopped_ = false;
    Open();
    if (device_ != Device::kSound) return;
    for (const uint64_t key : held) ASSERT_TRUE(Holds(key)) << "key " << key << " is lost";
  }

  void Step() {
    const uint64_t action = Below(100);
    if (action < 45) return WriteSome();
    if (action < 80) return ReadSome();
    if (action < 90) return ForgetOne();
    if (action < 93) return static_cast<void>(store_->Verify(0, Below(1 << 20)));
    if (action < 95) return SetFaults();
    return Crash();
  }

  void CheckSpace() {
    const DiskStoreStats stats = store_->Stats();
    ASSERT_LE(stats.live_bytes, stats.capacity_bytes);
    ASSERT_LE(stats.capacity_bytes, options_.directory.capacity_bytes);
    uint64_t listed = store_->List(TestFingerprint(), 1000, 0).pages.size();
    ASSERT_EQ(listed, stats.pages);
  }

  std::mt19937_64 random_;
  Device device_ = Device::kSound;
  std::optional<ScopedFolder> folder_;
  DiskStoreOptions options_;
  std::unique_ptr<DiskStore> store_;
  FaultyIo* io_ = nullptr;
  bool stopped_ = false;
  std::vector<Known> known_;  // [key]
  uint64_t acknowledged_ = 0;
  uint64_t hits_ = 0;
};

class DiskModelTest : public DiskModel, public ::testing::WithParamInterface<int> {};

TEST_P(DiskModelTest, RandomOperationsAgreeWithAMap) {
  const auto [only, seeds, steps] = GetArguments();
  const uint64_t first = only != 0 ? only : 1 + std::random_device{}() % 1'000'000;
  const uint64_t runs = only != 0 ? 1 : seeds;
  std::printf("[    seeds ] %" PRIu64 " from --seed=%" PRIu64 "\n", runs, first);
  for (uint64_t seed = first; seed < first + runs; ++seed) {
    SCOPED_TRACE(absl::StrCat("--seed=", seed));
    Start(seed, static_cast<Device>(GetParam()));
    for (uint64_t step = 0; step < steps; ++step) {
      Step();
      CheckSpace();
      if (HasFatalFailure() || HasNonfatalFailure()) FAIL() << "at step " << step;
    }
  }
  // The runs were not idle ones.
  EXPECT_GT(acknowledged_, runs * steps / 4);
  EXPECT_GT(hits_, runs * steps / 40);
}

INSTANTIATE_TEST_SUITE_P(SoundFailingAndLyingDevices, DiskModelTest, ::testing::Values(0, 1, 2));

}  // namespace
}  // namespace oscarkv::testing

int main(int argc, char** argv) {
  auto& arguments = oscarkv::testing::GetArguments();
  return oscarkv::testing::RunModelTests(
      argc, argv,
      {{"seed", &arguments.seed}, {"seeds", &arguments.seeds}, {"steps", &arguments.steps}});
}
