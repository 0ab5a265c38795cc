#include "kernels/safetensors/header.h"

#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

#include "kernels/base/bytes.h"
#include "kernels/safetensors/safetensors.h"

namespace oscarkv {
namespace {

constexpr std::string_view kMetadataName = "__metadata__";

// Receives nlohmann's events. Depth 1 is the header, depth 2 a tensor's entry or the metadata;
// arrays stand inside entries only. Returning false stops the parser; `error` says why.
class HeaderEvents {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  // The parser's names, which the library fixes.
  bool null() { return Unexpected("null"); }
  bool boolean(bool /*value*/) { return Unexpected("a boolean"); }
  bool number_float(number_float_t /*value*/, const string_t& text) { return Unexpected(text); }
  bool binary(binary_t& /*value*/) { return Unexpected("binary data"); }

  bool number_integer(number_integer_t value) {
    if (value < 0) return Unexpected(absl::StrCat(value));
    return number_unsigned(static_cast<number_unsigned_t>(value));
  }

  bool number_unsigned(number_unsigned_t value) {
    if (!in_array_) return Unexpected(absl::StrCat(value));
    numbers_.push_back(value);
    return true;
  }

  bool string(string_t& value) {
    if (in_metadata_) {
      header.metadata[key_] = std::move(value);
      return true;
    }
    if (depth_ != 2 || in_array_ || key_ != "dtype") {
      return Unexpected(absl::StrCat("\"", value, "\""));
    }
    if (TensorDTypeBytes(value) == 0) {
      return Fail(absl::StrCat("tensor '", entry_.name, "': unknown dtype '", value, "'"));
    }
    entry_.dtype = std::move(value);
    return true;
  }

  bool start_object(size_t /*elements*/) {
    if (depth_ >= 2 || in_array_) return Unexpected("an object");
    ++depth_;
    if (depth_ == 1) return true;
    keys_.clear();
    in_metadata_ = key_ == kMetadataName;
    entry_ = HeaderEntry();
    entry_.name = key_;
    return true;
  }

  bool key(string_t& value) {
    std::set<std::string>& seen = depth_ == 1 ? names_ : keys_;
    if (!seen.insert(value).second) {
      return Fail(depth_ == 1 ? absl::StrCat("tensor '", value, "' comes twice")
                              : absl::StrCat(Where(), ": key \"", value, "\" comes twice"));
    }
    if (depth_ == 2 && !in_metadata_ && value != "dtype" && value != "shape" &&
        value != "data_offsets") {
      return Fail(absl::StrCat(Where(), ": unknown key \"", value, "\""));
    }
    key_ = std::move(value);
    return true;
  }

  bool end_object() {
    --depth_;
    if (depth_ != 1) return true;
    if (in_metadata_) {
      in_metadata_ = false;
      return true;
    }
    for (const char* field : {"dtype", "shape", "data_offsets"}) {
      if (!keys_.contains(field)) {
        return Fail(absl::StrCat("tensor '", entry_.name, "': no \"", field, "\""));
      }
    }
    header.entries.push_back(std::move(entry_));
    return true;
  }

  bool start_array(size_t /*elements*/) {
    if (depth_ != 2 || in_metadata_ || in_array_ || key_ == "dtype") return Unexpected("an array");
    in_array_ = true;
    numbers_.clear();
    return true;
  }

  bool end_array() {
    in_array_ = false;
    if (key_ == "shape") {
      entry_.shape = std::move(numbers_);
      numbers_.clear();
      return true;
    }
    if (numbers_.size() != 2) {
      return Fail(absl::StrCat("tensor '", entry_.name, "': data_offsets has ", numbers_.size(),
                               " numbers, expected 2"));
    }
    entry_.begin = numbers_[0];
    entry_.end = numbers_[1];
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*exception*/) {
    return Fail(absl::StrCat("header is no JSON at byte ", position));
  }

  SafetensorsHeader header;
  std::string error;

 private:
  std::string Where() const {
    if (depth_ < 2) return "header";
    return in_metadata_ ? std::string(kMetadataName) : absl::StrCat("tensor '", entry_.name, "'");
  }
  bool Unexpected(const std::string& found) {
    return Fail(absl::StrCat(Where(), ": unexpected ", found,
                             key_.empty() ? "" : absl::StrCat(" at \"", key_, "\"")));
  }
  bool Fail(std::string message) {
    error = std::move(message);
    return false;
  }

  int depth_ = 0;
  bool in_array_ = false;
  bool in_metadata_ = false;
  std::string key_;
  std::set<std::string> names_;  // of the tensors so far
  std::set<std::string> keys_;   // of the object at depth 2
  HeaderEntry entry_;
  std::vector<uint64_t> numbers_;
};

std::string Quote(const std::string& text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json) {
  HeaderEvents events;
  if (json.empty() || json.front() != '{') {
    return absl::InvalidArgumentError("the header is not a JSON object");
  }
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &events)) {
    return absl::InvalidArgumentError(events.error.empty() ? "the header is no JSON"
                                                           : events.error);
  }
  return std::move(events.header);
}

std::string WriteSafetensorsHeader(const SafetensorsHeader& header) {
  std::string text = "{";
  if (!header.metadata.empty()) {
    absl::StrAppend(&text, Quote(std::string(kMetadataName)), ":{");
    const char* separator = "";
    for (const auto& [name, value] : header.metadata) {
      absl::StrAppend(&text, separator, Quote(name), ":", Quote(value));
      separator = ",";
    }
    text += "}";
  }
  for (const HeaderEntry& entry : header.entries) {
    absl::StrAppend(&text, text.size() > 1 ? "," : "", Quote(entry.name), ":{\"dtype\":\"",
                    entry.dtype, "\",\"shape\":[", absl::StrJoin(entry.shape, ","),
                    "],\"data_offsets\":[", entry.begin, ",", entry.end, "]}");
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string framed(sizeof(uint64_t), '\0');
  StoreLe(reinterpret_cast<std::byte*>(framed.data()), uint64_t{text.size()});
  return framed + text;
}

std::optional<uint64_t> TensorBytes(std::string_view dtype, std::span<const uint64_t> shape) {
  uint64_t bytes = TensorDTypeBytes(dtype);
  for (const uint64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

}  // namespace oscarkv
