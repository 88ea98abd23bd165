# Two Debian packages: libedgelstm1 for programs that run, libedgelstm-dev for those who compile them.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME edgelstm)
set(CPACK_PACKAGE_VERSION "${PROJECT_VERSION}")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "") # each component brings its own
set(CPACK_PACKAGE_CONTACT "${EDGELSTM_MAINTAINER}")
set(CPACK_PACKAGING_INSTALL_PREFIX "${CMAKE_INSTALL_PREFIX}")
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
set(CPACK_COMPONENTS_ALL runtime development)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
if(machine STREQUAL "x86_64")
  set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE amd64)
elseif(machine STREQUAL "aarch64")
  set(CPACK_DEBIAN_PACKAGE_ARCHITECTURE arm64)
endif()

set(runtime "libedgelstm${abi}")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_NAME "${runtime}")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
set(CPACK_COMPONENT_RUNTIME_DESCRIPTION "Step graphs of recurrent models, streamed with the state kept
A C library that runs a trained LSTM, GRU or ConvLSTM one frame at a time
and keeps the state of each stream. It loads ONNX Runtime, which is not part
of this package, when the first model is opened. Beside it lie operators for
ONNX Runtime that compute whole cells.")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME libedgelstm-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${runtime} (= ${PROJECT_VERSION})")
set(CPACK_COMPONENT_DEVELOPMENT_DESCRIPTION "Step graphs of recurrent models: header for C and C++
What compilers need to make programs with libedgelstm: header, pkg-config
file and CMake package.")

# What it links: read from the library where Debian's tool for it is, else said.
find_program(DPKG_SHLIBDEPS dpkg-shlibdeps)
if(EDGELSTM_STATIC_RUNTIME OR CMAKE_CROSSCOMPILING OR NOT DPKG_SHLIBDEPS)
  set(CPACK_DEBIAN_RUNTIME_PACKAGE_DEPENDS "libc6")
  if(NOT EDGELSTM_STATIC_RUNTIME)
    string(APPEND CPACK_DEBIAN_RUNTIME_PACKAGE_DEPENDS ", libgcc-s1, libstdc++6")
  endif()
else()
  set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
endif()
# Others' packages learn from these which package their programs need, and that the linker's cache is to be made again.
set(control "${CMAKE_CURRENT_BINARY_DIR}/control")
file(WRITE "${control}/shlibs" "libedgelstm ${abi} ${runtime} (>= ${PROJECT_VERSION})\n")
file(WRITE "${control}/triggers" "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA "${control}/shlibs;${control}/triggers")

find_program(GZIP gzip)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/changelog" "edgelstm (${PROJECT_VERSION}) unstable; urgency=medium

  * See CHANGELOG.md of edgelstm.

 -- ${EDGELSTM_MAINTAINER}  Thu, 01 Jan 2026 00:00:00 +0000
")
if(GZIP)
  execute_process(COMMAND "${GZIP}" -9nf "${CMAKE_CURRENT_BINARY_DIR}/changelog")
endif()
foreach(component IN ITEMS runtime development)
  string(TOUPPER ${component} name)
  set(folder "${CMAKE_INSTALL_DATAROOTDIR}/doc/${CPACK_DEBIAN_${name}_PACKAGE_NAME}")
  install(FILES debian/copyright DESTINATION "${folder}" COMPONENT ${component})
  if(GZIP)
    install(FILES "${CMAKE_CURRENT_BINARY_DIR}/changelog.gz" DESTINATION "${folder}" COMPONENT ${component})
  endif()
endforeach()
include(CPack)
