// What csrc/cuda/launch.h takes of torch's header.
#pragma once

namespace torch::stable::accelerator {
struct DeviceGuard {};
}  // namespace torch::stable::accelerator
