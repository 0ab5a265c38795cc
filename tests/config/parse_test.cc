// YAML to message: what is accepted, and what the errors say.
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/config/load.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ValuesIn;

TEST(ParseConfigTest, ReadsEveryKindOfField) {
  const auto config = ParseConfig(R"(
listen: [127.0.0.1:0, "unix:/run/a b"]
host: {capacity: 64GiB}
limits:
  max_items: 16
  max_leased_share: 0.25
drain_grace_ms: 4294967295
gpu: {capacity: 8GiB, required: true}
tenants:
  - name: a
    host: 1GiB
    host_pages: 12345678901
  - {name: "*", weight: 0.5}
)",
                                  "c.yaml");
  ASSERT_OK(config.status());
  EXPECT_THAT(config->listen(), ElementsAre("127.0.0.1:0", "unix:/run/a b"));
  EXPECT_EQ(config->host().capacity(), "64GiB");
  EXPECT_EQ(config->limits().max_items(), 16u);
  EXPECT_EQ(config->limits().max_leased_share(), 0.25);
  EXPECT_EQ(config->drain_grace_ms(), 4294967295u);
  EXPECT_TRUE(config->gpu().required());
  ASSERT_EQ(config->tenants_size(), 2);
  EXPECT_EQ(config->tenants(0).name(), "a");
  EXPECT_EQ(config->tenants(0).host(), "1GiB");
  EXPECT_EQ(config->tenants(0).host_pages(), 12345678901u);
  EXPECT_EQ(config->tenants(1).name(), "*");
  EXPECT_EQ(config->tenants(1).weight(), 0.5);
  EXPECT_EQ(config->log_level(), "");
}

TEST(ParseConfigTest, OneValueIsAListOfOne) {
  const auto config = ParseConfig("listen: unix:/run/oscarkv.sock", "c.yaml");
  ASSERT_OK(config.status());
  EXPECT_THAT(config->listen(), ElementsAre("unix:/run/oscarkv.sock"));
}

TEST(ParseConfigTest, NothingIsAConfiguration) {
  for (const char* yaml : {"", "# only a comment\n", "---\n", "host:\n", "{}"}) {
    const auto config = ParseConfig(yaml, "c.yaml");
    ASSERT_OK(config.status()) << yaml;
    EXPECT_EQ(config->host().capacity(), "") << yaml;
  }
}

struct Wrong {
  const char* yaml;
  const char* where;  // file:line:column
  const char* what;
};

class WrongConfigTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongConfigTest, IsRefusedWithItsPlace) {
  const auto config = ParseConfig(GetParam().yaml, "c.yaml");
  EXPECT_THAT(config, StatusIs(absl::StatusCode::kInvalidArgument,
                               StartsWith(std::string(GetParam().where) + ": ")));
  EXPECT_THAT(config, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(GetParam().what)));
}

constexpr Wrong kWrong[] = {
    {"log_level: info\nlimits:\n  max_itmes: 4\n", "c.yaml:3:3",
     "unknown key 'max_itmes', did you mean 'max_items'?"},
    {"hots: {}\n", "c.yaml:1:1", "unknown key 'hots', did you mean 'host'?"},
    {"zzzzzzzzzz: 1\n", "c.yaml:1:1", "unknown key 'zzzzzzzzzz'"},
    {"host: {capacity: 1GiB, capacity: 2GiB}\n", "c.yaml:1:24", "'capacity' stands twice"},
    {"limits: {max_items: many}\n", "c.yaml:1:21",
     "'max_items' must be a whole number, found 'many'"},
    {"limits: {max_items: -1}\n", "c.yaml:1:21", "must be a whole number, found '-1'"},
    {"limits: {max_items: 1.5}\n", "c.yaml:1:21", "must be a whole number, found '1.5'"},
    {"limits: {max_items: 4294967296}\n", "c.yaml:1:21", "found '4294967296'"},
    {"limits: {max_leased_share: half}\n", "c.yaml:1:28", "must be a number, found 'half'"},
    {"gpu: {required: perhaps}\n", "c.yaml:1:17", "'required' must be true or false, found"},
    {"limits: 5\n", "c.yaml:1:9", "expected keys and values"},
    {"log_level: [info]\n", "c.yaml:1:12", "'log_level' must be one value"},
    {"listen: {a: b}\n", "c.yaml:1:9", "'listen' must be a list"},
    {"listen: [[a]]\n", "c.yaml:1:10", "'listen' must be one value"},
    {"? [a, b]\n: 1\n", "c.yaml:1:3", "a key must be a name"},
    {"- listen\n", "c.yaml:1:1", "expected keys and values"},
    {"log_level: info\n bad indentation: [\n", "c.yaml:2:17", "illegal map value"},
    {"listen: [a, b\n", "c.yaml:2:1", "end of sequence flow not found"},
    {"host: &a {capacity: *a}\n", "c.yaml:1:7", "must be one value"},
};

INSTANTIATE_TEST_SUITE_P(All, WrongConfigTest, ValuesIn(kWrong));

TEST(ParseConfigTest, ASecondDocumentIsNotOverlooked) {
  for (const char* yaml : {"# a\nlog_level: info\n---\nlog_level: debug\n", "---\na: b\n---\n"}) {
    EXPECT_THAT(ParseConfig(yaml, "c.yaml"),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(StartsWith("c.yaml:3:1: "), HasSubstr("one document"))));
  }
  EXPECT_OK(ParseConfig("%YAML 1.2\n# a\n\n---\nlog_level: '----'\n...\n", "c.yaml").status());
}

TEST(ParseConfigTest, ALongUnknownKeyIsToldWithoutDelay) {
  EXPECT_THAT(ParseConfig(std::string(100'000, 'k') + ": 1\n", "c.yaml"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(LoadConfigTest, NamesAFileThatIsNotThere) {
  EXPECT_THAT(LoadConfig("/nonexistent/c.yaml"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/c.yaml")));
}

}  // namespace
}  // namespace oscarkv
