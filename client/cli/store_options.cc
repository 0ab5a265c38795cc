#include "client/cli/store_options.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"
#include "proto/wire/page_key.h"

namespace oscarkv::cli {

using client::Client;
using client::ListedKey;
using client::NamespaceUse;
using client::ServerStats;

void AddStoreOptions(CLI::App* command, StoreOptions* options) {
  command->add_option("--server", options->server, "host:port or unix:/path of oscarkvd")
      ->capture_default_str();
  command->add_option("--timeout", options->timeout_s, "Seconds that one call may take")
      ->check(CLI::Range(0.001, 86400.0))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print JSON");
}

client::ClientOptions ToClientOptions(const StoreOptions& options) {
  const absl::Duration timeout = absl::Seconds(options.timeout_s);
  client::ClientOptions client;
  client.endpoint = options.server;
  client.name = "oscarkv";
  client.control_timeout = timeout;
  client.lookup_timeout = timeout;
  client.fetch_timeout = timeout;
  client.push_timeout = timeout;
  client.breaker.failures = std::numeric_limits<int>::max();  // who asks by hand shall be answered
  client.transform_timeout = std::max(timeout, client.transform_timeout);
  return client;
}

absl::StatusOr<std::unique_ptr<Client>> MakeClient(const StoreOptions& options) {
  return Client::Create(ToClientOptions(options));
}

absl::Status FromServer(const absl::Status& status, const StoreOptions& options) {
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  return absl::Status(status.code(),
                      absl::StrCat("no answer from ", options.server, ": ", status.message(),
                                   "; is oscarkvd running there? --server names another"));
}

absl::StatusOr<ServerStats> GetStats(Client& client, const StoreOptions& options) {
  absl::StatusOr<ServerStats> stats = client.Stats();
  if (!stats.ok()) return FromServer(stats.status(), options);
  std::sort(stats->namespaces.begin(), stats->namespaces.end(),
            [](const NamespaceUse& a, const NamespaceUse& b) {
              return std::tie(a.spec.model, a.fingerprint) < std::tie(b.spec.model, b.fingerprint);
            });
  return stats;
}

absl::StatusOr<NamespaceUse> FindNamespace(const ServerStats& stats, const std::string& name) {
  std::vector<const NamespaceUse*> found;
  std::string there, matching;
  for (const NamespaceUse& space : stats.namespaces) {
    const std::string line =
        absl::StrCat("\n  ", ShortName(space.fingerprint), "  ", Printable(space.spec.model));
    there += line;
    // An empty name means nothing: it is a script's variable that was never set.
    const bool starts_so =
        !name.empty() && absl::StartsWith(Hex(space.fingerprint), absl::AsciiStrToLower(name));
    if (space.spec.model != name && !starts_so) continue;
    matching += line;
    found.push_back(&space);
  }
  if (found.size() == 1) return *found[0];
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("no namespace is called '", Printable(name),
                                            "'; the server has ", there.empty() ? "none" : there));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", Printable(name), "' must name one namespace, found ", found.size(), ":", matching));
}

absl::StatusOr<std::unique_ptr<client::Namespace>> InspectNamespace(Client& client,
                                                                    const StoreOptions& options,
                                                                    const std::string& name) {
  OSCARKV_ASSIGN_OR_RETURN(const ServerStats stats, GetStats(client, options));
  OSCARKV_ASSIGN_OR_RETURN(const NamespaceUse use, FindNamespace(stats, name));
  auto space = client.InspectNamespace(use.spec);
  if (!space.ok()) return FromServer(space.status(), options);
  return space;
}

absl::StatusOr<std::string> FindKey(std::span<const ListedKey> listed, const std::string& digits) {
  const std::string wanted = absl::AsciiStrToLower(digits);
  std::set<std::string> found;
  for (const ListedKey& page : listed) {
    const std::string key = Hex(page.key);
    if (key == wanted) return page.key;
    if (!wanted.empty() && absl::StartsWith(key, wanted)) found.insert(page.key);
  }
  if (found.size() == 1) return *found.begin();
  if (found.size() > 1) {
    return absl::InvalidArgumentError(absl::StrCat("key ", digits, " must name one page, ",
                                                   found.size(), " pages' keys start so"));
  }
  const absl::StatusOr<std::string> whole = FromHex("key", digits);
  if (whole.ok() && ValidateKey(*whole).ok()) return *whole;
  if (!whole.ok() && digits.size() % 2 == 0) return whole.status();
  return absl::NotFoundError(absl::StrCat("no page's key starts with '", Printable(digits), "'"));
}

std::string ShortName(std::string_view fingerprint) { return Hex(fingerprint.substr(0, 6)); }

std::string EncodingName(Encoding encoding) {
  return encoding == Encoding::kWide ? "wide" : "packed";
}

}  // namespace oscarkv::cli
