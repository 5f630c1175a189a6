// The controls of the stand-in driver.
#include "fake_cuda.h"

#include <iterator>

#include "fake_world.h"

namespace fake_cuda {

World& world() {
    static World all;
    return all;
}

std::vector<CUctx_st*>& contexts_of_thread() {
    static thread_local std::vector<CUctx_st*> stack;
    return stack;
}

State state() {
    const Lock lock(world().mutex);
    return world().state;
}

void reset() {
    const Lock lock(world().mutex);
    World& w = world();
    w.modules.clear();
    w.functions.clear();
    w.contexts.clear();
    w.free_contexts.clear();
    w.failures.clear();
    w.large.clear();
    w.state = State{};
    w.major = 8;
    w.minor = 0;
    w.shared_memory = 101376;
    w.running = true;
    contexts_of_thread().assign(1, make_context());
}

CUctx_st* make_context() {
    const Lock lock(world().mutex);
    World& w = world();
    if (!w.free_contexts.empty()) {
        CUctx_st* again = w.free_contexts.back();
        w.free_contexts.pop_back();
        *again = CUctx_st{w.next_id++, true};
        return again;
    }
    w.contexts.push_back(std::make_unique<CUctx_st>(CUctx_st{w.next_id++, true}));
    return w.contexts.back().get();
}

CUctx_st* current() {
    return contexts_of_thread().empty() ? nullptr : contexts_of_thread().back();
}

void make_current(CUctx_st* context) {
    contexts_of_thread().clear();
    if (context != nullptr) {
        contexts_of_thread().push_back(context);
    }
}

void destroy(CUctx_st* context) {
    const Lock lock(world().mutex);
    World& w = world();
    context->alive = false;
    for (auto module = w.modules.begin(); module != w.modules.end();) {
        const bool inside = (*module)->context == context;
        w.state.modules_alive -= inside ? 1 : 0;
        module = inside ? w.modules.erase(module) : std::next(module);
    }
    w.free_contexts.push_back(context);
}

CUstream_st* stream() {
    return &world().stream;
}

void fail(const std::string& function, int result, int after) {
    const Lock lock(world().mutex);
    world().failures[function] = Failure{result, after};
}

void set_capability(int major, int minor) {
    world().major = major;
    world().minor = minor;
}

void set_shared_memory(int bytes) {
    world().shared_memory = bytes;
}

void set_running(bool running) {
    world().running = running;
}

}  // namespace fake_cuda
