// What the commands that talk to a server have in common: its address, deadlines, how to name a
// namespace and a page.
#ifndef OSCARKV_CLIENT_CLI_STORE_OPTIONS_H_
#define OSCARKV_CLIENT_CLI_STORE_OPTIONS_H_

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "client/cpp/client.h"

namespace CLI {
class App;
}

namespace oscarkv::cli {

struct StoreOptions {
  std::string server = "127.0.0.1:7411";
  double timeout_s = 10.0;  // of each call
  bool json = false;
};

// Declares --server, --timeout and --json.
void AddStoreOptions(CLI::App* command, StoreOptions* options);

client::ClientOptions ToClientOptions(const StoreOptions& options);
absl::StatusOr<std::unique_ptr<client::Client>> MakeClient(const StoreOptions& options);

// The same status; when the server did not answer, its message says which server and what to do.
absl::Status FromServer(const absl::Status& status, const StoreOptions& options);

absl::StatusOr<client::ServerStats> GetStats(client::Client& client, const StoreOptions& options);

// How NAMESPACE is explained in --help.
inline constexpr char kNamespaceHelp[] =
    "The first digits of its fingerprint, or its model's name if only one namespace has it";

// The namespace that `name` means. kNotFound or kInvalidArgument listing those that there are, when
// none or several do.
absl::StatusOr<client::NamespaceUse> FindNamespace(const client::ServerStats& stats,
                                                   const std::string& name);

// Asks the server for the namespace that `name` means and opens it for listing and removing.
absl::StatusOr<std::unique_ptr<client::Namespace>> InspectNamespace(client::Client& client,
                                                                    const StoreOptions& options,
                                                                    const std::string& name);

// The whole key that `digits` are the first of: of `listed`, or else `digits` themselves when they
// are a whole key. kNotFound or kInvalidArgument when none or several match.
absl::StatusOr<std::string> FindKey(std::span<const client::ListedKey> listed,
                                    const std::string& digits);

// The first digits of a fingerprint: enough to name it.
std::string ShortName(std::string_view fingerprint);
std::string EncodingName(Encoding encoding);  // "wide" or "packed"

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_STORE_OPTIONS_H_
