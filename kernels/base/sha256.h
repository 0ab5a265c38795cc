// SHA-256 (FIPS 180-4), for page keys, fingerprints and the content hash of transform sets.
#ifndef OSCARKV_KERNELS_BASE_SHA256_H_
#define OSCARKV_KERNELS_BASE_SHA256_H_

#include <string>

#include "kernels/base/bytes.h"

struct evp_md_ctx_st;

namespace oscarkv {

inline constexpr size_t kSha256Bytes = 32;

// Incremental hash. Not thread-safe; one use each.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Update(ByteView bytes);
  std::string Finish();  // 32 raw bytes

 private:
  evp_md_ctx_st* context_;
};

// The digest of `bytes`: 32 raw bytes.
std::string Sha256Of(ByteView bytes);

}  // namespace oscarkv

#endif  // OSCARKV_KERNELS_BASE_SHA256_H_
