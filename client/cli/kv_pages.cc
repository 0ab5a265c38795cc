#include "client/cli/kv_pages.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

#include "client/cli/text.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

constexpr uint64_t kStepBytes = 16 << 20;

}  // namespace

absl::StatusOr<std::vector<uint32_t>> ReadTokens(const std::string& path) {
  OSCARKV_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  const Json json = Json::parse(AsText(file->bytes()), nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " must hold a JSON array of token ids, as [1, 15043, 29892]"));
  }
  std::vector<uint32_t> tokens;
  for (const Json& entry : json) {
    if (!entry.is_number_unsigned() ||
        entry.get<uint64_t>() > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": entry ", tokens.size(), " must be a whole number of 0..4294967295, found ",
          entry.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60)));
    }
    tokens.push_back(entry.get<uint32_t>());
  }
  return tokens;
}

std::vector<std::string> ContentKeys(const KvSource& source, uint32_t page_tokens) {
  std::vector<std::string> keys;
  for (uint64_t first = 0; first + page_tokens <= source.tokens(); first += page_tokens) {
    Sha256 hash;
    if (!keys.empty()) hash.Update(AsBytes(keys.back()));
    for (uint32_t layer = 0; layer < source.geometry().layers; ++layer) {
      hash.Update(source.KRows(layer, first, page_tokens));
      hash.Update(source.VRows(layer, first, page_tokens));
    }
    keys.push_back(hash.Finish());
  }
  return keys;
}

size_t PagesAStep(const client::Namespace& space) {
  const uint64_t page_bytes = space.codec().layout(Encoding::kWide).page_bytes();
  return std::clamp<size_t>(kStepBytes / page_bytes, 1, 256);
}

absl::StatusOr<StoredPrefix> LookUpAll(const client::Namespace& space,
                                       std::span<const std::string> keys, bool lease) {
  StoredPrefix prefix;
  while (prefix.encodings.size() < keys.size()) {
    OSCARKV_ASSIGN_OR_RETURN(client::Hit hit,
                             space.Lookup(keys.subspan(prefix.encodings.size()), {.lease = lease}));
    OSCARKV_RETURN_IF_ERROR(hit.store);
    if (hit.pages == 0) break;
    prefix.encodings.insert(prefix.encodings.end(), hit.encodings.begin(), hit.encodings.end());
    prefix.bytes += hit.bytes;
    if (hit.lease) prefix.leases.push_back(std::move(hit.lease));
  }
  return prefix;
}

}  // namespace oscarkv::cli
