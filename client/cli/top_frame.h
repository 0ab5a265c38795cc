// What `top` shows: a server's rates between two looks at it.
#ifndef OSCARKV_CLIENT_CLI_TOP_FRAME_H_
#define OSCARKV_CLIENT_CLI_TOP_FRAME_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/cli/text.h"
#include "client/cpp/server_stats.h"

namespace oscarkv::cli {

struct Rates {
  double seconds = 0.0;  // between the looks
  bool since_start = false;
  double lookup_keys = 0.0;  // this and what follows: a second
  double fetch_pages = 0.0;
  double bytes_in = 0.0;
  double bytes_out = 0.0;
  double evicted_bytes = 0.0;
  // Pages, by what the labels of the counters say.
  std::map<std::string, double> hits_by_tier, removed_by_reason, reencoded_by_cause;
  double scrubbed_pages = 0.0;
  std::optional<double> hit_rate;  // of the keys looked up, 0..1; none were: empty
};

// Without an earlier look, or when the server was started again since, the rates are those since
// its start.
Rates RatesBetween(const std::optional<client::ServerStats>& before,
                   const client::ServerStats& now);

// One line each, without ends of lines.
std::vector<std::string> Frame(const client::ServerStats& stats, const Rates& rates,
                               const std::string& server);
Json FrameReport(const client::ServerStats& stats, const Rates& rates, const std::string& server);

}  // namespace oscarkv::cli

#endif  // OSCARKV_CLIENT_CLI_TOP_FRAME_H_
