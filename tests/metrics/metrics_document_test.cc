// server/metrics/METRICS.md lists every family of /metrics, one line each, and no other. A test
// that fails prints the line that should be there.
#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/metrics/collector.h"

namespace oscarkv {
namespace {

using ::prometheus::MetricFamily;
using ::prometheus::MetricType;

constexpr char kDocument[] = OSCARKV_SOURCE_DIR "/server/metrics/METRICS.md";

// A server that has and does everything.
ServerSnapshot Everything() {
  ServerSnapshot snapshot;
  snapshot.version = "1.2.3";
  snapshot.namespaces = {{"0123456789ab", "model", "tenant"}};
  snapshot.calls = {{"Get", "OK", 5}};
  snapshot.latencies = {{"Get", {}}};
  snapshot.transfers = {{.path = "grpc", .direction = "fetch", .bytes = 1, .duration = {}}};
  StoreStats& store = snapshot.store;
  store.namespaces.emplace_back();
  store.policy = "lru";
  store.tenants.emplace_back();
  store.tenants.back() = {.name = "tenant",
                          .host_bytes_max = 1,
                          .host_pages_max = 1,
                          .disk_bytes_max = 1,
                          .inflight_bytes_max = 1};
  for (const TierKind kind : {TierKind::kGpu, TierKind::kHost, TierKind::kDisk}) {
    store.tiers.emplace_back();
    store.tiers.back().kind = kind;
  }
  store.archived = true;
  return snapshot;
}

ServerSnapshot Without(TierKind kind) {
  ServerSnapshot snapshot = Everything();
  std::erase_if(snapshot.store.tiers, [&](const TierStats& tier) { return tier.kind == kind; });
  snapshot.store.archived = kind != TierKind::kDisk;
  return snapshot;
}

std::vector<MetricFamily> Collect(const ServerSnapshot& snapshot) {
  return Collector([&] { return snapshot; }).Collect();
}

std::set<std::string> NamesOf(const std::vector<MetricFamily>& families) {
  std::set<std::string> names;
  for (const MetricFamily& family : families) names.insert(family.name);
  return names;
}

std::string TypeName(MetricType type) {
  switch (type) {
    case MetricType::Counter:
      return "counter";
    case MetricType::Gauge:
      return "gauge";
    case MetricType::Histogram:
      return "histogram";
    default:
      return "another";
  }
}

// The unit that a name states; empty when it does not.
std::string UnitOf(absl::string_view name) {
  absl::ConsumeSuffix(&name, "_total");
  const std::vector<std::string> words = absl::StrSplit(name, '_');
  for (const char* unit : {"bytes", "seconds", "ratio", "pages", "keys", "items"})
    if (words.back() == unit) return unit;
  return "";
}

std::string Cell(const std::vector<std::string>& cells, size_t number) {
  return number < cells.size() ? std::string(absl::StripAsciiWhitespace(cells[number])) : "";
}

// The document's lines by metric: cells in the order of its header.
std::map<std::string, std::vector<std::string>> ReadDocument() {
  std::map<std::string, std::vector<std::string>> lines;
  std::ifstream file(kDocument);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("| `")) continue;
    std::vector<std::string> cells = absl::StrSplit(line, '|');
    const std::string name(absl::StripSuffix(absl::StripPrefix(Cell(cells, 1), "`"), "`"));
    EXPECT_TRUE(lines.emplace(name, cells).second) << name << " stands twice in " << kDocument;
  }
  return lines;
}

class MetricsDocumentTest : public ::testing::Test {
 protected:
  std::string LineOf(const MetricFamily& family, const std::vector<std::string>& documented) const {
    std::vector<std::string> labels;
    if (!family.metric.empty())
      for (const auto& label : family.metric.front().label) labels.push_back(label.name);
    // A unit that the name does not state is the document's to say.
    std::string unit = UnitOf(family.name);
    if (unit.empty()) unit = Cell(documented, 3);
    if (unit.empty()) unit = "UNIT";
    const std::string there = !without_gpu_.contains(family.name)    ? "GPU tier"
                              : !without_disk_.contains(family.name) ? "disk tier"
                                                                     : "always";
    return absl::StrJoin({absl::StrCat("| `", family.name, "`"), TypeName(family.type), unit,
                          absl::StrJoin(labels, ", "), there, family.help + " |"},
                         " | ");
  }

  const std::vector<MetricFamily> families_ = Collect(Everything());
  const std::set<std::string> without_gpu_ = NamesOf(Collect(Without(TierKind::kGpu)));
  const std::set<std::string> without_disk_ = NamesOf(Collect(Without(TierKind::kDisk)));
};

TEST_F(MetricsDocumentTest, EveryMetricIsListedAsItIs) {
  const auto document = ReadDocument();
  std::string missing;
  for (const MetricFamily& family : families_) {
    EXPECT_FALSE(family.metric.empty())
        << family.name << " has no sample: give it one in Everything()";
    const auto found = document.find(family.name);
    const std::vector<std::string> none;
    const std::vector<std::string>& cells = found == document.end() ? none : found->second;
    const std::string line = LineOf(family, cells);
    if (absl::StrJoin(cells, "|") != line) absl::StrAppend(&missing, line, "\n");
  }
  EXPECT_EQ(missing, "") << "these lines are to be in " << kDocument;
}

TEST_F(MetricsDocumentTest, NothingElseIsListed) {
  const std::set<std::string> names = NamesOf(families_);
  for (const auto& [name, cells] : ReadDocument())
    EXPECT_TRUE(names.contains(name)) << name << " is in " << kDocument << ", and is no metric";
}

}  // namespace
}  // namespace oscarkv
