// What a worker may tell the store of a request: evidence for what to keep, from which the store
// learns how far such words can be trusted. Every field may be left as it is.
#ifndef OSCARKV_CLIENT_CPP_HINTS_H_
#define OSCARKV_CLIENT_CPP_HINTS_H_

#include <cstdint>

namespace oscarkv::client {

// Numbers equal oscarkv.v1.Reuse.
enum class Reuse : uint8_t {
  kUnspecified = 0,
  kSessionOver = 1,  // nobody goes on from here
  kSingleShot = 2,   // asked once, not part of a conversation
  kWillReturn = 3,   // the session waits for its next request
};

// Numbers equal oscarkv.v1.Residency.
enum class Residency : uint8_t {
  kUnspecified = 0,  // as the pages are; new ones are kNormal
  kNormal = 1,
  kMayGoFirst = 2,  // before every page that is not
  kPinned = 3,      // until deleted or touched as another; kQuota beyond the server's ceiling
};

struct RequestHints {
  Reuse reuse = Reuse::kUnspecified;
  int32_t priority = 0;  // -2..2; a step is worth four times the hits
  Residency residency = Residency::kUnspecified;
  uint32_t output_tokens = 0;  // that the request generated, or is going to; 0: not known
  uint64_t request_id = 0;     // equal for the pushes of one request; 0: this push is all of it
};

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_HINTS_H_
