// A host as TensorRT is one, without TensorRT: opens the library, builds the plugin from fields, asks for formats and shapes,
// clones, serialises, enqueues on a GPU and compares with a reference that is computed elsewhere.
//
//   plugin_host CASE...      files that tests/plugins/cases.py writes
// Exit status: 0 passed, 1 failed, 77 skipped, with the reason.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "device.h"
#include "opened.h"

namespace {

using namespace opened;
using nvinfer1::PluginTensorDesc;

constexpr int kSkipped = 77;
constexpr std::size_t kGuardBytes = 4096;  // behind every buffer that is written
constexpr char kGuard = 0x5A;

struct Case {
    std::string name;
    std::string plugin;
    double tolerance = 0;
    Fields fields;
    std::vector<PluginTensorDesc> tensors;  // inputs, then the output
    std::vector<std::vector<char>> inputs;
    std::vector<double> expected;  // in the output's order of memory
};

DataType type_named(const std::string& name) {
    return name == "float32" ? DataType::kFLOAT : name == "float16" ? DataType::kHALF : DataType::kBF16;
}

TensorFormat format_named(const std::string& name) {
    return name == "HWC" ? TensorFormat::kHWC : name == "HWC8" ? TensorFormat::kHWC8 : TensorFormat::kLINEAR;
}

std::vector<char> bytes(std::istream& file, std::size_t count) {
    std::vector<char> data(count);
    file.read(data.data(), static_cast<std::streamsize>(count));
    if (!file) {
        throw std::runtime_error("the case file ends early");
    }
    return data;
}

// Lines of words; where a line says how many bytes, they follow it.
Case read_case(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    Case made;
    made.name = path;
    std::string line;
    while (std::getline(file, line) && line != "end") {
        std::istringstream words(line);
        std::string kind, name, type, format;
        std::size_t count = 0;
        words >> kind;
        if (kind == "plugin") {
            words >> made.plugin;
        } else if (kind == "tolerance") {
            words >> made.tolerance;
        } else if (kind == "field") {
            words >> name >> type >> count;
            const auto data = bytes(file, count);
            const auto as = type == "int32"     ? PluginFieldType::kINT32
                            : type == "float32" ? PluginFieldType::kFLOAT32
                                                : PluginFieldType::kCHAR;
            static std::list<std::string> names;
            names.push_back(name);
            made.fields.put(names.back().c_str(), as, data.data(), count, as == PluginFieldType::kCHAR ? count : count / 4);
        } else if (kind == "input" || kind == "output") {
            PluginTensorDesc desc{};
            words >> type >> format >> count >> desc.dims.nbDims;
            for (int axis = 0; axis < desc.dims.nbDims && axis < nvinfer1::Dims::MAX_DIMS; ++axis) {
                words >> desc.dims.d[axis];
            }
            desc.type = type_named(type);
            desc.format = format_named(format);
            made.tensors.push_back(desc);
            const auto data = bytes(file, count);
            if (kind == "input") {
                made.inputs.push_back(data);
            } else {
                made.expected.resize(count / sizeof(double));
                std::memcpy(made.expected.data(), data.data(), count);
            }
        }
        if (!words) {
            throw std::runtime_error("not a line of a case file: " + line);
        }
    }
    if (line != "end" || made.expected.empty()) {
        throw std::runtime_error(path + " is not a case file");
    }
    return made;
}

void need(bool condition, const std::string& what) {
    if (!condition) {
        throw std::runtime_error(what);
    }
}

std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic(const std::vector<PluginTensorDesc>& tensors) {
    std::vector<nvinfer1::DynamicPluginTensorDesc> all;
    for (const PluginTensorDesc& desc : tensors) {
        all.push_back({desc, desc.dims, desc.dims, desc.dims});
    }
    return all;
}

// As the engine does it: what the build phase's plugin serialises makes the one that runs.
Plugin through_an_engine(Library& library, Case& given, std::size_t& workspace_bytes) {
    auto* creator = library.creator(given.plugin);
    Plugin plugin(creator->createPlugin("layer", given.fields.view(), nvinfer1::TensorRTPhase::kBUILD));
    const auto inputs = static_cast<std::int32_t>(given.inputs.size());
    const auto all = dynamic(given.tensors);
    for (std::int32_t position = 0; position <= inputs; ++position) {
        need(plugin.build->supportsFormatCombination(position, all.data(), inputs, 1), "format " + std::to_string(position));
    }
    std::vector<DataType> types;
    for (const auto& tensor : given.tensors) {
        types.push_back(tensor.type);
    }
    DataType out = DataType::kINT8;
    need(plugin.build->getOutputDataTypes(&out, 1, types.data(), inputs) == 0 && out == types.back(), "output type");
    std::list<fake_nvinfer::Dimension> sizes;
    std::vector<nvinfer1::DimsExprs> shapes;
    for (const auto& tensor : given.tensors) {
        shapes.push_back({});
        shapes.back().nbDims = tensor.dims.nbDims;
        for (std::int32_t axis = 0; axis < tensor.dims.nbDims; ++axis) {
            sizes.emplace_back(tensor.dims.d[axis]);
            shapes.back().d[axis] = &sizes.back();
        }
    }
    nvinfer1::DimsExprs shape{};
    fake_nvinfer::Builder builder;
    need(plugin.build->getOutputShapes(shapes.data(), inputs, nullptr, 0, &shape, 1, builder) == 0, "output shape");
    for (std::int32_t axis = 0; axis < shape.nbDims; ++axis) {
        need(shape.d[axis]->getConstantValue() == given.tensors.back().dims.d[axis], "output shape");
    }
    need(plugin.build->configurePlugin(all.data(), inputs, &all.back(), 1) == 0, "configurePlugin");
    workspace_bytes = plugin.build->getWorkspaceSize(all.data(), inputs, &all.back(), 1);
    const Plugin clone(plugin.whole->clone());
    plugin.whole.reset();
    const auto* fields = clone.runtime->getFieldsToSerialize();
    Fields kept;
    for (std::int32_t index = 0; index < fields->nbFields; ++index) {
        const PluginField& field = fields->fields[index];
        const auto length = static_cast<std::size_t>(field.length);
        kept.put(field.name, field.type, field.data, field.type == PluginFieldType::kCHAR ? length : 4 * length, length);
    }
    const Plugin loaded(creator->createPlugin("layer", kept.view(), nvinfer1::TensorRTPhase::kRUNTIME));
    return Plugin(loaded.runtime->attachToContext(nullptr));
}

double value(const std::vector<char>& data, std::size_t index, DataType type) {
    return static_cast<double>(fake_kernels::read(data.data(), static_cast<std::int64_t>(index),
                                                  type == DataType::kFLOAT  ? 0
                                                  : type == DataType::kHALF ? 1
                                                                            : 2));
}

bool untouched(const std::vector<char>& data, std::size_t from) {
    return std::all_of(data.begin() + static_cast<std::ptrdiff_t>(from), data.end(), [](char byte) { return byte == kGuard; });
}

// The largest difference from what is expected, in tolerances.
double run(device::Gpu& gpu, Library& library, Case& given, fake_nvinfer::Logger& logger) {
    std::size_t workspace_bytes = 0;
    Plugin plugin = through_an_engine(library, given, workspace_bytes);
    const auto inputs = static_cast<std::int32_t>(given.inputs.size());
    const PluginTensorDesc* in = given.tensors.data();
    const PluginTensorDesc* out = &given.tensors.back();
    std::vector<const void*> addresses;
    for (const auto& input : given.inputs) {
        addresses.push_back(gpu.upload(input));
    }
    const std::size_t out_bytes = given.expected.size() * (out->type == DataType::kFLOAT ? 4 : 2);
    void* result = gpu.upload(std::vector<char>(out_bytes + kGuardBytes, kGuard));
    // Not zeros: what the kernels read they must have written.
    void* workspace = gpu.upload(std::vector<char>(workspace_bytes + kGuardBytes, kGuard));
    const auto enqueue = [&](void* scratch, device::Stream stream) {
        return plugin.runtime->enqueue(in, out, addresses.data(), &result, scratch, stream);
    };
    need(plugin.runtime->onShapeChange(in, inputs, out, 1) == 0, "onShapeChange");
    need(enqueue(workspace, nullptr) != 0 && !logger.take().empty(), "a null stream must be refused");
    need(enqueue(nullptr, gpu.stream) != 0 && !logger.take().empty(), "a null workspace must be refused");
    need(enqueue(workspace, gpu.stream) == 0, "enqueue");
    gpu.wait();
    const std::vector<char> first = gpu.read(result, out_bytes + kGuardBytes);
    need(untouched(first, out_bytes), "bytes behind the output were written");
    need(untouched(gpu.read(workspace, workspace_bytes + kGuardBytes), workspace_bytes),
         "bytes behind the workspace were written");
    need(enqueue(workspace, gpu.stream) == 0, "a second enqueue");
    gpu.wait();
    need(gpu.read(result, out_bytes + kGuardBytes) == first, "a second run gave other bits");
    for (std::size_t index = 0; index < given.inputs.size(); ++index) {
        need(gpu.read(addresses[index], given.inputs[index].size()) == given.inputs[index], "an input was written");
    }
    double worst = 0;
    for (std::size_t index = 0; index < given.expected.size(); ++index) {
        const double found = value(first, index, out->type);
        worst = std::isfinite(found) ? std::max(worst, std::fabs(found - given.expected[index])) : HUGE_VAL;
    }
    return worst / given.tolerance;
}

// PTX that the driver itself must refuse: past our own reader, with an instruction that there is not.
void check_broken_ptx(Library& library, Case& given, fake_nvinfer::Logger& logger) {
    Fields broken = given.fields;
    PluginField& text = broken.at("kernels_text");
    std::string all(static_cast<const char*>(text.data), static_cast<std::size_t>(text.length));
    for (std::size_t at = all.find("\tret;"); at != std::string::npos; at = all.find("\tret;", at)) {
        all.replace(at, 5, "\tRET;");
    }
    for (std::size_t at = all.find(".version"); at != std::string::npos; at = all.find(".version", at)) {
        all.replace(at, 8, ".verSION");
    }
    text.data = all.data();
    Plugin plugin(library.creator(given.plugin)->createPlugin("layer", broken.view(), nvinfer1::TensorRTPhase::kRUNTIME));
    logger.take();
    const auto inputs = static_cast<std::int32_t>(given.inputs.size());
    const bool refused = plugin.runtime->onShapeChange(given.tensors.data(), inputs, &given.tensors.back(), 1) != 0;
    need(refused && logger.take().find("CUDA_ERROR_INVALID_PTX") != std::string::npos, "broken PTX must be refused");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::printf("usage: plugin_host CASE...\nskipped: no case files: python -m tests.plugins.cases FOLDER writes them\n");
        return kSkipped;
    }
    try {
        device::Gpu gpu;
        std::printf("on %s\n", gpu.name.c_str());
        fake_nvinfer::Logger logger;
        fake_nvinfer::Finder finder(&logger);
        Library library(AFF_DEPLOY_LIBRARY, &finder);
        int failed = 0;
        for (int index = 1; index < argc; ++index) {
            try {
                Case given = read_case(argv[index]);
                const double worst = run(gpu, library, given, logger);
                check_broken_ptx(library, given, logger);
                failed += worst <= 1 ? 0 : 1;
                std::printf("%s %s: largest error %.3g of the tolerance\n", worst <= 1 ? "passed" : "FAILED", argv[index],
                            worst);
            } catch (const std::exception& error) {
                ++failed;
                std::printf("FAILED %s: %s\n%s", argv[index], error.what(), logger.take().c_str());
            }
        }
        library.set_finder(nullptr);
        std::printf("%d passed, %d failed\n", argc - 1 - failed, failed);
        return failed == 0 ? 0 : 1;
    } catch (const device::NoGpu& reason) {
        std::printf("skipped: no GPU: %s\n", reason.what());
        return kSkipped;
    }
}
