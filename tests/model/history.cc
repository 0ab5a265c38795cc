#include "tests/model/history.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace oscarkv::testing {

History::History(const Book& universe) : universe_(universe), pages_(universe.size()) {}

std::vector<History::Node> History::TreeOf(Node node) const {
  std::vector<Node> tree = {node};
  for (size_t i = 0; i < tree.size(); ++i) {
    const std::vector<Node>& children = universe_.at(tree[i]).children;
    tree.insert(tree.end(), children.begin(), children.end());
  }
  return tree;
}

History::Put::Put(History& history, Node node, const Version& version)
    : history_(history), node_(node), version_(version), begun_(history.Now()) {
  Page& page = history_.pages_[node_];
  const absl::MutexLock lock(&page.mutex);
  page.stored.push_back({version_, {begun_, kNever}});
}

void History::Put::End(bool stored) {
  Page& page = history_.pages_[node_];
  const Tick now = history_.Now();
  const absl::MutexLock lock(&page.mutex);
  const auto mine = std::ranges::find_if(
      page.stored, [this](const Stored& each) { return each.put.begun == begun_; });
  if (!stored) {
    page.stored.erase(mine);
    return;
  }
  mine->put.ended = now;
  page.absent.push_back({begun_, now});  // or it would not have been stored
  page.disk.insert(version_);
}

void History::Absent(Node node, Tick begun) {
  Page& page = pages_[node];
  const Tick now = Now();
  const absl::MutexLock lock(&page.mutex);
  page.absent.push_back({begun, now});
}

History::Removal::Removal(History& history, Node node)
    : history_(history), node_(node), begun_(history.Now()) {
  for (const Node each : history_.TreeOf(node_)) ++history_.pages_[each].removals_begun;
}

void History::Removal::End() {
  for (const Node each : history_.TreeOf(node_)) {
    history_.Absent(each, begun_);
    ++history_.pages_[each].removals_ended;
  }
}

std::set<Version> History::MayBe(Node node, Tick begun) const {
  const Page& page = pages_[node];
  std::set<Version> may_be;
  const absl::MutexLock lock(&page.mutex);
  for (const Stored& stored : page.stored) {
    const bool gone = std::ranges::any_of(page.absent, [&](const Span& absent) {
      return stored.put.ended < absent.begun && absent.ended < begun;
    });
    if (!gone) may_be.insert(stored.version);
  }
  return may_be;
}

std::string History::Describe(Node node) const {
  const Page& page = pages_[node];
  std::string text;
  const absl::MutexLock lock(&page.mutex);
  for (const Stored& stored : page.stored) {
    absl::StrAppend(&text, " stored ", stored.version.seed,
                    stored.version.encoding == Encoding::kWide ? "W" : "P", " at ",
                    stored.put.begun, "..", stored.put.ended);
  }
  for (const Span& absent : page.absent)
    absl::StrAppend(&text, " absent at ", absent.begun, "..", absent.ended);
  return text;
}

void History::Settle() {
  const Tick now = Now();
  for (Node node = 0; node < pages_.size(); ++node) {
    const std::set<Version> left = MayBe(node, now);
    Page& page = pages_[node];
    const absl::MutexLock lock(&page.mutex);
    page.stored.clear();
    page.absent.clear();
    for (const Version& version : left) page.stored.push_back({version, {now, now}});
  }
}

void History::Cleared() {
  for (Page& page : pages_) {
    const absl::MutexLock lock(&page.mutex);
    page.stored.clear();
    page.absent.clear();
  }
}

void History::Restarted() {
  const Tick now = Now();
  for (Page& page : pages_) {
    const absl::MutexLock lock(&page.mutex);
    page.stored.clear();
    page.absent.clear();
    for (const Version& version : page.disk) page.stored.push_back({version, {now, now}});
  }
}

void History::DiskIsUpToDate() {
  Settle();
  for (Page& page : pages_) {
    const absl::MutexLock lock(&page.mutex);
    page.disk.clear();
    for (const Stored& stored : page.stored) page.disk.insert(stored.version);
  }
}

}  // namespace oscarkv::testing
