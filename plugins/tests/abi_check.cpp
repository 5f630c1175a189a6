// Compared by the compiler alone: our declarations of the driver's functions with cuda.h's own.
#include <cuda.h>

#include <type_traits>
#include <utility>

#include "launcher/driver.h"

namespace {

using namespace aff_deploy::cuda;

// What a type is once cuda.h's enumerations are the integers that they are passed as.
template <typename T, bool = std::is_enum_v<T>>
struct Plain {
    using Type = T;
};
template <typename T>
struct Plain<T, true> {
    using Type = int;
    static_assert(sizeof(T) == sizeof(int));
};
template <typename T>
struct Plain<T*, false> {
    using Type = typename Plain<T>::Type*;
};

template <typename Ours, typename Theirs>
struct Same : std::false_type {};
template <typename R1, typename... A1, typename R2, typename... A2>
struct Same<R1 (*)(A1...), R2 (*)(A2...)> {
    template <typename... T>
    struct List {};
    static constexpr bool value =
        std::is_same_v<R1, typename Plain<R2>::Type> && std::is_same_v<List<A1...>, List<typename Plain<A2>::Type...>>;
};

#define SAME(member, function) static_assert(Same<decltype(Driver::member), decltype(&function)>::value, #function)
SAME(init, cuInit);
SAME(get_error_name, cuGetErrorName);
SAME(get_error_string, cuGetErrorString);
SAME(device_get_attribute, cuDeviceGetAttribute);
SAME(ctx_get_current, cuCtxGetCurrent);
SAME(ctx_get_device, cuCtxGetDevice);
SAME(ctx_push_current, cuCtxPushCurrent_v2);
SAME(ctx_pop_current, cuCtxPopCurrent_v2);
SAME(ctx_get_id, cuCtxGetId);
SAME(module_load_data_ex, cuModuleLoadDataEx);
SAME(module_unload, cuModuleUnload);
SAME(module_get_function, cuModuleGetFunction);
SAME(func_set_attribute, cuFuncSetAttribute);
SAME(launch_kernel, cuLaunchKernel);

static_assert(kSuccess == CUDA_SUCCESS);
static_assert(kErrorLogBuffer == CU_JIT_ERROR_LOG_BUFFER);
static_assert(kErrorLogBufferSizeBytes == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
static_assert(kMaxDynamicSharedSizeBytes == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kComputeCapabilityMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kComputeCapabilityMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kMaxSharedMemoryPerBlockOptin == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);

}  // namespace
