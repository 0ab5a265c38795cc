// The store under test with every tier that it may have, a layer of faults under each, and what
// happens to it: moves between tiers, time, rot, failing devices, and the death of the process.
#ifndef OSCARKV_TESTS_MODEL_WORLD_H_
#define OSCARKV_TESTS_MODEL_WORLD_H_

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/codec/page_codec.h"
#include "server/core/archive_writer.h"
#include "server/core/copy_mover.h"
#include "server/core/page_store.h"
#include "server/tier/disk/disk_store.h"
#include "server/tier/gpu_tier.h"
#include "tests/model/book.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_device_memory.h"
#include "tests/support/faulty_io.h"
#include "tests/support/faulty_tier.h"
#include "tests/support/scoped_folder.h"

namespace oscarkv::testing {

// Of the bytes of a page: writers disagree now and then.
inline constexpr uint64_t kPageSeeds = 4;

// What the store lies in and how bad it gets; follows from the seed.
struct Profile {
  enum class Disk : uint8_t { kNone, kSound, kFails, kLies };
  bool slabs = false;   // HostTier, or a tier of single allocations
  bool copies = false;  // a GPU tier
  Disk disk = Disk::kNone;
  bool full_disk = false;  // room is reclaimed all the time
  bool learnt = false;     // the policy, or LRU
  ArchiveAdmission admission = ArchiveAdmission::kAll;
  bool ladder = false;  // the transform set is there: WIDE pages are re-encoded
  bool quotas = false;  // they change; else the one tenant has all of memory, which so becomes full

  static Profile Of(uint64_t seed);
  std::string Describe() const;
};

class World {
 public:
  World(uint64_t seed, const Profile& profile);
  ~World();

  PageStore& store() { return *store_; }
  const Namespace& space() const { return *space_; }
  FakeClock& clock() { return clock_; }
  const Profile& profile() const { return profile_; }
  Random& random() { return random_; }
  CopyMover* mover() { return mover_.get(); }
  GpuTier* gpu() { return gpu_; }
  bool has_disk() const { return disk_ != nullptr; }
  // What a WIDE page of that seed becomes when it is re-encoded; null: no page is.
  const TestPage* ReEncodedForm(uint64_t seed) const {
    return profile_.ladder ? &re_encoded_.at(seed) : nullptr;
  }
  void Attach(Book* book) { books_.push_back(book); }
  // When a page was re-encoded last, or the store began.
  absl::Duration re_encoded_at() const { return re_encoded_at_; }

  // Bits that have flipped in memory, ever, and whether all that they may have hit was dropped.
  uint64_t flips() const { return flips_; }
  bool rotten() const { return rotten_; }
  // Whether a page that is read back from the disk may be damaged, or not the latest.
  bool disk_is_sound() const { return profile_.disk == Profile::Disk::kSound; }
  // In the middle of an operation of the disk, whatever it is: `callback` runs.
  void OnDisk(std::function<void()> callback);

  // --- What happens, each an operation of the model. ---

  void MoveCopies();  // between host and GPU memory
  void WriteSome();   // to disk
  void WriteAll();    // and nothing waits any more
  void PassTime();
  void FailReservation();
  void ReEncode();         // a few WIDE pages, PACKED
  void ChangeStoreWide();  // for how long they stay WIDE
  void ChangeQuota();      // what the tenant may hold, perhaps less than it does
  void FlipBit();          // in host memory: of a page, of a checksum, of a put under way
  void Scrub();
  void Clear();
  void FailDevice();  // the GPU's next transfers
  void ChangeDiskFaults();
  void FloodDisk();  // pages of somebody else
  void SaveInCatalog();
  void Restart();  // in an orderly way
  // The process dies, or the power goes, between or in the middle of operations: `meanwhile` runs
  // with a disk that stops somewhere in it. Nobody holds anything of the store any more then.
  void Crash(const std::function<void()>& meanwhile);

  // What must hold at any time. `open_puts`: of all clients.
  void CheckSpace(size_t open_puts, size_t leases, size_t held_copies);
  void CheckNothingHeld();

  // Of all lives of the store.
  uint64_t restarts() const { return restarts_; }
  void AddTo(std::map<std::string, uint64_t>* seen) const;

 private:
  void Start();
  void MakeReEncodedForms();
  void Stop();
  std::unique_ptr<PageCopies> MakeCopies();
  std::unique_ptr<PageArchive> OpenDisk();
  IoFaults SomeDiskFaults();
  // Keys that are on disk with all that they extend.
  std::set<std::string> WholeOnDisk() const;
  std::set<std::string> Listed();

  Random random_;
  const Profile profile_;
  FakeClock clock_;
  absl::Duration re_encoded_at_;
  std::vector<Book*> books_;
  std::optional<ScopedFolder> folder_;
  std::unique_ptr<PageStore> store_;
  const Namespace* space_ = nullptr;
  FaultyTier* tier_ = nullptr;
  std::shared_ptr<DeviceFaults> device_faults_;
  GpuTier* gpu_ = nullptr;
  std::unique_ptr<CopyMover> mover_;         // null without copies
  std::unique_ptr<PageCodec> codec_;         // of every life
  std::map<uint64_t, TestPage> re_encoded_;  // [seed]
  DiskStore* disk_ = nullptr;                // the store's; null without
  FaultyIo* io_ = nullptr;
  std::function<void()> on_disk_;
  std::map<std::string, std::set<std::string>> catalog_;  // what a name may hold
  std::atomic<uint64_t> flips_ = 0;
  std::atomic<bool> rotten_ = false;
  bool dying_ = false;  // operations may fail that otherwise may not
  uint64_t restarts_ = 0;
  uint64_t flooded_ = 0;
  std::map<std::string, uint64_t> seen_;
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_WORLD_H_
