// Least recently used, leaf first.
#ifndef OSCARKV_SERVER_CORE_LRU_POLICY_H_
#define OSCARKV_SERVER_CORE_LRU_POLICY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "server/core/eviction_policy.h"

namespace oscarkv {

// Each page has the tick of its last use, under a bit that puts pages that may go first before all
// others; the evictable pages are in a binary heap by it. A page
// that becomes evictable late (its last child went) takes its place by its last use, which a list
// could not give. 16 bytes a page; OnUse O(pages log evictable), Victim O(1), the rest O(log).
class LruPolicy final : public EvictionPolicy {
 public:
  std::string_view name() const override { return "lru"; }
  std::unique_ptr<EvictionPolicy> NewSibling() const override {
    return std::make_unique<LruPolicy>();
  }
  void OnInsert(PageId page, const PageTraits& traits) override;
  bool Admits(const PageTraits& /*traits*/) override { return true; }
  void OnRefuse(const PageTraits& /*traits*/) override {}
  void OnUse(std::span<const UsedPage> pages, const RequestTraits& request,
             absl::Duration now) override;
  void OnRemove(PageId page, RemoveReason reason) override;
  void SetEvictable(PageId page, bool evictable) override;
  std::optional<PageId> Victim(absl::Duration now) override;
  std::optional<double> UseChance(PageId /*page*/, absl::Duration /*now*/) const override {
    return std::nullopt;
  }
  std::optional<double> PutChance(const PageTraits& /*traits*/) override { return std::nullopt; }
  uint64_t memory_bytes() const override;

 private:
  static constexpr uint32_t kNotInHeap = 0xffffffff;
  static constexpr uint64_t kStays = uint64_t{1} << 63;  // in last_use_: may not go first

  // The stamp of a use now, of a page whose stamp was `before`.
  uint64_t Stamp(uint64_t before, Residency residency);

  void Place(uint32_t position, PageId page);
  void SiftUp(uint32_t position);
  void SiftDown(uint32_t position);

  uint64_t tick_ = 0;
  std::vector<uint64_t> last_use_;   // [page]
  std::vector<uint32_t> positions_;  // [page], in heap_
  std::vector<PageId> heap_;         // evictable pages, least last_use_ at the front
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_LRU_POLICY_H_
