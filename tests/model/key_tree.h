// The keys of the store's model: a small forest of sequences.
#ifndef OSCARKV_TESTS_MODEL_KEY_TREE_H_
#define OSCARKV_TESTS_MODEL_KEY_TREE_H_

#include <algorithm>
#include <optional>
#include <vector>

#include "tests/support/store_pages.h"

namespace oscarkv::testing {

struct Node {
  TestItem item;
  std::optional<size_t> parent;
  std::vector<size_t> children;
};

// 24 roots, each with 3 branches to a depth of 4 pages. A node's number is its key's.
inline std::vector<Node> GrowKeyTree(const Namespace& space) {
  constexpr uint64_t kRoots = 24;
  constexpr uint64_t kFanOut = 3;
  constexpr uint64_t kDepth = 4;
  std::vector<Node> nodes;
  const auto grow = [&](auto&& self, std::optional<size_t> parent, uint64_t depth) -> void {
    const size_t index = nodes.size();
    nodes.emplace_back();
    nodes[index].item.key = KeyOf(index);
    nodes[index].item.first_position = depth * space.page_tokens();
    nodes[index].parent = parent;
    if (parent.has_value()) {
      nodes[index].item.parent = nodes[*parent].item.key;
      nodes[*parent].children.push_back(index);
    }
    if (depth + 1 == kDepth) return;
    for (uint64_t i = 0; i < (depth == 0 ? kFanOut : 1); ++i) self(self, index, depth + 1);
  };
  for (uint64_t root = 0; root < kRoots; ++root) grow(grow, std::nullopt, 0);
  return nodes;
}

// From the root to `node`.
inline std::vector<size_t> PathInTree(const std::vector<Node>& nodes, size_t node) {
  std::vector<size_t> path = {node};
  while (nodes[path.back()].parent.has_value()) path.push_back(*nodes[path.back()].parent);
  std::reverse(path.begin(), path.end());
  return path;
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_MODEL_KEY_TREE_H_
