// The path of clients on the server's host: pages are read where the server has them, and handed
// over in memory that both map. Included by the client's own sources only.
#ifndef OSCARKV_CLIENT_CPP_SHM_PATH_H_
#define OSCARKV_CLIENT_CPP_SHM_PATH_H_

#include <memory>

#include "client/cpp/page_path.h"
#include "client/cpp/shm_link.h"

namespace oscarkv::client {

// Of one session. A fetch is one request, and pages are verified and decoded where they lie; one
// that the server took back meanwhile is FENCED.
std::shared_ptr<FetchPath> MakeShmFetchPath(std::shared_ptr<ShmDoor> door);
// Pages are encoded straight into staging memory, and committed from there.
std::shared_ptr<PushPath> MakeShmPushPath(std::shared_ptr<ShmDoor> door);

}  // namespace oscarkv::client

#endif  // OSCARKV_CLIENT_CPP_SHM_PATH_H_
