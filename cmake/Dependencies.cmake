# Finds what Paceline stands on; the result is the target paceline_deps.
# A centre's own libraries: -DCMAKE_PREFIX_PATH=..., -DMPI_HOME=..., -DHDF5_ROOT=..., -DBLAS_ROOT=...
add_library(paceline_deps INTERFACE)
find_package(Threads REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(OpenMP REQUIRED COMPONENTS C)
find_package(ZLIB REQUIRED)
target_link_libraries(paceline_deps INTERFACE Threads::Threads MPI::MPI_C OpenMP::OpenMP_C ZLIB::ZLIB m)

# HDF5's C library, serial or parallel.
find_package(HDF5 REQUIRED COMPONENTS C)
target_include_directories(paceline_deps SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(paceline_deps INTERFACE ${HDF5_C_LIBRARIES})

# libdeflate inflates compressed data sets, zlib where it is missing.
find_path(DEFLATE_INCLUDE libdeflate.h)
find_library(DEFLATE_LIBRARY deflate)
set(PACELINE_HAVE_LIBDEFLATE OFF)
if(DEFLATE_INCLUDE AND DEFLATE_LIBRARY)
  set(PACELINE_HAVE_LIBDEFLATE ON)
  target_include_directories(paceline_deps SYSTEM INTERFACE ${DEFLATE_INCLUDE})
  target_compile_definitions(paceline_deps INTERFACE PL_HAVE_LIBDEFLATE)
  target_link_libraries(paceline_deps INTERFACE ${DEFLATE_LIBRARY})
endif()

# libyaml
find_path(YAML_INCLUDE yaml.h REQUIRED)
find_library(YAML_LIBRARY yaml REQUIRED)
target_include_directories(paceline_deps SYSTEM INTERFACE ${YAML_INCLUDE})
target_link_libraries(paceline_deps INTERFACE ${YAML_LIBRARY})

# OpenBLAS built with OpenMP, by its own folder: with both builds installed Debian's alternatives
# prefer the pthread one at link and at run time. Any CBLAS will do where that is not found.
set(blas_folders openblas-openmp openblas-pthread openblas)
list(TRANSFORM blas_folders PREPEND "/usr/lib/${CMAKE_LIBRARY_ARCHITECTURE}/" OUTPUT_VARIABLE blas_library_folders)
list(TRANSFORM blas_folders PREPEND "/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}/" OUTPUT_VARIABLE blas_header_folders)
find_library(BLAS_LIBRARY openblas HINTS ${BLAS_ROOT} $ENV{BLAS_ROOT} ${blas_library_folders} PATH_SUFFIXES lib lib64)
find_path(BLAS_INCLUDE cblas.h HINTS ${BLAS_ROOT} $ENV{BLAS_ROOT} ${blas_header_folders} PATH_SUFFIXES include openblas)
if(BLAS_LIBRARY)
  target_compile_definitions(paceline_deps INTERFACE PL_HAVE_OPENBLAS)
else()
  find_library(BLAS_LIBRARY NAMES blis flexiblas cblas mkl_rt REQUIRED)
endif()
if(NOT BLAS_INCLUDE)
  message(FATAL_ERROR "cblas.h not found: install libopenblas-openmp-dev, or give -DBLAS_ROOT=...")
endif()
target_include_directories(paceline_deps SYSTEM INTERFACE ${BLAS_INCLUDE})
target_link_libraries(paceline_deps INTERFACE ${BLAS_LIBRARY})
get_filename_component(blas_folder ${BLAS_LIBRARY} DIRECTORY)
list(APPEND CMAKE_INSTALL_RPATH ${blas_folder})
set(CMAKE_BUILD_RPATH ${blas_folder})

# oneDNN
set(PACELINE_HAVE_DNNL OFF)
if(NOT PACELINE_WITH_DNNL STREQUAL "OFF")
  find_library(DNNL_LIBRARY dnnl)
  find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.h)
  if(DNNL_LIBRARY AND DNNL_INCLUDE)
    set(PACELINE_HAVE_DNNL ON)
    target_include_directories(paceline_deps SYSTEM INTERFACE ${DNNL_INCLUDE})
    target_compile_definitions(paceline_deps INTERFACE PL_HAVE_DNNL)
    target_link_libraries(paceline_deps INTERFACE ${DNNL_LIBRARY})
  elseif(PACELINE_WITH_DNNL STREQUAL "ON")
    message(FATAL_ERROR "PACELINE_WITH_DNNL=ON, but oneDNN was not found: install libdnnl-dev")
  endif()
endif()
# CUDA and verbs are not built yet: asked for, they are refused.
foreach(component CUDA VERBS)
  if(PACELINE_WITH_${component} STREQUAL "ON")
    message(FATAL_ERROR "PACELINE_WITH_${component}=ON: this version has no such component yet")
  endif()
endforeach()
message(STATUS "Paceline: BLAS ${BLAS_LIBRARY}, oneDNN ${PACELINE_HAVE_DNNL}, libdeflate ${PACELINE_HAVE_LIBDEFLATE}, HDF5 ${HDF5_C_LIBRARIES}")
