#include "server/core/persister.h"

#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "kernels/base/fault_point.h"

namespace oscarkv {

absl::Status Persister::Run(std::span<PersistTask> tasks) {
  for (size_t i = 0; i < tasks.size(); ++i) {
    const Namespace& space = *tasks[i].space;
    absl::flat_hash_set<std::string> seen;
    for (const std::string& wanted : tasks[i].keys) {
      for (const std::string& key : store_.ChainOf(space, wanted, &seen)) {
        if (absl::Now() >= tasks[i].deadline) break;
        if (batch_.full()) Flush(tasks, i);
        std::string parent;
        PinnedPage page = store_.PinForArchive(space, key, &parent);
        if (ItemResult added = batch_.Add(std::move(page), std::move(parent)); !added.ok()) {
          reason_ = added.message;
          failures_[{&space, key}] = std::move(added);
        }
      }
    }
  }
  Flush(tasks, tasks.size());
  return error_;
}

void Persister::Flush(std::span<PersistTask> tasks, size_t end) {
  batch_.Write([this](const Namespace& space, std::string_view key, const absl::Status& status) {
    if (status.ok()) return;
    error_ = status;
    reason_ = absl::StrCat("the disk did not take it: ", status.message());
    failures_[{&space, std::string(key)}] = {ItemStatus::kNoSpace, reason_};
  });
  for (; answered_ < end; ++answered_) Answer(tasks[answered_]);
}

ItemResult Persister::ResultOf(const Namespace& space, std::string_view key, bool late) const {
  if (const auto failure = failures_.find({&space, std::string(key)}); failure != failures_.end())
    return failure->second;
  ItemResult result = store_.WhyNotDurable(space, key);
  if (result.status != ItemStatus::kSkipped) return result;
  if (late) return {ItemStatus::kBusy, "the time was up before it was written"};
  if (!reason_.empty()) absl::StrAppend(&result.message, ": ", reason_);
  return result;
}

void Persister::Answer(PersistTask& task) {
  const std::vector<std::string_view> keys(task.keys.begin(), task.keys.end());
  const std::vector<bool> durable = store_.archive_->HoldChains(*task.space, keys);
  const bool late = absl::Now() >= task.deadline;
  std::vector<ItemResult> results(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!durable[i]) results[i] = ResultOf(*task.space, keys[i], late);
    const auto status = static_cast<size_t>(results[i].status);
    store_.counters_.persists_by_outcome[status].fetch_add(1, std::memory_order_relaxed);
  }
  FaultPoint("persist.durable");
  std::move(task.done)(std::move(results));
}

}  // namespace oscarkv
