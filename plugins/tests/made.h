// Kernels, tensors and results made up for the tests: PTX that the stand-in driver runs, and the reference in doubles.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "fake_kernels.h"
#include "launcher/fusion.h"

namespace made {

using aff_deploy::Layout;
using aff_deploy::Sizes;
using aff_deploy::Type;
using aff_deploy::Variant;

struct Carried {
    Type type;
    Layout layout;
    int capability = 80;
    int positions_multiple = 1;
};

inline std::string entry(const std::string& name, int pointers, int integers, int floats) {
    std::ostringstream text;
    text << ".visible .entry " << name << "(\n";
    const int all = pointers + integers + floats + 2;
    for (int index = 0; index < all; ++index) {
        const bool integer = index >= pointers && index < pointers + integers;
        const bool real = index >= pointers + integers && index < all - 2;
        text << "\t.param "
             << (integer ? ".u32 "
                 : real  ? ".f32 "
                         : ".u64 .ptr .global .align 1 ")
             << name << "_param_" << index << (index + 1 < all ? ",\n" : "\n");
    }
    text << ")\n.reqntid 128\n{\n\tret;\n}\n";
    return text.str();
}

// The attributes `kernels_table` and `kernels_text` of a node.
struct Kernels {
    std::vector<std::int32_t> table;
    std::string text;
};

struct Widths {
    int block_i = 4, block_p = 8, block_k = 4, block_c = 8, block_e = 32, span_c = 8, fuse_p = 4;
};

inline void add(Kernels& kernels, const Variant& variant, const Sizes& sizes, const Carried& carried, const Widths& b = {}) {
    const auto put = [&](int kernel, const std::string& entry_text, int block_p, std::vector<std::int32_t> extra) {
        std::ostringstream ptx;
        ptx << "// fake: dtype=" << static_cast<int>(carried.type) << " channels_last=" << static_cast<int>(carried.layout)
            << " sum=" << (variant.blend && !variant.explicit_context) << " blend=" << variant.blend << " silu=" << variant.silu
            << " hard=" << variant.hard_sigmoid << " local=" << variant.local << " global=" << variant.global
            << " channels=" << sizes.channels << " context_channels=" << sizes.context_channels << " inter=" << sizes.inter
            << " block_i=" << b.block_i << " block_p=" << block_p << " block_k=" << b.block_k << " block_c=" << b.block_c
            << " block_e=" << b.block_e << " span_c=" << b.span_c << "\n.version 8.0\n.target sm_" << carried.capability
            << "\n.address_size 64\n"
            << entry_text;
        extra.resize(4);
        const auto offset = static_cast<std::int32_t>(kernels.text.size());
        kernels.text += ptx.str();
        for (const std::int32_t number :
             {kernel, static_cast<std::int32_t>(carried.type), static_cast<std::int32_t>(carried.layout), carried.capability,
              offset, static_cast<std::int32_t>(ptx.str().size()), 128, 0}) {
            kernels.table.push_back(number);
        }
        kernels.table.insert(kernels.table.end(), extra.begin(), extra.end());
    };
    put(0, entry("aff_context", 9, 5, 0), b.block_p, {b.block_i, b.block_p, b.block_k, carried.positions_multiple});
    put(1, entry("aff_reduce", 8, 4, 0), b.block_p, {b.block_c, b.block_e});
    put(2, entry("aff_fuse", 7, 2, 1), b.fuse_p, {b.span_c, b.fuse_p, carried.positions_multiple});
}

// A device tensor: values as the type holds them, on 256 bytes.
class Tensor {
  public:
    Tensor() = default;
    Tensor(std::int64_t elements, Type type, std::mt19937* random, float spread = 1.0F)
        : type_(static_cast<int>(type)), elements_(elements), raw_(static_cast<std::size_t>(elements) * 4 + 256) {
        std::uniform_real_distribution<float> uniform(-spread, spread);
        for (std::int64_t index = 0; index < elements; ++index) {
            fake_kernels::write(data(), index, random == nullptr ? std::nanf("") : uniform(*random),
                                random == nullptr ? 0 : type_);
        }
    }
    void* data() {
        const auto at = reinterpret_cast<std::uintptr_t>(raw_.data());
        return raw_.data() + ((at + 255) / 256 * 256 - at);
    }
    double value(std::int64_t index) { return static_cast<double>(fake_kernels::read(data(), index, type_)); }
    std::int64_t elements() const { return elements_; }
    std::size_t bytes() const { return static_cast<std::size_t>(elements_) * (type_ == 0 ? 4 : 2); }

  private:
    int type_ = 0;
    std::int64_t elements_ = 0;
    std::vector<char> raw_;
};

struct Call {
    Variant variant;
    Sizes sizes;
    Type type;
    Layout layout;
    float scale;
    Tensor x, y, a, out;
    std::vector<Tensor> weights;  // as inputs in the operator's order

    Call(const Variant& v, const Sizes& s, Type t, Layout l, float factor, unsigned int seed)
        : variant(v), sizes(s), type(t), layout(l), scale(factor) {
        std::mt19937 random(seed);
        const std::int64_t pixels = s.images * s.positions;
        x = Tensor(pixels * s.channels, t, &random);
        y = v.blend ? Tensor(pixels * s.channels, t, &random) : Tensor();
        a = v.explicit_context ? Tensor(pixels * s.context_channels, t, &random) : Tensor();
        out = Tensor(pixels * s.channels, t, nullptr);
        for (int branch = 0; branch < (v.local ? 1 : 0) + (v.global ? 1 : 0); ++branch) {
            for (const std::int64_t elements : {s.inter * s.context_channels, s.inter, s.channels * s.inter, s.channels}) {
                weights.emplace_back(elements, t, &random, 0.7F);
            }
        }
    }

    aff_deploy::Tensors tensors(void* workspace) {
        aff_deploy::Tensors all;
        all.x = x.data();
        all.y = variant.blend ? y.data() : nullptr;
        all.a = variant.explicit_context ? a.data() : nullptr;
        std::size_t next = 0;
        const auto branch = [&] {
            next += 4;
            return aff_deploy::BranchWeights{weights[next - 4].data(), weights[next - 3].data(), weights[next - 2].data(),
                                             weights[next - 1].data()};
        };
        all.local = variant.local ? branch() : aff_deploy::BranchWeights{};
        all.global = variant.global ? branch() : aff_deploy::BranchWeights{};
        all.out = out.data();
        all.workspace = workspace;
        return all;
    }

    // The largest difference of `out` from the operator in doubles; infinite where out holds no number.
    double error() {
        double worst = 0;
        for (std::int64_t n = 0; n < sizes.images; ++n) {
            const std::vector<double> global = variant.global ? logits(n, -1, variant.local ? 4 : 0) : std::vector<double>();
            for (std::int64_t p = 0; p < sizes.positions; ++p) {
                const std::vector<double> local = variant.local ? logits(n, p, 0) : std::vector<double>();
                for (std::int64_t c = 0; c < sizes.channels; ++c) {
                    const auto at = static_cast<std::size_t>(c);
                    const double z = (variant.local ? local[at] : 0) + (variant.global ? global[at] : 0);
                    const double w = variant.hard_sigmoid ? std::min(std::max(z / 6 + 0.5, 0.0), 1.0) : 1 / (1 + std::exp(-z));
                    const std::int64_t where = index(n, c, p, sizes.channels);
                    const double rest = variant.blend ? y.value(where) * (1 - w) : 0;
                    const double found = out.value(where);
                    const double difference = std::fabs(found - static_cast<double>(scale) * (x.value(where) * w + rest));
                    worst = std::isfinite(found) ? std::max(worst, difference) : HUGE_VAL;
                }
            }
        }
        return worst;
    }

    double tolerance() const { return type == Type::kFloat32 ? 1e-5 : type == Type::kFloat16 ? 2e-3 : 2e-2; }

  private:
    std::int64_t index(std::int64_t n, std::int64_t c, std::int64_t p, std::int64_t channels) const {
        return n * channels * sizes.positions + (layout == Layout::kLinear ? c * sizes.positions + p : p * channels + c);
    }
    double context(std::int64_t n, std::int64_t c, std::int64_t p) {
        const std::int64_t where = index(n, c, p, sizes.context_channels);
        return variant.explicit_context ? a.value(where) : x.value(where) + (variant.blend ? y.value(where) : 0);
    }
    // Of one position, or of the mean over all (-1); `first` is the branch's first weight.
    std::vector<double> logits(std::int64_t n, std::int64_t position, std::size_t first) {
        std::vector<double> input;
        for (std::int64_t c = 0; c < sizes.context_channels; ++c) {
            double sum = 0;
            for (std::int64_t p = 0; position < 0 && p < sizes.positions; ++p) {
                sum += context(n, c, p) / static_cast<double>(sizes.positions);
            }
            input.push_back(position < 0 ? sum : context(n, c, position));
        }
        std::vector<double> hidden;
        for (double value : mixed(input, first, sizes.inter)) {
            hidden.push_back(variant.silu ? value / (1 + std::exp(-value)) : std::max(value, 0.0));
        }
        return mixed(hidden, first + 2, sizes.channels);
    }
    std::vector<double> mixed(const std::vector<double>& input, std::size_t weight, std::int64_t rows) {
        std::vector<double> output;
        for (std::int64_t row = 0; row < rows; ++row) {
            double sum = weights[weight + 1].value(row);
            for (std::size_t column = 0; column < input.size(); ++column) {
                sum +=
                    weights[weight].value(row * static_cast<std::int64_t>(input.size()) + static_cast<std::int64_t>(column)) *
                    input[column];
            }
            output.push_back(sum);
        }
        return output;
    }
};

}  // namespace made
