// TensorRT's side of the interface, as far as a plugin sees it: a logger that remembers, dimension expressions, a registry.
#pragma once

#include <NvInferImpl.h>
#include <NvInferRuntime.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

namespace fake_nvinfer {

class Logger : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        const std::lock_guard<std::mutex> lock(mutex_);
        said_ += message;
        said_ += '\n';
        worst_ = std::min(worst_, severity);
    }
    // What was said since the last call.
    std::string take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        worst_ = Severity::kVERBOSE;
        return std::exchange(said_, "");
    }
    Severity worst() const { return worst_; }

  private:
    std::mutex mutex_;
    std::string said_;
    Severity worst_ = Severity::kVERBOSE;
};

class Finder : public nvinfer1::ILoggerFinder {
  public:
    explicit Finder(nvinfer1::ILogger* logger) : logger_(logger) {}
    virtual ~Finder() = default;
    nvinfer1::ILogger* findLogger() override { return logger_; }

  private:
    nvinfer1::ILogger* logger_;
};

// A constant dimension, or an unknown one (-1).
class Dimension : public nvinfer1::IDimensionExpr, public nvinfer1::apiv::VDimensionExpr {
  public:
    explicit Dimension(std::int64_t size) : size_(size) { nvinfer1::IDimensionExpr::mImpl = this; }
    ~Dimension() noexcept override = default;
    bool isConstant() const override { return size_ >= 0; }
    std::int64_t getConstantValue() const override { return size_; }
    bool isSizeTensor() const override { return false; }

  private:
    std::int64_t size_;
};

// The plugin builds no expressions: its output has the shape of x.
class Builder : public nvinfer1::IExprBuilder {
  public:
    Builder() { mImpl = nullptr; }
    ~Builder() noexcept override = default;
};

}  // namespace fake_nvinfer
