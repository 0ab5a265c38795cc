#include "server/rpc/transform_registry.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/transform_file.h"

namespace oscarkv {

std::shared_ptr<const RegisteredTransforms> TransformRegistry::Find(std::string_view hash) const {
  const absl::MutexLock lock(&mutex_);
  const auto found = sets_.find(absl::string_view(hash.data(), hash.size()));
  return found == sets_.end() ? nullptr : found->second;
}

absl::Status TransformRegistry::CheckRoom(uint64_t bytes) const {
  const absl::MutexLock lock(&mutex_);
  if (bytes <= bytes_max_ - bytes_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a transform set of ", bytes, " bytes: ", bytes_,
                                                   " of ", bytes_max_,
                                                   " bytes for transform sets are taken"));
}

absl::StatusOr<bool> TransformRegistry::Add(std::string_view hash, std::string file) {
  const std::string found = Sha256Of(AsBytes(file));
  if (found != hash) {
    return absl::InvalidArgumentError(
        absl::StrCat("the transform set's hash is ", absl::BytesToHexString(found),
                     ", announced was ", absl::BytesToHexString({hash.data(), hash.size()})));
  }
  if (Find(hash) != nullptr) return true;
  OSCARKV_ASSIGN_OR_RETURN(TransformSet set, ParseTransformFile(AsBytes(file)));
  OSCARKV_RETURN_IF_ERROR(CheckRoom(file.size()));
  const uint64_t bytes = file.size();
  auto entry = std::make_shared<const RegisteredTransforms>(
      RegisteredTransforms{std::move(file), std::move(set)});
  const absl::MutexLock lock(&mutex_);
  const bool added = sets_.emplace(std::string(hash), std::move(entry)).second;
  if (added) bytes_ += bytes;
  return !added;
}

}  // namespace oscarkv
