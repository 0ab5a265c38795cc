// Files of the disk directory that hold no pages: they come back whole or not at all.
#include "server/tier/disk/disk_catalog.h"

#include <filesystem>
#include <fstream>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/tier/disk/posix_io.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kName(kCatalogNameBytes, 'n');
const std::string kOther(kCatalogNameBytes, 'o');

class DiskCatalogTest : public ::testing::Test {
 protected:
  DiskCatalogTest() { Open(); }
  void Open(uint8_t directory = 1) {
    catalog_.reset();
    io_ = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 7);
    DiskId id;
    id.fill(std::byte{directory});
    catalog_ = std::make_unique<DiskCatalog>(
        DiskCatalogOptions{.path = folder_.path(), .id = id, .bytes_max = 4 << 20}, *io_);
  }
  absl::Status Save(std::string_view contents, const std::string& name = kName) {
    return catalog_->Save(CatalogKind::kNamespace, name, contents);
  }
  absl::StatusOr<std::string> Load(const std::string& name = kName) {
    return catalog_->Load(CatalogKind::kNamespace, name, 4 << 20);
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
      files.push_back(entry.path().filename().string());
    return files;
  }
  std::string PathOf(const std::string& name = kName) const {
    std::string hex;
    for (const char c : name) hex += c == 'n' ? "6e" : "6f";
    return folder_.file("namespace-" + hex);
  }
  static std::string Text(uint64_t seed, size_t bytes) {
    std::mt19937_64 random(seed);
    std::string text(bytes, '\0');
    for (char& c : text) c = static_cast<char>(random());
    return text;
  }

  ScopedFolder folder_{ScopedFolder::Where::kMemory};
  std::unique_ptr<FaultyIo> io_;
  std::unique_ptr<DiskCatalog> catalog_;
};

TEST_F(DiskCatalogTest, WhatIsSavedComesBackAlsoAfterReopening) {
  // Of more than one piece, of whole blocks, of nothing.
  const std::string large = Text(1, (1 << 20) + 12'345);
  const std::string whole = Text(2, 8192);
  ASSERT_OK(Save(large));
  ASSERT_OK(Save(whole, kOther));
  ASSERT_OK(catalog_->Save(CatalogKind::kTransformSet, kName, ""));
  for (int time = 0; time < 2; ++time) {
    EXPECT_THAT(catalog_->Entries(),
                ElementsAre(CatalogEntry{CatalogKind::kNamespace, kName, large.size()},
                            CatalogEntry{CatalogKind::kNamespace, kOther, 8192},
                            CatalogEntry{CatalogKind::kTransformSet, kName, 0}));
    EXPECT_EQ(*Load(), large);
    EXPECT_EQ(*Load(kOther), whole);
    EXPECT_EQ(*catalog_->Load(CatalogKind::kTransformSet, kName, 0), "");
    EXPECT_EQ(catalog_->Stats().bytes, 4096u + RoundUpToIo(large.size()) + 3 * 4096u + 4096u);
    EXPECT_EQ(catalog_->Stats().skipped, 0u);
    Open();
  }
  EXPECT_THAT(catalog_->Load(CatalogKind::kTransformSet, kOther, 1),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(DiskCatalogTest, WhatIsRemovedIsGoneAlsoAfterReopening) {
  ASSERT_OK(Save("one"));
  ASSERT_OK(Save("other", kOther));
  const uint64_t both = catalog_->Stats().bytes;
  EXPECT_OK(catalog_->Remove(CatalogKind::kNamespace, kName));
  EXPECT_OK(catalog_->Remove(CatalogKind::kNamespace, kName));  // it is not there
  EXPECT_OK(catalog_->Remove(CatalogKind::kTransformSet, kOther));
  for (int time = 0; time < 2; ++time) {
    EXPECT_EQ(Load().status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(Load(kOther).value(), "other");
    EXPECT_EQ(catalog_->Stats().bytes, both / 2);
    EXPECT_EQ(Files().size(), 1u);
    Open();
  }
  ASSERT_OK(Save("again"));
  EXPECT_EQ(Load().value(), "again");
}

TEST_F(DiskCatalogTest, ALimitIsCheckedBeforeMemoryIsTaken) {
  ASSERT_OK(Save("0123456789"));
  EXPECT_THAT(catalog_->Load(CatalogKind::kNamespace, kName, 9),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("10 bytes, at most 9")));
  EXPECT_THAT(Save("x", "short"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(DiskCatalogTest, NoMoreRoomIsTakenThanThereIs) {
  ASSERT_OK(Save(Text(1, 1 << 20)));
  ASSERT_OK(Save(Text(2, 1 << 20), kOther));
  // In place of another, which stays until the new one is whole.
  EXPECT_THAT(Save(Text(3, 2 << 20)), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(*Load(), Text(1, 1 << 20));
  EXPECT_EQ(catalog_->Stats().failed_writes, 1u);
  ASSERT_OK(Save("short"));
  ASSERT_OK(Save(Text(3, 2 << 20)));
  EXPECT_EQ(*Load(), Text(3, 2 << 20));
}

TEST_F(DiskCatalogTest, ReplacedWholeOrNotAtAllWhereverItStops) {
  const std::string before = Text(1, 3 << 19);
  const std::string after = Text(2, 1 << 20);
  ASSERT_OK(Save(before));
  bool done = false;
  for (uint64_t requests = 0; !done; ++requests) {
    ASSERT_LT(requests, 20u);
    io_->StopAfter(requests);
    done = Save(after).ok();
    io_->LosePower();
    Open();
    EXPECT_EQ(*Load(), done ? after : before) << "stopped after " << requests;
    EXPECT_EQ(catalog_->Stats().skipped, 0u);
  }
  EXPECT_THAT(Files(), ElementsAre(std::filesystem::path(PathOf()).filename().string()));
}

struct WriteFault {
  IoFaults faults;
  absl::StatusCode code;
};
class DiskCatalogWriteFaultTest : public DiskCatalogTest,
                                  public ::testing::WithParamInterface<WriteFault> {};
TEST_P(DiskCatalogWriteFaultTest, IsAnErrorThatIsCountedAndWhatWasThereStays) {
  ASSERT_OK(Save("before"));
  io_->SetFaults(GetParam().faults);
  EXPECT_THAT(Save("after"), StatusIs(GetParam().code, HasSubstr("namespace-6e6e")));
  EXPECT_THAT(Save("new", kOther), StatusIs(GetParam().code));
  EXPECT_EQ(catalog_->Stats().failed_writes, 2u);
  io_->SetFaults({});
  EXPECT_EQ(*Load(), "before");
  EXPECT_EQ(Files().size(), 1u);
  ASSERT_OK(Save("after"));
  EXPECT_EQ(*Load(), "after");
}
INSTANTIATE_TEST_SUITE_P(
    EachFault, DiskCatalogWriteFaultTest,
    ::testing::Values(WriteFault{{.write_error = 1000}, absl::StatusCode::kDataLoss},
                      WriteFault{{.no_space = 1000}, absl::StatusCode::kResourceExhausted},
                      WriteFault{{.read_only = 1000}, absl::StatusCode::kFailedPrecondition},
                      WriteFault{{.short_write = 1000}, absl::StatusCode::kDataLoss},
                      WriteFault{{.sync_error = 1000}, absl::StatusCode::kDataLoss},
                      WriteFault{{.allocate_no_space = 1000},
                                 absl::StatusCode::kResourceExhausted}));

TEST_F(DiskCatalogTest, EveryFlippedBitAndEveryCutIsFound) {
  const std::string contents = Text(1, 5000);
  ASSERT_OK(Save(contents));
  std::string sound;
  {
    std::ifstream file(PathOf(), std::ios::binary);
    sound.assign(std::istreambuf_iterator<char>(file), {});
  }
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    std::string bad = sound;
    if (round % 4 == 0)
      bad.resize(random() % bad.size());
    else
      bad[random() % (4096 + contents.size())] ^= static_cast<char>(1 << random() % 8);
    std::ofstream(PathOf(), std::ios::binary) << bad;
    Open();
    const auto loaded = Load();
    EXPECT_FALSE(loaded.ok()) << round;
    EXPECT_THAT(catalog_->Entries(), IsEmpty());
    EXPECT_EQ(catalog_->Stats().skipped, 1u);
    EXPECT_THAT(catalog_->TakeComplaints(), ElementsAre(HasSubstr("namespace-6e6e")));
  }
  // It can be saved again.
  ASSERT_OK(Save(contents));
  EXPECT_EQ(*Load(), contents);
}

TEST_F(DiskCatalogTest, AnotherDirectorysFilesArePassedOver) {
  ASSERT_OK(Save("of one"));
  Open(2);
  EXPECT_THAT(Load(), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(catalog_->TakeComplaints(), ElementsAre(HasSubstr("another directory")));
  Open(1);
  // Nor is one file taken for another.
  std::filesystem::copy_file(PathOf(), PathOf(kOther));
  Open(1);
  EXPECT_EQ(*Load(), "of one");
  EXPECT_THAT(Load(kOther), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(catalog_->TakeComplaints(), ElementsAre(HasSubstr("another file's header")));
}

TEST_F(DiskCatalogTest, OnlyFilesOfOursAreTouched) {
  for (const char* name : {"namespace-6e", "notes.new", "transforms-zz"})
    std::ofstream(folder_.file(name)) << "mine";
  std::ofstream(PathOf() + ".new") << "unfinished";
  Open();
  EXPECT_EQ(Files().size(), 3u);
  EXPECT_THAT(catalog_->Entries(), IsEmpty());
  EXPECT_EQ(catalog_->Stats().skipped, 0u);
}

}  // namespace
}  // namespace oscarkv::testing
