// Without NVIDIA's driver the launcher says so.
#include "checks.h"
#include "launcher/driver.h"
#include "launcher/error.h"

namespace {

using aff_deploy::cuda::Driver;

TEST(a_missing_driver_is_an_error) {
    CHECK_ERROR(Driver("libcuda-that-is-not-there.so.1"), "CUDA's driver library cannot be loaded");
    CHECK_ERROR(Driver("libcuda-that-is-not-there.so.1"), "install NVIDIA's driver");
}

TEST(a_library_that_is_no_driver_is_an_error) {
    CHECK_ERROR(Driver("libm.so.6"), "has no function cuInit");
}

}  // namespace

int main() {
    return checks::run();
}
