// Many clients at once over a store that is too small for them, some of which break off: what is
// read is what was written, and when all have gone nothing is held.
#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "tests/rpc/rpc_test.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::MakePage;
using ::oscarkv::testing::RpcTest;
using ::oscarkv::testing::TestItem;

constexpr int kClients = 4;
constexpr int kCallsEach = 3000;
constexpr uint32_t kChains = 12;
constexpr uint32_t kPages = 6;
constexpr uint64_t kPageBytes = 4 * 256;

class RpcStressTest : public RpcTest {
 protected:
  void SetUp() override {
    Open(kChains * kPages / 2);
    Serve({.max_inflight_bytes = 5 * kPageBytes});
    for (uint32_t i = 0; i < kChains; ++i) chains_.push_back(Chain(space(), 1000 * i + 1, kPages));
  }

  // One client's calls; `random` is its own.
  void RunClient(uint64_t seed) {
    std::mt19937_64 random(seed);
    grpc::ClientContext session_call;
    const auto session = cache_->Session(&session_call);
    v1::SessionReply opened;
    ASSERT_TRUE(session->Write({}));
    ASSERT_TRUE(session->Read(&opened));
    for (int i = 0; i < kCallsEach; ++i) {
      const std::vector<TestItem>& chain = chains_[random() % kChains];
      switch (random() % 8) {
        case 0:
        case 1:
        case 2:
          PutSome(chain, random);
          break;
        case 3:
        case 4:
          GetSome(chain, random);
          break;
        case 5:
          LeaseSome(chain, opened.session_id(), random);
          break;
        case 6:
          DeleteOne(chain, random);
          break;
        default:
          grpc::ClientContext call;
          v1::StatsReply stats;
          EXPECT_TRUE(admin_->Stats(&call, {}, &stats).ok());
      }
    }
  }

  // Puts the chain; one time in four the client goes in the middle.
  void PutSome(const std::vector<TestItem>& chain, std::mt19937_64& random) {
    grpc::ClientContext call;
    v1::PutReply reply;
    const auto stream = cache_->Put(&call, &reply);
    const uint64_t stop_after = random() % (8 * kPages);
    bool going = stream->Write(PutHeaderFor(chain));
    for (uint64_t half = 0; going && half < 2 * kPages; ++half) {
      if (half == stop_after) call.TryCancel();
      const auto item = static_cast<uint32_t>(half / 2);
      going = stream->Write(ChunkOf(item, chain[item], half % 2 * kPageBytes / 2, kPageBytes / 2));
    }
    stream->WritesDone();
    if (!stream->Finish().ok()) return;
    for (const v1::ItemResult& result : reply.results()) {
      EXPECT_TRUE(result.status() == v1::OK || result.status() == v1::EXISTS ||
                  result.status() == v1::SKIPPED || result.status() == v1::BUSY ||
                  result.status() == v1::NO_SPACE)
          << result.ShortDebugString();
    }
  }

  // Gets the chain in two chunks a page; one time in four the client goes in the middle.
  void GetSome(const std::vector<TestItem>& chain, std::mt19937_64& random) {
    grpc::ClientContext call;
    const auto stream = cache_->Get(&call, GetRequestFor(chain));
    uint64_t left = random() % (8 * kPages);
    v1::GetReply reply;
    while (stream->Read(&reply)) {
      if (left-- == 0) call.TryCancel();
      if (!reply.has_chunk()) continue;
      const TestItem& item = chain[reply.chunk().item()];
      const auto page = MakePage(space(), item.encoding, item.seed);
      EXPECT_TRUE(reply.chunk().data() == AsText(ByteView(page.bytes)))
          << "other bytes than written";
      ++pages_read_;
    }
    const grpc::Status end = stream->Finish();
    EXPECT_TRUE(end.ok() || end.error_code() == grpc::StatusCode::CANCELLED);
  }

  void LeaseSome(const std::vector<TestItem>& chain, uint64_t session, std::mt19937_64& random) {
    v1::LookupRequest request;
    FillScope(request.mutable_scope());
    for (const TestItem& item : chain) request.add_keys(item.key);
    request.set_lease(true);
    request.set_session_id(session);
    v1::LookupReply hit;
    grpc::ClientContext call;
    ASSERT_TRUE(cache_->Lookup(&call, request, &hit).ok());
    if (hit.lease_id() == 0) return;
    ++leases_;
    if (random() % 4 == 0) return;  // left to the session
    v1::ReleaseLeaseRequest release;
    FillScope(release.mutable_scope());
    release.set_lease_id(hit.lease_id());
    v1::ReleaseLeaseReply released;
    grpc::ClientContext release_call;
    ASSERT_TRUE(cache_->ReleaseLease(&release_call, release, &released).ok());
    EXPECT_EQ(released.status(), v1::OK);
  }

  void DeleteOne(const std::vector<TestItem>& chain, std::mt19937_64& random) {
    v1::KeysRequest request;
    FillScope(request.mutable_scope());
    request.add_keys(chain[random() % kPages].key);
    v1::KeysReply reply;
    grpc::ClientContext call;
    EXPECT_TRUE(cache_->Delete(&call, request, &reply).ok());
  }

  std::vector<std::vector<TestItem>> chains_;
  std::atomic<uint64_t> pages_read_{0};
  std::atomic<uint64_t> leases_{0};
};

TEST_F(RpcStressTest, ClientsThatBreakOffLeaveNothingBehind) {
  std::vector<std::thread> clients;
  for (int i = 0; i < kClients; ++i)
    clients.emplace_back([this, i] { RunClient(static_cast<uint64_t>(i) + 1); });
  for (std::thread& client : clients) client.join();
  // Else it has shown nothing.
  EXPECT_GT(pages_read_, 100u);
  EXPECT_GT(leases_, 20u);
  EXPECT_GT(store().Stats().counters.puts_abandoned, 10u);
  Stop();
  ExpectNothingHeld();
  EXPECT_EQ(store().Stats().counters.corrupt_pages, 0u);
  store().Clear(space());
  EXPECT_EQ(UsedBytes(), 0u);
}

}  // namespace
}  // namespace oscarkv
