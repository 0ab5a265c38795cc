// oscarkv top: watches a server.
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/live_screen.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "client/cli/top_frame.h"
#include "kernels/base/status_macros.h"

namespace oscarkv::cli {
namespace {

using client::ServerStats;

struct Arguments {
  StoreOptions store;
  double interval_s = 1.0;
  bool once = false;
};

absl::Status PrintOnce(const Arguments& arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const ServerStats stats, GetStats(*client, arguments.store));
  const Rates rates = RatesBetween(std::nullopt, stats);
  if (arguments.store.json) {
    PrintJson(FrameReport(stats, rates, arguments.store.server));
    return absl::OkStatus();
  }
  for (const std::string& line : Frame(stats, rates, arguments.store.server))
    std::cout << line << "\n";
  return absl::OkStatus();
}

absl::Status Watch(const Arguments& arguments) {
  absl::StatusOr<std::unique_ptr<LiveScreen>> screen = LiveScreen::Open();
  if (!screen.ok())
    return Annotate(screen.status(), "top draws a live view; --once prints one frame");
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  // A server that is not there at the start is an error; one that goes away later is waited for.
  OSCARKV_ASSIGN_OR_RETURN(ServerStats now, GetStats(*client, arguments.store));
  std::optional<ServerStats> before;
  std::string trouble;
  std::vector<std::string> lines;
  for (auto event = LiveScreen::Event::kTimeout; event != LiveScreen::Event::kQuit;) {
    if (event == LiveScreen::Event::kTimeout && trouble.empty())
      lines = Frame(now, RatesBetween(before, now), arguments.store.server);
    std::vector<std::string> shown = lines;
    shown.insert(shown.begin() + 2, trouble.empty() ? "q quits" : trouble);
    (*screen)->Draw(shown);
    event = (*screen)->Wait(absl::Now() + absl::Seconds(arguments.interval_s));
    if (event != LiveScreen::Event::kTimeout) continue;
    absl::StatusOr<ServerStats> next = GetStats(*client, arguments.store);
    trouble = next.ok() ? "" : absl::StrCat("waiting: ", next.status().message());
    if (!next.ok()) continue;
    before = std::exchange(now, *std::move(next));
  }
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments) {
  if (arguments.once) return PrintOnce(arguments);
  if (arguments.store.json)
    return absl::InvalidArgumentError("--json goes with --once: a live view is for eyes");
  return Watch(arguments);
}

}  // namespace

void AddTopCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("top", "Watch a server: hits, bytes in and out, tiers");
  const auto a = std::make_shared<Arguments>();
  a->store.timeout_s = 2.0;  // a server that hangs shall not hold the keyboard for long
  command->add_option("--interval", a->interval_s, "Seconds between looks")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  command->add_flag("--once", a->once, "Print one frame, with the rates since the server's start");
  AddStoreOptions(command, &a->store);
  command->footer("q or Ctrl-C ends it.\nExample:\n  oscarkv top --interval 5");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
