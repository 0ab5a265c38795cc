// Which path two ends agree on.
#include "server/rpc/path_negotiation.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<DataPath> kAll(kDataPaths.begin(), kDataPaths.end());

v1::PathOffer OfferOf(const std::vector<v1::DataPath>& fetch,
                      const std::vector<v1::DataPath>& push) {
  v1::PathOffer offer;
  for (const v1::DataPath path : fetch) offer.add_fetch(path);
  for (const v1::DataPath path : push) offer.add_push(path);
  return offer;
}

PathNegotiation::Agreement Agrees() {
  return [](Direction, const v1::PathOffer&, v1::SessionReply*) { return absl::OkStatus(); };
}

v1::SessionReply Agree(const PathNegotiation& paths, const v1::PathOffer& offer) {
  v1::SessionReply reply;
  paths.Agree(offer, &reply);
  return reply;
}

TEST(PathNegotiationTest, AClientThatOffersNothingHasGrpc) {
  PathNegotiation paths({kAll, kAll});
  paths.Add(DataPath::kShm, Agrees());
  const v1::SessionReply reply = Agree(paths, {});
  EXPECT_EQ(reply.fetch().path(), v1::GRPC);
  EXPECT_EQ(reply.push().path(), v1::GRPC);
  EXPECT_THAT(reply.fetch().reason(), HasSubstr("shm: the client has not"));
}

TEST(PathNegotiationTest, TheBestThatBothHaveIsChosenForEachDirection) {
  PathNegotiation paths({kAll, kAll});
  paths.Add(DataPath::kShm, Agrees());
  paths.Add(DataPath::kNccl, Agrees());
  const v1::SessionReply reply =
      Agree(paths, OfferOf({v1::GRPC, v1::NCCL, v1::SHM}, {v1::NCCL, v1::GRPC}));
  EXPECT_EQ(reply.fetch().path(), v1::SHM);
  EXPECT_EQ(reply.push().path(), v1::NCCL);
}

TEST(PathNegotiationTest, SaysWhyNothingBetter) {
  PathNegotiation paths({kAll, std::vector{DataPath::kGrpc}});
  paths.AddMissing(DataPath::kShm, absl::UnavailableError("no memfd here"));
  const v1::PathOffer offer = OfferOf({v1::IPC, v1::SHM, v1::GRPC}, {v1::SHM, v1::GRPC});
  const v1::SessionReply reply = Agree(paths, offer);
  EXPECT_EQ(reply.fetch().path(), v1::GRPC);
  EXPECT_THAT(reply.fetch().reason(),
              AllOf(HasSubstr("ipc: the server has not"), HasSubstr("shm: no memfd here"),
                    HasSubstr("nccl: the client has not")));
  EXPECT_THAT(reply.push().reason(), HasSubstr("shm: the server's configuration forbids it"));
}

TEST(PathNegotiationTest, NoneInCommonIsNone) {
  PathNegotiation paths({std::vector{DataPath::kShm}, kAll});
  const v1::SessionReply reply = Agree(paths, OfferOf({v1::GRPC}, {v1::SHM}));
  EXPECT_EQ(reply.fetch().path(), v1::DATA_PATH_UNSPECIFIED);
  EXPECT_THAT(reply.fetch().reason(), HasSubstr("grpc: the server's configuration forbids it"));
  EXPECT_EQ(reply.push().path(), v1::DATA_PATH_UNSPECIFIED);
  EXPECT_THAT(reply.push().reason(), HasSubstr("grpc: the client has not"));
}

TEST(PathNegotiationTest, APathSaysWhetherAClientMayTakeIt) {
  PathNegotiation paths({kAll, kAll});
  paths.Add(
      DataPath::kShm,
      [](Direction direction, const v1::PathOffer& offer, v1::SessionReply* reply) -> absl::Status {
        if (offer.host() != "here") return absl::UnavailableError("another host");
        if (direction == Direction::kPush) return absl::UnavailableError("no staging memory");
        reply->mutable_shm()->set_socket("/run/door");
        return absl::OkStatus();
      });
  v1::PathOffer offer = OfferOf({v1::SHM, v1::GRPC}, {v1::SHM, v1::GRPC});
  offer.set_host("there");
  EXPECT_THAT(Agree(paths, offer).fetch().reason(), HasSubstr("shm: another host"));
  EXPECT_FALSE(Agree(paths, offer).has_shm());
  offer.set_host("here");
  const v1::SessionReply reply = Agree(paths, offer);
  EXPECT_EQ(reply.fetch().path(), v1::SHM);
  EXPECT_EQ(reply.shm().socket(), "/run/door");
  EXPECT_EQ(reply.push().path(), v1::GRPC);
  EXPECT_THAT(reply.push().reason(), HasSubstr("no staging memory"));
}

}  // namespace
}  // namespace oscarkv
