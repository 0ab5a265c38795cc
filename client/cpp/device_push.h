// Pushes from a GPU's memory into a server's, by CUDA IPC or NCCL, of sources that can
// (client/cpp/device_source.h).
#ifndef OSCARKV_CLIENT_CPP_DEVICE_PUSH_H_
#define OSCARKV_CLIENT_CPP_DEVICE_PUSH_H_

#include <memory>

#include "client/cpp/page_path.h"

namespace oscarkv::client {

std::shared_ptr<PushPath> MakeIpcPushPath();
std::shared_ptr<PushPath> MakeNcclPushPath();

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_DEVICE_PUSH_H_
