#include "launcher/kernel.h"

#include "launcher/ptx.h"

namespace aff_deploy::cuda {
namespace {

constexpr unsigned int kMostThreads = 1024;
constexpr unsigned int kSharedBytesWithoutAsking = 48 * 1024;
constexpr std::int64_t kMostBlocksX = 2147483647;
constexpr std::int64_t kMostBlocksYZ = 65535;

const char* spelling(Parameter parameter) {
    switch (parameter) {
        case Parameter::kPointer:
            return "u64";
        case Parameter::kInt32:
            return "u32";
        default:
            return "f32";
    }
}

bool same(const std::string& in_ptx, Parameter expected) {
    const bool is_int = expected == Parameter::kInt32 && (in_ptx == "s32" || in_ptx == "b32");
    const bool is_pointer = expected == Parameter::kPointer && in_ptx == "b64";
    return in_ptx == spelling(expected) || is_int || is_pointer;
}

std::string listed(const std::vector<std::string>& types) {
    std::string text;
    for (const std::string& type : types) {
        text += (text.empty() ? "" : " ") + type;
    }
    return text;
}

void allow_shared_memory(const Driver& driver, Function function, unsigned int bytes, const std::string& entry) {
    if (bytes <= kSharedBytesWithoutAsking) {
        return;
    }
    int device = 0;
    int most = 0;
    driver.check(driver.ctx_get_device(&device), "asking for the current device");
    driver.check(driver.device_get_attribute(&most, kMaxSharedMemoryPerBlockOptin, device),
                 "asking for the device's shared memory");
    require(most >= 0 && bytes <= static_cast<unsigned int>(most), [&] {
        return "the kernel " + entry + " takes " + std::to_string(bytes) + " bytes of shared memory, this device has " +
               std::to_string(most);
    });
    driver.check(driver.func_set_attribute(function, kMaxDynamicSharedSizeBytes, static_cast<int>(bytes)),
                 "setting the shared memory of the kernel " + entry);
}

}  // namespace

void check_source(const KernelSource& source) {
    require(source.ptx != nullptr && !source.entry.empty(), [] { return "a kernel without PTX or name"; });
    require(source.threads > 0 && source.threads <= kMostThreads && source.threads % 32 == 0, [&] {
        return "the kernel " + source.entry + " has blocks of " + std::to_string(source.threads) +
               " threads: whole warps up to " + std::to_string(kMostThreads) + " can run";
    });
    const std::vector<std::string> found = entry_parameters(*source.ptx, source.entry);
    bool fits = found.size() == source.parameters.size();
    std::vector<std::string> expected;
    for (std::size_t index = 0; index < source.parameters.size(); ++index) {
        expected.emplace_back(spelling(source.parameters[index]));
        fits = fits && same(found[index], source.parameters[index]);
    }
    require(fits, [&] {
        return "the kernel " + source.entry + " takes (" + listed(found) + "), it would be given (" + listed(expected) +
               "): its PTX is from another version";
    });
    const unsigned int required = required_threads(*source.ptx, source.entry);
    require(required == 0 || required == source.threads, [&] {
        return "the kernel " + source.entry + " runs in blocks of " + std::to_string(required) + " threads, not " +
               std::to_string(source.threads);
    });
}

Kernel::Kernel(ModuleCache& cache, const KernelSource& source)
    : entry_(source.entry), parameters_(source.parameters), threads_(source.threads), shared_bytes_(source.shared_bytes) {
    check_source(source);
    module_ = cache.load(source.ptx);
    function_ = module_->function(entry_);
    allow_shared_memory(module_->driver(), function_, shared_bytes_, entry_);
}

void Kernel::launch(const Grid& grid, Stream stream, Arguments& arguments) const {
    bool fits = arguments.size() == parameters_.size();
    for (std::size_t index = 0; fits && index < parameters_.size(); ++index) {
        fits = arguments.kind(index) == parameters_[index];
    }
    require(fits, [&] { return "wrong arguments for the kernel " + entry_; });
    require(
        grid.x > 0 && grid.x <= kMostBlocksX && grid.y > 0 && grid.y <= kMostBlocksYZ && grid.z > 0 && grid.z <= kMostBlocksYZ,
        [&] {
            return "the kernel " + entry_ + " would need a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) +
                   " x " + std::to_string(grid.z) + " blocks";
        });
    auto addresses = arguments.addresses();
    const Driver& driver = module_->driver();
    driver.check(driver.launch_kernel(function_, static_cast<unsigned int>(grid.x), static_cast<unsigned int>(grid.y),
                                      static_cast<unsigned int>(grid.z), threads_, 1, 1, shared_bytes_, stream,
                                      addresses.data(), nullptr),
                 "launching the kernel " + entry_);
}

}  // namespace aff_deploy::cuda
