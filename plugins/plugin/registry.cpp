// How the creators get to TensorRT, whichever way the library is loaded.
//
// registry.load_library (and trtexec --dynamicPlugins) opens the library and then registers what getCreators returns; it
// fails if a creator is there already. Plain dlopen (Triton, ONNX Runtime, ctypes) calls nothing, so an initialiser must
// register. The initialiser also runs inside load_library, and tells the two apart by its callers: in load_library,
// TensorRT's library is among them. Then it leaves the creators to getCreators.
#include "registry.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <array>
#include <atomic>
#include <cstring>
#include <string>

#include "creator.h"
#include "logging.h"

namespace aff_deploy {
namespace {

std::atomic<bool> registered{false};

// The function, of whatever TensorRT runtime the process has loaded. Nothing is loaded for it: a lean runtime must stay lean.
void* find_symbol(const char* name) noexcept {
    if (void* found = dlsym(RTLD_DEFAULT, name)) {
        return found;
    }
    for (const char* library : {"libnvinfer.so.", "libnvinfer_lean.so.", "libnvinfer_dispatch.so."}) {
        std::array<char, 64> file{};
        std::snprintf(file.data(), file.size(), "%s%d", library, NV_TENSORRT_MAJOR);
        if (void* handle = dlopen(file.data(), RTLD_LAZY | RTLD_NOLOAD)) {
            void* found = dlsym(handle, name);
            dlclose(handle);  // gives back what RTLD_NOLOAD counted
            if (found != nullptr) {
                return found;
            }
        }
    }
    return nullptr;
}

bool tensorrt_is_loading_us() {
    std::array<void*, 128> frames{};
    const int count = backtrace(frames.data(), static_cast<int>(frames.size()));
    for (int index = 0; index < count; ++index) {
        Dl_info info{};
        if (dladdr(frames[static_cast<std::size_t>(index)], &info) == 0 || info.dli_fname == nullptr) {
            continue;
        }
        const char* slash = std::strrchr(info.dli_fname, '/');
        const char* file = slash == nullptr ? info.dli_fname : slash + 1;
        for (const char* library : {"libnvinfer.so", "libnvinfer_lean.so", "libnvinfer_dispatch.so"}) {
            if (std::strncmp(file, library, std::strlen(library)) == 0) {
                return true;
            }
        }
    }
    return false;
}

// The registry keeps pointers into this library: it must stay.
void stay_loaded() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(&stay_loaded), &info) != 0 && info.dli_fname != nullptr) {
        static_cast<void>(dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE));
    }
}

__attribute__((constructor)) void register_when_dlopened() {
    static_cast<void>(guarded("registering", 0, [] {
        nvinfer1::IPluginRegistry* registry = find_registry();
        if (registry == nullptr || tensorrt_is_loading_us()) {
            return 0;
        }
        registered.store(true);
        stay_loaded();
        for (nvinfer1::IPluginCreatorInterface* creator : all_creators()) {
            if (!registry->registerCreator(*creator, kNamespace)) {
                log(nvinfer1::ILogger::Severity::kWARNING,
                    "aff_deploy: a plugin is registered already: is the library loaded twice?");
                return 0;
            }
        }
        return 0;
    }));
}

}  // namespace

nvinfer1::IPluginRegistry* find_registry() noexcept {
    const auto function = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(find_symbol("getPluginRegistry"));
    return function == nullptr ? nullptr : function();
}

nvinfer1::ILogger* find_global_logger() noexcept {
    const auto function = reinterpret_cast<nvinfer1::ILogger* (*)()>(find_symbol("getLogger"));
    return function == nullptr ? nullptr : function();
}

bool registered_statically() noexcept {
    return registered.load();
}

}  // namespace aff_deploy
