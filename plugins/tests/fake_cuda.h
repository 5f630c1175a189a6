// A stand-in for CUDA's driver, for tests on machines without one: what it recorded, and what it shall do.
//
// Device memory is the host's. A launch executes the module's PTX (ptx/machine.h), or, for a text with notes (made.h), a
// version of the kernel written in C++ (fake_kernels.h), so that tests can choose blocks and variants without a compiler of
// kernels; or it only records, as the test wants.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct CUctx_st;
struct CUstream_st;

namespace fake_cuda {

struct Launch {
    std::string entry;
    unsigned int grid[3];
    unsigned int threads;
    unsigned int shared_bytes;
    CUstream_st* stream;
    CUctx_st* context;
    std::vector<std::uint64_t> arguments;  // narrower ones in the low bytes
};

struct State {
    int modules_loaded = 0;  // in all
    int modules_alive = 0;   // now
    int wrong_unloads = 0;   // in another context than the module's, or of no module
    std::vector<int> shared_bytes_asked;
    std::vector<Launch> launches;
};

State state();
// Forgets contexts, modules, records and failures, and makes one context current in the calling thread.
void reset();
CUctx_st* make_context();
CUctx_st* current();
void make_current(CUctx_st* context);
// The context goes, and its modules with it. The next one made gets its address.
void destroy(CUctx_st* context);
CUstream_st* stream();
// The named function answers `result` from its `after`-th call on (0: the next), until reset.
void fail(const std::string& function, int result, int after = 0);
void set_capability(int major, int minor);
void set_shared_memory(int bytes);
// Whether launches run their kernel.
void set_running(bool running);

}  // namespace fake_cuda
