// The launcher over the stand-in driver: what it calls with what, what it says when a call fails, what it leaves behind.
#include <atomic>
#include <thread>

#include "checks.h"
#include "fake_cuda.h"
#include "launcher/kernel.h"
#include "launcher/ptx.h"

namespace {

using namespace aff_deploy::cuda;

const char* const kPtx =
    "//\n.version 8.0\n.target sm_80\n.address_size 64\n\n\t// .globl aff_one\n"
    ".visible .entry aff_one(\n\t.param .u64 .ptr .global .align 1 aff_one_param_0,\n\t.param .u32 aff_one_param_1,\n"
    "\t.param .f32 aff_one_param_2\n)\n.reqntid 128\n{\n\tret;\n}\n"
    ".visible .entry aff_two()\n{\n\tret;\n}\n";

Text text(const std::string& more = "") {
    return std::make_shared<const std::string>(kPtx + more);
}

KernelSource source(unsigned int shared_bytes = 0) {
    return {text(), "aff_one", {Parameter::kPointer, Parameter::kInt32, Parameter::kFloat32}, 128, shared_bytes};
}

struct Setup {
    std::shared_ptr<const Driver> driver = std::make_shared<const Driver>();
    ModuleCache cache{driver};
};

Arguments arguments() {
    return Arguments().pointer(kPtx).int32(-7).float32(1.5F);
}

TEST(a_launch_passes_everything_on) {
    fake_cuda::set_running(false);  // the machine has grids of one dimension
    Setup s;
    const Kernel kernel(s.cache, source(1024));
    auto values = arguments();
    kernel.launch({5, 6, 7}, fake_cuda::stream(), values);
    const auto launches = fake_cuda::state().launches;
    CHECK(launches.size() == 1);
    const auto& launch = launches.at(0);
    CHECK(launch.entry == "aff_one" && launch.grid[0] == 5 && launch.grid[1] == 6 && launch.grid[2] == 7);
    CHECK(launch.threads == 128 && launch.shared_bytes == 1024 && launch.stream == fake_cuda::stream());
    CHECK(launch.arguments.at(0) == reinterpret_cast<std::uintptr_t>(kPtx));
    CHECK(static_cast<std::int32_t>(launch.arguments.at(1)) == -7);
    float third = 0;
    std::memcpy(&third, &launch.arguments.at(2), sizeof third);
    CHECK(third == 1.5F);
    CHECK(fake_cuda::state().shared_bytes_asked.empty());
}

TEST(shared_memory_over_48_kib_is_asked_for) {
    Setup s;
    const Kernel kernel(s.cache, source(49 * 1024));
    auto values = arguments();
    kernel.launch({}, fake_cuda::stream(), values);
    CHECK(fake_cuda::state().shared_bytes_asked == std::vector<int>{49 * 1024});
}

TEST(shared_memory_that_the_device_lacks_is_an_error) {
    Setup s;
    fake_cuda::set_shared_memory(64 * 1024);
    CHECK_ERROR(Kernel(s.cache, source(65 * 1024)), "takes 66560 bytes of shared memory, this device has 65536");
    CHECK(fake_cuda::state().modules_alive == 0);
}

TEST(a_text_is_loaded_once_and_unloaded_with_its_last_holder) {
    Setup s;
    {
        const Kernel one(s.cache, source());
        const Kernel same(s.cache, source());
        CHECK(fake_cuda::state().modules_loaded == 1);
        const auto other = s.cache.load(text("// other\n"));
        CHECK(fake_cuda::state().modules_loaded == 2 && fake_cuda::state().modules_alive == 2);
    }
    CHECK(fake_cuda::state().modules_alive == 0 && fake_cuda::state().wrong_unloads == 0);
    const Kernel again(s.cache, source());
    CHECK(fake_cuda::state().modules_loaded == 3);
}

TEST(each_context_has_modules_of_its_own) {
    Setup s;
    CUctx_st* second = fake_cuda::make_context();
    auto first_module = s.cache.load(text());
    fake_cuda::make_current(second);
    const auto second_module = s.cache.load(text());
    CHECK(fake_cuda::state().modules_loaded == 2);
    CHECK(!(first_module->context() == second_module->context()));
    first_module.reset();  // from the other context: pushed, unloaded there, popped
    CHECK(fake_cuda::state().modules_alive == 1 && fake_cuda::state().wrong_unloads == 0);
    CHECK(current_context(*s.driver).context == second);
}

TEST(a_context_at_the_address_of_a_dead_one_is_another) {
    Setup s;
    CUctx_st* context = fake_cuda::make_context();
    fake_cuda::make_current(context);
    auto old = s.cache.load(text());
    fake_cuda::destroy(context);
    CHECK(fake_cuda::make_context() == context);
    const auto fresh = s.cache.load(text());
    CHECK(fake_cuda::state().modules_loaded == 2 && fresh != old);
    old.reset();
    CHECK(fake_cuda::state().modules_alive == 1 && fake_cuda::state().wrong_unloads == 0);
}

TEST(a_context_that_is_gone_takes_its_modules_with_it) {
    Setup s;
    CUctx_st* context = fake_cuda::make_context();
    fake_cuda::make_current(context);
    auto module = s.cache.load(text());
    fake_cuda::destroy(context);
    module.reset();
    CHECK(fake_cuda::state().wrong_unloads == 0);
}

TEST(a_thread_without_a_context_is_told) {
    Setup s;
    fake_cuda::make_current(nullptr);
    CHECK_ERROR(s.cache.load(text()), "no current CUDA context: call cudaSetDevice first");
}

TEST(ptx_that_does_not_load_shows_the_compilers_words) {
    Setup s;
    const auto broken = std::make_shared<const std::string>("nonsense");
    CHECK_ERROR(s.cache.load(broken), "loading the kernel's PTX for sm_80: CUDA_ERROR_INVALID_PTX");
    CHECK_ERROR(s.cache.load(broken), "ptxas application ptx input; fatal: no .version");
    CHECK_ERROR(s.cache.load(std::make_shared<const std::string>()), "empty");
    CHECK_ERROR(s.cache.load(std::make_shared<const std::string>(std::string(kPtx) + '\0' + "x")), "holds a NUL");
    CHECK(fake_cuda::state().modules_alive == 0);
    CHECK(s.cache.load(text()) != nullptr);
}

TEST(every_failing_call_is_reported) {
    for (const char* function : {"cuCtxGetCurrent", "cuCtxGetId", "cuModuleLoadDataEx", "cuModuleGetFunction",
                                 "cuFuncSetAttribute", "cuCtxGetDevice", "cuDeviceGetAttribute", "cuLaunchKernel"}) {
        fake_cuda::reset();
        Setup s;
        fake_cuda::fail(function, 719);
        CHECK_ERROR(
            [&] {
                const Kernel kernel(s.cache, source(50000));
                auto values = arguments();
                kernel.launch({}, fake_cuda::stream(), values);
            }(),
            "CUDA_ERROR_LAUNCH_FAILED, as the stand-in was told");
        CHECK(fake_cuda::state().modules_alive == 0);
    }
    fake_cuda::reset();
    fake_cuda::fail("cuInit", 12345);
    CHECK_ERROR(Driver(), "starting CUDA: CUDA error 12345");
}

TEST(a_kernel_with_other_parameters_is_refused) {
    auto wrong = source();
    wrong.parameters.push_back(Parameter::kInt32);
    CHECK_ERROR(check_source(wrong), "the kernel aff_one takes (u64 u32 f32), it would be given (u64 u32 f32 u32)");
    wrong = source();
    std::swap(wrong.parameters[0], wrong.parameters[1]);
    CHECK_ERROR(check_source(wrong), "from another version");
    wrong = source();
    wrong.entry = "aff_on";
    CHECK_ERROR(check_source(wrong), "the PTX has no kernel aff_on");
    wrong = source();
    wrong.threads = 256;
    CHECK_ERROR(check_source(wrong), "runs in blocks of 128 threads, not 256");
    for (const unsigned int threads : {0U, 33U, 2048U}) {
        wrong.threads = threads;
        CHECK_ERROR(check_source(wrong), "whole warps up to 1024");
    }
    check_source({text(), "aff_two", {}, 32, 0});
    check_source(source());
}

TEST(strange_ptx_is_read_without_harm) {
    CHECK(entry_parameters(".entry f(.param .u64 a, /* ) .param .u32 no */ .param .b64 b)", "f") ==
          (std::vector<std::string>{"u64", "b64"}));
    CHECK(required_threads(".entry f() .reqntid 64, 2, 1 {", "f") == 128);
    CHECK(required_threads(".entry f() .maxntid 64 {", "f") == 0);
    CHECK_ERROR(entry_parameters(".entry f(.param .u64 a, .param", "f"), "breaks off");
    CHECK_ERROR(entry_parameters(".entry f(.param .align 4 .b8 a[16])", "f"), "is an array");
    CHECK_ERROR(entry_parameters(".entry", "f"), "has no kernel f");
    CHECK_ERROR(entry_parameters("/* .entry f(", "g"), "has no kernel g");
    CHECK_ERROR(required_threads(".entry f() .reqntid x {", "f"), "strange .reqntid");
    CHECK_ERROR(required_threads(".entry f() .reqntid 99999999999 {", "f"), "strange .reqntid");
}

TEST(a_grid_outside_the_device_is_refused) {
    Setup s;
    const Kernel kernel(s.cache, source());
    auto values = arguments();
    for (const Grid& grid : {Grid{0}, Grid{-1}, Grid{std::int64_t{1} << 31}, Grid{1, 65536}, Grid{1, 1, 0}}) {
        CHECK_ERROR(kernel.launch(grid, fake_cuda::stream(), values), "would need a grid of");
    }
    auto few = Arguments().pointer(nullptr);
    CHECK_ERROR(kernel.launch({}, fake_cuda::stream(), few), "wrong arguments");
    CHECK(fake_cuda::state().launches.empty());
}

TEST(threads_share_one_module_and_launch_together) {
    Setup s;
    CUctx_st* context = current_context(*s.driver).context;
    std::atomic<int> thrown{0};
    std::vector<std::thread> threads;
    for (int index = 0; index < 8; ++index) {
        threads.emplace_back([&] {
            fake_cuda::make_current(context);
            try {
                for (int round = 0; round < 50; ++round) {
                    const Kernel kernel(s.cache, source());
                    auto values = arguments();
                    kernel.launch({}, fake_cuda::stream(), values);
                }
            } catch (const aff_deploy::Error&) {
                ++thrown;
            }
        });
    }
    for (auto& thread : threads) {
        thread.join();
    }
    const auto state = fake_cuda::state();
    CHECK(thrown == 0 && state.launches.size() == 400);
    CHECK(state.modules_alive == 0 && state.wrong_unloads == 0);
}

}  // namespace

int main() {
    return checks::run(fake_cuda::reset);
}
