#include "kernels/codec/oscar/cuda_check.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#include "kernels/base/status_macros.h"
#include "kernels/device/status.h"

namespace oscarkv::cuda {
namespace {

constexpr uint64_t kBlocksMax = uint64_t{1} << 30;

absl::string_view Name(DType dtype) {
  const std::string_view name = DTypeName(dtype);
  return {name.data(), name.size()};
}

// An array in device memory, of elements that are aligned to their size.
absl::Status CheckArray(absl::string_view what, const void* array, size_t alignment) {
  if (array == nullptr) return absl::InvalidArgumentError(absl::StrCat(what, ": null"));
  const auto address = reinterpret_cast<uintptr_t>(array);
  if (address % alignment == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, ": must be aligned to ", alignment,
                                                 " bytes, found 0x", absl::Hex(address)));
}

absl::Status CheckStride(absl::string_view what, int64_t stride, uint32_t multiple) {
  if (stride % multiple == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, ": strides must be multiples of ", multiple, " bytes, found ", stride));
}

absl::Status CheckSide(const DeviceEngineSide& side) {
  OSCARKV_RETURN_IF_ERROR(CheckArray("layer base pointers", side.layer_base, sizeof(void*)));
  if (side.dtype != DType::kBf16 && side.dtype != DType::kFp16) {
    return absl::InvalidArgumentError(
        absl::StrCat("dtype must be bf16 or fp16, found ", Name(side.dtype)));
  }
  OSCARKV_RETURN_IF_ERROR(CheckStride("blocks", side.block_stride, 16));
  OSCARKV_RETURN_IF_ERROR(CheckStride("tokens", side.token_stride, 16));
  return CheckStride("heads", side.head_stride, 16);
}

absl::Status CheckTensor(const DevicePoolTensor& tensor) {
  OSCARKV_RETURN_IF_ERROR(CheckArray("layer base pointers", tensor.layer_base, sizeof(void*)));
  OSCARKV_RETURN_IF_ERROR(CheckStride("slots", tensor.slot_stride, 4));
  return CheckStride("heads", tensor.head_stride, 4);
}

template <typename Batch>
absl::Status Check(const CudaPageCodec& codec, const Batch& batch) {
  if (batch.encoding != Encoding::kWide && batch.encoding != Encoding::kPacked) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown encoding ", static_cast<int>(batch.encoding)));
  }
  if (batch.encoding == Encoding::kPacked && !codec.can_pack())
    return absl::FailedPreconditionError("PACKED needs a transform set, and the codec has none");
  OSCARKV_RETURN_IF_ERROR(CheckBlockRange("layers", batch.layers, codec.geometry().layers));
  OSCARKV_RETURN_IF_ERROR(CheckBlockRange("heads", batch.heads, codec.geometry().kv_heads));
  const uint64_t blocks = uint64_t{batch.pages} * batch.layers.count * batch.heads.count;
  if (blocks > kBlocksMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch has at most ", kBlocksMax, " blocks, found ", blocks));
  }
  OSCARKV_RETURN_IF_ERROR(CheckArray("page_bytes", batch.page_bytes, sizeof(void*)));
  OSCARKV_RETURN_IF_ERROR(CheckArray("slots", batch.slots, sizeof(int64_t)));
  OSCARKV_RETURN_IF_ERROR(CheckArray("block_crc32c", batch.block_crc32c, sizeof(uint32_t)));
  return CheckArray("status", batch.status, sizeof(uint32_t));
}

}  // namespace

absl::Status CheckStream(cudaStream_t stream, int device) {
  int current = 0;
  OSCARKV_RETURN_IF_ERROR(
      device::ToStatus(cudaGetDevice(&current), "asking for the current device"));
  int of_stream = current;
  // The default stream is the current device's. One that is being captured cannot be asked: there
  // CUDA itself refuses what belongs to another device.
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (stream != nullptr) {
    OSCARKV_RETURN_IF_ERROR(device::ToStatus(cudaStreamIsCapturing(stream, &capture),
                                             "asking whether a stream is captured"));
    if (capture == cudaStreamCaptureStatusNone) {
      OSCARKV_RETURN_IF_ERROR(device::ToStatus(cudaStreamGetDevice(stream, &of_stream),
                                               "asking for a stream's device"));
    }
  }
  if (of_stream == device && current == device) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the codec works on device ", device, "; the stream is one of device ",
                   of_stream, ", and device ", current, " is the calling thread's current one"));
}

absl::Status CheckEngine(const DeviceEngineView& engine) {
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(engine.k), "engine view, K"));
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckSide(engine.v), "engine view, V"));
  if (engine.k.dtype != engine.v.dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine view: K and V must have one dtype, found ", Name(engine.k.dtype),
                     " and ", Name(engine.v.dtype)));
  }
  if (engine.block_tokens != 0) return absl::OkStatus();
  return absl::InvalidArgumentError("engine view: block_tokens must be positive, found 0");
}

absl::Status CheckPool(const DevicePoolView& pool) {
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckTensor(pool.k_codes), "pool, K codes"));
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckTensor(pool.k_params), "pool, K scales and zeros"));
  OSCARKV_RETURN_IF_ERROR(Annotate(CheckTensor(pool.v_codes), "pool, V codes"));
  return Annotate(CheckTensor(pool.v_params), "pool, V scales and zeros");
}

absl::Status CheckBatch(const CudaPageCodec& codec, const DeviceDecodeBatch& batch) {
  return Check(codec, batch);
}

absl::Status CheckBatch(const CudaPageCodec& codec, const DeviceEncodeBatch& batch) {
  OSCARKV_RETURN_IF_ERROR(Check(codec, batch));
  if (batch.encoding == Encoding::kWide && batch.counts == nullptr) return absl::OkStatus();
  return CheckArray("counts", batch.counts, sizeof(uint64_t));
}

absl::Status CheckWide(const CudaPageCodec& codec, const DeviceEngineView& engine) {
  if (engine.k.dtype == codec.geometry().dtype) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("WIDE pages hold ", Name(codec.geometry().dtype), ", the engine's cache ",
                   Name(engine.k.dtype), ": the device moves bf16 to bf16 and fp16 to fp16"));
}

}  // namespace oscarkv::cuda
