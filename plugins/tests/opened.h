// The library opened as TensorRT opens it, and what TensorRT would hand to its plugins.
#pragma once

#include <dlfcn.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fake_nvinfer.h"
#include "made.h"

namespace opened {

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;
using nvinfer1::TensorFormat;

class Library {
  public:
    explicit Library(const std::string& path, nvinfer1::ILoggerFinder* finder) {
        void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) {
            throw std::runtime_error(dlerror());
        }
        get_creators_ = reinterpret_cast<GetCreators>(dlsym(handle, "getCreators"));
        set_finder = reinterpret_cast<SetFinder>(dlsym(handle, "setLoggerFinder"));
        if (get_creators_ == nullptr || set_finder == nullptr) {
            throw std::runtime_error("no getCreators or setLoggerFinder in " + path);
        }
        set_finder(finder);
    }
    std::vector<nvinfer1::IPluginCreatorV3One*> creators() const {
        std::int32_t count = -1;
        auto* const* all = get_creators_(count);
        std::vector<nvinfer1::IPluginCreatorV3One*> found;
        for (std::int32_t index = 0; index < count; ++index) {
            if (std::string(all[index]->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") {
                throw std::runtime_error("a creator of another kind");
            }
            found.push_back(static_cast<nvinfer1::IPluginCreatorV3One*>(all[index]));
        }
        return found;
    }
    nvinfer1::IPluginCreatorV3One* creator(const std::string& name) const {
        for (auto* one : creators()) {
            if (name == one->getPluginName()) {
                return one;
            }
        }
        throw std::runtime_error("no creator of " + name);
    }

  private:
    using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(std::int32_t&);
    using SetFinder = void (*)(nvinfer1::ILoggerFinder*);
    GetCreators get_creators_;

  public:
    SetFinder set_finder;
};

// Fields that own their data. Strings end in a NUL that counts, as the ONNX parser makes them.
struct Fields {
    std::list<std::vector<char>> data;
    std::vector<PluginField> fields;
    nvinfer1::PluginFieldCollection collection{};

    void put(const char* name, PluginFieldType type, const void* from, std::size_t bytes, std::size_t length) {
        const char* begin = static_cast<const char*>(from);
        data.emplace_back(begin, begin + bytes);
        data.back().resize(std::max<std::size_t>(bytes, 1));
        fields.emplace_back(name, data.back().data(), type, static_cast<std::int32_t>(length));
    }
    void integers(const char* name, const std::vector<std::int32_t>& values) {
        put(name, PluginFieldType::kINT32, values.data(), 4 * values.size(), values.size());
    }
    void string(const char* name, const std::string& value) {
        put(name, PluginFieldType::kCHAR, value.c_str(), value.size() + 1, value.size() + 1);
    }
    void number(const char* name, float value) { put(name, PluginFieldType::kFLOAT32, &value, 4, 1); }
    PluginField& at(const std::string& name) {
        for (PluginField& field : fields) {
            if (name == field.name) {
                return field;
            }
        }
        throw std::runtime_error("no field " + name);
    }
    const nvinfer1::PluginFieldCollection* view() {
        collection = {static_cast<std::int32_t>(fields.size()), fields.data()};
        return &collection;
    }
};

inline Fields fields_of(const made::Variant& variant, const made::Sizes& sizes, float scale, const made::Kernels& kernels) {
    Fields made;
    made.integers("kernels_contract", {2});
    made.integers("kernels_branches", {(variant.local ? 1 : 0) + (variant.global ? 2 : 0)});
    made.integers("kernels_blend", {variant.blend ? 1 : 0});
    made.integers("context_channels", {static_cast<std::int32_t>(sizes.context_channels)});
    made.integers("channels", {static_cast<std::int32_t>(sizes.channels)});
    made.integers("inter_channels", {static_cast<std::int32_t>(sizes.inter)});
    made.number("scale", scale);
    made.string("context", variant.explicit_context ? "explicit" : variant.blend ? "sum" : "self");
    made.string("activation", variant.silu ? "Silu" : "Relu");
    made.string("gate", variant.hard_sigmoid ? "HardSigmoid" : "Sigmoid");
    made.integers("kernels_table", kernels.table);
    made.string("kernels_text", kernels.text);
    return made;
}

// A plugin and its three capabilities; deleted as TensorRT does.
struct Plugin {
    std::unique_ptr<nvinfer1::IPluginV3> whole;
    nvinfer1::IPluginV3OneCore* core = nullptr;
    nvinfer1::IPluginV3OneBuild* build = nullptr;
    nvinfer1::IPluginV3OneRuntime* runtime = nullptr;

    explicit Plugin(nvinfer1::IPluginV3* made) : whole(made) {
        if (made == nullptr) {
            throw std::runtime_error("no plugin was made");
        }
        using Kind = nvinfer1::PluginCapabilityType;
        core = static_cast<nvinfer1::IPluginV3OneCore*>(made->getCapabilityInterface(Kind::kCORE));
        build = static_cast<nvinfer1::IPluginV3OneBuild*>(made->getCapabilityInterface(Kind::kBUILD));
        runtime = static_cast<nvinfer1::IPluginV3OneRuntime*>(made->getCapabilityInterface(Kind::kRUNTIME));
    }
};

inline DataType data_type(made::Type type) {
    return type == made::Type::kFloat32 ? DataType::kFLOAT : type == made::Type::kFloat16 ? DataType::kHALF : DataType::kBF16;
}

inline TensorFormat format(made::Type type, made::Layout layout) {
    const bool linear = layout == made::Layout::kLinear;
    return linear ? TensorFormat::kLINEAR : type == made::Type::kFloat32 ? TensorFormat::kHWC : TensorFormat::kHWC8;
}

// The tensors of a call as TensorRT describes them: inputs, then the output. `positions` must be height times 1.
struct Descriptions {
    std::vector<nvinfer1::PluginTensorDesc> all;

    Descriptions(const made::Variant& variant, const made::Sizes& sizes, made::Type type, made::Layout layout) {
        const auto add = [&](const std::vector<std::int64_t>& dims, TensorFormat as) {
            nvinfer1::PluginTensorDesc desc{};
            desc.dims.nbDims = static_cast<std::int32_t>(dims.size());
            std::copy(dims.begin(), dims.end(), desc.dims.d);
            desc.type = data_type(type);
            desc.format = as;
            desc.scale = -1.0F;
            all.push_back(desc);
        };
        const TensorFormat data = format(type, layout);
        const std::vector<std::int64_t> x{sizes.images, sizes.channels, sizes.positions, 1};
        add(x, data);
        if (variant.blend) {
            add(x, data);
        }
        if (variant.explicit_context) {
            add({sizes.images, sizes.context_channels, sizes.positions, 1}, data);
        }
        for (int branch = 0; branch < (variant.local ? 1 : 0) + (variant.global ? 1 : 0); ++branch) {
            add({sizes.inter, sizes.context_channels, 1, 1}, TensorFormat::kLINEAR);
            add({sizes.inter}, TensorFormat::kLINEAR);
            add({sizes.channels, sizes.inter, 1, 1}, TensorFormat::kLINEAR);
            add({sizes.channels}, TensorFormat::kLINEAR);
        }
        add(x, data);
    }
    std::int32_t inputs() const { return static_cast<std::int32_t>(all.size()) - 1; }
    const nvinfer1::PluginTensorDesc* out() const { return &all.back(); }

    // With this profile: as they are at most, images and positions unknown.
    std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic() const {
        std::vector<nvinfer1::DynamicPluginTensorDesc> made;
        for (std::size_t index = 0; index < all.size(); ++index) {
            nvinfer1::DynamicPluginTensorDesc one{};
            one.desc = all[index];
            one.min = one.max = one.opt = all[index].dims;
            const bool is_data = all[index].dims.d[0] == all[0].dims.d[0] && all[index].dims.nbDims == all[0].dims.nbDims;
            if (is_data) {
                one.desc.dims.d[0] = one.desc.dims.d[2] = -1;
                one.min.d[0] = one.min.d[2] = 1;
            }
            made.push_back(one);
        }
        return made;
    }
};

}  // namespace opened
