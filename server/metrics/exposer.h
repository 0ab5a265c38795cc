// Serves /metrics over HTTP.
#ifndef OSCARKV_SERVER_METRICS_EXPOSER_H_
#define OSCARKV_SERVER_METRICS_EXPOSER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "server/metrics/collector.h"

namespace prometheus {
class Exposer;
}

namespace oscarkv {

class MetricsExposer {
 public:
  // `address` is host:port; port 0 picks one. kUnavailable when the address cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsExposer>> Create(
      const std::string& address, std::shared_ptr<Collector> collector);
  ~MetricsExposer();
  int port() const;

 private:
  MetricsExposer(std::unique_ptr<prometheus::Exposer> exposer,
                 std::shared_ptr<Collector> collector);
  std::shared_ptr<Collector> collector_;  // the exposer keeps a weak pointer only
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_METRICS_EXPOSER_H_
