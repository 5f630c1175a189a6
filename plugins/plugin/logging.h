// What the plugin says, it says through TensorRT's logger.
#pragma once

#include <NvInferRuntime.h>

#include <exception>
#include <string>

namespace aff_deploy {

// The finder that TensorRT hands over; null takes it back.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// To the logger of the caller if a finder knows it, else to TensorRT's global one, else to stderr. Never throws.
void log(nvinfer1::ILogger::Severity severity, const char* message) noexcept;

// Runs the body at TensorRT's boundary, which no exception may cross: an exception is logged as an error of `where`, and
// `failed` returned.
template <typename Result, typename Body>
Result guarded(const char* where, Result failed, Body&& body) noexcept {
    try {
        return body();
    } catch (const std::exception& error) {
        try {
            log(nvinfer1::ILogger::Severity::kERROR, (std::string("aff_deploy: ") + where + ": " + error.what()).c_str());
        } catch (...) {
            log(nvinfer1::ILogger::Severity::kERROR, "aff_deploy: out of memory");
        }
    } catch (...) {
        log(nvinfer1::ILogger::Severity::kERROR, "aff_deploy: unknown error");
    }
    return failed;
}

}  // namespace aff_deploy
