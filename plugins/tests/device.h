// Memory and a stream of the first GPU, through the driver that the process finds at run time.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "launcher/driver.h"

namespace device {

using aff_deploy::cuda::Context;
using aff_deploy::cuda::Stream;

// Why there is no GPU to run on.
struct NoGpu : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Gpu {
  public:
    Gpu() {
        handle_ = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (handle_ == nullptr) {
            throw NoGpu(dlerror());
        }
        int count = 0;
        int device = 0;
        if (call<unsigned int>("cuInit", 0U) != 0 || call<int*>("cuDeviceGetCount", &count) != 0 || count == 0 ||
            call<int*, int>("cuDeviceGet", &device, 0) != 0) {
            throw NoGpu("the driver knows of no GPU");
        }
        char text[256] = {};
        must(call<char*, int, int>("cuDeviceGetName", text, 255, device), "cuDeviceGetName");
        name = text;
        Context context = nullptr;
        must(call<Context*, int>("cuDevicePrimaryCtxRetain", &context, device), "cuDevicePrimaryCtxRetain");
        must(call<Context>("cuCtxSetCurrent", context), "cuCtxSetCurrent");
        must(call<Stream*, unsigned int>("cuStreamCreate", &stream, 1U), "cuStreamCreate");
    }
    Gpu(const Gpu&) = delete;
    Gpu& operator=(const Gpu&) = delete;
    ~Gpu() {
        for (const std::uint64_t address : allocated_) {
            call<std::uint64_t>("cuMemFree_v2", address);
        }
        call<Stream>("cuStreamDestroy_v2", stream);
    }

    void* allocate(std::size_t bytes) {
        std::uint64_t address = 0;
        must(call<std::uint64_t*, std::size_t>("cuMemAlloc_v2", &address, bytes), "cuMemAlloc");
        allocated_.push_back(address);
        return reinterpret_cast<void*>(address);
    }
    void* upload(const std::vector<char>& from) {
        void* to = allocate(from.size());
        write(to, from);
        return to;
    }
    void write(void* to, const std::vector<char>& from) {
        must(call<std::uint64_t, const void*, std::size_t>("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(to), from.data(),
                                                           from.size()),
             "cuMemcpyHtoD");
    }
    std::vector<char> read(const void* from, std::size_t bytes) {
        std::vector<char> to(bytes);
        must(
            call<void*, std::uint64_t, std::size_t>("cuMemcpyDtoH_v2", to.data(), reinterpret_cast<std::uint64_t>(from), bytes),
            "cuMemcpyDtoH");
        return to;
    }
    void wait() { must(call<Stream>("cuStreamSynchronize", stream), "cuStreamSynchronize"); }

    std::string name;
    Stream stream = nullptr;

  private:
    template <typename... Arguments>
    int call(const char* function, Arguments... arguments) {
        auto* found = reinterpret_cast<int (*)(Arguments...)>(dlsym(handle_, function));
        return found == nullptr ? -1 : found(arguments...);
    }
    static void must(int result, const char* what) {
        if (result != 0) {
            throw std::runtime_error(std::string(what) + " failed with " + std::to_string(result));
        }
    }
    void* handle_;
    std::vector<std::uint64_t> allocated_;
};

}  // namespace device
