#include "tests/model/book.h"

#include <algorithm>

namespace oscarkv::testing {
namespace {

constexpr uint64_t kFanOut = 3;  // of a root
constexpr uint64_t kDepth = 4;

}  // namespace

Book::Book(const Namespace& space, uint64_t first_key, uint64_t roots) : first_key_(first_key) {
  for (uint64_t root = 0; root < roots; ++root) Grow(space, std::nullopt, 0);
}

void Book::Grow(const Namespace& space, std::optional<Node> parent, uint64_t depth) {
  const Node node = pages_.size();
  Page& page = pages_.emplace_back();
  page.item.key = KeyOf(first_key_ + node);
  page.item.first_position = depth * space.page_tokens();
  page.parent = parent;
  if (parent.has_value()) {
    page.item.parent = pages_[*parent].item.key;
    pages_[*parent].children.push_back(node);
  }
  if (depth + 1 < kDepth)
    for (uint64_t i = 0; i < (depth == 0 ? kFanOut : 1); ++i) Grow(space, node, depth + 1);
}

std::optional<Book::Node> Book::Find(std::string_view key) const {
  const auto found = std::ranges::find(
      pages_, key, [](const Page& page) { return std::string_view(page.item.key); });
  if (found == pages_.end()) return std::nullopt;
  return static_cast<Node>(found - pages_.begin());
}

std::vector<Book::Node> Book::PathTo(Node node) const {
  std::vector<Node> path = {node};
  while (pages_[path.back()].parent.has_value()) path.push_back(*pages_[path.back()].parent);
  std::ranges::reverse(path);
  return path;
}

std::vector<std::string_view> Book::KeysAt(const std::vector<Node>& nodes) const {
  std::vector<std::string_view> keys;
  for (const Node node : nodes) keys.emplace_back(pages_[node].item.key);
  return keys;
}

Book::Node Book::Likely(Random& random) const {
  Node node = Any(random);
  for (int attempt = 0; attempt < 4 && pages_[node].now.empty(); ++attempt) node = Any(random);
  return node;
}

Book::Node Book::ToPut(Random& random) const {
  for (int attempt = 0; attempt < 8; ++attempt) {
    const Node node = Any(random);
    const std::optional<Node> parent = pages_[node].parent;
    if (pages_[node].now.empty() && (!parent.has_value() || !pages_[*parent].now.empty()))
      return node;
  }
  return Any(random);
}

void Book::Stored(Node node, const Version& version) {
  Tell("  page ", node, " is stored");
  pages_[node].now = {version};
  pages_[node].disk.insert(version);
  ++changes_;
}

void Book::Missed(Node node) {
  Tell("  page ", node, " is not there");
  pages_[node].now.clear();
  ++changes_;
}

void Book::Gone(Node node) {
  Missed(node);
  for (const Node child : pages_[node].children) Gone(child);
}

void Book::Restarted() {
  for (Page& page : pages_) page.now = page.disk;
  leases_.clear();
  ++changes_;
}

void Book::DiskIsUpToDate() {
  for (Page& page : pages_) page.disk = page.now;
}

bool Book::IsLeased(Node node) const {
  return std::ranges::any_of(leases_, [&](const Lease& lease) {
    return std::ranges::find(lease.nodes, node) != lease.nodes.end();
  });
}

void Book::DropLeasesOf(Node node) {
  for (Lease& lease : leases_) std::erase(lease.nodes, node);
  for (const Node child : pages_[node].children) DropLeasesOf(child);
}

size_t Book::EndLeases(absl::Duration now) {
  return std::erase_if(leases_, [&](const Lease& lease) { return lease.end <= now; });
}

void Book::EndLeasesOf(SessionId session) {
  std::erase_if(leases_, [&](const Lease& lease) { return lease.session == session; });
}

}  // namespace oscarkv::testing
