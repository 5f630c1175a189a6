// A library with the name and the exports of TensorRT's, and a registry that loads plugin libraries as the header says.
#include "fake_nvinfer.h"

#include <dlfcn.h>

#include <vector>

namespace {

using nvinfer1::IPluginCreatorInterface;
using nvinfer1::IPluginCreatorV3One;

fake_nvinfer::Logger logger;
fake_nvinfer::Finder finder(&logger);

class Registry : public nvinfer1::IPluginRegistry {
  public:
    ~Registry() noexcept override = default;
    void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(const char* path) noexcept override {
        void* handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
        if (handle == nullptr) {
            logger.log(nvinfer1::ILogger::Severity::kERROR, dlerror());
            return nullptr;
        }
        reinterpret_cast<void (*)(nvinfer1::ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"))(&finder);
        std::int32_t count = 0;
        auto* const* creators =
            reinterpret_cast<IPluginCreatorInterface* const* (*)(std::int32_t&)>(dlsym(handle, "getCreators"))(count);
        for (std::int32_t index = 0; index < count; ++index) {
            if (!registerCreator(*creators[index], "")) {
                return nullptr;
            }
            ++by_library_;
        }
        return handle;
    }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
    bool registerCreator(IPluginCreatorInterface& creator, const char*) noexcept override {
        auto& one = static_cast<IPluginCreatorV3One&>(creator);
        const Key key{one.getPluginName(), one.getPluginVersion(), one.getPluginNamespace()};
        const bool added = creators_.emplace(key, &creator).second;
        twice_ += added ? 0 : 1;
        return added;
    }
    IPluginCreatorInterface* const* getAllCreators(std::int32_t* const count) const noexcept override {
        *count = static_cast<std::int32_t>(creators_.size());
        return nullptr;
    }
    IPluginCreatorInterface* getCreator(const char* name, const char* version, const char* space) noexcept override {
        const auto found = creators_.find({name, version, space});
        return found == creators_.end() ? nullptr : found->second;
    }
    bool deregisterCreator(const IPluginCreatorInterface&) noexcept override { return false; }
    nvinfer1::IPluginResource* acquirePluginResource(const char*, nvinfer1::IPluginResource*) noexcept override {
        return nullptr;
    }
    std::int32_t releasePluginResource(const char*) noexcept override { return 1; }
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR > 9
    IPluginCreatorInterface* const* getAllCreatorsRecursive(std::int32_t* const count) noexcept override {
        return getAllCreators(count);
    }
#endif
#if NV_TENSORRT_MAJOR == 10
    // What version 11 took out.
    bool registerCreator(nvinfer1::IPluginCreator&, const char*) noexcept override { return false; }
    bool deregisterCreator(const nvinfer1::IPluginCreator&) noexcept override { return false; }
    nvinfer1::IPluginCreator* const* getPluginCreatorList(std::int32_t* const) const noexcept override { return nullptr; }
    nvinfer1::IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override { return nullptr; }
#endif
    // Creators that were offered when they were there already.
    int twice() const { return twice_; }
    // Creators that loadLibrary registered, and that deregisterLibrary would take back.
    int by_library() const { return by_library_; }

  private:
    using Key = std::tuple<std::string, std::string, std::string>;
    std::map<Key, IPluginCreatorInterface*> creators_;
    int twice_ = 0;
    int by_library_ = 0;
};

Registry registry;

}  // namespace

#define AFF_EXPORT extern "C" __attribute__((visibility("default")))

AFF_EXPORT nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    return &registry;
}
AFF_EXPORT nvinfer1::ILogger* getLogger() noexcept {
    return &logger;
}
AFF_EXPORT int fake_registered_twice() {
    return registry.twice();
}
AFF_EXPORT int fake_registered_by_library() {
    return registry.by_library();
}
AFF_EXPORT const char* fake_said() {
    static std::string said;
    said = logger.take();
    return said.c_str();
}
