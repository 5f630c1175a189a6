// fp16, bf16 and tf32 as their bits, without a compiler that knows the types.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace ptx {

inline float from_bits(std::uint32_t bits) {
    float value = 0;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t to_bits(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_bf16(std::uint16_t bits) {
    return from_bits(static_cast<std::uint32_t>(bits) << 16);
}

inline float from_fp16(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16;
    const std::uint32_t exponent = (bits >> 10) & 31U;
    const std::uint32_t fraction = bits & 1023U;
    if (exponent == 0) {
        const float small = static_cast<float>(fraction) * 0x1p-24F;
        return sign == 0 ? small : -small;
    }
    return from_bits(sign | (exponent == 31 ? 0x7F800000U : (exponent + 112) << 23) | fraction << 13);
}

constexpr std::uint32_t kNan = 0x7FFFFFFFU;  // the only one that arithmetic gives

// Both round to nearest, ties to even; NaN becomes the type's only one.
inline std::uint16_t to_bf16(float value) {
    const std::uint32_t bits = to_bits(value);
    return static_cast<std::uint16_t>(std::isnan(value) ? 0x7FFFU : (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

inline std::uint16_t to_fp16(float value) {
    const std::uint32_t sign = (to_bits(value) >> 16) & 0x8000U;
    const float size = std::fabs(value);
    std::uint32_t bits = 0x7C00U;
    if (size < 0x1p-14F) {
        bits = static_cast<std::uint32_t>(std::nearbyint(size * 0x1p24F));  // steps of the smallest number
    } else if (size < 65520.0F) {
        const std::uint32_t wide = to_bits(size) - (112U << 23);
        bits = (wide + 0xFFFU + ((wide >> 13) & 1U)) >> 13;
    }
    return static_cast<std::uint16_t>(std::isnan(value) ? 0x7FFFU : sign | bits);
}

// The bits of fp32 of which a product of tf32 takes no notice are zero; rounds to nearest, ties away from zero.
constexpr std::uint32_t kTf32Bits = 0xFFFFE000U;

inline float to_tf32(float value) {
    return std::isfinite(value) ? from_bits((to_bits(value) + 0x1000U) & kTf32Bits) : value;
}

}  // namespace ptx
