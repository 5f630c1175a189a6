#include "launcher/driver.h"

#include <dlfcn.h>

#include <mutex>

#include "launcher/error.h"

namespace aff_deploy::cuda {
namespace {

// Never closed: the driver keeps threads and exit handlers of its own.
void* open_library(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* reason = dlerror();
        throw Error("CUDA's driver library cannot be loaded (" + std::string(reason == nullptr ? library : reason) +
                    "): install NVIDIA's driver");
    }
    return handle;
}

template <typename Function>
void find_optional(Function& function, void* handle, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
}

template <typename Function>
void find(Function& function, void* handle, const char* name) {
    find_optional(function, handle, name);
    require(function != nullptr, [&] { return "CUDA's driver library has no function " + std::string(name) + ": update it"; });
}

}  // namespace

Driver::Driver(const std::string& library) {
    void* handle = open_library(library);
    find(init, handle, "cuInit");
    find(get_error_name, handle, "cuGetErrorName");
    find(get_error_string, handle, "cuGetErrorString");
    find(device_get_attribute, handle, "cuDeviceGetAttribute");
    find(ctx_get_current, handle, "cuCtxGetCurrent");
    find(ctx_get_device, handle, "cuCtxGetDevice");
    find(ctx_push_current, handle, "cuCtxPushCurrent_v2");
    find(ctx_pop_current, handle, "cuCtxPopCurrent_v2");
    find(module_load_data_ex, handle, "cuModuleLoadDataEx");
    find(module_unload, handle, "cuModuleUnload");
    find(module_get_function, handle, "cuModuleGetFunction");
    find(func_set_attribute, handle, "cuFuncSetAttribute");
    find(launch_kernel, handle, "cuLaunchKernel");
    find_optional(ctx_get_id, handle, "cuCtxGetId");
    check(init(0), "starting CUDA");
}

std::shared_ptr<const Driver> Driver::shared() {
    static std::mutex mutex;
    static std::shared_ptr<const Driver> driver;
    const std::lock_guard<std::mutex> lock(mutex);
    if (driver == nullptr) {
        driver = std::make_shared<const Driver>();
    }
    return driver;
}

std::string Driver::describe(Result result) const {
    const char* name = nullptr;
    const char* text = nullptr;
    if (get_error_name(result, &name) != kSuccess || name == nullptr) {
        return "CUDA error " + std::to_string(result);
    }
    const bool explained = get_error_string(result, &text) == kSuccess && text != nullptr;
    return explained ? std::string(name) + ", " + text : name;
}

void Driver::check(Result result, const std::string& what) const {
    if (result != kSuccess) {
        throw Error(what + ": " + describe(result));
    }
}

ContextKey current_context(const Driver& driver) {
    ContextKey key{nullptr, 0};
    driver.check(driver.ctx_get_current(&key.context), "asking for the current CUDA context");
    require(key.context != nullptr, [] { return "this thread has no current CUDA context: call cudaSetDevice first"; });
    if (driver.ctx_get_id != nullptr) {
        driver.check(driver.ctx_get_id(key.context, &key.id), "asking for the CUDA context's number");
    }
    return key;
}

}  // namespace aff_deploy::cuda
