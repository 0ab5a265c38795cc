#include "client/cpp/page_calls.h"

namespace oscarkv::client {

absl::StatusOr<Encoding> CheckPage(const Namespace::Impl& space, const PagesWanted& wanted,
                                   size_t page, v1::Encoding encoding, uint64_t bytes,
                                   int checksums) {
  const absl::StatusOr<Encoding> known = FromProto(encoding);
  if (!known.ok() || !space.MayHold(*known)) {
    return absl::DataLossError(absl::StrCat("page ", page, " comes in encoding ",
                                            static_cast<int>(encoding),
                                            ", which this namespace has not"));
  }
  const uint64_t expected = space.codec().layout(*known).range_bytes(wanted.layers, wanted.heads);
  const int blocks = static_cast<int>(wanted.layers.count * wanted.heads.count);
  if (bytes == expected && checksums == blocks) return known;
  return absl::DataLossError(absl::StrCat("page ", page, ": expected ", expected, " bytes and ",
                                          blocks, " checksums, the server sends ", bytes, " and ",
                                          checksums));
}

}  // namespace oscarkv::client
