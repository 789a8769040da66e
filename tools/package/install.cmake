# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` copies, by component:
#   development  headers, libraries and the CMake package
#   runtime      the command and the shared library: what one copies to a machine that only runs
#   gpu_tests    the GPU test programs, only when asked for by name
include(CMakePackageConfigHelpers)
set(EPJIT_CMAKE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/epjit)

install(TARGETS epjit_static epjit_shared EXPORT epjit_targets
    ARCHIVE COMPONENT development
    LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
    FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
install(EXPORT epjit_targets NAMESPACE epjit:: DESTINATION ${EPJIT_CMAKE_DIR} COMPONENT development)

configure_package_config_file(tools/package/epjit-config.cmake.in ${PROJECT_BINARY_DIR}/epjit-config.cmake
    INSTALL_DESTINATION ${EPJIT_CMAKE_DIR} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/epjit-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/epjit-config.cmake ${PROJECT_BINARY_DIR}/epjit-config-version.cmake
    DESTINATION ${EPJIT_CMAKE_DIR} COMPONENT development)

set(EPJIT_PC_DIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH EPJIT_PC_TO_PREFIX /${EPJIT_PC_DIR} /)
string(REGEX REPLACE "/$" "" EPJIT_PC_TO_PREFIX "${EPJIT_PC_TO_PREFIX}")
configure_file(tools/package/epjit.pc.in ${PROJECT_BINARY_DIR}/epjit.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/epjit.pc DESTINATION ${EPJIT_PC_DIR} COMPONENT development)

install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/epjit COMPONENT runtime)
if(TARGET epjit_command)
    install(TARGETS epjit_command RUNTIME COMPONENT runtime)
endif()
# Carried to a machine with a GPU and run there as they are.
if(TARGET gpu_test)
    install(TARGETS gpu_test multi_gpu_test c_example RUNTIME DESTINATION tests COMPONENT gpu_tests EXCLUDE_FROM_ALL)
    install(TARGETS nccl_stub_one_gpu one_gpu_cuda LIBRARY DESTINATION tests COMPONENT gpu_tests EXCLUDE_FROM_ALL)
    install(PROGRAMS tests/multi_gpu/verify.sh DESTINATION tests COMPONENT gpu_tests EXCLUDE_FROM_ALL)
endif()
