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

void DeviceHolds::Count(const Hold& hold) {
  for (const PinnedCopy& copy : hold.copies)
    if (++holders_[copy.slot().offset] == 1) bytes_ += copy.slot().bytes;
}

void DeviceHolds::Discount(const Hold& hold) {
  for (const PinnedCopy& copy : hold.copies) {
    const auto holders = holders_.find(copy.slot().offset);
    if (--holders->second > 0) continue;
    holders_.erase(holders);
    bytes_ -= copy.slot().bytes;
  }
}

absl::StatusOr<HoldId> DeviceHolds::Add(SessionId session, std::vector<PinnedCopy> copies,
                                        uint64_t bytes) {
  Hold hold{.session = session, .since = clock_.Now(), .bytes = bytes, .copies = std::move(copies)};
  absl::MutexLock lock(&mutex_);
  if (!sessions_.contains(session))
    return absl::UnavailableError(absl::StrCat("no session ", session, " is open"));
  Count(hold);
  if (bytes_ > options_.bytes_max) {
    const uint64_t all = bytes_;
    Discount(hold);
    return absl::ResourceExhaustedError(
        absl::StrCat("readers may hold ", options_.bytes_max, " bytes, with this it were ", all));
  }
  holds_.emplace(++last_, std::move(hold));
  return last_;
}

std::optional<DeviceHolds::Ended> DeviceHolds::End(HoldId hold) {
  Hold ended;  // let go outside of the lock
  absl::MutexLock lock(&mutex_);
  const auto found = holds_.find(hold);
  if (found == holds_.end()) return std::nullopt;
  ended = std::move(found->second);
  Discount(ended);
  holds_.erase(found);
  return Ended{ended.bytes, clock_.Now() - ended.since};
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
      Discount(hold->second);
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
