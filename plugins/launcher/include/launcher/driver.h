// The part of CUDA's driver API that launching a kernel takes.
//
// Declared here and looked up at run time, not taken from cuda.h and linked: the library then builds without CUDA's
// toolkit and loads on a machine without NVIDIA's driver, where using it is an Error and not a crash. The ABI of these
// functions has not changed since CUDA 4; tests/abi_check.cpp compares every declaration with cuda.h where there is one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;

namespace aff_deploy::cuda {

using Context = CUctx_st*;
using Module = CUmod_st*;
using Function = CUfunc_st*;
using Stream = CUstream_st*;
using Result = int;

constexpr Result kSuccess = 0;

constexpr int kErrorLogBuffer = 5;
constexpr int kErrorLogBufferSizeBytes = 6;
constexpr int kMaxDynamicSharedSizeBytes = 8;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMaxSharedMemoryPerBlockOptin = 97;

// A loaded driver library. Frozen after construction, so it may be used from any number of threads.
struct Driver {
    // Opens the library and looks every function up; throws Error if one is missing.
    explicit Driver(const std::string& library = "libcuda.so.1");
    // The process's driver, opened by the first call that succeeds.
    static std::shared_ptr<const Driver> shared();

    Result (*init)(unsigned int flags);
    Result (*get_error_name)(Result error, const char** name);
    Result (*get_error_string)(Result error, const char** text);
    Result (*device_get_attribute)(int* value, int attribute, int device);
    Result (*ctx_get_current)(Context* context);
    Result (*ctx_get_device)(int* device);
    Result (*ctx_push_current)(Context context);
    Result (*ctx_pop_current)(Context* context);
    Result (*module_load_data_ex)(Module* module, const void* image, unsigned int count, int* options, void** values);
    Result (*module_unload)(Module module);
    Result (*module_get_function)(Function* function, Module module, const char* name);
    Result (*func_set_attribute)(Function function, int attribute, int value);
    Result (*launch_kernel)(Function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                            unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared_bytes,
                            Stream stream, void** arguments, void** extra);
    // From CUDA 12 on; null before. It tells a context from a later one at the same address.
    Result (*ctx_get_id)(Context context, unsigned long long* id);

    // Throws Error "<what>: CUDA_ERROR_..., <the driver's words>" unless the result is success.
    void check(Result result, const std::string& what) const;
    std::string describe(Result result) const;
};

// A context as a key: its address, and its number where the driver has one.
struct ContextKey {
    Context context;
    unsigned long long id;
    bool operator<(const ContextKey& other) const { return context != other.context ? context < other.context : id < other.id; }
    bool operator==(const ContextKey& other) const { return context == other.context && id == other.id; }
};

// The calling thread's current context; throws Error if it has none.
ContextKey current_context(const Driver& driver);

}  // namespace aff_deploy::cuda
