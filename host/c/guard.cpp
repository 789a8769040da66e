// SPDX-License-Identifier: Apache-2.0
#include "host/c/guard.hpp"

#include "epjit/error.hpp"

#include <fmt/format.h>

#include <exception>
#include <new>
#include <string>
#include <utility>

namespace epjit::host::c {
namespace {

struct kept_error {
    epjit_status status = EPJIT_OK;
    std::int32_t code = 0;
    std::string text, message, remedy, log, options, source;
    /// Set where there was no memory for the strings.
    const char* fixed_text = nullptr;
};

kept_error& kept() noexcept {
    thread_local kept_error error;
    return error;
}

/// EPJIT_OK is 0, so a status is one more than its error_kind; enumerations.cpp asserts it.
epjit_status status_of(error_kind kind) noexcept {
    return static_cast<epjit_status>(kind) + 1;
}

kept_error described(const error& e) {
    kept_error k;
    k.status = status_of(e.kind());
    k.text = e.what();
    k.message = e.message();
    k.remedy = e.remedy();
    if (const auto* cuda = dynamic_cast<const cuda_error*>(&e)) {
        k.code = cuda->code();
    } else if (const auto* nccl = dynamic_cast<const nccl_error*>(&e)) {
        k.code = nccl->code();
    } else if (const auto* compile = dynamic_cast<const compile_error*>(&e)) {
        k.log = compile->log();
        k.options = compile->options();
        k.source = compile->source();
    }
    return k;
}

kept_error described(const char* text) {
    kept_error k;
    k.status = EPJIT_ERROR_INTERNAL;
    k.text = k.message = text;
    return k;
}

kept_error describe_current() {
    try {
        throw;
    } catch (const error& e) {
        return described(e);
    } catch (const std::bad_alloc&) {
        return described("out of host memory");
    } catch (const std::exception& e) {
        return described(e.what());
    } catch (...) {
        return described("an exception that is not a std::exception");
    }
}

/// The status alone, which needs no memory.
epjit_status current_status() noexcept {
    try {
        throw;
    } catch (const error& e) {
        return status_of(e.kind());
    } catch (...) {
        return EPJIT_ERROR_INTERNAL;
    }
}

}  // namespace

epjit_status keep_current_error() noexcept {
    kept_error& mine = kept();
    try {
        mine = describe_current();
    } catch (...) {
        mine.fixed_text = "out of host memory, also for the text of this error";
        mine.status = current_status();
        mine.code = 0;
    }
    return mine.status;
}

epjit_error last_error() noexcept {
    const kept_error& k = kept();
    epjit_error e{};
    e.struct_size = sizeof e;
    e.status = k.status;
    e.code = k.code;
    const bool fixed = k.fixed_text != nullptr;
    e.text = fixed ? k.fixed_text : k.text.c_str();
    e.message = fixed ? k.fixed_text : k.message.c_str();
    e.remedy = fixed ? "" : k.remedy.c_str();
    e.log = fixed ? "" : k.log.c_str();
    e.options = fixed ? "" : k.options.c_str();
    e.source = fixed ? "" : k.source.c_str();
    return e;
}

void fail_null(const char* what) {
    throw config_error(fmt::format("{} is null", what), "pass a pointer to what the header asks for");
}

}  // namespace epjit::host::c
