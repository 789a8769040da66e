// SPDX-License-Identifier: Apache-2.0
// What the command and its workers say to each other. Both ends are the same executable, so a spec travels as its
// bytes. A frame is a u32 length and that many bytes.
#pragma once

#include "epjit/jit/artifact.hpp"
#include "epjit/jit/compiler.hpp"

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace epjit::tools {

/// The descriptor a worker answers on: stdout belongs to whatever the compiler prints.
inline constexpr int reply_descriptor = 3;

struct compile_request {
    jit::compile_job job;
    std::int64_t deadline_ms = 0;
};
std::string encode_request(const compile_request& request);
/// @throws error of kind internal when cut short.
compile_request decode_request(std::string_view frame);

std::string encode_artifact(const jit::artifact& value);
/// Keeps kind, message and remedy, and the log, options and source of a compile_error.
std::string encode_failure(const std::exception_ptr& failure);
/// Either the artifact or the failure, rebuilt with its type. @throws error of kind internal on a bad frame.
std::variant<jit::artifact, std::exception_ptr> decode_reply(std::string_view frame);

/// Blocking; false on a closed or failing descriptor (errno tells).
bool write_frame(int descriptor, std::string_view frame);
/// Blocking; empty at the end of the stream.
std::optional<std::string> read_frame(int descriptor);
/// Takes the first whole frame off `buffer`, if there is one.
std::optional<std::string> take_frame(std::string& buffer);

}  // namespace epjit::tools
