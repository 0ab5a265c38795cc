// What `put` and `get` agree on: how pages are named, and which of them are stored.
#ifndef OSCARKV_CLIENT_CLI_KV_PAGES_H_
#define OSCARKV_CLIENT_CLI_KV_PAGES_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "client/cli/kv_source.h"
#include "client/cpp/client.h"

namespace oscarkv::cli {

// Hash schemes of namespaces: pages named by the tokens up to their end, as engines do, or by the K
// and V up to their end, for files whose tokens nobody knows.
inline constexpr char kTokenScheme[] = "sha256-chain-v1";
inline constexpr char kContentScheme[] = "sha256-content-v1";

// Token ids from a JSON file that holds an array of them.
absl::StatusOr<std::vector<uint32_t>> ReadTokens(const std::string& path);

// h_i = SHA-256(h_{i-1} || for each layer the page's rows of K, then of V), the first page without
// a prior. Whole pages only.
std::vector<std::string> ContentKeys(const KvSource& source, uint32_t page_tokens);

// How many pages of a namespace go to or come from the server in one step of progress.
size_t PagesAStep(const client::Namespace& space);

// The leading keys that are stored, however many there are: a Hit has the first pages only.
struct StoredPrefix {
  std::vector<Encoding> encodings;
  uint64_t bytes = 0;
  std::vector<client::Lease> leases;  // of the pages, as far as the server granted them
};
absl::StatusOr<StoredPrefix> LookUpAll(const client::Namespace& space,
                                       std::span<const std::string> keys, bool lease);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_KV_PAGES_H_
