// Lets a CPU build of torch believe in one CUDA device (tests/tools/fake_gpu.py). No kernel is in here: the
// device's guard does nothing, and the hooks say that there is such a device. Loaded after
// libtorch_cpu.so and before `import torch`, which asks for the hooks once.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace at {
struct CUDAHooks : CUDAHooksInterface {
  CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

namespace {
using namespace c10;

const Device gpu(DeviceType::CUDA, 0);

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return gpu; }
  Device exchangeDevice(Device) const override { return gpu; }
  Stream getStream(Device on) const noexcept override { return Stream(Stream::DEFAULT, on); }
  Stream getNewStream(Device on, int) const override { return Stream(Stream::DEFAULT, on); }
  Stream exchangeStream(Stream) const noexcept override {
    return Stream(Stream::DEFAULT, gpu);
  }
  DeviceIndex deviceCount() const noexcept override { return 1; }
};

impl::DeviceGuardImplRegistrar guard(DeviceType::CUDA, new Guard());
}  // namespace
