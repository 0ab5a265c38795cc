#include "server/rpc/saved_state.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "kernels/base/status_macros.h"

namespace oscarkv {
namespace {

constexpr uint64_t kNamespaceBytesMax = 1 << 20;  // a spec is some hundred bytes

std::string Hex(std::string_view name) {
  return absl::BytesToHexString(absl::string_view(name.data(), name.size()));
}

}  // namespace

void SavedState::Restore(TransformRegistry& transforms,
                         absl::FunctionRef<absl::Status(const v1::OpenNamespaceRequest&)> open) {
  if (catalog_ == nullptr) return;
  RestoreTransformSets(transforms);
  RestoreNamespaces(open);
  for (const std::string& complaint : catalog_->TakeComplaints())
    LogSkipped("a file", absl::DataLossError(complaint));
}

void SavedState::RestoreTransformSets(TransformRegistry& transforms) {
  uint64_t restored = 0;
  for (const CatalogEntry& entry : catalog_->Entries()) {
    if (entry.kind != CatalogKind::kTransformSet) continue;
    const auto restore = [&]() -> absl::Status {
      OSCARKV_RETURN_IF_ERROR(transforms.CheckRoom(entry.bytes));
      OSCARKV_ASSIGN_OR_RETURN(const std::string file,
                               catalog_->Load(entry.kind, entry.name, entry.bytes));
      TransformUpload upload(transforms);
      OSCARKV_RETURN_IF_ERROR(upload.Append(file));
      return transforms.Add(entry.name, upload).status();
    };
    const absl::Status status = restore();
    restored += status.ok() ? 1u : 0u;
    if (!status.ok()) LogSkipped("transform set " + Hex(entry.name), status);
  }
  logger_.Log(LogLevel::kInfo, "transform sets from disk", {{"sets", absl::StrCat(restored)}});
}

void SavedState::RestoreNamespaces(
    absl::FunctionRef<absl::Status(const v1::OpenNamespaceRequest&)> open) {
  uint64_t restored = 0;
  for (const CatalogEntry& entry : catalog_->Entries()) {
    if (entry.kind != CatalogKind::kNamespace) continue;
    v1::OpenNamespaceRequest request;
    const auto restore = [&]() -> absl::Status {
      OSCARKV_ASSIGN_OR_RETURN(const std::string text,
                               catalog_->Load(entry.kind, entry.name, kNamespaceBytesMax));
      if (!request.ParseFromString(text))
        return absl::DataLossError("its contents are not a request that opens a namespace");
      // So that one saved by a version that computes fingerprints otherwise is refused.
      request.set_expected_fingerprint(entry.name);
      return open(request);
    };
    const absl::Status status = restore();
    if (!status.ok()) {
      LogSkipped("namespace " + Hex(entry.name), status);
      continue;
    }
    ++restored;
    const absl::MutexLock lock(&mutex_);
    namespaces_[entry.name] = std::move(request);
  }
  logger_.Log(LogLevel::kInfo, "namespaces from disk", {{"namespaces", absl::StrCat(restored)}});
}

void SavedState::LogSkipped(const std::string& what, const absl::Status& why) const {
  logger_.Log(LogLevel::kWarning, "passed over on disk",
              {{"what", what}, {"reason", std::string(why.message())}});
}

void SavedState::SaveNamespace(const std::string& fingerprint,
                               const v1::OpenNamespaceRequest& request) {
  if (catalog_ == nullptr) return;
  const absl::MutexLock lock(&mutex_);
  v1::OpenNamespaceRequest merged = namespaces_[fingerprint];
  merged.clear_spec();        // its lists would be joined
  merged.MergeFrom(request);  // settings that the request leaves out stay
  merged.set_create(true);
  merged.set_expected_fingerprint(fingerprint);
  const std::string text = merged.SerializeAsString();
  const bool saved = catalog_->Has(CatalogKind::kNamespace, fingerprint) &&
                     !pending_.contains(fingerprint) &&
                     text == namespaces_[fingerprint].SerializeAsString();
  namespaces_[fingerprint] = std::move(merged);
  if (saved) return;
  if (Save(CatalogKind::kNamespace, fingerprint, text).ok())
    pending_.erase(fingerprint);
  else
    pending_.insert(fingerprint);
}

absl::Status SavedState::EnsureSaved(const Namespace& space, const TransformRegistry& transforms) {
  if (catalog_ == nullptr)
    return absl::FailedPreconditionError("the server keeps nothing on disk: it has no disk tier");
  {
    const absl::MutexLock lock(&mutex_);
    const std::string& fingerprint = space.fingerprint();
    if (pending_.contains(fingerprint)) {
      OSCARKV_RETURN_IF_ERROR(
          Save(CatalogKind::kNamespace, fingerprint, namespaces_[fingerprint].SerializeAsString()));
      pending_.erase(fingerprint);
    }
  }
  const std::string& hash = space.spec().codec.transform_hash;
  if (hash.empty() || catalog_->Has(CatalogKind::kTransformSet, hash)) return absl::OkStatus();
  const auto registered = transforms.Find(hash);
  if (registered != nullptr) return Save(CatalogKind::kTransformSet, hash, registered->file);
  return absl::FailedPreconditionError(absl::StrCat(
      "transform set ", Hex(hash), " has not been uploaded: the pages could not be read again"));
}

void SavedState::SaveTransformSet(const std::string& hash, std::string_view file) {
  if (catalog_ == nullptr || catalog_->Has(CatalogKind::kTransformSet, hash)) return;
  Save(CatalogKind::kTransformSet, hash, file).IgnoreError();  // logged and counted
}

absl::Status SavedState::RemoveTransformSet(const std::string& hash) {
  return catalog_ == nullptr ? absl::OkStatus()
                             : catalog_->Remove(CatalogKind::kTransformSet, hash);
}

absl::Status SavedState::Save(CatalogKind kind, std::string_view name, std::string_view contents) {
  absl::Status status = catalog_->Save(kind, name, contents);
  if (!status.ok()) {
    logger_.Log(LogLevel::kError,
                "not saved: unknown after a restart until a client brings it again",
                {{"reason", std::string(status.message())}});
  }
  return status;
}

}  // namespace oscarkv
