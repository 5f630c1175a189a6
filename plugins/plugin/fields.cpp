#include "fields.h"

#include <cmath>
#include <cstring>

#include "launcher/error.h"

namespace aff_deploy {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

constexpr std::int32_t kContract = 2;
constexpr std::int32_t kBranches[4] = {0, 1, 2, 3};  // bit 0 local, bit 1 global
constexpr std::int32_t kFlags[2] = {0, 1};

std::string text_of(std::int32_t number) {
    return std::to_string(number);
}

const PluginField& find(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const PluginField* found = nullptr;
    for (std::int32_t index = 0; index < fields.nbFields; ++index) {
        const PluginField& field = fields.fields[index];
        if (field.name != nullptr && std::strcmp(field.name, name) == 0) {
            require(found == nullptr, [&] { return "the field " + std::string(name) + " is there twice"; });
            found = &field;
        }
    }
    require(found != nullptr, [&] {
        return "the field " + std::string(name) + " is missing: was the model written by `aff-deploy optimize --plugin`?";
    });
    return *found;
}

const PluginField& find(const nvinfer1::PluginFieldCollection& fields, const char* name, PluginFieldType type,
                        const char* spelled) {
    const PluginField& field = find(fields, name);
    require(field.type == type, [&] { return "the field " + std::string(name) + " is not " + spelled; });
    require(field.length >= 0 && (field.data != nullptr || field.length == 0),
            [&] { return "the field " + std::string(name) + " has no data"; });
    return field;
}

std::vector<std::int32_t> integers(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const PluginField& field = find(fields, name, PluginFieldType::kINT32, "of int32");
    std::vector<std::int32_t> values(static_cast<std::size_t>(field.length));
    if (!values.empty()) {
        std::memcpy(values.data(), field.data, values.size() * sizeof values[0]);
    }
    return values;
}

std::int32_t integer(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const std::vector<std::int32_t> values = integers(fields, name);
    require(values.size() == 1,
            [&] { return "the field " + std::string(name) + " has " + std::to_string(values.size()) + " numbers"; });
    return values[0];
}

// The ONNX parser ends a string in a NUL and counts it; others do not.
std::string string(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const PluginField& field = find(fields, name, PluginFieldType::kCHAR, "a string");
    std::string value(static_cast<const char*>(field.data), static_cast<std::size_t>(field.length));
    if (!value.empty() && value.back() == '\0') {
        value.pop_back();
    }
    return value;
}

float number(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const PluginField& field = find(fields, name, PluginFieldType::kFLOAT32, "of float32");
    require(field.length == 1, [&] { return "the field " + std::string(name) + " has " + text_of(field.length) + " numbers"; });
    float value = 0;
    std::memcpy(&value, field.data, sizeof value);
    return value;
}

std::int32_t size(const nvinfer1::PluginFieldCollection& fields, const char* name) {
    const std::int32_t value = integer(fields, name);
    require(value > 0, [&] { return "the field " + std::string(name) + " is " + text_of(value); });
    return value;
}

std::int32_t branches(const Variant& variant) {
    return (variant.local ? 1 : 0) + (variant.global ? 2 : 0);
}

void check_suits(const Settings& settings, std::int32_t said_branches, std::int32_t said_blend) {
    const Variant& variant = settings.variant;
    const auto suits = [&](bool condition, const char* field) {
        require(condition, [&] { return "the field " + std::string(field) + " does not suit an " + variant.name(); });
    };
    suits(said_branches == branches(variant), "kernels_branches");
    suits(said_blend == (variant.blend ? 1 : 0), "kernels_blend");
    suits(settings.activation == (variant.silu ? "Silu" : "Relu"), "activation");
    suits(settings.gate == (variant.hard_sigmoid ? "HardSigmoid" : "Sigmoid"), "gate");
    if (variant.explicit_context) {
        suits(settings.context == "explicit" || settings.context == "concat", "context");
    } else {
        suits(settings.context == (variant.blend ? "sum" : "self"), "context");
        suits(settings.context_channels == settings.channels, "context_channels");
    }
}

}  // namespace

std::vector<PluginField> field_names() {
    return {
        {"kernels_contract", nullptr, PluginFieldType::kINT32, 1}, {"kernels_branches", nullptr, PluginFieldType::kINT32, 1},
        {"kernels_blend", nullptr, PluginFieldType::kINT32, 1},    {"context_channels", nullptr, PluginFieldType::kINT32, 1},
        {"channels", nullptr, PluginFieldType::kINT32, 1},         {"inter_channels", nullptr, PluginFieldType::kINT32, 1},
        {"scale", nullptr, PluginFieldType::kFLOAT32, 1},          {"context", nullptr, PluginFieldType::kCHAR, 1},
        {"activation", nullptr, PluginFieldType::kCHAR, 1},        {"gate", nullptr, PluginFieldType::kCHAR, 1},
        {"kernels_table", nullptr, PluginFieldType::kINT32, 1},    {"kernels_text", nullptr, PluginFieldType::kCHAR, 1},
    };
}

Settings read_settings(const Variant& variant, const nvinfer1::PluginFieldCollection* given) {
    require(given != nullptr && given->nbFields >= 0 && (given->fields != nullptr || given->nbFields == 0),
            [] { return "no fields"; });
    const nvinfer1::PluginFieldCollection& fields = *given;
    const std::int32_t contract = integer(fields, "kernels_contract");
    require(contract == kContract, [&] {
        return "the kernels are of contract " + text_of(contract) + ", this library runs contract " + text_of(kContract) +
               ": use the library and the model of one version of aff-deploy";
    });
    Settings settings{variant,
                      string(fields, "context"),
                      string(fields, "activation"),
                      string(fields, "gate"),
                      number(fields, "scale"),
                      size(fields, "channels"),
                      size(fields, "inter_channels"),
                      size(fields, "context_channels"),
                      integers(fields, "kernels_table"),
                      string(fields, "kernels_text"),
                      {}};
    require(std::isfinite(settings.scale), [] { return "the field scale is not finite"; });
    check_suits(settings, integer(fields, "kernels_branches"), integer(fields, "kernels_blend"));
    settings.images = read_images(settings.table, settings.text);
    return settings;
}

std::vector<PluginField> write_settings(const Settings& settings) {
    const auto length = [](const auto& container) { return static_cast<std::int32_t>(container.size()); };
    const auto string = [&](const char* name, const std::string& value) {
        return PluginField(name, value.data(), PluginFieldType::kCHAR, length(value));
    };
    const auto integer = [](const char* name, const std::int32_t& value) {
        return PluginField(name, &value, PluginFieldType::kINT32, 1);
    };
    return {
        integer("kernels_contract", kContract),
        integer("kernels_branches", kBranches[branches(settings.variant)]),
        integer("kernels_blend", kFlags[settings.variant.blend ? 1 : 0]),
        integer("context_channels", settings.context_channels),
        integer("channels", settings.channels),
        integer("inter_channels", settings.inter),
        {"scale", &settings.scale, PluginFieldType::kFLOAT32, 1},
        string("context", settings.context),
        string("activation", settings.activation),
        string("gate", settings.gate),
        {"kernels_table", settings.table.data(), PluginFieldType::kINT32, length(settings.table)},
        string("kernels_text", settings.text),
    };
}

}  // namespace aff_deploy
