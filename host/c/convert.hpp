// SPDX-License-Identifier: Apache-2.0
// Argument structs of epjit.h as those of the C++ interface, and back.
#pragma once

#include "epjit/epjit.h"
#include "epjit/exchange.hpp"

namespace epjit::host::c {

// @throws config_error that names the member whose number is no value of its enumeration.
epjit::exchange_config to_cpp(const epjit_exchange_config& c);
epjit::plan_options to_cpp(const epjit_plan_options& o);
epjit::plan_args to_cpp(const epjit_plan_args& a);
epjit::dispatch_args to_cpp(const epjit_dispatch_args& a);
epjit::dispatch_options to_cpp(const epjit_dispatch_options& o);
epjit::combine_args to_cpp(const epjit_combine_args& a);
epjit::combine_options to_cpp(const epjit_combine_options& o);
epjit::weight_gradient_args to_cpp(const epjit_weight_gradient_args& a);

epjit_tensor to_c(const tensor_view& v);
epjit_exchange_config to_c(const epjit::exchange_config& c);
epjit_plan_options to_c(const epjit::plan_options& o);
epjit_dispatch_options to_c(const epjit::dispatch_options& o);
epjit_combine_options to_c(const epjit::combine_options& o);

/// The defaults where `options` is null. @throws config_error.
epjit::plan_options plan_options_of(const epjit_plan_options* options);

}  // namespace epjit::host::c
