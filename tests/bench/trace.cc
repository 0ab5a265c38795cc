#include "tests/bench/trace.h"

#include <algorithm>
#include <fstream>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace oscarkv::bench {

absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat("the trace ", path, " cannot be read"));
  std::vector<TraceRequest> trace;
  absl::flat_hash_map<uint64_t, uint32_t> numbers;
  std::vector<int64_t> parents;  // [block], -1 for none
  std::string line;
  for (size_t number = 1; std::getline(file, line); ++number) {
    const auto error = [&](std::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", absl::string_view(what.data(), what.size())));
    };
    if (line.empty()) continue;
    const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
    if (!json.is_object()) return error("expected a JSON object");
    for (const char* member : {"timestamp", "input_length", "output_length"})
      if (!json.contains(member) || !json[member].is_number())
        return error(absl::StrCat("expected a number '", member, "'"));
    if (!json.contains("hash_ids") || !json["hash_ids"].is_array() || json["hash_ids"].empty())
      return error("expected a list 'hash_ids' with a block at least");
    TraceRequest request;
    request.time_s = json["timestamp"].get<double>() / 1e3;
    request.input_tokens = json["input_length"].get<uint32_t>();
    request.output_tokens = json["output_length"].get<uint32_t>();
    int64_t parent = -1;
    for (const nlohmann::json& id : json["hash_ids"]) {
      if (!id.is_number_unsigned()) return error("hash_ids must be whole numbers");
      const auto [place, is_new] =
          numbers.try_emplace(id.get<uint64_t>(), static_cast<uint32_t>(numbers.size()));
      if (is_new) parents.push_back(parent);
      if (parents[place->second] != parent)
        return error(
            absl::StrCat("block ", id.get<uint64_t>(), " stands behind another block than before"));
      parent = place->second;
      request.blocks.push_back(place->second);
    }
    if (!trace.empty() && request.time_s < trace.back().time_s) return error("time goes back");
    trace.push_back(std::move(request));
  }
  if (trace.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": no requests"));
  return trace;
}

uint32_t CountBlocks(const std::vector<TraceRequest>& trace) {
  uint32_t count = 0;
  for (const TraceRequest& request : trace)
    for (const uint32_t block : request.blocks) count = std::max(count, block + 1);
  return count;
}

}  // namespace oscarkv::bench
