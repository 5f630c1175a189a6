# Where the headers are that the plugin and the checks need; each variable is false if there are none.
#   AFF_DEPLOY_TENSORRT_INCLUDE      NvInfer.h and its own
#   AFF_DEPLOY_TENSORRT_MAJOR, _MINOR their version
#   AFF_DEPLOY_CUDA_INCLUDE          cuda.h, against which the launcher's declarations are compared
#   AFF_DEPLOY_CUDA_RUNTIME_INCLUDE  cuda_runtime_api.h, which TensorRT's headers include
# A path that was asked for by name is never replaced by another one found elsewhere.

set(CUDA_INCLUDE_DIR "$ENV{CUDA_INCLUDE_DIR}" CACHE PATH "Where CUDA's headers are (a toolkit's, a pip package's or Triton's)")

function(aff_deploy_find result header)
  cmake_parse_arguments(ARG "" "" "ASKED;ELSEWHERE" ${ARGN})
  unset(${result} CACHE)  # looked for anew by every run: what was asked for may have changed
  if(ARG_ASKED)
    find_path(${result} ${header} PATHS ${ARG_ASKED} NO_DEFAULT_PATH)
  else()
    find_path(${result} ${header} PATHS ${ARG_ELSEWHERE})
  endif()
endfunction()

set(asked_tensorrt)
if(TENSORRT_ROOT)
  set(asked_tensorrt ${TENSORRT_ROOT}/include ${TENSORRT_ROOT})
endif()
set(elsewhere_cuda $ENV{CUDA_HOME}/include $ENV{CUDA_PATH}/include /usr/local/cuda/include)
aff_deploy_find(AFF_DEPLOY_TENSORRT_INCLUDE NvInfer.h ASKED ${asked_tensorrt})
aff_deploy_find(AFF_DEPLOY_CUDA_INCLUDE cuda.h ASKED ${CUDA_INCLUDE_DIR} ELSEWHERE ${elsewhere_cuda})
aff_deploy_find(AFF_DEPLOY_CUDA_RUNTIME_INCLUDE cuda_runtime_api.h ASKED ${CUDA_INCLUDE_DIR} ELSEWHERE ${elsewhere_cuda})

unset(AFF_DEPLOY_TENSORRT_MAJOR)
if(EXISTS "${AFF_DEPLOY_TENSORRT_INCLUDE}/NvInferVersion.h")
  # In later versions the numbers stand in macros of other names, to which these refer.
  foreach(part MAJOR MINOR)
    file(STRINGS ${AFF_DEPLOY_TENSORRT_INCLUDE}/NvInferVersion.h AFF_DEPLOY_TENSORRT_${part}
         REGEX "define (TRT_${part}_ENTERPRISE|NV_TENSORRT_${part}) [0-9]+")
    string(REGEX REPLACE ".*${part}[A-Z_]* ([0-9]+).*" "\\1" AFF_DEPLOY_TENSORRT_${part} "${AFF_DEPLOY_TENSORRT_${part}}")
  endforeach()
endif()
