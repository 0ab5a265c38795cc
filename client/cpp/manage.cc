// Delete, touch, list and clear.
#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

#include "client/cpp/namespace_impl.h"
#include "client/cpp/wire.h"
#include "kernels/base/status_macros.h"
#include "proto/convert/convert.h"

namespace oscarkv::client {
namespace {

// Calls `method` on the keys in batches. Keys of a call that failed count as not there.
absl::StatusOr<std::vector<ItemStatus>> ForKeys(Namespace::Impl& space,
                                                std::span<const std::string> keys,
                                                const RequestHints& hints, const char* method) {
  OSCARKV_RETURN_IF_ERROR(space.CheckKeys(keys));
  std::vector<ItemStatus> statuses;
  Connection& connection = *space.connection();
  const absl::Time deadline = absl::Now() + connection.options().control_timeout;
  while (statuses.size() < keys.size()) {
    const auto batch = keys.subspan(
        statuses.size(), std::min<size_t>(keys.size() - statuses.size(), space.max_items()));
    v1::KeysReply reply;
    const absl::Status status = space.WithOpen(Namespace::Impl::Needs::kNamespace, deadline, [&] {
      v1::KeysRequest request;
      *request.mutable_scope() = space.MakeScope();
      *request.mutable_hints() = ToProto(hints);
      for (const std::string& key : batch) request.add_keys(key);
      return space.Call(deadline, method, request, &reply);
    });
    for (size_t i = 0; i < batch.size(); ++i) {
      const bool answered = status.ok() && i < static_cast<size_t>(reply.results_size());
      statuses.push_back(answered ? FromProto(reply.results(static_cast<int>(i)).status())
                                  : ItemStatus::kMiss);
    }
  }
  return statuses;
}

}  // namespace

absl::StatusOr<std::vector<ItemStatus>> Namespace::Delete(std::span<const std::string> keys) const {
  return ForKeys(*impl_, keys, {}, method::kDelete);
}

absl::StatusOr<std::vector<ItemStatus>> Namespace::Touch(std::span<const std::string> keys,
                                                         const RequestHints& hints) const {
  return ForKeys(*impl_, keys, hints, method::kTouch);
}

absl::StatusOr<std::vector<ListedKey>> Namespace::List(uint32_t keys_max) const {
  std::vector<ListedKey> listed;
  std::string cursor;
  Connection& connection = *impl_->connection();
  do {
    v1::ListReply reply;
    // A deadline for each call: a list may be long.
    const absl::Time deadline = absl::Now() + connection.options().control_timeout;
    OSCARKV_RETURN_IF_ERROR(impl_->WithOpen(Impl::Needs::kNamespace, deadline, [&] {
      v1::ListRequest request;
      *request.mutable_scope() = impl_->MakeScope();
      request.set_max_keys(
          std::min<uint32_t>(keys_max - static_cast<uint32_t>(listed.size()), impl_->max_items()));
      request.set_cursor(cursor);
      return impl_->Call(deadline, method::kList, request, &reply);
    }));
    if (!cursor.empty() && reply.cursor() == cursor)
      return absl::DataLossError("the server's list does not get on");
    for (const v1::ListedPage& page : reply.pages()) {
      if (listed.size() == keys_max) break;
      listed.push_back(
          {.key = page.key(),
           .parent = page.parent(),
           .encoding = page.info().encoding() == v1::WIDE ? Encoding::kWide : Encoding::kPacked,
           .tier = TierName(page.info().tier()),
           .bytes = page.info().bytes(),
           .first_position = page.info().first_position()});
    }
    cursor = reply.cursor();
  } while (!cursor.empty() && listed.size() < keys_max);
  return listed;
}

absl::StatusOr<uint64_t> Namespace::Clear() const {
  v1::ClearReply reply;
  Connection& connection = *impl_->connection();
  const absl::Time deadline = absl::Now() + connection.options().control_timeout;
  OSCARKV_RETURN_IF_ERROR(impl_->WithOpen(Impl::Needs::kNamespace, deadline, [&] {
    v1::ClearRequest request;
    *request.mutable_scope() = impl_->MakeScope();
    return impl_->Call(deadline, method::kClear, request, &reply);
  }));
  return reply.removed();
}

}  // namespace oscarkv::client
