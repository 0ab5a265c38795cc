// An open namespace: its spec, its fingerprint and where everything lies in its pages.
#ifndef OSCARKV_SERVER_CORE_NAMESPACE_H_
#define OSCARKV_SERVER_CORE_NAMESPACE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "kernels/codec/page_layout.h"
#include "proto/wire/namespace_spec.h"

namespace oscarkv {

class Tenant;

// Immutable, so thread-safe; lives as long as the store that opened it.
class Namespace {
 public:
  // kInvalidArgument when the spec does not validate or a page would be too large. `tenant` is
  // borrowed; null in what asks for none.
  static absl::StatusOr<Namespace> Create(NamespaceSpec spec, uint32_t id,
                                          Tenant* tenant = nullptr);

  uint32_t id() const { return id_; }
  Tenant& tenant() const { return *tenant_; }  // whose it is
  const NamespaceSpec& spec() const { return spec_; }
  const std::string& fingerprint() const { return fingerprint_; }  // 32 raw bytes
  // A namespace without a transform set holds WIDE pages only.
  bool holds(Encoding encoding) const {
    return encoding == Encoding::kWide || !spec_.codec.transform_hash.empty();
  }
  // Of both encodings, whether the namespace holds them or not.
  const PageLayout& layout(Encoding encoding) const {
    return encoding == Encoding::kWide ? wide_ : packed_;
  }
  uint64_t page_bytes(Encoding encoding) const { return layout(encoding).page_bytes(); }
  uint32_t page_tokens() const { return spec_.geometry.page_tokens; }

 private:
  Namespace(NamespaceSpec spec, uint32_t id, Tenant* tenant, PageLayout wide, PageLayout packed);

  NamespaceSpec spec_;
  std::string fingerprint_;
  uint32_t id_;
  Tenant* tenant_;
  PageLayout wide_;
  PageLayout packed_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_NAMESPACE_H_
