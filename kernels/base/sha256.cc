#include "kernels/base/sha256.h"

#include <new>

#include <openssl/evp.h>

namespace oscarkv {

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  // OpenSSL fails here only when it is out of memory.
  if (context_ == nullptr || EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) != 1)
    throw std::bad_alloc();
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

void Sha256::Update(ByteView bytes) { EVP_DigestUpdate(context_, bytes.data(), bytes.size()); }

std::string Sha256::Finish() {
  std::string digest(kSha256Bytes, '\0');
  unsigned int written = 0;
  EVP_DigestFinal_ex(context_, reinterpret_cast<unsigned char*>(digest.data()), &written);
  return digest;
}

std::string Sha256Of(ByteView bytes) {
  Sha256 hash;
  hash.Update(bytes);
  return hash.Finish();
}

}  // namespace oscarkv
