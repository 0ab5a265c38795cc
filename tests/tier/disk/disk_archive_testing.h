// A store with an archive on disk, over a device that fails as a test wants.
#ifndef OSCARKV_TESTS_TIER_DISK_DISK_ARCHIVE_TESTING_H_
#define OSCARKV_TESTS_TIER_DISK_DISK_ARCHIVE_TESTING_H_

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "server/core/archive_writer.h"
#include "server/tier/disk/disk_archive.h"
#include "server/tier/disk/posix_io.h"
#include "tests/core/store_test.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {

class DiskArchiveTest : public StoreTest {
 protected:
  // A store with room for `pages` WIDE pages in memory, and its archive as it was.
  void OpenWith(uint64_t pages, PageStoreOptions options = {},
                std::unique_ptr<EvictionPolicy> policy = nullptr) {
    store_.reset();
    auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
    io_ = io.get();
    auto disk = DiskStore::Open(TestOptions(folder_.path()), std::move(io));
    ASSERT_OK(disk);
    auto tier = std::make_unique<FaultyTier>(std::make_unique<FakeTier>(pages * kWideSlotBytes));
    tier_ = tier.get();
    auto archive = std::make_unique<DiskArchive>(*std::move(disk));
    archive_ = archive.get();
    auto store = PageStore::Create(options, std::move(tier), std::move(policy), clock_, nullptr,
                                   std::move(archive));
    ASSERT_OK(store);
    store_ = *std::move(store);
    auto space = store_->OpenNamespace(SmallSpec(), true);
    ASSERT_OK(space);
    space_ = *space;
  }
  void WriteAll() {
    ArchiveWriter writer(store());
    while (writer.Step()) {
    }
  }
  // As a fetch does. What comes back is held against what was put.
  ItemStatus Fetch(const std::vector<TestItem>& items, size_t first = 0) {
    const std::vector<std::string_view> keys = KeysOf(items);
    PinResult pinned = store().Pin(space(), keys[first]);
    if (pinned.archived) pinned = store().Load(space(), std::span(keys).subspan(first));
    if (pinned.status != ItemStatus::kOk) return pinned.status;
    const auto bytes = pinned.page.VerifiedPage();
    if (!bytes.ok()) return ItemStatus::kCorrupt;
    const TestPage expected = MakePage(space(), items[first].encoding, items[first].seed);
    EXPECT_TRUE(std::ranges::equal(*bytes, expected.bytes));
    return ItemStatus::kOk;
  }
  uint64_t RefusedFor(ArchiveRefusal why) {
    return store().Stats().archive.refused_pages[static_cast<size_t>(why)];
  }
  TierKind TierOf(const TestItem& item) {
    const std::string_view key = item.key;
    const LookupResult found = store().Lookup(space(), {.keys = {&key, 1}});
    return found.prefix_pages == 1 ? found.pages[0].meta.tier : TierKind{};
  }

  ScopedFolder folder_{ScopedFolder::Where::kMemory};
  FaultyIo* io_ = nullptr;
  DiskArchive* archive_ = nullptr;  // the store's
};

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TIER_DISK_DISK_ARCHIVE_TESTING_H_
