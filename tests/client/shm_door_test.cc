// What a server can say at the door of its shared memory and should not: the client maps only what
// is what it should be, reads only inside of it, and has other paths.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "kernels/base/checksum.h"
#include "proto/local/packet_socket.h"
#include "proto/local/read_fence.h"
#include "proto/local/shared_region.h"
#include "tests/client/fake_store.h"
#include "tests/support/scoped_folder.h"
#include "tests/support/status_matchers.h"
#include "tests/support/unix_user.h"

#include "oscarkv/v1/shared_memory.pb.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::Hook;
using ::oscarkv::testing::IsRoot;
using ::oscarkv::testing::kNobody;
using ::oscarkv::testing::ScopedFolder;
using ::testing::Each;
using ::testing::ElementsAre;

constexpr uint64_t kEpoch = 5;
constexpr uint64_t kArenaBytes = 64 << 10;
constexpr uint64_t kBlockBytes = 256;  // of the fixture's geometry
constexpr uint64_t kPageBytes = 4 * kBlockBytes;
constexpr uint64_t kPageOffset = 4096;  // where the one page lies that every key has: all zeros

// Answers what a test wants. Honest at first: every key has the same page.
class FakeDoor {
 public:
  FakeDoor()
      : listener_(PacketListener::Listen(folder_.file("door"), 0600).value()),
        arena_(SharedRegion::Create("test", kArenaBytes, SharedRegion::Others::kRead).value()),
        fence_region_(
            SharedRegion::Create("test", kReadFenceBytes, SharedRegion::Others::kRead).value()),
        fence_(fence_region_.writable()),
        thread_([this] { Listen(); }) {
    const uint32_t crc = Crc32c(arena_.bytes().first(kBlockBytes));
    auto* crcs = arena_.writable().data() + kPageOffset + kPageBytes;
    for (size_t i = 0; i < 4; ++i) std::memcpy(crcs + i * sizeof(crc), &crc, sizeof(crc));
  }
  ~FakeDoor() {
    listener_.Stop();
    thread_.join();
    const absl::MutexLock lock(&mutex_);
    for (Visitor& visitor : visitors_) visitor.socket.Shutdown();
    for (Visitor& visitor : visitors_) visitor.thread.join();
  }

  std::string path() const { return folder_.file("door"); }
  MutableByteView page() { return arena_.writable().subspan(kPageOffset, kPageBytes); }
  void RaiseFence() { fence_.Raise(); }
  // The pages that the last release said are damaged.
  std::vector<uint32_t> AwaitRelease() ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&released_));
    return {release_.corrupt().begin(), release_.corrupt().end()};
  }

  // Changes of honest answers; false: the connection ends instead.
  Hook<bool(v1::DoorReply*, std::vector<int>*)> edit_welcome = [](auto*, auto*) { return true; };
  Hook<bool(v1::DoorReply*)> edit_mapped = [](auto*) { return true; };

 private:
  struct Visitor {
    PacketSocket socket;
    std::thread thread;
  };

  void Listen() ABSL_LOCKS_EXCLUDED(mutex_) {
    for (;;) {
      absl::StatusOr<PacketSocket> socket = listener_.Accept();
      if (!socket.ok()) return;
      const absl::MutexLock lock(&mutex_);
      Visitor& visitor = visitors_.emplace_back(Visitor{*std::move(socket), {}});
      visitor.thread = std::thread([this, &visitor] {
        while (Answer(visitor.socket)) continue;
        visitor.socket.Shutdown();
      });
    }
  }

  bool Answer(PacketSocket& socket) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::StatusOr<Packet> packet = socket.Receive(absl::InfiniteFuture());
    v1::DoorRequest request;
    if (!packet.ok() || !request.ParseFromString(packet->bytes)) return false;
    v1::DoorReply reply;
    std::vector<int> descriptors;
    switch (request.kind_case()) {
      case v1::DoorRequest::kHello:
        descriptors = {arena_.descriptor(), fence_region_.descriptor()};
        reply.mutable_welcome()->set_server_epoch(request.hello().server_epoch());
        reply.mutable_welcome()->set_arena_bytes(kArenaBytes);
        if (!edit_welcome(&reply, &descriptors)) return false;
        break;
      case v1::DoorRequest::kMap:
        for (int i = 0; i < request.map().keys_size(); ++i) {
          v1::MappedPage* page = reply.mutable_mapped()->add_pages();
          page->mutable_result()->set_status(v1::OK);
          page->set_encoding(v1::WIDE);
          page->set_offset(kPageOffset);
          page->set_bytes(kPageBytes);
        }
        if (!edit_mapped(&reply)) return false;
        break;
      case v1::DoorRequest::kRelease: {
        const absl::MutexLock lock(&mutex_);
        release_ = request.release();
        released_ = true;
        return true;
      }
      default:
        return false;
    }
    return socket.Send(reply.SerializeAsString(), descriptors).ok();
  }

  const ScopedFolder folder_;
  PacketListener listener_;
  SharedRegion arena_;
  SharedRegion fence_region_;
  ReadFence fence_;
  absl::Mutex mutex_;
  std::list<Visitor> visitors_ ABSL_GUARDED_BY(mutex_);
  v1::DoorRelease release_ ABSL_GUARDED_BY(mutex_);
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses what is above
};

// A client that fetches by shared memory and pushes by gRPC; the store has three pages of its own.
struct ShmFixture {
  ShmFixture() {
    f.store.edit_session = [this](v1::SessionReply* reply) {
      reply->set_server_epoch(kEpoch);
      reply->mutable_fetch()->set_path(v1::SHM);
      reply->mutable_push()->set_path(v1::GRPC);
      reply->mutable_shm()->set_socket(door.path());
      reply->mutable_shm()->set_uid(geteuid());
    };
    EXPECT_OK(f.Push());
  }

  // Nothing of what the door has is in the cache, and the fetch says that it has nothing.
  void ExpectNothing(const absl::StatusOr<FetchReport>& report) {
    ASSERT_OK(report);
    EXPECT_EQ(report->pages, 0u);
    EXPECT_NE(report->statuses[0], ItemStatus::kOk);
    EXPECT_TRUE(f.destination.SameRows(f.untouched, 0, 12));
  }
  // The pages have come by gRPC.
  void ExpectTheOtherPath(const absl::StatusOr<FetchReport>& report) {
    ASSERT_OK(report);
    EXPECT_OK(report->store);
    EXPECT_EQ(report->path, DataPath::kGrpc);
    EXPECT_EQ(report->pages, 3u);
    EXPECT_TRUE(f.destination.SameRows(f.source, 0, 12));
  }

  FakeDoor door;
  Fixture f;
};

TEST(ShmDoor, HonestPages) {
  ShmFixture s;
  const auto report = s.f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->path, DataPath::kShm);
  EXPECT_THAT(report->statuses, Each(ItemStatus::kOk));
  EXPECT_EQ(s.f.store.calls("Get"), 0);
  EXPECT_FALSE(s.f.destination.SameRows(s.f.untouched, 0, 1));
  EXPECT_THAT(s.door.AwaitRelease(), ElementsAre());
}

TEST(ShmDoor, DamagedPagesAreNotTakenAndNamed) {
  ShmFixture s;
  s.door.page()[300] = std::byte{1};
  const auto report = s.f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 0u);
  EXPECT_EQ(report->statuses[0], ItemStatus::kCorrupt);
  EXPECT_THAT(s.door.AwaitRelease(), ElementsAre(0));
}

TEST(ShmDoor, PagesThatWereTakenBackWhileTheyWereReadAreFenced) {
  ShmFixture s;
  s.door.edit_mapped = [&](v1::DoorReply*) {
    s.door.RaiseFence();
    return true;
  };
  const auto report = s.f.Fetch();
  ASSERT_OK(report);
  EXPECT_EQ(report->pages, 0u);
  EXPECT_EQ(report->statuses[0], ItemStatus::kFenced);
}

TEST(ShmDoor, ItemsThatAreNotThereEndTheFetch) {
  ShmFixture s;
  s.door.edit_mapped = [](v1::DoorReply* reply) {
    reply->mutable_mapped()->mutable_pages(1)->mutable_result()->set_status(v1::EVICTED);
    return true;
  };
  const auto report = s.f.Fetch();
  ASSERT_OK(report);
  EXPECT_THAT(report->statuses,
              ElementsAre(ItemStatus::kOk, ItemStatus::kEvicted, ItemStatus::kSkipped));
}

// A server may take more keys in a call than a packet has room for.
TEST(ShmDoor, ManyKeysGoInSeveralPackets) {
  ShmFixture s;
  s.f.store.edit_open = [](v1::OpenNamespaceReply* reply) {
    reply->mutable_limits()->set_max_items(65536);
  };
  s.f.space = s.f.client->OpenNamespace(s.f.spec, "").value();
  constexpr size_t kKeys = 5000;
  std::vector<std::string> keys;
  for (size_t i = 0; i < kKeys; ++i) keys.push_back(absl::StrFormat("%064d", i));
  FetchRequest request;
  request.keys = keys;
  const std::vector<int64_t> nowhere(kKeys * s.f.spec.geometry.page_tokens, -1);
  request.slots = nowhere;
  const auto report = s.f.space->Fetch(s.f.destination.view(), request);
  ASSERT_OK(report);
  EXPECT_EQ(report->path, DataPath::kShm);
  EXPECT_EQ(report->pages, kKeys);
  EXPECT_OK(report->store);
}

// --- Lies about pages ---

struct PageLie {
  const char* name;
  void (*tell)(v1::DoorMapped* mapped);
};
void PrintTo(const PageLie& lie, std::ostream* out) { *out << lie.name; }

class ShmPageLies : public ::testing::TestWithParam<PageLie> {};

TEST_P(ShmPageLies, NothingIsTaken) {
  ShmFixture s;
  s.door.edit_mapped = [](v1::DoorReply* reply) {
    GetParam().tell(reply->mutable_mapped());
    return true;
  };
  s.ExpectNothing(s.f.Fetch());
}

INSTANTIATE_TEST_SUITE_P(
    , ShmPageLies,
    ::testing::Values(
        PageLie{"BehindTheEnd",
                [](v1::DoorMapped* m) { m->mutable_pages(0)->set_offset(kArenaBytes); }},
        PageLie{
            "OverTheEnd",
            [](v1::DoorMapped* m) { m->mutable_pages(0)->set_offset(kArenaBytes - kPageBytes); }},
        PageLie{"WrapsAround",
                [](v1::DoorMapped* m) { m->mutable_pages(0)->set_offset(~uint64_t{63}); }},
        PageLie{"NotAligned",
                [](v1::DoorMapped* m) { m->mutable_pages(0)->set_offset(kPageOffset + 4); }},
        PageLie{"NoBytes", [](v1::DoorMapped* m) { m->mutable_pages(0)->set_bytes(0); }},
        PageLie{"MoreBytes",
                [](v1::DoorMapped* m) { m->mutable_pages(0)->set_bytes(~uint64_t{0}); }},
        PageLie{"NoSuchEncoding",
                [](v1::DoorMapped* m) {
                  m->mutable_pages(0)->set_encoding(static_cast<v1::Encoding>(7));
                }},
        PageLie{"PackedWithoutTransforms",
                [](v1::DoorMapped* m) { m->mutable_pages(0)->set_encoding(v1::PACKED); }},
        PageLie{"NoSuchStatus",
                [](v1::DoorMapped* m) {
                  m->mutable_pages(0)->mutable_result()->set_status(
                      static_cast<v1::ItemStatus>(99));
                }},
        PageLie{"NoPages", [](v1::DoorMapped* m) { m->clear_pages(); }},
        PageLie{"MorePagesThanKeys", [](v1::DoorMapped* m) { *m->add_pages() = m->pages(0); }}),
    [](const auto& lie) { return lie.param.name; });

// --- Lies about memory, and doors that cannot be used: there is another path ---

int MemoryOf(uint64_t bytes, int seals) {
  const int memory = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(memory, static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(fcntl(memory, F_ADD_SEALS, seals), 0);
  return memory;
}

struct WelcomeLie {
  const char* name;
  void (*tell)(v1::DoorReply* reply, std::vector<int>* descriptors);
};
void PrintTo(const WelcomeLie& lie, std::ostream* out) { *out << lie.name; }

class ShmWelcomeLies : public ::testing::TestWithParam<WelcomeLie> {};

TEST_P(ShmWelcomeLies, TheOtherPathIsTaken) {
  ShmFixture s;
  s.door.edit_welcome = [](v1::DoorReply* reply, std::vector<int>* descriptors) {
    GetParam().tell(reply, descriptors);
    return true;
  };
  s.ExpectTheOtherPath(s.f.Fetch());
}

INSTANTIATE_TEST_SUITE_P(
    , ShmWelcomeLies,
    ::testing::Values(
        WelcomeLie{"AnotherEpoch",
                   [](auto* r, auto*) { r->mutable_welcome()->set_server_epoch(kEpoch + 1); }},
        WelcomeLie{"NoDescriptors", [](auto*, auto* d) { d->clear(); }},
        WelcomeLie{"OneDescriptor", [](auto*, auto* d) { d->pop_back(); }},
        WelcomeLie{"ThreeDescriptors", [](auto*, auto* d) { d->push_back(d->back()); }},
        WelcomeLie{"StagingThatNobodyWants",
                   [](auto* r, auto*) { r->mutable_welcome()->set_staging_bytes(4096); }},
        WelcomeLie{"AnotherSize",
                   [](auto* r, auto*) { r->mutable_welcome()->set_arena_bytes(kArenaBytes * 2); }},
        WelcomeLie{"AbsurdSize",
                   [](auto* r, auto*) { r->mutable_welcome()->set_arena_bytes(~uint64_t{0}); }},
        WelcomeLie{"AFileThatIsNoMemory",
                   [](auto*, auto* d) { (*d)[0] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC); }},
        WelcomeLie{"MemoryThatCanBeCutShort",
                   [](auto*, auto* d) { (*d)[0] = MemoryOf(kArenaBytes, F_SEAL_GROW); }},
        WelcomeLie{"AFenceThatIsTooSmall",
                   [](auto*, auto* d) {
                     (*d)[1] = MemoryOf(kReadFenceBytes / 2, F_SEAL_GROW | F_SEAL_SHRINK);
                   }},
        WelcomeLie{"Refusal",
                   [](auto* r, auto* d) {
                     d->clear();
                     r->clear_welcome();
                     r->set_code(static_cast<uint32_t>(absl::StatusCode::kResourceExhausted));
                   }},
        WelcomeLie{"NoWelcome", [](auto* r, auto*) { r->clear_welcome(); }}),
    [](const auto& lie) { return lie.param.name; });

TEST(ShmDoor, AServerThatIsGoneIsNotAskedAgain) {
  ShmFixture s;
  s.door.edit_mapped = [](v1::DoorReply*) { return false; };
  s.ExpectTheOtherPath(s.f.Fetch());
  s.door.edit_mapped = [](v1::DoorReply*) { return true; };
  s.ExpectTheOtherPath(s.f.Fetch());  // once in a session
}

TEST(ShmDoor, NobodyListens) {
  ShmFixture s;
  ASSERT_EQ(unlink(s.door.path().c_str()), 0);
  s.ExpectTheOtherPath(s.f.Fetch());
}

TEST(ShmDoor, ADoorOfAnotherUserIsNotUsed) {
  if (!IsRoot()) GTEST_SKIP() << "only root can give a file away";
  ShmFixture s;
  ASSERT_EQ(lchown(s.door.path().c_str(), kNobody, kNobody), 0);
  s.ExpectTheOtherPath(s.f.Fetch());
}

}  // namespace
}  // namespace oscarkv::client
