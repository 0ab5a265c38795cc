#include "kernels/attention/attend.cuh"

namespace oscarkv::cuda {

template absl::StatusOr<AttendPlaces> PrepareAttend<128>(const AttendShape& shape,
                                                         uint32_t stage_bytes);
template absl::Status LaunchAttend<128>(const AttendArguments& arguments, const AttendShape& shape,
                                        cudaStream_t stream);

}  // namespace oscarkv::cuda
