// A kernel that is ready to launch, and its launch.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "launcher/driver.h"
#include "launcher/error.h"
#include "launcher/module.h"

namespace aff_deploy::cuda {

enum class Parameter { kPointer, kInt32, kFloat32 };

// What a kernel is before it meets a context: from a node's attributes.
struct KernelSource {
    Text ptx;
    std::string entry;
    std::vector<Parameter> parameters;  // what the caller is going to pass
    unsigned int threads = 0;           // of a block, one-dimensional
    unsigned int shared_bytes = 0;      // dynamic shared memory of a block
};

// Values of a launch, in the kernel's order. Pointers are device addresses.
class Arguments {
  public:
    static constexpr std::size_t kMost = 32;

    Arguments& pointer(const void* value) { return add(Parameter::kPointer, &value, sizeof value); }
    Arguments& int32(std::int32_t value) { return add(Parameter::kInt32, &value, sizeof value); }
    Arguments& float32(float value) { return add(Parameter::kFloat32, &value, sizeof value); }

    std::size_t size() const { return size_; }
    Parameter kind(std::size_t index) const { return kinds_[index]; }
    // For cuLaunchKernel: the address of every value.
    std::array<void*, kMost> addresses() {
        std::array<void*, kMost> all{};
        for (std::size_t index = 0; index < size_; ++index) {
            all[index] = &values_[index];
        }
        return all;
    }

  private:
    Arguments& add(Parameter kind, const void* value, std::size_t bytes) {
        require(size_ < kMost, [] { return "too many arguments for a launch"; });
        kinds_[size_] = kind;
        std::memcpy(&values_[size_], value, bytes);
        ++size_;
        return *this;
    }

    std::array<std::uint64_t, kMost> values_{};
    std::array<Parameter, kMost> kinds_{};
    std::size_t size_ = 0;
};

struct Grid {
    std::int64_t x = 1;
    std::int64_t y = 1;
    std::int64_t z = 1;
};

// Throws Error if the PTX itself shows that the kernel is not what the source says: no such entry, other parameters,
// other threads. Needs no driver.
void check_source(const KernelSource& source);

// Immutable; launching is thread-safe, as the driver is.
class Kernel {
  public:
    // Loads the kernel into the calling thread's context.
    Kernel(ModuleCache& cache, const KernelSource& source);

    // Queues the kernel on the stream, which must belong to the kernel's context.
    void launch(const Grid& grid, Stream stream, Arguments& arguments) const;
    const ContextKey& context() const { return module_->context(); }

  private:
    std::shared_ptr<const LoadedModule> module_;
    std::string entry_;
    std::vector<Parameter> parameters_;
    unsigned int threads_;
    unsigned int shared_bytes_;
    Function function_;
};

}  // namespace aff_deploy::cuda
