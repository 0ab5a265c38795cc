// Puts that extend what is on disk only: the service brings it back, off the threads of gRPC.
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/archive_writer.h"
#include "server/tier/disk/disk_archive.h"
#include "server/tier/disk/posix_io.h"
#include "tests/rpc/rpc_test.h"
#include "tests/support/faulty_io.h"
#include "tests/support/scoped_folder.h"
#include "tests/tier/disk/disk_pages.h"

namespace oscarkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kPages = 40;
constexpr uint64_t kPageBytes = 4 * 256;

// A chain of which all but the last three pages are on disk only.
class ArchivedParentTest : public RpcTest {
 protected:
  void SetUp() override {
    OpenWithDisk();
    chain_ = Chain(space(), 0, kPages + 3);
    for (size_t i = 0; i < kPages; ++i) ASSERT_EQ(Put(chain_[i]), ItemStatus::kOk);
    ArchiveWriter writer(store());
    while (writer.Step()) {
    }
    OpenWithDisk();
    Serve();
  }
  void OpenWithDisk() {
    store_.reset();
    auto io = std::make_unique<FaultyIo>(std::make_unique<PosixIo>(), 1);
    io_ = io.get();
    auto disk = DiskStore::Open(TestOptions(folder_.path()), std::move(io));
    ASSERT_OK(disk);
    OpenOver(std::make_unique<FakeTier>(200 * kWideSlotBytes), {}, nullptr,
             std::make_unique<DiskArchive>(*std::move(disk)));
  }
  // Puts `items`, each in two chunks.
  std::vector<v1::ItemStatus> PutAll(const std::vector<TestItem>& items) {
    grpc::ClientContext call;
    const auto stream = cache_->Put(&call, &reply_);
    EXPECT_TRUE(stream->Write(PutHeaderFor(items)));
    for (uint32_t i = 0; i < items.size(); ++i)
      for (const uint64_t offset : {uint64_t{0}, kPageBytes / 2})
        EXPECT_TRUE(stream->Write(ChunkOf(i, items[i], offset, kPageBytes / 2)));
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
    std::vector<v1::ItemStatus> statuses;
    for (const v1::ItemResult& result : reply_.results()) statuses.push_back(result.status());
    return statuses;
  }
  std::vector<TestItem> Last(std::ptrdiff_t count) const {
    return {chain_.end() - count, chain_.end()};
  }

  ScopedFolder folder_{ScopedFolder::Where::kMemory};
  FaultyIo* io_ = nullptr;
  std::vector<TestItem> chain_;
  v1::PutReply reply_;
};

TEST_F(ArchivedParentTest, IsBroughtBackAndExtended) {
  EXPECT_THAT(PutAll(Last(3)), ElementsAre(v1::OK, v1::OK, v1::OK));
  EXPECT_EQ(Prefix(chain_), kPages + 3);
  for (const TestItem& item : chain_) EXPECT_EQ(Read(item), ItemStatus::kOk);
  EXPECT_EQ(store().Stats().counters.loaded_pages, kPages);
  Stop();
  ExpectNothingHeld();
}

TEST_F(ArchivedParentTest, TheDiskIsReadByNoThreadOfTheTransport) {
  // A lookup in the middle of the read, from the thread that reads: it is answered, so neither the
  // reading thread's locks nor the thread itself are what it needs.
  std::thread::id reader;
  uint32_t found = 0;
  io_->OnRun([&] {
    reader = std::this_thread::get_id();
    v1::LookupRequest request;
    FillScope(request.mutable_scope());
    for (const TestItem& item : chain_) request.add_keys(item.key);
    v1::LookupReply reply;
    grpc::ClientContext call;
    EXPECT_TRUE(cache_->Lookup(&call, request, &reply).ok());
    found = reply.prefix_pages();
  });
  EXPECT_THAT(PutAll(Last(3)), ElementsAre(v1::OK, v1::OK, v1::OK));
  EXPECT_EQ(found, kPages);
  EXPECT_NE(reader, std::this_thread::get_id());
}

TEST_F(ArchivedParentTest, AFailingDiskSkipsTheItemAndTheRestGoesOn) {
  io_->SetFaults({.read_error = 1000});
  std::vector<TestItem> items = Last(3);
  items.push_back(Chain(space(), 900, 1)[0]);
  EXPECT_THAT(PutAll(items), ElementsAre(v1::SKIPPED, v1::SKIPPED, v1::SKIPPED, v1::OK));
  EXPECT_THAT(reply_.results(0).message(), HasSubstr("its parent"));
  Stop();
  ExpectNothingHeld();
}

TEST_F(ArchivedParentTest, AClientThatGoesMeanwhileLeavesNothingHeld) {
  grpc::ClientContext call;
  io_->OnRun([&] { call.TryCancel(); });
  const auto stream = cache_->Put(&call, &reply_);
  const std::vector<TestItem> last = Last(3);
  stream->Write(PutHeaderFor(last));
  stream->Write(ChunkOf(0, last[0], 0, kPageBytes));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(Read(last[1]), ItemStatus::kMiss);
}

}  // namespace
}  // namespace oscarkv::testing
