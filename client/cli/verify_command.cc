// oscarkv verify: has a server check the checksums of everything that it holds.
#include <iostream>
#include <memory>

#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/progress.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

struct Arguments {
  StoreOptions store;
  uint64_t rate = 0;
};

absl::Status Run(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  // Asked first: verifying itself has no deadline.
  OSCARKV_RETURN_IF_ERROR(GetStats(*client, arguments.store).status());
  uint64_t checked = 0, all = 0, corrupt = 0;
  ProgressBar bar("verifying", "pages");
  const absl::Status status = client->Verify(
      arguments.rate, [&](uint64_t now_checked, uint64_t now_all, uint64_t now_corrupt) {
        checked = now_checked;
        all = now_all;
        corrupt = now_corrupt;
        bar.Show(checked, all);
      });
  bar.Finish();
  if (!status.ok()) return FromServer(status, arguments.store);
  if (arguments.store.json) {
    PrintJson({{"pages_checked", checked}, {"pages_total", all}, {"pages_corrupt", corrupt}});
  } else {
    std::cout << CountText(checked) << " pages checked, " << CountText(corrupt) << " corrupt\n";
  }
  if (corrupt == 0) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat(corrupt,
                   " corrupt pages were found and dropped, with what extended them; workers store "
                   "them again when they need them. Is the machine's memory sound?"));
}

}  // namespace

void AddVerifyCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "verify", "Have the server check every page it holds; fails when one is corrupt");
  const auto a = std::make_shared<Arguments>();
  command->add_option("--rate", a->rate, "Bytes a second, as 200MB or 1GiB; 0: no limit")
      ->transform(CLI::AsSizeValue(true))
      ->capture_default_str();
  AddStoreOptions(command, &a->store);
  command->footer("Example:\n  oscarkv verify --rate 500MB");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
