#include "server/core/namespace.h"

#include <utility>

#include "kernels/base/status_macros.h"

namespace oscarkv {

Namespace::Namespace(NamespaceSpec spec, uint32_t id, Tenant* tenant, PageLayout wide,
                     PageLayout packed)
    : spec_(std::move(spec)),
      fingerprint_(Fingerprint(spec_)),
      id_(id),
      tenant_(tenant),
      wide_(std::move(wide)),
      packed_(std::move(packed)) {}

absl::StatusOr<Namespace> Namespace::Create(NamespaceSpec spec, uint32_t id, Tenant* tenant) {
  OSCARKV_RETURN_IF_ERROR(ValidateNamespaceSpec(spec));
  OSCARKV_ASSIGN_OR_RETURN(PageLayout wide,
                           PageLayout::Create(spec.geometry, spec.codec, Encoding::kWide));
  OSCARKV_ASSIGN_OR_RETURN(PageLayout packed,
                           PageLayout::Create(spec.geometry, spec.codec, Encoding::kPacked));
  return Namespace(std::move(spec), id, tenant, std::move(wide), std::move(packed));
}

}  // namespace oscarkv
