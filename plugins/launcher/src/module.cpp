#include "launcher/module.h"

#include <array>
#include <cstdint>
#include <functional>

#include "launcher/error.h"

namespace aff_deploy::cuda {
namespace {

constexpr std::size_t kLogBytes = 8192;

// "sm_90", for messages; empty if the driver does not say.
std::string capability(const Driver& driver) {
    int device = 0;
    int major = 0;
    int minor = 0;
    if (driver.ctx_get_device(&device) != kSuccess ||
        driver.device_get_attribute(&major, kComputeCapabilityMajor, device) != kSuccess ||
        driver.device_get_attribute(&minor, kComputeCapabilityMinor, device) != kSuccess) {
        return "";
    }
    return " for sm_" + std::to_string(major) + std::to_string(minor);
}

}  // namespace

LoadedModule::LoadedModule(std::shared_ptr<const Driver> driver, ContextKey context, const std::string& ptx)
    : driver_(std::move(driver)), context_(context) {
    // A NUL inside would hide the rest from the driver, which reads up to the first.
    require(!ptx.empty() && ptx.find('\0') == std::string::npos, [] { return "the kernel's PTX is empty or holds a NUL"; });
    std::array<char, kLogBytes> log{};
    std::array<int, 2> options{kErrorLogBuffer, kErrorLogBufferSizeBytes};
    // The driver takes an integer option in the place of the pointer itself.
    std::array<void*, 2> values{log.data(), reinterpret_cast<void*>(static_cast<std::uintptr_t>(log.size()))};
    const Result result = driver_->module_load_data_ex(&module_, ptx.c_str(), static_cast<unsigned int>(options.size()),
                                                       options.data(), values.data());
    if (result != kSuccess) {
        log.back() = '\0';
        const std::string said(log.data());
        throw Error("loading the kernel's PTX" + capability(*driver_) + ": " + driver_->describe(result) +
                    (said.empty() ? "" : "\n" + said));
    }
}

LoadedModule::~LoadedModule() {
    // A destructor has nobody to tell: a context that is gone took the module with it, and any other failure
    // leaves a module behind that goes with its context.
    if (driver_->ctx_push_current(context_.context) != kSuccess) {
        return;
    }
    unsigned long long id = context_.id;
    const bool same =
        driver_->ctx_get_id == nullptr || (driver_->ctx_get_id(context_.context, &id) == kSuccess && id == context_.id);
    if (same) {
        static_cast<void>(driver_->module_unload(module_));
    }
    Context popped = nullptr;
    static_cast<void>(driver_->ctx_pop_current(&popped));
}

Function LoadedModule::function(const std::string& name) const {
    Function function = nullptr;
    driver_->check(driver_->module_get_function(&function, module_, name.c_str()),
                   "looking for the kernel " + name + " in its PTX");
    return function;
}

ModuleCache& ModuleCache::shared() {
    // Made by the first call that finds a driver; a failure is thrown and tried again by the next call.
    static ModuleCache cache(Driver::shared());
    return cache;
}

std::shared_ptr<const LoadedModule> ModuleCache::load(const Text& ptx) {
    const ContextKey context = current_context(*driver_);
    const std::pair<ContextKey, std::size_t> key{context, std::hash<std::string>{}(*ptx)};
    // Held while loading, so that threads that want the same text translate it once.
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_ptr<const LoadedModule> found;
    for (auto entry = entries_.begin(); entry != entries_.end();) {
        auto module = entry->second.module.lock();
        if (module == nullptr) {
            entry = entries_.erase(entry);
            continue;
        }
        if (!(entry->first < key) && !(key < entry->first) && *entry->second.ptx == *ptx) {
            found = std::move(module);
        }
        ++entry;
    }
    if (found == nullptr) {
        found = std::make_shared<const LoadedModule>(driver_, context, *ptx);
        entries_.emplace(key, Entry{ptx, found});
    }
    return found;
}

}  // namespace aff_deploy::cuda
