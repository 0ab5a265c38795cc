#include "server/rpc/path_negotiation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

bool Contains(const auto& list, auto value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

void PathNegotiation::Add(DataPath path, Agreement agreement) {
  const absl::MutexLock lock(&mutex_);
  here_[path] = std::move(agreement);
}

void PathNegotiation::AddMissing(DataPath path, const absl::Status& why) {
  Add(path, [why](Direction, const v1::PathOffer&, v1::SessionReply*) { return why; });
}

absl::Status PathNegotiation::CheckAllowed(Direction direction, DataPath path) const {
  if (Contains(allowed_[static_cast<size_t>(direction)], path)) return absl::OkStatus();
  const std::string_view name = DataPathName(path);
  const std::string_view what = DirectionName(direction);
  return absl::UnimplementedError(absl::StrCat(
      "the server's configuration forbids ", absl::string_view(name.data(), name.size()), " for a ",
      absl::string_view(what.data(), what.size())));
}

absl::Status PathNegotiation::Try(Direction direction, DataPath path, const v1::PathOffer& offer,
                                  v1::SessionReply* reply) const {
  const auto& offered = direction == Direction::kFetch ? offer.fetch() : offer.push();
  // A client of before paths were agreed on offers nothing, and has gRPC.
  const bool has = offered.empty() ? path == DataPath::kGrpc
                                   : Contains(offered, static_cast<v1::DataPath>(path));
  if (!has) return absl::UnavailableError("the client has not, or may not use it");
  if (!CheckAllowed(direction, path).ok())
    return absl::UnavailableError("the server's configuration forbids it");
  if (path == DataPath::kGrpc) return absl::OkStatus();
  const absl::MutexLock lock(&mutex_);
  const auto found = here_.find(path);
  if (found == here_.end()) return absl::UnavailableError("the server has not");
  return found->second(direction, offer, reply);
}

void PathNegotiation::Agree(const v1::PathOffer& offer, v1::SessionReply* reply) const {
  for (const Direction direction : kDirections) {
    v1::PathChoice* choice =
        direction == Direction::kFetch ? reply->mutable_fetch() : reply->mutable_push();
    std::string reasons;
    for (const DataPath path : kDataPaths) {
      const absl::Status status = Try(direction, path, offer, reply);
      if (status.ok()) {
        if (choice->path() == v1::DATA_PATH_UNSPECIFIED) {
          choice->set_path(static_cast<v1::DataPath>(path));
        } else {
          choice->add_then(static_cast<v1::DataPath>(path));
        }
        continue;
      }
      if (choice->path() != v1::DATA_PATH_UNSPECIFIED) continue;  // nothing better is missed
      const std::string_view name = DataPathName(path);
      absl::StrAppend(&reasons, reasons.empty() ? "" : "; ",
                      absl::string_view(name.data(), name.size()), ": ", status.message());
    }
    choice->set_reason(std::move(reasons));
  }
}

}  // namespace oscarkv
