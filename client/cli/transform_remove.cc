// oscarkv transform rm: has a server forget a transform set.
#include "client/cli/transform_remove.h"

#include <iostream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

constexpr size_t kHashBytes = 32;

struct Arguments {
  StoreOptions store;
  std::string hash;
};

absl::Status Run(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const std::string hash, FromHex("HASH", arguments.hash));
  if (hash.size() != kHashBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "HASH must have ", 2 * kHashBytes, " hexadecimal digits, found ", arguments.hash.size()));
  }
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  const absl::StatusOr<bool> existed = client->DeleteTransformSet(hash);
  if (!existed.ok()) return FromServer(existed.status(), arguments.store);
  if (arguments.store.json) {
    PrintJson({{"hash", arguments.hash}, {"removed", *existed}});
  } else if (*existed) {
    std::cout << "removed transform set " << arguments.hash << "\n";
  }
  if (*existed) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("the server has no transform set ", arguments.hash));
}

}  // namespace

void AddTransformRemove(CLI::App& transform) {
  CLI::App* command = transform.add_subcommand(
      "rm",
      "Have a server forget a transform set; refused while it has namespaces that need it, which "
      "are named");
  const auto a = std::make_shared<Arguments>();
  command->add_option("hash", a->hash, "Its hash, whole: `oscarkv transform show` prints it")
      ->required();
  AddStoreOptions(command, &a->store);
  command->footer(
      "Example:\n"
      "  oscarkv transform rm $(oscarkv transform show m.transform.safetensors --json | jq -r "
      ".hash)");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
