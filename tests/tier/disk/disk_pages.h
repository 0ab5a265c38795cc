// Pages for tests of the disk store: what they hold follows from their numbers.
#ifndef OSCARKV_TESTS_TIER_DISK_DISK_PAGES_H_
#define OSCARKV_TESTS_TIER_DISK_DISK_PAGES_H_

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/tier/disk/disk_store.h"

namespace oscarkv::testing {

inline constexpr uint64_t kTestSegmentBytes = 1 << 20;

inline DiskStoreOptions TestOptions(const std::string& path, uint64_t segments = 4) {
  return {.directory = {.path = path,
                        .owner = "test",
                        .capacity_bytes = segments * kTestSegmentBytes + 3 * kDiskBlockBytes,
                        .segment_bytes = kTestSegmentBytes}};
}

inline std::string TestFingerprint(uint8_t space = 1) {
  return std::string(kFingerprintBytes, static_cast<char>(space));
}

// A key of 16 to 64 bytes, as the number says.
inline std::string TestKey(uint64_t number) {
  std::string key(16 + number % 3 * 24, static_cast<char>(number % 251));
  std::memcpy(key.data(), &number, sizeof(number));
  return key;
}

inline std::vector<std::byte> BodyOf(uint64_t number, uint64_t bytes) {
  std::vector<std::byte> body(bytes + sizeof(uint64_t));
  std::mt19937_64 random(number);
  for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) StoreLe(&body[at], random());
  body.resize(bytes);
  return body;
}

// A page with memory of its own.
struct TestDiskPage {
  std::string fingerprint = TestFingerprint();
  std::string key;
  std::string parent;
  std::vector<std::byte> body;
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kPacked;

  TestDiskPage(uint64_t number, uint64_t bytes)
      : key(TestKey(number)), body(BodyOf(number, bytes)) {}

  DiskPut put() const {
    return {.fingerprint = fingerprint,
            .key = key,
            .parent = parent,
            .first_position = first_position,
            .encoding = encoding,
            .body = body,
            .checksum_bytes = 4};
  }
};

inline absl::Status WriteOne(DiskStore& store, const TestDiskPage& page) {
  DiskPut put = page.put();
  store.Write({&put, 1});
  return put.status;
}

// What the store returns for the page's key.
struct ReadBack {
  absl::Status status;
  std::vector<std::byte> body;
  std::string parent;
  uint64_t first_position = 0;
  Encoding encoding = Encoding::kWide;
};
inline ReadBack ReadOne(DiskStore& store, const std::string& key,
                        const std::string& fingerprint = TestFingerprint()) {
  const AlignedBuffer buffer(2 * kTestSegmentBytes);
  DiskGet get{.fingerprint = fingerprint, .key = key, .buffer = buffer.bytes()};
  store.Read({&get, 1});
  if (!get.status.ok()) return {.status = get.status, .body = {}, .parent = {}};
  return {.status = {},
          .body = {get.body.begin(), get.body.end()},
          .parent = std::string(get.header.parent),
          .first_position = get.header.first_position,
          .encoding = get.header.encoding};
}

}  // namespace oscarkv::testing

#endif  // OSCARKV_TESTS_TIER_DISK_DISK_PAGES_H_
