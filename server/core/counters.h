// The store's counters by name: what /metrics and Admin.Stats show, in one place.
#ifndef OSCARKV_SERVER_CORE_COUNTERS_H_
#define OSCARKV_SERVER_CORE_COUNTERS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "server/core/store_stats.h"

namespace oscarkv {

struct NamedCounter {
  std::string_view name;  // Prometheus: oscarkv_..._total
  std::string_view help;
  std::string_view label;  // label name, empty for none
  std::string_view value_of_label;
  uint64_t value = 0;
  std::string_view second_label = {};
  std::string_view value_of_second = {};
};

std::vector<NamedCounter> NamedCounters(const StoreStats& stats);

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_COUNTERS_H_
