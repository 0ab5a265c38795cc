// oscarkv ls: the namespaces of a server, or the pages of one.
#include <algorithm>
#include <iostream>
#include <memory>
#include <tuple>
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

using client::ListedKey;

struct Arguments {
  StoreOptions store;
  std::string space;
  uint32_t max = 1000;
};

absl::Status ListNamespaces(client::Client& client, const StoreOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(const client::ServerStats stats, GetStats(client, options));
  if (!options.json) {
    std::cout << NamespacesTable(stats);
    return absl::OkStatus();
  }
  Json namespaces = Json::array();
  for (const auto& space : stats.namespaces) namespaces.push_back(NamespaceReport(space));
  PrintJson({{"namespaces", namespaces}});
  return absl::OkStatus();
}

Json PageReport(const ListedKey& page) {
  return {{"key", Hex(page.key)},
          {"parent", page.parent.empty() ? Json(nullptr) : Json(Hex(page.parent))},
          {"first_position", page.first_position},
          {"encoding", EncodingName(page.encoding)},
          {"tier", page.tier},
          {"bytes", page.bytes}};
}

void PrintPages(const std::vector<ListedKey>& pages, bool more) {
  Table table({"KEY", "PARENT", ">POSITION", "ENCODING", "TIER", ">BYTES"});
  for (const ListedKey& page : pages) {
    table.Add({Hex(page.key), page.parent.empty() ? "-" : Hex(page.parent),
               absl::StrCat(page.first_position), EncodingName(page.encoding), page.tier,
               absl::StrCat(page.bytes)});
  }
  std::cout << (pages.empty() ? "no pages\n" : table.Text());
  if (more) std::cerr << "oscarkv: there are more than " << pages.size() << " pages; see --max\n";
}

absl::Status ListPages(client::Client& client, const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const auto space,
                           InspectNamespace(client, arguments.store, arguments.space));
  auto pages = space->List(arguments.max + 1);  // one more says whether there are more
  if (!pages.ok()) return FromServer(pages.status(), arguments.store);
  const bool more = pages->size() > arguments.max;
  if (more) pages->pop_back();
  std::sort(pages->begin(), pages->end(), [](const ListedKey& a, const ListedKey& b) {
    return std::tie(a.first_position, a.key) < std::tie(b.first_position, b.key);
  });
  if (!arguments.store.json) {
    PrintPages(*pages, more);
    return absl::OkStatus();
  }
  Json list = Json::array();
  for (const ListedKey& page : *pages) list.push_back(PageReport(page));
  PrintJson({{"namespace", Hex(Fingerprint(space->spec()))},
             {"model", space->spec().model},
             {"pages", list},
             {"more", more}});
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  return arguments.space.empty() ? ListNamespaces(*client, arguments.store)
                                 : ListPages(*client, arguments);
}

}  // namespace

void AddLsCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("ls", "List namespaces, or the pages of one");
  const auto a = std::make_shared<Arguments>();
  command->add_option("namespace", a->space, kNamespaceHelp);
  command->add_option("--max", a->max, "List at most so many pages")
      ->check(CLI::Range(1u, 1000000000u))
      ->capture_default_str();
  AddStoreOptions(command, &a->store);
  command->footer(
      "Example:\n  oscarkv ls                     # namespaces\n"
      "  oscarkv ls 3fa9 --max 20       # pages of the one whose fingerprint starts so");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
