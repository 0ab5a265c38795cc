#include "server/metrics/exposer.h"

#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include <prometheus/exposer.h>

namespace oscarkv {
namespace {

constexpr size_t kHttpThreads = 2;

}  // namespace

MetricsExposer::MetricsExposer(std::unique_ptr<prometheus::Exposer> exposer,
                               std::shared_ptr<Collector> collector)
    : collector_(std::move(collector)), exposer_(std::move(exposer)) {
  exposer_->RegisterCollectable(collector_);
}

MetricsExposer::~MetricsExposer() = default;

absl::StatusOr<std::unique_ptr<MetricsExposer>> MetricsExposer::Create(
    const std::string& address, std::shared_ptr<Collector> collector) {
  // The library reports an address in use by an exception; it ends here.
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, kHttpThreads);
    return std::unique_ptr<MetricsExposer>(
        new MetricsExposer(std::move(exposer), std::move(collector)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("metrics cannot listen on ", address, ": ", error.what()));
  }
}

int MetricsExposer::port() const { return exposer_->GetListeningPorts().front(); }

}  // namespace oscarkv
