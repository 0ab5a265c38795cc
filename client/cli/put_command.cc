// oscarkv put: stores K and V from files.
#include <algorithm>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/code_options.h"
#include "client/cli/commands.h"
#include "client/cli/kv_pages.h"
#include "client/cli/kv_source.h"
#include "client/cli/progress.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/sha256.h"
#include "kernels/base/status_macros.h"
#include "kernels/codec/transform_file.h"
#include "proto/wire/page_key.h"
#include "proto/wire/store_wide.h"

namespace oscarkv::cli {
namespace {

using client::Namespace;
using client::PersistReport;
using client::PushReport;

struct Arguments {
  StoreOptions store;
  std::vector<std::string> files;
  NamespaceSpec spec;
  std::string transform, tokens;
  CodeOptions codes;
  uint32_t page_tokens = 64;
  std::optional<uint64_t> sequence;
  bool durable = false;
  std::string store_wide;
  double page_ttl_s = 0.0;
};

// The bytes of the transform file that --transform means; empty without one.
absl::StatusOr<std::string> TransformFileOf(const std::string& name, const Geometry& geometry) {
  if (name.empty()) return std::string();
  if (name == "identity" || name == "hadamard") {
    OSCARKV_ASSIGN_OR_RETURN(const TransformSet set,
                             name == "identity" ? MakeIdentityTransformSet(geometry, 0.0f, 0.0f)
                                                : MakeHadamardTransformSet(geometry, 0.0f, 0.0f));
    return SerializeTransformFile(set, "{}");
  }
  OSCARKV_ASSIGN_OR_RETURN(const auto file, MappedFile::Open(name));
  OSCARKV_RETURN_IF_ERROR(Annotate(ParseTransformFile(file->bytes()).status(), name));
  return std::string(AsText(file->bytes()));
}

absl::StatusOr<std::vector<std::string>> KeysOf(const KvSource& source,
                                                const Arguments& arguments) {
  if (arguments.tokens.empty()) return ContentKeys(source, arguments.page_tokens);
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, ReadTokens(arguments.tokens));
  if (tokens.size() == source.tokens()) return ChainKeys(tokens, arguments.page_tokens);
  return absl::InvalidArgumentError(absl::StrCat(arguments.tokens, " has ", tokens.size(),
                                                 " tokens, k and v have ", source.tokens()));
}

// What became of the pages, in steps put together.
struct Outcome {
  std::vector<ItemStatus> statuses;
  std::vector<std::string> messages;
  uint64_t bytes_wire = 0, bytes_model = 0;
  uint64_t nonfinite_rows = 0;

  bool stored(size_t page) const {
    return statuses[page] == ItemStatus::kOk || statuses[page] == ItemStatus::kExists;
  }
  size_t stored() const {
    size_t count = 0;
    while (count < statuses.size() && stored(count)) ++count;
    return count;
  }
};

absl::StatusOr<Outcome> PushAll(const Namespace& space, const KvSource& source,
                                std::span<const std::string> keys, const StoreOptions& options) {
  const uint32_t page_tokens = space.spec().geometry.page_tokens;
  std::vector<int64_t> slots(keys.size() * page_tokens);
  std::iota(slots.begin(), slots.end(), int64_t{0});
  Outcome outcome;
  outcome.statuses.assign(keys.size(), ItemStatus::kSkipped);
  outcome.messages.resize(keys.size());
  ProgressBar bar("storing", "pages");
  for (size_t first = 0; first < keys.size() && outcome.stored() == first;) {
    const size_t count = std::min(PagesAStep(space), keys.size() - first);
    OSCARKV_ASSIGN_OR_RETURN(
        const PushReport report,
        space.Push(source.view(),
                   {.keys = keys.subspan(first, count),
                    .parent = first == 0 ? std::string() : keys[first - 1],
                    .first_position = first * page_tokens,
                    .end_position = source.tokens(),
                    .slots = std::span(slots).subspan(first * page_tokens, count * page_tokens)}));
    OSCARKV_RETURN_IF_ERROR(FromServer(report.store, options));
    std::copy(report.statuses.begin(), report.statuses.end(),
              outcome.statuses.begin() + static_cast<std::ptrdiff_t>(first));
    std::copy(report.messages.begin(), report.messages.end(),
              outcome.messages.begin() + static_cast<std::ptrdiff_t>(first));
    outcome.bytes_wire += report.bytes_wire;
    outcome.bytes_model += report.bytes_model;
    outcome.nonfinite_rows += report.encode.nonfinite_rows;
    first += count;
    bar.Show(first, keys.size());
  }
  return outcome;
}

// Waits until the pages are on the server's disk. An error when one of them is not.
absl::Status PersistAll(const Namespace& space, std::span<const std::string> keys,
                        const StoreOptions& options) {
  OSCARKV_ASSIGN_OR_RETURN(const PersistReport report,
                           space.Persist(keys, absl::Seconds(options.timeout_s)));
  OSCARKV_RETURN_IF_ERROR(FromServer(report.store, options));
  for (size_t i = 0; i < keys.size(); ++i) {
    if (report.statuses[i] == ItemStatus::kOk) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("page ", i, " of ", keys.size(),
                     " is not durable: ", std::string(ItemStatusName(report.statuses[i])),
                     report.messages[i].empty() ? "" : ", ", report.messages[i]));
  }
  return absl::OkStatus();
}

client::NamespaceSettings SettingsOf(const Arguments& arguments) {
  return {.store_wide = ParseStoreWide(arguments.store_wide),  // checked, or empty
          .page_ttl = absl::Seconds(arguments.page_ttl_s)};
}

Json PutReport(const Namespace& space, std::span<const std::string> keys, const Outcome& outcome,
               const StoredPrefix& stored, uint64_t tokens) {
  Json pages = Json::array();
  const uint32_t page_tokens = space.spec().geometry.page_tokens;
  for (size_t i = 0; i < keys.size(); ++i) {
    const bool known = i < stored.encodings.size();
    pages.push_back({{"key", Hex(keys[i])},
                     {"first_position", i * page_tokens},
                     {"encoding", known ? Json(EncodingName(stored.encodings[i])) : Json(nullptr)},
                     {"bytes", known ? Json(space.codec().layout(stored.encodings[i]).page_bytes())
                                     : Json(nullptr)},
                     {"outcome", std::string(ItemStatusName(outcome.statuses[i]))},
                     {"message", outcome.messages[i]}});
  }
  return {{"namespace", Hex(Fingerprint(space.spec()))},
          {"model", space.spec().model},
          {"last_key", Hex(keys.back())},
          {"pages", pages},
          {"tokens", keys.size() * page_tokens},
          {"tokens_left_out", tokens - keys.size() * page_tokens},
          {"bytes_stored", stored.bytes},
          {"bytes_wire", outcome.bytes_wire},
          {"bytes_model", outcome.bytes_model}};
}

void PrintReport(const Json& report, const Arguments& arguments) {
  Table table({"KEY", ">POSITION", "ENCODING", ">BYTES", "OUTCOME"});
  const auto text = [](const Json& value) {
    return value.is_null() ? "-" : value.is_string() ? value.get<std::string>() : value.dump();
  };
  for (const Json& page : report["pages"]) {
    const std::string message = page["message"];
    table.Add({text(page["key"]), text(page["first_position"]), text(page["encoding"]),
               text(page["bytes"]),
               absl::StrCat(text(page["outcome"]), message.empty() ? "" : ": ", message)});
  }
  const auto stored = report["bytes_stored"].get<double>();
  const std::string name = report["namespace"].get<std::string>().substr(0, 12);
  std::cout << table.Text() << "\n"
            << report["tokens"] << " tokens in " << report["pages"].size() << " pages, "
            << report["tokens_left_out"] << " after the last whole page left out; "
            << BytesText(stored) << " stored, " << BytesText(report["bytes_model"].get<double>())
            << " in the model's dtype\n"
            << "get them back: oscarkv get " << name << " "
            << (arguments.tokens.empty() ? report["last_key"].get<std::string>().substr(0, 12)
                                         : absl::StrCat("--tokens ", arguments.tokens))
            << " -o OUT.safetensors\n";
}

absl::Status Run(Arguments arguments) {
  OSCARKV_ASSIGN_OR_RETURN(const KvSource source,
                           KvSource::Open(arguments.files, arguments.sequence));
  NamespaceSpec& spec = arguments.spec;
  spec.geometry = source.geometry();
  spec.geometry.page_tokens = arguments.page_tokens;
  spec.hash_scheme = arguments.tokens.empty() ? kContentScheme : kTokenScheme;
  OSCARKV_ASSIGN_OR_RETURN(const std::string transform,
                           TransformFileOf(arguments.transform, spec.geometry));
  if (!transform.empty()) spec.codec.transform_hash = Sha256Of(AsBytes(transform));
  spec.codec.bits[0] = arguments.codes.bits();
  spec.codec.params = arguments.codes.params_dtype();
  if (source.tokens() < arguments.page_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("only whole pages are stored: there are ",
                                                   source.tokens(), " tokens, a page has ",
                                                   arguments.page_tokens, " (--page-tokens)"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<std::string> keys, KeysOf(source, arguments));
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const auto space, client->OpenNamespace(spec, transform, /*create=*/true,
                                                                   SettingsOf(arguments)));
  OSCARKV_ASSIGN_OR_RETURN(const Outcome outcome, PushAll(*space, source, keys, arguments.store));
  const auto stored = LookUpAll(*space, keys, /*lease=*/false);
  if (!stored.ok()) return FromServer(stored.status(), arguments.store);

  const Json report = PutReport(*space, keys, outcome, *stored, source.tokens());
  arguments.store.json ? PrintJson(report) : PrintReport(report, arguments);
  if (outcome.nonfinite_rows > 0) {
    std::cerr << "oscarkv: warning: " << outcome.nonfinite_rows
              << " rows hold NaN or infinity; they do not come back as numbers\n";
  }
  const size_t whole = outcome.stored();
  if (whole == keys.size()) {
    return arguments.durable ? PersistAll(*space, keys, arguments.store) : absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(keys.size() - whole, " of ", keys.size(), " pages were not stored, from page ",
                   whole, " on: ", std::string(ItemStatusName(outcome.statuses[whole])),
                   outcome.messages[whole].empty() ? "" : ", ", outcome.messages[whole]));
}

void AddSpecOptions(CLI::App* command, Arguments* a) {
  command->add_option("--model", a->spec.model, "Name of the model that made K and V")->required();
  command->add_option("--revision", a->spec.model_revision, "Revision of the model");
  command->add_option("--tenant", a->spec.tenant, "Whose pages these are")->capture_default_str();
  command->add_option("--adapter", a->spec.adapter, "LoRA or the like");
  command->add_option("--salt", a->spec.salt, "Keeps caches apart that must not share");
  command->add_option("--page-tokens", a->page_tokens, "Tokens in a page")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_option("--transform", a->transform,
                      "Transform file, identity or hadamard; without one every page is wide, in "
                      "the model's dtype");
  AddCodeOptions(command, &a->codes);
  AddGroupOption(command, &a->spec.codec.group);
  command->add_option("--sink-tokens", a->spec.codec.sink_tokens, "First tokens that stay wide")
      ->capture_default_str();
  command->add_option("--recent-tokens", a->spec.codec.recent_tokens, "Last tokens that stay wide")
      ->capture_default_str();
}

}  // namespace

void AddPutCommand(CLI::App& app) {
  CLI::App* command = app.add_subcommand("put", "Store the K and V of a sequence from files");
  const auto a = std::make_shared<Arguments>();
  command
      ->add_option("files", a->files,
                   "One file with k and v [layers, tokens, kv_heads, head_dim], or a dump: "
                   "layer_<number>*.safetensors with k and v [tokens, kv_heads, head_dim], or "
                   "their folder")
      ->required();
  command->add_option(
      "--tokens", a->tokens,
      "JSON array of the token ids: pages are named by them, as engines do. Without "
      "it they are named by their content");
  command->add_option("--sequence", a->sequence, "Which sequence of a dump that has several");
  command->add_flag("--durable", a->durable,
                    "Wait until the pages are on the server's disk, with all that reading them "
                    "needs; fail when they are not within --timeout");
  command
      ->add_option("--store-wide", a->store_wide,
                   "For how long the server keeps wide pages so, of the namespace from now on: "
                   "never, tail or until_pressure")
      ->check(CLI::IsMember({"never", "tail", "until_pressure"}));
  command
      ->add_option("--page-ttl", a->page_ttl_s,
                   "Seconds after which the server drops pages of the namespace that nobody used")
      ->check(CLI::Range(0.001, 1e9));
  AddSpecOptions(command, a.get());
  AddStoreOptions(command, &a->store);
  command->footer(
      "Example: store, and fetch again what was stored\n"
      "  oscarkv put kv.safetensors --model m --transform m.transform.safetensors --tokens "
      "ids.json\n"
      "  oscarkv get m --tokens ids.json -o back.safetensors");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
