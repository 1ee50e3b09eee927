# The ways a target is made here: one library a folder, programs, and tests.

add_library(paceline_options INTERFACE)
target_include_directories(paceline_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_definitions(paceline_options INTERFACE PACELINE_VERSION="${PROJECT_VERSION}")
target_compile_options(paceline_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers>)
if(PACELINE_WERROR)
  target_compile_options(paceline_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(PACELINE_SANITIZER)
  target_compile_options(paceline_options INTERFACE
    -fsanitize=${PACELINE_SANITIZER} -fno-omit-frame-pointer)
  target_link_options(paceline_options INTERFACE -fsanitize=${PACELINE_SANITIZER})
endif()

# paceline_library(coordinator_core SOURCES a.cc b.cc LIBS paceline::common)
# makes target paceline_coordinator_core, alias paceline::coordinator_core.
function(paceline_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS;PRIVATE_LIBS" ${ARGN})
  add_library(paceline_${name} STATIC ${ARG_SOURCES})
  add_library(paceline::${name} ALIAS paceline_${name})
  target_link_libraries(paceline_${name} PUBLIC paceline_options ${ARG_LIBS}
                                         PRIVATE ${ARG_PRIVATE_LIBS})
endfunction()

# paceline_program(paceline-agent SOURCES main.cc LIBS paceline::agent): build/bin/paceline-agent.
function(paceline_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE paceline_options ${ARG_LIBS})
  set_property(GLOBAL APPEND PROPERTY PACELINE_PROGRAMS ${name})
endfunction()

# paceline_test(corpus_test LABEL unit SOURCES corpus_test.cc LIBS paceline::data [TIMEOUT 60]
#               [NEEDS paceline-agent])
# LABEL: unit, sim, integration, gpu, slow. NEEDS: programs the test starts; it finds them in
# the folder that PACELINE_BIN_DIR names.
function(paceline_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;LIBS;NEEDS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/tests)
  target_link_libraries(${name} PRIVATE paceline_options ${ARG_LIBS} GTest::gmock GTest::gtest_main)
  if(ARG_NEEDS)
    add_dependencies(${name} ${ARG_NEEDS})
  endif()
  if(NOT TARGET tests_${ARG_LABEL})
    add_custom_target(tests_${ARG_LABEL})  # builds the tests of one label
  endif()
  add_dependencies(tests_${ARG_LABEL} ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(PACELINE_SANITIZER)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 5")
  endif()
  add_test(NAME ${name} COMMAND ${name})
  if(ARG_LABEL STREQUAL "integration")
    # Real processes share the cores with what they are timed against.
    set_tests_properties(${name} PROPERTIES RUN_SERIAL TRUE)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "PACELINE_BIN_DIR=${PROJECT_BINARY_DIR}/bin;PACELINE_SOURCE_DIR=${PROJECT_SOURCE_DIR};ASAN_OPTIONS=detect_leaks=1;TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/support/tsan.supp halt_on_error=1")
endfunction()
