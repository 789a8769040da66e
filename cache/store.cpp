// SPDX-License-Identifier: Apache-2.0
#include "epjit/cache/store.hpp"
