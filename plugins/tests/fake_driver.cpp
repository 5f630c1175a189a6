// The driver's functions as the stand-in has them.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <sstream>

#include "fake_world.h"

namespace {

using fake_cuda::Lock;
using fake_cuda::World;
using fake_cuda::world;

constexpr int kInvalidValue = 1, kInvalidContext = 201, kInvalidPtx = 218, kNotFound = 500, kOutOfMemory = 2,
              kLaunchFailed = 719;

// The injected result, or 0.
int injected(const char* function) {
    const auto found = world().failures.find(function);
    if (found == world().failures.end()) {
        return 0;
    }
    return found->second.after-- > 0 ? 0 : found->second.result;
}

// What is for one architecture runs on it alone, the others on later ones too.
void check_target(const ptx::Program& program) {
    const int device = 10 * world().major + world().minor;
    if (program.specific ? device != program.capability : device < program.capability) {
        throw ptx::Invalid("PTX for sm_" + std::to_string(program.capability) + (program.specific ? "a" : "") +
                           " on a device of sm_" + std::to_string(device));
    }
}

bool read_constants(const std::string& ptx, fake_kernels::Constants& k) {
    const std::size_t at = ptx.find("// fake:");
    if (at == std::string::npos) {
        return false;
    }
    std::istringstream words(ptx.substr(at + 8, ptx.find('\n', at) - at - 8));
    for (std::string word; words >> word;) {
        const std::size_t equals = word.find('=');
        const std::string name = word.substr(0, equals);
        const int value = std::atoi(word.c_str() + equals + 1);
        const std::map<std::string, bool*> flags{{"channels_last", &k.channels_last},
                                                 {"sum", &k.sum},
                                                 {"blend", &k.blend},
                                                 {"silu", &k.silu},
                                                 {"hard", &k.hard},
                                                 {"local", &k.local},
                                                 {"global", &k.global}};
        const std::map<std::string, int*> numbers{
            {"dtype", &k.dtype},     {"channels", &k.channels}, {"context_channels", &k.context_channels},
            {"inter", &k.inter},     {"block_i", &k.block_i},   {"block_p", &k.block_p},
            {"block_k", &k.block_k}, {"block_c", &k.block_c},   {"block_e", &k.block_e},
            {"span_c", &k.span_c}};
        if (flags.count(name) != 0) {
            *flags.at(name) = value != 0;
        } else if (numbers.count(name) != 0) {
            *numbers.at(name) = value;
        } else {
            return false;
        }
    }
    return true;
}

}  // namespace

#define BEGIN(name)                           \
    const Lock lock(world().mutex);           \
    if (const int result = injected(#name)) { \
        return result;                        \
    }

extern "C" {

int cuInit(unsigned int) {
    BEGIN(cuInit) return 0;
}

int cuGetErrorName(int error, const char** name) {
    static const std::map<int, const char*> names{{1, "CUDA_ERROR_INVALID_VALUE"},     {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                                  {201, "CUDA_ERROR_INVALID_CONTEXT"}, {218, "CUDA_ERROR_INVALID_PTX"},
                                                  {500, "CUDA_ERROR_NOT_FOUND"},       {719, "CUDA_ERROR_LAUNCH_FAILED"}};
    const auto found = names.find(error);
    *name = found == names.end() ? nullptr : found->second;
    return found == names.end() ? kInvalidValue : 0;
}

int cuGetErrorString(int, const char** text) {
    *text = "as the stand-in was told";
    return 0;
}

int cuDeviceGetCount(int* count) {
    *count = 1;
    return 0;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return 0;
}

int cuDeviceGetName(char* name, int bytes, int) {
    std::strncpy(name, "stand-in", static_cast<std::size_t>(bytes));
    return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
    BEGIN(cuDeviceGetAttribute)
    *value = attribute == 75 ? world().major : attribute == 76 ? world().minor : attribute == 97 ? world().shared_memory : 0;
    return 0;
}

int cuDevicePrimaryCtxRetain(CUctx_st** context, int) {
    static CUctx_st* primary = fake_cuda::make_context();
    *context = primary;
    return 0;
}

int cuCtxSetCurrent(CUctx_st* context) {
    fake_cuda::make_current(context);
    return 0;
}

int cuCtxGetCurrent(CUctx_st** context) {
    BEGIN(cuCtxGetCurrent)
    *context = fake_cuda::contexts_of_thread().empty() ? nullptr : fake_cuda::contexts_of_thread().back();
    return 0;
}

int cuCtxGetDevice(int* device) {
    BEGIN(cuCtxGetDevice)
    *device = 0;
    return fake_cuda::contexts_of_thread().empty() ? kInvalidContext : 0;
}

int cuCtxGetId(CUctx_st* context, unsigned long long* id) {
    BEGIN(cuCtxGetId)
    *id = context->id;
    return context->alive ? 0 : kInvalidContext;
}

int cuCtxPushCurrent_v2(CUctx_st* context) {
    BEGIN(cuCtxPushCurrent_v2)
    if (!context->alive) {
        return kInvalidContext;
    }
    fake_cuda::contexts_of_thread().push_back(context);
    return 0;
}

int cuCtxPopCurrent_v2(CUctx_st** context) {
    BEGIN(cuCtxPopCurrent_v2)
    if (fake_cuda::contexts_of_thread().empty()) {
        return kInvalidContext;
    }
    *context = fake_cuda::contexts_of_thread().back();
    fake_cuda::contexts_of_thread().pop_back();
    return 0;
}

int cuModuleLoadDataEx(CUmod_st** module, const void* image, unsigned int count, int* options, void** values) {
    const Lock lock(world().mutex);
    int result = injected("cuModuleLoadDataEx");
    std::string said = "stand-in error";
    const std::string text(static_cast<const char*>(image));
    std::vector<ptx::Program> kernels;
    if (result == 0) {
        try {
            kernels = ptx::read(text);
            check_target(kernels.front());
        } catch (const ptx::Invalid& error) {
            result = kInvalidPtx;
            said = error.what();
        }
    }
    if (result != 0) {
        char* log = nullptr;
        std::size_t bytes = 0;
        for (unsigned int index = 0; index < count; ++index) {
            log = options[index] == 5 ? static_cast<char*>(values[index]) : log;
            bytes = options[index] == 6 ? reinterpret_cast<std::uintptr_t>(values[index]) : bytes;
        }
        if (log != nullptr) {
            std::strncpy(log, ("ptxas application ptx input; fatal: " + said).c_str(), bytes);
        }
        return result;
    }
    if (fake_cuda::contexts_of_thread().empty()) {
        return kInvalidContext;
    }
    auto made = std::make_unique<CUmod_st>(
        CUmod_st{text, std::move(kernels), fake_cuda::contexts_of_thread().back(), fake_cuda::contexts_of_thread().back()->id});
    *module = made.get();
    world().modules.insert(std::move(made));
    ++world().state.modules_loaded;
    ++world().state.modules_alive;
    return 0;
}

int cuModuleUnload(CUmod_st* module) {
    BEGIN(cuModuleUnload)
    World& w = world();
    const auto found = std::find_if(w.modules.begin(), w.modules.end(), [&](const auto& held) { return held.get() == module; });
    if (found == w.modules.end() || fake_cuda::contexts_of_thread().empty() ||
        fake_cuda::contexts_of_thread().back() != module->context ||
        fake_cuda::contexts_of_thread().back()->id != module->context_id) {
        ++w.state.wrong_unloads;
        return kInvalidValue;
    }
    w.modules.erase(found);
    --w.state.modules_alive;
    return 0;
}

int cuModuleGetFunction(CUfunc_st** function, CUmod_st* module, const char* name) {
    BEGIN(cuModuleGetFunction)
    const auto found = std::find_if(module->kernels.begin(), module->kernels.end(),
                                    [name](const ptx::Program& program) { return program.entry == name; });
    if (found == module->kernels.end()) {
        return kNotFound;
    }
    auto made = std::make_unique<CUfunc_st>(CUfunc_st{*found, {}, false, module->context});
    made->has_constants = read_constants(module->ptx, made->constants);
    *function = made.get();
    world().functions.push_back(std::move(made));
    return 0;
}

int cuFuncSetAttribute(CUfunc_st* function, int attribute, int value) {
    BEGIN(cuFuncSetAttribute)
    if (attribute != 8 || value > world().shared_memory) {
        return kInvalidValue;
    }
    world().state.shared_bytes_asked.push_back(value);
    world().large[function->context].insert(function);
    return 0;
}

int cuLaunchKernel(CUfunc_st* function, unsigned int x, unsigned int y, unsigned int z, unsigned int threads,
                   unsigned int threads_y, unsigned int threads_z, unsigned int shared_bytes, CUstream_st* stream,
                   void** arguments, void** extra) {
    BEGIN(cuLaunchKernel)
    World& w = world();
    const bool may_be_large = w.large[function->context].count(function) != 0;
    if (fake_cuda::contexts_of_thread().empty() || fake_cuda::contexts_of_thread().back() != function->context ||
        threads_y != 1 || threads_z != 1 || extra != nullptr || (shared_bytes > 48 * 1024 && !may_be_large) ||
        (function->program.threads != 0 && function->program.threads != threads)) {
        return kInvalidValue;
    }
    std::vector<std::uint64_t> values(function->program.parameter_bytes.size());
    for (std::size_t index = 0; index < values.size(); ++index) {
        std::memcpy(&values[index], arguments[index], function->program.parameter_bytes[index]);
    }
    w.state.launches.push_back({function->program.entry, {x, y, z}, threads, shared_bytes, stream, function->context, values});
    if (!w.running) {
        return 0;
    }
    if (y != 1 || z != 1) {
        return kInvalidValue;  // a grid that none of our kernels has
    }
    if (function->has_constants) {
        fake_kernels::run(function->program.entry, function->constants, values, x);
        return 0;
    }
    try {
        w.counts = ptx::run(function->program, {x, threads, shared_bytes, values}, w.memory);
    } catch (const ptx::Fault& fault) {
        w.fault = fault.what();
        std::fprintf(stderr, "stand-in driver: %s\n", fault.what());
        return kLaunchFailed;
    }
    return 0;
}

int cuMemAlloc_v2(void** pointer, std::size_t bytes) {
    BEGIN(cuMemAlloc)
    try {
        *pointer = world().memory.allocate(bytes);
    } catch (const std::bad_alloc&) {
        return kOutOfMemory;
    }
    return 0;
}

int cuMemFree_v2(void* pointer) {
    const Lock lock(world().mutex);
    return world().memory.free(pointer) ? 0 : kInvalidValue;
}

int cuMemcpyHtoD_v2(void* to, const void* from, std::size_t bytes) {
    const Lock lock(world().mutex);
    try {
        world().memory.fill(to, from, bytes);
    } catch (const ptx::Fault& fault) {
        world().fault = fault.what();
        return kInvalidValue;
    }
    return 0;
}

int cuMemcpyDtoH_v2(void* to, const void* from, std::size_t bytes) {
    std::memcpy(to, from, bytes);
    return 0;
}

int cuStreamCreate(CUstream_st** stream, unsigned int) {
    *stream = fake_cuda::stream();
    return 0;
}

int cuStreamSynchronize(CUstream_st*) {
    return 0;
}

int cuStreamDestroy_v2(CUstream_st*) {
    return 0;
}

// Beyond the driver's functions, for whoever opens the stand-in from another language.

void stand_in_set_capability(int major, int minor) {
    fake_cuda::set_capability(major, minor);
}

// What was wrong with the last launch that failed, in words.
const char* stand_in_fault() {
    return world().fault.c_str();
}

// Of the last launch, in instructions of a warp: all, products of matrices, and passes through the banks of shared memory, as
// they were and as they would be without conflicts.
void stand_in_counts(std::uint64_t* counts) {
    const ptx::Counts& made = world().counts;
    const std::uint64_t all[] = {made.instructions, made.products, made.shared_turns, made.shared_turns_least};
    std::copy(std::begin(all), std::end(all), counts);
}

// Of an allocation since it was made: sectors read, fetched and written (ptx/memory.h).
void stand_in_traffic(void* address, std::uint64_t* sectors) {
    const ptx::Traffic traffic = world().memory.traffic(reinterpret_cast<std::uint64_t>(address));
    sectors[0] = traffic.read;
    sectors[1] = traffic.fetched;
    sectors[2] = traffic.written;
}

}  // extern "C"
