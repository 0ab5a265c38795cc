// Transform sets by content hash. A set is checked once, kept for the server's life, and served to
// everybody.
#ifndef OSCARKV_SERVER_RPC_TRANSFORM_REGISTRY_H_
#define OSCARKV_SERVER_RPC_TRANSFORM_REGISTRY_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

#include "kernels/codec/transform_set.h"

namespace oscarkv {

struct RegisteredTransforms {
  std::string file;  // as uploaded
  TransformSet set;
};

class TransformRegistry;

// A set on its way in. What has come counts against the registry's room until the upload is
// destroyed, so that many uploads at once cannot take more memory than sets may. Not thread-safe;
// the registry outlives it.
class TransformUpload {
 public:
  explicit TransformUpload(TransformRegistry& registry) : registry_(registry) {}
  ~TransformUpload();
  TransformUpload(const TransformUpload&) = delete;
  TransformUpload& operator=(const TransformUpload&) = delete;

  // kResourceExhausted when there is no room for it.
  absl::Status Append(std::string_view data);
  const std::string& file() const { return file_; }

 private:
  friend class TransformRegistry;
  TransformRegistry& registry_;
  std::string file_;
};

// Thread-safe.
class TransformRegistry {
 public:
  // `bytes_max`: of all files together.
  explicit TransformRegistry(uint64_t bytes_max) : bytes_max_(bytes_max) {}

  // Null when there is none.
  std::shared_ptr<const RegisteredTransforms> Find(std::string_view hash) const;

  // Whether a file of `bytes` may come: kResourceExhausted when it would pass the limit.
  absl::Status CheckRoom(uint64_t bytes) const;

  // Takes the set of an upload to this registry, which is empty afterwards; returns whether it was
  // there. kInvalidArgument: not the bytes of `hash`, or not a transform file (ParseTransformFile).
  absl::StatusOr<bool> Add(std::string_view hash, TransformUpload& upload);

  // Forgets the set; whoever has it keeps it. Returns whether it was there.
  bool Remove(std::string_view hash);

  uint64_t bytes() const;  // of sets and uploads

 private:
  friend class TransformUpload;
  absl::Status CheckRoomLocked(uint64_t bytes) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status Take(uint64_t bytes);
  void GiveBack(uint64_t bytes);

  const uint64_t bytes_max_;
  mutable absl::Mutex mutex_;
  uint64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<std::string, std::shared_ptr<const RegisteredTransforms>> sets_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_RPC_TRANSFORM_REGISTRY_H_
