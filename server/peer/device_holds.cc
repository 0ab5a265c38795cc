#include "server/peer/device_holds.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {

void DeviceHolds::BeginSession(SessionId session) {
  absl::MutexLock lock(&mutex_);
  sessions_.insert(session);
}

void DeviceHolds::EndSession(SessionId session) {
  {
    absl::MutexLock lock(&mutex_);
    sessions_.erase(session);
  }
  EndWhere([session](const Hold& hold) { return hold.session == session; });
}

absl::StatusOr<HoldId> DeviceHolds::Add(SessionId session, std::vector<PinnedCopy> copies) {
  Hold hold{.session = session, .since = clock_.Now(), .bytes = 0, .copies = std::move(copies)};
  for (const PinnedCopy& copy : hold.copies) hold.bytes += copy.slot().bytes;
  absl::MutexLock lock(&mutex_);
  if (!sessions_.contains(session))
    return absl::UnavailableError(absl::StrCat("no session ", session, " is open"));
  if (hold.bytes > options_.bytes_max - bytes_) {
    return absl::ResourceExhaustedError(absl::StrCat("readers hold ", bytes_, " of ",
                                                     options_.bytes_max, " bytes, ", hold.bytes,
                                                     " more are asked for"));
  }
  bytes_ += hold.bytes;
  holds_.emplace(++last_, std::move(hold));
  return last_;
}

bool DeviceHolds::End(HoldId hold) {
  Hold ended;  // let go outside of the lock
  absl::MutexLock lock(&mutex_);
  const auto found = holds_.find(hold);
  if (found == holds_.end()) return false;
  ended = std::move(found->second);
  bytes_ -= ended.bytes;
  holds_.erase(found);
  return true;
}

void DeviceHolds::Expire() {
  const absl::Duration now = clock_.Now();
  EndWhere([&](const Hold& hold) { return now - hold.since >= options_.hold_max; });
}

template <typename Ends>
void DeviceHolds::EndWhere(const Ends& ends) {
  std::vector<Hold> ended;
  absl::MutexLock lock(&mutex_);
  for (auto hold = holds_.begin(); hold != holds_.end();) {
    if (ends(hold->second)) {
      bytes_ -= hold->second.bytes;
      ++expired_;
      ended.push_back(std::move(hold->second));
      holds_.erase(hold++);
    } else {
      ++hold;
    }
  }
}

DeviceHoldsStats DeviceHolds::Stats() const {
  absl::MutexLock lock(&mutex_);
  return {.holds = holds_.size(), .bytes = bytes_, .expired = expired_};
}

}  // namespace oscarkv
