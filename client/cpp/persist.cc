// Having pages made durable.
#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

#include "client/cpp/namespace_impl.h"
#include "client/cpp/wire.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {

bool PersistReport::durable() const {
  return store.ok() &&
         std::ranges::all_of(statuses, [](ItemStatus status) { return status == ItemStatus::kOk; });
}

absl::StatusOr<PersistReport> Namespace::Impl::Persist(std::span<const std::string> keys,
                                                       absl::Time deadline) {
  OSCARKV_RETURN_IF_ERROR(CheckKeys(keys));
  PersistReport report;
  report.statuses.assign(keys.size(), ItemStatus::kSkipped);
  report.messages.resize(keys.size());
  for (size_t first = 0; first < keys.size() && report.store.ok();) {
    const auto batch = keys.subspan(first, std::min<size_t>(keys.size() - first, max_items()));
    v1::KeysReply reply;
    report.store = WithOpen(Needs::kTransforms, deadline, [&] {
      v1::KeysRequest request;
      *request.mutable_scope() = MakeScope();
      for (const std::string& key : batch) request.add_keys(key);
      return Call(deadline, method::kPersist, request, &reply);
    });
    const auto answered = static_cast<int>(batch.size());
    for (int i = 0; i < std::min(answered, reply.results_size()); ++i) {
      report.statuses[first + static_cast<size_t>(i)] = FromProto(reply.results(i).status());
      report.messages[first + static_cast<size_t>(i)] = reply.results(i).message();
    }
    first += batch.size();
  }
  return report;
}

absl::StatusOr<PersistReport> Namespace::Persist(std::span<const std::string> keys,
                                                 absl::Duration timeout) const {
  return impl_->Persist(keys, absl::Now() + timeout);
}

void Namespace::PersistAsync(
    std::vector<std::string> keys, absl::Duration timeout,
    absl::AnyInvocable<void(absl::StatusOr<PersistReport>) &&> done) const {
  // The time that it waits for a thread counts, too.
  impl_->RunAsync(
      [impl = impl_.get(), keys = std::move(keys), deadline = absl::Now() + timeout,
       done = std::move(done)]() mutable { std::move(done)(impl->Persist(keys, deadline)); });
}

}  // namespace oscarkv::client
