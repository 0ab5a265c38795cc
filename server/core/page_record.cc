#include "server/core/page_record.h"

#include <cstring>

namespace oscarkv {

char* RecordKey::heap() const {
  char* address = nullptr;
  std::memcpy(&address, bytes_.data(), sizeof(address));
  return address;
}

void RecordKey::Assign(std::string_view key) {
  Clear();
  char* destination = bytes_.data();
  if (key.size() > kInPlaceBytes) {
    destination = std::make_unique<char[]>(key.size()).release();
    std::memcpy(bytes_.data(), &destination, sizeof(destination));
  }
  std::memcpy(destination, key.data(), key.size());
  size_ = static_cast<uint8_t>(key.size());
}

void RecordKey::Clear() {
  if (on_heap()) std::unique_ptr<char[]> owner(heap());
  size_ = 0;
}

RecordTable::RecordTable() : chunks_(std::make_unique<std::atomic<PageRecord*>[]>(kChunksMax)) {}

RecordTable::~RecordTable() {
  for (uint32_t i = 0; i < kChunksMax; ++i)
    std::unique_ptr<PageRecord[]> owner(chunks_[i].load(std::memory_order_relaxed));
}

PageRecord* RecordTable::Allocate() {
  if (first_free_ != kNoPage) {
    PageRecord& record = Get(first_free_);
    first_free_ = record.next_sibling;
    record.next_sibling = kNoPage;
    return &record;
  }
  if (end_ == kChunksMax * kChunkRecords) return nullptr;
  if (end_ % kChunkRecords == 0) {
    chunks_[end_ >> kChunkBits].store(std::make_unique<PageRecord[]>(kChunkRecords).release(),
                                      std::memory_order_release);
  }
  PageRecord& record = Get(end_);
  record.id = end_++;
  return &record;
}

void RecordTable::Free(PageRecord& record) {
  record.key.Clear();
  record.space = nullptr;
  record.pinned = false;
  record.rung = Rung::kNone;
  record.parent = record.first_child = record.previous_sibling = kNoPage;
  record.state.store(0, std::memory_order_relaxed);
  record.next_sibling = first_free_;
  first_free_ = record.id;
}

uint64_t RecordTable::memory_bytes() const {
  const uint64_t chunks = (uint64_t{end_} + kChunkRecords - 1) / kChunkRecords;
  return chunks * kChunkRecords * sizeof(PageRecord) + kChunksMax * sizeof(chunks_[0]);
}

}  // namespace oscarkv
