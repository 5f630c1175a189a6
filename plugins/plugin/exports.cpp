// What registry.load_library looks for.
#include <NvInferRuntime.h>

#include "creator.h"
#include "logging.h"
#include "registry.h"

#define AFF_DEPLOY_EXPORT extern "C" __attribute__((visibility("default")))

AFF_DEPLOY_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    count = 0;
    return aff_deploy::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&count] {
        const auto& all = aff_deploy::all_creators();
        count = aff_deploy::registered_statically() ? 0 : static_cast<std::int32_t>(all.size());
        return all.data();
    });
}

AFF_DEPLOY_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
    aff_deploy::set_logger_finder(finder);
}
