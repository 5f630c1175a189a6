// One call of the fused operator: its two or three kernels in order on one stream.
#pragma once

#include "launcher/geometry.h"
#include "launcher/images.h"
#include "launcher/kernel.h"

namespace aff_deploy {

// Device addresses of a branch's weights, dense and row-major, in the type of x.
struct BranchWeights {
    const void* w1 = nullptr;
    const void* b1 = nullptr;
    const void* w2 = nullptr;
    const void* b2 = nullptr;
};

// Device addresses; null where the variant has no such tensor.
struct Tensors {
    const void* x = nullptr;
    const void* y = nullptr;
    const void* a = nullptr;
    BranchWeights local;
    BranchWeights global;
    void* out = nullptr;
    void* workspace = nullptr;
};

// The kernels of a variant, loaded into one context. Immutable and thread-safe.
class Fusion {
  public:
    // Loads into the calling thread's context the image that its device runs.
    Fusion(cuda::ModuleCache& cache, const cuda::Driver& driver, const Variant& variant, const std::vector<Image>& images,
           Type type, Layout layout);

    // Throws Error for sizes that enqueue would refuse.
    void check(const Sizes& sizes) const;
    // Throws Error, before anything is launched, for sizes or addresses that the kernels cannot take. No images or no
    // positions: launches nothing.
    void enqueue(const Sizes& sizes, const Tensors& tensors, float scale, cuda::Stream stream) const;

    const cuda::ContextKey& context() const { return context_kernel_->context(); }
    Type type() const { return image_.type; }
    Layout layout() const { return image_.layout; }

  private:
    // Of sizes that are not empty.
    Geometry plan(const Sizes& sizes) const;

    Variant variant_;
    Image image_;
    std::shared_ptr<const cuda::Kernel> context_kernel_;
    std::shared_ptr<const cuda::Kernel> reduce_kernel_;
    std::shared_ptr<const cuda::Kernel> fuse_kernel_;
};

// The capability of the current device, as 80 for 8.0.
int current_capability(const cuda::Driver& driver);

}  // namespace aff_deploy
