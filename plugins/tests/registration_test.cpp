// How the plugins get registered: every way and order of loading the library, each in a process of its own.
//   registration_test WAY [WAY...]     ways: load_library, dlopen, without_tensorrt
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "checks.h"
#include "fake_nvinfer.h"

namespace {

constexpr std::int32_t kOperators = 48;

template <typename Function>
Function* symbol(void* handle, const char* name) {
    return reinterpret_cast<Function*>(dlsym(handle, name));
}

void check_registered(nvinfer1::IPluginRegistry& registry) {
    std::int32_t count = 0;
    static_cast<void>(registry.getAllCreators(&count));
    CHECK(count == kOperators);
    auto* creator =
        static_cast<nvinfer1::IPluginCreatorV3One*>(registry.getCreator("AttentionalFusionSilu", "1", "aff_deploy"));
    CHECK(creator != nullptr && registry.getCreator("AttentionalFusionSilu", "1", "") == nullptr);
    CHECK(creator != nullptr && creator->createPlugin("layer", nullptr, nvinfer1::TensorRTPhase::kBUILD) == nullptr);
}

}  // namespace

int main(int argc, char** argv) {
    // As Python's bindings load it: its symbols are not the process's.
    const bool without = argc > 1 && std::strcmp(argv[1], "without_tensorrt") == 0;
    void* tensorrt = without ? nullptr : dlopen(AFF_DEPLOY_FAKE_NVINFER, RTLD_NOW | RTLD_LOCAL);
    auto* registry = without ? nullptr : symbol<nvinfer1::IPluginRegistry*()>(tensorrt, "getPluginRegistry")();
    for (int index = 1; index < argc; ++index) {
        if (std::strcmp(argv[index], "load_library") == 0) {
            CHECK(registry->loadLibrary(AFF_DEPLOY_LIBRARY) != nullptr);
        } else {
            void* handle = dlopen(AFF_DEPLOY_LIBRARY, RTLD_NOW | RTLD_LOCAL);
            CHECK(handle != nullptr);
            if (without) {
                std::int32_t count = 0;
                symbol<nvinfer1::IPluginCreatorInterface* const*(std::int32_t&)>(handle, "getCreators")(count);
                CHECK(count == kOperators);
            } else {
                dlclose(handle);  // what is registered must stay
            }
        }
        if (registry != nullptr) {
            check_registered(*registry);
            CHECK(std::string(symbol<const char*()>(tensorrt, "fake_said")()).find("no fields") != std::string::npos);
            CHECK(symbol<int()>(tensorrt, "fake_registered_twice")() == 0);
        }
    }
    if (registry != nullptr && argc > 1) {
        // The first way registers: what load_library loads belongs to the library that it can unload again.
        const bool by_library = std::strcmp(argv[1], "load_library") == 0;
        CHECK(symbol<int()>(tensorrt, "fake_registered_by_library")() == (by_library ? kOperators : 0));
    }
    std::printf("%d failed\n", checks::failures());
    return argc > 1 && checks::failures() == 0 ? 0 : 1;
}
