// Re-encodes WIDE pages PACKED, behind everybody's back: pins a page that the ladder names,
// verifies it, encodes it into a slot of its own, looks how well that is, and only then makes it
// the page.
#ifndef OSCARKV_SERVER_CORE_RE_ENCODER_H_
#define OSCARKV_SERVER_CORE_RE_ENCODER_H_

#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "server/core/page_store.h"

namespace oscarkv {

// For one thread; several may work on one store. The store must outlive it, and the codecs that
// were given to SetCodec too.
class ReEncoder {
 public:
  explicit ReEncoder(PageStore& store) : store_(store) {}
  // What was taken is put back by Finish only.
  ReEncoder(const ReEncoder&) = delete;
  ReEncoder& operator=(const ReEncoder&) = delete;

  // Re-encodes the next page. False when there is nothing to do, or no room to do it.
  bool Step();

  // The two halves of Step. A page that was taken has to be finished.
  struct Taken {
    PinnedPage page;
    const PageCodec* codec = nullptr;
  };
  std::optional<Taken> Take();
  bool Finish(Taken taken);

 private:
  struct Errors {
    double k = 0.0, v = 0.0;  // relative, of a layer
  };
  struct Encoded {
    std::optional<StaysWide> stays;  // why it is not to be
    Errors errors;
  };
  // Writes blocks and checksums of the PACKED form to `slot`.
  Encoded Encode(const PageCodec& codec, const PinnedPage& wide, MutableByteView slot);
  // What reading a layer of the page back differs by; another layer each time.
  Errors Compare(const PageCodec& codec, const PinnedPage& wide, MutableByteView slot);

  PageStore& store_;
  uint64_t layer_turn_ = 0;
  std::vector<std::byte> decoded_;  // of Compare
};

struct ReEncodePoolOptions {
  double max_cores = 1.0;  // above 0: of CPU time in the long run, all threads together
};

// ReEncoders on threads of their own, from construction to destruction. Each works for a while and
// rests for as long as its share of a core asks for.
class ReEncodePool {
 public:
  // The store and its codecs must outlive the pool.
  ReEncodePool(PageStore& store, const ReEncodePoolOptions& options);
  ~ReEncodePool();

  // How long to rest after `worked` of CPU time to stay at `share` of a core, 0..1.
  static absl::Duration RestAfter(absl::Duration worked, double share);

 private:
  void Run(double share);

  PageStore& store_;
  std::vector<std::thread> threads_;
};

}  // namespace oscarkv

#endif  // OSCARKV_SERVER_CORE_RE_ENCODER_H_
