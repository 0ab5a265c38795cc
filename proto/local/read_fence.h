// How a process that reads another's memory learns that what it has read may have changed: a word
// that both map, which the memory's owner raises before it lets go of anything that the reader
// holds, and which the reader looks at after it has read.
//
// It is a seqlock that is used once. The owner: the word, then a release fence, then whatever is
// written into the memory when it is used again. The reader: the bytes, then an acquire fence, then
// the word. If any byte was of the later use, the word is seen raised; so as long as it is not
// raised, all that was read before is what lay there when the owner gave it. The reader looks after
// everything it does with the bytes, checksums and decoding alike: bytes that are read twice, once
// for the checksum and once to be decoded, are covered both times.
#ifndef OSCARKV_PROTO_LOCAL_READ_FENCE_H_
#define OSCARKV_PROTO_LOCAL_READ_FENCE_H_

#include <atomic>
#include <cstdint>
#include <new>

#include "kernels/base/bytes.h"

namespace oscarkv {

inline constexpr uint64_t kReadFenceBytes = 4096;  // of the shared region: a page of memory

// The owner's side, over its zeroed region.
class ReadFence {
 public:
  explicit ReadFence(MutableByteView region)
      : word_(*new (region.data()) std::atomic<uint32_t>(0)) {}
  void Raise() {
    word_.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }

 private:
  std::atomic<uint32_t>& word_;
};

// The reader's side.
inline bool ReadFenceRaised(ByteView region) {
  static_assert(std::atomic<uint32_t>::is_always_lock_free);
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto* word = reinterpret_cast<const std::atomic<uint32_t>*>(region.data());
  return word->load(std::memory_order_relaxed) != 0;
}

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_LOCAL_READ_FENCE_H_
