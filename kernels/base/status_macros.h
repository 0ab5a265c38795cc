// Early return on errors, and context added where a status crosses a layer. The names follow
// Abseil's later status macros.
#ifndef OSCARKV_KERNELS_BASE_STATUS_MACROS_H_
#define OSCARKV_KERNELS_BASE_STATUS_MACROS_H_

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace oscarkv {

// The same code with `context` before the message: Annotate(s, "layer 3, head 1") -> "layer 3, head
// 1: <message>". An OK status stays as it is.
inline absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(absl::string_view(context.data(), context.size()),
                                                  ": ", status.message()));
}

}  // namespace oscarkv

// Returns the status from the enclosing function unless it is OK.
#define OSCARKV_RETURN_IF_ERROR(expression)                                 \
  do {                                                                      \
    if (absl::Status oscarkv_status_ = (expression); !oscarkv_status_.ok()) \
      return oscarkv_status_;                                               \
  } while (false)

#define OSCARKV_CONCAT_INNER_(a, b) a##b
#define OSCARKV_CONCAT_(a, b) OSCARKV_CONCAT_INNER_(a, b)

// OSCARKV_ASSIGN_OR_RETURN(auto page, store.Get(key)): assigns the value or returns the status.
#define OSCARKV_ASSIGN_OR_RETURN(lhs, expression) \
  OSCARKV_ASSIGN_OR_RETURN_IMPL_(OSCARKV_CONCAT_(oscarkv_statusor_, __LINE__), lhs, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration and its names cannot stand in parentheses
#define OSCARKV_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expression) \
  auto statusor = (expression);                                   \
  if (!statusor.ok()) return statusor.status();                   \
  lhs = std::move(statusor).value()
// NOLINTEND(bugprone-macro-parentheses)

#endif  // OSCARKV_KERNELS_BASE_STATUS_MACROS_H_
