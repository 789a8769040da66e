// SPDX-License-Identifier: Apache-2.0
// Typed errors. A message says what was attempted, the values, and a remedy.
#pragma once

#include "epjit/export.hpp"

#include <stdexcept>
#include <string>

namespace epjit {

enum class error_kind {
    internal,      ///< a broken promise of the library itself
    config,        ///< bad arguments, bad model config, contradictory options
    unsupported,   ///< valid, but this build, machine or exchange cannot do it; the message names what is missing
    compile,       ///< NVRTC refused a program
    cache,         ///< the cache cannot be used as asked
    offline_miss,  ///< EPJIT_OFFLINE=1 and a variant is not stored
    library,       ///< libcuda, libnvrtc or libnccl was not found or lacks a symbol
    cuda,          ///< a driver call failed
    nccl,          ///< an NCCL call failed
    timeout,       ///< a bounded wait ended
    capacity,      ///< rows did not fit and overflow::fail was asked for
    cancelled,
};

/// "config", "compile", ...: the `kind` of JSON errors.
EPJIT_API const char* name(error_kind) noexcept;

/// Base of everything the library throws. `remedy` is empty where there is nothing the user can do.
class EPJIT_API error : public std::runtime_error {
   public:
    error(error_kind kind, const std::string& message, std::string remedy = {});
    [[nodiscard]] error_kind kind() const noexcept { return kind_; }
    /// The message without the remedy; `what()` has both.
    [[nodiscard]] const std::string& message() const noexcept { return message_; }
    [[nodiscard]] const std::string& remedy() const noexcept { return remedy_; }

   private:
    error_kind kind_;
    std::string message_;
    std::string remedy_;
};

class EPJIT_API config_error : public error {
   public:
    explicit config_error(const std::string& message, std::string remedy = {})
        : error(error_kind::config, message, std::move(remedy)) {}
};

class EPJIT_API unsupported_error : public error {
   public:
    explicit unsupported_error(const std::string& message, std::string remedy = {})
        : error(error_kind::unsupported, message, std::move(remedy)) {}
};

/// One compile's failure: `what()` carries the first error line.
class EPJIT_API compile_error : public error {
   public:
    compile_error(const std::string& message, std::string log, std::string options, std::string source)
        : error(error_kind::compile, message),
          log_(std::move(log)),
          options_(std::move(options)),
          source_(std::move(source)) {}
    [[nodiscard]] const std::string& log() const noexcept { return log_; }
    [[nodiscard]] const std::string& options() const noexcept { return options_; }
    [[nodiscard]] const std::string& source() const noexcept { return source_; }

   private:
    std::string log_, options_, source_;
};

class EPJIT_API cache_error : public error {
   public:
    explicit cache_error(const std::string& message, std::string remedy = {})
        : error(error_kind::cache, message, std::move(remedy)) {}
};

/// A variant that offline mode needed and no layer holds.
class EPJIT_API offline_miss_error : public error {
   public:
    explicit offline_miss_error(const std::string& message, std::string remedy = {})
        : error(error_kind::offline_miss, message, std::move(remedy)) {}
};

class EPJIT_API library_error : public error {
   public:
    explicit library_error(const std::string& message, std::string remedy = {})
        : error(error_kind::library, message, std::move(remedy)) {}
};

class EPJIT_API cuda_error : public error {
   public:
    cuda_error(const std::string& message, int code, std::string remedy = {})
        : error(error_kind::cuda, message, std::move(remedy)), code_(code) {}
    [[nodiscard]] int code() const noexcept { return code_; }

   private:
    int code_;
};

class EPJIT_API nccl_error : public error {
   public:
    nccl_error(const std::string& message, int code, std::string remedy = {})
        : error(error_kind::nccl, message, std::move(remedy)), code_(code) {}
    [[nodiscard]] int code() const noexcept { return code_; }

   private:
    int code_;
};

class EPJIT_API timeout_error : public error {
   public:
    explicit timeout_error(const std::string& message, std::string remedy = {})
        : error(error_kind::timeout, message, std::move(remedy)) {}
};

class EPJIT_API capacity_error : public error {
   public:
    explicit capacity_error(const std::string& message, std::string remedy = {})
        : error(error_kind::capacity, message, std::move(remedy)) {}
};

}  // namespace epjit
