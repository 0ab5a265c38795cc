// The disk store: what it writes it reads, what it has no room for goes, what is wrong is found.
#include "server/tier/disk/disk_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/tier/disk/posix_io.h"
#include "server/tier/disk/uring_io.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class DiskStoreTest : public ::testing::Test {
 protected:
  DiskStoreTest() { Reopen(); }

  // As after kill -9: nothing is told to the old one.
  void Reopen() {
    store_.reset();
    auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
    io_ = io.get();
    auto store = DiskStore::Open(options_, std::move(io));
    ASSERT_OK(store);
    store_ = *std::move(store);
  }
  // Writes pages first..stop-1 of 60,000 bytes in one call.
  void WriteMany(uint64_t first, uint64_t stop) {
    std::vector<TestDiskPage> pages;
    std::vector<DiskPut> puts;
    for (uint64_t i = first; i < stop; ++i) pages.emplace_back(i, kBytes);
    for (const TestDiskPage& page : pages) puts.push_back(page.put());
    store_->Write(puts);
    for (const DiskPut& put : puts) ASSERT_OK(put.status);
  }
  bool Holds(uint64_t number) {
    return store_->Find(TestFingerprint(), TestKey(number)).has_value();
  }
  uint64_t UsedBytes() const {
    uint64_t bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
      struct stat info {};
      EXPECT_EQ(stat(entry.path().c_str(), &info), 0);
      bytes += static_cast<uint64_t>(info.st_blocks) * 512;
    }
    return bytes;
  }
  // Changes a byte of the file at the first place where `text` stands.
  void Spoil(const std::string& file, std::string_view text, size_t after = 0) {
    const std::string path = folder_.file(file);
    const int descriptor = open(path.c_str(), O_RDWR);
    std::string bytes(kTestSegmentBytes, '\0');
    ASSERT_GT(pread(descriptor, bytes.data(), bytes.size(), 0), 0);
    const size_t at = bytes.find(text);
    ASSERT_NE(at, std::string::npos);
    const char spoiled = static_cast<char>(bytes[at + after] ^ 16);
    ASSERT_EQ(pwrite(descriptor, &spoiled, 1, static_cast<off_t>(at + after)), 1);
    close(descriptor);
  }

  static constexpr uint64_t kBytes = 60'000;
  static constexpr uint64_t kPagesPerSegment = 16;  // of that size

  ScopedFolder folder_;
  DiskStoreOptions options_ = TestOptions(folder_.path());
  std::unique_ptr<DiskStore> store_;
  FaultyIo* io_ = nullptr;
};

TEST_F(DiskStoreTest, ReadsWhatWasWrittenAlsoAfterReopening) {
  TestDiskPage root(1, 100);
  TestDiskPage page(2, 100'000);
  page.parent = root.key;
  page.first_position = 1ull << 40;
  root.encoding = Encoding::kWide;
  DiskPut puts[] = {root.put(), page.put()};
  store_->Write(puts);
  ASSERT_OK(puts[0].status);
  ASSERT_OK(puts[1].status);
  for (int round = 0; round < 2; ++round) {
    const ReadBack found = ReadOne(*store_, page.key);
    ASSERT_OK(found.status);
    EXPECT_EQ(found.body, page.body);
    EXPECT_EQ(found.parent, root.key);
    EXPECT_EQ(found.first_position, 1ull << 40);
    EXPECT_EQ(found.encoding, Encoding::kPacked);
    EXPECT_EQ(ReadOne(*store_, root.key).encoding, Encoding::kWide);
    const auto info = store_->Find(TestFingerprint(), page.key);
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->body_bytes, 100'000u);
    EXPECT_EQ(info->first_position, 1ull << 40);
    Reopen();
  }
  EXPECT_EQ(store_->Stats().recovered_pages, 2u);
}

TEST_F(DiskStoreTest, WhatCannotBeMadeSureAtOpeningIsNotServed) {
  WriteMany(0, 3);
  store_.reset();
  // Somebody was killed in the middle: what is read of that segment may not be on the device.
  auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
  io->SetFaults({.sync_error = 1000});
  auto opened = DiskStore::Open(options_, std::move(io));
  ASSERT_OK(opened);
  store_ = *std::move(opened);
  EXPECT_FALSE(Holds(0));
  EXPECT_FALSE(store_->Stats().last_error.empty());
  Reopen();
  for (uint64_t i = 0; i < 3; ++i) EXPECT_TRUE(Holds(i));
}

TEST_F(DiskStoreTest, NamespacesAreApart) {
  ASSERT_OK(WriteOne(*store_, TestDiskPage(1, 100)));
  EXPECT_THAT(ReadOne(*store_, TestKey(1), TestFingerprint(2)).status,
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ReadOne(*store_, TestKey(2)).status,
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("page 02")));
}

TEST_F(DiskStoreTest, APageThatIsThereIsNotWrittenAgain) {
  ASSERT_OK(WriteOne(*store_, TestDiskPage(1, kBytes)));
  const uint64_t written = store_->Stats().io.written_bytes;
  ASSERT_OK(WriteOne(*store_, TestDiskPage(1, kBytes)));
  EXPECT_EQ(store_->Stats().io.written_bytes, written);
  EXPECT_EQ(store_->Stats().written_pages, 1u);
}

TEST_F(DiskStoreTest, AKeyTwiceInOneCallIsThereOnce) {
  const TestDiskPage page(1, kBytes);
  DiskPut puts[] = {page.put(), page.put()};
  store_->Write(puts);
  EXPECT_EQ(store_->Stats().pages, 1u);
  Reopen();
  EXPECT_EQ(store_->Stats().pages, 1u);
  EXPECT_EQ(ReadOne(*store_, page.key).body, page.body);
}

TEST_F(DiskStoreTest, SizesThatCannotBeAreInvalid) {
  TestDiskPage page(1, kBytes);
  page.fingerprint = "short";
  EXPECT_THAT(WriteOne(*store_, page),
              StatusIs(absl::StatusCode::kInvalidArgument, "a fingerprint has 32 bytes, found 5"));
  page = TestDiskPage(1, kBytes);
  page.key = "short";
  EXPECT_THAT(WriteOne(*store_, page), StatusIs(absl::StatusCode::kInvalidArgument));
  page = TestDiskPage(1, kBytes);
  page.parent = "short";
  EXPECT_THAT(WriteOne(*store_, page),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("parent")));
  EXPECT_THAT(WriteOne(*store_, TestDiskPage(1, 0)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WriteOne(*store_, TestDiskPage(1, kTestSegmentBytes)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found 1048576")));
  TestDiskPage few(1, 3);  // has 4 bytes of checksums
  EXPECT_THAT(WriteOne(*store_, few), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_OK(WriteOne(*store_, TestDiskPage(1, kBytes)));
  const AlignedBuffer small(4096);
  const std::string fingerprint = TestFingerprint();
  const std::string key = TestKey(1);
  DiskGet get{.fingerprint = fingerprint, .key = key, .buffer = small.bytes()};
  store_->Read({&get, 1});
  EXPECT_THAT(get.status, StatusIs(absl::StatusCode::kInvalidArgument,
                                   HasSubstr("a buffer of 4096 bytes, needed are 61440")));
}

TEST_F(DiskStoreTest, TheLargestPageAlwaysFits) {
  // Everything has been read, so as much as may be is kept of every segment that goes.
  const uint64_t most = 1'036'032;
  for (uint64_t i = 0; i < 60; ++i) {
    const TestDiskPage page(i, i % 3 == 0 ? most : 3000);
    ASSERT_OK(WriteOne(*store_, page));
    ASSERT_EQ(ReadOne(*store_, page.key).body, page.body);
  }
  EXPECT_GT(store_->Stats().rewritten_pages, 0u);
}

// --- Room ---

TEST_F(DiskStoreTest, TheOldestSegmentGoesAndCapacityIsNeverPassed) {
  const uint64_t capacity = options_.directory.capacity_bytes;
  EXPECT_LE(UsedBytes(), capacity);
  io_->OnRun([&] { EXPECT_LE(UsedBytes(), capacity); });
  for (uint64_t i = 0; i < 100; i += 10) WriteMany(i, i + 10);
  EXPECT_FALSE(Holds(0));
  EXPECT_TRUE(Holds(99));
  const DiskStoreStats stats = store_->Stats();
  EXPECT_EQ(stats.written_pages, 100u);
  EXPECT_EQ(stats.reclaimed_pages + stats.pages, 100u);
  EXPECT_GE(stats.pages, 3 * kPagesPerSegment);
  EXPECT_LE(stats.free_segments, 1u);
  EXPECT_LE(stats.live_bytes, stats.capacity_bytes);
  Reopen();
  EXPECT_EQ(store_->Stats().pages, stats.pages);
  for (uint64_t i = 0; i < 100; ++i) {
    if (Holds(i)) {
      EXPECT_EQ(ReadOne(*store_, TestKey(i)).body, BodyOf(i, kBytes));
    }
  }
}

TEST_F(DiskStoreTest, WhatWasReadIsKeptOnceAndWriteAmplificationIsBounded) {
  WriteMany(0, 3);
  ASSERT_OK(ReadOne(*store_, TestKey(1)).status);
  for (uint64_t i = 3; i < 4 * kPagesPerSegment; ++i) WriteMany(i, i + 1);
  EXPECT_TRUE(Holds(1));
  EXPECT_FALSE(Holds(0));
  EXPECT_EQ(store_->Stats().rewritten_pages, 1u);
  EXPECT_EQ(ReadOne(*store_, TestKey(1)).body, BodyOf(1, kBytes));
  Reopen();
  EXPECT_EQ(ReadOne(*store_, TestKey(1)).body, BodyOf(1, kBytes));
  // Read everything all the time: no more is kept than may be.
  for (uint64_t i = 100; i < 200; ++i) {
    WriteMany(i, i + 1);
    for (uint64_t j = 100; j <= i; ++j) ReadOne(*store_, TestKey(j)).status.IgnoreError();
  }
  const DiskStoreStats stats = store_->Stats();
  EXPECT_LE(stats.rewritten_pages, stats.written_pages / 3 + kPagesPerSegment / 4);
  EXPECT_GT(stats.rewritten_pages, stats.written_pages / 8);
}

TEST_F(DiskStoreTest, APageThatIsForgottenWhileItIsKeptStaysAway) {
  const auto fill = [this](uint64_t stop) {
    WriteMany(0, 3);
    ASSERT_OK(ReadOne(*store_, TestKey(1)).status);
    for (uint64_t i = 3; i < stop; ++i) WriteMany(i, i + 1);
  };
  // The write that makes room, and writes page 1 again for it.
  fill(3);
  uint64_t last = 3;
  for (; store_->Stats().rewritten_pages == 0; ++last) WriteMany(last, last + 1);
  // At each of its steps.
  int forgotten = 0;
  int steps = 1;
  for (int at = 0; at < steps; ++at) {
    const ScopedFolder folder;
    options_ = TestOptions(folder.path());
    Reopen();
    fill(last - 1);
    steps = 0;
    io_->OnRun([&] {
      if (steps++ == at) forgotten += store_->Forget(TestFingerprint(), TestKey(1)) ? 1 : 0;
    });
    WriteMany(last - 1, last);
    io_->OnRun(nullptr);
    EXPECT_FALSE(Holds(1)) << "step " << at;
    ASSERT_OK(store_->WriteRemovals());
    Reopen();
    EXPECT_FALSE(Holds(1)) << "after opening, step " << at;
    EXPECT_EQ(ReadOne(*store_, TestKey(last - 1)).body, BodyOf(last - 1, kBytes));
    store_.reset();
  }
  EXPECT_EQ(forgotten, steps);
  EXPECT_GT(steps, 3);
}

TEST_F(DiskStoreTest, ASparseSegmentGoesFirst) {
  WriteMany(0, 2 * kPagesPerSegment);
  for (uint64_t i = kPagesPerSegment; i < 2 * kPagesPerSegment - 1; ++i)
    EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(i)));
  // The others fill, and room is needed: the second, of which little lives, goes.
  WriteMany(100, 100 + 2 * kPagesPerSegment);
  EXPECT_TRUE(Holds(0));
  EXPECT_FALSE(Holds(2 * kPagesPerSegment - 1));
}

TEST_F(DiskStoreTest, SmallPagesFillTheTable) {
  std::vector<TestDiskPage> pages;
  std::vector<DiskPut> puts;
  for (uint64_t i = 0; i < 600; ++i) pages.emplace_back(i, 10);
  for (const TestDiskPage& page : pages) puts.push_back(page.put());
  store_->Write(puts);
  for (int round = 0; round < 2; ++round) {
    for (const TestDiskPage& page : pages) EXPECT_EQ(ReadOne(*store_, page.key).body, page.body);
    Reopen();
  }
}

// --- Removal ---

TEST_F(DiskStoreTest, ForgottenPagesStayAwayAfterReopening) {
  WriteMany(0, kPagesPerSegment + 4);
  EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(2)));
  EXPECT_FALSE(store_->Forget(TestFingerprint(), TestKey(2)));
  EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(kPagesPerSegment + 3)));
  EXPECT_FALSE(Holds(2));
  ASSERT_OK(store_->WriteRemovals());
  // The table's tail is written again: it remembers too.
  WriteMany(50, 52);
  Reopen();
  EXPECT_FALSE(Holds(2));
  EXPECT_FALSE(Holds(kPagesPerSegment + 3));
  EXPECT_TRUE(Holds(3));
  EXPECT_TRUE(Holds(51));
  // And written anew it is there.
  WriteMany(2, 3);
  Reopen();
  EXPECT_EQ(ReadOne(*store_, TestKey(2)).body, BodyOf(2, kBytes));
}

TEST_F(DiskStoreTest, ATreeIsForgottenWithAllThatExtendsIt) {
  // 0 <- 1 <- 2, 1 <- 3, and 9 stands alone.
  std::vector<TestDiskPage> pages;
  for (const uint64_t number : {0u, 1u, 2u, 3u, 9u}) pages.emplace_back(number, 5000);
  pages[1].parent = pages[0].key;
  pages[2].parent = pages[3].parent = pages[1].key;
  for (const TestDiskPage& page : pages) ASSERT_OK(WriteOne(*store_, page));
  // The page itself need not be there.
  EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(1)));
  EXPECT_EQ(store_->ForgetTree(TestFingerprint(), TestKey(1)), 2u);
  EXPECT_FALSE(Holds(2));
  EXPECT_TRUE(Holds(0));
  ASSERT_OK(WriteOne(*store_, pages[1]));
  ASSERT_OK(WriteOne(*store_, pages[3]));
  EXPECT_EQ(store_->ForgetTree(TestFingerprint(), TestKey(0)), 3u);
  EXPECT_EQ(store_->ForgetTree(TestFingerprint(), TestKey(0)), 0u);
  ASSERT_OK(store_->WriteRemovals());
  Reopen();
  EXPECT_EQ(store_->Stats().pages, 1u);
  EXPECT_TRUE(Holds(9));
}

TEST_F(DiskStoreTest, ATreeIsForgottenAcrossPagesThatHaveGone) {
  // 0 <- 1 <- 2 <- 3
  std::vector<TestDiskPage> pages;
  for (const uint64_t number : {0u, 1u, 2u, 3u}) pages.emplace_back(number, 5000);
  for (size_t i = 1; i < pages.size(); ++i) pages[i].parent = pages[i - 1].key;
  for (const TestDiskPage& page : pages) ASSERT_OK(WriteOne(*store_, page));
  EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(1)));
  EXPECT_TRUE(store_->Forget(TestFingerprint(), TestKey(2)));
  EXPECT_TRUE(Holds(3));
  EXPECT_EQ(store_->ForgetTree(TestFingerprint(), TestKey(0)), 2u);
  EXPECT_FALSE(Holds(3));
}

TEST_F(DiskStoreTest, ListShowsTheNamespacesPagesOnce) {
  WriteMany(0, 20);
  TestDiskPage other(99, 10);
  other.fingerprint = TestFingerprint(7);
  ASSERT_OK(WriteOne(*store_, other));
  store_->Forget(TestFingerprint(), TestKey(5));
  std::set<std::string> keys;
  uint64_t cursor = 0;
  do {
    const DiskListResult part = store_->List(TestFingerprint(), 3, cursor);
    EXPECT_LE(part.pages.size(), 3u);
    for (const ListedDiskPage& page : part.pages) EXPECT_TRUE(keys.insert(page.key).second);
    cursor = part.cursor;
  } while (cursor != 0);
  EXPECT_EQ(keys.size(), 19u);
  EXPECT_FALSE(keys.contains(TestKey(5)));
}

// --- Orphans ---

TEST_F(DiskStoreTest, PagesWhoseAncestorsAreGoneAreDroppedAtOpening) {
  std::vector<TestDiskPage> chain;
  for (uint64_t i = 0; i < 5; ++i) {
    chain.emplace_back(i, 5000);
    if (i > 0) chain.back().parent = chain[i - 1].key;
  }
  // A child may be written before its parent.
  for (const uint64_t i : {4u, 3u, 0u, 1u, 2u}) ASSERT_OK(WriteOne(*store_, chain[i]));
  Reopen();
  EXPECT_EQ(store_->Stats().pages, 5u);
  store_->Forget(TestFingerprint(), chain[2].key);
  ASSERT_OK(store_->WriteRemovals());
  EXPECT_TRUE(Holds(3));
  Reopen();
  EXPECT_EQ(store_->Stats().pages, 2u);
  EXPECT_EQ(store_->Stats().orphan_pages, 2u);
  EXPECT_TRUE(Holds(1));
  EXPECT_FALSE(Holds(4));
}

TEST_F(DiskStoreTest, OrphansDoNotComeBackWithWhatTheyExtend) {
  TestDiskPage parent(1, 1000);
  TestDiskPage child(2, 1000);
  child.parent = parent.key;
  ASSERT_OK(WriteOne(*store_, child));
  Reopen();
  EXPECT_EQ(store_->Stats().orphan_pages, 1u);
  ASSERT_OK(WriteOne(*store_, parent));
  Reopen();
  EXPECT_EQ(store_->Stats().orphan_pages, 0u);
  EXPECT_TRUE(store_->Find(TestFingerprint(), parent.key).has_value());
  EXPECT_FALSE(store_->Find(TestFingerprint(), child.key).has_value());
}

TEST_F(DiskStoreTest, PagesThatExtendEachOtherInACircleAreOrphans) {
  TestDiskPage a(1, 100);
  TestDiskPage b(2, 100);
  a.parent = b.key;
  b.parent = a.key;
  ASSERT_OK(WriteOne(*store_, a));
  ASSERT_OK(WriteOne(*store_, b));
  Reopen();
  EXPECT_EQ(store_->Stats().pages, 0u);
  EXPECT_EQ(store_->Stats().orphan_pages, 2u);
}

// --- Damage ---

TEST_F(DiskStoreTest, AFlippedBitOnTheDeviceIsFoundAndThePageDropped) {
  WriteMany(0, 3);
  const std::vector<std::byte> body = BodyOf(1, kBytes);
  Spoil("segment-000000", AsText(ByteView(body).first(64)), 30'000);
  EXPECT_THAT(ReadOne(*store_, TestKey(1)).status,
              StatusIs(absl::StatusCode::kDataLoss,
                       AllOf(HasSubstr("page 01"), HasSubstr("body: checksum"))));
  EXPECT_EQ(store_->Stats().corrupt_pages, 1u);
  EXPECT_FALSE(Holds(1));
  EXPECT_OK(ReadOne(*store_, TestKey(2)).status);
  // For good.
  ASSERT_OK(store_->WriteRemovals());
  Reopen();
  EXPECT_FALSE(Holds(1));
}

TEST_F(DiskStoreTest, ADamagedHeaderInTheTableLosesItsPageOnly) {
  WriteMany(0, 3);
  // In the record and in the table: the table is the last that matches.
  const int file = open(folder_.file("segment-000000").c_str(), O_RDWR);
  const char zero = 0;
  ASSERT_EQ(pwrite(file, &zero, 1, static_cast<off_t>(kTestSegmentBytes - 4096 + 256)), 1);
  close(file);
  Reopen();
  EXPECT_TRUE(Holds(0));
  EXPECT_FALSE(Holds(1));
  EXPECT_TRUE(Holds(2));
}

TEST_F(DiskStoreTest, VerifyFindsWhatIsBadAndPacesItself) {
  WriteMany(0, 10);
  const std::vector<std::byte> body = BodyOf(4, kBytes);
  Spoil("segment-000000", AsText(ByteView(body).first(64)), 1000);
  DiskVerifyProgress progress = store_->Verify(0, 1);
  EXPECT_EQ(progress.pages_checked, 1u);
  EXPECT_NE(progress.cursor, 0u);
  uint64_t checked = 1;
  uint64_t corrupt = 0;
  while (progress.cursor != 0) {
    progress = store_->Verify(progress.cursor, 150'000);
    EXPECT_LE(progress.pages_checked, 3u);
    checked += progress.pages_checked;
    corrupt += progress.pages_corrupt;
  }
  EXPECT_EQ(checked, 10u);
  EXPECT_EQ(corrupt, 1u);
  EXPECT_FALSE(Holds(4));
  EXPECT_EQ(store_->Stats().pages, 9u);
}

// --- A failing disk ---

struct WriteFault {
  const char* name;
  IoFaults faults;
  absl::StatusCode code;
};
class DiskStoreWriteFaultTest : public DiskStoreTest,
                                public ::testing::WithParamInterface<WriteFault> {};

TEST_P(DiskStoreWriteFaultTest, MakesErrorsAndCountsAndGoesOnAfterwards) {
  WriteMany(0, 4);
  io_->SetFaults(GetParam().faults);
  // More than a segment, so that one would have to start too.
  for (uint64_t i = 10; i < 10 + 2 * kPagesPerSegment; ++i) {
    EXPECT_THAT(WriteOne(*store_, TestDiskPage(i, kBytes)), StatusIs(GetParam().code));
    EXPECT_FALSE(Holds(i));
  }
  store_->Forget(TestFingerprint(), TestKey(3));
  EXPECT_THAT(store_->WriteRemovals(), StatusIs(GetParam().code));
  const DiskStoreStats stats = store_->Stats();
  EXPECT_EQ(stats.failed_writes, 2 * kPagesPerSegment);
  EXPECT_FALSE(stats.last_error.empty());
  EXPECT_EQ(stats.pages, 3u);
  // What is there is read; nothing was given up for what could not be written.
  for (uint64_t i = 0; i < 3; ++i) EXPECT_OK(ReadOne(*store_, TestKey(i)).status);
  io_->SetFaults({});
  WriteMany(100, 105);
  Reopen();
  EXPECT_FALSE(Holds(3));
  for (const uint64_t i : {0u, 1u, 2u, 100u, 104u})
    EXPECT_EQ(ReadOne(*store_, TestKey(i)).body, BodyOf(i, kBytes));
}

INSTANTIATE_TEST_SUITE_P(
    Faults, DiskStoreWriteFaultTest,
    ::testing::Values(
        WriteFault{"NoSpace", {.no_space = 1000}, absl::StatusCode::kResourceExhausted},
        WriteFault{"DeviceError", {.write_error = 1000}, absl::StatusCode::kDataLoss},
        WriteFault{"ShortWrite", {.short_write = 1000}, absl::StatusCode::kDataLoss},
        WriteFault{"ReadOnly", {.read_only = 1000}, absl::StatusCode::kFailedPrecondition},
        WriteFault{"SyncError", {.sync_error = 1000}, absl::StatusCode::kDataLoss}),
    [](const auto& fault) { return std::string(fault.param.name); });

TEST_F(DiskStoreTest, APageThatTheDeviceCannotReadIsDropped) {
  WriteMany(0, 2);
  io_->SetFaults({.read_error = 1000});
  EXPECT_THAT(ReadOne(*store_, TestKey(0)).status,
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("Input/output error")));
  io_->SetFaults({});
  EXPECT_FALSE(Holds(0));
  EXPECT_OK(ReadOne(*store_, TestKey(1)).status);
  EXPECT_EQ(store_->Stats().unreadable_pages, 1u);
  EXPECT_EQ(store_->Stats().corrupt_pages, 0u);
}

TEST_F(DiskStoreTest, LostAndMisdirectedWritesAreFound) {
  WriteMany(0, 2 * kPagesPerSegment);
  for (const IoFaults& faults : {IoFaults{.lost_write = 300}, IoFaults{.misdirected_write = 300},
                                 IoFaults{.flipped_write = 300}}) {
    io_->SetFaults(faults);
    for (uint64_t i = 100; i < 160; ++i) WriteOne(*store_, TestDiskPage(i, kBytes)).IgnoreError();
    io_->SetFaults({});
    for (uint64_t i = 0; i < 160; ++i) {
      const ReadBack found = ReadOne(*store_, TestKey(i));
      EXPECT_TRUE(!found.status.ok() || found.body == BodyOf(i, kBytes));
    }
    Reopen();
    for (uint64_t i = 0; i < 160; ++i) {
      const ReadBack found = ReadOne(*store_, TestKey(i));
      EXPECT_TRUE(!found.status.ok() || found.body == BodyOf(i, kBytes));
    }
  }
}

// --- Threads ---

TEST_F(DiskStoreTest, ReadersAndWritersBesideEachOther) {
  std::atomic<bool> done = false;
  std::vector<int> wrong(2, 0);
  std::vector<std::thread> readers;
  for (size_t t = 0; t < wrong.size(); ++t) {
    readers.emplace_back([&, t] {
      std::mt19937_64 random(t);
      while (!done.load()) {
        const uint64_t number = random() % 200;
        const ReadBack found = ReadOne(*store_, TestKey(number));
        if (found.status.ok() ? found.body != BodyOf(number, kBytes)
                              : !absl::IsNotFound(found.status))
          ++wrong[t];
      }
    });
  }
  for (uint64_t i = 0; i < 200; i += 4) WriteMany(i, i + 4);
  done.store(true);
  for (std::thread& reader : readers) reader.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0));
  EXPECT_EQ(store_->Stats().corrupt_pages, 0u);
}

TEST(DiskStoreUringTest, WritesAndReadsManyAtATime) {
  auto io = UringIo::Create({});
  if (!io.ok()) GTEST_SKIP() << io.status();
  const ScopedFolder folder;
  auto store = DiskStore::Open(TestOptions(folder.path(), 8), *std::move(io));
  ASSERT_OK(store);
  std::vector<TestDiskPage> pages;
  std::vector<DiskPut> puts;
  for (uint64_t i = 0; i < 100; ++i) pages.emplace_back(i, 50'000);
  for (const TestDiskPage& page : pages) puts.push_back(page.put());
  (*store)->Write(puts);
  std::vector<AlignedBuffer> buffers;
  std::vector<DiskGet> gets;
  for (const TestDiskPage& page : pages) {
    buffers.emplace_back(RecordBytes(50'000));
    gets.push_back(
        {.fingerprint = page.fingerprint, .key = page.key, .buffer = buffers.back().bytes()});
  }
  (*store)->Read(gets);
  for (size_t i = 0; i < pages.size(); ++i) {
    ASSERT_OK(puts[i].status);
    ASSERT_OK(gets[i].status);
    EXPECT_TRUE(std::ranges::equal(gets[i].body, pages[i].body));
  }
  EXPECT_EQ((*store)->Stats().backend, "io_uring");
}

}  // namespace
}  // namespace oscarkv::testing
