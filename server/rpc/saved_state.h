// What a server knows again after a restart, besides pages: namespaces with their settings, and
// transform sets. They lie in a Catalog, each saved before the call that brought it is answered.
#ifndef OSCARKV_SERVER_RPC_SAVED_STATE_H_
#define OSCARKV_SERVER_RPC_SAVED_STATE_H_

#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

#include "kernels/base/log.h"
#include "server/core/catalog.h"
#include "server/core/namespace.h"
#include "server/rpc/transform_registry.h"

#include "oscarkv/v1/kv_cache.pb.h"

namespace oscarkv {

// Thread-safe. What cannot be saved is logged and counted, and all goes on without. Calls that save
// wait for the device.
class SavedState {
 public:
  // `catalog` null: nothing outlives the server. Both are borrowed.
  SavedState(Catalog* catalog, const Logger& logger) : catalog_(catalog), logger_(logger) {}

  // Before serving: brings back transform sets, then namespaces, each by the request that would
  // open it again. What is damaged, or does not fit any more, is passed over with a line in the
  // log.
  void Restore(TransformRegistry& transforms,
               absl::FunctionRef<absl::Status(const v1::OpenNamespaceRequest&)> open);

  // Of a namespace that `request` has opened: saves its spec and its settings, where they are new.
  void SaveNamespace(const std::string& fingerprint, const v1::OpenNamespaceRequest& request);
  void SaveTransformSet(const std::string& hash, std::string_view file);
  // An error: it would be there again after a restart.
  absl::Status RemoveTransformSet(const std::string& hash);

  // Tries again what could not be saved. OK: the namespace is, and its transform set, if it has
  // one. kFailedPrecondition: nothing is kept here, or the set has not been uploaded.
  absl::Status EnsureSaved(const Namespace& space, const TransformRegistry& transforms);

 private:
  void RestoreNamespaces(absl::FunctionRef<absl::Status(const v1::OpenNamespaceRequest&)> open);
  void RestoreTransformSets(TransformRegistry& transforms);
  void LogSkipped(const std::string& what, const absl::Status& why) const;
  absl::Status Save(CatalogKind kind, std::string_view name, std::string_view contents);

  Catalog* const catalog_;
  const Logger& logger_;
  absl::Mutex mutex_;  // held while a namespace is saved: of two at once the later stays
  // [fingerprint], as they are, or are to be, saved.
  absl::flat_hash_map<std::string, v1::OpenNamespaceRequest> namespaces_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<std::string> pending_ ABSL_GUARDED_BY(mutex_);  // fingerprints
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_SAVED_STATE_H_
