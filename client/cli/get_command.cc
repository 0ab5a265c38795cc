// oscarkv get: fetches the pages of a prefix into a file.
#include <algorithm>
#include <iostream>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

#include "CLI/CLI.hpp"
#include "client/cli/commands.h"
#include "client/cli/kv_pages.h"
#include "client/cli/kv_rows.h"
#include "client/cli/progress.h"
#include "client/cli/store_commands.h"
#include "client/cli/store_options.h"
#include "client/cli/text.h"
#include "kernels/base/status_macros.h"
#include "kernels/safetensors/writer.h"
#include "proto/wire/page_key.h"

namespace oscarkv::cli {
namespace {

using client::Client;
using client::FetchReport;
using client::ListedKey;
using client::Namespace;
using client::NamespaceUse;

struct Arguments {
  StoreOptions store;
  std::string space, key, tokens, output;
  std::string form = "stored";
  bool partial = false;
};

// The keys of the pages from the first of the sequence to the one that `digits` name.
absl::StatusOr<std::vector<std::string>> ChainTo(const Namespace& space,
                                                 const Arguments& arguments) {
  const auto listed = space.List(std::numeric_limits<uint32_t>::max());
  if (!listed.ok()) return FromServer(listed.status(), arguments.store);
  OSCARKV_ASSIGN_OR_RETURN(std::string key, FindKey(*listed, arguments.key));
  std::map<std::string, std::string> parents;
  for (const ListedKey& page : *listed) parents[page.key] = page.parent;
  std::vector<std::string> keys;
  // No longer than there are pages, whatever the server says.
  while (!key.empty() && keys.size() <= listed->size()) {
    const auto parent = parents.find(key);
    if (parent == parents.end())
      return absl::NotFoundError(absl::StrCat("page ", Hex(key), " is not stored"));
    keys.push_back(key);
    key = parent->second;
  }
  std::reverse(keys.begin(), keys.end());
  return keys;
}

absl::StatusOr<std::vector<std::string>> KeysOf(const Namespace& space,
                                                const Arguments& arguments) {
  if (arguments.tokens.empty()) return ChainTo(space, arguments);
  const NamespaceSpec& spec = space.spec();
  if (spec.hash_scheme != kTokenScheme) {
    return absl::FailedPreconditionError(
        absl::StrCat("the namespace names its pages by ", Printable(spec.hash_scheme),
                     ", --tokens finds pages of ", kTokenScheme, ": give a KEY"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> tokens, ReadTokens(arguments.tokens));
  std::vector<std::string> keys = ChainKeys(tokens, spec.geometry.page_tokens);
  if (!keys.empty()) return keys;
  return absl::InvalidArgumentError(absl::StrCat(arguments.tokens, " has ", tokens.size(),
                                                 " tokens, a page of this namespace has ",
                                                 spec.geometry.page_tokens));
}

absl::Status WriteRows(const std::string& path, const NamespaceSpec& spec, uint64_t tokens,
                       const KvRows& rows, const std::string& last_key) {
  const Geometry& geometry = spec.geometry;
  const std::string dtype = geometry.dtype == DType::kBf16   ? "BF16"
                            : geometry.dtype == DType::kFp16 ? "F16"
                                                             : "F32";
  const TensorSpec tensors[] = {
      {"k", dtype, {geometry.layers, tokens, geometry.kv_heads, geometry.k_head_dim}},
      {"v", dtype, {geometry.layers, tokens, geometry.kv_heads, geometry.v_head_dim}}};
  OSCARKV_ASSIGN_OR_RETURN(
      SafetensorsWriter writer,
      SafetensorsWriter::Create(path, tensors,
                                {{"format", "oscarkv-kv-1"},
                                 {"model", spec.model},
                                 {"namespace", Hex(Fingerprint(spec))},
                                 {"last_key", Hex(last_key)},
                                 {"page_tokens", absl::StrCat(geometry.page_tokens)}}));
  OSCARKV_RETURN_IF_ERROR(writer.Append(0, rows.k()));
  OSCARKV_RETURN_IF_ERROR(writer.Append(1, rows.v()));
  return writer.Finish();
}

// Fetches every page; the bytes that came.
absl::StatusOr<uint64_t> FetchAll(const Namespace& space, std::span<const std::string> keys,
                                  const KvRows& rows, const Arguments& arguments) {
  const uint32_t page_tokens = space.spec().geometry.page_tokens;
  std::vector<int64_t> slots(keys.size() * page_tokens);
  std::iota(slots.begin(), slots.end(), int64_t{0});
  uint64_t bytes = 0;
  ProgressBar bar("fetching", "pages");
  for (size_t first = 0; first < keys.size();) {
    const size_t count = std::min(PagesAStep(space), keys.size() - first);
    OSCARKV_ASSIGN_OR_RETURN(
        const FetchReport report,
        space.Fetch(rows.view(),
                    {.keys = keys.subspan(first, count),
                     .slots = std::span(slots).subspan(first * page_tokens, count * page_tokens),
                     .layers = {},
                     .heads = {},
                     .decoded = arguments.form == "decoded"}));
    OSCARKV_RETURN_IF_ERROR(FromServer(report.store, arguments.store));
    bytes += report.bytes_wire;
    if (report.pages < count) {
      return absl::DataLossError(
          absl::StrCat("page ", first + report.pages, " (", Hex(keys[first + report.pages]),
                       ") was there a moment ago and now is ",
                       std::string(ItemStatusName(report.statuses[report.pages]))));
    }
    first += count;
    bar.Show(first, keys.size());
  }
  return bytes;
}

absl::StatusOr<std::unique_ptr<Namespace>> Open(Client& client, const NamespaceUse& use,
                                                const Arguments& arguments) {
  // The server decodes: no transform set is needed here.
  const std::string& hash = use.spec.codec.transform_hash;
  if (arguments.form == "decoded" || hash.empty()) return client.InspectNamespace(use.spec);
  OSCARKV_ASSIGN_OR_RETURN(std::string transform, client.GetTransformSet(hash));
  return client.OpenNamespace(use.spec, std::move(transform), /*create=*/false);
}

absl::Status Run(const Arguments& arguments) {
  if (arguments.key.empty() == arguments.tokens.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("give the KEY of the last page or --tokens, found ",
                     arguments.key.empty() ? "neither" : "both"));
  }
  OSCARKV_ASSIGN_OR_RETURN(const auto client, MakeClient(arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const auto stats, GetStats(*client, arguments.store));
  OSCARKV_ASSIGN_OR_RETURN(const NamespaceUse use, FindNamespace(stats, arguments.space));
  const auto space = Open(*client, use, arguments);
  if (!space.ok()) return FromServer(space.status(), arguments.store);
  OSCARKV_ASSIGN_OR_RETURN(std::vector<std::string> keys, KeysOf(**space, arguments));
  // Held until all of them are here.
  const auto stored = LookUpAll(**space, keys, /*lease=*/true);
  if (!stored.ok()) return FromServer(stored.status(), arguments.store);
  const size_t pages = stored->encodings.size();
  if (pages == 0 || (pages < keys.size() && !arguments.partial)) {
    return absl::NotFoundError(absl::StrCat(pages, " of ", keys.size(), " pages are stored",
                                            pages > 0 ? "; --partial fetches those" : ""));
  }
  keys.resize(pages);
  const Geometry& geometry = use.spec.geometry;
  const uint64_t tokens = uint64_t{pages} * geometry.page_tokens;
  std::vector<std::byte> memory(KvRows::Bytes(geometry, tokens));
  const KvRows rows(geometry, tokens, memory.data());
  OSCARKV_ASSIGN_OR_RETURN(const uint64_t bytes_wire, FetchAll(**space, keys, rows, arguments));
  OSCARKV_RETURN_IF_ERROR(WriteRows(arguments.output, use.spec, tokens, rows, keys.back()));

  const auto packed = static_cast<uint64_t>(
      std::count(stored->encodings.begin(), stored->encodings.end(), Encoding::kPacked));
  const uint64_t bytes_model = pages * (*space)->codec().layout(Encoding::kWide).page_bytes();
  if (arguments.store.json) {
    PrintJson({{"namespace", Hex(use.fingerprint)},
               {"model", use.spec.model},
               {"last_key", Hex(keys.back())},
               {"pages", pages},
               {"tokens", tokens},
               {"wide_pages", pages - packed},
               {"packed_pages", packed},
               {"form", arguments.form},
               {"bytes_wire", bytes_wire},
               {"bytes_model", bytes_model},
               {"output", arguments.output}});
  } else {
    std::cout << tokens << " tokens in " << pages - packed << " wide and " << packed
              << " packed pages; " << BytesText(static_cast<double>(bytes_wire)) << " on the wire, "
              << BytesText(static_cast<double>(bytes_model)) << " in the model's dtype\nwrote "
              << arguments.output << "\n";
  }
  return absl::OkStatus();
}

}  // namespace

void AddGetCommand(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("get", "Fetch the pages of a prefix into a file, as put reads it");
  const auto a = std::make_shared<Arguments>();
  command->add_option("namespace", a->space, kNamespaceHelp)->required();
  command->add_option("key", a->key,
                      "Key of the prefix's last page in hexadecimal, or its first digits");
  command->add_option("--tokens", a->tokens,
                      "JSON array of token ids instead: the whole pages of these");
  command
      ->add_option("-o,--output", a->output,
                   "File to write: k and v "
                   "[layers, tokens, kv_heads, head_dim] in the model's dtype")
      ->required();
  command
      ->add_option("--form", a->form,
                   "stored: pages travel as they are stored and are decoded here; decoded: the "
                   "server decodes, for about seven times the bytes on the wire")
      ->check(CLI::IsMember({"stored", "decoded"}))
      ->capture_default_str();
  command->add_flag("--partial", a->partial, "Take the first pages when not all are stored");
  AddStoreOptions(command, &a->store);
  command->footer(
      "Example:\n"
      "  oscarkv get my-model --tokens ids.json -o back.safetensors\n"
      "  oscarkv get 3fa9 77c0d2e1 -o back.safetensors --form decoded");
  command->callback([a] { Report(Run(*a)); });
}

}  // namespace oscarkv::cli
