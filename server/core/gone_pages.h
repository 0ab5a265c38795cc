// Pages that were removed while they were on their way to the archive: it may have them for a
// moment, and nobody is to see that.
#ifndef OSCARKV_SERVER_CORE_GONE_PAGES_H_
#define OSCARKV_SERVER_CORE_GONE_PAGES_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"

#include "server/core/namespace.h"
#include "server/core/page_archive.h"

namespace oscarkv {

// Thread-safe; calls nobody under its lock.
class GonePages {
 public:
  // Before the archive can have the page, and before whoever removed it is told that it is gone.
  void Add(const Namespace& space, std::string_view key);
  // After the archive has forgotten it.
  void Remove(const Namespace& space, std::string_view key);
  // What `find` finds of the page in the archive, unless the page is gone. `find` may be called
  // again: what it found may be what was there for a moment, before and after which the page was
  // not known here.
  std::optional<ArchivedPage> Find(const Namespace& space, std::string_view key,
                                   absl::FunctionRef<std::optional<ArchivedPage>()> find) const;

 private:
  bool Contains(const Namespace& space, std::string_view key) const;

  mutable absl::Mutex mutex_;
  absl::flat_hash_set<std::pair<const Namespace*, std::string>> pages_ ABSL_GUARDED_BY(mutex_);
  // Both are written under the lock, and read without it. Who finds a page in the archive comes
  // after its Add, through the archive's own lock, and so sees what Add wrote here, or later.
  std::atomic<size_t> count_ = 0;
  std::atomic<uint64_t> changes_ = 0;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_GONE_PAGES_H_
