// PTX loaded into CUDA contexts, once per context and text, for as long as somebody holds it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "launcher/driver.h"

namespace aff_deploy::cuda {

// A text that many may share: the PTX of a network's fusions is mostly the same.
using Text = std::shared_ptr<const std::string>;

// One PTX text in one context. Unloads when it goes, unless its context went first.
class LoadedModule {
  public:
    // Translates and loads in the current context. On failure the Error carries the driver's compiler's log.
    LoadedModule(std::shared_ptr<const Driver> driver, ContextKey context, const std::string& ptx);
    ~LoadedModule();
    LoadedModule(const LoadedModule&) = delete;
    LoadedModule& operator=(const LoadedModule&) = delete;

    Function function(const std::string& name) const;
    const Driver& driver() const { return *driver_; }
    const ContextKey& context() const { return context_; }

  private:
    std::shared_ptr<const Driver> driver_;
    ContextKey context_;
    Module module_ = nullptr;
};

// Thread-safe. Holds no module itself: the last of those who asked for one unloads it.
class ModuleCache {
  public:
    explicit ModuleCache(std::shared_ptr<const Driver> driver) : driver_(std::move(driver)) {}
    // The process's cache over Driver::shared().
    static ModuleCache& shared();

    // The module of this text in the calling thread's current context.
    std::shared_ptr<const LoadedModule> load(const Text& ptx);

  private:
    struct Entry {
        Text ptx;
        std::weak_ptr<const LoadedModule> module;
    };
    std::shared_ptr<const Driver> driver_;
    std::mutex mutex_;
    std::multimap<std::pair<ContextKey, std::size_t>, Entry> entries_;
};

}  // namespace aff_deploy::cuda
