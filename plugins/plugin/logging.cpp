#include "logging.h"

#include <atomic>
#include <cstdio>

#include "registry.h"

namespace aff_deploy {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};

nvinfer1::ILogger* find_logger() noexcept {
    // findLogger is not declared noexcept.
    try {
        if (auto* given = finder.load()) {
            if (auto* logger = given->findLogger()) {
                return logger;
            }
        }
    } catch (...) {
    }
    return find_global_logger();
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* given) noexcept {
    finder.store(given);
}

void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept {
    if (auto* logger = find_logger()) {
        logger->log(severity, message);
    } else {
        std::fprintf(stderr, "%s\n", message);
    }
}

}  // namespace aff_deploy
