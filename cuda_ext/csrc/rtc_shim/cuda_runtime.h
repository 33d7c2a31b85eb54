// Empty for NVRTC, where the functions of <cuda_runtime.h> that device code may call are built in.
#pragma once
