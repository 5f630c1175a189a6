#include "tensors.h"

#include <string>

#include "launcher/error.h"

namespace aff_deploy {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr std::int32_t kWeightsOfBranch = 4;  // w1, b1, w2, b2
constexpr std::int32_t kSmallestRank = 3;     // N, C and at least one spatial axis

std::string shape(const nvinfer1::Dims& dims) {
    std::string text = "(";
    for (std::int32_t axis = 0; axis < dims.nbDims; ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(dims.d[axis]);
    }
    return text + ")";
}

bool channels_fill(const Settings& settings, std::int32_t vector) {
    return settings.channels % vector == 0 && settings.context_channels % vector == 0;
}

std::int32_t data_inputs(const Settings& settings) {
    return settings.variant.data_inputs();
}

// The channels that a data tensor must have.
std::int32_t channels_of(const Settings& settings, std::int32_t position) {
    const bool is_context = settings.variant.explicit_context && position == data_inputs(settings) - 1;
    return is_context ? settings.context_channels : settings.channels;
}

void check_data(const Settings& settings, const PluginTensorDesc& x, const PluginTensorDesc& desc, std::int32_t position) {
    bool same = desc.dims.nbDims == x.dims.nbDims && desc.dims.d[1] == channels_of(settings, position);
    for (std::int32_t axis = 0; same && axis < x.dims.nbDims; ++axis) {
        same = axis == 1 || desc.dims.d[axis] == x.dims.d[axis];
    }
    require(same, [&] {
        return "tensor " + std::to_string(position) + " has shape " + shape(desc.dims) + ", x has " + shape(x.dims) + ", for " +
               std::to_string(settings.channels) + " channels and a context of " + std::to_string(settings.context_channels);
    });
}

void check_weight(const Settings& settings, const PluginTensorDesc& desc, std::int32_t position, std::int32_t data_rank) {
    bool fits = desc.dims.nbDims == weight_rank(position, settings, data_rank);
    for (std::int32_t axis = 0; fits && axis < desc.dims.nbDims; ++axis) {
        fits = desc.dims.d[axis] == weight_size(settings, position, axis);
    }
    require(fits, [&] {
        return "the weight at input " + std::to_string(position) + " has shape " + shape(desc.dims) + ": it does not suit " +
               std::to_string(settings.channels) + " channels, " + std::to_string(settings.inter) +
               " inner ones and a context of " + std::to_string(settings.context_channels);
    });
}

}  // namespace

std::optional<Type> kernel_type(DataType type) {
    switch (type) {
        case DataType::kFLOAT:
            return Type::kFloat32;
        case DataType::kHALF:
            return Type::kFloat16;
        case DataType::kBF16:
            return Type::kBFloat16;
        default:
            return std::nullopt;
    }
}

std::optional<Layout> kernel_layout(TensorFormat format, Type type, std::int32_t rank, const Settings& settings) {
    if (format == TensorFormat::kLINEAR) {
        return Layout::kLinear;
    }
    // The contract offers the layout for whole vectors of eight, also where the format itself has no padding.
    const bool dense = (format == TensorFormat::kHWC && type == Type::kFloat32 && channels_fill(settings, 8)) ||
                       (format == TensorFormat::kHWC8 && type != Type::kFloat32 && channels_fill(settings, 8)) ||
                       (format == TensorFormat::kHWC16 && type == Type::kFloat16 && channels_fill(settings, 16));
    return dense && rank == 4 ? std::optional<Layout>(Layout::kChannelsLast) : std::nullopt;
}

bool supports(const Settings& settings, const PluginTensorDesc& first, const PluginTensorDesc& desc, std::int32_t position) {
    const bool is_weight = position >= data_inputs(settings) && position < settings.variant.inputs();
    if (position > 0) {
        return desc.type == first.type && desc.format == (is_weight ? TensorFormat::kLINEAR : first.format);
    }
    const auto type = kernel_type(desc.type);
    const auto layout = type ? kernel_layout(desc.format, *type, desc.dims.nbDims, settings) : std::nullopt;
    return layout && has(settings.images, *type, *layout);
}

void check_rank(const nvinfer1::Dims& dims) {
    require(dims.nbDims >= 0 && dims.nbDims <= nvinfer1::Dims::MAX_DIMS,
            [&] { return "a tensor has " + std::to_string(dims.nbDims) + " axes"; });
}

void check_counts(const Settings& settings, const void* inputs, std::int32_t input_count, const void* outputs,
                  std::int32_t output_count) {
    require(input_count == settings.variant.inputs() && output_count == 1, [&] {
        return settings.variant.name() + " has " + std::to_string(settings.variant.inputs()) + " inputs and 1 output, not " +
               std::to_string(input_count) + " and " + std::to_string(output_count);
    });
    require(inputs != nullptr && outputs != nullptr, [] { return "a null pointer for the tensors' descriptions"; });
}

std::int64_t weight_size(const Settings& settings, std::int32_t position, std::int32_t axis) {
    if (position < data_inputs(settings)) {
        return -1;
    }
    const std::int64_t rows[kWeightsOfBranch] = {settings.inter, settings.inter, settings.channels, settings.channels};
    const std::int64_t columns[kWeightsOfBranch] = {settings.context_channels, 1, settings.inter, 1};
    const std::int32_t which = (position - data_inputs(settings)) % kWeightsOfBranch;
    return axis == 0 ? rows[which] : axis == 1 ? columns[which] : 1;
}

std::int32_t weight_rank(std::int32_t position, const Settings& settings, std::int32_t data_rank) {
    return (position - data_inputs(settings)) % 2 == 0 ? data_rank : 1;
}

CallShape read_shapes(const Settings& settings, const PluginTensorDesc* inputs, std::int32_t input_count,
                      const PluginTensorDesc* outputs, std::int32_t output_count) {
    check_counts(settings, inputs, input_count, outputs, output_count);
    const PluginTensorDesc& x = inputs[0];
    require(x.dims.nbDims >= kSmallestRank && x.dims.nbDims <= nvinfer1::Dims::MAX_DIMS, [&] {
        return "x has " + std::to_string(x.dims.nbDims) + " axes: images, channels and at least one more are wanted";
    });
    for (std::int32_t position = 0; position <= input_count; ++position) {
        const PluginTensorDesc& desc = position < input_count ? inputs[position] : outputs[0];
        check_rank(desc.dims);
        require(supports(settings, x, desc, position), [&] {
            return "tensor " + std::to_string(position) + " has a type or format that there is no kernel for, or not that of x";
        });
        if (position < data_inputs(settings) || position == input_count) {
            check_data(settings, x, desc, position);
        } else {
            check_weight(settings, desc, position, x.dims.nbDims);
        }
    }
    CallShape call{};
    call.type = *kernel_type(x.type);
    call.layout = *kernel_layout(x.format, call.type, x.dims.nbDims, settings);
    call.sizes = {x.dims.d[0], 1, settings.channels, settings.context_channels, settings.inter};
    for (std::int32_t axis = 0; axis < x.dims.nbDims; ++axis) {
        // Bounded, so that the product of up to six spatial sizes cannot overflow before it is compared.
        require(x.dims.d[axis] >= 0 && x.dims.d[axis] < (std::int64_t{1} << 31),
                [&] { return "x has shape " + shape(x.dims); });
        if (axis >= 2) {
            call.sizes.positions *= x.dims.d[axis];
            require(call.sizes.positions < (std::int64_t{1} << 31),
                    [&] { return "x has too many positions: " + shape(x.dims); });
        }
    }
    return call;
}

}  // namespace aff_deploy
