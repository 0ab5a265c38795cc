// How the commands write figures, names and tables.
#ifndef OSCARKV_CLIENT_CLI_TEXT_H_
#define OSCARKV_CLIENT_CLI_TEXT_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include <nlohmann/json.hpp>

namespace oscarkv::cli {

// Fields stay in the order in which they were added.
using Json = nlohmann::ordered_json;

std::string BytesText(double bytes);                 // "5 B", "1.50 KB", "36.86 MB": decimal units
std::string CountText(uint64_t count);               // "1,234,567"
std::string DurationText(double seconds);            // "42 s", "3 m 05 s", "2 h 07 m", "5 d 03 h"
std::string PercentText(double part, double whole);  // "85.3 %", "-" when `whole` is 0

// A name that somebody else chose, fit for a terminal: control bytes and the like as escapes.
std::string Printable(std::string_view name);

std::string Hex(std::string_view bytes);
// kInvalidArgument naming `what` when `text` is not pairs of hexadecimal digits.
absl::StatusOr<std::string> FromHex(std::string_view what, std::string_view text);

// To the output stream; bytes that are no UTF-8 are replaced.
void PrintJson(const Json& json);

// Columns as wide as their longest cell, two spaces between them. A heading that starts with '>' is
// without it and its column aligned to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> headings);
  void Add(std::vector<std::string> cells);
  std::string Text() const;

 private:
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TEXT_H_
