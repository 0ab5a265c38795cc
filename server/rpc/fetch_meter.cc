#include "server/rpc/fetch_meter.h"

#include <utility>

namespace oscarkv {
namespace {

constexpr double kFixedMs = 0.2;  // a call that fetches nothing

}  // namespace

SharedRate::Use::Use(SharedRate& rate, uint64_t bytes, absl::Time now)
    : rate_(&rate),
      left_(bytes),
      moved_before_(rate.moved_.load(std::memory_order_relaxed)),
      start_(now) {
  rate.left_.fetch_add(bytes, std::memory_order_relaxed);
  rate.users_.fetch_add(1, std::memory_order_relaxed);
}

SharedRate::Use& SharedRate::Use::operator=(Use&& other) noexcept {
  if (this == &other) return *this;
  Leave();
  rate_ = std::exchange(other.rate_, nullptr);
  left_ = other.left_;
  moved_ = other.moved_;
  moved_before_ = other.moved_before_;
  start_ = other.start_;
  return *this;
}

void SharedRate::Use::Moved(uint64_t bytes) {
  if (rate_ == nullptr) return;
  moved_ += bytes;
  rate_->moved_.fetch_add(bytes, std::memory_order_relaxed);
  const uint64_t done = std::min(bytes, left_);
  left_ -= done;
  rate_->left_.fetch_sub(done, std::memory_order_relaxed);
}

void SharedRate::Use::End(absl::Time now) {
  if (rate_ == nullptr) return;
  const double seconds = absl::ToDoubleSeconds(now - start_);
  if (moved_ >= kBytesMin && seconds > 0.0) {
    const auto by_all =
        static_cast<double>(rate_->moved_.load(std::memory_order_relaxed) - moved_before_);
    const absl::MutexLock lock(&rate_->mutex_);
    rate_->short_.Add(kKeepShort, by_all, seconds);
    rate_->long_.Add(kKeepLong, by_all, seconds);
  }
  Leave();
}

void SharedRate::Use::Leave() {
  if (rate_ == nullptr) return;
  rate_->left_.fetch_sub(left_, std::memory_order_relaxed);
  rate_->users_.fetch_sub(1, std::memory_order_relaxed);
  rate_ = nullptr;
}

double SharedRate::bytes_per_s() const {
  const absl::MutexLock lock(&mutex_);
  return std::min(short_.bytes / short_.seconds, long_.bytes / long_.seconds);
}

uint64_t SharedRate::Ahead(uint64_t bytes) const {
  const uint64_t users = users_.load(std::memory_order_relaxed);
  const uint64_t left = left_.load(std::memory_order_relaxed);
  // Each other brings as much as this one meanwhile, unless it has less left.
  if (users == 0 || bytes > left / users) return left;
  return bytes * users;
}

FetchMeter::Forecast FetchMeter::Expect(uint64_t bytes, uint64_t bytes_on_disk) const {
  const auto ms = [](uint64_t amount, const SharedRate& rate) {
    return 1e3 * static_cast<double>(amount) / rate.bytes_per_s();
  };
  Forecast forecast;
  forecast.bytes_ahead = sending_.Ahead(bytes);
  if (bytes_on_disk > 0)
    forecast.loading_ms = ms(bytes_on_disk + loading_.Ahead(bytes_on_disk), loading_);
  forecast.ms = kFixedMs + forecast.loading_ms + ms(bytes + forecast.bytes_ahead, sending_);
  return forecast;
}

}  // namespace oscarkv
