#include "client/cli/transform_source.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

#include "client/cli/transform_report.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/transform_file.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv::cli {

absl::StatusOr<LayerSource> LoadLayer(const std::string& name, uint32_t layer,
                                      const Geometry& geometry) {
  if (name == "identity" || name == "hadamard") {
    OSCARKV_ASSIGN_OR_RETURN(TransformSet set,
                             name == "identity" ? MakeIdentityTransformSet(geometry, 0.0f, 0.0f)
                                                : MakeHadamardTransformSet(geometry, 0.0f, 0.0f));
    return LayerSource{std::move(set), 0, name};
  }
  OSCARKV_ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> file, MappedFile::Open(name));
  absl::StatusOr<TransformSet> set = ParseTransformFile(file->bytes());
  if (!set.ok()) return Annotate(set.status(), name);
  if (layer >= set->layers()) {
    return absl::OutOfRangeError(
        absl::StrCat(name, " has no layer ", layer, ": its layers are 0..", set->layers() - 1));
  }
  if (set->kv_heads() != geometry.kv_heads || set->k_head_dim() != geometry.k_head_dim ||
      set->v_head_dim() != geometry.v_head_dim) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " is for ", set->kv_heads(), " KV heads, head dims ", set->k_head_dim(),
                     " of K and ", set->v_head_dim(), " of V; the rows have ", geometry.kv_heads,
                     " KV heads, head dims ", geometry.k_head_dim, " and ", geometry.v_head_dim));
  }
  LayerSource source{*std::move(set), layer, absl::BytesToHexString(Sha256Of(file->bytes()))};
  // A report that cannot be read is no reason not to use the matrices.
  if (const auto text = TransformFileReport(file->bytes()); text.ok()) {
    if (const auto report = ParseTransformReport(*text); report.ok()) {
      source.fitted_k_bits = report->k_bits;
      source.fitted_v_bits = report->v_bits;
    }
  }
  return source;
}

PreparedHeads::PreparedHeads(const RowKernels& kernels, const std::vector<SideTransform>& heads) {
  for (const SideTransform& head : heads) heads_.push_back(kernels.Prepare(head));
}

const RowKernels& KernelsOf(const std::string& backend) {
  return backend == "reference" ? ReferenceRowKernels() : CpuRowKernels();
}

}  // namespace oscarkv::cli
