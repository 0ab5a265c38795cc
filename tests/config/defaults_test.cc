// Defaults, sizes and ranges.
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/config/load.h"
#include "tests/support/status_matchers.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::IsOkAndHolds;
using ::oscarkv::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(DefaultsTest, MakeAServerThatWorks) {
  const v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  EXPECT_THAT(config.listen(), ElementsAre("127.0.0.1:7411"));
  EXPECT_EQ(config.metrics_listen(), "127.0.0.1:9411");
  EXPECT_EQ(config.host().capacity(), "4GiB");          // a quarter of the machine's memory
  EXPECT_EQ(config.limits().max_inflight(), "512MiB");  // an eighth of it
  EXPECT_OK(CheckConfig(config));
}

TEST(DefaultsTest, LeaveWhatIsSet) {
  v1::ServerConfig config;
  config.add_listen("unix:/a");
  config.mutable_host()->set_capacity("1GiB");
  config.mutable_limits()->set_max_items(7);
  const v1::ServerConfig complete = WithDefaults(config, 16 * kGiB);
  EXPECT_THAT(complete.listen(), ElementsAre("unix:/a"));
  EXPECT_EQ(complete.limits().max_items(), 7u);
  EXPECT_EQ(complete.limits().max_inflight(), "128MiB");  // of the capacity that was set
}

v1::TenantConfig& AddTenant(v1::ServerConfig& config, const std::string& name) {
  v1::TenantConfig& tenant = *config.add_tenants();
  tenant.set_name(name);
  return tenant;
}

TEST(DefaultsTest, TenantsHaveNoLimitsButThoseThatAreSet) {
  v1::ServerConfig config;
  AddTenant(config, "plain");
  v1::TenantConfig& bounded = AddTenant(config, "bounded");
  bounded.set_host("2GiB");
  bounded.set_host_pages(100);
  bounded.set_protected_("1GiB");
  bounded.set_gpu("5GiB");
  bounded.set_disk("3GiB");
  bounded.set_inflight("4MiB");
  bounded.set_weight(2.5);
  AddTenant(config, "*").set_host("1GiB");
  config = WithDefaults(config, 16 * kGiB);
  ASSERT_OK(CheckConfig(config));
  const TenantQuotas quotas = QuotasOf(config);
  EXPECT_EQ(quotas.Of("plain").host_bytes, Budget::kNoLimit);
  EXPECT_EQ(quotas.Of("plain").host_pages, Budget::kNoLimit);
  EXPECT_EQ(quotas.Of("plain").protected_host_bytes, 0u);
  EXPECT_EQ(quotas.Of("plain").weight, 1.0);
  EXPECT_EQ(quotas.Of("bounded").host_bytes, 2 * kGiB);
  EXPECT_EQ(quotas.Of("bounded").host_pages, 100u);
  EXPECT_EQ(quotas.Of("bounded").protected_host_bytes, kGiB);
  EXPECT_EQ(quotas.Of("bounded").gpu_bytes, 5 * kGiB);
  EXPECT_EQ(quotas.Of("bounded").disk_bytes, 3 * kGiB);
  EXPECT_EQ(quotas.Of("bounded").inflight_bytes, uint64_t{4} << 20);
  EXPECT_EQ(quotas.Of("bounded").weight, 2.5);
  EXPECT_EQ(quotas.Of("anybody").host_bytes, kGiB);
}

TEST(DefaultsTest, TenantsThatCannotBeAreRefused) {
  const auto refused = [](auto change, const std::string& message) {
    v1::ServerConfig config;
    AddTenant(config, "a");
    change(config);
    EXPECT_THAT(CheckConfig(WithDefaults(config, 16 * kGiB)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  refused([](auto& config) { AddTenant(config, "a"); }, "tenants[1].name: 'a' stands twice");
  refused([](auto& config) { AddTenant(config, ""); }, "tenants[1].name is missing");
  refused([](auto& config) { config.mutable_tenants(0)->set_host("12 GB"); }, "tenants[0].host");
  refused([](auto& config) { config.mutable_tenants(0)->set_weight(-1); }, "tenants[0].weight");
  refused([](auto& config) { AddTenant(config, "*").set_protected_("1GiB"); },
          "tenants[1].protected: tenants that are not named have none");
  refused(
      [](auto& config) {
        config.mutable_tenants(0)->set_host("1GiB");
        config.mutable_tenants(0)->set_protected_("2GiB");
      },
      "tenants[0].protected must be at most .host, 1GiB, found 2GiB");
  refused(
      [](auto& config) {  // of 4 GiB
        config.mutable_tenants(0)->set_protected_("2GiB");
        AddTenant(config, "b").set_protected_("2GiB");
      },
      "together at most 0.9 of host.capacity");
  refused([](auto& config) { config.mutable_limits()->set_max_tenants(2000); },
          "limits.max_tenants");
}

TEST(DefaultsTest, WorkOnTheSmallestMachine) {
  EXPECT_OK(CheckConfig(WithDefaults({}, 0)));
  EXPECT_EQ(WithDefaults({}, 0).host().capacity(), "16MiB");
}

TEST(DefaultsTest, SharedMemoryIsFoundBesideTheFirstUnixSocket) {
  v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  EXPECT_EQ(SharedMemorySocket(config), "");  // TCP alone
  config.add_listen("unix:not/whole");
  config.add_listen("unix:/run/oscarkv/a.sock");
  config.add_listen("unix:/run/oscarkv/b.sock");
  EXPECT_EQ(SharedMemorySocket(config), "/run/oscarkv/a.sock.shm");
  config.mutable_shared_memory()->set_socket("/run/c.sock");
  EXPECT_EQ(SharedMemorySocket(config), "/run/c.sock");
  EXPECT_OK(CheckConfig(config));
  config.mutable_shared_memory()->set_socket("off");
  EXPECT_EQ(SharedMemorySocket(config), "");
  EXPECT_OK(CheckConfig(config));
}

TEST(DefaultsTest, EveryPathMayBeUsed) {
  const v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  EXPECT_THAT(config.paths().fetch(), ElementsAre("ipc", "shm", "nccl", "grpc"));
  EXPECT_THAT(config.paths().push(), ElementsAre("ipc", "shm", "nccl", "grpc"));
}

TEST(BytesTest, ParseWithAndWithoutUnits) {
  EXPECT_THAT(ParseBytes("512MiB"), IsOkAndHolds(512ull << 20));
  EXPECT_THAT(ParseBytes("64GiB"), IsOkAndHolds(64ull << 30));
  EXPECT_THAT(ParseBytes("1.5TiB"), IsOkAndHolds(3ull << 39));
  EXPECT_THAT(ParseBytes("4KiB"), IsOkAndHolds(4096u));
  EXPECT_THAT(ParseBytes("1000000"), IsOkAndHolds(1000000u));
  EXPECT_THAT(ParseBytes("0"), IsOkAndHolds(0u));
}

TEST(BytesTest, RefuseEverythingElse) {
  for (const char* text :
       {"", "MiB", "-1MiB", "1MB", "1mib", "one", "0.3", "1MiBMiB", "1TiBGiB", "nan", "infGiB",
        "1e30TiB", "99999999999999999999", "0x10", "1e3", "5 MiB", "5MiB!"}) {
    EXPECT_THAT(ParseBytes(text),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is not a size like")))
        << text;
  }
}

TEST(BytesTest, FormatWithTheGreatestUnitThatDivides) {
  EXPECT_EQ(FormatBytes(64 * kGiB), "64GiB");
  EXPECT_EQ(FormatBytes(3ull << 39), "1536GiB");
  EXPECT_EQ(FormatBytes((1 << 20) + 1), "1048577");
  EXPECT_EQ(FormatBytes(0), "0");
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{4096}, 6 * kGiB + (1 << 20)})
    EXPECT_THAT(ParseBytes(FormatBytes(bytes)), IsOkAndHolds(bytes));
}

// A complete configuration, one change, and words of the error.
template <typename Change>
void ExpectRefused(Change change, const char* field, const char* found) {
  v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  change(config);
  EXPECT_THAT(CheckConfig(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                            AllOf(HasSubstr(field), HasSubstr(found))));
}

TEST(CheckConfigTest, NamesSizesOutOfRange) {
  const auto capacity = [](const char* text) {
    return [text](v1::ServerConfig& config) { config.mutable_host()->set_capacity(text); };
  };
  ExpectRefused(capacity("1MiB"), "host.capacity must be 16MiB..64TiB", "found 1MiB");
  ExpectRefused(capacity("65TiB"), "host.capacity", "found 65TiB");
  ExpectRefused(capacity("lots"), "host.capacity", "'lots' is not a size");
  ExpectRefused([](auto& config) { config.mutable_limits()->set_max_chunk("33MiB"); },
                "limits.max_chunk must be 4KiB..32MiB", "found 33MiB");
  ExpectRefused([](auto& config) { config.mutable_limits()->set_max_inflight("1"); },
                "limits.max_inflight", "found 1");
  ExpectRefused([](auto& config) { config.mutable_limits()->set_max_transform_set("2"); },
                "limits.max_transform_set", "found 2");
  ExpectRefused([](auto& config) { config.mutable_limits()->set_max_items(65537); },
                "limits.max_items must be 1..65536", "found 65537");
}

TEST(CheckConfigTest, NamesSharesOutOfRange) {
  for (const double share : {-0.5, 1.01, std::numeric_limits<double>::quiet_NaN()}) {
    ExpectRefused([&](auto& config) { config.mutable_limits()->set_max_leased_share(share); },
                  "limits.max_leased_share", "found");
  }
}

TEST(CheckConfigTest, AGpuTierIsOffUnlessItIsAskedFor) {
  EXPECT_FALSE(WantsGpu(WithDefaults({}, 16 * kGiB)));
  v1::ServerConfig config;
  config.mutable_gpu()->set_capacity("16GiB");
  config = WithDefaults(config, 16 * kGiB);
  EXPECT_TRUE(WantsGpu(config));
  EXPECT_OK(CheckConfig(config));
  EXPECT_EQ(config.gpu().device(), 0u);
  EXPECT_FALSE(config.gpu().required());
}

TEST(CheckConfigTest, ADiskTierIsOffUnlessItIsAskedFor) {
  EXPECT_FALSE(WantsDisk(WithDefaults({}, 16 * kGiB)));
  v1::ServerConfig config;
  config.mutable_disk()->set_path("/var/lib/oscarkv");
  config = WithDefaults(config, 16 * kGiB);
  EXPECT_TRUE(WantsDisk(config));
  EXPECT_OK(CheckConfig(config));
}

TEST(CheckConfigTest, NamesWhatIsWrongWithTheDisk) {
  const auto disk = [](const std::function<void(v1::DiskTierConfig&)>& spoil) {
    return [=](v1::ServerConfig& config) {
      config.mutable_disk()->set_path("/tmp/x");
      spoil(*config.mutable_disk());
    };
  };
  ExpectRefused(disk([](auto& d) { d.set_capacity("512MiB"); }), "disk.capacity must be",
                "found 512MiB");
  ExpectRefused(disk([](auto& d) { d.set_segment("8GiB"); }), "disk.segment must be", "found 8GiB");
  ExpectRefused(disk([](auto& d) { d.set_segment("1050000"); }), "multiple of 4KiB",
                "found 1050000");
  ExpectRefused(disk([](auto& d) { d.set_owner(std::string(65, 'x')); }), "disk.owner", "65 bytes");
  ExpectRefused(disk([](auto& d) { d.set_io("aio"); }), "auto, io_uring or pread", "found 'aio'");
  ExpectRefused(disk([](auto& d) { d.set_admit("some"); }), "all, fetched or worth",
                "found 'some'");
}

TEST(CheckConfigTest, NamesWhatIsWrongWithSharedMemoryAndPaths) {
  const auto memory = [](const std::function<void(v1::SharedMemoryConfig&)>& spoil) {
    return [=](v1::ServerConfig& config) { spoil(*config.mutable_shared_memory()); };
  };
  ExpectRefused(memory([](auto& m) { m.set_socket("run/door"); }), "shared_memory.socket",
                "found 'run/door'");
  ExpectRefused(memory([](auto& m) { m.set_socket("/" + std::string(107, 'x')); }),
                "shared_memory.socket", "at most 107 bytes");
  ExpectRefused(memory([](auto& m) { m.set_mode("0777"); }), "shared_memory.mode", "found '0777'");
  ExpectRefused(memory([](auto& m) { m.set_staging("4KiB"); }), "shared_memory.staging must be",
                "found 4KiB");
  ExpectRefused(memory([](auto& m) { m.set_max_staging("some"); }), "shared_memory.max_staging",
                "'some' is not a size");
  ExpectRefused(memory([](auto& m) { m.set_max_mapped_share(1.5); }),
                "shared_memory.max_mapped_share", "found 1.5");
  ExpectRefused([](auto& config) { config.mutable_paths()->add_fetch("rdma"); }, "paths.fetch",
                "found 'rdma'");
  ExpectRefused([](auto& config) { config.mutable_paths()->add_push("rdma"); }, "paths.push",
                "found 'rdma'");
}

TEST(CheckConfigTest, NamesWhatIsWrongWithTheGpu) {
  const auto gpu = [](const char* capacity, uint32_t device, bool required) {
    return [=](v1::ServerConfig& config) {
      config.mutable_gpu()->set_capacity(capacity);
      config.mutable_gpu()->set_device(device);
      config.mutable_gpu()->set_required(required);
    };
  };
  ExpectRefused(gpu("1MiB", 0, false), "gpu.capacity must be 16MiB..16TiB", "found 1MiB");
  ExpectRefused(gpu("most", 0, false), "gpu.capacity", "'most' is not a size");
  ExpectRefused(gpu("1GiB", 4'000'000'000, false), "gpu.device", "found 4000000000");
  ExpectRefused(gpu("off", 0, true), "gpu.required", "gpu.capacity is off");
}

TEST(CheckConfigTest, EvictionIsLearntUnlessLruIsAskedFor) {
  v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  EXPECT_EQ(config.eviction().policy(), "learnt");
  EXPECT_EQ(config.eviction().max_pinned_share(), 0.25);
  config.mutable_eviction()->set_policy("lru");
  EXPECT_OK(CheckConfig(config));
  ExpectRefused([](auto& wrong) { wrong.mutable_eviction()->set_policy("best"); },
                "eviction.policy must be learnt or lru", "'best'");
  ExpectRefused([](auto& wrong) { wrong.mutable_eviction()->set_max_pinned_share(1.5); },
                "eviction.max_pinned_share must be above 0 and at most 1", "1.5");
}

TEST(CheckConfigTest, TheLadderKeepsTailsUnlessAnotherModeIsAskedFor) {
  v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  EXPECT_EQ(ParseStoreWide(config.ladder().store_wide()), StoreWide::kTail);
  EXPECT_EQ(config.ladder().max_cores(), 1.0);
  EXPECT_EQ(config.ladder().free_share(), 0.1);
  EXPECT_EQ(config.ladder().max_wide_tails_share(), 0.1);
  for (const char* mode : {"never", "until_pressure"}) {
    config.mutable_ladder()->set_store_wide(mode);
    EXPECT_OK(CheckConfig(config));
  }
  ExpectRefused([](auto& wrong) { wrong.mutable_ladder()->set_store_wide("always"); },
                "ladder.store_wide must be never, tail or until_pressure", "'always'");
  ExpectRefused([](auto& wrong) { wrong.mutable_ladder()->set_max_cores(-1); },
                "ladder.max_cores must be above 0", "-1");
  ExpectRefused([](auto& wrong) { wrong.mutable_ladder()->set_free_share(1.5); },
                "ladder.free_share must be above 0 and at most 1", "1.5");
  ExpectRefused([](auto& wrong) { wrong.mutable_ladder()->set_max_wide_tails_share(2); },
                "ladder.max_wide_tails_share must be above 0 and at most 1", "2");
}

TEST(CheckConfigTest, NamesWordsThatAreNone) {
  ExpectRefused([](auto& config) { config.set_log_level("loud"); },
                "log_level must be debug, info, warning or error", "'loud'");
  ExpectRefused([](auto& config) { config.set_log_format("xml"); },
                "log_format must be text or json", "'xml'");
}

TEST(CheckConfigTest, NamesAddressesThatAreNone) {
  for (const char* address : {"localhost", ":7411", "localhost:http", "localhost:65536", "a:-1"}) {
    ExpectRefused([&](auto& config) { config.add_listen(address); },
                  "listen must be host:port or unix:/path", address);
    ExpectRefused([&](auto& config) { config.set_metrics_listen(address); },
                  "metrics_listen must be host:port or off", address);
  }
  ExpectRefused([](auto& config) { config.add_listen("unix:"); }, "1..107 bytes", "found 0 bytes");
  ExpectRefused([](auto& config) { config.add_listen("unix:/" + std::string(107, 'p')); },
                "1..107 bytes", "found 108");
  ExpectRefused([](auto& config) { config.add_listen("unix:/a\nb"); }, "printable", "found 4");
}

TEST(CheckConfigTest, TakesAddressesOfEveryKind) {
  v1::ServerConfig config = WithDefaults({}, 16 * kGiB);
  for (const char* address : {"0.0.0.0:0", "[::1]:7411", "localhost:65535", "unix:relative"})
    config.add_listen(address);
  config.set_metrics_listen("off");
  EXPECT_OK(CheckConfig(config));
}

}  // namespace
}  // namespace oscarkv
