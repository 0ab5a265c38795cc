// Pages on their way to the archive: pinned, verified, and written at once.
#ifndef OSCARKV_SERVER_CORE_ARCHIVE_BATCH_H_
#define OSCARKV_SERVER_CORE_ARCHIVE_BATCH_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

#include "server/core/page_store.h"

namespace oscarkv {

// For one thread. The store, which has an archive, must outlive it.
class ArchiveBatch {
 public:
  explicit ArchiveBatch(PageStore& store) : store_(store) {}

  bool full() const { return pages_.size() == kPagesMax; }
  // Adds a page that is pinned (empty: nothing to add), which is not full. kOk also when it is
  // there already. kCorrupt: it has rotted, and is dropped. kQuota: its tenant has as much in the
  // archive as it may.
  ItemResult Add(PinnedPage page, std::string parent);
  // Writes the pages and lets go of them. `each` is told what became of each.
  void Write(
      absl::FunctionRef<void(const Namespace&, std::string_view key, const absl::Status&)> each);

  static constexpr uint32_t kPagesMax = 64;  // pinned while they are written

 private:
  bool TakeQuota(Tenant& tenant, uint64_t slot_bytes);

  PageStore& store_;
  std::vector<PinnedPage> pages_;
  std::vector<std::string> parents_;                    // [page]
  absl::flat_hash_set<const PageRecord*> records_;      // of the pages
  absl::flat_hash_map<const Tenant*, uint64_t> bytes_;  // in the archive, with these pages
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_ARCHIVE_BATCH_H_
