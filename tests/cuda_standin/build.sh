#!/usr/bin/env bash
# Builds the stand-in driver, and pycuda against it once a machine: build.sh PYTHON
# Prints the folder that holds lib/libcuda.so.1 and site/pycuda. Needs gcc, g++, make; CUDA's headers come from
# /usr/local/cuda or, where no toolkit is installed, from NVIDIA's wheels.
set -euo pipefail
python=$1
here=$(cd "$(dirname "$0")" && pwd)
pycuda=2026.1
tag=$("$python" -c 'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform(), sep="-")')
source=$(cat "$here"/nullcuda.c "$here"/gen.py "$here"/Makefile "$here"/build.sh | sha256sum | cut -c1-16)
root=${RDEDGE_STANDIN_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rdedge-cuda-standin}
out=$root/$tag-$source
made=$root/$tag-pycuda-$pycuda # knows the driver by its symbols only, so it outlives changes of nullcuda.c
mkdir -p "$root"
exec 9>"$root/.lock"
flock 9 # two test runs at once build one after the other
if [ ! -e "$out/done" ]; then
    rm -rf "$out"
    mkdir -p "$out/home"
    {
        cuda=/usr/local/cuda
        if [ ! -e "$cuda/include/cuda.h" ]; then
            "$python" -m pip install --quiet --no-deps --target "$out/headers" \
                "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-crt==13.0.*" "nvidia-cuda-profiler-api==13.0.*"
            cuda=$(dirname "$(dirname "$(find "$out/headers" -name cuda.h | head -n 1)")")
        fi
        cp "$here"/nullcuda.c "$here"/gen.py "$here"/Makefile "$out"
        make -C "$out" CUDA="$cuda" PYTHON="$python"
        if [ ! -e "$made/done" ]; then
            rm -rf "$made"
            # Where pycuda's setup.py looks for its settings; it finds no libcuda on its own on a machine without a GPU.
            printf 'CUDA_ROOT = "%s"\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = ["%s"]\nCUDA_INC_DIR = ["%s"]\n' \
                "$cuda" "$out/lib" "$cuda/include" >"$out/home/.aksetup-defaults.py"
            # pip's cache may hold a pycuda that was linked with a real driver, or without any.
            HOME=$out/home "$python" -m pip install --quiet --no-cache-dir --no-binary pycuda --target "$made/site" "pycuda==$pycuda"
            touch "$made/done"
        fi
        ln -s "../$(basename "$made")/site" "$out/site"
    } >&2
    rm -rf "$out/headers" "$out/home"
    touch "$out/done"
fi
echo "$out"
