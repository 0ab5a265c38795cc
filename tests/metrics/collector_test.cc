// The families of /metrics over a store whose contents the test knows, and the rules that
// Prometheus has for all of them.
#include "server/metrics/collector.h"

#include <limits>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/core/copy_mover.h"
#include "server/tier/gpu_tier.h"
#include "tests/core/store_test.h"
#include "tests/support/fake_device_memory.h"

namespace oscarkv {
namespace {

using ::oscarkv::testing::Chain;
using ::oscarkv::testing::FakeDeviceMemory;
using ::oscarkv::testing::FakeTier;
using ::oscarkv::testing::KeysOf;
using ::oscarkv::testing::kWideSlotBytes;
using ::oscarkv::testing::StoreTest;
using ::oscarkv::testing::TestItem;
using ::prometheus::ClientMetric;
using ::prometheus::MetricFamily;
using ::prometheus::MetricType;
using ::testing::Contains;
using ::testing::ContainsRegex;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::Not;
using ::testing::Pair;

constexpr uint64_t kGpuBytes = 16 << 10;

std::string SeriesName(const MetricFamily& family, const ClientMetric& metric) {
  std::string name = family.name;
  for (const ClientMetric::Label& label : metric.label)
    name += "," + label.name + "=" + label.value;
  return name;
}

class CollectorTest : public StoreTest {
 protected:
  // Two sequences, of which one PACKED, lookups, fetches, a lease and a server's calls.
  void SetUp() override { Begin(nullptr); }
  void Begin(std::unique_ptr<CopiedTier> copies) {
    store_.reset();
    OpenOver(std::make_unique<FakeTier>(64 * kWideSlotBytes), {},
             copies == nullptr ? nullptr : *PageCopies::Create({}, std::move(copies)));
    wide_ = Chain(space(), 100, 3);
    packed_ = Chain(space(), 200, 2, Encoding::kPacked);
    for (const auto* chain : {&wide_, &packed_}) {
      for (const TestItem& item : *chain) ASSERT_EQ(Put(item), ItemStatus::kOk);
    }
    ASSERT_EQ(Put(wide_[0]), ItemStatus::kExists);
    ASSERT_EQ(Read(packed_[1]), ItemStatus::kOk);
    ASSERT_EQ(Read(Chain(space(), 999, 1)[0]), ItemStatus::kMiss);
    const SessionId session = store().OpenSession("test");
    const auto keys = KeysOf(wide_);
    ASSERT_NE(store().Lookup(space(), {.keys = keys, .lease_session = session}).lease, 0u);
  }

  std::vector<MetricFamily> Collect() {
    ServerSnapshot snapshot;
    snapshot.version = "1.2.3";
    snapshot.uptime_s = 60.0;
    snapshot.store = store().Stats();
    snapshot.namespaces = {{"0123456789ab", "small", "default"}};
    snapshot.inflight_bytes = 77;
    snapshot.peers = {
        .held_bytes = 11, .holds_lost = 12, .staged_bytes = 15, .peers = 13, .peers_ended = 14};
    snapshot.calls = {{"Get", "OK", 5}, {"Get", "CANCELLED", 1}, {"Put", "OK", 2}};
    LatencyHistogram histogram;
    histogram.Record(absl::Microseconds(30));
    histogram.Record(absl::Microseconds(50));  // a bound belongs to the bucket below it
    histogram.Record(absl::Seconds(100));
    snapshot.latencies = {{"Get", histogram.Take()}, {"Put", {}}};
    return Collector([&] { return snapshot; }).Collect();
  }

  // The values of counters and gauges by series.
  std::map<std::string, double> Values() {
    std::map<std::string, double> values;
    for (const MetricFamily& family : Collect()) {
      for (const ClientMetric& metric : family.metric) {
        values[SeriesName(family, metric)] =
            family.type == MetricType::Counter ? metric.counter.value : metric.gauge.value;
      }
    }
    return values;
  }

  std::vector<TestItem> wide_;
  std::vector<TestItem> packed_;
};

TEST_F(CollectorTest, TellsWhatTheStoreHolds) {
  const auto values = Values();
  const std::string space = ",namespace=0123456789ab,model=small,tenant=default";
  const std::pair<std::string, double> expected[] = {
      {"oscarkv_pages" + space + ",encoding=wide", 3},
      {"oscarkv_pages" + space + ",encoding=packed", 2},
      {"oscarkv_stored_bytes" + space, 3 * 1024 + 2 * 512},
      {"oscarkv_wide_equivalent_bytes" + space, 5 * 1024},
      {"oscarkv_tier_capacity_bytes,tier=host", 64.0 * kWideSlotBytes},
      {"oscarkv_tier_used_bytes,tier=host", 3.0 * kWideSlotBytes + 2 * (512 + 16)},
      {"oscarkv_tenant_host_bytes,tenant=default", 3.0 * kWideSlotBytes + 2 * (512 + 16)},
      {"oscarkv_tenant_host_pages,tenant=default", 5},
      {"oscarkv_tenant_evicted_pages_total,tenant=default", 0},
      {"oscarkv_puts_total,outcome=OK", 5},
      {"oscarkv_puts_total,outcome=EXISTS", 1},
      {"oscarkv_puts_total,outcome=CONFLICT", 0},
      {"oscarkv_put_bytes_total", 3 * 1024 + 2 * 512},
      {"oscarkv_fetch_hits_total", 1},
      {"oscarkv_fetch_misses_total", 1},
      {"oscarkv_fetch_bytes_total", 512},
      {"oscarkv_lookup_keys_total", 3},
      {"oscarkv_lookup_hits_total", 3},
      {"oscarkv_leases_granted_total", 1},
      {"oscarkv_sessions", 1},
      {"oscarkv_leases", 1},
      {"oscarkv_leased_bytes", 3.0 * kWideSlotBytes},
      {"oscarkv_removed_pages_total,reason=deleted", 0},
  };
  for (const auto& [series, value] : expected) EXPECT_THAT(values, Contains(Pair(series, value)));
}

TEST_F(CollectorTest, TellsWhatTheServerDoes) {
  const auto values = Values();
  const std::pair<std::string, double> expected[] = {
      {"oscarkv_calls_total,method=Get,code=OK", 5},
      {"oscarkv_calls_total,method=Get,code=CANCELLED", 1},
      {"oscarkv_inflight_bytes", 77},
      {"oscarkv_uptime_seconds", 60},
      {"oscarkv_build_info,version=1.2.3", 1},
  };
  for (const auto& [series, value] : expected) EXPECT_THAT(values, Contains(Pair(series, value)));
}

TEST_F(CollectorTest, WithoutAGpuTierThereAreNoSeriesOfOne) {
  for (const auto& [series, value] : Values()) EXPECT_THAT(series, Not(HasSubstr("gpu")));
}

TEST_F(CollectorTest, TellsWhatTheGpuTierDoes) {
  Begin(*GpuTier::Create(std::make_unique<FakeDeviceMemory>(kGpuBytes), kGpuBytes / 4));
  store().Touch(space(), KeysOf(wide_));
  store().Touch(space(), KeysOf(wide_));
  CopyMover mover(store(), {});
  while (mover.Step()) {
  }
  const auto values = Values();
  const std::pair<std::string, double> expected[] = {
      {"oscarkv_tier_capacity_bytes,tier=gpu", 16384},
      {"oscarkv_tier_used_bytes,tier=gpu", 3.0 * kWideSlotBytes},
      {"oscarkv_tier_degraded,tier=gpu", 0},
      {"oscarkv_tier_degraded,tier=host", 0},
      {"oscarkv_gpu_tier_copied_pages_total", 3},
      {"oscarkv_gpu_tier_copied_bytes_total", 3.0 * kWideSlotBytes},
      {"oscarkv_gpu_tier_dropped_pages_total", 0},
      {"oscarkv_gpu_tier_refused_pages_total", 0},
      {"oscarkv_gpu_tier_failed_pages_total", 0},
      {"oscarkv_gpu_tier_pinned_host_bytes", 0},
      {"oscarkv_gpu_held_bytes", 11},
      {"oscarkv_gpu_staged_bytes", 15},
      {"oscarkv_gpu_holds_lost_total", 12},
      {"oscarkv_nccl_peers", 13},
      {"oscarkv_nccl_peers_ended_total", 14},
  };
  for (const auto& [series, value] : expected) EXPECT_THAT(values, Contains(Pair(series, value)));
  store().copies()->Degrade(absl::UnavailableError("lost"));
  EXPECT_THAT(Values(), Contains(Pair("oscarkv_tier_degraded,tier=gpu", 1)));
}

TEST_F(CollectorTest, FollowsTheStore) {
  ASSERT_THAT(Values(), Contains(Pair("oscarkv_removed_pages_total,reason=deleted", 0)));
  const auto keys = KeysOf(packed_);
  store().Delete(space(), std::span(keys).first(1));
  const auto values = Values();
  EXPECT_THAT(values, Contains(Pair("oscarkv_removed_pages_total,reason=deleted", 2)));
  EXPECT_THAT(values, Contains(Pair("oscarkv_tier_used_bytes,tier=host", 3.0 * kWideSlotBytes)));
}

TEST_F(CollectorTest, HistogramsAreCumulative) {
  for (const MetricFamily& family : Collect()) {
    if (family.name != "oscarkv_call_duration_seconds") continue;
    ASSERT_EQ(family.metric.size(), 2u);
    const ClientMetric::Histogram& get = family.metric[0].histogram;
    EXPECT_EQ(get.sample_count, 3u);
    EXPECT_NEAR(get.sample_sum, 100.00008, 1e-9);
    ASSERT_EQ(get.bucket.size(), LatencyHistogram::kBounds.size() + 1);
    EXPECT_EQ(get.bucket[0].cumulative_count, 0u);  // 20 us
    EXPECT_EQ(get.bucket[1].cumulative_count, 2u);  // 50 us
    EXPECT_EQ(get.bucket[15].cumulative_count, 2u);
    EXPECT_EQ(get.bucket[16].cumulative_count, 3u);
    EXPECT_EQ(get.bucket[16].upper_bound, std::numeric_limits<double>::infinity());
    for (size_t i = 1; i < get.bucket.size(); ++i) {
      EXPECT_LT(get.bucket[i - 1].upper_bound, get.bucket[i].upper_bound);
      EXPECT_LE(get.bucket[i - 1].cumulative_count, get.bucket[i].cumulative_count);
    }
    EXPECT_EQ(family.metric[1].histogram.sample_count, 0u);
    return;
  }
  FAIL() << "no histogram";
}

// What `promtool check metrics` looks at.
TEST_F(CollectorTest, FamiliesKeepToTheConventions) {
  std::set<std::string> names;
  for (const MetricFamily& family : Collect()) {
    EXPECT_TRUE(names.insert(family.name).second) << family.name << " stands twice";
    EXPECT_THAT(family.name, MatchesRegex("oscarkv_[a-z0-9_]+"));
    EXPECT_THAT(family.help, ContainsRegex("^[A-Z].*[^.]$")) << family.name;
    if (family.type == MetricType::Counter) {
      EXPECT_THAT(family.name, EndsWith("_total"));
    } else {
      EXPECT_THAT(family.name, Not(MatchesRegex(".*_(total|count|sum|bucket)")));
    }
    EXPECT_THAT(family.name, Not(ContainsRegex("_(ms|us|ns|kb|mb|kib|mib|millis|minutes)(_|$)")))
        << "base units only";
  }
}

TEST_F(CollectorTest, NoSeriesStandsTwiceAndLabelsAreAlike) {
  for (const MetricFamily& family : Collect()) {
    std::set<std::string> series;
    std::set<std::vector<std::string>> label_names;
    for (const ClientMetric& metric : family.metric) {
      EXPECT_TRUE(series.insert(SeriesName(family, metric)).second) << SeriesName(family, metric);
      std::vector<std::string> names;
      for (const ClientMetric::Label& label : metric.label) {
        EXPECT_THAT(label.name, MatchesRegex("[a-z_]+"));
        EXPECT_NE(label.name, "le");
        names.push_back(label.name);
      }
      label_names.insert(names);
    }
    EXPECT_LE(label_names.size(), 1u) << family.name;
  }
}

}  // namespace
}  // namespace oscarkv
