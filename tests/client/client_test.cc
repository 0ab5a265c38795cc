// Options, arguments, and what a client does before its first call.
#include "client/cpp/client.h"

#include <filesystem>
#include <string>
#include <vector>

#include "gmock/gmock.h"

#include "tests/client/fake_store.h"
#include "tests/support/status_matchers.h"

namespace oscarkv::client {
namespace {

using ::oscarkv::testing::Fixture;
using ::oscarkv::testing::StatusIs;
using ::testing::HasSubstr;

struct BadOption {
  const char* name;
  void (*set)(ClientOptions& options);
  const char* says;
};
void PrintTo(const BadOption& option, std::ostream* out) { *out << option.name; }

class OptionsTest : public ::testing::TestWithParam<BadOption> {};

TEST_P(OptionsTest, BadOnesAreRefusedByName) {
  ClientOptions options;
  GetParam().set(options);
  EXPECT_THAT(Client::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().says)));
}

INSTANTIATE_TEST_SUITE_P(
    , OptionsTest,
    ::testing::Values(
        BadOption{"EmptyEndpoint", [](ClientOptions& o) { o.endpoint = ""; }, "endpoint"},
        BadOption{"NoPort", [](ClientOptions& o) { o.endpoint = "localhost"; }, "'localhost'"},
        BadOption{"Url", [](ClientOptions& o) { o.endpoint = "http://host"; }, "'http://host'"},
        BadOption{"NoHost", [](ClientOptions& o) { o.endpoint = ":7411"; }, "':7411'"},
        BadOption{"PortZero", [](ClientOptions& o) { o.endpoint = "host:0"; }, "'host:0'"},
        BadOption{"HugePort", [](ClientOptions& o) { o.endpoint = "host:65536"; }, "65536"},
        BadOption{"NoPath", [](ClientOptions& o) { o.endpoint = "unix:"; }, "'unix:'"},
        BadOption{"NoTime", [](ClientOptions& o) { o.fetch_timeout = absl::ZeroDuration(); },
                  "positive, found 0"},
        BadOption{"LessThanNoTime", [](ClientOptions& o) { o.push_timeout = -absl::Seconds(1); },
                  "positive, found -1s"},
        BadOption{"NoAttempt", [](ClientOptions& o) { o.attempts = 0; }, "attempts"},
        BadOption{"NoThread", [](ClientOptions& o) { o.async_threads = 0; }, "async_threads"},
        BadOption{"NoBatch", [](ClientOptions& o) { o.push_batch_bytes = 0; }, "push_batch_bytes"},
        BadOption{"NoFailure", [](ClientOptions& o) { o.breaker.failures = 0; },
                  "breaker.failures"},
        BadOption{"NoPause", [](ClientOptions& o) { o.breaker.pause = absl::ZeroDuration(); },
                  "breaker.pause"},
        BadOption{"PauseBeyondItsMost",
                  [](ClientOptions& o) { o.breaker.pause = absl::Minutes(1); },
                  "found 1m and 30s"}),
    [](const auto& option) { return option.param.name; });

TEST(Options, EndpointsOfEveryKindAreTaken) {
  for (const char* endpoint : {"127.0.0.1:7411", "[::1]:1", "store.example:65535", "unix:/a/b"})
    EXPECT_OK(Client::Create({.endpoint = endpoint})) << endpoint;
}

size_t Threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

// In a process of its own, in which gRPC has done nothing yet.
TEST(AClientBeforeItsFirstCallDeathTest, HasStartedNoThread) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        const size_t before = Threads();
        const auto client = Client::Create({});
        _exit(client.ok() && Threads() == before ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(OpenNamespace, SpecAndTransformFileMustBelongTogether) {
  Fixture f;
  const std::string file = ::oscarkv::testing::SmallTransformFile();
  EXPECT_THAT(f.client->OpenNamespace(f.spec, file), StatusIs(absl::StatusCode::kInvalidArgument));
  f.spec.codec.transform_hash = std::string(32, 'x');
  EXPECT_THAT(f.client->OpenNamespace(f.spec, ""), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(f.client->OpenNamespace(f.spec, file), StatusIs(absl::StatusCode::kInvalidArgument));
  f.spec.model = "";
  EXPECT_THAT(f.client->OpenNamespace(f.spec, ""),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("model")));
}

TEST(OpenNamespace, RefusalsOfTheServerAreTheCallersToSee) {
  Fixture f;
  f.store.fail = [](const std::string&) {
    return grpc::Status(grpc::FAILED_PRECONDITION, "page_tokens 4 / 64");
  };
  EXPECT_THAT(f.client->OpenNamespace(f.spec, ""),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("4 / 64")));
}

TEST(OpenNamespace, AServerThatIsNotThereIsOpenedLater) {
  Fixture f;
  f.store.fail = [](const std::string&) { return grpc::Status(grpc::INTERNAL, "not now"); };
  f.space = f.client->OpenNamespace(f.spec, "").value();
  EXPECT_FALSE(f.space->Lookup(f.keys)->store.ok());
  f.store.fail = [](const std::string&) { return grpc::Status::OK; };
  EXPECT_OK(f.space->Lookup(f.keys)->store);
}

TEST(InspectNamespace, NeedsNoTransformSetAndPushesNothing) {
  Fixture f({}, ::oscarkv::testing::SmallTransformFile());
  ASSERT_OK(f.Push());
  const int puts = f.store.calls("Put");
  f.space = f.client->InspectNamespace(f.spec).value();
  EXPECT_EQ(f.space->Lookup(f.keys)->pages, f.keys.size());
  EXPECT_THAT(f.Push(),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("transform set")));
  EXPECT_EQ(f.store.calls("Put"), puts);
}

TEST(InspectNamespace, ErrorsOfTheStoreAreTheCallersToSee) {
  Fixture f;
  f.store.fail = [](const std::string&) { return grpc::Status(grpc::INTERNAL, "not now"); };
  EXPECT_THAT(f.client->InspectNamespace(f.spec), StatusIs(absl::StatusCode::kInternal));
}

class ArgumentsTest : public ::testing::Test {
 protected:
  absl::Status Push() {
    PushRequest request;
    request.keys = f_.keys;
    request.slots = f_.slots;
    return f_.space->Push(view_, request).status();
  }
  absl::Status Fetch(BlockRange layers = {}, BlockRange heads = {}) {
    FetchRequest request;
    request.keys = f_.keys;
    request.slots = f_.slots;
    request.layers = layers;
    request.heads = heads;
    return f_.space->Fetch(view_, request).status();
  }
  void ExpectBoth(const std::string& says) {
    const auto refused = StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(says));
    EXPECT_THAT(Push(), refused);
    EXPECT_THAT(Fetch(), refused);
    EXPECT_EQ(f_.store.calls("Put") + f_.store.calls("Get"), 0) << "found before anything is sent";
    EXPECT_TRUE(f_.destination.SameRows(f_.untouched, 0, 64));
  }

  Fixture f_;
  EngineView view_ = f_.destination.view();
};

TEST_F(ArgumentsTest, KeysOfTheWrongLength) {
  for (const size_t length : {size_t{0}, size_t{15}, size_t{65}}) {
    f_.keys[1] = std::string(length, 'k');
    ExpectBoth("key 1");
    EXPECT_THAT(f_.space->Lookup(f_.keys), StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_THAT(f_.space->Delete(f_.keys), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

TEST_F(ArgumentsTest, WrongNumberOfSlots) {
  f_.slots.pop_back();
  ExpectBoth("need 12 slots, found 11");
}

TEST_F(ArgumentsTest, SlotsOutsideTheCache) {
  f_.slots[7] = 64;
  ExpectBoth("slot of token 7");
  f_.slots[7] = -2;
  ExpectBoth("slot of token 7");
}

TEST_F(ArgumentsTest, ATokenLeftOutIsForFetchesOnly) {
  f_.slots[7] = -1;
  EXPECT_THAT(Push(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(Fetch());
}

TEST_F(ArgumentsTest, ViewsOfAnotherShape) {
  view_.v.layer_base = view_.v.layer_base.first(1);
  ExpectBoth("V: layer base pointers must be 2, found 1");
}

TEST_F(ArgumentsTest, RangesPastTheEnd) {
  EXPECT_THAT(Fetch({1, 2}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layers 1 + 2")));
  EXPECT_THAT(Fetch({}, {2, 1}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("heads 2")));
  EXPECT_THAT(Fetch({~0u, ~0u}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace oscarkv::client
