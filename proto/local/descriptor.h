// A file descriptor with one owner.
#ifndef OSCARKV_PROTO_LOCAL_DESCRIPTOR_H_
#define OSCARKV_PROTO_LOCAL_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace oscarkv {

// Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }

  int number() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }

 private:
  int number_ = -1;
};

}  // namespace oscarkv

#endif  // OSCARKV_PROTO_LOCAL_DESCRIPTOR_H_
