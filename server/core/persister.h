// Answers those who want pages durable: writes what is missing of their chains, many tasks at once.
#ifndef OSCARKV_SERVER_CORE_PERSISTER_H_
#define OSCARKV_SERVER_CORE_PERSISTER_H_

#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

#include "server/core/archive_batch.h"
#include "server/core/page_store.h"

namespace oscarkv {

// Writes for some tasks and calls the `done` of each: with the first of them, as soon as its pages
// are written. For one thread, once. The store, which has an archive, must outlive it.
class Persister {
 public:
  explicit Persister(PageStore& store) : store_(store), batch_(store) {}
  // Returns what the device said to the last page that failed.
  absl::Status Run(std::span<PersistTask> tasks);

 private:
  // Writes the batch and answers the tasks before `end`, of which everything is written then.
  void Flush(std::span<PersistTask> tasks, size_t end);
  void Answer(PersistTask& task);
  ItemResult ResultOf(const Namespace& space, std::string_view key, bool late) const;

  PageStore& store_;
  ArchiveBatch batch_;
  size_t answered_ = 0;
  // Of pages that could not be written.
  absl::flat_hash_map<std::pair<const Namespace*, std::string>, ItemResult> failures_;
  std::string reason_;  // of the last of them
  absl::Status error_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_PERSISTER_H_
