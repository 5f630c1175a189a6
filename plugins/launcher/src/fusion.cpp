#include "launcher/fusion.h"

#include <cstdint>
#include <string>

#include "launcher/error.h"

namespace aff_deploy {
namespace {

constexpr std::uintptr_t kAlignment = 16;

// An address that the variant uses must be there and aligned as the kernels were promised.
void check_address(const char* what, const void* address, bool used) {
    if (used) {
        require(address != nullptr, [&] { return std::string(what) + " is a null pointer"; });
        require(reinterpret_cast<std::uintptr_t>(address) % kAlignment == 0,
                [&] { return std::string(what) + " is not aligned to " + std::to_string(kAlignment) + " bytes"; });
    }
}

void check_branch(const BranchWeights& branch, bool used) {
    check_address("w1", branch.w1, used);
    check_address("b1", branch.b1, used);
    check_address("w2", branch.w2, used);
    check_address("b2", branch.b2, used);
}

}  // namespace

int current_capability(const cuda::Driver& driver) {
    static_cast<void>(cuda::current_context(driver));  // says better than the calls below what is missing
    int device = 0;
    int major = 0;
    int minor = 0;
    driver.check(driver.ctx_get_device(&device), "asking for the current device");
    driver.check(driver.device_get_attribute(&major, cuda::kComputeCapabilityMajor, device),
                 "asking for the device's capability");
    driver.check(driver.device_get_attribute(&minor, cuda::kComputeCapabilityMinor, device),
                 "asking for the device's capability");
    return 10 * major + minor;
}

Fusion::Fusion(cuda::ModuleCache& cache, const cuda::Driver& driver, const Variant& variant, const std::vector<Image>& images,
               Type type, Layout layout)
    : variant_(variant), image_(choose(images, type, layout, current_capability(driver))) {
    context_kernel_ = std::make_shared<const cuda::Kernel>(cache, image_.context);
    reduce_kernel_ = std::make_shared<const cuda::Kernel>(cache, image_.reduce);
    fuse_kernel_ = std::make_shared<const cuda::Kernel>(cache, image_.fuse);
}

Geometry Fusion::plan(const Sizes& sizes) const {
    require(sizes.positions % image_.positions_multiple == 0, [&] {
        return "the kernels were compiled for a multiple of " + std::to_string(image_.positions_multiple) + " positions, not " +
               std::to_string(sizes.positions);
    });
    return geometry(variant_, sizes, image_.blocks);
}

void Fusion::check(const Sizes& sizes) const {
    if (sizes.images != 0 && sizes.positions != 0) {
        static_cast<void>(plan(sizes));
    }
}

void Fusion::enqueue(const Sizes& sizes, const Tensors& tensors, float scale, cuda::Stream stream) const {
    if (sizes.images == 0 || sizes.positions == 0) {
        return;
    }
    require(stream != nullptr, [] { return "the stream is null: run the engine on a stream of your own"; });
    const Geometry g = plan(sizes);
    check_address("x", tensors.x, true);
    check_address("y", tensors.y, variant_.blend);
    check_address("the context", tensors.a, variant_.explicit_context);
    check_address("the output", tensors.out, true);
    check_address("the workspace", tensors.workspace, true);
    check_branch(tensors.local, variant_.local);
    check_branch(tensors.global, variant_.global);
    const auto images = static_cast<std::int32_t>(sizes.images);
    const auto positions = static_cast<std::int32_t>(sizes.positions);

    char* const workspace = static_cast<char*>(tensors.workspace);
    void* const hidden = variant_.local ? workspace : nullptr;
    void* const inner = variant_.local ? workspace + g.inner_offset : nullptr;
    void* const partial = variant_.global ? workspace + g.partial_offset : nullptr;
    void* const logits = variant_.global ? workspace + g.logits_offset : nullptr;
    cuda::Arguments context;
    context.pointer(tensors.x).pointer(tensors.y).pointer(tensors.a);
    context.pointer(tensors.local.w1).pointer(tensors.local.b1).pointer(tensors.global.w1);
    context.pointer(hidden).pointer(inner).pointer(partial);
    context.int32(images).int32(positions).int32(g.context_tiles).int32(g.splits).int32(g.chunk);
    context.pointer(nullptr).pointer(nullptr);
    context_kernel_->launch(g.context, stream, context);
    if (g.reduce.x > 0) {
        cuda::Arguments reduce;
        reduce.pointer(hidden).pointer(tensors.local.b1).pointer(inner);
        reduce.pointer(partial).pointer(tensors.global.b1).pointer(tensors.global.w2).pointer(tensors.global.b2);
        reduce.pointer(logits);
        reduce.int32(images).int32(positions).int32(g.splits).int32(g.rows).pointer(nullptr).pointer(nullptr);
        reduce_kernel_->launch(g.reduce, stream, reduce);
    }
    cuda::Arguments fuse;
    fuse.pointer(tensors.x).pointer(tensors.y).pointer(inner);
    fuse.pointer(tensors.local.w2).pointer(tensors.local.b2).pointer(logits).pointer(tensors.out);
    fuse.int32(positions).int32(g.fuse_tiles).float32(scale).pointer(nullptr).pointer(nullptr);
    fuse_kernel_->launch(g.fuse, stream, fuse);
}

}  // namespace aff_deploy
