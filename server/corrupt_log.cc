#include "server/corrupt_log.h"

#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

std::string Hex(std::string_view bytes) {
  return absl::BytesToHexString(absl::string_view(bytes.data(), bytes.size()));
}

}  // namespace

uint64_t CorruptLog::EndIfOver(Window& window, absl::Duration now) {
  if (now - window.begin < kWithin) return 0;
  const uint64_t left_out = window.pages > kPagesMax ? window.pages - kPagesMax : 0;
  window = {.begin = now};
  return left_out;
}

void CorruptLog::LogCount(CorruptAt at, uint64_t pages) const {
  logger_.Log(LogLevel::kError, "corrupt pages were not logged, for there were too many",
              {{"at", std::string(CorruptAtName(at))}, {"pages", absl::StrCat(pages)}});
}

void CorruptLog::LogLeftOut() {
  for (size_t at = 0; at < kCorruptAts; ++at) {
    uint64_t left_out = 0;
    {
      absl::MutexLock lock(&mutex_);
      left_out = EndIfOver(windows_[at], clock_.Now());
    }
    if (left_out > 0) LogCount(static_cast<CorruptAt>(at), left_out);
  }
}

void CorruptLog::Log(const CorruptPage& page) {
  uint64_t left_out = 0;
  bool logged = false;
  {
    absl::MutexLock lock(&mutex_);
    Window& window = windows_[static_cast<size_t>(page.at)];
    left_out = EndIfOver(window, clock_.Now());
    logged = ++window.pages <= kPagesMax;
  }
  if (left_out > 0) LogCount(page.at, left_out);
  if (!logged) return;
  const auto number = [&](uint32_t BlockPlace::*part) {
    return page.block.has_value() ? absl::StrCat((*page.block).*part) : std::string("unknown");
  };
  logger_.Log(LogLevel::kError, "a page is corrupt",
              {{"namespace", Hex(page.fingerprint)},
               {"key", Hex(page.key)},
               {"layer", number(&BlockPlace::layer)},
               {"head", number(&BlockPlace::head)},
               {"tier", std::string(TierKindName(page.tier))},
               {"at", std::string(CorruptAtName(page.at))},
               {"error", std::string(page.error)}});
}

}  // namespace oscarkv
