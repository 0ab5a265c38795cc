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
  return CheckRoomLocked(bytes);
}

absl::Status TransformRegistry::CheckRoomLocked(uint64_t bytes) const {
  if (bytes <= bytes_max_ - bytes_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("a transform set of ", bytes, " bytes: ", bytes_,
                                                   " of ", bytes_max_,
                                                   " bytes for transform sets are taken"));
}

absl::Status TransformRegistry::Take(uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  OSCARKV_RETURN_IF_ERROR(CheckRoomLocked(bytes));
  bytes_ += bytes;
  return absl::OkStatus();
}

void TransformRegistry::GiveBack(uint64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  bytes_ -= bytes;
}

uint64_t TransformRegistry::bytes() const {
  const absl::MutexLock lock(&mutex_);
  return bytes_;
}

absl::StatusOr<bool> TransformRegistry::Add(std::string_view hash, TransformUpload& upload) {
  const std::string found = Sha256Of(AsBytes(upload.file_));
  if (found != hash) {
    return absl::InvalidArgumentError(
        absl::StrCat("the transform set's hash is ", absl::BytesToHexString(found),
                     ", announced was ", absl::BytesToHexString({hash.data(), hash.size()})));
  }
  if (Find(hash) != nullptr) return true;
  OSCARKV_ASSIGN_OR_RETURN(TransformSet set, ParseTransformFile(AsBytes(upload.file_)));
  const absl::MutexLock lock(&mutex_);
  if (sets_.contains(found)) return true;
  // The bytes that the upload counts are the set's from here on.
  sets_.emplace(found, std::make_shared<const RegisteredTransforms>(
                           RegisteredTransforms{std::exchange(upload.file_, {}), std::move(set)}));
  return false;
}

bool TransformRegistry::Remove(std::string_view hash) {
  const absl::MutexLock lock(&mutex_);
  const auto found = sets_.find(absl::string_view(hash.data(), hash.size()));
  if (found == sets_.end()) return false;
  bytes_ -= found->second->file.size();
  sets_.erase(found);
  return true;
}

TransformUpload::~TransformUpload() { registry_.GiveBack(file_.size()); }

absl::Status TransformUpload::Append(std::string_view data) {
  OSCARKV_RETURN_IF_ERROR(registry_.Take(data.size()));
  file_.append(data);
  return absl::OkStatus();
}

}  // namespace oscarkv
