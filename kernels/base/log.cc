#include "kernels/base/log.h"

#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace oscarkv {
namespace {

constexpr std::pair<std::string_view, LogLevel> kLevels[] = {{"debug", LogLevel::kDebug},
                                                             {"info", LogLevel::kInfo},
                                                             {"warning", LogLevel::kWarning},
                                                             {"error", LogLevel::kError}};

std::string_view LevelName(LogLevel level) { return kLevels[static_cast<size_t>(level)].first; }

// A JSON string (RFC 8259, section 7).
std::string Quoted(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&quoted, "\\u%04x", static_cast<unsigned>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

}  // namespace

std::optional<LogLevel> ParseLogLevel(std::string_view name) {
  for (const auto& [text, level] : kLevels) {
    if (text == name) return level;
  }
  return std::nullopt;
}

void Logger::Log(LogLevel level, std::string_view message,
                 std::initializer_list<Field> fields) const {
  if (!enabled(level)) return;
  const std::string time =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  std::string line;
  if (format_ == LogFormat::kJson) {
    line = absl::StrCat("{\"time\":", Quoted(time), ",\"level\":", Quoted(LevelName(level)),
                        ",\"message\":", Quoted(message));
    for (const auto& [name, value] : fields)
      absl::StrAppend(&line, ",", Quoted(name), ":", Quoted(value));
    line += "}\n";
  } else {
    line = absl::StrFormat("%s %-7s %s", time, LevelName(level), message);
    for (const auto& [name, value] : fields) absl::StrAppendFormat(&line, " %s=%s", name, value);
    line += "\n";
  }
  const absl::MutexLock lock(&mutex_);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

}  // namespace oscarkv
