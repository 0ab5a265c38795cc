#include "tests/model/world.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

#include "server/core/counters.h"
#include "server/core/learnt_policy.h"
#include "server/core/re_encoder.h"
#include "server/tier/disk/disk_archive.h"
#include "server/tier/disk/posix_io.h"
#include "server/tier/host_tier.h"
#include "tests/core/store_test.h"

namespace oscarkv::testing {
namespace {

constexpr uint64_t kHostPages = 40;  // WIDE ones
constexpr uint64_t kHostBytes = 43'520;
constexpr uint64_t kHostUnitBytes = 8704;
constexpr uint64_t kGpuBytes = 13'056;  // a dozen copies
constexpr uint64_t kGpuUnitBytes = 2176;
constexpr uint64_t kDiskSegmentBytes = 1 << 20;
constexpr uint64_t kDiskSegments = 2;
constexpr uint64_t kCatalogBytes = 1 << 16;
constexpr uint64_t kFloodBytes = 200'000;  // of one page
const std::string kFloodFingerprint(kFingerprintBytes, '\x7f');

}  // namespace

Profile Profile::Of(uint64_t seed) {
  Profile profile;
  profile.slabs = seed % 3 != 0;
  profile.copies = profile.slabs && seed % 2 == 0;
  profile.disk = static_cast<Disk>(seed / 3 % 4);
  profile.full_disk = seed / 12 % 2 == 0;
  profile.learnt = seed / 5 % 2 == 0;
  constexpr ArchiveAdmission kAdmissions[] = {ArchiveAdmission::kFetched, ArchiveAdmission::kWorth,
                                              ArchiveAdmission::kAll, ArchiveAdmission::kAll};
  profile.admission = kAdmissions[seed / 24 % 4];
  profile.ladder = seed / 7 % 2 == 0;
  profile.quotas = seed / 11 % 4 == 0;
  return profile;
}

std::string Profile::Describe() const {
  const char* disks[] = {"no", "a sound", "a failing", "a lying"};
  return absl::StrCat(slabs ? "slabs" : "single slots", copies ? ", copies" : "", ", ",
                      disks[static_cast<size_t>(disk)], " disk", full_disk ? " that is full" : "",
                      learnt ? ", learnt" : ", lru", ladder ? ", ladder" : "",
                      quotas ? ", quotas" : "");
}

World::World(uint64_t seed, const Profile& profile) : random_(seed), profile_(profile) {
  if (profile_.disk != Profile::Disk::kNone) folder_.emplace(ScopedFolder::Where::kMemory);
  Start();
}
World::~World() { Stop(); }

// --- Life ---

void World::Start() {
  std::unique_ptr<MappedTier> base = std::make_unique<FakeTier>(kHostPages * kWideSlotBytes);
  if (profile_.slabs)
    base = *HostTier::Create({.capacity_bytes = kHostBytes, .unit_bytes = kHostUnitBytes});
  auto tier = std::make_unique<FaultyTier>(std::move(base));
  tier_ = tier.get();
  std::unique_ptr<EvictionPolicy> policy;  // null: LRU
  if (profile_.learnt) policy = std::make_unique<LearntPolicy>();
  auto store =
      PageStore::Create({.lease_max = absl::Seconds(50),
                         .leased_share_max = 0.4,
                         .archive_admission = profile_.admission},
                        std::move(tier), std::move(policy), clock_, MakeCopies(), OpenDisk());
  ASSERT_OK(store);
  store_ = *std::move(store);
  re_encoded_at_ = clock_.Now();
  auto space = store_->OpenNamespace(SmallSpec(), true);
  ASSERT_OK(space);
  space_ = *space;
  store_->SetPageTtl(*space_, absl::Seconds(40));
  if (profile_.ladder) {
    if (codec_ == nullptr) MakeReEncodedForms();
    store_->SetCodec(*space_, codec_.get());
    ChangeStoreWide();
  }
  if (profile_.copies) {
    mover_ = std::make_unique<CopyMover>(
        *store_, CopyMoverOptions{.pages_max = 1 + static_cast<uint32_t>(random_.Below(5))});
  }
  rotten_ = false;
}

void World::MakeReEncodedForms() {
  codec_ = MakeCodec(*space_);
  for (uint64_t seed = 0; seed < kPageSeeds; ++seed)
    re_encoded_[seed] = PackedFormOf(*codec_, MakePage(*space_, Encoding::kWide, seed));
}

void World::Stop() {
  if (store_ == nullptr) return;
  AddTo(&seen_);
  mover_.reset();
  store_.reset();
  disk_ = nullptr;
  io_ = nullptr;
}

std::unique_ptr<PageCopies> World::MakeCopies() {
  if (!profile_.copies) return nullptr;
  device_faults_ = std::make_shared<DeviceFaults>();
  auto gpu = *GpuTier::Create(std::make_unique<FakeDeviceMemory>(kGpuBytes, device_faults_),
                              kGpuUnitBytes);
  gpu_ = gpu.get();
  return *PageCopies::Create({.window = absl::Seconds(40)}, std::move(gpu));
}

std::unique_ptr<PageArchive> World::OpenDisk() {
  if (profile_.disk == Profile::Disk::kNone) return nullptr;
  auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), random_.Number());
  io_ = io.get();
  const DiskStoreOptions options{
      .directory = {.path = folder_->path(),
                    .owner = "model",
                    .capacity_bytes =
                        kDiskSegments * kDiskSegmentBytes + kDiskOtherFilesBytes + kCatalogBytes,
                    .catalog_bytes = kCatalogBytes,
                    .segment_bytes = kDiskSegmentBytes},
      .staging_bytes = 300'000};
  auto disk = DiskStore::Open(options, std::move(io));
  EXPECT_OK(disk);
  if (!disk.ok()) return nullptr;
  disk_ = disk->get();
  io_->OnRun([this] {
    if (on_disk_ != nullptr) on_disk_();
  });
  io_->SetFaults(SomeDiskFaults());
  return std::make_unique<DiskArchive>(*std::move(disk));
}

void World::OnDisk(std::function<void()> callback) { on_disk_ = std::move(callback); }

void World::Restart() {
  if (has_disk()) WriteAll();
  Crash([] {});
}

void World::Crash(const std::function<void()>& meanwhile) {
  ++restarts_;
  std::set<std::string> before;
  if (has_disk()) {
    before = WholeOnDisk();
    io_->StopAfter(random_.Below(12));
  }
  dying_ = true;
  meanwhile();
  dying_ = false;
  if (has_disk()) {
    const std::set<std::string> still = WholeOnDisk();  // not reclaimed, not deleted
    std::erase_if(before, [&](const std::string& key) { return !still.contains(key); });
    if (random_.OneIn(2)) io_->LosePower();
  }
  Stop();
  Start();
  if (store_ == nullptr) return;
  for (Book* book : books_) book->Restarted();
  if (!disk_is_sound()) return;
  const std::set<std::string> after = WholeOnDisk();
  for (const std::string& key : before)
    ASSERT_TRUE(after.contains(key)) << "a durable page is lost";
}

std::set<std::string> World::WholeOnDisk() const {
  std::set<std::string> keys;
  for (const Book* book : books_) {
    for (Book::Node node = 0; node < book->size(); ++node) {
      const std::vector<Book::Node> path = book->PathTo(node);
      if (std::ranges::all_of(path, [&](Book::Node at) {
            return disk_->Find(space_->fingerprint(), book->at(at).item.key).has_value();
          }))
        keys.insert(book->at(node).item.key);
    }
  }
  return keys;
}

// --- Between tiers ---

void World::MoveCopies() {
  if (mover_ == nullptr) return;
  for (size_t steps = 1 + random_.Below(4); steps > 0; --steps) mover_->Step();
}

void World::ReEncode() {
  ReEncoder encoder(*store_);
  const auto re_encoded = [&] {
    const LadderStats stats = store_->Stats().ladder;
    return stats.due_pages + stats.pressed_pages;
  };
  const uint64_t before = re_encoded();
  for (size_t steps = 1 + random_.Below(6); steps > 0 && encoder.Step(); --steps) {
  }
  if (re_encoded() > before) re_encoded_at_ = clock_.Now();
}

void World::ChangeStoreWide() {
  constexpr StoreWide kModes[] = {StoreWide::kNever, StoreWide::kTail, StoreWide::kUntilPressure};
  store_->SetStoreWide(*space_, kModes[random_.Below(3)]);
}

void World::ChangeQuota() {
  if (!profile_.quotas) return;
  TenantQuotas quotas;
  if (random_.OneIn(2)) quotas.others.host_bytes = random_.Below(kHostBytes);
  if (random_.OneIn(4)) quotas.others.host_pages = random_.Below(2 * kHostPages);
  store_->SetQuotas(std::move(quotas));
}

void World::WriteSome() {
  if (!has_disk()) return;
  ArchiveWriter writer(*store_);
  for (size_t steps = 1 + random_.Below(3); steps > 0; --steps) writer.Step();
}

void World::WriteAll() {
  if (!has_disk()) return;
  ArchiveWriter writer(*store_);
  absl::Status error;
  while (writer.Step(&error)) {
  }
  EXPECT_TRUE(error.ok() || !disk_is_sound()) << error;
  if (!disk_is_sound()) return;
  for (Book* book : books_) book->DiskIsUpToDate();
}

void World::FloodDisk() {
  if (!has_disk() || !profile_.full_disk) return;
  const std::vector<std::byte> body(kFloodBytes);
  const std::string key = KeyOf(1'000'000 + flooded_++);
  DiskPut put{.fingerprint = kFloodFingerprint, .key = key, .parent = {}, .body = body};
  disk_->Write({&put, 1});
  EXPECT_TRUE(put.status.ok() || !disk_is_sound() || dying_) << put.status;
}

void World::SaveInCatalog() {
  if (!has_disk()) return;
  const std::string name(kCatalogNameBytes, static_cast<char>('a' + random_.Below(3)));
  std::set<std::string>& may_be = catalog_[name];
  if (random_.OneIn(2)) {
    const auto found = disk_->catalog().Load(CatalogKind::kNamespace, name, 1 << 20);
    EXPECT_TRUE(found.ok() || !disk_is_sound() || dying_ || may_be.empty() || may_be.contains(""));
    EXPECT_TRUE(!found.ok() || may_be.contains(*found)) << "wrong contents of a catalog's file";
    return;
  }
  const std::string contents =
      absl::StrCat(random_.Number(), std::string(random_.Below(9000), 'c'));
  const bool saved = disk_->catalog().Save(CatalogKind::kNamespace, name, contents).ok();
  // "" stands for none at all.
  if (may_be.empty()) may_be.insert("");
  if (saved && disk_is_sound()) may_be.clear();
  may_be.insert(contents);
}

// --- Time, rot and faults ---

void World::PassTime() {
  clock_.Advance(absl::Seconds(random_.Below(20)));
  store_->ExpirePages();
  store_->EnforceQuotas();
  size_t ended = 0;
  for (Book* book : books_) ended += book->EndLeases(clock_.Now());
  EXPECT_EQ(store_->ExpireLeases(), ended);
}

void World::FailReservation() {
  // One more page goes; or now and then all that may, and memory is found to be full.
  const int failures = random_.OneIn(400) ? 2 * kHostPages : 1;
  tier_->FailReservations(failures, absl::ResourceExhaustedError("injected"));
}

void World::FlipBit() {
  if (tier_->held() == 0) return;
  const size_t nth = random_.Below(tier_->held());
  const uint64_t bytes = tier_->slot(nth).bytes;
  EXPECT_TRUE(tier_->FlipBit(nth, random_.Below(bytes), static_cast<int>(random_.Below(8))));
  ++flips_;
  rotten_ = true;
}

std::set<std::string> World::Listed() {
  std::set<std::string> listed;
  uint64_t cursor = 0;
  do {
    const ListResult part = store_->List(*space_, 1000, cursor);
    for (const ListedPage& page : part.pages) listed.insert(page.key);
    cursor = part.cursor;
  } while (cursor != 0);
  for (const std::string& key : listed) {
    EXPECT_TRUE(std::ranges::any_of(books_, [&](const Book* book) {
      return book->Find(key).has_value();
    })) << "a key that nobody put";
  }
  return listed;
}

void World::Scrub() {
  uint64_t cursor = 0;
  do {
    cursor = store_->Verify(cursor, 1 << 20).cursor;
  } while (cursor != 0);
  const std::set<std::string> listed = Listed();
  for (Book* book : books_) {
    for (Book::Node node = 0; node < book->size(); ++node) {
      if (listed.contains(book->at(node).item.key)) continue;
      book->Missed(node);
      if (rotten_) book->DropLeasesOf(node);
      EXPECT_FALSE(book->IsLeased(node));
    }
  }
  // Every page that is left is good.
  rotten_ = false;
}

void World::Clear() {
  store_->Clear(*space_);
  // What is pinned or leased stays, with what it extends.
  const std::set<std::string> kept = Listed();
  for (Book* book : books_) {
    for (Book::Node node = 0; node < book->size(); ++node) {
      if (kept.contains(book->at(node).item.key)) continue;
      EXPECT_TRUE(!book->IsLeased(node) || rotten_);
      book->Missed(node);
    }
  }
}

void World::FailDevice() {
  if (device_faults_ == nullptr) return;
  const size_t what = random_.Below(40);
  if (what == 0) return device_faults_->FailWait(0, absl::UnavailableError("lost"));
  if (what < 14) return device_faults_->FlipInCopy(random_.Below(2), random_.Below(1000));
  const absl::Status error = absl::InternalError("injected");
  if (what < 27) return device_faults_->FailStart(random_.Below(2), error);
  device_faults_->FailWait(random_.Below(2), error);
}

IoFaults World::SomeDiskFaults() {
  switch (profile_.disk) {
    case Profile::Disk::kFails:
      return {.read_error = random_.OneIn(4) ? 20 : 0,
              .write_error = 20,
              .no_space = 10,
              .read_only = random_.OneIn(10) ? 1000 : 0,
              .short_write = 20,
              .sync_error = 20,
              .allocate_no_space = 50};
    case Profile::Disk::kLies:
      return {.lost_write = 10, .misdirected_write = 10, .flipped_write = 20, .flipped_read = 10};
    default:
      return {};
  }
}

void World::ChangeDiskFaults() {
  if (has_disk()) io_->SetFaults(SomeDiskFaults());
}

// --- What must hold ---

void World::CheckSpace(size_t open_puts, size_t leases, size_t held_copies) {
  const StoreStats stats = store_->Stats();
  const auto host = std::ranges::find(stats.tiers, TierKind::kHost, &TierStats::kind);
  ASSERT_LE(host->used_bytes, host->capacity_bytes);
  ASSERT_EQ(host->reserved_slots,
            stats.pages + stats.detached_pages + stats.open_puts + stats.ladder.retired_slots);
  ASSERT_EQ(stats.open_puts, open_puts);
  ASSERT_EQ(stats.leases, leases);
  ASSERT_LE(stats.leased_bytes, stats.leasable_bytes);
  if (mover_ != nullptr) {
    ASSERT_LE(stats.tiers[0].used_bytes, stats.tiers[0].capacity_bytes);
    ASSERT_LE(stats.tiers[0].reserved_slots, stats.pages + held_copies + 5);
  }
  if (has_disk()) {
    ASSERT_LE(stats.tiers.back().used_bytes, stats.tiers.back().capacity_bytes);
  }
  ASSERT_EQ(stats.namespaces[0].wide_pages + stats.namespaces[0].packed_pages, stats.pages);
}

void World::CheckNothingHeld() {
  mover_.reset();
  StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.pins, 0u);
  EXPECT_EQ(stats.holds, 0u);
  EXPECT_EQ(stats.leased_bytes, 0u);
  EXPECT_EQ(stats.open_puts, 0u);
  EXPECT_EQ(stats.detached_pages, 0u);
  store_->Clear(*space_);
  stats = store_->Stats();
  EXPECT_EQ(stats.pages, 0u);
  for (const TierStats& tier : stats.tiers) {
    if (tier.kind == TierKind::kDisk) continue;  // others' pages are there too
    EXPECT_EQ(tier.used_bytes, 0u);
    EXPECT_EQ(tier.reserved_slots, 0u);
  }
  EXPECT_TRUE(Listed().empty());
}

void World::AddTo(std::map<std::string, uint64_t>* seen) const {
  if (seen != &seen_)
    for (const auto& [name, count] : seen_) (*seen)[name] += count;
  for (const NamedCounter& counter : NamedCounters(store_->Stats())) {
    std::string name(counter.name);
    if (!counter.label.empty()) absl::StrAppend(&name, " ", std::string(counter.value_of_label));
    (*seen)[name] += counter.value;
  }
}

}  // namespace oscarkv::testing
