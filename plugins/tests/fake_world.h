// What the stand-in driver holds: shared by its controls (fake_cuda.cpp) and its functions (fake_driver.cpp).
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "fake_cuda.h"
#include "fake_kernels.h"
#include "ptx/machine.h"

struct CUctx_st {
    unsigned long long id;
    bool alive;
};
struct CUstream_st {
    int number;
};
struct CUmod_st {
    std::string ptx;
    std::vector<ptx::Program> kernels;
    CUctx_st* context;
    unsigned long long context_id;
};
struct CUfunc_st {
    ptx::Program program;
    fake_kernels::Constants constants;  // of the version in C++, which runs instead
    bool has_constants;
    CUctx_st* context;
};

namespace fake_cuda {

struct Failure {
    int result;
    int after;
};

struct World {
    std::recursive_mutex mutex;
    std::vector<std::unique_ptr<CUctx_st>> contexts;
    std::vector<CUctx_st*> free_contexts;
    std::set<std::unique_ptr<CUmod_st>> modules;
    std::vector<std::unique_ptr<CUfunc_st>> functions;
    std::map<std::string, Failure> failures;
    ptx::DeviceMemory memory;
    std::string fault;  // of the last launch that had one
    ptx::Counts counts;
    std::map<CUctx_st*, std::set<CUfunc_st*>> large;
    fake_cuda::State state;
    unsigned long long next_id = 1;
    int major = 8, minor = 0, shared_memory = 101376;
    bool running = true;
    CUstream_st stream{1};
};

World& world();

// The calling thread's contexts.
std::vector<CUctx_st*>& contexts_of_thread();

using Lock = std::lock_guard<std::recursive_mutex>;

}  // namespace fake_cuda
