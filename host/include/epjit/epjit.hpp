// SPDX-License-Identifier: Apache-2.0
// Everything an embedder needs.
#pragma once

#include "epjit/collectives.hpp"
#include "epjit/communicator.hpp"
#include "epjit/error.hpp"
#include "epjit/exchange.hpp"
#include "epjit/lent_view.hpp"
#include "epjit/log.hpp"
#include "epjit/parallel.hpp"
#include "epjit/readiness.hpp"
#include "epjit/residency.hpp"
#include "epjit/runtime.hpp"
#include "epjit/types.hpp"
