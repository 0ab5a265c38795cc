// oscarkv rm: removes pages of a namespace.
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/stats_report.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

using client::Client;
using client::ListedKey;
using client::Namespace;
using client::NamespaceUse;

struct Arguments {
  StoreOptions store;
  std::string space;
  std::vector<std::string> keys;
  bool all = false, yes = false;
};

// Whether the person at the terminal agrees.
absl::Status Ask(const NamespaceUse& use) {
  if (isatty(STDIN_FILENO) == 0) {
    return absl::InvalidArgumentError(
        "--all asks before it removes: nobody is there to answer, "
        "so say --yes as well");
  }
  std::cerr << "Remove all " << CountText(use.wide_pages + use.packed_pages) << " pages ("
            << BytesText(static_cast<double>(use.stored_bytes)) << ") of namespace "
            << ShortName(use.fingerprint) << ", model " << Printable(use.spec.model) << "? [y/N] "
            << std::flush;
  std::string answer;
  std::getline(std::cin, answer);
  if (answer == "y" || answer == "Y" || answer == "yes") return absl::OkStatus();
  return absl::CancelledError("nothing was removed");
}

absl::Status RemoveAll(Client& client, const Arguments& arguments, const NamespaceUse& use,
                       const Namespace& space) {
  if (!arguments.yes) OSCARKV_RETURN_IF_ERROR(Ask(use));
  const absl::StatusOr<uint64_t> removed = space.Clear();
  if (!removed.ok()) return FromServer(removed.status(), arguments.store);
  OSCARKV_ASSIGN_OR_RETURN(const auto stats, GetStats(client, arguments.store));
  uint64_t left = 0;
  for (const NamespaceUse& now : stats.namespaces) {
    if (now.fingerprint == use.fingerprint) left = now.wide_pages + now.packed_pages;
  }
  if (arguments.store.json) {
    PrintJson({{"namespace", Hex(use.fingerprint)}, {"removed", *removed}, {"left", left}});
  } else {
    std::cout << "removed " << CountText(*removed) << " pages\n";
  }
  if (left == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(left, " pages are left: leased, in transfer, or stored just now"));
}

// Places of `keys`, those whose page lies deepest first: a page goes with everything that extends
// it, and each key shall be told its own outcome.
std::vector<size_t> DeepestFirst(const std::vector<std::string>& keys,
                                 const std::vector<ListedKey>& listed) {
  std::map<std::string, uint64_t> positions;
  for (const ListedKey& page : listed) positions[page.key] = page.first_position;
  std::vector<size_t> order(keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return positions[keys[a]] > positions[keys[b]]; });
  return order;
}

absl::Status RemoveKeys(Client& client, const Arguments& arguments, const Namespace& space) {
  const auto listed = space.List(std::numeric_limits<uint32_t>::max());
  if (!listed.ok()) return FromServer(listed.status(), arguments.store);
  std::vector<std::string> keys;
  for (const std::string& digits : arguments.keys) {
    OSCARKV_ASSIGN_OR_RETURN(std::string key, FindKey(*listed, digits));
    keys.push_back(std::move(key));
  }
  const std::vector<size_t> order = DeepestFirst(keys, *listed);
  std::vector<std::string> ordered;
  ordered.reserve(keys.size());
  for (const size_t i : order) ordered.push_back(keys[i]);
  const uint64_t failures = client.counters().failures;
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<ItemStatus> statuses, space.Delete(ordered));
  if (client.counters().failures != failures) {
    return FromServer(absl::UnavailableError("it went away while pages were being removed"),
                      arguments.store);
  }
  std::vector<ItemStatus> outcomes(keys.size());
  for (size_t i = 0; i < order.size(); ++i) outcomes[order[i]] = statuses[i];

  size_t failed = 0;
  Json results = Json::array();
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::string outcome(ItemStatusName(outcomes[i]));
    failed += outcomes[i] == ItemStatus::kOk ? size_t{0} : size_t{1};
    results.push_back({{"key", Hex(keys[i])}, {"outcome", outcome}});
    if (!arguments.store.json) std::cout << Hex(keys[i]) << "  " << outcome << "\n";
  }
  if (arguments.store.json)
    PrintJson({{"namespace", Hex(Fingerprint(space.spec()))}, {"results", results}});
  if (failed == 0) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(failed, " of ", keys.size(), " pages were not there"));
}

absl::Status Run(const Arguments& arguments) {
  if (arguments.all != arguments.keys.empty()) {
    return absl::InvalidArgumentError(arguments.all
                                          ? "give keys or --all, found both"
                                          : "give the keys to remove, or --all; found neither");
  }
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const auto stats, GetStats(*client, arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const NamespaceUse use, FindNamespace(stats, arguments.space));
  const auto space = client->InspectNamespace(use.spec);
  if (!space.ok()) return FromServer(space.status(), arguments.store);
  return arguments.all ? RemoveAll(*client, arguments, use, **space)
                       : RemoveKeys(*client, arguments, **space);
}

}  // namespace

void AddRmCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("rm", "Remove pages, each with everything that extends it");
  const auto a = std::make_shared<Arguments>();
  command->add_option("namespace", a->space, kNamespaceHelp)->required();
  command->add_option("key", a->keys, "Keys in hexadecimal, or their first digits");
  command->add_flag("--all", a->all, "Every page of the namespace; asks first");
  command->add_flag("-y,--yes", a->yes, "Do not ask");
  AddStoreOptions(command, &a->store);
  command->footer("Example:\n  oscarkv rm 3fa9 77c0d2e1\n  oscarkv rm my-model --all --yes");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
